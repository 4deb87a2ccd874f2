//! Who of those that were let go can stop now, and who still holds on to them.
//! Who is let go at all is decided before this.

use super::{Rollout, duty_of};
use crate::service_type::Disruption;
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::level::{Duty, Instance};
use conpaas_model::status::Phase;
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Rollout<'a> {
    /// Those of the draining ones that can stop now.
    pub(super) fn stop(&mut self, drain: &BTreeSet<Instance>) -> BTreeSet<Instance> {
        let mut stop = BTreeSet::new();
        if drain.is_empty() {
            return stop;
        }
        let holds = self.holds(drain);
        for instance in drain {
            match self.released(instance, &holds) {
                Ok(()) => {
                    stop.insert(instance.clone());
                }
                Err(reason) => self.wait("draining", format!("{instance} drains: {reason}")),
            }
        }
        if stop.is_empty() {
            return stop;
        }
        let facts = self
            .input
            .nodes
            .iter()
            .flat_map(|(number, node)| {
                node.roles
                    .iter()
                    .map(|(role, s)| ((*number, role.clone()), s.facts.clone()))
            })
            .collect();
        let disruption = Disruption {
            instances: &stop,
            ready: &self.ready,
            facts: &facts,
        };
        if let Err(reason) = self.input.service_type.may_disrupt(&disruption) {
            self.wait("may_not_disrupt", reason);
            stop.clear();
        }
        stop
    }

    /// Who still holds on to which of the draining instances, by the role that is used. Read
    /// once: thousands may drain, and each user knows thousands.
    fn holds(&self, drain: &BTreeSet<Instance>) -> BTreeMap<&'static str, Vec<Hold<'a>>> {
        let input = self.input;
        let draining: BTreeSet<Key<'_>> = drain.iter().map(key).collect();
        let mut holds: BTreeMap<&'static str, Vec<Hold<'a>>> = BTreeMap::new();
        for role in self.roles() {
            for (number, user, level) in self.user_levels(role.name) {
                let Some(node) = input.nodes.get(&number) else {
                    continue;
                };
                let listed = level
                    .providers
                    .iter()
                    .map(|p| (p.role.as_str(), p.node, p.release));
                let mut in_flight = BTreeMap::new();
                for used in node.roles.get(user.name).into_iter().flat_map(|s| &s.using) {
                    if draining.contains(&key(&used.instance)) {
                        in_flight
                            .entry(key(&used.instance))
                            .or_insert(used.in_flight);
                    }
                }
                holds.entry(role.name).or_default().push(Hold {
                    number,
                    user: user.name,
                    confirmed: node.confirmed_roles.contains(user.name),
                    listed: listed.filter(|p| draining.contains(p)).collect(),
                    in_flight,
                });
            }
        }
        holds
    }

    /// Whether nobody holds on to a draining instance any more.
    fn released(
        &self,
        instance: &Instance,
        holds: &BTreeMap<&'static str, Vec<Hold<'_>>>,
    ) -> Result<(), String> {
        let node = self.input.nodes.get(&instance.node);
        if !node.is_some_and(|n| n.live() && duty_of(n, instance) == Duty::Drain) {
            return Err("its node has not been told yet".to_owned());
        }
        if self.input.overdue.contains(instance) {
            return Ok(());
        }
        let role = self.input.service_type.role(&instance.role);
        for hold in holds.get(instance.role.as_str()).into_iter().flatten() {
            let Hold { number, user, .. } = hold;
            if hold.listed.contains(&key(instance)) || !hold.confirmed {
                return Err(format!("{user} on node {number} has not let go yet"));
            }
            match hold.in_flight.get(&key(instance)) {
                None => {}
                Some(0) => return Err(format!("{user} on node {number} is letting go of it")),
                Some(in_flight) => {
                    return Err(format!(
                        "{user} on node {number} has {in_flight} requests in flight to it"
                    ));
                }
            }
        }
        if role.is_some_and(|r| r.exposed) {
            if self.input.exposure.upstreams.contains_key(&instance.node)
                || self.input.edge.applied < self.input.exposure.version
            {
                return Err("the edge has not let go yet".to_owned());
            }
            if self.input.edge.using.contains(&instance.node) {
                return Err("the edge has requests in flight to it".to_owned());
            }
        }
        match node.and_then(|n| n.phase(&instance.role, instance.release)) {
            Some(Phase::Drained | Phase::Failed(_)) => Ok(()),
            // One that never became ready has nothing in flight either.
            Some(Phase::Starting) => Ok(()),
            _ => Err("it still finishes requests".to_owned()),
        }
    }
}

/// An instance without owning its role's name.
pub(super) type Key<'a> = (&'a str, NodeNumber, Option<ReleaseNumber>);

pub(super) fn key(instance: &Instance) -> Key<'_> {
    (&instance.role, instance.node, instance.release)
}

/// What one user holds on to of the instances that drain.
pub(super) struct Hold<'a> {
    number: NodeNumber,
    user: &'static str,
    /// It has carried out its last level.
    confirmed: bool,
    /// Its level still names them.
    listed: BTreeSet<Key<'a>>,
    /// It still has requests there.
    in_flight: BTreeMap<Key<'a>, u64>,
}
