//! The agent's shell on a simulated machine: asks the real core, does what it says, finds the way
//! to its manager as the real one does.

use crate::bugs::Bug;
use crate::host::HostId;
use crate::net::{Kind, Message, Server};
use crate::schedule::Ms;
use crate::world::{BEAT, Event, Party, World};
use conpaas_core::agent::{AgentCore, Effect, Event as AgentEvent, Held};
use conpaas_model::level::{Level, LevelVersion, RoleLevel};
use conpaas_model::protocol::{FromAgent, Located, ManagerAddress};
use conpaas_model::status::NodeHealth;
use std::collections::{BTreeMap, BTreeSet};

/// At every so-manieth beat it is asked whether the manager is still the one.
const RECHECK: u64 = 3;

/// What a role is to be brought to; nothing: to be stopped.
pub struct RoleTask {
    /// Tells orders apart, so that looks of an older one end.
    pub order: u64,
    pub wanted: Option<(LevelVersion, RoleLevel)>,
}

/// The agent's process.
pub struct AgentProcess {
    pub life: u64,
    pub core: AgentCore,
    pub roles: BTreeMap<String, RoleTask>,
    link: Option<u64>,
    located: Option<Located>,
    /// A call is under way or will be made.
    trying: bool,
    report_due: bool,
    orders: u64,
}

impl World {
    fn agent(&mut self, host: HostId) -> Option<&mut AgentProcess> {
        self.hosts.get_mut(&host)?.agent.as_mut()
    }

    /// The agent of this life, if it still lives.
    fn agent_of(&mut self, host: HostId, life: u64) -> Option<&mut AgentProcess> {
        self.agent(host).filter(|agent| agent.life == life)
    }

    pub fn agent_starts(&mut self, id: HostId) {
        let life = self.life();
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if host.agent.is_some() {
            return;
        }
        let core = AgentCore::new(
            host.node.service.clone(),
            host.node.number,
            life.to_string(),
            "sim".to_owned(),
        );
        host.agent = Some(AgentProcess {
            life,
            core,
            roles: BTreeMap::new(),
            link: None,
            located: None,
            trying: true,
            report_due: false,
            orders: 0,
        });
        let kept = host.disk.level.clone();
        let found: BTreeSet<String> = host.processes.keys().map(|i| i.role.clone()).collect();
        let mut effects = Vec::new();
        if let Some(agent) = &mut host.agent {
            if let Some(level) = kept {
                effects.extend(agent.core.resume(level));
            }
            effects.extend(agent.core.handle(AgentEvent::Found(found)));
        }
        self.do_effects(id, effects);
        self.soon(5, 60, Event::AgentTries { host: id, life });
        self.soon(
            1,
            BEAT,
            Event::AgentBeats {
                host: id,
                life,
                beat: 0,
            },
        );
    }

    /// The agent's process dies; what it had started goes on.
    pub fn agent_dies(&mut self, id: HostId, down: Ms) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let Some(agent) = host.agent.take() else {
            return;
        };
        self.close_all_of(agent.life, false);
        self.after(down.max(1), Event::AgentStarts { host: id });
    }

    /// Lets the core have an event, and does what it says.
    pub fn agent_event(&mut self, id: HostId, event: AgentEvent) {
        let ended = match &event {
            AgentEvent::Stopped { role } => Some(role.clone()),
            _ => None,
        };
        let event = self.corrupt_agent_event(id, event);
        let Some(agent) = self.agent(id) else { return };
        if let Some(role) = &ended {
            agent.roles.remove(role);
        }
        let effects = agent.core.handle(event);
        // Its task has ended, but it is wanted again meanwhile.
        let again = ended.and_then(|role| {
            let level = agent.core.level()?;
            let wanted = level.body.roles.get(&role)?.clone();
            Some((role, Some((level.version, wanted))))
        });
        self.do_effects(id, effects);
        if let Some((role, wanted)) = again {
            self.order(id, role, wanted);
        }
        self.report_if_due(id);
    }

    fn do_effects(&mut self, id: HostId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Keep(level) => {
                    self.level_obeyed(id, &level);
                    let (now, lose) = (self.now, self.has(Bug::LevelNotKept));
                    if let Some(host) = self.hosts.get_mut(&id)
                        && host.disk.full_until <= now
                        && !lose
                    {
                        host.disk.level = Some(level);
                    }
                }
                Effect::Lead(_) => {}
                Effect::Run {
                    role,
                    version,
                    level,
                } => {
                    self.order(id, role, Some((version, level)));
                }
                Effect::Stop { role } => self.order(id, role, None),
                Effect::Refuse { refused, seen } => {
                    let link = self.agent(id).and_then(|agent| agent.link);
                    if let Some(link) = link {
                        let message = FromAgent::Refused { refused, seen };
                        self.send(link, true, Message::FromAgent(message));
                        if refused.epoch < seen.epoch {
                            self.relocate(id);
                        }
                    }
                }
                Effect::NotMine { service, node } => {
                    let text = format!("a level for node {node} of {service} came to {id}");
                    self.broke("levels find their node", text);
                }
                Effect::Report => {
                    if let Some(agent) = self.agent(id) {
                        agent.report_due = true;
                    }
                }
            }
            if self.dies(Party::Host(id)) {
                return;
            }
        }
    }

    fn order(&mut self, id: HostId, role: String, wanted: Option<(LevelVersion, RoleLevel)>) {
        let Some(agent) = self.agent(id) else { return };
        agent.orders += 1;
        let (order, life) = (agent.orders, agent.life);
        agent.roles.insert(role.clone(), RoleTask { order, wanted });
        self.soon(
            3,
            60,
            Event::RoleWorks {
                host: id,
                life,
                role,
                order,
            },
        );
    }

    fn report_if_due(&mut self, id: HostId) {
        let Some(agent) = self.agent(id) else { return };
        if !std::mem::take(&mut agent.report_due) {
            return;
        }
        self.report(id);
    }

    fn report(&mut self, id: HostId) {
        let Some(agent) = self.agent(id) else { return };
        let Some(link) = agent.link else { return };
        let report = agent.core.report(NodeHealth::default(), &Held::new());
        self.send(
            link,
            true,
            Message::FromAgent(FromAgent::Report(Box::new(report))),
        );
    }

    pub fn agent_beats(&mut self, id: HostId, life: u64, beat: u64) {
        let Some(agent) = self.agent_of(id, life) else {
            return;
        };
        let linked = agent.link.is_some();
        let located = agent.located.clone();
        self.report(id);
        self.after(
            BEAT,
            Event::AgentBeats {
                host: id,
                life,
                beat: beat + 1,
            },
        );
        if linked && beat % RECHECK == RECHECK - 1 && self.director.up {
            let Some(host) = self.hosts.get(&id) else {
                return;
            };
            let (machine, key) = (host.machine.clone(), host.disk.key.clone());
            if self.travels(Party::Host(id), Party::Director).is_some()
                && let Some(found) = self.locate(&machine, &key)
                && found.manager != ManagerAddress::Nowhere
                && located.is_some_and(|before| before != found)
            {
                self.relocate(id);
            }
        }
    }

    /// Another manager may have been made.
    fn relocate(&mut self, id: HostId) {
        let Some(agent) = self.agent(id) else { return };
        if let Some(link) = agent.link.take() {
            self.close(link, false, false);
        }
        self.try_later(id, 50, 400);
    }

    fn try_later(&mut self, id: HostId, low: Ms, high: Ms) {
        let Some(agent) = self.agent(id) else { return };
        if !std::mem::replace(&mut agent.trying, true) {
            let life = agent.life;
            self.soon(low, high, Event::AgentTries { host: id, life });
        }
    }

    pub fn agent_lost_stream(&mut self, id: HostId, life: u64) {
        if let Some(agent) = self.agent_of(id, life) {
            agent.link = None;
            self.try_later(id, 50, 800);
        }
    }

    /// Asks the Director for a certificate, or where the manager is.
    pub fn agent_tries(&mut self, id: HostId, life: u64) {
        let Some(agent) = self.agent_of(id, life) else {
            return;
        };
        agent.trying = false;
        if agent.link.is_some() {
            return;
        }
        let Some(host) = self.hosts.get(&id) else {
            return;
        };
        let (machine, key) = (host.machine.clone(), host.disk.key.clone());
        let (secret, enrolled) = (host.secret.clone(), host.disk.enrolled);
        let there = self
            .travels(Party::Host(id), Party::Director)
            .filter(|_| self.director.up);
        let event = if enrolled {
            // While the Director is away, the last known manager will do.
            let kept = self
                .hosts
                .get(&id)
                .and_then(|host| host.disk.located.clone());
            let located = if there.is_some() {
                self.locate(&machine, &key)
            } else {
                kept
            };
            Some(Event::LocateAnswered {
                host: id,
                life,
                located,
            })
        } else if there.is_some() {
            let granted = self.enrols(&machine, Some(&secret), &key);
            if self.dies(Party::Director) {
                return self.try_later(id, 300, 1_500);
            }
            granted.map(|granted| Event::EnrolAnswered {
                host: id,
                life,
                granted,
            })
        } else {
            None
        };
        let back = self
            .travels(Party::Director, Party::Host(id))
            .or((there.is_none()).then_some(300));
        match (event, back) {
            (Some(event), Some(back)) => {
                if let Some(agent) = self.agent(id) {
                    agent.trying = true;
                }
                self.after(there.unwrap_or(500) + back, event);
            }
            _ => self.try_later(id, 300, 1_500),
        }
    }

    pub fn enrol_answered(&mut self, id: HostId, life: u64, granted: bool) {
        let Some(agent) = self.agent_of(id, life) else {
            return;
        };
        agent.trying = false;
        if granted && let Some(host) = self.hosts.get_mut(&id) {
            host.disk.enrolled = true;
        }
        let wait = if granted { 10 } else { 2_500 };
        self.try_later(id, wait, wait + 100);
    }

    pub fn located(&mut self, id: HostId, life: u64, located: Option<Located>) {
        let now = self.now;
        let Some(agent) = self.agent_of(id, life) else {
            return;
        };
        agent.trying = false;
        if agent.link.is_some() {
            return;
        }
        agent.located = located.clone();
        let Some(located) = located else {
            return self.try_later(id, 1_000, 2_500);
        };
        if located.manager != ManagerAddress::Nowhere
            && let Some(host) = self.hosts.get_mut(&id)
            && host.disk.full_until <= now
        {
            host.disk.located = Some(located.clone());
        }
        let opened = match located.manager {
            ManagerAddress::Nowhere => None,
            ManagerAddress::Director => {
                let reachable = self.travels(Party::Host(id), Party::Director).is_some();
                let link = if reachable {
                    self.joins_director(id, life)
                } else {
                    None
                };
                link.map(|link| (link, Server::Director))
            }
            ManagerAddress::At { machine, .. } => self.opens_at_manager(id, life, &machine),
        };
        let Some((link, server)) = opened else {
            return self.try_later(id, 100, 1_200);
        };
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let machine = host.machine.clone();
        if let Some(agent) = &mut host.agent {
            agent.link = Some(link);
        }
        let Some(desk) = self.desk(server) else {
            return;
        };
        let (out, older) = desk.join(now, &machine, link);
        if let Some(older) = older {
            self.close(older, true, false);
        }
        self.carry_out(server, out);
        self.report(id);
    }

    fn opens_at_manager(
        &mut self,
        id: HostId,
        life: u64,
        machine: &conpaas_model::ids::MachineId,
    ) -> Option<(u64, Server)> {
        let own = self.hosts.get(&id)?.machine.clone();
        let (at, found) = self.hosts.iter().find(|(_, host)| {
            host.machine == *machine && host.disk.enrolled && host.manager.is_some()
        })?;
        let (at, manager) = (*at, found.manager.as_ref()?);
        if !manager.desk.welcomes(&own) || found.frozen_until > self.now {
            return None;
        }
        let server_life = manager.life;
        self.travels(Party::Host(id), Party::Host(at))?;
        let link = self.open(id, life, Server::Manager(at), server_life, Kind::Agent);
        Some((link, Server::Manager(at)))
    }

    /// A manager offers a level.
    pub fn offered(&mut self, id: HostId, life: u64, level: Level) {
        let stale = self.has(Bug::StaleEpochObeyed);
        let Some(agent) = self.agent_of(id, life) else {
            return;
        };
        if stale && agent.core.seen().is_some_and(|seen| level.version < seen) {
            let (service, node) = (level.service.clone(), level.node);
            agent.core = AgentCore::new(service, node, life.to_string(), "sim".to_owned());
        }
        let effects = agent.core.handle(AgentEvent::Offered(level));
        self.do_effects(id, effects);
        self.report_if_due(id);
    }
}
