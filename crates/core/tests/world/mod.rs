//! A small world around a manager: agents that take their time, machines that boot and die, an
//! edge that acknowledges late, a user who changes their mind. What a request would meet is
//! checked after every event.

pub mod types;

use conpaas_core::manager::{Effect, Event, ManagerCore};
use conpaas_core::service_type::{Fencing, ServiceType, number_beside};
use conpaas_model::ids::*;
use conpaas_model::instance::default_instance_types;
use conpaas_model::level::{Duty, Instance, LeadStage, Level, LevelVersion};
use conpaas_model::protocol::{NodeWish, ServiceLevel, ServiceReport};
use conpaas_model::spec::*;
use conpaas_model::status::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

#[derive(Clone, Default)]
pub struct Agent {
    pub level: Option<Level>,
    pub applied: Option<LevelVersion>,
    /// What really runs, with how far it is.
    pub running: BTreeMap<Instance, Phase>,
    /// Tables of user roles: whom they really use now, and the release people see.
    pub tables: BTreeMap<String, (BTreeSet<Instance>, Option<ReleaseNumber>)>,
    pub sequence: u64,
    /// What an instance of a led role has and does, if one runs here.
    pub copy: Option<Copy>,
}

/// A led role's own state on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    pub leads: Option<Term>,
    pub holds: Option<Term>,
    pub ahead: u64,
}

pub struct World {
    pub service_type: &'static dyn ServiceType,
    pub spec: ServiceSpec,
    pub manager: ManagerCore,
    pub epoch: Epoch,
    pub now: Duration,
    pub records: BTreeMap<NodeNumber, NodeRecord>,
    pub agents: BTreeMap<NodeNumber, Agent>,
    pub next_node: NodeNumber,
    pub report: Option<ServiceReport>,
    pub edge: EdgeStatus,
    /// Nodes the edge really leads people to.
    pub led: BTreeSet<NodeNumber>,
    /// Nodes whose machine was killed by the world, not by us.
    pub killed: BTreeSet<NodeNumber>,
    pub met: BTreeMap<&'static str, usize>,
    pub quota: usize,
    /// Processes that have ended unasked, by node.
    pub ends: BTreeMap<NodeNumber, Vec<conpaas_model::ends::ProcessEnds>>,
}

impl World {
    pub fn new(service_type: &'static dyn ServiceType) -> Self {
        let roles = service_type
            .roles()
            .iter()
            .filter(|r| service_type.auxiliary_role(r.name).is_none())
            .map(|r| {
                let pool = Pool {
                    cloud: "memory".into(),
                    instance_type: "small".into(),
                    count: 1,
                };
                (
                    r.name.to_owned(),
                    RoleWish {
                        pools: vec![pool],
                        owner: CountOwner::Default,
                        bounds: None,
                    },
                )
            })
            .collect();
        let spec = ServiceSpec {
            service: ServiceId::from_suffix("1").unwrap(),
            application: ApplicationId::from_suffix("1").unwrap(),
            display: "shop/web".into(),
            service_type: service_type.name().into(),
            generation: Generation(1),
            run: RunWish::Running,
            roles,
            active: ReleaseNumber(1),
            preview: None,
            releases: vec![Release {
                number: ReleaseNumber(1),
                code: None,
                settings: Settings::new(),
                environment: Default::default(),
            }],
            retire: Default::default(),
            drain_seconds: 30,
        };
        let mut world = Self {
            service_type,
            spec,
            manager: ManagerCore::new(service_type),
            epoch: Epoch(1),
            now: Duration::ZERO,
            records: BTreeMap::new(),
            agents: BTreeMap::new(),
            next_node: NodeNumber(1),
            report: None,
            edge: EdgeStatus::default(),
            led: BTreeSet::new(),
            killed: BTreeSet::new(),
            met: BTreeMap::new(),
            quota: 1000,
            ends: BTreeMap::new(),
        };
        world.tell();
        world
    }

    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn carries(&self, role: &str) -> bool {
        self.service_type
            .role(role)
            .is_some_and(|r| r.carries_releases)
    }

    /// The Director's word to the manager.
    pub fn tell(&mut self) {
        let level = ServiceLevel {
            spec: self.spec.clone(),
            nodes: self.records.values().cloned().collect(),
            machines: BTreeMap::new(),
            next_node: self.next_node,
            edge: self.edge.clone(),
            shown: self.report.as_ref().and_then(|r| r.status.serving),
        };
        let event = Event::Level {
            level: Box::new(level),
            epoch: self.epoch,
            instance_types: default_instance_types(),
        };
        self.feed(event);
    }

    pub fn feed(&mut self, event: Event) {
        for effect in self.manager.handle(self.now, event) {
            match effect {
                Effect::SendLevel { node, level } => {
                    self.check_fencing(node, &level);
                    let agent = self
                        .agents
                        .get_mut(&node)
                        .expect("level to a node without agent");
                    let seen = agent.level.as_ref().map(|l| l.version).unwrap_or_default();
                    assert!(
                        level.version > seen,
                        "level {:?} after {:?}",
                        level.version,
                        seen
                    );
                    agent.level = Some(*level);
                }
                Effect::Report(report) => {
                    if let Some(failed) = &report.status.failed {
                        assert!(!failed.contains("own check"), "{failed}");
                    }
                    self.report = Some(*report);
                }
            }
        }
        self.check();
    }

    /// What people would meet: every proxy the edge leads to answers, and everyone in a
    /// proxy's table runs, unless the world itself killed it.
    pub fn check(&self) {
        self.check_leaders();
        self.check_steps();
        for node in &self.led {
            if self.killed.contains(node) {
                continue;
            }
            let agent = self
                .agents
                .get(node)
                .unwrap_or_else(|| panic!("edge leads to node {node}, which is gone"));
            let answers = agent
                .running
                .keys()
                .any(|i| self.service_type.role(&i.role).unwrap().exposed);
            assert!(answers, "edge leads to node {node}, where nothing answers");
            for (role, (table, serving)) in &agent.tables {
                if agent.running.keys().all(|i| i.role != *role) {
                    continue;
                }
                for used in table {
                    let runs = self
                        .agents
                        .get(&used.node)
                        .is_some_and(|a| a.running.contains_key(used));
                    assert!(
                        runs || self.killed.contains(&used.node),
                        "{role} on node {node} uses {used}, which does not run"
                    );
                }
                if let Some(serving) = serving {
                    for provider in self.service_type.role(role).unwrap().uses {
                        if self.carries(provider) && self.killed.is_empty() && !table.is_empty() {
                            assert!(
                                table
                                    .iter()
                                    .any(|i| i.role == *provider && i.release == Some(*serving)),
                                "{role} on node {node} leads to {serving} without {provider}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Whoever was led to a release at one node finds it at every other: nobody steps back.
    fn check_steps(&self) {
        if !self.killed.is_empty() {
            return;
        }
        let exposed = |role: &str| self.service_type.role(role).is_some_and(|r| r.exposed);
        let led = || {
            let agents = self.led.iter().filter_map(|node| self.agents.get(node));
            agents.flat_map(|agent| agent.tables.iter().filter(|(role, _)| exposed(role)))
        };
        let Some(newest) = led().filter_map(|(_, (_, serving))| *serving).max() else {
            return;
        };
        for (role, (table, serving)) in led() {
            for provider in self.service_type.role(role).unwrap().uses {
                let has = |i: &Instance| i.role == *provider && i.release == Some(newest);
                assert!(
                    !self.carries(provider) || table.iter().any(has),
                    "{role} shows {serving:?} and knows no {provider} of {newest}, which others show"
                );
            }
        }
    }

    /// Nobody is led to one that does not lead, and no two lead in one term.
    fn check_leaders(&self) {
        let alive = |node: &NodeNumber| !self.killed.contains(node);
        for (number, agent) in self.agents.iter().filter(|(n, _)| alive(n)) {
            let endpoints = agent.level.iter().flat_map(|l| l.body.endpoints.values());
            for target in endpoints.flat_map(|e| &e.targets) {
                let copy = self.agents.get(&target.node).and_then(|a| a.copy);
                assert!(
                    !alive(&target.node) || copy.is_some_and(|copy| copy.leads.is_some()),
                    "node {number} is led to node {}, which does not lead: {copy:?}",
                    target.node
                );
            }
        }
        let mut terms = BTreeSet::new();
        let has_role = |agent: &&Agent| {
            let led = self.service_type.led().iter();
            let roles = agent.level.as_ref().map(|level| &level.body.roles);
            led.into_iter()
                .any(|led| roles.is_some_and(|r| r.contains_key(*led)))
        };
        let living = self.agents.iter().filter(|(number, _)| alive(number));
        let agents = living.map(|(_, agent)| agent).filter(has_role);
        for leads in agents.filter_map(|agent| agent.copy?.leads) {
            assert!(terms.insert(leads), "two lead in {leads}");
        }
    }

    /// The Director takes the manager's wishes and the clouds go on.
    pub fn director(&mut self) {
        let Some(report) = self.report.clone() else {
            return;
        };
        for (number, wish) in &report.nodes {
            match wish {
                NodeWish::Present {
                    cloud,
                    instance_type,
                } if !self.records.contains_key(number) && *number >= self.next_node => {
                    if self.records.len() >= self.quota {
                        self.meet("full quota");
                        continue;
                    }
                    self.next_node = number.next();
                    let address =
                        Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 10)) + number.0 as u32);
                    self.records.insert(
                        *number,
                        NodeRecord {
                            number: *number,
                            state: NodeState::Requested,
                            cloud: cloud.clone(),
                            instance_type: instance_type.clone(),
                            address,
                            trouble: None,
                            refused: false,
                            told: Default::default(),
                        },
                    );
                }
                NodeWish::Gone => {
                    let Some(record) = self.records.get_mut(number) else {
                        continue;
                    };
                    if record.state != NodeState::Releasing {
                        record.state = NodeState::Releasing;
                        if !self.killed.contains(number) {
                            let agent = self.agents.remove(number).unwrap_or_default();
                            assert!(
                                agent.running.is_empty(),
                                "node {number} was released while {:?} ran",
                                agent.running
                            );
                        }
                        self.led.remove(number);
                    }
                }
                NodeWish::Present { .. } => {}
            }
        }
        self.tell();
    }

    /// The clouds confirm that what should go is gone.
    pub fn destroyed(&mut self) {
        let gone: Vec<NodeNumber> = self
            .records
            .values()
            .filter(|r| r.state == NodeState::Releasing)
            .map(|r| r.number)
            .collect();
        for number in gone {
            self.records.remove(&number);
            self.agents.remove(&number);
        }
        self.tell();
    }

    /// A role that must not run twice is given to nobody while one that was killed may still run
    /// it: its machine is not destroyed yet.
    fn check_fencing(&self, node: NodeNumber, level: &Level) {
        for role in self.service_type.roles() {
            let holds = |level: &Level| level.body.roles.contains_key(role.name);
            let held = |agent: &Agent| agent.level.as_ref().is_some_and(holds);
            let begins = holds(level) && !self.agents.get(&node).is_some_and(held);
            if role.fencing != Fencing::AfterDestruction || !begins {
                continue;
            }
            let holders = self.agents.values().filter(|agent| held(agent)).count();
            let lost = self.killed.iter().filter(|n| self.agents.contains_key(n));
            let lost = lost.filter(|n| held(&self.agents[n])).count();
            let wanted = self.spec.wanted(role.name) as usize;
            assert!(
                lost == 0 || holders < wanted,
                "{} begins on node {node} beside {holders}, {lost} of them not destroyed",
                role.name
            );
        }
    }

    pub fn boot(&mut self, pick: usize) {
        let waiting: Vec<NodeNumber> = self
            .records
            .values()
            .filter(|r| matches!(r.state, NodeState::Requested | NodeState::Booting))
            .map(|r| r.number)
            .collect();
        if waiting.is_empty() {
            return;
        }
        let number = waiting[pick % waiting.len()];
        let record = self.records.get_mut(&number).unwrap();
        if record.state == NodeState::Requested {
            record.state = NodeState::Booting;
            self.meet("half-born node");
            return self.tell();
        }
        record.state = NodeState::Up;
        self.agents.insert(number, Agent::default());
        self.tell();
        self.feed(Event::AgentConnected { node: number });
        self.report_of(number);
    }

    /// An agent takes one small step towards its level.
    pub fn step(&mut self, pick: usize, whole: bool) {
        let numbers: Vec<NodeNumber> = self
            .agents
            .keys()
            .copied()
            .filter(|n| !self.killed.contains(n))
            .collect();
        if numbers.is_empty() {
            return;
        }
        let number = numbers[pick % numbers.len()];
        let service_type = self.service_type;
        let agent = self.agents.get_mut(&number).unwrap();
        let Some(level) = agent.level.clone() else {
            return;
        };
        let wanted: BTreeSet<Instance> =
            conpaas_core::plan::instances(service_type, number, &level.body).collect();
        // First users follow their tables, then one instance goes one phase on.
        for (role, role_level) in &level.body.roles {
            if service_type.role(role).is_some_and(|r| !r.uses.is_empty()) {
                let table: BTreeSet<Instance> =
                    role_level.providers.iter().map(|p| p.instance()).collect();
                agent.tables.insert(role.clone(), (table, role_level.serve));
            }
        }
        agent.running.retain(|i, _| wanted.contains(i));
        self.keep_copy(number, &level);
        let agent = self.agents.get_mut(&number).unwrap();
        agent
            .tables
            .retain(|role, _| level.body.roles.contains_key(role));
        agent.applied = Some(level.version);
        for instance in &wanted {
            let role = &level.body.roles[&instance.role];
            let duty = instance
                .release
                .map_or(role.duty, |r| role.releases[&r].duty);
            let phase = agent.running.get(instance).cloned();
            let behind = role.leads.get(&instance.role).is_some_and(|lead| {
                service_type.led().contains(&instance.role.as_str())
                    && agent.copy.is_some_and(|copy| copy.holds != Some(lead.term))
            });
            let next = match (phase, duty) {
                (Some(Phase::Starting), Duty::Serve) if behind => Phase::Starting,
                (None, _) => Phase::Starting,
                (Some(Phase::Starting | Phase::Draining | Phase::Drained), Duty::Serve) => {
                    Phase::Ready
                }
                (Some(Phase::Ready | Phase::Starting), Duty::Drain) => Phase::Draining,
                (Some(Phase::Draining), Duty::Drain) => Phase::Drained,
                (Some(phase), _) => phase,
            };
            let moved = agent.running.get(instance) != Some(&next);
            agent.running.insert(instance.clone(), next);
            if moved && !whole {
                break;
            }
        }
        self.check();
    }

    /// A led role begins, hands over, or follows, as its level says.
    fn keep_copy(&mut self, number: NodeNumber, level: &Level) {
        let led = self.service_type.led();
        let role = led.iter().find_map(|led| {
            let role = level.body.roles.get(*led)?;
            Some(role.leads.get(*led))
        });
        let Some(lead) = role else {
            self.agents.get_mut(&number).unwrap().copy = None;
            return;
        };
        let mut copy = self.agents[&number].copy.unwrap_or_default();
        let alive = |world: &Self, node: NodeNumber| {
            let agent = world.agents.get(&node);
            agent
                .filter(|_| !world.killed.contains(&node))
                .and_then(|a| a.copy)
        };
        if let Some(lead) = lead {
            let leader = lead.leader.node;
            if leader == number {
                let from = lead.from.and_then(|node| alive(self, node));
                let waits = from.is_some_and(|from| from.leads.is_some());
                let fits = copy.holds >= lead.after;
                if copy.leads != Some(lead.term)
                    && lead.stage == LeadStage::Beginning
                    && fits
                    && !waits
                {
                    (copy.leads, copy.holds) = (Some(lead.term), Some(lead.term));
                    self.meet("new leader");
                }
            } else {
                if copy.leads.is_some() {
                    self.meet("handed over");
                }
                copy.leads = None;
                if alive(self, leader).is_some_and(|l| l.leads == Some(lead.term)) {
                    copy.holds = Some(lead.term);
                }
            }
        }
        self.agents.get_mut(&number).unwrap().copy = Some(copy);
    }

    pub fn report_of(&mut self, number: NodeNumber) {
        if self.killed.contains(&number) {
            return;
        }
        let Some(agent) = self.agents.get_mut(&number) else {
            return;
        };
        agent.sequence += 1;
        let mut roles: BTreeMap<String, RoleStatus> = BTreeMap::new();
        // What the level it obeys does not ask for any more is over, though it may still run.
        let asked: BTreeSet<Instance> = agent
            .level
            .iter()
            .flat_map(|l| conpaas_core::plan::instances(self.service_type, number, &l.body))
            .collect();
        for (instance, phase) in agent.running.iter().filter(|(i, _)| asked.contains(i)) {
            let status = roles.entry(instance.role.clone()).or_default();
            match instance.release {
                Some(release) => {
                    status.releases.insert(release, phase.clone());
                }
                None => status.own = Some(phase.clone()),
            }
        }
        for (role, (table, serving)) in &agent.tables {
            if let Some(status) = roles.get_mut(role) {
                status.using = table
                    .iter()
                    .map(|i| InUse {
                        instance: i.clone(),
                        in_flight: 0,
                    })
                    .collect();
                status.serving = *serving;
            }
        }
        let applied_roles = agent
            .level
            .iter()
            .filter(|l| Some(l.version) == agent.applied)
            .flat_map(|l| l.body.roles.keys().map(|r| (r.clone(), l.version)))
            .collect();
        let mut report = AgentReport {
            boot: "1".into(),
            sequence: agent.sequence,
            version: String::new(),
            level: agent.level.clone(),
            applied: agent.applied,
            applied_roles,
            roles,
            node: NodeHealth::default(),
            ends: self.ends.get(&number).cloned().unwrap_or_default(),
        };
        if let Some(copy) = agent.copy {
            for led in self.service_type.led() {
                if let Some(status) = report.roles.get_mut(*led) {
                    let mut tell = |name: &str, value: Option<u64>| {
                        if let Some(value) = value {
                            status.facts.insert(name.into(), value.into());
                        }
                    };
                    tell("leads", copy.leads.map(|t| t.0));
                    tell("holds", copy.holds.map(|t| t.0));
                    tell("ahead", Some(copy.ahead));
                }
            }
        }
        let any_draining = agent.running.values().any(|p| matches!(p, Phase::Draining));
        if any_draining {
            self.meet("draining instance");
        }
        self.feed(Event::AgentReport {
            node: number,
            report: Box::new(report),
        });
    }

    pub fn report_some(&mut self, pick: usize) {
        let numbers: Vec<NodeNumber> = self.agents.keys().copied().collect();
        if !numbers.is_empty() {
            self.report_of(numbers[pick % numbers.len()]);
        }
    }

    pub fn edge(&mut self) {
        let Some(report) = &self.report else { return };
        self.led = report.exposure.upstreams.keys().copied().collect();
        self.edge = EdgeStatus {
            applied: report.exposure.version,
            using: BTreeSet::new(),
        };
        self.tell();
    }

    pub fn kill(&mut self, pick: usize) {
        let up: Vec<NodeNumber> = self
            .records
            .values()
            .filter(|r| r.state == NodeState::Up)
            .map(|r| r.number)
            .collect();
        if up.is_empty() {
            return;
        }
        let number = up[pick % up.len()];
        self.meet("dead node");
        self.killed.insert(number);
        self.records.get_mut(&number).unwrap().state = NodeState::Dead;
        self.feed(Event::AgentLost { node: number });
        self.tell();
    }

    pub fn change(&mut self, change: impl FnOnce(&mut ServiceSpec)) {
        if self.report.as_ref().is_some_and(|r| !r.status.reached) {
            self.meet("second wish in the middle of the first");
        }
        change(&mut self.spec);
        self.spec.generation = self.spec.generation.next();
        self.tell();
    }

    pub fn scale(&mut self, role: &str, count: u32) {
        self.change(|spec| spec.roles.get_mut(role).unwrap().pools[0].count = count);
    }

    pub fn activate(&mut self) {
        let settings = self.active_settings();
        self.release(settings);
    }

    /// The auxiliary roles of a type that has some are switched off, or on again.
    pub fn switch(&mut self) {
        self.meet("a switch of auxiliary roles");
        let mut settings = self.active_settings();
        if settings.remove("off").is_none() {
            settings.insert("off".into(), true.into());
        }
        self.release(settings);
    }

    fn active_settings(&self) -> Settings {
        let active = self.spec.release(self.spec.active);
        active.map(|r| r.settings.clone()).unwrap_or_default()
    }

    /// A release is held beside the active one.
    pub fn preview(&mut self) {
        self.meet("a release that is held");
        let settings = self.active_settings();
        let next = self.add_release(settings);
        self.change(|spec| spec.preview = Some(next));
    }

    /// People are led to the release that is held, if there is one.
    pub fn promote(&mut self) {
        if let Some(held) = self.spec.preview {
            self.meet("a release that is promoted");
            self.change(|spec| (spec.active, spec.preview) = (held, None));
        }
    }

    pub fn discard(&mut self) {
        self.change(|spec| spec.preview = None);
    }

    fn release(&mut self, settings: Settings) {
        let next = self.add_release(settings);
        self.change(|spec| (spec.active, spec.preview) = (next, None));
    }

    fn add_release(&mut self, settings: Settings) -> ReleaseNumber {
        let serving = self.report.as_ref().and_then(|r| r.status.serving);
        let spec = &mut self.spec;
        let last = spec.releases.iter().map(|r| r.number).max().unwrap();
        let next = number_beside(last.next(), serving.into_iter().chain([spec.active]));
        spec.releases.push(Release {
            number: next,
            code: None,
            settings,
            environment: Default::default(),
        });
        next
    }

    /// A person replaces a node.
    pub fn retire(&mut self, pick: usize) {
        let numbers: Vec<NodeNumber> = self.records.keys().copied().collect();
        if !numbers.is_empty() {
            let number = numbers[pick % numbers.len()];
            self.change(|spec| {
                spec.retire.insert(number);
            });
        }
    }

    /// The manager's machine dies and another takes over without memory.
    pub fn takeover(&mut self) {
        self.meet("manager without memory");
        self.manager = ManagerCore::new(self.service_type);
        self.epoch = self.epoch.next();
        self.tell();
        for number in self.agents.keys().copied().collect::<Vec<_>>() {
            if !self.killed.contains(&number) {
                self.feed(Event::AgentConnected { node: number });
                self.report_of(number);
            }
        }
    }

    /// Everybody takes a step, but no cloud confirms a destruction.
    pub fn turn(&mut self) {
        self.now += Duration::from_millis(500);
        self.feed(Event::Tick);
        self.director();
        for pick in 0..self.records.len() {
            self.boot(pick);
        }
        for pick in 0..self.agents.len() {
            self.step(pick, true);
            self.report_some(pick);
        }
        self.edge();
    }

    /// Everything goes on until nothing changes any more; then the wish must be reality.
    pub fn settle(&mut self) {
        for _ in 0..400 {
            self.turn();
            self.destroyed();
            let done = self
                .report
                .as_ref()
                .is_some_and(|r| r.status.reached && r.status.generation == self.spec.generation);
            if done && self.killed.iter().all(|n| !self.records.contains_key(n)) {
                return;
            }
        }
        panic!(
            "never settled: {:#?}",
            self.report
                .as_ref()
                .map(|r| (&r.status.steps, &r.status.waiting, &r.nodes))
        );
    }

    /// Nothing is sent and nothing is wished anew once all is done.
    pub fn assert_fixed_point(&mut self) {
        let before = self.report.clone();
        let levels: Vec<_> = self.agents.values().map(|a| a.level.clone()).collect();
        for pick in 0..self.agents.len() {
            self.step(pick, true);
            self.report_some(pick);
        }
        self.feed(Event::Tick);
        self.tell();
        assert_eq!(
            levels,
            self.agents
                .values()
                .map(|a| a.level.clone())
                .collect::<Vec<_>>()
        );
        assert_eq!(before, self.report);
    }
}
