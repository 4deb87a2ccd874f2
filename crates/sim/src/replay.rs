//! Replaying a schedule step by step: what happened, and what is another than before. For people
//! who want to see how something came to break.

use crate::schedule::Schedule;
use crate::world::{Broken, World};
use conpaas_model::ids::IdError;
use std::collections::BTreeMap;

/// Everything worth showing, by what it is about.
pub type Snapshot = BTreeMap<String, String>;

/// One event, and what it changed.
#[derive(Clone, Debug)]
pub struct Step {
    /// Simulated milliseconds.
    pub at: u64,
    pub events: Vec<String>,
    /// `- old`, `+ new`.
    pub changes: Vec<String>,
}

/// A schedule that is being replayed.
pub struct Replay {
    world: World,
    before: Snapshot,
}

impl Replay {
    /// # Errors
    /// Never, as long as the fixed names are valid.
    pub fn new(schedule: Schedule) -> Result<Self, IdError> {
        let mut world = World::new(schedule, None)?;
        world.log = Some(Vec::new());
        let before = world.snapshot();
        Ok(Self { world, before })
    }

    /// What was broken in the end, if anything.
    pub fn broken(&self) -> Option<&Broken> {
        self.world.broken.as_ref()
    }

    /// The next event.
    pub fn step(&mut self) -> Option<Step> {
        if !self.world.step() {
            return None;
        }
        let events = self.world.log.replace(Vec::new()).unwrap_or_default();
        let after = self.world.snapshot();
        let mut changes = Vec::new();
        for (what, old) in &self.before {
            match after.get(what) {
                Some(new) if new == old => {}
                Some(new) => {
                    changes.push(format!("- {what}: {old}"));
                    changes.push(format!("+ {what}: {new}"));
                }
                None => changes.push(format!("- {what}: {old}")),
            }
        }
        let fresh = after
            .iter()
            .filter(|(what, _)| !self.before.contains_key(*what));
        changes.extend(fresh.map(|(what, new)| format!("+ {what}: {new}")));
        self.before = after;
        Some(Step {
            at: self.world.now,
            events,
            changes,
        })
    }
}

impl World {
    /// How everything stands.
    pub fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot::new();
        let director = &self.director;
        let word = |up: bool| if up { "up" } else { "down" };
        all.insert(
            "director".to_owned(),
            format!(
                "{}, manager's epoch {}",
                word(director.up),
                director.store.epoch
            ),
        );
        for service in director.store.services.values() {
            let counts: Vec<String> = service
                .roles
                .iter()
                .map(|(role, wish)| format!("{role}={}", wish.count()))
                .collect();
            let text = format!(
                "{:?}, generation {} (reached {}), release {}, {}",
                service.run,
                service.generation,
                service.reached,
                service.active,
                counts.join(" ")
            );
            all.insert(format!("service {}", service.id), text);
        }
        for node in &director.store.nodes {
            let wish = if node.wanted { "wanted" } else { "to go" };
            let text = format!(
                "{:?}, {wish}, {}",
                node.state,
                node.trouble.as_deref().unwrap_or("well")
            );
            all.insert(
                format!("node {}/{}", node.key.service, node.key.number),
                text,
            );
        }
        for machine in &director.store.machines {
            let text = format!(
                "{:?} of node {}, {}, attempt {}",
                machine.stage,
                machine.node.number,
                machine.cloud_id.as_deref().unwrap_or("no cloud's yet"),
                machine.attempts
            );
            all.insert(format!("machine {}", machine.id), text);
        }
        for machine in self.clouds.iter().flat_map(|cloud| cloud.machines()) {
            all.insert(
                format!("cloud's {}", machine.id),
                format!("{} {:?}", machine.token, machine.state),
            );
        }
        for (index, operation) in director.store.operations.iter().enumerate() {
            all.insert(
                format!("operation {index}"),
                format!("{} {:?}", operation.kind, operation.outcome),
            );
        }
        let edge = format!(
            "{}, leads to {:?}, said {:?}",
            word(self.edge.up),
            self.edge.led,
            self.edge.told.applied
        );
        all.insert("edge".to_owned(), edge);
        for (id, host) in &self.hosts {
            let level = host.agent.as_ref().and_then(|agent| agent.core.seen());
            let text = format!(
                "node {}/{}, agent {}, level {:?}, manager {}",
                host.node.service,
                host.node.number,
                word(host.agent.is_some()),
                level.map(|v| (v.epoch.0, v.generation.0)),
                word(host.manager.is_some())
            );
            all.insert(format!("host {id}"), text);
            for (instance, process) in &host.processes {
                let phase = match process.drain_since {
                    Some(_) => "drains",
                    None if process.ready_at > self.now => "starts",
                    None => "serves",
                };
                all.insert(format!("host {id} {instance}"), phase.to_owned());
            }
            for (role, table) in &host.tables {
                let using: Vec<String> = table.using.iter().map(ToString::to_string).collect();
                let text = format!(
                    "release {:?}: {}",
                    table.serving.map(|r| r.0),
                    using.join(", ")
                );
                all.insert(format!("host {id} {role}'s table"), text);
            }
        }
        all
    }
}
