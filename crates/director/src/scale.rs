//! New counts of nodes: pure decisions over a service's declaration and its present roles.

use crate::error::DirectorError;
use conpaas_core::service_type::ServiceType;
use conpaas_model::api::Scale;
use conpaas_model::instance::InstanceType;
use conpaas_model::spec::{CountOwner, Pool, RoleName, RoleWish};
use std::collections::BTreeMap;

/// The roles of a service that was just added: those that people ask for. Auxiliary ones come with
/// them.
pub fn default_roles(
    service_type: &dyn ServiceType,
    cloud: &str,
    instance_type: &str,
) -> BTreeMap<RoleName, RoleWish> {
    service_type
        .roles()
        .iter()
        .filter(|role| service_type.auxiliary_role(role.name).is_none())
        .map(|role| {
            let pool = Pool {
                cloud: cloud.to_owned(),
                instance_type: instance_type.to_owned(),
                count: role.default_count,
            };
            (
                role.name.to_owned(),
                RoleWish {
                    pools: vec![pool],
                    owner: CountOwner::Default,
                },
            )
        })
        .collect()
}

/// Whether `by` may change a count that `present` set: nobody resets what a person decided, and
/// the autoscaler not what a manifest did.
fn may_change(present: CountOwner, by: CountOwner) -> bool {
    match by {
        CountOwner::User => true,
        CountOwner::Default => present == CountOwner::Default,
        CountOwner::Manifest => present != CountOwner::User,
        CountOwner::Autoscaler => !matches!(present, CountOwner::User | CountOwner::Manifest),
    }
}

fn bad(message: String) -> DirectorError {
    DirectorError::invalid("invalid_count", message)
}

/// `4` or `+1`, applied to a count.
fn new_count(role: &str, present: u32, text: &str) -> Result<i64, DirectorError> {
    // A number below zero is most often a slip, and would read as "one less" to some and as a
    // count to others: it is refused instead of guessed.
    if text.starts_with('-') {
        return Err(bad(format!(
            "'{text}' is no count for {role}: a count is not negative, and {role} has {present} now"
        ))
        .hint(format!(
            "say how many there should be, for instance {role}={}",
            present.saturating_sub(1).max(1)
        )));
    }
    let (digits, more) = match text.strip_prefix('+') {
        Some(digits) => (digits, i64::from(present)),
        None => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad(format!(
            "'{text}' is no count for {role}: use a number (4), or how many more (+1)"
        )));
    }
    let number: i64 = digits.parse().unwrap_or(i64::from(u32::MAX));
    Ok(number.saturating_add(more))
}

/// The roles as they would be, or why that cannot be. `quota` is how many nodes the owner may have.
pub fn scaled(
    service_type: &dyn ServiceType,
    present: &BTreeMap<RoleName, RoleWish>,
    instance_types: &[InstanceType],
    quota: u32,
    scale: &Scale,
) -> Result<BTreeMap<RoleName, RoleWish>, DirectorError> {
    let owner = scale.owner.unwrap_or(CountOwner::User);
    if let Some(name) = &scale.instance_type
        && !instance_types.iter().any(|size| size.name == *name)
    {
        let names: Vec<&str> = instance_types
            .iter()
            .map(|size| size.name.as_str())
            .collect();
        return Err(DirectorError::invalid(
            "unknown_instance_type",
            format!(
                "there is no instance type '{name}'; there are: {}",
                names.join(", ")
            ),
        ));
    }
    if scale.roles.is_empty() && scale.instance_type.is_none() {
        return Err(bad(
            "say at least one role and its count, for instance ROLE=2".to_owned(),
        ));
    }
    let mut roles = present.clone();
    for (name, text) in &scale.roles {
        let Some(role) = service_type.role(name) else {
            let names: Vec<&str> = service_type.roles().iter().map(|role| role.name).collect();
            return Err(DirectorError::invalid(
                "unknown_role",
                format!(
                    "a {} service has no role '{name}'; its roles are: {}",
                    service_type.name(),
                    names.join(", ")
                ),
            ));
        };
        if service_type.auxiliary_role(name).is_some() {
            return Err(bad(format!(
                "how many {name} there are is not asked for: they come with the roles that need them"
            )));
        }
        let Some(wish) = roles.get_mut(name) else {
            continue;
        };
        let others: u32 = wish.pools.iter().skip(1).map(|pool| pool.count).sum();
        let Some(pool) = wish.pools.first_mut() else {
            continue;
        };
        let count = new_count(name, pool.count, text)?;
        let (min, max) = (i64::from(role.min), i64::from(role.max));
        let total = count.saturating_add(i64::from(others));
        if total < min {
            return Err(bad(format!(
                "{name} cannot have {total} nodes: it needs at least {min}, and has {} now",
                i64::from(pool.count) + i64::from(others)
            ))
            .hint("to have no nodes at all, stop the service: conpaas service stop APP/SERVICE"));
        }
        if total > max {
            return Err(bad(format!(
                "{name} cannot have {total} nodes: it may have at most {max}, and its owner's quota is {quota} nodes"
            )));
        }
        if may_change(wish.owner, owner) {
            pool.count = u32::try_from(count).unwrap_or(u32::MAX);
            wish.owner = owner;
        }
    }
    if let Some(size) = &scale.instance_type {
        for (name, wish) in &mut roles {
            let meant = scale.roles.is_empty() || scale.roles.contains_key(name);
            if let Some(pool) = wish.pools.first_mut().filter(|_| meant) {
                pool.instance_type.clone_from(size);
            }
        }
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_set_or_changed() {
        assert_eq!(new_count("a", 3, "4").unwrap(), 4);
        assert_eq!(new_count("a", 3, "+1").unwrap(), 4);
        for bad in [
            "-1", "-4", "-0", "", "+", "-", "x", "1.5", "+-1", "--1", " 1",
        ] {
            assert!(new_count("a", 3, bad).is_err(), "{bad}");
        }
        assert!(new_count("a", 3, "99999999999999999999").unwrap() > 10_000);
    }

    #[test]
    fn nobody_resets_what_a_person_decided() {
        use CountOwner::{Autoscaler, Default, Manifest, User};
        assert!(may_change(Default, Autoscaler) && may_change(Autoscaler, User));
        assert!(!may_change(User, Manifest) && !may_change(User, Autoscaler));
        assert!(!may_change(Manifest, Autoscaler) && may_change(Autoscaler, Manifest));
    }
}
