//! The system's own role: runs the real manager, as a task in place of a process.

use crate::memory::{Machine, Machines};
use conpaas_core::role_agent::{NodeContext, RoleAgent, RoleError};
use conpaas_model::level::{Duty, RoleLevel};
use conpaas_model::status::{Phase, RoleStatus};
use std::sync::{Arc, Weak};

pub struct Manager {
    pub machines: Weak<Machines>,
}

pub(super) fn machine(
    machines: &Weak<Machines>,
    node: &NodeContext,
) -> Result<Arc<Machine>, RoleError> {
    let machine = machines
        .upgrade()
        .and_then(|machines| machines.of_roles(&node.run_folder));
    machine.ok_or_else(|| RoleError::Failed("this machine is no more".to_owned()))
}

#[async_trait::async_trait]
impl RoleAgent for Manager {
    async fn apply(&mut self, node: &NodeContext, _level: &RoleLevel) -> Result<(), RoleError> {
        machine(&self.machines, node)?
            .run_manager()
            .await
            .map_err(RoleError::io("starting the manager"))
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let own = match machine(&self.machines, node)?.manager_is_up() {
            true if level.duty == Duty::Drain => Phase::Drained,
            true => Phase::Ready,
            false => Phase::Starting,
        };
        Ok(RoleStatus {
            own: Some(own),
            ..RoleStatus::default()
        })
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        machine(&self.machines, node)?.stop_manager();
        Ok(true)
    }
}
