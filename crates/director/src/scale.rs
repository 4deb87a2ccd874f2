//! New counts of nodes: pure decisions over a service's declaration and its present roles.

use crate::error::DirectorError;
use conpaas_core::service_type::ServiceType;
use conpaas_model::api::Scale;
use conpaas_model::instance::InstanceType;
use conpaas_model::spec::{Bounds, CountOwner, Pool, RoleName, RoleWish};
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
                    bounds: None,
                },
            )
        })
        .collect()
}

/// Whether `by` may change a count that `present` set: nobody resets what a person decided, and
/// the autoscaler not what a manifest did, unless it was given bounds to choose in.
fn may_change(present: &RoleWish, by: CountOwner) -> bool {
    let bounded = present.bounds.is_some();
    let present = present.owner;
    match by {
        CountOwner::User => true,
        CountOwner::Default => present == CountOwner::Default,
        CountOwner::Manifest => present != CountOwner::User,
        CountOwner::Autoscaler => {
            bounded || !matches!(present, CountOwner::User | CountOwner::Manifest)
        }
    }
}

fn bad(message: String) -> DirectorError {
    DirectorError::invalid("invalid_count", message)
}

/// What is asked for a role: a count, or bounds.
enum Asked {
    Count(i64),
    Between(Bounds),
}

/// A number of nodes, as large as it may be; more than there can be is what there can be.
fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(i64::from(u32::MAX)))
}

/// `4` or `+1`, applied to a count, or `2..6`.
fn asked(role: &str, present: u32, text: &str) -> Result<Asked, DirectorError> {
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
    let wrong = || {
        bad(format!(
            "'{text}' is no count for {role}: use a number (4), how many more (+1), or bounds (2..6)"
        ))
    };
    if let Some((min, max)) = text.split_once("..") {
        let end = |text: &str| u32::try_from(number(text).ok_or_else(wrong)?).map_err(|_| wrong());
        let bounds = Bounds {
            min: end(min)?,
            max: end(max)?,
        };
        if bounds.min > bounds.max {
            return Err(bad(format!(
                "{role} cannot have {bounds} nodes: the first number is the greater one"
            )));
        }
        return Ok(Asked::Between(bounds));
    }
    let (digits, more) = match text.strip_prefix('+') {
        Some(digits) => (digits, i64::from(present)),
        None => (text, 0),
    };
    let number = number(digits).ok_or_else(wrong)?;
    Ok(Asked::Count(number.saturating_add(more)))
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
        let Some(pool) = wish.pools.first() else {
            continue;
        };
        let present = pool.count;
        let (min, max) = (i64::from(role.min), i64::from(role.max));
        let fits = |total: i64| {
            if total < min {
                return Err(bad(format!(
                    "{name} cannot have {total} nodes: it needs at least {min}, and has {} now",
                    i64::from(present) + i64::from(others)
                ))
                .hint(
                    "to have no nodes at all, stop the service: conpaas service stop APP/SERVICE",
                ));
            }
            if total > max {
                return Err(bad(format!(
                    "{name} cannot have {total} nodes: it may have at most {max}, and its owner's quota is {quota} nodes"
                )));
            }
            Ok(())
        };
        let (count, bounds) = match asked(name, present, text)? {
            // Bounds are of all its nodes; those of further pools are not the scaler's.
            Asked::Between(bounds) => {
                if owner == CountOwner::Autoscaler {
                    return Err(bad(format!(
                        "a scaler chooses within bounds, and gives none: say a count of {name}"
                    )));
                }
                fits(i64::from(bounds.min))?;
                fits(i64::from(bounds.max))?;
                if others > bounds.max {
                    return Err(bad(format!(
                        "{name} has {others} nodes of further kinds already: more than {bounds}"
                    )));
                }
                let total = (present + others).clamp(bounds.min, bounds.max);
                (i64::from(total.saturating_sub(others)), Some(bounds))
            }
            Asked::Count(count) => match (owner, wish.bounds) {
                (CountOwner::Autoscaler, Some(bounds)) => {
                    let total = count.saturating_add(i64::from(others));
                    let total = total.clamp(i64::from(bounds.min), i64::from(bounds.max));
                    (total.saturating_sub(i64::from(others)).max(0), Some(bounds))
                }
                _ => (count, None),
            },
        };
        fits(count.saturating_add(i64::from(others)))?;
        if may_change(wish, owner) {
            if let Some(pool) = wish.pools.first_mut() {
                pool.count = u32::try_from(count).unwrap_or(u32::MAX);
            }
            // Bounds stay whose they are.
            if owner != CountOwner::Autoscaler || bounds.is_none() {
                wish.owner = owner;
            }
            wish.bounds = bounds;
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
        let count = |text: &str| match asked("a", 3, text) {
            Ok(Asked::Count(count)) => Some(count),
            Ok(Asked::Between(_)) => panic!("{text}"),
            Err(_) => None,
        };
        assert_eq!((count("4"), count("+1")), (Some(4), Some(4)));
        for bad in [
            "-1", "-4", "-0", "", "+", "-", "x", "1.5", "+-1", "--1", " 1", "..", "1..", "..2",
            "1..x", "3..2", "1..2..3", "+1..2",
        ] {
            assert_eq!(count(bad), None, "{bad}");
        }
        assert!(count("99999999999999999999") > Some(10_000));
    }

    fn wish(owner: CountOwner, bounds: Option<Bounds>) -> RoleWish {
        RoleWish {
            pools: vec![Pool {
                cloud: "local".into(),
                instance_type: "small".into(),
                count: 3,
            }],
            owner,
            bounds,
        }
    }

    #[test]
    fn nobody_resets_what_a_person_decided() {
        use CountOwner::{Autoscaler, Default, Manifest, User};
        let may = |present, by| may_change(&wish(present, None), by);
        assert!(may(Default, Autoscaler) && may(Autoscaler, User));
        assert!(!may(User, Manifest) && !may(User, Autoscaler));
        assert!(!may(Manifest, Autoscaler) && may(Autoscaler, Manifest));
    }

    /// After `text`, asked for by somebody: count, owner and bounds of a role that had 3 nodes.
    fn after(present: &RoleWish, by: CountOwner, text: &str) -> Result<RoleWish, DirectorError> {
        // Whichever type has a role that may have that many.
        let registry = conpaas_services::registry::Registry::standard();
        let (service_type, role) = registry
            .all()
            .filter(|entry| !entry.service_type.internal())
            .find_map(|entry| {
                let mut fits = entry.service_type.roles().iter().filter(|role| {
                    (
                        role.min,
                        entry.service_type.auxiliary_role(role.name).is_none(),
                    ) == (1, true)
                });
                Some((entry.service_type, fits.find(|role| role.max >= 10)?.name))
            })
            .expect("a role of many");
        let before = BTreeMap::from([(role.to_owned(), present.clone())]);
        let scale = Scale {
            roles: BTreeMap::from([(role.to_owned(), text.to_owned())]),
            instance_type: None,
            owner: Some(by),
        };
        scaled(service_type, &before, &[], 20, &scale).map(|after| after[role].clone())
    }

    #[test]
    fn a_scaler_chooses_within_the_bounds_that_a_person_gave_and_a_count_ends_them() {
        use CountOwner::{Autoscaler, Manifest, User};
        let some = |min, max| Some(Bounds { min, max });
        let given = after(&wish(User, None), User, "4..6").unwrap();
        assert_eq!((given.count(), given.bounds), (4, some(4, 6)));
        for (text, count) in [("5", 5), ("1", 4), ("60", 6), ("+1", 5)] {
            let chosen = after(&given, Autoscaler, text).unwrap();
            assert_eq!((chosen.count(), chosen.owner), (count, User), "{text}");
            assert_eq!(chosen.bounds, given.bounds);
            let manifest = after(&chosen, Manifest, "3").unwrap();
            assert_eq!(manifest, chosen, "nobody resets what a person decided");
        }
        assert!(after(&given, Autoscaler, "1..9").is_err());
        // Within other bounds what is there stays.
        let wider = after(&given, User, "1..10").unwrap();
        assert_eq!((wider.count(), wider.bounds), (4, some(1, 10)));
        let fixed = after(&wider, User, "2").unwrap();
        assert_eq!((fixed.count(), fixed.bounds), (2, None));
        let left = after(&fixed, Autoscaler, "5").unwrap();
        assert_eq!((left.count(), left.owner), (2, User));
        for beyond in ["0..3", "1..100000"] {
            assert!(after(&given, User, beyond).is_err(), "{beyond}");
        }
    }
}
