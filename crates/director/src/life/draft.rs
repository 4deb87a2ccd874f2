//! One change of wishes in the making: new generations, the operation that observes them, quota
//! and capacity. All of it in one transaction, or nothing.

use super::settle::settle;
use super::systems::settle_systems;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::apps::AppRow;
use crate::store::events::{self, NewEvent};
use crate::store::operations::{self as rows, OperationRow, Previous, PreviousService, Target};
use crate::store::services::{self, ServiceRow};
use crate::store::{apps, machines, millis, new_id, now};
use conpaas_core::plan::{node_count, replaced_at_once};
use conpaas_core::service_type::ServiceType;
use conpaas_model::api::{CloudInfo, Outcome};
use conpaas_model::event::EventKind;
use conpaas_model::ids::{NodeNumber, OperationId, PrincipalId, ServiceId};
use conpaas_model::spec::{RoleName, RoleWish, RunWish};
use rusqlite::Connection;
use std::collections::BTreeMap;

/// Nodes wanted, by cloud and instance type.
type Demand = BTreeMap<(String, String), u64>;

pub(super) struct Draft<'a> {
    tx: &'a Connection,
    shared: &'a Shared,
    actor: &'a str,
    kind: &'static str,
    pub(super) app: AppRow,
    subject: Option<ServiceRow>,
    targets: Vec<Target>,
    previous: Previous,
    before: Demand,
}

/// Nodes of one service's roles, as the planner would lay them out.
fn demand_of(service_type: &dyn ServiceType, roles: &BTreeMap<RoleName, RoleWish>) -> Demand {
    let mut demand = Demand::new();
    let total = node_count(service_type, roles) as u64;
    let single: u64 = roles.values().map(|wish| u64::from(wish.count())).sum();
    let pools = || roles.values().flat_map(|wish| &wish.pools);
    if total == single {
        for pool in pools() {
            let key = (pool.cloud.clone(), pool.instance_type.clone());
            *demand.entry(key).or_default() += u64::from(pool.count);
        }
    } else if let Some(pool) = pools().find(|pool| pool.count > 0) {
        // Roles share machines: their size is that of the first.
        demand.insert((pool.cloud.clone(), pool.instance_type.clone()), total);
    }
    demand
}

/// All nodes an owner wants now, managers' included, and one more for each that is being replaced
/// at the same time.
fn demand_of_owner(
    tx: &Connection,
    shared: &Shared,
    owner: &PrincipalId,
) -> Result<Demand, DirectorError> {
    let mut demand = Demand::new();
    for app in apps::list(tx, Some(owner), apps::Which::All, "", u64::from(u32::MAX))? {
        for row in services::of_app(tx, &app.id)? {
            if row.run != RunWish::Running {
                continue;
            }
            let service_type = shared.service_type(&row.service_type)?;
            for (key, count) in demand_of(service_type, &row.roles) {
                *demand.entry(key).or_default() += count;
            }
            let at_once = replaced_at_once(node_count(service_type, &row.roles));
            for key in machines::replaced(tx, &row.id)?.into_iter().take(at_once) {
                *demand.entry(key).or_default() += 1;
            }
        }
    }
    Ok(demand)
}

/// Nodes an owner wants now, over all applications, managers' included.
pub fn nodes_wanted(
    tx: &Connection,
    shared: &Shared,
    owner: &PrincipalId,
) -> Result<u64, DirectorError> {
    Ok(demand_of_owner(tx, shared, owner)?.values().sum())
}

/// Refuses growth beyond the quota.
fn check_quota(before: u64, after: u64, quota: u32) -> Result<(), DirectorError> {
    if after <= before || after <= u64::from(quota) {
        return Ok(());
    }
    Err(DirectorError::quota(
        "quota_exceeded",
        format!(
            "this needs {} more nodes, {after} in all, and the quota is {quota} ({before} are wanted already, managers included)",
            after - before
        ),
    )
    .hint("stop or scale down something else, or ask the operator for a larger quota"))
}

/// Refuses growth beyond what a cloud has free.
fn check_capacity(
    shared: &Shared,
    before: &Demand,
    after: &Demand,
    clouds: &[CloudInfo],
) -> Result<(), DirectorError> {
    for cloud in clouds {
        let (mut vcpus, mut memory, mut nodes) = (0.0, 0u64, 0u64);
        for ((name, size), count) in after.iter().filter(|((name, _), _)| *name == cloud.name) {
            let had = before
                .get(&(name.clone(), size.clone()))
                .copied()
                .unwrap_or(0);
            let more = count.saturating_sub(had);
            let known = cloud
                .instance_types
                .iter()
                .find(|found| found.name == *size);
            let Some(size) = known.or_else(|| shared.config.instance_type(size)) else {
                continue;
            };
            vcpus += size.vcpus * more as f64;
            memory = memory.saturating_add(size.memory_mib.saturating_mul(more));
            nodes += more;
        }
        if nodes > 0 && (vcpus > cloud.free_vcpus || memory > cloud.free_memory_mib) {
            return Err(DirectorError::quota(
                "no_capacity",
                format!(
                    "this needs {nodes} more nodes with {vcpus} vCPUs and {memory} MiB, and the cloud '{}' has {:.1} vCPUs and {} MiB free",
                    cloud.name, cloud.free_vcpus.max(0.0), cloud.free_memory_mib
                ),
            )
            .hint("ask for fewer or smaller nodes, or see what is free: conpaas cloud list"));
        }
    }
    Ok(())
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        tx: &'a Connection,
        shared: &'a Shared,
        actor: &'a str,
        kind: &'static str,
        app: AppRow,
        subject: Option<&ServiceRow>,
    ) -> Result<Self, DirectorError> {
        let before = demand_of_owner(tx, shared, &app.owner)?;
        Ok(Self {
            tx,
            shared,
            actor,
            kind,
            app,
            subject: subject.cloned(),
            targets: Vec::new(),
            previous: Previous::default(),
            before,
        })
    }

    /// Changes the application's own wish.
    pub(super) fn set_app_run(&mut self, run: RunWish) -> Result<(), DirectorError> {
        if self.app.run == run {
            return Ok(());
        }
        self.previous.app = Some(self.app.run);
        self.app.run = run;
        self.app.ever_started |= run == RunWish::Running;
        self.app.generation = self.app.generation.next();
        apps::update(self.tx, &self.app)
    }

    /// Writes a service's new wish as a new generation that the operation waits for.
    pub(super) fn change(
        &mut self,
        before: &ServiceRow,
        mut after: ServiceRow,
    ) -> Result<(), DirectorError> {
        self.previous.services.push(PreviousService {
            service: before.id.clone(),
            run: before.run,
            roles: before.roles.clone(),
            active: before.active,
            preview: before.preview,
            retire: Default::default(),
        });
        if after.run != RunWish::Running && after.roles != before.roles {
            // A wish for later is refused now when it could never be met.
            let service_type = self.shared.service_type(&after.service_type)?;
            let owner = crate::store::users::find(self.tx, self.app.owner.as_str())?;
            let nodes = |roles| demand_of(service_type, roles).values().sum();
            let quota = owner.map_or(0, |owner| owner.node_quota);
            check_quota(nodes(&before.roles), nodes(&after.roles), quota)?;
        }
        after.generation = before.generation.next();
        services::update_wish(self.tx, &after)?;
        self.targets.push(Target {
            service: after.id,
            name: after.name,
            generation: after.generation,
        });
        Ok(())
    }

    /// Wants a node of a service replaced that was changed before.
    pub(super) fn retire(
        &mut self,
        service: &ServiceId,
        node: NodeNumber,
    ) -> Result<(), DirectorError> {
        let mut changed = self.previous.services.iter_mut();
        if let Some(changed) = changed.find(|changed| changed.service == *service) {
            changed.retire.insert(node);
        }
        machines::retire(self.tx, service, node)
    }

    /// How many times nodes are replaced one batch after the other: each takes its time.
    fn rounds(&self) -> Result<i64, DirectorError> {
        let mut most = 1;
        for changed in &self.previous.services {
            let Some(row) = services::get(self.tx, &changed.service)? else {
                continue;
            };
            let service_type = self.shared.service_type(&row.service_type)?;
            let at_once = replaced_at_once(node_count(service_type, &row.roles));
            most = most.max(changed.retire.len().div_ceil(at_once));
        }
        Ok(i64::try_from(most).unwrap_or(i64::MAX))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.previous.app.is_none()
    }

    /// Checks quota and capacity, records the operation, and draws the first conclusions. When
    /// nothing was changed, gives the operation that is under way already, if any.
    pub(super) fn commit(
        mut self,
        clouds: &[CloudInfo],
    ) -> Result<Option<OperationRow>, DirectorError> {
        let (tx, shared) = (self.tx, self.shared);
        if self.is_empty() {
            let running = rows::running(tx, Some(&self.app.id))?;
            let subject = self.subject.as_ref().map(|row| &row.id);
            return Ok(running
                .into_iter()
                .rev()
                .find(|found| found.service.as_ref() == subject));
        }
        settle_systems(tx, shared, &self.app)?;
        let owner = crate::store::users::find(tx, self.app.owner.as_str())?;
        let after = demand_of_owner(tx, shared, &self.app.owner)?;
        let quota = owner.map_or(0, |owner| owner.node_quota);
        check_quota(self.before.values().sum(), after.values().sum(), quota)?;
        check_capacity(shared, &self.before, &after, clouds)?;
        if self.targets.is_empty() {
            for row in services::of_app(tx, &self.app.id)?
                .into_iter()
                .filter(|row| row.internal)
            {
                self.targets.push(Target {
                    service: row.id,
                    name: row.name,
                    generation: row.generation,
                });
            }
        }
        let at = now();
        let deadline = millis(shared.config.operation_deadline).saturating_mul(self.rounds()?);
        let operation = OperationRow {
            id: new_id(OperationId::from_suffix)?,
            kind: self.kind.to_owned(),
            owner: self.app.owner.clone(),
            app: self.app.id.clone(),
            app_name: self.app.name.clone(),
            service: self.subject.as_ref().map(|row| row.id.clone()),
            service_name: self.subject.as_ref().map(|row| row.name.clone()),
            targets: self.targets,
            previous: self.previous,
            actor: self.actor.to_owned(),
            outcome: Outcome::Running,
            reason: None,
            steps: Vec::new(),
            created_at: at,
            deadline: at.saturating_add(deadline),
            ended_at: None,
        };
        rows::insert(tx, &operation)?;
        events::append(
            tx,
            &operation.app,
            &NewEvent {
                service: operation.service_name.as_ref(),
                actor: self.actor,
                reason: None,
                what: EventKind::OperationStarted {
                    operation: operation.id.clone(),
                    kind: operation.kind.clone(),
                },
            },
        )?;
        settle(tx, shared, &operation.app)?;
        rows::get(tx, operation.id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_refuses_growth_only_and_says_the_numbers() {
        assert!(check_quota(3, 20, 20).is_ok());
        assert!(
            check_quota(30, 25, 20).is_ok(),
            "shrinking is always allowed"
        );
        let error = check_quota(3, 10_003, 20).unwrap_err().to_string();
        for part in ["10000 more", "quota is 20", "3 are wanted"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
