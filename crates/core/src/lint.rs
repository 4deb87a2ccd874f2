//! The plan linter: independent checks on a plan before it is carried out, so that a mistake in
//! the planner does nothing rather than harm. It shares no decision with the planner.

use crate::plan::{Input, Plan, instances};
use crate::service_type::{Fencing, RELEASE_RING};
use conpaas_model::ids::{NodeNumber, ReleaseNumber, Term};
use conpaas_model::level::{Duty, Instance, LevelBody};
use conpaas_model::protocol::NodeWish;
use conpaas_model::spec::RunWish;
use conpaas_model::status::{NodeState, Phase};
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("{instance} would stop while {user} on node {node} may still use it")]
    StopsWhileUsed {
        instance: Instance,
        user: String,
        node: NodeNumber,
    },
    #[error("{instance} would stop without having been told to drain")]
    StopsUndrained { instance: Instance },
    #[error("{user} on node {node} would use {instance}, which does not serve")]
    UsesNobody {
        user: String,
        node: NodeNumber,
        instance: Instance,
    },
    #[error("people would be led to {instance}, which is not ready")]
    LeadsNowhere { instance: Instance },
    #[error("node {node} would go while it still has roles")]
    ReleasesBusyNode { node: NodeNumber },
    #[error("healthy {role} would fall from {now} to {then}, below the {need} wanted")]
    LosesCapacity {
        role: String,
        now: usize,
        then: usize,
        need: usize,
    },
    #[error("two releases of {role} on node {node} would share one place")]
    RingClash { role: String, node: NodeNumber },
    #[error("the edge would be led to node {node}, where nothing serves")]
    ExposesNobody { node: NodeNumber },
    #[error("new node {node} has a number that was used before")]
    ReusesNumber { node: NodeNumber },
    #[error(
        "endpoint '{endpoint}' of node {node} would lead to {instance}, which none of its users may use"
    )]
    EndpointAstray {
        endpoint: String,
        node: NodeNumber,
        instance: Instance,
    },
    #[error("endpoint '{endpoint}' of node {node} would be at {at}, which is not its own")]
    EndpointPlace {
        endpoint: String,
        node: NodeNumber,
        at: std::net::SocketAddrV4,
    },
    #[error(
        "{role} would run on {then} nodes while {lost} that may still run it are not destroyed, and {need} are wanted"
    )]
    ReplacesUndestroyed {
        role: String,
        then: usize,
        lost: usize,
        need: usize,
    },
    #[error("{role} would be led in {term} by node {node}, after {known} by node {leader}")]
    Leader {
        role: String,
        term: Term,
        node: NodeNumber,
        known: Term,
        leader: NodeNumber,
    },
    #[error("users of {role} would be led to node {node}, which does not lead")]
    LedAstray { role: String, node: NodeNumber },
    #[error("role '{role}' is not one of the service type's")]
    UnknownRole { role: String },
}

/// All flaws of a plan; none means that it may be carried out.
pub fn check(input: &Input<'_>, plan: &Plan) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let planned = duties(input, plan);
    stops(input, &planned, &mut flaws);
    users(input, plan, &planned, &mut flaws);
    nodes(input, plan, &mut flaws);
    capacity(input, plan, &planned, &mut flaws);
    exposure(input, plan, &planned, &mut flaws);
    rings(input, plan, &mut flaws);
    endpoints(plan, &mut flaws);
    fencing(input, plan, &mut flaws);
    leaders(input, plan, &mut flaws);
    flaws
}

/// A role that must not run twice is given to no further node while one that may still run it is
/// out of reach and has not been destroyed.
fn fencing(input: &Input<'_>, plan: &Plan, flaws: &mut Vec<Flaw>) {
    let roles = input.service_type.roles().iter();
    for role in roles.filter(|role| role.fencing == Fencing::AfterDestruction) {
        let holds = |level: &LevelBody| level.roles.contains_key(role.name);
        // Never up, it never ran anything; up and obedient, its level says what it runs.
        let lost = input.nodes.values().filter(|node| {
            let ran = !matches!(node.record.state, NodeState::Requested | NodeState::Booting);
            let unknown = !node.confirmed && node.level.roles.is_empty();
            let silent = !node.may_run() || (node.suspected && unknown);
            ran && silent && (holds(&node.level) || unknown)
        });
        let lost = lost.count();
        let begins = plan.levels.iter().any(|(number, level)| {
            let before = input.nodes.get(number);
            holds(level) && !before.is_some_and(|node| holds(&node.level))
        });
        // Silent ones that are not given up yet get no level, but run what they ran.
        let kept = input.nodes.iter().filter(|(number, node)| {
            node.may_run() && holds(&node.level) && !plan.levels.contains_key(number)
        });
        let then = kept.count() + plan.levels.values().filter(|level| holds(level)).count();
        let need = input.spec.wanted(role.name) as usize;
        if begins && lost > 0 && then + lost > need {
            flaws.push(Flaw::ReplacesUndestroyed {
                role: role.name.to_owned(),
                then,
                lost,
                need,
            });
        }
    }
}

fn duties(input: &Input<'_>, plan: &Plan) -> BTreeMap<Instance, Duty> {
    let mut all = BTreeMap::new();
    for (number, level) in &plan.levels {
        for instance in instances(input.service_type, *number, level) {
            let role = &level.roles[&instance.role];
            let duty = instance
                .release
                .and_then(|r| role.releases.get(&r))
                .map_or(role.duty, |r| r.duty);
            all.insert(instance, duty);
        }
    }
    all
}

fn ready(input: &Input<'_>, instance: &Instance) -> bool {
    input.nodes.get(&instance.node).is_some_and(|n| {
        n.live()
            && n.phase(&instance.role, instance.release)
                .is_some_and(Phase::is_ready)
    })
}

/// What runs now on nodes that get a level.
fn running(input: &Input<'_>, plan: &Plan) -> Vec<Instance> {
    plan.levels
        .keys()
        .filter_map(|number| input.nodes.get(number).map(|node| (number, node)))
        .flat_map(|(number, node)| {
            instances(input.service_type, *number, &node.level).collect::<Vec<_>>()
        })
        .collect()
}

fn stops(input: &Input<'_>, planned: &BTreeMap<Instance, Duty>, flaws: &mut Vec<Flaw>) {
    let stopping: BTreeSet<Instance> = input
        .nodes
        .iter()
        .filter(|(_, n)| n.live())
        .flat_map(|(number, node)| instances(input.service_type, *number, &node.level))
        .filter(|i| !planned.contains_key(i) && !input.overdue.contains(i))
        .collect();
    if stopping.is_empty() {
        return;
    }
    // Read once: thousands may stop, and each user may know thousands.
    let mut used: BTreeMap<&Instance, BTreeSet<(NodeNumber, &str)>> = BTreeMap::new();
    for (user_number, user_node) in input.nodes.iter().filter(|(_, n)| n.may_run()) {
        for (user, level) in &user_node.level.roles {
            let listed = level.providers.iter().map(|p| p.instance());
            let held = user_node
                .roles
                .get(user)
                .into_iter()
                .flat_map(|s| &s.using)
                .map(|u| u.instance.clone());
            for instance in listed.chain(held) {
                if let Some(instance) = stopping.get(&instance) {
                    used.entry(instance)
                        .or_default()
                        .insert((*user_number, user));
                }
            }
        }
    }
    for (number, node) in input.nodes.iter().filter(|(_, n)| n.live()) {
        for instance in instances(input.service_type, *number, &node.level) {
            if !stopping.contains(&instance) {
                continue;
            }
            let role = node.level.roles.get(&instance.role);
            let drains = role.is_some_and(|l| {
                instance
                    .release
                    .and_then(|r| l.releases.get(&r))
                    .map_or(l.duty, |r| r.duty)
                    == Duty::Drain
            });
            if !drains {
                flaws.push(Flaw::StopsUndrained {
                    instance: instance.clone(),
                });
            }
            for (user_number, user) in used.get(&instance).into_iter().flatten() {
                flaws.push(Flaw::StopsWhileUsed {
                    instance: instance.clone(),
                    user: (*user).to_owned(),
                    node: *user_number,
                });
            }
        }
    }
}

fn users(
    input: &Input<'_>,
    plan: &Plan,
    planned: &BTreeMap<Instance, Duty>,
    flaws: &mut Vec<Flaw>,
) {
    // Asked for every provider of every user, so without owning the roles' names.
    let serving: BTreeSet<(&str, NodeNumber, Option<ReleaseNumber>)> = planned
        .iter()
        .filter(|(_, duty)| **duty == Duty::Serve)
        .map(|(i, _)| (i.role.as_str(), i.node, i.release))
        .collect();
    for (number, level) in &plan.levels {
        for (role, role_level) in &level.roles {
            if input.service_type.role(role).is_none() {
                flaws.push(Flaw::UnknownRole { role: role.clone() });
            }
            let used_before = input
                .nodes
                .get(number)
                .and_then(|n| n.level.roles.get(role));
            for provider in &role_level.providers {
                // A node whose agent is silent keeps what it had; it gets no level to look at.
                let silent = input
                    .nodes
                    .get(&provider.node)
                    .is_some_and(|n| !n.live() && n.may_run());
                // One without a record is not ours to stop: who uses it may go on, nobody may begin.
                let stranger = !input.nodes.contains_key(&provider.node)
                    && used_before.is_some_and(|l| l.providers.contains(provider));
                let key = (provider.role.as_str(), provider.node, provider.release);
                if !silent && !stranger && !serving.contains(&key) {
                    flaws.push(Flaw::UsesNobody {
                        user: role.clone(),
                        node: *number,
                        instance: provider.instance(),
                    });
                }
            }
            let before = used_before.and_then(|l| l.serve);
            if let Some(serve) = role_level.serve.filter(|s| Some(*s) != before) {
                let carrying = input.service_type.roles().iter().filter(|r| {
                    r.carries_releases
                        && input.spec.wanted(r.name) > 0
                        && !role_level.providers.is_empty()
                });
                for provider in carrying {
                    let any = role_level.providers.iter().any(|p| {
                        p.role == provider.name
                            && p.release == Some(serve)
                            && ready(input, &p.instance())
                    });
                    if !any && before.is_some() {
                        let instance = Instance {
                            role: provider.name.to_owned(),
                            node: *number,
                            release: Some(serve),
                        };
                        flaws.push(Flaw::LeadsNowhere { instance });
                    }
                }
            }
        }
    }
}

fn nodes(input: &Input<'_>, plan: &Plan, flaws: &mut Vec<Flaw>) {
    for (number, wish) in &plan.nodes {
        match (wish, input.nodes.get(number)) {
            (NodeWish::Gone, Some(node)) if node.live() && !node.level.roles.is_empty() => {
                flaws.push(Flaw::ReleasesBusyNode { node: *number });
            }
            (NodeWish::Present { .. }, None) if *number < input.next_node => {
                flaws.push(Flaw::ReusesNumber { node: *number });
            }
            _ => {}
        }
    }
}

/// Our own steps never bring ready and serving instances below the lowest of now and wanted.
fn capacity(
    input: &Input<'_>,
    plan: &Plan,
    planned: &BTreeMap<Instance, Duty>,
    flaws: &mut Vec<Flaw>,
) {
    if input.spec.run != RunWish::Running {
        return;
    }
    let running = running(input, plan);
    let led: BTreeSet<Option<ReleaseNumber>> = input
        .nodes
        .values()
        .filter(|n| n.may_run())
        .flat_map(|n| n.level.roles.values().map(|l| l.serve))
        .collect();
    for role in input.service_type.roles() {
        let serves_now = |i: &&Instance| {
            let level = input
                .nodes
                .get(&i.node)
                .and_then(|n| n.level.roles.get(&i.role));
            level.is_some_and(|l| {
                i.release
                    .and_then(|r| l.releases.get(&r))
                    .map_or(l.duty, |r| r.duty)
                    == Duty::Serve
            })
        };
        // A release that nobody is led to, and nobody will be, is no capacity.
        let matters = |i: &&Instance| {
            i.release.is_none() || i.release == Some(input.spec.active) || led.contains(&i.release)
        };
        let counted = |i: &&Instance| i.role == role.name && ready(input, i) && matters(i);
        // Two releases beside each other on one node are one node's worth of capacity.
        let now: BTreeSet<NodeNumber> = running
            .iter()
            .filter(counted)
            .filter(serves_now)
            .map(|i| i.node)
            .collect();
        let then: BTreeSet<NodeNumber> = planned
            .iter()
            .filter(|(_, d)| **d == Duty::Serve)
            .map(|(i, _)| i)
            .filter(counted)
            .map(|i| i.node)
            .collect();
        let need = match input.service_type.auxiliary_role(role.name) {
            // Its copies follow the nodes that are there; the last one stays.
            Some(auxiliary) => {
                let active = input.spec.release(input.spec.active);
                usize::from(active.is_some_and(auxiliary.wanted))
            }
            None => input.spec.wanted(role.name) as usize,
        };
        if then.len() < now.len().min(need) {
            flaws.push(Flaw::LosesCapacity {
                role: role.name.to_owned(),
                now: now.len(),
                then: then.len(),
                need,
            });
        }
    }
}

fn exposure(
    input: &Input<'_>,
    plan: &Plan,
    planned: &BTreeMap<Instance, Duty>,
    flaws: &mut Vec<Flaw>,
) {
    let serving: BTreeSet<NodeNumber> = planned
        .iter()
        .filter(|(i, duty)| {
            **duty == Duty::Serve && input.service_type.role(&i.role).is_some_and(|r| r.exposed)
        })
        .map(|(i, _)| i.node)
        .collect();
    for node in plan.exposed.keys() {
        let silent = input
            .nodes
            .get(node)
            .is_some_and(|n| !n.live() && n.may_run());
        let gone = input
            .nodes
            .get(node)
            .is_none_or(|n| n.record.state != NodeState::Up);
        if gone || (!silent && !serving.contains(node)) {
            flaws.push(Flaw::ExposesNobody { node: *node });
        }
    }
}

fn rings(input: &Input<'_>, plan: &Plan, flaws: &mut Vec<Flaw>) {
    for (number, level) in &plan.levels {
        for (role, role_level) in &level.roles {
            if !input
                .service_type
                .role(role)
                .is_some_and(|r| r.carries_releases)
            {
                continue;
            }
            let mut slots = BTreeSet::new();
            for release in role_level.releases.keys() {
                if !slots.insert(release.0 % RELEASE_RING) {
                    flaws.push(Flaw::RingClash {
                        role: role.clone(),
                        node: *number,
                    });
                }
            }
        }
    }
}

/// Nobody is led to one that the users of the endpoint may not use, and no two share a place.
fn endpoints(plan: &Plan, flaws: &mut Vec<Flaw>) {
    for (number, level) in &plan.levels {
        let mut places = BTreeSet::new();
        for (name, endpoint) in &level.endpoints {
            if !endpoint.listen.ip().is_loopback() || !places.insert(endpoint.listen) {
                flaws.push(Flaw::EndpointPlace {
                    endpoint: name.clone(),
                    node: *number,
                    at: endpoint.listen,
                });
            }
            for target in &endpoint.targets {
                let allowed = endpoint.users.iter().any(|user| {
                    level
                        .roles
                        .get(user)
                        .is_some_and(|role| role.providers.contains(target))
                });
                if !allowed {
                    flaws.push(Flaw::EndpointAstray {
                        endpoint: name.clone(),
                        node: *number,
                        instance: target.instance(),
                    });
                }
            }
        }
    }
}

/// A led role has one leader in a term and terms only grow, whoever was told what before; and
/// endpoints lead to the leader alone.
fn leaders(input: &Input<'_>, plan: &Plan, flaws: &mut Vec<Flaw>) {
    for led in input.service_type.led() {
        let known = input.nodes.values().map(|node| &node.level);
        let known: BTreeSet<(Term, NodeNumber)> = known
            .flat_map(|level| level.roles.values())
            .filter_map(|role| role.leads.get(*led))
            .map(|lead| (lead.term, lead.leader.node))
            .collect();
        let mut planned: BTreeSet<(Term, NodeNumber)> = BTreeSet::new();
        for level in plan.levels.values() {
            let leads = level.roles.values().filter_map(|role| role.leads.get(*led));
            let leads: Vec<(Term, NodeNumber)> =
                leads.map(|lead| (lead.term, lead.leader.node)).collect();
            let targets = level.endpoints.values().flat_map(|e| &e.targets);
            for target in targets.filter(|target| target.role == *led) {
                if leads.iter().all(|(_, leader)| *leader != target.node) {
                    flaws.push(Flaw::LedAstray {
                        role: (*led).to_owned(),
                        node: target.node,
                    });
                }
            }
            planned.extend(leads);
        }
        let newest = known.last().into_iter().chain(planned.last());
        for (known, leader) in newest {
            for (term, node) in &planned {
                let falls = term < known || term == known && node != leader;
                if falls {
                    flaws.push(Flaw::Leader {
                        role: (*led).to_owned(),
                        term: *term,
                        node: *node,
                        known: *known,
                        leader: *leader,
                    });
                }
            }
        }
    }
}
