//! What really is, and the invariants that are checked the moment something is done. Each has a
//! name; what faults took is kept apart, so that only our own steps are blamed.

use crate::host::{Host, HostId, host_id};
use crate::schedule::Ms;
use crate::store::Outcome;
use crate::world::{DRAIN_SECONDS, World};
use conpaas_core::broker::NodeKey;
use conpaas_model::ids::{Epoch, Generation, MachineId, NodeNumber, ReleaseNumber};
use conpaas_model::level::{Instance, Level, LevelVersion};
use conpaas_model::protocol::Exposure;
use conpaas_model::spec::{RoleWish, RunWish};
use std::collections::{BTreeMap, BTreeSet};

/// How long ago something may have been true to be believed still.
const RECENT: Ms = 12_000;
/// Whoever serves for longer than this was surely known to.
const LONG: Ms = 3_000;

/// What was wished until some time.
pub struct Wished {
    pub until: Ms,
    pub run: RunWish,
    pub roles: BTreeMap<String, RoleWish>,
    pub active: ReleaseNumber,
}

/// What was seen to be.
#[derive(Default)]
pub struct Truth {
    /// Wishes for machines that were written down, by token.
    pub intended: BTreeSet<String>,
    /// Of which node a machine is.
    pub homes: BTreeMap<MachineId, NodeKey>,
    numbers: BTreeSet<NodeKey>,
    keys: BTreeMap<MachineId, String>,
    obeyed: BTreeMap<HostId, LevelVersion>,
    /// Which machine counted levels of an epoch.
    counted: BTreeMap<Epoch, NodeNumber>,
    /// When an instance of the application was last seen ready.
    pub last_ready: BTreeMap<Instance, Ms>,
    /// What faults took, and when.
    pub lost: Vec<(Instance, Ms)>,
    /// Whom anybody was ever led to. What nobody ever was is no capacity yet.
    led_to: BTreeSet<Instance>,
    /// Machines that a cloud once said had died, truly or not: from then on nobody is led there.
    pub declared_dead: BTreeSet<MachineId>,
    /// Every wish with when another took its place.
    pub wished: Vec<Wished>,
    /// So many looks one after the other found all at rest.
    pub quiet: u32,
    pub torn_down: bool,
    /// Somebody has gone back to an earlier wish.
    pub cancelled: bool,
}

impl World {
    /// Whether somebody may rightly take a machine for dead.
    fn suspect_now(&self, id: HostId) -> bool {
        self.hosts
            .get(&id)
            .is_none_or(|host| host.suspect_until > self.now)
    }

    /// Whether a machine was rightly declared dead.
    fn condemned(&self, id: HostId) -> bool {
        self.hosts
            .get(&id)
            .is_some_and(|host| host.suspect_until == Ms::MAX)
    }

    fn ours(&self, id: HostId) -> bool {
        self.hosts
            .get(&id)
            .is_some_and(|host| host.node.service == self.names.web)
    }

    /// What of a role was lost to faults not long ago.
    fn lost_lately(&self, role: &str) -> usize {
        let lately = |at: Ms| at + RECENT > self.now;
        let lost = self
            .truth
            .lost
            .iter()
            .filter(|(i, at)| i.role == role && lately(*at))
            .count();
        let hosts = self.people().filter(|(id, host)| {
            self.suspect_now(**id) && host.processes.keys().any(|i| i.role == role)
        });
        lost + hosts.count()
    }

    /// Machines of the application where a role serves now, beside one instance.
    fn serving(
        &self,
        role: &str,
        releases: &BTreeSet<Option<ReleaseNumber>>,
        beside: Option<&Instance>,
    ) -> usize {
        self.people()
            .filter(|(_, host)| {
                host.processes.iter().any(|(instance, process)| {
                    instance.role == role
                        && process.serves(self.now)
                        && Some(instance) != beside
                        && (instance.release.is_none() || releases.contains(&instance.release))
                })
            })
            .count()
    }

    /// Releases that count: the active one, and those that people are led to.
    fn shown_releases(&self) -> BTreeSet<Option<ReleaseNumber>> {
        let led = self
            .people()
            .flat_map(|(_, host)| host.tables.values().map(|t| t.serving));
        let active = self.web().map(|web| web.active);
        led.chain([active]).collect()
    }

    /// Processes and machines of a host are lost to a fault.
    pub fn lost_to_fault(&mut self, id: HostId) {
        if !self.ours(id) {
            return;
        }
        let now = self.now;
        let Some(host) = self.hosts.get(&id) else {
            return;
        };
        for (instance, process) in &host.processes {
            if process.ready_at <= now {
                self.truth.last_ready.insert(instance.clone(), now);
            }
            self.truth.lost.push((instance.clone(), now));
        }
    }

    /// Intent is recorded before effect.
    pub fn check_intended(&mut self, cloud_id: &str, machine: &MachineId, node: &NodeKey) {
        if !self.truth.intended.contains(machine.as_str()) {
            let text = format!(
                "{cloud_id} was made for node {} before {machine} was written down",
                node.number
            );
            self.broke("intent before effect", text);
        }
    }

    /// Node numbers are never given again.
    pub fn number_given(&mut self, key: &NodeKey) {
        if !self.truth.numbers.insert(key.clone()) {
            let text = format!("node {} of {} was there before", key.number, key.service);
            self.broke("numbers are given once", text);
        }
    }

    /// A token admits one key.
    pub fn key_admitted(&mut self, machine: &MachineId, key: &str, _token: Option<String>) {
        let first = self
            .truth
            .keys
            .entry(machine.clone())
            .or_insert_with(|| key.to_owned());
        if first != key {
            let text = format!("{machine} enrolled with '{first}' and with '{key}'");
            self.broke("tokens admit one key", text);
        }
    }

    /// Whoever lost the post is not heard.
    pub fn report_taken(&mut self, own: Epoch, current: Epoch) {
        if own != current {
            let text = format!("a report of {own} was taken while {current} is in office");
            self.broke("epochs are obeyed", text);
        }
    }

    /// An epoch is one manager's.
    pub fn level_sent(&mut self, level: &Level) {
        if level.service != self.names.web {
            return;
        }
        let epoch = level.version.epoch;
        let holder = NodeNumber(epoch.0);
        let first = *self.truth.counted.entry(epoch).or_insert(holder);
        if first != holder {
            self.broke(
                "epochs are obeyed",
                format!("{epoch} was counted by two managers"),
            );
        }
    }

    /// A node never obeys an older level than it has obeyed before.
    pub fn level_obeyed(&mut self, id: HostId, level: &Level) {
        let before = self.truth.obeyed.insert(id, level.version);
        let forgetful = self
            .hosts
            .get(&id)
            .is_some_and(|host| host.disk.full_until > 0);
        if let Some(before) = before.filter(|before| *before >= level.version && !forgetful) {
            let text = format!(
                "node {} obeyed {} {} after {} {}",
                level.node,
                level.version.epoch,
                level.version.generation,
                before.epoch,
                before.generation
            );
            self.broke("epochs are obeyed", text);
        }
    }

    /// Our own steps never bring what serves below the lower of now and wanted.
    pub fn let_go(&mut self, id: HostId, instance: &Instance) {
        if !self.ours(id) {
            return;
        }
        self.truth.last_ready.insert(instance.clone(), self.now);
        let releases = self.shown_releases();
        if self.suspect_now(id)
            || !self.truth.led_to.contains(instance)
            || (instance.release.is_some() && !releases.contains(&instance.release))
        {
            return;
        }
        let uses = |(_, host): &(&HostId, &Host)| {
            let mut tables = host.tables.values();
            tables.any(|table| table.using.contains(instance))
        };
        // To whom only those lead who were rightly declared dead, nobody is led.
        let users: Vec<HostId> = self.people().filter(uses).map(|(id, _)| *id).collect();
        if !users.is_empty() && users.iter().all(|user| self.condemned(*user)) {
            return;
        }
        // The wish that its manager knows is what counts.
        let epoch = self
            .hosts
            .get(&id)
            .and_then(|h| h.agent.as_ref()?.core.seen())
            .unwrap_or_default()
            .epoch;
        let manager = self
            .hosts
            .values()
            .find(|host| host.node.service == self.names.system && host.node.number.0 == epoch.0);
        let known = manager
            .and_then(|host| host.manager.as_ref()?.desk.known(&self.names.web))
            .map(|level| level.spec.clone());
        let Some(spec) = known.filter(|spec| spec.run == RunWish::Running) else {
            return;
        };
        let wanted = match self.service_type.auxiliary_role(&instance.role) {
            Some(_) => 1,
            None => spec.wanted(&instance.role) as usize,
        };
        if self.returned_lately(instance.release) {
            return;
        }
        let wanted = wanted.min(self.least_wanted_lately(&instance.role));
        let after = self.serving(&instance.role, &releases, Some(instance));
        let before = self.serving(&instance.role, &releases, None).max(after + 1);
        if after + self.lost_lately(&instance.role) < wanted.min(before) {
            let text = format!("{instance} was let go: {after} serve where {wanted} are wanted");
            self.broke("capacity is kept", text);
        }
    }

    /// The least that was wished of a role a moment ago: what a node does now, it may do by a level
    /// that was made then.
    fn least_wanted_lately(&self, role: &str) -> usize {
        let auxiliary = self.service_type.auxiliary_role(role).is_some();
        let wanted = |wished: &Wished| match wished.run {
            RunWish::Running if auxiliary => 1,
            RunWish::Running => {
                let wish = wished.roles.get(role);
                wish.map_or(0, |wish| wish.count() as usize)
            }
            RunWish::Stopped | RunWish::Deleted => 0,
        };
        self.wished_lately().map(wanted).min().unwrap_or(usize::MAX)
    }

    fn wished_lately(&self) -> impl Iterator<Item = &Wished> {
        let lately = |wished: &&Wished| wished.until + LONG > self.now;
        self.truth.wished.iter().rev().take_while(lately)
    }

    /// A release that people were led away from, and that a cancellation has just made the active one
    /// again: its instances may still go by levels that were made before.
    fn returned_lately(&self, release: Option<ReleaseNumber>) -> bool {
        let mut tables = self.people().flat_map(|(_, host)| host.tables.values());
        release.is_some()
            && self
                .wished_lately()
                .any(|wished| Some(wished.active) != release)
            && tables.all(|table| table.serving != release)
    }

    /// What stops has drained, and nobody may send to it any more.
    pub fn check_stop(&mut self, id: HostId, instance: &Instance) {
        if !self.ours(id) {
            return;
        }
        let now = self.now;
        let Some(process) = self
            .hosts
            .get(&id)
            .and_then(|h| h.processes.get(instance))
            .cloned()
        else {
            return;
        };
        if process.ready_at <= now && process.drain_since.is_none() {
            self.truth.last_ready.insert(instance.clone(), now);
        }
        let bound = Ms::from(DRAIN_SECONDS) * 1_000 - 1_000;
        let overdue = process
            .drain_since
            .is_some_and(|since| since + bound <= now);
        let users_suspect = self.people().any(|(user, host)| {
            self.suspect_now(*user)
                && host
                    .tables
                    .values()
                    .any(|t| t.using.contains(instance) || t.in_flight.contains_key(instance))
        });
        // What a process that a fault ended had to do went with it.
        let lost = self.truth.lost.iter();
        let died = lost
            .into_iter()
            .any(|(lost, at)| lost == instance && at + RECENT > now);
        if overdue || users_suspect || died || self.suspect_now(id) {
            return;
        }
        if self.held(instance) {
            self.broke(
                "what stops is not in use",
                format!("{instance} was stopped while in use"),
            );
        } else if process.serves(now) && process.ready_at + LONG < now {
            self.broke(
                "what stops has drained",
                format!("{instance} was stopped while it served"),
            );
        }
    }

    /// Whoever is taken into a table is ready, as far as can be known.
    pub fn check_taken_in(
        &mut self,
        id: HostId,
        role: &str,
        added: &[&Instance],
        serve: Option<ReleaseNumber>,
        before: Option<ReleaseNumber>,
    ) {
        self.truth.led_to.extend(added.iter().copied().cloned());
        if !self.ours(id) || self.suspect_now(id) {
            return;
        }
        let astray = added.iter().find(|instance| !self.ready_lately(instance));
        if let Some(instance) = astray {
            let text = format!("{role} on {id} was given {instance}, which is not ready");
            return self.broke("users get who is ready", text);
        }
        let backwards = !self.truth.cancelled
            && before
                .zip(serve)
                .is_some_and(|(before, serve)| serve < before);
        if backwards {
            let text = format!("{role} on {id} leads to {serve:?} after {before:?}");
            self.broke("people never step back", text);
        }
    }

    fn ready_lately(&self, instance: &Instance) -> bool {
        let now = self.now;
        let by_process = self.people().any(|(_, host)| {
            host.processes
                .get(instance)
                .is_some_and(|p| p.ready_at <= now)
        });
        by_process
            || self
                .truth
                .last_ready
                .get(instance)
                .is_some_and(|at| at + RECENT > now)
            || self
                .truth
                .lost
                .iter()
                .any(|(lost, at)| lost == instance && at + RECENT > now)
    }

    /// The edge is led to who is ready, and never back.
    pub fn check_routes(&mut self, routes: &Exposure) {
        if self.web().is_none() {
            return;
        }
        if routes.version < self.edge.told.applied {
            self.broke("routes never go back", format!("{:?}", routes.version));
        }
        let added: Vec<NodeNumber> = routes
            .upstreams
            .keys()
            .filter(|n| !self.edge.led.contains(n))
            .copied()
            .collect();
        for node in added {
            let role = self.service_type.roles().iter().find(|role| role.exposed);
            let Some(role) = role else { return };
            let instance = Instance {
                role: role.name.to_owned(),
                node,
                release: None,
            };
            self.truth.led_to.insert(instance.clone());
            let fresh = self.edge.told.applied < routes.version;
            if fresh && !self.ready_lately(&instance) {
                self.broke(
                    "the edge leads to who is ready",
                    format!("{instance} is not ready"),
                );
            }
        }
    }

    /// A machine on which something serves is not destroyed while it is wanted.
    pub fn destroy_asked(&mut self, cloud_id: &str) {
        let (id, now) = (host_id(cloud_id), self.now);
        let wanted = self.web().is_some_and(|web| web.run == RunWish::Running);
        if !wanted || !self.ours(id) || self.suspect_now(id) {
            return;
        }
        let declared = &self.truth.declared_dead;
        let serves = self.hosts.get(&id).and_then(|host| {
            if declared.contains(&host.machine) {
                return None;
            }
            host.processes
                .iter()
                .find(|(_, process)| process.serves(now))
                .map(|(i, _)| i.clone())
        });
        if let Some(instance) = serves {
            let text = format!("{cloud_id} is to be destroyed while {instance} serves");
            self.broke("machines in use stay", text);
        }
    }

    /// A node is recorded as unwanted.
    pub fn node_released(&mut self, _key: &NodeKey) {}

    /// No more nodes hold machines than the owner may have.
    pub fn check_quota(&mut self) {
        let used: BTreeSet<&NodeKey> = self
            .director
            .store
            .machines
            .iter()
            .map(|machine| &machine.node)
            .collect();
        if used.len() > self.director.quota as usize {
            let text = format!(
                "{} nodes hold machines, {} may",
                used.len(),
                self.director.quota
            );
            self.broke("quotas are kept", text);
        }
    }

    /// An operation that is done has really come about.
    pub fn operation_ended(
        &mut self,
        kind: &str,
        generation: Option<Generation>,
        outcome: Outcome,
    ) {
        let Some(web) = self.web() else { return };
        if outcome != Outcome::Done
            || web.run != RunWish::Running
            || generation != Some(web.generation)
        {
            return;
        }
        let releases = BTreeSet::from([Some(web.active)]);
        let roles: Vec<(String, usize)> = web
            .roles
            .iter()
            .map(|(role, wish)| (role.clone(), wish.count() as usize))
            .collect();
        for (role, wanted) in roles {
            let there = self.serving(&role, &releases, None);
            if there + self.lost_lately(&role) < wanted {
                let text = format!("{kind} is done, but {there} of {wanted} {role} serve");
                self.broke("done means done", text);
            }
        }
    }
}
