//! Which node should hold which roles: counts become shapes, shapes are matched to the nodes
//! that are there so that as little as possible moves, and what is missing gets new numbers.
//! In which order that comes about is `rollout`'s business.

use super::fence::{self, Held};
use super::{Input, Node};
use crate::service_type::ServiceType;
use conpaas_model::ids::NodeNumber;
use conpaas_model::instance::InstanceType;
use conpaas_model::level::Duty;
use conpaas_model::spec::{RoleName, RoleWish};
use conpaas_model::status::{NodeState, Phase};
use std::collections::{BTreeMap, BTreeSet};

/// What one node should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub roles: BTreeSet<RoleName>,
    pub cloud: String,
    pub instance_type: String,
}

/// The shapes that a set of counts asks for. Packable roles with one node each share one
/// machine (of the largest instance type any of them asks for); all others have their own.
pub fn shapes(
    service_type: &dyn ServiceType,
    roles: &BTreeMap<RoleName, RoleWish>,
    instance_types: &[InstanceType],
) -> Vec<Shape> {
    let memory = |name: &str| {
        instance_types
            .iter()
            .find(|t| t.name == name)
            .map_or(0, |t| t.memory_mib)
    };
    let mut packed: Option<Shape> = None;
    let mut single = Vec::new();
    let with_nodes = |role: &&_| {
        let role: &crate::service_type::RoleDeclaration = role;
        service_type.auxiliary_role(role.name).is_none()
    };
    for role in service_type.roles().iter().filter(with_nodes) {
        let Some(wish) = roles.get(role.name) else {
            continue;
        };
        let packs = role.packable && wish.count() == 1;
        for pool in wish.pools.iter().filter(|pool| pool.count > 0) {
            if packs {
                let shape = packed.get_or_insert_with(|| Shape {
                    roles: BTreeSet::new(),
                    cloud: pool.cloud.clone(),
                    instance_type: pool.instance_type.clone(),
                });
                shape.roles.insert(role.name.to_owned());
                if memory(&pool.instance_type) > memory(&shape.instance_type) {
                    shape.instance_type = pool.instance_type.clone();
                }
            } else {
                let shape = Shape {
                    roles: BTreeSet::from([role.name.to_owned()]),
                    cloud: pool.cloud.clone(),
                    instance_type: pool.instance_type.clone(),
                };
                single.extend(std::iter::repeat_n(shape, pool.count as usize));
            }
        }
    }
    packed.into_iter().chain(single).collect()
}

/// Nodes that a set of counts needs, for quotas and prices.
pub fn node_count(service_type: &dyn ServiceType, roles: &BTreeMap<RoleName, RoleWish>) -> usize {
    shapes(service_type, roles, &[]).len()
}

/// How many of so many nodes are replaced side by side: each needs room for a second one until its
/// roles have moved, and an image that does not work is to spoil few.
pub fn replaced_at_once(nodes: usize) -> usize {
    (nodes / 4).max(1)
}

/// The nodes that are to be replaced and whose turn it is; the others serve on.
fn in_turn(input: &Input<'_>, wanted: usize) -> BTreeSet<NodeNumber> {
    let present = input.spec.retire.iter();
    let mut present: Vec<(bool, NodeNumber)> = present
        .filter_map(|number| {
            let level = &input.nodes.get(number)?.level;
            let leaves = level.roles.values().any(|role| role.duty == Duty::Drain);
            Some((!leaves, *number))
        })
        .collect();
    // Who is on the way goes on.
    present.sort_unstable();
    let turns = present.into_iter().take(replaced_at_once(wanted));
    turns.map(|(_, number)| number).collect()
}

/// The nodes that should exist, with their shapes; numbers that are not among the input's
/// nodes are new. Beside them the places that must stay empty for now.
pub(super) fn target(input: &Input<'_>) -> (BTreeMap<NodeNumber, Shape>, Vec<Held>) {
    let wanted: BTreeMap<RoleName, RoleWish> = match input.spec.run {
        conpaas_model::spec::RunWish::Running => input.spec.roles.clone(),
        _ => BTreeMap::new(),
    };
    let mut missing: BTreeMap<Shape, usize> = BTreeMap::new();
    for shape in shapes(input.service_type, &wanted, input.instance_types) {
        *missing.entry(shape).or_default() += 1;
    }
    let leaving = in_turn(input, missing.values().sum());

    // Nodes that are alike are matched as a group, so that thousands cost no more than a few.
    let mut groups: BTreeMap<GroupKey, Vec<NodeNumber>> = BTreeMap::new();
    for (number, node) in input.nodes {
        if node.usable() && !leaving.contains(number) {
            groups
                .entry(GroupKey::of(input, node))
                .or_default()
                .push(*number);
        }
    }
    let mut pairs: Vec<(Score, Shape, GroupKey)> = Vec::new();
    for shape in missing.keys() {
        for key in groups.keys() {
            if key.cloud == shape.cloud && key.instance_type == shape.instance_type {
                pairs.push((
                    Score::of(input.service_type, shape, key),
                    shape.clone(),
                    key.clone(),
                ));
            }
        }
    }
    pairs.sort_by(|a, b| {
        b.0.cmp(&a.0)
            .then_with(|| a.1.cmp(&b.1))
            .then_with(|| a.2.cmp(&b.2))
    });

    let mut target = BTreeMap::new();
    let mut fence = Fence::new(input);
    for (_, shape, key) in pairs {
        let Some(count) = missing.get_mut(&shape) else {
            continue;
        };
        let Some(numbers) = groups.get_mut(&key) else {
            continue;
        };
        let take = fence.take(&shape, &key.roles, (*count).min(numbers.len()));
        for number in numbers.drain(..take) {
            target.insert(number, shape.clone());
        }
        *count -= take;
    }
    let mut next = input.next_node;
    let mut held = Vec::new();
    for (shape, count) in missing {
        let take = fence.take(&shape, &BTreeSet::new(), count);
        for _ in 0..take {
            target.insert(next, shape.clone());
            next = next.next();
        }
        held.extend((take..count).map(|_| Held {
            roles: shape.roles.clone(),
        }));
    }
    (target, held)
}

/// By role that is replaced only after destruction: how many more nodes may take it over while
/// somebody who may still run it is out of reach. A role that is absent is not bounded.
struct Fence {
    left: BTreeMap<&'static str, usize>,
}

impl Fence {
    fn new(input: &Input<'_>) -> Self {
        let lost = fence::undestroyed(input, &fence::fenced(input.service_type));
        let left = lost.into_iter().map(|(role, lost)| {
            let holds = |node: &&Node| node.may_run() && node.level.roles.contains_key(role);
            let holders = input.nodes.values().filter(holds).count();
            let wanted = input.spec.wanted(role) as usize;
            (role, wanted.saturating_sub(lost.len() + holders))
        });
        Self {
            left: left.collect(),
        }
    }

    /// How many of so many nodes that have these roles may take the shape. Those that have a
    /// fenced role keep it; others need a place that is left.
    fn take(&mut self, shape: &Shape, has: &BTreeSet<RoleName>, asked: usize) -> usize {
        let mut over: Vec<&mut usize> = self
            .left
            .iter_mut()
            .filter(|(role, _)| shape.roles.contains(**role) && !has.contains(**role))
            .map(|(_, left)| left)
            .collect();
        let take = over.iter().map(|left| **left).min();
        let take = take.map_or(asked, |left| left.min(asked));
        over.iter_mut().for_each(|left| **left -= take);
        take
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    roles: BTreeSet<RoleName>,
    /// Those of them that it was told to let go of.
    leaving: BTreeSet<RoleName>,
    cloud: String,
    instance_type: String,
    /// 3 all roles ready or finishing what they have, 2 agent there, 1 booting, 0 only requested.
    readiness: u8,
    /// Its turn to be replaced comes.
    to_retire: bool,
    /// It has auxiliary roles, too.
    auxiliary: bool,
}

impl GroupKey {
    fn of(input: &Input<'_>, node: &Node) -> Self {
        let service_type = input.service_type;
        let own = |role: &&RoleName| service_type.auxiliary_role(role).is_none();
        let roles: BTreeSet<RoleName> = node.level.roles.keys().filter(own).cloned().collect();
        let drains = |role: &&RoleName| {
            let level = node.level.roles.get(*role);
            level.is_some_and(|level| level.duty == Duty::Drain)
        };
        let leaving: BTreeSet<RoleName> = roles.iter().filter(drains).cloned().collect();
        // What it said last it said before it heard that it leaves.
        let outdated = !leaving.is_empty() && !node.obeys;
        let auxiliary = roles.len() < node.level.roles.len();
        let readiness = match node.record.state {
            NodeState::Up if !node.live() => 0,
            NodeState::Up if roles.is_empty() || outdated => 2,
            NodeState::Up if all_serve(service_type, node) => 3,
            NodeState::Up => 2,
            NodeState::Booting => 1,
            _ => 0,
        };
        Self {
            roles,
            leaving,
            cloud: node.record.cloud.clone(),
            instance_type: node.record.instance_type.clone(),
            readiness,
            to_retire: input.spec.retire.contains(&node.record.number),
            auxiliary,
        }
    }
}

/// Whether all that a node's level asks for is ready, or was and finishes what it has.
fn all_serve(service_type: &dyn ServiceType, node: &Node) -> bool {
    super::instances(service_type, node.record.number, &node.level).all(|instance| {
        let phase = node.phase(&instance.role, instance.release);
        phase.is_some_and(|phase| phase.is_ready() || matches!(phase, Phase::Draining))
    })
}

/// Better matches are greater: most roles already there, then healthier, then fewest of them told to
/// leave (a choice must not be taken back by reports of before it, or it is made again by the next ones,
/// and so on for ever), then those that nobody wants replaced, then least to remove, then those that
/// auxiliary roles would otherwise have to leave.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    overlap: usize,
    readiness: u8,
    stays: usize,
    fresh: bool,
    kept: i64,
    auxiliary: bool,
    shape_size: usize,
}

impl Score {
    fn of(service_type: &dyn ServiceType, shape: &Shape, key: &GroupKey) -> Self {
        let overlap = shape.roles.intersection(&key.roles).count();
        Self {
            overlap,
            readiness: key.readiness,
            stays: overlap - shape.roles.intersection(&key.leaving).count(),
            fresh: !key.to_retire,
            kept: overlap as i64 - key.roles.len() as i64,
            // A shape that cannot take them leaves such a node to one that can.
            auxiliary: key.auxiliary
                == service_type
                    .auxiliary()
                    .iter()
                    .any(|a| a.beside.iter().any(|b| shape.roles.contains(*b))),
            shape_size: shape.roles.len(),
        }
    }
}
