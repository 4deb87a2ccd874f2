//! The manager half of one service as a state machine: `handle(now, event) -> effects`. It
//! keeps what agents report, plans, numbers levels and exposures, and times drains and silence.
//! No clock, no I/O: `now` is monotonic time since any fixed moment.

use crate::ends::EndsTeller;
use crate::lint;
use crate::plan::{self, Input, Node, Plan, Presence};
use crate::service_type::ServiceType;
use conpaas_model::ends::EndsToTell;
use conpaas_model::event::LeaveReason;
use conpaas_model::ids::{Epoch, Generation, NodeNumber, ReleaseNumber};
use conpaas_model::instance::InstanceType;
use conpaas_model::level::{Duty, Instance, Level, LevelBody, LevelVersion};
use conpaas_model::protocol::{Exposure, NodeWish, ServiceLevel, ServiceReport};
use conpaas_model::spec::RoleName;
use conpaas_model::status::{
    AgentReport, NodeHealth, NodeState, NodeSummary, Phase, RoleStatus, RoleSummary, SILENT,
    ServiceStatus, Waiting,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Bounds of a manager's patience.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An agent that is silent for longer is suspected dead.
    pub silence: Duration,
    /// How long a new manager waits to hear from the nodes that are up.
    pub takeover: Duration,
    /// How long a failure must last under a wish before it is told as that wish's: what failed
    /// under an earlier one may just be on its way out.
    pub failure: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(10),
            takeover: Duration::from_secs(15),
            failure: Duration::from_millis(1500),
        }
    }
}

/// What happens to a manager.
#[derive(Clone, Debug)]
pub enum Event {
    /// The Director is within reach, for the first time or again.
    Reached,
    /// The Director's whole word on the service.
    Level {
        level: Box<ServiceLevel>,
        epoch: Epoch,
        instance_types: Vec<InstanceType>,
    },
    AgentConnected {
        node: NodeNumber,
    },
    AgentReport {
        node: NodeNumber,
        report: Box<AgentReport>,
    },
    /// An agent has obeyed a newer level than the one it was sent.
    AgentRefused {
        node: NodeNumber,
        seen: LevelVersion,
    },
    AgentLost {
        node: NodeNumber,
    },
    Tick,
}

/// What a manager wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    SendLevel { node: NodeNumber, level: Box<Level> },
    Report(Box<ServiceReport>),
}

#[derive(Default)]
struct NodeMemory {
    connected: bool,
    /// Since when nothing was heard of it.
    silent_since: Option<Duration>,
    report: Option<AgentReport>,
    sent: Option<Level>,
    /// The last version that this manager gave to a level, whether it came through or not.
    counted: LevelVersion,
    /// The highest version this node was ever seen to obey or refuse for.
    seen: LevelVersion,
    /// By instance that was told to stop: the level that did. A report under an earlier one
    /// tells of a life that is over, whatever a later level asks for.
    stopped: BTreeMap<Instance, LevelVersion>,
    /// By instance that was let go and is to serve again: the level that says so. Until its role
    /// was brought to that one, a report may tell of the time before it was let go.
    resumed: BTreeMap<Instance, LevelVersion>,
    teller: EndsTeller,
}

impl NodeMemory {
    /// What the agent says of roles, without what it said of lives that are over.
    fn roles(&self) -> BTreeMap<RoleName, RoleStatus> {
        let Some(report) = &self.report else {
            return BTreeMap::new();
        };
        let mut roles = report.roles.clone();
        for instance in self.stopped.keys() {
            match instance.release {
                None => {
                    roles.remove(&instance.role);
                }
                Some(release) => {
                    if let Some(status) = roles.get_mut(&instance.role) {
                        status.releases.remove(&release);
                    }
                }
            }
        }
        for instance in self.resumed.keys() {
            let Some(status) = roles.get_mut(&instance.role) else {
                continue;
            };
            let phase = match instance.release {
                None => status.own.as_mut(),
                Some(release) => status.releases.get_mut(&release),
            };
            if let Some(phase) = phase.filter(|phase| phase.is_ready()) {
                *phase = Phase::Draining;
            }
        }
        roles
    }
}

/// What a level asks of an instance.
fn duty(body: &LevelBody, instance: &Instance) -> Option<Duty> {
    let role = body.roles.get(&instance.role)?;
    Some(match instance.release {
        None => role.duty,
        Some(release) => role.releases.get(&release)?.duty,
    })
}

/// The manager half of one service.
pub struct ManagerCore {
    service_type: &'static dyn ServiceType,
    patience: Patience,
    epoch: Epoch,
    level: Option<ServiceLevel>,
    instance_types: Vec<InstanceType>,
    nodes: BTreeMap<NodeNumber, NodeMemory>,
    /// When the first level came, to bound the wait for agents.
    begun: Option<Duration>,
    /// Every node that was up has been heard of once, or waited for in vain.
    heard: bool,
    exposure: Exposure,
    let_go: BTreeMap<Instance, Duration>,
    /// The release that people were last led to.
    shown: Option<ReleaseNumber>,
    /// Since when something fails under the wish of this generation.
    failing: Option<(Generation, Duration)>,
    last_report: Option<ServiceReport>,
    status: ServiceStatus,
}

impl ManagerCore {
    pub fn new(service_type: &'static dyn ServiceType) -> Self {
        Self::with_patience(service_type, Patience::default())
    }

    pub fn with_patience(service_type: &'static dyn ServiceType, patience: Patience) -> Self {
        Self {
            service_type,
            patience,
            epoch: Epoch(0),
            level: None,
            instance_types: Vec::new(),
            nodes: BTreeMap::new(),
            begun: None,
            heard: false,
            exposure: Exposure::default(),
            let_go: BTreeMap::new(),
            shown: None,
            failing: None,
            last_report: None,
            status: ServiceStatus::default(),
        }
    }

    pub fn service_type(&self) -> &'static dyn ServiceType {
        self.service_type
    }

    /// The Director's last word.
    pub fn level(&self) -> Option<&ServiceLevel> {
        self.level.as_ref()
    }

    /// The last status that was worked out.
    pub fn status(&self) -> &ServiceStatus {
        &self.status
    }

    /// Nodes with a ready instance of a role, for commands.
    pub fn ready_nodes(&self, role: &str) -> Vec<NodeNumber> {
        self.nodes
            .iter()
            .filter(|(_, memory)| memory.connected)
            .filter(|(_, memory)| {
                memory
                    .report
                    .as_ref()
                    .and_then(|r| r.roles.get(role))
                    .is_some_and(|status| {
                        status.own.as_ref().is_some_and(Phase::is_ready)
                            || status.releases.values().any(Phase::is_ready)
                    })
            })
            .map(|(number, _)| *number)
            .collect()
    }

    /// Takes an event in and says what follows from it.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match event {
            Event::Reached => {
                self.listen_again(now);
                return Vec::new();
            }
            Event::Level {
                level,
                epoch,
                instance_types,
            } => {
                if epoch < self.epoch {
                    return Vec::new();
                }
                if epoch > self.epoch {
                    self.exposure = Exposure::default();
                }
                self.epoch = epoch;
                self.instance_types = instance_types;
                self.begun.get_or_insert(now);
                let known: BTreeSet<NodeNumber> = level.nodes.iter().map(|n| n.number).collect();
                self.nodes.retain(|number, _| known.contains(number));
                for record in level.nodes.iter().filter(|n| n.state == NodeState::Up) {
                    let memory = self.memory(record.number);
                    if !memory.connected {
                        memory.silent_since.get_or_insert(now);
                    }
                }
                self.level = Some(*level);
            }
            Event::AgentConnected { node } => {
                let memory = self.memory(node);
                memory.connected = true;
                memory.silent_since = None;
                // Whatever was sent on an earlier stream may never have arrived.
                memory.sent = None;
            }
            Event::AgentReport { node, report } => {
                let memory = self.memory(node);
                let older = memory
                    .report
                    .as_ref()
                    .is_some_and(|r| r.boot == report.boot && r.sequence >= report.sequence);
                if older {
                    return Vec::new();
                }
                if let Some(level) = &report.level {
                    memory.seen = memory.seen.max(level.version);
                    memory.stopped.retain(|_, since| *since > level.version);
                }
                memory.resumed.retain(|instance, since| {
                    let applied = report.applied_roles.get(&instance.role);
                    applied.is_none_or(|applied| applied < since)
                });
                memory.report = Some(*report);
            }
            Event::AgentRefused { node, seen } => {
                let memory = self.memory(node);
                memory.seen = memory.seen.max(seen);
                memory.sent = None;
            }
            Event::AgentLost { node } => {
                let memory = self.memory(node);
                memory.connected = false;
                memory.silent_since.get_or_insert(now);
            }
            Event::Tick => {}
        }
        self.replan(now)
    }

    /// Agents ask the Director where their manager is: while it was away none could find a manager
    /// that was new. Those that never spoke to this one are waited for as if it had just begun.
    fn listen_again(&mut self, now: Duration) {
        let records = self.level.iter().flat_map(|level| &level.nodes);
        let up: BTreeSet<NodeNumber> = records
            .filter(|node| node.state == NodeState::Up)
            .map(|node| node.number)
            .collect();
        let mut unheard = self.nodes.iter_mut().filter(|(number, memory)| {
            up.contains(number) && !memory.connected && memory.report.is_none()
        });
        let mut any = false;
        for (_, memory) in &mut unheard {
            memory.silent_since = Some(now);
            any = true;
        }
        if any {
            (self.begun, self.heard) = (Some(now), false);
        }
    }

    fn memory(&mut self, node: NodeNumber) -> &mut NodeMemory {
        self.nodes.entry(node).or_default()
    }

    fn replan(&mut self, now: Duration) -> Vec<Effect> {
        let Some(level) = self.level.clone() else {
            return Vec::new();
        };
        if self.outranked() {
            // A newer manager is at work; whoever obeys it is none of our business.
            return Vec::new();
        }
        let nodes = self.observed(&level, now);
        if !self.heard && !self.have_heard(&level, &nodes, now) {
            let mut status = self.status.clone();
            status.generation = level.spec.generation;
            status.reached = false;
            status.waiting = vec![Waiting {
                kind: "hearing".to_owned(),
                text: "the manager listens to its nodes first".to_owned(),
            }];
            status.nodes = summaries(&nodes, &self.nodes);
            let report = ServiceReport {
                service: level.spec.service.clone(),
                nodes: BTreeMap::new(),
                exposure: self.exposure.clone(),
                status,
                requested: BTreeMap::new(),
                leaving: BTreeMap::new(),
                ends: self.ends(&level, now),
            };
            return self.report(report);
        }
        self.heard = true;
        if self.exposure.version == LevelVersion::default() {
            // A manager without memory goes on counting where the edge is.
            let edge = level.edge.applied;
            let generation = if edge.epoch == self.epoch {
                edge.generation
            } else {
                Generation(0)
            };
            self.exposure.version = LevelVersion {
                epoch: self.epoch,
                generation,
            };
        }
        let bound = Duration::from_secs(u64::from(level.spec.drain_seconds));
        let overdue: BTreeSet<Instance> = self
            .let_go
            .iter()
            .filter(|(_, since)| now.saturating_sub(**since) >= bound)
            .map(|(i, _)| i.clone())
            .collect();
        let input = Input {
            service_type: self.service_type,
            spec: &level.spec,
            instance_types: &self.instance_types,
            nodes: &nodes,
            next_node: level.next_node,
            exposure: &self.exposure,
            edge: &level.edge,
            shown: self.shown.or(level.shown),
            overdue: &overdue,
        };
        let mut plan = plan::plan(&input);
        let broken = lint::check(&input, &plan);
        if let Some(first) = broken.first() {
            // Doing nothing is better than doing harm; the text reaches people and logs.
            plan = Plan {
                failed: Some(format!("the plan was refused by its own check: {first}")),
                waiting: plan.waiting,
                ..Plan::default()
            };
        } else {
            self.shown = plan.serving.or(self.shown);
            self.let_go
                .retain(|instance, _| plan.letting_go.contains(instance));
            for instance in &plan.letting_go {
                self.let_go.entry(instance.clone()).or_insert(now);
            }
        }
        let failed = self.lasting(level.spec.generation, plan.failed.take(), now);
        let ends = self.ends(&level, now);
        self.carry_out(&level, &nodes, plan, failed, ends)
    }

    /// Ends of processes that should be told now.
    fn ends(&mut self, level: &ServiceLevel, now: Duration) -> Vec<EndsToTell> {
        let mut all = Vec::new();
        for record in &level.nodes {
            let Some(memory) = self.nodes.get_mut(&record.number) else {
                continue;
            };
            let Some(report) = &memory.report else {
                continue;
            };
            let ends = memory.teller.tell(now, &report.ends, &record.told);
            all.extend(ends.into_iter().map(|ends| EndsToTell {
                node: record.number,
                ends,
            }));
        }
        all
    }

    /// A failure that has lasted long enough to be this wish's own.
    fn lasting(
        &mut self,
        generation: Generation,
        failed: Option<String>,
        now: Duration,
    ) -> Option<String> {
        let Some(reason) = failed else {
            self.failing = None;
            return None;
        };
        let since = match self.failing {
            Some((known, since)) if known == generation => since,
            _ => now,
        };
        self.failing = Some((generation, since));
        (now.saturating_sub(since) >= self.patience.failure).then_some(reason)
    }

    /// A node obeys a higher epoch than ours.
    fn outranked(&self) -> bool {
        self.nodes
            .values()
            .any(|memory| memory.seen.epoch > self.epoch)
    }

    fn have_heard(
        &self,
        level: &ServiceLevel,
        nodes: &BTreeMap<NodeNumber, Node>,
        now: Duration,
    ) -> bool {
        let waited = self
            .begun
            .is_some_and(|begun| now.saturating_sub(begun) >= self.patience.takeover);
        waited
            || level
                .nodes
                .iter()
                .filter(|n| n.state == NodeState::Up)
                .all(|n| {
                    nodes
                        .get(&n.number)
                        .is_some_and(|node| node.presence == Presence::Connected)
                })
    }

    fn presence(&self, memory: &NodeMemory, now: Duration) -> Presence {
        // One that never spoke to this manager may still be looking for it.
        let bound = if memory.report.is_some() {
            self.patience.silence
        } else {
            self.patience.takeover
        };
        if memory.connected {
            return if memory.report.is_some() {
                Presence::Connected
            } else {
                Presence::Unheard
            };
        }
        match memory.silent_since {
            Some(since) if now.saturating_sub(since) >= bound => Presence::Lost,
            _ if memory.report.is_some() => Presence::Connected,
            _ => Presence::Unheard,
        }
    }

    fn observed(&self, level: &ServiceLevel, now: Duration) -> BTreeMap<NodeNumber, Node> {
        let mut nodes = self.each_observed(level, now);
        // When many fall silent at once the fault is rather here or in the network: only a few
        // are given up at a time, the others are left as they are.
        let up = nodes
            .values()
            .filter(|n| n.record.state == NodeState::Up)
            .count();
        let lost = nodes
            .values()
            .filter(|n| n.record.state == NodeState::Up && n.presence == Presence::Lost)
            .count();
        if lost > 1 && lost * 2 > up {
            let budget = (up / 4).max(1);
            for node in nodes
                .values_mut()
                .filter(|n| n.presence == Presence::Lost)
                .skip(budget)
            {
                node.presence = Presence::Unheard;
            }
        }
        nodes
    }

    fn each_observed(&self, level: &ServiceLevel, now: Duration) -> BTreeMap<NodeNumber, Node> {
        level
            .nodes
            .iter()
            .map(|record| {
                let memory = self.nodes.get(&record.number);
                let presence =
                    memory.map_or(Presence::Unheard, |memory| self.presence(memory, now));
                let report = memory.and_then(|m| m.report.as_ref());
                let sent = memory.and_then(|m| m.sent.as_ref());
                let known = sent.or(report.and_then(|r| r.level.as_ref()));
                let version = known.map(|l| l.version);
                let obeyed = report.and_then(|r| r.level.as_ref()).map(|l| l.version);
                let node = Node {
                    record: record.clone(),
                    presence,
                    suspected: presence == Presence::Lost,
                    level: known.map(|l| l.body.clone()).unwrap_or_default(),
                    // One that was never sent anything has carried out exactly that.
                    confirmed: report.is_some_and(|r| r.applied == version) && obeyed == version,
                    obeys: report.is_some() && obeyed == version,
                    confirmed_roles: report
                        .filter(|_| obeyed == version)
                        .map(|r| {
                            r.applied_roles
                                .iter()
                                .filter(|(_, v)| Some(**v) == version)
                                .map(|(role, _)| role.clone())
                                .collect()
                        })
                        .unwrap_or_default(),
                    roles: memory.map(NodeMemory::roles).unwrap_or_default(),
                };
                (record.number, node)
            })
            .collect()
    }

    fn carry_out(
        &mut self,
        level: &ServiceLevel,
        nodes: &BTreeMap<NodeNumber, Node>,
        mut plan: Plan,
        failed: Option<String>,
        ends: Vec<EndsToTell>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let epoch = self.epoch;
        let silence = LeaveReason::Silent {
            seconds: self.patience.silence.as_secs(),
        };
        let service_type = self.service_type;
        let silent = |reason: &&mut LeaveReason| matches!(reason, LeaveReason::Silent { .. });
        plan.leaving
            .values_mut()
            .filter(silent)
            .for_each(|reason| *reason = silence);
        for (number, body) in plan.levels {
            let memory = self.memory(number);
            let known = memory
                .sent
                .as_ref()
                .or(memory.report.as_ref().and_then(|r| r.level.as_ref()));
            // Levels in between may have been lost: then only another one can show that its node is past
            // them.
            let current = known.is_some_and(|l| {
                let mut told = memory.stopped.values().chain(memory.resumed.values());
                l.body == body
                    && l.version.epoch == epoch
                    && l.version >= memory.seen
                    && told.all(|since| *since <= l.version)
            });
            let nothing_yet = known.is_none() && body.roles.is_empty();
            if current || nothing_yet || !memory.connected {
                continue;
            }
            let highest = memory.counted.max(memory.seen);
            let generation = if highest.epoch == epoch {
                highest.generation.next()
            } else {
                Generation(1)
            };
            let version = LevelVersion { epoch, generation };
            let asked: BTreeSet<Instance> = plan::instances(service_type, number, &body).collect();
            let stopped: Vec<(Instance, LevelVersion)> = known
                .into_iter()
                .flat_map(|level| plan::instances(service_type, number, &level.body))
                .filter(|instance| !asked.contains(instance))
                .map(|instance| (instance, version))
                .collect();
            let serves = |instance: &Instance| duty(&body, instance) == Some(Duty::Serve);
            let resumed: Vec<(Instance, LevelVersion)> = known
                .into_iter()
                .flat_map(|level| {
                    let before = plan::instances(service_type, number, &level.body);
                    before.filter(|one| duty(&level.body, one) == Some(Duty::Drain))
                })
                .filter(serves)
                .map(|instance| (instance, version))
                .collect();
            let still: BTreeSet<Instance> =
                asked.iter().filter(|one| serves(one)).cloned().collect();
            let sent = Level {
                version,
                service: level.spec.service.clone(),
                service_type: level.spec.service_type.clone(),
                node: number,
                node_name: crate::node_name(&level.spec, number),
                body,
            };
            let memory = self.memory(number);
            memory.stopped.extend(stopped);
            memory
                .resumed
                .retain(|instance, _| still.contains(instance));
            memory.resumed.extend(resumed);
            memory.counted = version;
            memory.sent = Some(sent.clone());
            effects.push(Effect::SendLevel {
                node: number,
                level: Box::new(sent),
            });
        }
        if plan.exposed != self.exposure.upstreams {
            self.exposure.version.generation = self.exposure.version.generation.next();
            self.exposure.upstreams = plan.exposed;
        }
        let status = ServiceStatus {
            generation: level.spec.generation,
            reached: plan.reached
                && effects.is_empty()
                && level.edge.applied >= self.exposure.version_if_used(),
            failed,
            steps: plan.steps,
            waiting: plan.waiting,
            nodes: summaries(nodes, &self.nodes),
            serving: plan.serving,
        };
        let report = ServiceReport {
            service: level.spec.service.clone(),
            nodes: plan.nodes,
            exposure: self.exposure.clone(),
            status,
            requested: plan.requested,
            leaving: plan.leaving,
            ends,
        };
        effects.extend(self.report(report));
        effects
    }

    fn report(&mut self, report: ServiceReport) -> Vec<Effect> {
        self.status = report.status.clone();
        if self.last_report.as_ref() == Some(&report) {
            return Vec::new();
        }
        self.last_report = Some(report.clone());
        vec![Effect::Report(Box::new(report))]
    }

    /// The last report, whole, for a stream that has just opened.
    pub fn last_report(&self) -> Option<&ServiceReport> {
        self.last_report.as_ref()
    }

    /// Wishes of the last report.
    pub fn wishes(&self) -> BTreeMap<NodeNumber, NodeWish> {
        self.last_report
            .as_ref()
            .map(|r| r.nodes.clone())
            .unwrap_or_default()
    }
}

trait VersionIfUsed {
    fn version_if_used(&self) -> LevelVersion;
}

impl VersionIfUsed for Exposure {
    /// A service that never exposed anything has nothing for the edge to confirm.
    fn version_if_used(&self) -> LevelVersion {
        if self.upstreams.is_empty() && self.version.generation == Generation(0) {
            LevelVersion::default()
        } else {
            self.version
        }
    }
}

impl NodeMemory {
    /// Its agent spoke to this manager and does not any more.
    fn hung_up(&self) -> bool {
        !self.connected && self.report.is_some()
    }
}

fn summaries(
    nodes: &BTreeMap<NodeNumber, Node>,
    memory: &BTreeMap<NodeNumber, NodeMemory>,
) -> Vec<NodeSummary> {
    nodes
        .iter()
        .map(|(number, node)| {
            let state = match (node.record.state, node.presence) {
                (NodeState::Requested, _) => "requested",
                (NodeState::Booting, _) => "booting",
                (NodeState::Up, Presence::Lost) => "lost",
                (NodeState::Up, _) if memory.get(number).is_some_and(NodeMemory::hung_up) => SILENT,
                (NodeState::Up, _) => "up",
                (NodeState::Dead, _) => "dead",
                (NodeState::Releasing, _) => "releasing",
            };
            let summary = |role: &str, release, phase: Option<&Phase>| {
                let (phase, reason) = match phase {
                    None => ("unknown", None),
                    Some(Phase::Starting) => ("starting", None),
                    Some(Phase::Ready) => ("ready", None),
                    Some(Phase::Draining) => ("draining", None),
                    Some(Phase::Drained) => ("drained", None),
                    Some(Phase::Failed(reason)) => ("failed", Some(reason.clone())),
                };
                RoleSummary {
                    role: role.to_owned(),
                    release,
                    phase: phase.to_owned(),
                    reason,
                }
            };
            let mut roles = Vec::new();
            for role in node.level.roles.keys() {
                let status = node.roles.get(role);
                let own = status.and_then(|s| s.own.as_ref());
                let releases = status.map(|s| &s.releases);
                if own.is_some() || releases.is_none_or(BTreeMap::is_empty) {
                    roles.push(summary(role, None, own));
                }
                for (release, phase) in releases.into_iter().flatten() {
                    roles.push(summary(role, Some(*release), Some(phase)));
                }
            }
            let health: NodeHealth = memory
                .get(number)
                .and_then(|m| m.report.as_ref())
                .map(|r| r.node.clone())
                .unwrap_or_default();
            NodeSummary {
                number: *number,
                state: state.to_owned(),
                roles,
                health,
            }
        })
        .collect()
}
