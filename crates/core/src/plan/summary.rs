//! What a plan means to people: steps done and to do, whether the wish is reached, and what
//! needs a person. Derived from target, plan and observation; nothing is narrated on the way.

use super::fence::{self, Held};
use super::layout::Shape;
use super::{Input, Node, Plan, instances, rollout};
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::level::{Duty, Instance};
use conpaas_model::spec::RunWish;
use conpaas_model::status::{NodeState, Phase, Step, Waiting};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn summarise(
    input: &Input<'_>,
    target: &BTreeMap<NodeNumber, Shape>,
    held: &[Held],
    plan: &mut Plan,
) {
    let mut summary = Summary {
        input,
        plan,
        steps: Vec::new(),
        trouble: fence::reasons(input, held),
        failed: None,
        held_failed: None,
    };
    for place in held {
        let roles: Vec<&str> = place.roles.iter().map(String::as_str).collect();
        let text = format!("obtain a node for {}", roles.join(", "));
        summary.step("obtain_node", text, false);
    }
    summary.nodes(target);
    summary.roles(target);
    summary.release();
    summary.removals(target);
    summary.edge();
    let Summary {
        steps,
        trouble,
        failed,
        held_failed,
        ..
    } = summary;
    plan.reached = steps.iter().all(|step| step.done);
    plan.failed = failed.or(held_failed);
    plan.steps = steps;
    plan.waiting.splice(0..0, trouble);
    if plan.reached {
        plan.waiting.clear();
    }
}

struct Summary<'a> {
    input: &'a Input<'a>,
    plan: &'a Plan,
    steps: Vec<Step>,
    trouble: Vec<Waiting>,
    failed: Option<String>,
    /// The release that is held for a preview cannot run: told when nothing worse is.
    held_failed: Option<String>,
}

impl Summary<'_> {
    fn step(&mut self, kind: &str, text: String, done: bool) {
        self.steps.push(Step {
            kind: kind.to_owned(),
            text,
            done,
        });
    }

    fn nodes(&mut self, target: &BTreeMap<NodeNumber, Shape>) {
        for (number, shape) in target {
            let node = self.input.nodes.get(number);
            let text = format!("obtain node {number} ({})", shape.instance_type);
            self.step("obtain_node", text, node.is_some_and(Node::live));
            if let Some(trouble) = node.and_then(|n| n.record.trouble.clone()) {
                if node.is_some_and(|n| n.record.refused) {
                    self.failed.get_or_insert_with(|| {
                        format!("node {number} cannot be obtained: {trouble}")
                    });
                }
                self.trouble.push(Waiting {
                    kind: "node_trouble".to_owned(),
                    text: format!("node {number}: {trouble}"),
                });
            } else if node.is_none_or(|n| n.record.state != NodeState::Up) {
                self.trouble.push(Waiting {
                    kind: "node_booting".to_owned(),
                    text: format!("node {number} is being obtained"),
                });
            } else if !node.is_some_and(Node::live) {
                self.trouble.push(Waiting {
                    kind: "node_silent".to_owned(),
                    text: format!("nothing was heard of node {number} yet"),
                });
            }
        }
    }

    fn roles(&mut self, target: &BTreeMap<NodeNumber, Shape>) {
        for role in self.input.service_type.roles() {
            for (number, _) in target
                .iter()
                .filter(|(_, shape)| shape.roles.contains(role.name))
            {
                for release in rollout::releases_wanted(self.input, role.name) {
                    self.instance(Instance {
                        role: role.name.to_owned(),
                        node: *number,
                        release,
                    });
                }
            }
        }
    }

    fn instance(&mut self, instance: Instance) {
        let node = self.input.nodes.get(&instance.node);
        let phase = node
            .filter(|n| n.live())
            .and_then(|n| n.phase(&instance.role, instance.release));
        if let Some(Phase::Failed(reason)) = phase {
            let spec = self.input.spec;
            let held = instance.release.is_some() && instance.release != Some(spec.active);
            if held {
                self.held_failed.get_or_insert_with(|| {
                    format!(
                        "{instance}, which is held for a preview, cannot run: {reason}; people are \
                         served, and it can be let go: conpaas service discard {}",
                        spec.display
                    )
                });
            } else {
                self.failed
                    .get_or_insert_with(|| format!("{instance} cannot run: {reason}"));
            }
        }
        let in_level = node.is_some_and(|n| {
            n.confirmed
                && instances(self.input.service_type, instance.node, &n.level)
                    .any(|i| i == instance)
        });
        self.step(
            "start_role",
            format!("run {instance}"),
            in_level && phase.is_some_and(Phase::is_ready),
        );
    }

    fn release(&mut self) {
        if self.input.spec.run != RunWish::Running {
            return;
        }
        let active = self.input.spec.active;
        for role in self
            .input
            .service_type
            .roles()
            .iter()
            .filter(|r| self.input.service_type.leads(r))
        {
            let users: Vec<&Node> = self
                .input
                .nodes
                .values()
                .filter(|n| {
                    n.live()
                        && n.level
                            .roles
                            .get(role.name)
                            .is_some_and(|l| l.duty == Duty::Serve)
                })
                .collect();
            let led = users.iter().all(|n| {
                let level = n.level.roles.get(role.name);
                let status = n.roles.get(role.name);
                // Compared without owning the roles' names: users may know thousands.
                let using: BTreeSet<(&str, NodeNumber, Option<ReleaseNumber>)> = status
                    .into_iter()
                    .flat_map(|s| &s.using)
                    .map(|u| {
                        let used = &u.instance;
                        (used.role.as_str(), used.node, used.release)
                    })
                    .collect();
                let uses_all = level
                    .into_iter()
                    .flat_map(|l| &l.providers)
                    .all(|p| using.contains(&(p.role.as_str(), p.node, p.release)));
                level.is_some_and(|l| l.serve == Some(active))
                    && status.is_some_and(|s| s.serving == Some(active))
                    && uses_all
            });
            let wanted = self.input.spec.wanted(role.name) as usize;
            self.step(
                "serve_release",
                format!("lead {} to release {active}", role.name),
                led && users.len() >= wanted,
            );
        }
    }

    fn removals(&mut self, target: &BTreeMap<NodeNumber, Shape>) {
        for (number, node) in self.input.nodes {
            for instance in
                instances(self.input.service_type, *number, &node.level).filter(|_| node.may_run())
            {
                let stays = target
                    .get(number)
                    .is_some_and(|s| s.roles.contains(&instance.role))
                    && rollout::releases_wanted(self.input, &instance.role)
                        .any(|release| release == instance.release);
                if !stays {
                    self.step("stop_role", format!("let go of {instance}"), false);
                }
            }
            if !target.contains_key(number) {
                self.step("release_node", format!("release node {number}"), false);
            }
        }
        // A level that differs from what its node confirmed is work under way.
        let open = self.plan.levels.iter().any(|(number, level)| {
            self.input
                .nodes
                .get(number)
                .is_some_and(|n| n.level != *level || !n.confirmed)
        });
        if open {
            self.step("settle", "agents carry out their levels".to_owned(), false);
        }
    }

    fn edge(&mut self) {
        let exposed = self.input.service_type.roles().iter().filter(|r| r.exposed);
        let wanted: u32 = exposed.map(|r| self.input.spec.wanted(r.name)).sum();
        let told = self.plan.exposed == self.input.exposure.upstreams
            && self.plan.exposed.len() >= wanted as usize
            && self.input.edge.applied >= self.input.exposure.version;
        if wanted > 0 || !self.plan.exposed.is_empty() {
            self.step("expose", "lead the edge to its nodes".to_owned(), told);
        }
    }
}
