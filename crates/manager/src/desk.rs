//! The desk: owns the cores of all services and the seats of all agents; feeds events to the
//! cores and carries out what they say. It never waits for anybody.

use crate::managers::{CommandError, StaleLevel};
use crate::seat::Seat;
use conpaas_core::manager::{Effect, Event, ManagerCore};
use conpaas_core::metrics::Gathered;
use conpaas_core::node_name;
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::ids::{ApplicationId, Epoch, MachineId, NodeNumber, ServiceId};
use conpaas_model::metrics::NodeMetrics;
use conpaas_model::protocol::{
    Exposure, FromAgent, ManagerLevel, ManagerReport, ServiceLevel, ServiceReport, ToAgent,
};
use conpaas_model::status::ServiceStatus;
use conpaas_services::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often cores are asked what time has brought.
const TICK: Duration = Duration::from_millis(500);

type Answer = oneshot::Receiver<Result<serde_json::Value, String>>;
/// Answers to a command that are under way, by node name.
pub type Answers = Vec<(String, Answer)>;

/// Whether an agent may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Welcome,
    /// Nothing is known yet; it should come again.
    NotReady,
    Stranger,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    pub level_known: bool,
    pub services: usize,
    pub agents: usize,
}

/// What comes to the desk.
pub enum Message {
    Reached,
    Level {
        level: Box<ManagerLevel>,
        answer: oneshot::Sender<Result<(), StaleLevel>>,
    },
    Admit {
        machine: MachineId,
        application: ApplicationId,
        answer: oneshot::Sender<Admission>,
    },
    Join {
        machine: MachineId,
        seat: Seat,
        answer: oneshot::Sender<u64>,
    },
    Gone {
        machine: MachineId,
        id: u64,
    },
    FromAgent {
        machine: MachineId,
        id: u64,
        message: FromAgent,
    },
    Command {
        service: ServiceId,
        name: String,
        arguments: serde_json::Value,
        answer: oneshot::Sender<Result<Answers, CommandError>>,
    },
    Count {
        answer: oneshot::Sender<Count>,
    },
    Metrics {
        /// All of it, not only what is new.
        whole: bool,
        answer: oneshot::Sender<Vec<NodeMetrics>>,
    },
}

struct Held {
    /// Absent when this build does not know the service's type.
    core: Option<ManagerCore>,
    level: ServiceLevel,
    report: Option<ServiceReport>,
}

/// Cores and seats.
pub struct Desk {
    registry: Registry,
    born: Instant,
    epoch: Option<Epoch>,
    services: BTreeMap<ServiceId, Held>,
    /// Which service and node a machine speaks for; follows from the level.
    places: BTreeMap<MachineId, (ServiceId, NodeNumber)>,
    seats: BTreeMap<MachineId, Seat>,
    next_seat: u64,
    next_command: u64,
    reports: watch::Sender<Option<Arc<ManagerReport>>>,
    gathered: Gathered,
    /// What was measured of nodes that may be gone by now, and was not told yet.
    parting: Vec<NodeMetrics>,
}

/// Most of it that is kept while nobody asks.
const MOST_PARTING: usize = 1024;

impl Desk {
    pub fn new(registry: Registry, reports: watch::Sender<Option<Arc<ManagerReport>>>) -> Self {
        Self {
            registry,
            born: Instant::now(),
            epoch: None,
            services: BTreeMap::new(),
            places: BTreeMap::new(),
            seats: BTreeMap::new(),
            next_seat: 1,
            next_command: 1,
            reports,
            gathered: Gathered::default(),
            parting: Vec::new(),
        }
    }

    /// Works until shutdown.
    pub async fn run(mut self, mut messages: mpsc::Receiver<Message>, shutdown: CancellationToken) {
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                message = messages.recv() => match message {
                    Some(message) => self.take(message),
                    None => break,
                },
                _ = clock.tick() => {
                    let services: Vec<ServiceId> = self.services.keys().cloned().collect();
                    for service in services {
                        self.feed(&service, Event::Tick);
                    }
                }
            }
            self.publish();
        }
        for seat in self.seats.values() {
            seat.handle.close();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Reached => {
                let services: Vec<ServiceId> = self.services.keys().cloned().collect();
                for service in services {
                    self.feed(&service, Event::Reached);
                }
            }
            Message::Level { level, answer } => {
                let _ = answer.send(self.level(*level));
            }
            Message::Admit {
                machine,
                application,
                answer,
            } => {
                let _ = answer.send(self.admission(&machine, &application));
            }
            Message::Join {
                machine,
                mut seat,
                answer,
            } => {
                let Some((service, node)) = self.places.get(&machine).cloned() else {
                    // Its node went between the question and the answer.
                    seat.handle.close();
                    return;
                };
                seat.id = self.next_seat;
                self.next_seat += 1;
                let _ = answer.send(seat.id);
                if let Some(older) = self.seats.insert(machine, seat) {
                    older.handle.close();
                }
                self.feed(&service, Event::AgentConnected { node });
            }
            Message::Gone { machine, id } => {
                if self.seats.get(&machine).is_some_and(|seat| seat.id == id) {
                    self.seats.remove(&machine);
                    if let Some((service, node)) = self.places.get(&machine).cloned() {
                        self.feed(&service, Event::AgentLost { node });
                    }
                }
            }
            Message::FromAgent {
                machine,
                id,
                message,
            } => self.hear(&machine, id, message),
            Message::Command {
                service,
                name,
                arguments,
                answer,
            } => {
                let _ = answer.send(self.command(&service, &name, &arguments));
            }
            Message::Count { answer } => {
                let _ = answer.send(Count {
                    level_known: self.epoch.is_some(),
                    services: self.services.len(),
                    agents: self.seats.len(),
                });
            }
            Message::Metrics { whole, answer } => {
                let _ = answer.send(self.metrics(whole));
            }
        }
    }

    fn admission(&self, machine: &MachineId, application: &ApplicationId) -> Admission {
        let Some((service, _)) = self.places.get(machine) else {
            return if self.epoch.is_some() {
                Admission::Stranger
            } else {
                Admission::NotReady
            };
        };
        let ours = self
            .services
            .get(service)
            .is_some_and(|held| held.level.spec.application == *application);
        if ours {
            Admission::Welcome
        } else {
            Admission::Stranger
        }
    }

    fn level(&mut self, level: ManagerLevel) -> Result<(), StaleLevel> {
        if let Some(seen) = self.epoch
            && level.epoch < seen
        {
            return Err(StaleLevel {
                refused: level.epoch,
                seen,
            });
        }
        self.epoch = Some(level.epoch);
        let names: Vec<ServiceId> = level
            .services
            .iter()
            .map(|s| s.spec.service.clone())
            .collect();
        self.services.retain(|service, _| names.contains(service));
        self.places = level
            .services
            .iter()
            .flat_map(|service| {
                let name = &service.spec.service;
                service
                    .machines
                    .iter()
                    .map(|(machine, node)| (machine.clone(), (name.clone(), *node)))
            })
            .collect();
        let told = self.metrics(false);
        self.parting = told.into_iter().take(MOST_PARTING).collect();
        let services = &level.services;
        self.gathered.retain(|service, node| {
            let of = services.iter().find(|one| one.spec.service == *service);
            of.is_some_and(|one| one.nodes.iter().any(|found| found.number == node))
        });
        let places = &self.places;
        self.seats.retain(|machine, seat| {
            let stays = places.contains_key(machine);
            if !stays {
                seat.handle.close();
            }
            stays
        });
        for service in level.services {
            self.service_level(service, level.epoch, &level.instance_types);
        }
        reached(KillPoint::LevelTaken);
        Ok(())
    }

    fn service_level(
        &mut self,
        level: ServiceLevel,
        epoch: Epoch,
        instance_types: &[conpaas_model::instance::InstanceType],
    ) {
        let name = level.spec.service.clone();
        let known = self.registry.get(&level.spec.service_type);
        let held = self.services.entry(name.clone()).or_insert_with(|| Held {
            core: known.map(|entry| ManagerCore::new(entry.service_type)),
            level: level.clone(),
            report: None,
        });
        held.level = level.clone();
        if held.core.is_none() {
            let service_type = &level.spec.service_type;
            tracing::error!(service = %name, service_type, "no such service type in this build");
            held.report = Some(ServiceReport {
                service: name,
                nodes: BTreeMap::new(),
                exposure: Exposure::default(),
                status: ServiceStatus {
                    generation: level.spec.generation,
                    failed: Some(format!(
                        "this manager knows no service type '{service_type}'"
                    )),
                    ..ServiceStatus::default()
                },
                requested: BTreeMap::new(),
                leaving: BTreeMap::new(),
                ends: Vec::new(),
            });
            return;
        }
        let instance_types = instance_types.to_vec();
        self.feed(
            &name,
            Event::Level {
                level: Box::new(level),
                epoch,
                instance_types,
            },
        );
    }

    fn hear(&mut self, machine: &MachineId, id: u64, message: FromAgent) {
        let Some(seat) = self.seats.get_mut(machine).filter(|seat| seat.id == id) else {
            return;
        };
        let Some((service, node)) = self.places.get(machine).cloned() else {
            return;
        };
        match message {
            FromAgent::Report(report) => {
                self.feed(&service, Event::AgentReport { node, report });
                reached(KillPoint::ReportHeard);
            }
            FromAgent::Refused { refused, seen } => {
                tracing::warn!(%machine, ?refused, ?seen, "an agent obeys a newer level");
                self.feed(&service, Event::AgentRefused { node, seen });
            }
            FromAgent::Metrics(readings) => self.gathered.take(&service, node, readings),
            FromAgent::CommandResult { id, result } => {
                if let Some(waiting) = seat.pending.remove(&id) {
                    let _ = waiting.send(result);
                }
            }
        }
    }

    /// What was heard of nodes, with what they are.
    fn metrics(&mut self, whole: bool) -> Vec<NodeMetrics> {
        let services = &self.services;
        let told = self.gathered.tell(whole).into_iter();
        let told = told.filter_map(|(service, number, readings)| {
            let nodes = &services.get(&service)?.level.nodes;
            let node = nodes.iter().find(|node| node.number == number)?;
            Some(NodeMetrics {
                service,
                node: number,
                cloud: node.cloud.clone(),
                instance_type: node.instance_type.clone(),
                readings,
            })
        });
        std::mem::take(&mut self.parting)
            .into_iter()
            .chain(told)
            .collect()
    }

    fn command(
        &mut self,
        service: &ServiceId,
        name: &str,
        arguments: &serde_json::Value,
    ) -> Result<Answers, CommandError> {
        let unknown = || CommandError::UnknownService(service.clone());
        let held = self.services.get(service).ok_or_else(unknown)?;
        let core = held.core.as_ref().ok_or_else(unknown)?;
        let declared = core.service_type().commands();
        let role = declared
            .iter()
            .find(|command| command.name == name)
            .map(|c| c.role);
        let Some(role) = role else {
            return Err(CommandError::UnknownCommand {
                service_type: core.service_type().name().to_owned(),
                name: name.to_owned(),
                known: declared
                    .iter()
                    .map(|command| command.name.to_owned())
                    .collect(),
            });
        };
        let ready = core.ready_nodes(role);
        let mut answers = Answers::new();
        for (machine, node) in &held.level.machines {
            let Some(seat) = self.seats.get_mut(machine).filter(|_| ready.contains(node)) else {
                continue;
            };
            let id = self.next_command;
            self.next_command += 1;
            let sent = seat.command(
                id,
                ToAgent::Command {
                    id,
                    role: role.to_owned(),
                    name: name.to_owned(),
                    arguments: arguments.clone(),
                },
            );
            let answer = sent.unwrap_or_else(|| {
                let (answer, answered) = oneshot::channel();
                let _ = answer.send(Err(
                    "the node's agent has too many commands under way".to_owned()
                ));
                answered
            });
            answers.push((node_name(&held.level.spec, *node), answer));
        }
        if answers.is_empty() {
            return Err(CommandError::NoReadyNode {
                role: role.to_owned(),
            });
        }
        Ok(answers)
    }

    /// Lets a core have an event and carries out what it says.
    fn feed(&mut self, service: &ServiceId, event: Event) {
        let now = self.born.elapsed();
        let Some(held) = self.services.get_mut(service) else {
            return;
        };
        let Some(core) = &mut held.core else { return };
        for effect in core.handle(now, event) {
            match effect {
                Effect::SendLevel { node, level } => {
                    let machines = held.level.machines.iter();
                    for (machine, _) in machines.filter(|(_, number)| **number == node) {
                        // One that is not connected gets its level when it comes.
                        if let Some(seat) = self.seats.get(machine) {
                            seat.levels.send_replace(Some((*level).clone()));
                            reached(KillPoint::LevelToAgent);
                        }
                    }
                }
                Effect::Report(report) => held.report = Some(*report),
            }
        }
    }

    fn publish(&self) {
        let Some(epoch) = self.epoch else { return };
        let services: Vec<ServiceReport> = self
            .services
            .values()
            .filter_map(|held| held.report.clone())
            .collect();
        let report = ManagerReport { epoch, services };
        self.reports.send_if_modified(|present| {
            let changed = present.as_deref() != Some(&report);
            if changed {
                *present = Some(Arc::new(report));
            }
            changed
        });
    }
}
