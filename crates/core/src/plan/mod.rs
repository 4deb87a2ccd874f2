//! `plan(input) -> plan`: from what is wanted and what is observed to the next levels of all
//! nodes, the nodes to obtain and release, what the edge may lead to, and the reasons for
//! waiting. Pure and deterministic; it remembers nothing. Every plan can be carried out at
//! once, and planning again from the same input gives the same plan.
//!
//! The rule that makes change hitless: to add, providers first, healthy, then their users; to
//! remove, users let go first, drain, then providers stop; to change, the new beside the old,
//! then the users switch at one instant, then the old drains.

mod auxiliary;
mod fence;
pub mod layout;
mod rollout;
mod summary;

pub use layout::{node_count, replaced_at_once};

use crate::service_type::ServiceType;
use conpaas_model::event::{LeaveReason, RequestReason};
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::instance::InstanceType;
use conpaas_model::level::{Instance, LevelBody};
use conpaas_model::protocol::{Exposure, NodeWish};
use conpaas_model::spec::{RoleName, ServiceSpec};
use conpaas_model::status::{EdgeStatus, NodeRecord, NodeState, Phase, RoleStatus, Step, Waiting};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Whether a node's agent can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing was heard of it yet, and it is too early to judge.
    Unheard,
    Connected,
    /// Silent for longer than the bound: suspected dead.
    Lost,
}

/// One node as the planner sees it.
#[derive(Clone, Debug)]
pub struct Node {
    pub record: NodeRecord,
    pub presence: Presence,
    /// Silent for longer than the bound, though it may not be given up yet.
    pub suspected: bool,
    /// The level it was last sent, or reported to obey.
    pub level: LevelBody,
    /// Its agent has said that it carried that very level out.
    pub confirmed: bool,
    /// Its agent has taken that very level, so its endpoints lead by it.
    pub obeys: bool,
    /// Roles that have carried that very level out, though others may still be at it.
    pub confirmed_roles: BTreeSet<RoleName>,
    /// What its agent last reported of its roles.
    pub roles: BTreeMap<RoleName, RoleStatus>,
}

impl Node {
    /// May be given roles, now or when it has booted.
    pub fn usable(&self) -> bool {
        matches!(
            self.record.state,
            NodeState::Requested | NodeState::Booting | NodeState::Up
        ) && self.presence != Presence::Lost
    }
    /// Its agent obeys levels now.
    pub fn live(&self) -> bool {
        self.record.state == NodeState::Up && self.presence == Presence::Connected
    }
    /// Something may still be running on it, as far as anybody knows.
    pub fn may_run(&self) -> bool {
        self.record.state == NodeState::Up && self.presence != Presence::Lost
    }
    /// How far an instance of this node is, if its agent has said so.
    pub fn phase(&self, role: &str, release: Option<ReleaseNumber>) -> Option<&Phase> {
        let status = self.roles.get(role)?;
        match release {
            Some(release) => status.releases.get(&release),
            None => status.own.as_ref(),
        }
    }
}

/// The instances that a level asks for: one per release of a role that carries releases, one
/// of any other role.
pub fn instances<'a>(
    service_type: &'a dyn ServiceType,
    node: NodeNumber,
    level: &'a LevelBody,
) -> impl Iterator<Item = Instance> + 'a {
    level.roles.iter().flat_map(move |(role, level)| {
        let carries = service_type.role(role).is_some_and(|r| r.carries_releases);
        let own = (!carries).then_some(None);
        let releases = level
            .releases
            .keys()
            .filter(move |_| carries)
            .map(|r| Some(*r));
        own.into_iter()
            .chain(releases)
            .map(move |release| Instance {
                role: role.clone(),
                node,
                release,
            })
    })
}

/// All a planner may know.
pub struct Input<'a> {
    pub service_type: &'a dyn ServiceType,
    pub spec: &'a ServiceSpec,
    pub instance_types: &'a [InstanceType],
    pub nodes: &'a BTreeMap<NodeNumber, Node>,
    /// The first number that was never used.
    pub next_node: NodeNumber,
    /// What the edge was last told.
    pub exposure: &'a Exposure,
    pub edge: &'a EdgeStatus,
    /// The release that people were last led to, when no level says so any more.
    pub shown: Option<ReleaseNumber>,
    /// Instances that were let go for longer than their bound.
    pub overdue: &'a BTreeSet<Instance>,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub nodes: BTreeMap<NodeNumber, NodeWish>,
    /// Why nodes are wished that are not there yet.
    pub requested: BTreeMap<NodeNumber, RequestReason>,
    /// Why nodes are wished gone. How long one was silent, the planner does not know.
    pub leaving: BTreeMap<NodeNumber, LeaveReason>,
    /// For every node whose agent obeys.
    pub levels: BTreeMap<NodeNumber, LevelBody>,
    pub exposed: BTreeMap<NodeNumber, SocketAddr>,
    /// Instances that drain; the caller times them.
    pub letting_go: BTreeSet<Instance>,
    pub steps: Vec<Step>,
    pub waiting: Vec<Waiting>,
    /// What is observed equals what is wanted.
    pub reached: bool,
    /// Something that needs a person.
    pub failed: Option<String>,
    pub serving: Option<ReleaseNumber>,
}

/// MiB of a machine's memory that are kept for its agent, init and the kernel's own.
pub const RESERVED_MEMORY_MIB: u64 = 56;

/// Makes the plan.
pub fn plan(input: &Input<'_>) -> Plan {
    let (mut target, held) = layout::target(input);
    auxiliary::place(input, &mut target);
    let mut plan = rollout::Rollout::new(input, &target).run();
    summary::summarise(input, &target, &held, &mut plan);
    plan
}

/// The memory a role may use on a node, in MiB. A role that shares its machine gets its part
/// as if all packable roles were there, so that its part does not change when others come and go.
pub fn memory_of_role(
    service_type: &dyn ServiceType,
    role: &str,
    roles_on_node: &BTreeSet<RoleName>,
    instance_type: &InstanceType,
) -> u64 {
    let available = instance_type
        .memory_mib
        .saturating_sub(RESERVED_MEMORY_MIB)
        .max(16);
    let kept: u64 = service_type
        .auxiliary()
        .iter()
        .filter(|a| {
            a.beside
                .iter()
                .any(|b| *b == role || roles_on_node.contains(*b))
        })
        .map(|a| a.memory_percent)
        .sum();
    if let Some(auxiliary) = service_type.auxiliary_role(role) {
        return (available * auxiliary.memory_percent / 100).max(16);
    }
    let available = available * (100 - kept.min(90)) / 100;
    let Some(declaration) = service_type.role(role) else {
        return available;
    };
    let own = |name: &str| service_type.auxiliary_role(name).is_none();
    if roles_on_node.iter().filter(|name| own(name)).count() <= 1 {
        return available;
    }
    let sum: u64 = service_type
        .roles()
        .iter()
        .filter(|r| own(r.name) && (r.packable || roles_on_node.contains(r.name)))
        .map(|r| u64::from(r.memory_weight))
        .sum();
    available * u64::from(declaration.memory_weight) / sum.max(1)
}
