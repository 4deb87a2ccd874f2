//! What the decision on leaders (`lead`) must know, read from nodes, and its outcome for the
//! levels of this plan. Decides nothing itself.

use super::Rollout;
use crate::lead::{Member, View, decide, over};
use crate::plan::Node;
use conpaas_model::ids::NodeNumber;
use conpaas_model::level::{Duty, Instance, Lead, LeadStage, Provider};
use conpaas_model::status::{NodeState, Phase};
use std::collections::{BTreeMap, BTreeSet};

impl Rollout<'_> {
    pub(super) fn lead(&mut self, duties: &BTreeMap<Instance, Duty>) {
        for led in self.input.service_type.led() {
            let known = self.known(led);
            let members = self.members(led, duties);
            if members.is_empty() && known.is_none() {
                continue;
            }
            let gone = known.as_ref().is_none_or(|lead| {
                let node = self.input.nodes.get(&lead.leader.node);
                node.is_none_or(|n| {
                    n.record.state == NodeState::Dead
                        || n.live() && n.obeys && !n.level.roles.contains_key(*led)
                })
            });
            if let Some(known) = known.as_ref().filter(|_| gone && members.is_empty())
                && self.hosts(led) == 0
            {
                self.tell(led, over(known));
                continue;
            }
            let let_go = known.as_ref().is_none_or(|lead| self.let_go(led, lead));
            let (lead, reason) = decide(&View {
                known: known.as_ref(),
                members: &members,
                gone,
                let_go,
            });
            if let Some(reason) = reason {
                self.wait("lead", format!("{led}: {reason}"));
            }
            if let Some(lead) = lead {
                let users = self.users(led, duties);
                self.tell(led, Lead { users, ..lead });
            }
        }
    }

    fn tell(&mut self, led: &'static str, mut lead: Lead) {
        self.led.insert(led, std::mem::take(&mut lead.users));
        self.leads.insert(led, lead);
    }

    /// Nodes where instances that use a role may run, now or by this plan.
    fn users(&self, led: &str, duties: &BTreeMap<Instance, Duty>) -> BTreeSet<NodeNumber> {
        let users: BTreeSet<&str> = self.users_of(led).map(|user| user.name).collect();
        let uses = |role: &str| users.contains(role);
        let planned = duties.keys().filter(|i| uses(&i.role)).map(|i| i.node);
        let nodes = self.input.nodes.iter().filter(|(_, node)| node.may_run());
        let running = nodes.filter(|(_, node)| node.level.roles.keys().any(|role| uses(role)));
        planned.chain(running.map(|(number, _)| *number)).collect()
    }

    /// Whether an instance is the leader by the levels that nodes have, or hands over to one that
    /// has not begun.
    pub(super) fn leads_now(&self, instance: &Instance) -> bool {
        let led = self.input.service_type.led();
        led.contains(&instance.role.as_str())
            && self.known(&instance.role).is_some_and(|lead| {
                let hands_over = lead.stage == LeadStage::Beginning;
                lead.leader.node == instance.node || hands_over && lead.from == Some(instance.node)
            })
    }

    /// The newest lead in any level; of two alike, the one that is further.
    fn known(&self, led: &str) -> Option<Lead> {
        let levels = self
            .input
            .nodes
            .values()
            .flat_map(|n| n.level.roles.values());
        levels
            .filter_map(|level| level.leads.get(led))
            .max_by_key(|lead| (lead.term, lead.stage != LeadStage::Beginning))
            .cloned()
    }

    fn members(&self, led: &str, duties: &BTreeMap<Instance, Duty>) -> Vec<Member> {
        let Some(role) = self.input.service_type.role(led) else {
            return Vec::new();
        };
        let member = |number: NodeNumber, serves: bool| {
            let node = self.input.nodes.get(&number)?;
            let status = node.roles.get(led);
            Some(Member {
                provider: Provider {
                    role: led.to_owned(),
                    node: number,
                    release: None,
                    address: node.record.address,
                    port: role.port_of(None),
                    capacity: 0,
                },
                standing: status
                    .map(|s| self.input.service_type.standing(&s.facts))
                    .unwrap_or_default(),
                serves: serves
                    && self
                        .wanted
                        .iter()
                        .any(|i| i.role == led && i.node == number),
                live: node.live(),
                may_run: node.may_run(),
                failed: matches!(node.phase(led, None), Some(Phase::Failed(_))),
            })
        };
        let of_role = duties.iter().filter(|(i, _)| i.role == led);
        let mut members: BTreeMap<NodeNumber, Member> = of_role
            .filter_map(|(i, duty)| Some((i.node, member(i.node, *duty == Duty::Serve)?)))
            .collect();
        // One on a node that is silent or dead is none of the plan's, but what it said counts.
        for (number, node) in self.input.nodes {
            if node.level.roles.contains_key(led) && !members.contains_key(number) {
                members.extend(member(*number, false).map(|m| (*number, m)));
            }
        }
        members.into_values().collect()
    }

    /// No endpoint leads to the leader any more, by the word of every agent that may run one.
    fn let_go(&self, led: &str, lead: &Lead) -> bool {
        let users: Vec<&str> = self.users_of(led).map(|user| user.name).collect();
        let leads = |node: &Node| {
            let listed = node.level.endpoints.values().any(|endpoint| {
                let targets = &endpoint.targets;
                targets
                    .iter()
                    .any(|t| t.role == led && t.node == lead.leader.node)
            });
            listed || !node.obeys
        };
        let nodes = self.input.nodes.values().filter(|n| n.may_run());
        nodes
            .filter(|n| users.iter().any(|user| n.level.roles.contains_key(*user)))
            .all(|n| !leads(n))
    }
}
