//! Roles of which no two instances may ever run for one place (volumes, quorums): their node is
//! replaced only when its destruction is confirmed. Here is who may still run such a role although
//! it cannot be reached; that their places stay empty meanwhile is `layout`'s business.

use super::{Input, Node};
use crate::service_type::{Fencing, ServiceType};
use conpaas_model::ids::NodeNumber;
use conpaas_model::spec::RoleName;
use conpaas_model::status::{NodeState, Waiting};
use std::collections::{BTreeMap, BTreeSet};

/// Roles of a type that are replaced only after destruction.
pub(super) fn fenced(service_type: &dyn ServiceType) -> BTreeSet<&'static str> {
    service_type
        .roles()
        .iter()
        .filter(|role| role.fencing == Fencing::AfterDestruction)
        .map(|role| role.name)
        .collect()
}

/// A place that stays empty until somebody's destruction is confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub roles: BTreeSet<RoleName>,
}

/// By fenced role: nodes that cannot be reached, whose destruction is not confirmed (their records
/// are still there), and that may run it.
pub(super) fn undestroyed(
    input: &Input<'_>,
    fenced: &BTreeSet<&'static str>,
) -> BTreeMap<&'static str, BTreeSet<NodeNumber>> {
    let mut found: BTreeMap<&'static str, BTreeSet<NodeNumber>> = BTreeMap::new();
    for (number, node) in input.nodes.iter().filter(|(_, node)| unreachable(node)) {
        // One that a manager without memory never heard of may run anything.
        let unknown = node.level.roles.is_empty() && !node.confirmed;
        for role in fenced {
            if unknown || node.level.roles.contains_key(*role) {
                found.entry(role).or_default().insert(*number);
            }
        }
    }
    found
}

/// It may have run something, and obeys no level any more.
fn unreachable(node: &Node) -> bool {
    match node.record.state {
        NodeState::Requested | NodeState::Booting => false,
        NodeState::Dead | NodeState::Releasing => true,
        // What a suspected one runs that was heard before is known, and counted there.
        NodeState::Up => !node.may_run() || (node.suspected && node.level.roles.is_empty()),
    }
}

/// Why places stay empty, for people.
pub(super) fn reasons(input: &Input<'_>, held: &[Held]) -> Vec<Waiting> {
    if held.is_empty() {
        return Vec::new();
    }
    let undestroyed = undestroyed(input, &fenced(input.service_type));
    undestroyed
        .into_iter()
        .filter(|(role, _)| held.iter().any(|place| place.roles.contains(*role)))
        .map(|(role, nodes)| {
            let nodes: Vec<String> = nodes.iter().map(NodeNumber::to_string).collect();
            Waiting {
                kind: "fencing".to_owned(),
                text: format!(
                    "{role} is replaced only when the destruction of node {} is confirmed",
                    nodes.join(", ")
                ),
            }
        })
        .collect()
}
