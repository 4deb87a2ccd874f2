//! A simulated machine: its disk, the processes on it, and its births and deaths. What its agent
//! and its manager do is in modules of their own; here is what really runs.

use crate::agent::AgentProcess;
use crate::manager::ManagerProcess;
use crate::schedule::Ms;
use crate::world::{Event, LOOK, Party, World};
use conpaas_core::agent::{Event as AgentEvent, taint};
use conpaas_core::broker::NodeKey;
use conpaas_model::ids::{MachineId, ReleaseNumber};
use conpaas_model::level::{Duty, Instance, Level, RoleLevel};
use conpaas_model::protocol::Located;
use conpaas_model::status::{InUse, Phase, RoleStatus};
use std::collections::{BTreeMap, BTreeSet};

/// Which machine, over all clouds.
pub type HostId = u64;

/// The id of a machine by its cloud's name for it.
pub fn host_id(cloud_id: &str) -> HostId {
    let mut parts = cloud_id.trim_start_matches('c').split('-');
    let number = |text: Option<&str>| text.and_then(|t| t.parse().ok()).unwrap_or(0u64);
    let cloud = number(parts.next());
    cloud * 1_000_000 + number(parts.next())
}

/// What survives processes.
#[derive(Debug, Default)]
pub struct Disk {
    pub key: String,
    pub enrolled: bool,
    pub level: Option<Level>,
    pub located: Option<Located>,
    pub full_until: Ms,
}

/// A process of a role; it outlives the agent.
#[derive(Clone, Debug)]
pub struct Process {
    pub ready_at: Ms,
    pub drain_since: Option<Ms>,
}

impl Process {
    pub fn serves(&self, now: Ms) -> bool {
        self.drain_since.is_none() && self.ready_at <= now
    }
}

/// Whom a role that uses others really uses.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub using: BTreeSet<Instance>,
    /// Those it has let go, and until when it has requests there.
    pub in_flight: BTreeMap<Instance, Ms>,
    pub serving: Option<ReleaseNumber>,
}

/// A machine.
pub struct Host {
    pub id: HostId,
    pub machine: MachineId,
    pub node: NodeKey,
    pub secret: String,
    pub frozen_until: Ms,
    /// Until when somebody may rightly believe that it is dead.
    pub suspect_until: Ms,
    /// A list left it out while it was there.
    pub hidden: bool,
    pub disk: Disk,
    pub agent: Option<AgentProcess>,
    pub processes: BTreeMap<Instance, Process>,
    pub tables: BTreeMap<String, Table>,
    pub manager: Option<ManagerProcess>,
}

impl World {
    /// A cloud has made a machine.
    pub fn machine_made(&mut self, cloud: usize, id: &str, machine: &MachineId, node: &NodeKey) {
        let host = host_id(id);
        if self.hosts.contains_key(&host) {
            return;
        }
        self.check_intended(id, machine, node);
        let secret = self.clouds[cloud].contextualization(id).unwrap_or_default();
        let secret = String::from_utf8_lossy(secret).into_owned();
        let made = Host {
            id: host,
            machine: machine.clone(),
            node: node.clone(),
            secret,
            frozen_until: 0,
            suspect_until: 0,
            hidden: false,
            disk: Disk {
                key: format!("key-{host}"),
                ..Disk::default()
            },
            agent: None,
            processes: BTreeMap::new(),
            tables: BTreeMap::new(),
            manager: None,
        };
        self.hosts.insert(host, made);
        if crate::cloud::take(&mut self.clouds[cloud].troubles.hang_boots) {
            return;
        }
        self.soon(200, 1_500, Event::AgentStarts { host });
    }

    /// A machine is no more, or nothing of it runs any more.
    pub fn machine_ends(&mut self, id: &str) {
        let host = host_id(id);
        self.lost_to_fault(host);
        let Some(gone) = self.hosts.remove(&host) else {
            return;
        };
        let agent = gone.agent.as_ref().map(|agent| agent.life);
        let manager = gone.manager.as_ref().map(|manager| manager.life);
        for life in agent.into_iter().chain(manager) {
            self.close_all_of(life, true);
        }
    }

    /// Whether anybody may still send requests to an instance.
    pub fn held(&self, instance: &Instance) -> bool {
        let now = self.now;
        let by_edge = self.edge.holds(instance.node, now);
        let exposed = self
            .service_type
            .role(&instance.role)
            .is_some_and(|role| role.exposed);
        (exposed && by_edge)
            || self.people().any(|(_, host)| {
                host.tables.iter().any(|(role, table)| {
                    host.processes.keys().any(|i| i.role == *role)
                        && (table.using.contains(instance)
                            || table
                                .in_flight
                                .get(instance)
                                .is_some_and(|until| *until > now))
                })
            })
    }

    /// Machines of the application's service.
    pub fn people(&self) -> impl Iterator<Item = (&HostId, &Host)> {
        self.hosts
            .iter()
            .filter(|(_, host)| host.node.service == self.names.web)
    }

    /// A role's task takes its next look.
    pub fn role_works(&mut self, id: HostId, life: u64, role: &str, order: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get(&id) else {
            return;
        };
        let Some(agent) = host.agent.as_ref().filter(|agent| agent.life == life) else {
            return;
        };
        let Some(task) = agent.roles.get(role).filter(|task| task.order == order) else {
            return;
        };
        let Some((version, level)) = task.wanted.clone() else {
            return self.role_stops(id, role);
        };
        let full = host.disk.full_until > now;
        let soon = self.role_applies(id, role, &level, full);
        let mut status = self.observed(id, role, &level);
        let mut events = Vec::new();
        if full && soon.is_none() {
            taint(&mut status, &level, "the disk is full");
        } else {
            events.push(AgentEvent::Applied {
                role: role.to_owned(),
                version,
            });
        }
        events.push(AgentEvent::Observed {
            role: role.to_owned(),
            version,
            status,
        });
        for event in events {
            self.agent_event(id, event);
        }
        let pause = soon.unwrap_or(LOOK).clamp(20, LOOK);
        self.after(
            pause,
            Event::RoleWorks {
                host: id,
                life,
                role: role.to_owned(),
                order,
            },
        );
        self.dies(Party::Host(id));
    }

    /// Brings a role's processes to its level; when to look again, nothing when it could not.
    fn role_applies(
        &mut self,
        id: HostId,
        role: &str,
        level: &RoleLevel,
        full: bool,
    ) -> Option<Ms> {
        let now = self.now;
        let wanted = self.wanted_of(id, role, level);
        let (mut soon, mut failed) = (LOOK, false);
        let running = |host: &Host| -> Vec<Instance> {
            host.processes
                .keys()
                .filter(|i| i.role == role)
                .cloned()
                .collect()
        };
        let present = self.hosts.get(&id).map(running).unwrap_or_default();
        for instance in present {
            if !wanted.contains_key(&instance) {
                self.stops(id, &instance);
            }
        }
        for (instance, duty) in wanted {
            let Some(host) = self.hosts.get_mut(&id) else {
                return Some(LOOK);
            };
            match host.processes.get_mut(&instance) {
                None if full => failed = true,
                None => {
                    let takes = self.rng.between(60, 700);
                    let process = Process {
                        ready_at: now + takes,
                        drain_since: (duty == Duty::Drain).then_some(now),
                    };
                    host.processes.insert(instance.clone(), process);
                    soon = soon.min(takes + 5);
                }
                Some(process) => match (duty, process.drain_since) {
                    (Duty::Serve, Some(_)) => process.drain_since = None,
                    (Duty::Drain, None) => {
                        let served = process.serves(now);
                        process.drain_since = Some(now);
                        soon = soon.min(200);
                        if served {
                            self.let_go(id, &instance);
                        }
                    }
                    (Duty::Drain, Some(_)) => soon = soon.min(300),
                    (Duty::Serve, None) if process.ready_at > now => {
                        soon = soon.min(process.ready_at - now + 5);
                    }
                    (Duty::Serve, None) => {}
                },
            }
        }
        self.follow_table(id, role, level);
        self.keep_manager(id, role);
        (!failed).then_some(soon)
    }

    fn wanted_of(&self, id: HostId, role: &str, level: &RoleLevel) -> BTreeMap<Instance, Duty> {
        let Some(host) = self.hosts.get(&id) else {
            return BTreeMap::new();
        };
        let service_type = self.type_of(host);
        let carries = service_type.role(role).is_some_and(|r| r.carries_releases);
        let instance = |release| Instance {
            role: role.to_owned(),
            node: host.node.number,
            release,
        };
        if carries {
            level
                .releases
                .iter()
                .map(|(r, l)| (instance(Some(*r)), l.duty))
                .collect()
        } else {
            BTreeMap::from([(instance(None), level.duty)])
        }
    }

    fn type_of(&self, host: &Host) -> &'static dyn conpaas_core::service_type::ServiceType {
        if host.node.service == self.names.web {
            self.service_type
        } else {
            crate::types::by_name("hosts")
        }
    }

    /// A role that uses others takes its new table; whoever is dropped may have requests.
    fn follow_table(&mut self, id: HostId, role: &str, level: &RoleLevel) {
        let now = self.now;
        let Some(host) = self.hosts.get(&id) else {
            return;
        };
        if self
            .type_of(host)
            .role(role)
            .is_none_or(|r| r.uses.is_empty())
        {
            return;
        }
        let using: BTreeSet<Instance> = level.providers.iter().map(|p| p.instance()).collect();
        let before = host.tables.get(role).cloned().unwrap_or_default();
        let added: Vec<&Instance> = using.difference(&before.using).collect();
        self.check_taken_in(id, role, &added, level.serve, before.serving);
        let mut in_flight = before.in_flight;
        in_flight.retain(|instance, until| *until > now && !using.contains(instance));
        for dropped in before.using.difference(&using) {
            let lasts = match self.rng.below(20) {
                0..=13 => self.rng.between(0, 200),
                14..=18 => self.rng.between(200, 3_000),
                _ => self.rng.between(3_000, 9_000),
            };
            in_flight.insert(dropped.clone(), now + lasts);
        }
        if let Some(host) = self.hosts.get_mut(&id) {
            let table = Table {
                using,
                in_flight,
                serving: level.serve,
            };
            host.tables.insert(role.to_owned(), table);
        }
    }

    /// What a role's agent half sees.
    fn observed(&self, id: HostId, role: &str, level: &RoleLevel) -> RoleStatus {
        let now = self.now;
        let mut status = RoleStatus::default();
        let Some(host) = self.hosts.get(&id) else {
            return status;
        };
        for instance in self.wanted_of(id, role, level).keys() {
            let phase = match host.processes.get(instance) {
                None => Phase::Starting,
                Some(process) if process.drain_since.is_some() => {
                    if self.held(instance) {
                        Phase::Draining
                    } else {
                        Phase::Drained
                    }
                }
                Some(process) if process.ready_at > now => Phase::Starting,
                Some(_) => Phase::Ready,
            };
            match instance.release {
                Some(release) => {
                    status.releases.insert(release, phase);
                }
                None => status.own = Some(phase),
            }
        }
        if let Some(table) = host.tables.get(role) {
            let held = table.using.iter().map(|instance| (instance, 0));
            let flying = table.in_flight.iter().filter(|(_, until)| **until > now);
            let all = held.chain(flying.map(|(instance, _)| (instance, 1)));
            status.using = all
                .map(|(instance, in_flight)| InUse {
                    instance: instance.clone(),
                    in_flight,
                })
                .collect();
            status.serving = table.serving;
        }
        status
    }

    /// The whole role is wanted no more.
    fn role_stops(&mut self, id: HostId, role: &str) {
        let Some(host) = self.hosts.get(&id) else {
            return;
        };
        let running: Vec<Instance> = host
            .processes
            .keys()
            .filter(|i| i.role == role)
            .cloned()
            .collect();
        for instance in running {
            self.stops(id, &instance);
        }
        if let Some(host) = self.hosts.get_mut(&id) {
            host.tables.remove(role);
        }
        self.agent_event(
            id,
            AgentEvent::Stopped {
                role: role.to_owned(),
            },
        );
    }

    /// A process ends because its level says so.
    fn stops(&mut self, id: HostId, instance: &Instance) {
        self.check_stop(id, instance);
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        host.processes.remove(instance);
        if instance.role == "manager" {
            self.manager_dies(id, false);
        }
    }
}
