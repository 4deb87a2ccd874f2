//! Rest: when faults have stopped, the world must come to what is wished and stay there; and then
//! nothing may be left over. The last checks of each schedule are here.

use crate::host::host_id;
use crate::schedule::{Ms, Wish};
use crate::store::{Outcome, Service};
use crate::world::{Event, World};
use conpaas_core::broker::{MachineRow, MachineStage};
use conpaas_model::ids::MachineId;
use conpaas_model::level::Instance;
use conpaas_model::spec::RunWish;
use conpaas_model::status::NodeState;
use std::collections::{BTreeMap, BTreeSet};

/// How often it is looked whether all is at rest.
const EVERY: Ms = 1_000;
/// So many quiet looks one after the other are rest: what a fault broke is noticed by its silence, and
/// until then all seems well.
const QUIET: u32 = 5;
/// How long a world may take to come to rest.
const PATIENCE: Ms = 150_000;

impl World {
    pub fn checks(&mut self) {
        self.note_states();
        let last = self.schedule.disturbances.last().map_or(0, |d| d.at);
        let Some(calm) = self.calm else {
            if self.now > last + EVERY {
                self.calm_down();
            }
            self.after(EVERY, Event::Checks);
            return;
        };
        match self.unrest() {
            None if self.truth.quiet >= QUIET => {
                if self.schedule.teardown && !self.truth.torn_down {
                    self.truth.torn_down = true;
                    self.truth.quiet = 0;
                    self.calm = Some(self.now);
                    self.wish(&Wish::Delete);
                } else {
                    self.finished = true;
                }
            }
            None => self.truth.quiet += 1,
            Some(reason) => {
                if self.truth.quiet >= QUIET {
                    self.broke("rest lasts", reason);
                } else if self.now > calm + PATIENCE {
                    self.broke("the world converges", reason);
                }
                self.truth.quiet = 0;
            }
        }
        self.after(EVERY, Event::Checks);
    }

    /// What is still not as it should be.
    pub fn unrest(&self) -> Option<String> {
        let store = &self.director.store;
        if !self.director.up {
            return Some("the Director is down".to_owned());
        }
        if self.hosts.values().any(|host| host.frozen_until > self.now) {
            return Some("a machine is frozen".to_owned());
        }
        if let Some(operation) = store
            .operations
            .iter()
            .find(|o| o.outcome == Outcome::Running)
        {
            let more = self.records_unrest().or_else(|| self.wish_unrest());
            return Some(format!(
                "operation '{}' has not ended ({})",
                operation.kind,
                more.unwrap_or_default()
            ));
        }
        // Also one that a Director made who has died since: what comes of it is swept up after it.
        let underway =
            self.director.busy.len() + self.director.orphans.len() + self.calls_on_their_way();
        if underway > 0 {
            return Some("calls to clouds are under way".to_owned());
        }
        self.records_unrest().or_else(|| self.wish_unrest())
    }

    /// Each node has one machine, each machine one node, in the records and in the clouds.
    fn records_unrest(&self) -> Option<String> {
        let store = &self.director.store;
        let mut by_node = BTreeMap::new();
        for machine in &store.machines {
            if let Some(other) = by_node.insert(&machine.node, &machine.id) {
                return Some(format!("{other} and {} are both of one node", machine.id));
            }
            if machine.stage != MachineStage::Up {
                return Some(format!("{} is {:?}", machine.id, machine.stage));
            }
        }
        for node in &store.nodes {
            if !node.wanted || node.state != NodeState::Up || !by_node.contains_key(&node.key) {
                let (number, trouble) = (node.key.number, &node.trouble);
                return Some(format!("node {number} is {:?} ({trouble:?})", node.state));
            }
        }
        let recorded: BTreeSet<&str> = store
            .machines
            .iter()
            .filter_map(|m| m.cloud_id.as_deref())
            .collect();
        let there: BTreeSet<&str> = self
            .clouds
            .iter()
            .flat_map(|c| c.machines())
            .map(|m| m.id.as_str())
            .collect();
        if recorded != there {
            return Some(format!("clouds hold {there:?}, recorded are {recorded:?}"));
        }
        let addresses: BTreeSet<_> = store.places.values().map(|place| place.address).collect();
        if addresses.len() != store.nodes.len() {
            return Some("two nodes share an address, or one is kept for nobody".to_owned());
        }
        self.unnoticed()
    }

    /// A death that nobody has noticed yet: all may look as if it were at rest.
    fn unnoticed(&self) -> Option<String> {
        let store = &self.director.store;
        let alive = |id: &str| {
            let host = self.hosts.get(&host_id(id));
            host.is_some_and(|host| host.agent.is_some())
        };
        let dead = |machine: &&MachineRow| !machine.cloud_id.as_deref().is_some_and(alive);
        if let Some(machine) = store.machines.iter().find(dead) {
            return Some(format!("{} is dead, which is not known yet", machine.id));
        }
        if self.web().is_none_or(|web| web.run != RunWish::Running) {
            return None;
        }
        if self.director.posts.is_empty() {
            return Some("no manager is in office".to_owned());
        }
        // One that nobody hears may be taken for dead any moment.
        let heard = |machine: &MachineId| {
            let managers = self.hosts.values().filter_map(|host| host.manager.as_ref());
            managers
                .into_iter()
                .any(|manager| manager.desk.hears(machine))
        };
        let mut people = self.people().map(|(_, host)| &host.machine);
        let silent = people.find(|machine| !heard(machine));
        silent.map(|machine| format!("no manager hears {machine}"))
    }

    /// What runs is what is wished.
    fn wish_unrest(&self) -> Option<String> {
        let store = &self.director.store;
        let Some(app) = store.app else {
            let left = !store.services.is_empty() || !store.nodes.is_empty();
            return left.then(|| "something of a deleted application is left".to_owned());
        };
        for service in store.services.values() {
            if service.reached != service.generation {
                let status = service.status.as_ref();
                let waiting = status.map(|s| (&s.waiting, &s.failed, s.generation));
                return Some(format!(
                    "{} has not reached its wish: {waiting:?}",
                    service.id
                ));
            }
        }
        let Some(web) = self.web() else {
            return Some("the service is gone, its application is not".to_owned());
        };
        if web.run != RunWish::Running {
            return (app == RunWish::Deleted || !store.nodes.is_empty())
                .then(|| "a stopped application still has nodes".to_owned());
        }
        let status = web.status.as_ref()?;
        if !status.reached || status.failed.is_some() {
            return Some(format!(
                "not reached: {:?} {:?}",
                status.waiting, status.failed
            ));
        }
        self.processes_unrest(web)
    }

    fn processes_unrest(&self, web: &Service) -> Option<String> {
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        let running = |instance: &Instance| {
            self.people().any(|(_, host)| {
                host.processes
                    .get(instance)
                    .is_some_and(|process| process.serves(self.now))
            })
        };
        for (id, host) in self.people() {
            if host.agent.is_none() {
                return Some(format!("no agent on {id}"));
            }
            for (instance, process) in &host.processes {
                if !process.serves(self.now) {
                    return Some(format!("{instance} does not serve"));
                }
                if instance
                    .release
                    .is_some_and(|release| release != web.active)
                {
                    return Some(format!("{instance} runs beside the active release"));
                }
                *count.entry(instance.role.as_str()).or_default() += 1;
            }
            for (role, table) in &host.tables {
                if !host.processes.keys().any(|i| i.role == *role) {
                    return Some(format!("a table of {role} is left on {id}"));
                }
                if let Some(used) = table.using.iter().find(|used| !running(used)) {
                    return Some(format!("{role} on {id} uses {used}, which does not run"));
                }
                if table.serving.is_some_and(|serving| serving != web.active) {
                    return Some(format!("{role} on {id} leads to {:?}", table.serving));
                }
            }
        }
        for (role, wish) in &web.roles {
            let there = count.get(role.as_str()).copied().unwrap_or_default();
            if there != wish.count() as usize {
                return Some(format!("{there} of {} {role} run", wish.count()));
            }
        }
        let exposed = self.service_type.roles().iter().find(|role| role.exposed)?;
        let fronts: BTreeSet<_> = self
            .people()
            .filter(|(_, host)| host.processes.keys().any(|i| i.role == exposed.name))
            .map(|(_, host)| host.node.number)
            .collect();
        (fronts != self.edge.led).then(|| {
            format!(
                "people are led to {:?}, fronts are on {fronts:?}",
                self.edge.led
            )
        })
    }

    /// Counts what the world looks like now.
    fn note_states(&mut self) {
        let mut met: Vec<&'static str> = Vec::new();
        let store = &self.director.store;
        if !self.director.up {
            met.push("no Director");
        }
        if self.director.posts.is_empty() && store.epoch > 0 {
            met.push("no manager in office");
        }
        let managers = self
            .hosts
            .values()
            .filter(|host| host.manager.is_some())
            .count();
        if managers > 1 {
            met.push("two managers alive");
        }
        for node in &store.nodes {
            met.push(match node.state {
                NodeState::Requested => "node requested",
                NodeState::Booting => "node booting",
                NodeState::Up => "node up",
                NodeState::Dead => "node dead",
                NodeState::Releasing => "node releasing",
            });
        }
        let draining = self
            .people()
            .flat_map(|(_, host)| host.processes.values())
            .any(|process| process.drain_since.is_some());
        if draining {
            met.push("instance drains");
        }
        let recorded: BTreeSet<&str> = store.machines.iter().map(|m| m.token.as_str()).collect();
        let machines = || self.clouds.iter().flat_map(|cloud| cloud.machines());
        if machines().any(|machine| !recorded.contains(machine.token.as_str())) {
            met.push("orphan in a cloud");
        }
        let tokens: BTreeSet<&str> = machines().map(|machine| machine.token.as_str()).collect();
        if tokens.len() < machines().count() {
            met.push("machine made twice");
        }
        if let Some(status) = self.web().and_then(|web| web.status.as_ref()) {
            if status.failed.is_some() {
                met.push("service failed");
            }
            if !status.reached {
                met.push("wish under way");
            }
        }
        if store
            .nodes
            .iter()
            .any(|n| n.trouble.as_deref().is_some_and(|t| t.contains("quota")))
        {
            met.push("quota used up");
        }
        for state in met {
            self.stats.state(state);
        }
    }
}
