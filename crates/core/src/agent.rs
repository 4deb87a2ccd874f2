//! The agent, sans I/O: which level it obeys, which roles are to be brought to it or stopped,
//! when something that fails is tried again, and what is reported. Its shell starts processes,
//! writes files and talks to the manager.

use conpaas_model::ends::ProcessEnds;
use conpaas_model::ids::{NodeNumber, ReleaseNumber, ServiceId};
use conpaas_model::level::{EndpointLevel, Instance, Level, LevelVersion, RoleLevel};
use conpaas_model::spec::RoleName;
use conpaas_model::status::{AgentReport, InUse, NodeHealth, Phase, RoleStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What happens to an agent.
#[derive(Clone, Debug)]
pub enum Event {
    /// A manager (or the Director) offers a level.
    Offered(Level),
    /// Role processes were found that an earlier agent of this machine started.
    Found(BTreeSet<RoleName>),
    /// A role was brought to what this version wants of it.
    Applied {
        role: RoleName,
        version: LevelVersion,
    },
    /// What is the case in a role, by a look that was taken for this version.
    Observed {
        role: RoleName,
        version: LevelVersion,
        status: RoleStatus,
    },
    /// Nothing is left of a role that was to be stopped.
    Stopped { role: RoleName },
    /// Processes that have ended unasked, as init counts them.
    Ended(Vec<ProcessEnds>),
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep the level on disk before anything is done for it: an agent that restarts must not
    /// fall for an older one.
    Keep(Level),
    /// Lead the consumers of this node so, before any role is told of it.
    Lead(BTreeMap<String, EndpointLevel>),
    /// Bring a role to this, until told otherwise.
    Run {
        role: RoleName,
        version: LevelVersion,
        level: RoleLevel,
    },
    /// Stop a role, until it is reported stopped or told otherwise.
    Stop { role: RoleName },
    /// Tell whoever offered a level that a newer one is obeyed.
    Refuse {
        refused: LevelVersion,
        seen: LevelVersion,
    },
    /// The level is for another node: its sender is confused; nothing was changed.
    NotMine {
        service: ServiceId,
        node: NodeNumber,
    },
    /// What is reported has changed.
    Report,
}

/// By endpoint: to whom how many connections through it are open.
pub type Held = BTreeMap<String, BTreeMap<Instance, u64>>;

/// The agent of one node.
#[derive(Debug)]
pub struct AgentCore {
    service: ServiceId,
    node: NodeNumber,
    boot: String,
    version: String,
    sequence: u64,
    level: Option<Level>,
    /// Roles carried out, and for which version.
    applied_roles: BTreeMap<RoleName, LevelVersion>,
    stopping: BTreeSet<RoleName>,
    applied: Option<LevelVersion>,
    statuses: BTreeMap<RoleName, RoleStatus>,
    /// Since which level each role, and each of its releases, is asked for without a break. A
    /// look from before tells of a life that is over.
    since: BTreeMap<(RoleName, Option<ReleaseNumber>), LevelVersion>,
    /// The endpoints that were last asked for.
    led: Option<BTreeMap<String, EndpointLevel>>,
    ends: Vec<ProcessEnds>,
}

impl AgentCore {
    /// The agent of a node with nothing known yet. `boot` is random per agent process,
    /// `version` is ConPaaS' own.
    pub fn new(service: ServiceId, node: NodeNumber, boot: String, version: String) -> Self {
        Self {
            service,
            node,
            boot,
            version,
            sequence: 0,
            level: None,
            applied_roles: BTreeMap::new(),
            stopping: BTreeSet::new(),
            applied: None,
            statuses: BTreeMap::new(),
            since: BTreeMap::new(),
            led: None,
            ends: Vec::new(),
        }
    }

    /// The level that is obeyed.
    pub fn level(&self) -> Option<&Level> {
        self.level.as_ref()
    }

    /// The highest version seen.
    pub fn seen(&self) -> Option<LevelVersion> {
        self.level.as_ref().map(|level| level.version)
    }

    /// The last level that was carried out completely.
    pub fn applied(&self) -> Option<LevelVersion> {
        self.applied
    }

    /// Takes a level up again that an earlier agent of this machine kept.
    pub fn resume(&mut self, kept: Level) -> Vec<Effect> {
        if self.level.is_some() || !self.is_mine(&kept) {
            return Vec::new();
        }
        self.obey(kept)
    }

    /// Takes an event in; what follows from it.
    pub fn handle(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Offered(level) => self.offered(level),
            Event::Found(roles) => {
                let wanted = self.level.as_ref().map(|level| &level.body.roles);
                let surplus: Vec<RoleName> = roles
                    .into_iter()
                    .filter(|role| !wanted.is_some_and(|wanted| wanted.contains_key(role)))
                    .collect();
                surplus
                    .into_iter()
                    .filter_map(|role| self.stop(role))
                    .collect()
            }
            Event::Applied { role, version } => {
                // A late word about a level gone by is none about this one.
                if self.seen() != Some(version)
                    || self.applied_roles.insert(role, version) == Some(version)
                {
                    return Vec::new();
                }
                self.settle();
                vec![Effect::Report]
            }
            Event::Observed {
                role,
                version,
                mut status,
            } => {
                let lives = |release| {
                    let since = self.since.get(&(role.clone(), release));
                    since.is_some_and(|since| *since <= version)
                };
                if !lives(None) {
                    return Vec::new();
                }
                status.releases.retain(|release, _| lives(Some(*release)));
                if self.statuses.get(&role) == Some(&status) {
                    return Vec::new();
                }
                self.statuses.insert(role, status);
                vec![Effect::Report]
            }
            Event::Stopped { role } => {
                if !self.stopping.remove(&role) {
                    return Vec::new();
                }
                self.applied_roles.remove(&role);
                self.settle();
                vec![Effect::Report]
            }
            Event::Ended(ends) => {
                if self.ends == ends {
                    return Vec::new();
                }
                self.ends = ends;
                vec![Effect::Report]
            }
        }
    }

    /// Everything the agent has to say; each has a higher sequence than the one before. `held`
    /// is what the connections through each endpoint hold on to: its users use that, too.
    pub fn report(&mut self, node: NodeHealth, held: &Held) -> AgentReport {
        self.sequence = self.sequence.saturating_add(1);
        let mut roles = self.statuses.clone();
        let endpoints = self.level.iter().flat_map(|level| &level.body.endpoints);
        for (name, endpoint) in endpoints {
            // Everyone a connection may be led to is in use, and whoever still has one.
            let mut used: BTreeMap<Instance, u64> = endpoint
                .targets
                .iter()
                .map(|target| (target.instance(), 0))
                .collect();
            used.extend(
                held.get(name)
                    .into_iter()
                    .flatten()
                    .map(|(i, n)| (i.clone(), *n)),
            );
            for (instance, connections) in used {
                for (_, status) in roles
                    .iter_mut()
                    .filter(|(role, _)| endpoint.users.contains(*role))
                {
                    status.using.push(InUse {
                        instance: instance.clone(),
                        in_flight: connections,
                    });
                }
            }
        }
        AgentReport {
            boot: self.boot.clone(),
            sequence: self.sequence,
            version: self.version.clone(),
            level: self.level.clone(),
            applied: self.applied,
            applied_roles: self.applied_roles.clone(),
            roles,
            node,
            ends: self.ends.clone(),
        }
    }

    fn is_mine(&self, level: &Level) -> bool {
        level.service == self.service && level.node == self.node
    }

    fn offered(&mut self, level: Level) -> Vec<Effect> {
        if !self.is_mine(&level) {
            return vec![Effect::NotMine {
                service: level.service,
                node: level.node,
            }];
        }
        if let Some(held) = &self.level {
            // The same version with other words is no newer word: two managers of one epoch
            // would otherwise take turns.
            if *held == level {
                return Vec::new();
            }
            if level.version <= held.version {
                return vec![Effect::Refuse {
                    refused: level.version,
                    seen: held.version,
                }];
            }
        }
        let mut effects = vec![Effect::Keep(level.clone())];
        effects.extend(self.obey(level));
        effects
    }

    fn obey(&mut self, level: Level) -> Vec<Effect> {
        let mut effects = Vec::new();
        let before = self
            .level
            .take()
            .map(|level| level.body.roles)
            .unwrap_or_default();
        let gone: Vec<RoleName> = before
            .into_keys()
            .filter(|role| !level.body.roles.contains_key(role))
            .collect();
        let led = self.led.replace(level.body.endpoints.clone());
        if led.unwrap_or_default() != level.body.endpoints {
            effects.push(Effect::Lead(level.body.endpoints.clone()));
        }
        self.forget_what_ends(&level);
        for (role, wanted) in &level.body.roles {
            self.stopping.remove(role);
            self.statuses
                .entry(role.clone())
                .or_insert_with(|| RoleStatus {
                    own: Some(Phase::Starting),
                    ..Default::default()
                });
            effects.push(Effect::Run {
                role: role.clone(),
                version: level.version,
                level: wanted.clone(),
            });
        }
        self.level = Some(level);
        effects.extend(gone.into_iter().filter_map(|role| self.stop(role)));
        self.settle();
        effects.push(Effect::Report);
        effects
    }

    /// What a level does not ask for is over from now on, however long it takes to stop: what was
    /// seen of it is not to be taken for the next life of that name.
    fn forget_what_ends(&mut self, level: &Level) {
        let roles = level.body.roles.iter();
        let asked = roles.flat_map(|(role, wanted)| {
            let releases = wanted.releases.keys().map(|number| Some(*number));
            std::iter::once(None)
                .chain(releases)
                .map(|release| (role.clone(), release))
        });
        let before = std::mem::take(&mut self.since);
        self.since = asked
            .map(|key| {
                let since = before.get(&key).copied().unwrap_or(level.version);
                (key, since)
            })
            .collect();
        let since = &self.since;
        self.statuses.retain(|role, status| {
            let asked = |release| since.contains_key(&(role.clone(), release));
            status.releases.retain(|release, _| asked(Some(*release)));
            asked(None)
        });
    }

    fn stop(&mut self, role: RoleName) -> Option<Effect> {
        self.stopping
            .insert(role.clone())
            .then_some(Effect::Stop { role })
    }

    /// Notes when a level is carried out completely.
    fn settle(&mut self) {
        let Some(level) = &self.level else { return };
        let done = |role: &RoleName| self.applied_roles.get(role) == Some(&level.version);
        if self.stopping.is_empty() && level.body.roles.keys().all(done) {
            self.applied = Some(level.version);
        }
    }
}

/// When something that fails is tried again: at once the first time, then after pauses that
/// double up to a cap, and as if nothing had been once it has been well for a while.
#[derive(Clone, Debug)]
pub struct RestartPacer {
    first: Duration,
    cap: Duration,
    well: Duration,
    failures: u32,
    started: Option<Duration>,
    not_before: Duration,
}

impl RestartPacer {
    /// Pauses from `first` to `cap`; whatever lasts for `well` has not failed.
    pub const fn new(first: Duration, cap: Duration, well: Duration) -> Self {
        Self {
            first,
            cap,
            well,
            failures: 0,
            started: None,
            not_before: Duration::ZERO,
        }
    }

    /// It starts now.
    pub fn started(&mut self, now: Duration) {
        self.started = Some(now);
    }

    /// It has failed now; counted once per start.
    pub fn failed(&mut self, now: Duration) {
        let Some(started) = self.started.take() else {
            return;
        };
        if now.saturating_sub(started) >= self.well {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            n => self
                .first
                .saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX))
                .min(self.cap),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.saturating_add(pause);
    }

    /// How long to wait still; nothing when it may start now.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        let left = self.not_before.saturating_sub(now);
        (!left.is_zero()).then_some(left)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Lays a failed `apply` over what was observed: whatever has not come up has failed for that
/// reason; what works, works on, and the reason is told as the fact `trouble`.
pub fn taint(status: &mut RoleStatus, level: &RoleLevel, reason: &str) {
    let failed = || Phase::Failed(reason.to_owned());
    let mut told = false;
    for number in level.releases.keys() {
        let phase = status.releases.entry(*number).or_insert(Phase::Starting);
        match phase {
            Phase::Starting => (*phase, told) = (failed(), true),
            Phase::Failed(_) => told = true,
            _ => {}
        }
    }
    match &status.own {
        Some(Phase::Starting) => (status.own, told) = (Some(failed()), true),
        None if level.releases.is_empty() => (status.own, told) = (Some(failed()), true),
        Some(Phase::Failed(_)) => told = true,
        _ => {}
    }
    if !told {
        status.facts.insert("trouble".to_owned(), reason.into());
    }
}

/// The status of a role that cannot even be observed.
pub fn unobservable(level: &RoleLevel, reason: &str) -> RoleStatus {
    let failed = || Phase::Failed(reason.to_owned());
    RoleStatus {
        own: Some(failed()),
        releases: level
            .releases
            .keys()
            .map(|number| (*number, failed()))
            .collect(),
        ..RoleStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::ids::{Epoch, Generation};
    use conpaas_model::level::{Duty, LevelBody, ReleaseLevel};

    fn service() -> ServiceId {
        "svc-a".parse().unwrap()
    }

    fn core() -> AgentCore {
        AgentCore::new(service(), NodeNumber(1), "boot".into(), "1".into())
    }

    fn version(epoch: u64, generation: u64) -> LevelVersion {
        LevelVersion {
            epoch: Epoch(epoch),
            generation: Generation(generation),
        }
    }

    fn role() -> RoleLevel {
        RoleLevel {
            duty: Duty::Serve,
            config: serde_json::Value::Null,
            releases: BTreeMap::new(),
            serve: None,
            preview: None,
            providers: vec![],
            leads: BTreeMap::new(),
        }
    }

    fn level(epoch: u64, generation: u64, roles: &[&str]) -> Level {
        Level {
            version: version(epoch, generation),
            service: service(),
            service_type: "t".into(),
            node: NodeNumber(1),
            node_name: "t-1".into(),
            body: LevelBody {
                endpoints: BTreeMap::new(),
                roles: roles
                    .iter()
                    .map(|name| (name.to_string(), role()))
                    .collect(),
            },
        }
    }

    fn refused(effects: &[Effect]) -> bool {
        matches!(effects, [Effect::Refuse { .. }])
    }

    #[test]
    fn older_levels_are_refused_and_newer_ones_obeyed() {
        let mut core = core();
        let effects = core.handle(Event::Offered(level(2, 5, &["a"])));
        assert!(matches!(effects[0], Effect::Keep(_)));
        assert!(matches!(&effects[1], Effect::Run { role, .. } if role == "a"));
        for (epoch, generation) in [(2, 4), (1, 9), (1, 5), (0, 0)] {
            let effects = core.handle(Event::Offered(level(epoch, generation, &["b"])));
            assert_eq!(
                effects,
                [Effect::Refuse {
                    refused: version(epoch, generation),
                    seen: version(2, 5)
                }]
            );
        }
        assert!(!refused(&core.handle(Event::Offered(level(3, 1, &["a"])))));
        assert_eq!(core.seen(), Some(version(3, 1)));
    }

    #[test]
    fn the_same_again_changes_nothing_but_other_words_are_refused() {
        let mut core = core();
        core.handle(Event::Offered(level(1, 1, &["a"])));
        assert!(core.handle(Event::Offered(level(1, 1, &["a"]))).is_empty());
        assert!(refused(&core.handle(Event::Offered(level(1, 1, &["b"])))));
    }

    #[test]
    fn levels_of_other_nodes_change_nothing() {
        let mut core = core();
        let other = Level {
            node: NodeNumber(2),
            ..level(9, 9, &["a"])
        };
        assert!(matches!(
            core.handle(Event::Offered(other))[..],
            [Effect::NotMine { .. }]
        ));
        assert_eq!(core.seen(), None);
    }

    #[test]
    fn a_level_is_applied_when_all_roles_are_and_none_is_left_over() {
        let mut core = core();
        core.handle(Event::Offered(level(1, 1, &["a", "b"])));
        let applied = |role: &str, v| Event::Applied {
            role: role.into(),
            version: v,
        };
        assert_eq!(core.handle(applied("a", version(1, 1))), [Effect::Report]);
        let report = core.report(NodeHealth::default(), &Held::new());
        assert_eq!((report.applied, report.applied_roles.len()), (None, 1));
        assert_eq!(core.handle(applied("b", version(1, 1))), [Effect::Report]);
        assert_eq!(
            core.report(NodeHealth::default(), &Held::new()).applied,
            Some(version(1, 1))
        );

        let effects = core.handle(Event::Offered(level(1, 2, &["a"])));
        assert!(effects.contains(&Effect::Stop { role: "b".into() }));
        // A late word about the version before does not count.
        core.handle(applied("a", version(1, 1)));
        core.handle(Event::Stopped { role: "b".into() });
        assert_eq!(
            core.report(NodeHealth::default(), &Held::new()).applied,
            Some(version(1, 1))
        );
        core.handle(applied("a", version(1, 2)));
        let report = core.report(NodeHealth::default(), &Held::new());
        assert_eq!(report.applied, Some(version(1, 2)));
        assert!(!report.roles.contains_key("b"));
        assert_eq!(report.sequence, 4);
    }

    #[test]
    fn a_role_wanted_again_while_it_stops_is_not_waited_for() {
        let mut core = core();
        core.handle(Event::Offered(level(1, 1, &["a"])));
        core.handle(Event::Offered(level(1, 2, &[])));
        let effects = core.handle(Event::Offered(level(1, 3, &["a"])));
        assert!(effects.iter().any(|e| matches!(e, Effect::Run { .. })));
        assert!(core.handle(Event::Stopped { role: "a".into() }).is_empty());
        core.handle(Event::Applied {
            role: "a".into(),
            version: version(1, 3),
        });
        assert_eq!(
            core.report(NodeHealth::default(), &Held::new()).applied,
            Some(version(1, 3))
        );
    }

    #[test]
    fn a_look_from_an_earlier_life_is_none_at_this_one() {
        let ready = |core: &mut AgentCore, version| {
            let mut status = RoleStatus {
                own: Some(Phase::Ready),
                ..Default::default()
            };
            status.releases.insert(ReleaseNumber(1), Phase::Ready);
            core.handle(Event::Observed {
                role: "a".into(),
                version,
                status,
            });
        };
        let with_release = |generation| {
            let mut level = level(1, generation, &["a"]);
            let release = ReleaseLevel {
                duty: Duty::Serve,
                port: 1,
                code: None,
                config: serde_json::Value::Null,
                environment: Default::default(),
            };
            let role = level.body.roles.get_mut("a").unwrap();
            role.releases.insert(ReleaseNumber(1), release);
            level
        };
        let said = |core: &mut AgentCore| {
            let report = core.report(NodeHealth::default(), &Held::new());
            report.roles.get("a").cloned()
        };
        let mut core = core();
        core.handle(Event::Offered(with_release(1)));
        ready(&mut core, version(1, 1));
        assert_eq!(said(&mut core).unwrap().releases.len(), 1);

        // The release goes and comes back.
        core.handle(Event::Offered(level(1, 2, &["a"])));
        assert!(said(&mut core).unwrap().releases.is_empty());
        core.handle(Event::Offered(with_release(3)));
        ready(&mut core, version(1, 2));
        let status = said(&mut core).unwrap();
        assert_eq!(status.own, Some(Phase::Ready), "the role went on");
        assert!(status.releases.is_empty(), "the release did not");
        ready(&mut core, version(1, 3));
        assert_eq!(said(&mut core).unwrap().releases.len(), 1);

        // The whole role does.
        core.handle(Event::Offered(level(1, 4, &[])));
        assert_eq!(said(&mut core), None);
        core.handle(Event::Offered(with_release(5)));
        ready(&mut core, version(1, 4));
        assert_eq!(said(&mut core).unwrap().own, Some(Phase::Starting));
    }

    #[test]
    fn an_empty_level_is_applied_at_once() {
        let mut core = core();
        core.handle(Event::Offered(level(1, 1, &[])));
        assert_eq!(
            core.report(NodeHealth::default(), &Held::new()).applied,
            Some(version(1, 1))
        );
    }

    #[test]
    fn what_an_earlier_agent_left_is_taken_up_or_stopped() {
        let mut core = core();
        let effects = core.resume(level(4, 4, &["a"]));
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Effect::Keep(_)))
        );
        assert!(refused(&core.handle(Event::Offered(level(4, 3, &["a"])))));
        let found = ["a".to_owned(), "old".to_owned()].into();
        assert_eq!(
            core.handle(Event::Found(found)),
            [Effect::Stop { role: "old".into() }]
        );
    }

    #[test]
    fn ends_of_processes_are_reported_when_they_change() {
        let mut core = core();
        let ends = |count| {
            vec![ProcessEnds {
                process: "a/x".into(),
                count,
                last: conpaas_model::ends::Exit::Signal(9),
            }]
        };
        assert!(core.handle(Event::Ended(vec![])).is_empty());
        assert_eq!(core.handle(Event::Ended(ends(1))), [Effect::Report]);
        assert!(core.handle(Event::Ended(ends(1))).is_empty());
        assert_eq!(core.handle(Event::Ended(ends(2))), [Effect::Report]);
        assert_eq!(
            core.report(NodeHealth::default(), &Held::new()).ends,
            ends(2)
        );
    }

    #[test]
    fn restarts_are_paced() {
        let s = Duration::from_secs;
        let mut pacer = RestartPacer::new(s(1), s(4), s(10));
        let mut now = s(100);
        let mut pauses = vec![];
        for _ in 0..5 {
            pacer.started(now);
            pacer.failed(now);
            pacer.failed(now);
            let pause = pacer.wait(now).unwrap_or_default();
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [0, 1, 2, 4, 4]);
        pacer.started(now);
        pacer.failed(now + s(10));
        assert_eq!((pacer.wait(now + s(10)), pacer.failures()), (None, 1));
    }

    #[test]
    fn a_failed_apply_taints_only_what_is_not_up() {
        let mut wanted = role();
        for number in [1, 2] {
            wanted.releases.insert(
                ReleaseNumber(number),
                ReleaseLevel {
                    duty: Duty::Serve,
                    port: 1,
                    code: None,
                    config: serde_json::Value::Null,
                    environment: Default::default(),
                },
            );
        }
        let mut status = RoleStatus::default();
        status.releases.insert(ReleaseNumber(1), Phase::Ready);
        taint(&mut status, &wanted, "broken");
        assert_eq!(status.releases[&ReleaseNumber(1)], Phase::Ready);
        assert_eq!(
            status.releases[&ReleaseNumber(2)],
            Phase::Failed("broken".into())
        );
        assert_eq!(status.own, None);

        let mut status = RoleStatus {
            own: Some(Phase::Ready),
            ..Default::default()
        };
        taint(&mut status, &role(), "broken");
        assert_eq!(status.own, Some(Phase::Ready));
        assert_eq!(status.facts["trouble"], "broken");
    }
}
