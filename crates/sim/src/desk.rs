//! The desk of a manager, as the real shell keeps it: the cores of its services, the seats of
//! agents, what was last published. The Director has one too, for the hosts of managers.

use crate::bugs::Bug;
use crate::net::{Message, Server};
use crate::schedule::Ms;
use crate::types;
use crate::world::World;
use conpaas_core::manager::{Effect, Event, ManagerCore, Patience};
use conpaas_model::ids::{Epoch, MachineId, NodeNumber, ServiceId};
use conpaas_model::level::Level;
use conpaas_model::protocol::{
    FromAgent, ManagerLevel, ManagerReport, ServiceLevel, ServiceReport,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// How patient simulated managers are: as the real ones, in a world three times as quick.
pub const PATIENCE: Patience = Patience {
    silence: Duration::from_millis(3_500),
    takeover: Duration::from_millis(5_000),
    failure: Duration::from_millis(1_500),
};

struct Held {
    core: ManagerCore,
    level: ServiceLevel,
    report: Option<ServiceReport>,
}

/// Cores and seats.
pub struct Desk {
    born: Ms,
    patience: Patience,
    pub epoch: Option<Epoch>,
    services: BTreeMap<ServiceId, Held>,
    places: BTreeMap<MachineId, (ServiceId, NodeNumber)>,
    seats: BTreeMap<MachineId, u64>,
    published: Option<ManagerReport>,
}

/// A level that goes out on a stream.
pub type Out = Vec<(u64, Level)>;

impl Desk {
    pub fn new(born: Ms, bug: Option<Bug>) -> Self {
        let mut patience = PATIENCE;
        if bug == Some(Bug::PlansBeforeHearing) {
            patience.takeover = Duration::ZERO;
        }
        Self {
            born,
            patience,
            epoch: None,
            services: BTreeMap::new(),
            places: BTreeMap::new(),
            seats: BTreeMap::new(),
            published: None,
        }
    }

    fn feed(&mut self, now: Ms, service: &ServiceId, event: Event) -> Out {
        let now = Duration::from_millis(now.saturating_sub(self.born));
        let Some(held) = self.services.get_mut(service) else {
            return Out::new();
        };
        let mut out = Out::new();
        for effect in held.core.handle(now, event) {
            match effect {
                Effect::SendLevel { node, level } => {
                    let machines = held.level.machines.iter().filter(|(_, n)| **n == node);
                    let seats = machines.filter_map(|(machine, _)| self.seats.get(machine));
                    out.extend(seats.map(|seat| (*seat, (*level).clone())));
                }
                Effect::Report(report) => held.report = Some(*report),
            }
        }
        out
    }

    /// Takes the Director's word; the seats of strangers are given back to be closed.
    pub fn level(&mut self, now: Ms, level: ManagerLevel) -> (Out, Vec<u64>) {
        if self.epoch.is_some_and(|seen| level.epoch < seen) {
            return Default::default();
        }
        self.epoch = Some(level.epoch);
        let known = |service: &ServiceId| level.services.iter().any(|s| s.spec.service == *service);
        self.services.retain(|service, _| known(service));
        self.places.clear();
        for service in &level.services {
            for (machine, node) in &service.machines {
                let place = (service.spec.service.clone(), *node);
                self.places.insert(machine.clone(), place);
            }
        }
        let mut strangers = Vec::new();
        let places = &self.places;
        self.seats.retain(|machine, seat| {
            let stays = places.contains_key(machine);
            if !stays {
                strangers.push(*seat);
            }
            stays
        });
        let mut out = Out::new();
        for service in level.services {
            let name = service.spec.service.clone();
            let patience = self.patience;
            let held = self.services.entry(name.clone()).or_insert_with(|| Held {
                core: ManagerCore::with_patience(
                    types::by_name(&service.spec.service_type),
                    patience,
                ),
                level: service.clone(),
                report: None,
            });
            held.level = service.clone();
            let event = Event::Level {
                level: Box::new(service),
                epoch: level.epoch,
                instance_types: level.instance_types.clone(),
            };
            out.extend(self.feed(now, &name, event));
        }
        (out, strangers)
    }

    /// Whether an agent may come in: nothing while nothing is known yet.
    pub fn welcomes(&self, machine: &MachineId) -> bool {
        self.places.contains_key(machine)
    }

    /// An agent takes its seat; an older one of the same machine is given back to be closed.
    pub fn join(&mut self, now: Ms, machine: &MachineId, link: u64) -> (Out, Option<u64>) {
        let Some((service, node)) = self.places.get(machine).cloned() else {
            return (Out::new(), Some(link));
        };
        let older = self.seats.insert(machine.clone(), link);
        (
            self.feed(now, &service, Event::AgentConnected { node }),
            older,
        )
    }

    /// Whether a machine's agent sits here.
    pub fn hears(&self, machine: &MachineId) -> bool {
        self.seats.contains_key(machine)
    }

    fn seated(&self, link: u64) -> Option<(MachineId, ServiceId, NodeNumber)> {
        let (machine, _) = self.seats.iter().find(|(_, seat)| **seat == link)?;
        let (service, node) = self.places.get(machine)?;
        Some((machine.clone(), service.clone(), *node))
    }

    pub fn gone(&mut self, now: Ms, link: u64) -> Out {
        let Some((machine, service, node)) = self.seated(link) else {
            self.seats.retain(|_, seat| *seat != link);
            return Out::new();
        };
        self.seats.remove(&machine);
        self.feed(now, &service, Event::AgentLost { node })
    }

    pub fn hear(&mut self, now: Ms, link: u64, message: FromAgent) -> Out {
        let Some((_, service, node)) = self.seated(link) else {
            return Out::new();
        };
        match message {
            // Simulated daemons count nothing.
            FromAgent::Metrics(_) => Out::new(),
            FromAgent::Report(report) => {
                self.feed(now, &service, Event::AgentReport { node, report })
            }
            FromAgent::Refused { seen, .. } => {
                self.feed(now, &service, Event::AgentRefused { node, seen })
            }
            FromAgent::CommandResult { .. } => Out::new(),
        }
    }

    pub fn tick(&mut self, now: Ms) -> Out {
        self.feed_all(now, &Event::Tick)
    }

    /// The Director is within reach.
    pub fn reached(&mut self, now: Ms) -> Out {
        self.feed_all(now, &Event::Reached)
    }

    fn feed_all(&mut self, now: Ms, event: &Event) -> Out {
        let services: Vec<ServiceId> = self.services.keys().cloned().collect();
        let fed = services
            .iter()
            .map(|service| self.feed(now, service, event.clone()));
        fed.flatten().collect()
    }

    /// The whole report, if it is another than the last one.
    pub fn publish(&mut self) -> Option<ManagerReport> {
        let report = self.report()?;
        if self.published.as_ref() == Some(&report) {
            return None;
        }
        self.published = Some(report.clone());
        Some(report)
    }

    /// What was published did not get through.
    pub fn say_again(&mut self) {
        self.published = None;
    }

    /// The whole report.
    pub fn report(&self) -> Option<ManagerReport> {
        let epoch = self.epoch?;
        let services = self
            .services
            .values()
            .filter_map(|held| held.report.clone())
            .collect();
        Some(ManagerReport { epoch, services })
    }

    /// What the Director last said of a service.
    pub fn known(&self, service: &ServiceId) -> Option<&ServiceLevel> {
        Some(&self.services.get(service)?.level)
    }
}

impl World {
    pub fn desk(&mut self, of: Server) -> Option<&mut Desk> {
        match of {
            Server::Director => self.director.up.then_some(&mut self.director.desk),
            Server::Manager(host) => Some(&mut self.hosts.get_mut(&host)?.manager.as_mut()?.desk),
        }
    }

    /// Sends levels, and says upwards what has changed.
    pub fn carry_out(&mut self, of: Server, out: Out) {
        for (link, level) in out {
            let level = self.corrupt_level(of, level);
            self.level_sent(&level);
            self.send(link, false, Message::ToAgent(level));
        }
        match of {
            Server::Director => self.director.news = true,
            Server::Manager(host) => self.publish(host),
        }
        if of == Server::Director {
            self.wake();
        }
    }

    /// An agent's word at its manager.
    pub fn heard(&mut self, server: Server, link: u64, message: FromAgent) {
        let (now, message) = (self.now, self.corrupt_report(message));
        let Some(desk) = self.desk(server) else {
            return;
        };
        let out = desk.hear(now, link, message);
        self.carry_out(server, out);
    }

    /// An agent's stream is over at its manager.
    pub fn seat_lost(&mut self, server: Server, link: u64) {
        let now = self.now;
        let Some(desk) = self.desk(server) else {
            return;
        };
        let out = desk.gone(now, link);
        self.carry_out(server, out);
    }
}
