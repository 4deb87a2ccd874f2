//! In which order a target comes about: which instances start, serve, drain and stop now, whom
//! each user may use, which release people are led to. One pass over plain data; what must
//! still wait says why.

mod drain;
mod leads;
mod levels;
mod strangers;

use super::layout::Shape;
use super::{Input, Node, Plan, Presence, instances};
use crate::service_type::{RELEASE_RING, RoleDeclaration};
use conpaas_model::event::{LeaveReason, RequestReason};
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::level::{Duty, Instance, Lead, Provider, RoleLevel};
use conpaas_model::protocol::NodeWish;
use conpaas_model::status::{NodeState, Phase, Waiting};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

pub(super) struct Rollout<'a> {
    input: &'a Input<'a>,
    target: &'a BTreeMap<NodeNumber, Shape>,
    /// Instances that levels ask for now, on nodes that may run them.
    current: BTreeMap<Instance, Duty>,
    /// Instances that should serve in the end.
    wanted: BTreeSet<Instance>,
    ready: BTreeSet<Instance>,
    /// On how many nodes each role should be.
    hosts: BTreeMap<&'a str, usize>,
    /// Who leads, of roles that have a leader, without their users.
    leads: BTreeMap<&'static str, Lead>,
    /// Who may be led to those leaders: only they themselves are told.
    led: BTreeMap<&'static str, BTreeSet<NodeNumber>>,
    plan: Plan,
}

impl<'a> Rollout<'a> {
    pub(super) fn new(input: &'a Input<'a>, target: &'a BTreeMap<NodeNumber, Shape>) -> Self {
        let mut current = BTreeMap::new();
        let mut ready = BTreeSet::new();
        for (number, node) in input.nodes.iter().filter(|(_, node)| node.may_run()) {
            for instance in instances(input.service_type, *number, &node.level) {
                let duty = duty_of(node, &instance);
                // One that was told to leave may not have heard it yet, and is no help to anybody.
                if duty == Duty::Serve
                    && node.live()
                    && node
                        .phase(&instance.role, instance.release)
                        .is_some_and(Phase::is_ready)
                {
                    ready.insert(instance.clone());
                }
                current.insert(instance, duty);
            }
        }
        let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
        for role in target.values().flat_map(|shape| &shape.roles) {
            *hosts.entry(role).or_default() += 1;
        }
        let mut wanted = BTreeSet::new();
        for (number, shape) in target {
            if !input.nodes.get(number).is_some_and(Node::may_run) {
                continue;
            }
            for role in &shape.roles {
                for release in releases_wanted(input, role) {
                    wanted.insert(Instance {
                        role: role.clone(),
                        node: *number,
                        release,
                    });
                }
            }
        }
        Self {
            input,
            target,
            current,
            wanted,
            ready,
            hosts,
            leads: BTreeMap::new(),
            led: BTreeMap::new(),
            plan: Plan::default(),
        }
    }

    pub(super) fn run(mut self) -> Plan {
        let serving = self.serving();
        self.plan.serving = serving;
        let (serve, drain) = self.keep(serving);
        let stop = self.stop(&drain);
        self.plan.letting_go = drain.difference(&stop).cloned().collect();
        let duties = self.duties(&serve, &drain, &stop);
        self.expose(&duties);
        self.lead(&duties);
        self.levels(&duties, serving);
        self.wishes();
        self.plan
    }

    fn wait(&mut self, kind: &str, text: String) {
        self.plan.waiting.push(Waiting {
            kind: kind.to_owned(),
            text,
        });
    }

    fn roles(&self) -> &'static [RoleDeclaration] {
        self.input.service_type.roles()
    }

    /// Users of a role, by declaration.
    fn users_of(&self, role: &str) -> impl Iterator<Item = &'static RoleDeclaration> + use<'_> {
        let role = role.to_owned();
        self.roles()
            .iter()
            .filter(move |user| user.uses.contains(&role.as_str()))
    }

    /// Levels of all instances of roles that use `role`, on nodes that may run them.
    fn user_levels(
        &self,
        role: &str,
    ) -> Vec<(NodeNumber, &'static RoleDeclaration, &'a RoleLevel)> {
        let mut found = Vec::new();
        for user in self.users_of(role) {
            for (number, node) in self.input.nodes.iter().filter(|(_, n)| n.may_run()) {
                if let Some(level) = node.level.roles.get(user.name) {
                    found.push((*number, user, level));
                }
            }
        }
        found
    }

    /// How many nodes a role should be on.
    fn need(&self, role: &RoleDeclaration) -> usize {
        match self.input.service_type.auxiliary_role(role.name) {
            Some(auxiliary) => self.hosts(auxiliary.role),
            None => self.input.spec.wanted(role.name) as usize,
        }
    }

    /// How many nodes should hold a role.
    fn hosts(&self, role: &str) -> usize {
        self.hosts.get(role).copied().unwrap_or_default()
    }

    fn has_users(&self, role: &str) -> bool {
        self.users_of(role).next().is_some()
    }

    /// The release that people are led to from now on: the active one as soon as all that it
    /// needs is ready, and never back from it; until then the one they are led to now.
    fn serving(&mut self) -> Option<ReleaseNumber> {
        let active = self.input.spec.active;
        let mut led: BTreeMap<ReleaseNumber, usize> = BTreeMap::new();
        for node in self.input.nodes.values().filter(|n| n.may_run()) {
            for level in node.level.roles.values() {
                if let Some(release) = level.serve {
                    *led.entry(release).or_default() += 1;
                }
            }
        }
        if led.contains_key(&active) {
            return Some(active);
        }
        let now = led
            .into_iter()
            .max_by_key(|(release, users)| (*users, *release))
            .map(|(r, _)| r)
            .or_else(|| self.shown_still());
        let carrying: Vec<&RoleDeclaration> = self
            .roles()
            .iter()
            .filter(|r| r.carries_releases && self.input.spec.wanted(r.name) > 0)
            .collect();
        if carrying.is_empty() {
            return self.input.spec.wanted_any().then_some(active).or(now);
        }
        for role in carrying {
            // One that drains already is no help to those who would be led to it.
            let serves = |i: &&Instance| {
                self.current.get(i) == Some(&Duty::Serve) || self.wanted.contains(i)
            };
            let count = |release| {
                let of_release = |i: &&Instance| i.role == role.name && i.release == Some(release);
                self.ready.iter().filter(of_release).filter(serves).count()
            };
            let fresh = count(active);
            let missing = self
                .wanted
                .iter()
                .find(|i| {
                    i.role == role.name
                        && i.release == Some(active)
                        && !self.ready.contains(i)
                        && self.input.nodes.get(&i.node).is_some_and(Node::live)
                })
                .cloned();
            match now {
                // The first release is shown as soon as anything of it answers.
                None if fresh > 0 => {}
                None => return None,
                Some(old) => {
                    let there = count(old) + self.strangers_of(role.name, old);
                    let enough = fresh >= there.min(self.input.spec.wanted(role.name) as usize);
                    if let Some(instance) = missing {
                        self.wait(
                            "release_starting",
                            format!("{instance} is not ready yet; release {old} goes on serving"),
                        );
                        return now;
                    }
                    if !enough || fresh == 0 {
                        self.wait("release_starting", format!("too few {} of release {active} are ready; release {old} goes on serving", role.name));
                        return now;
                    }
                    if let Some(user) = self.unaware(role, active) {
                        self.wait(
                            "release_starting",
                            format!("{user} knows too few {} of release {active} yet; release {old} goes on serving", role.name),
                        );
                        return now;
                    }
                }
            }
        }
        Some(active)
    }

    /// What people were led to until whoever led them was gone, as long as somebody of it serves: it
    /// goes on until what is to follow it is ready.
    fn shown_still(&self) -> Option<ReleaseNumber> {
        let shown = self.input.shown?;
        let serves = |(instance, duty): (&Instance, &Duty)| {
            instance.release == Some(shown) && *duty == Duty::Serve && self.ready.contains(instance)
        };
        self.current.iter().any(serves).then_some(shown)
    }

    /// A user in service that has not taken in all that is ready of a release. Were people led to
    /// it by others already, they would find the older one here, or nobody.
    fn unaware(&self, role: &RoleDeclaration, release: ReleaseNumber) -> Option<Instance> {
        let fresh: Vec<&Instance> = self
            .ready
            .iter()
            .filter(|i| i.role == role.name && i.release == Some(release))
            .filter(|i| self.wanted.contains(*i))
            .collect();
        for (number, user, level) in self.user_levels(role.name) {
            let instance = Instance {
                role: user.name.to_owned(),
                node: number,
                release: None,
            };
            // One that does not answer knows nothing, and nobody is led to it anew.
            if level.duty != Duty::Serve || !self.ready.contains(&instance) {
                continue;
            }
            let node = self.input.nodes.get(&number);
            let using: BTreeSet<&Instance> = node
                .and_then(|node| node.roles.get(user.name))
                .into_iter()
                .flat_map(|s| &s.using)
                .map(|used| &used.instance)
                .collect();
            if !fresh.iter().all(|one| using.contains(*one)) {
                return Some(instance);
            }
        }
        None
    }

    /// Sorts what runs now, and what should, into those that serve and those that drain.
    fn keep(&mut self, serving: Option<ReleaseNumber>) -> (BTreeSet<Instance>, BTreeSet<Instance>) {
        // Before anybody is led anywhere, the active release is the one that counts.
        let serving = serving.or(Some(self.input.spec.active));
        let mut serve: BTreeSet<Instance> = BTreeSet::new();
        let mut drain: BTreeSet<Instance> = BTreeSet::new();
        for role in self.roles() {
            let mut spare: Vec<Instance> = Vec::new();
            // Each release that people are led to, or are about to be, keeps what it needs.
            let mut ready_now: BTreeMap<Option<ReleaseNumber>, usize> = BTreeMap::new();
            for (instance, duty) in self.current.iter().filter(|(i, _)| i.role == role.name) {
                if self.wanted.contains(instance) {
                    serve.insert(instance.clone());
                } else if *duty == Duty::Drain {
                    drain.insert(instance.clone());
                    continue;
                } else {
                    spare.push(instance.clone());
                }
                *ready_now.entry(instance.release).or_default() +=
                    usize::from(self.ready.contains(instance));
            }
            let need = self.need(role);
            let users = self.user_levels(role.name);
            // The newest go first: those are the ones with the least in their caches.
            for instance in spare.into_iter().rev() {
                let of_release = ready_now.entry(instance.release).or_default();
                match self.may_let_go(role, &instance, serving, need, *of_release, &users) {
                    Ok(()) => {
                        *of_release -= usize::from(self.ready.contains(&instance));
                        drain.insert(instance);
                    }
                    Err(reason) => {
                        self.wait("let_go", format!("{instance} stays: {reason}"));
                        serve.insert(instance);
                    }
                }
            }
        }
        (serve, drain)
    }

    fn may_let_go(
        &self,
        role: &RoleDeclaration,
        instance: &Instance,
        serving: Option<ReleaseNumber>,
        need: usize,
        ready_now: usize,
        users: &[(NodeNumber, &'static RoleDeclaration, &RoleLevel)],
    ) -> Result<(), String> {
        let leads_nowhere_else = self
            .users_of(role.name)
            .all(|user| self.input.spec.wanted(user.name) == 0);
        if self.has_users(role.name) && leads_nowhere_else && !users.is_empty() {
            return Err("its users are still there".to_owned());
        }
        if self.leads_now(instance)
            && self
                .wanted
                .iter()
                .any(|other| other.role == role.name && other.node != instance.node)
        {
            return Err("it leads the others until one of them does".to_owned());
        }
        let spec = self.input.spec;
        if !role.carries_releases
            || instance.release == serving
            || instance.release == Some(spec.active)
            || instance.release == spec.preview
        {
            let in_target = self
                .target
                .get(&instance.node)
                .is_some_and(|s| s.roles.contains(role.name));
            if role.carries_releases
                && in_target
                && instance.release != Some(self.input.spec.active)
            {
                return Err(format!(
                    "release {} is not served yet",
                    self.input.spec.active
                ));
            }
            if self.ready.contains(instance) && ready_now <= need && need > 0 {
                return Err(format!(
                    "only {ready_now} of {need} {} are ready",
                    role.name
                ));
            }
            // One that was told to serve again and has not said so yet may be the last there is.
            if ready_now == 0 && need > 0 && self.in_use(instance, users) {
                return Err(format!("no other {} is ready", role.name));
            }
            return Ok(());
        }
        // Another release than the one that levels lead to: gone as soon as nobody is led there.
        for (number, user, level) in users {
            let shown = self
                .input
                .nodes
                .get(number)
                .and_then(|n| n.roles.get(user.name))
                .and_then(|s| s.serving);
            if level.serve == instance.release || shown == instance.release {
                return Err(format!(
                    "{} on node {number} still leads people to it",
                    user.name
                ));
            }
        }
        Ok(())
    }

    /// Whether users are led to an instance that has not failed.
    fn in_use(
        &self,
        instance: &Instance,
        users: &[(NodeNumber, &'static RoleDeclaration, &RoleLevel)],
    ) -> bool {
        let phase = |node: &'a Node| node.phase(&instance.role, instance.release);
        let node = self.input.nodes.get(&instance.node);
        let failed = matches!(node.and_then(phase), Some(Phase::Failed(_)));
        let listed = |level: &RoleLevel| {
            let providers = level.providers.iter();
            providers.map(Provider::instance).any(|i| i == *instance)
        };
        !failed && users.iter().any(|(_, _, level)| listed(level))
    }

    /// What each node's level should hold: current ones that stay, and new ones that may start.
    fn duties(
        &mut self,
        serve: &BTreeSet<Instance>,
        drain: &BTreeSet<Instance>,
        stop: &BTreeSet<Instance>,
    ) -> BTreeMap<Instance, Duty> {
        let mut duties: BTreeMap<Instance, Duty> = BTreeMap::new();
        duties.extend(serve.iter().map(|i| (i.clone(), Duty::Serve)));
        duties.extend(drain.difference(stop).map(|i| (i.clone(), Duty::Drain)));
        // New instances are not ready yet, so what is ready to be used does not change below.
        let usable: BTreeSet<String> = duties
            .iter()
            .filter(|(i, duty)| **duty == Duty::Serve && self.ready.contains(i))
            .map(|(i, _)| i.role.clone())
            .collect();
        let rings = self.rings();
        let new: Vec<Instance> = self
            .wanted
            .iter()
            .filter(|i| !self.current.contains_key(i))
            .cloned()
            .collect();
        for instance in new {
            match self.may_start(&instance, &usable, &rings) {
                Ok(()) => {
                    duties.insert(instance, Duty::Serve);
                }
                Err(reason) => self.wait("start", format!("{instance} waits: {reason}")),
            }
        }
        duties
    }

    /// By role and place on the ring: the first instance of each release there now.
    fn rings(&self) -> BTreeMap<(String, u64), BTreeMap<ReleaseNumber, Instance>> {
        let mut rings: BTreeMap<(String, u64), BTreeMap<ReleaseNumber, Instance>> = BTreeMap::new();
        for instance in self.current.keys() {
            if let Some(release) = instance.release {
                let place = (instance.role.clone(), release.0 % RELEASE_RING);
                rings
                    .entry(place)
                    .or_default()
                    .entry(release)
                    .or_insert_with(|| instance.clone());
            }
        }
        rings
    }

    fn may_start(
        &self,
        instance: &Instance,
        usable: &BTreeSet<String>,
        rings: &BTreeMap<(String, u64), BTreeMap<ReleaseNumber, Instance>>,
    ) -> Result<(), String> {
        let role = self.input.service_type.role(&instance.role);
        if let Some(release) = instance.release {
            let place = rings.get(&(instance.role.clone(), release.0 % RELEASE_RING));
            let others = place
                .into_iter()
                .flatten()
                .filter(|(other, _)| **other != release);
            if let Some(other) = others.map(|(_, other)| other).min() {
                return Err(format!("{other} holds its place until it has gone"));
            }
        }
        for provider in role.map_or(&[][..], |r| r.uses) {
            let unwanted = self.input.service_type.auxiliary_role(provider).is_some()
                && self.hosts(provider) == 0;
            if !usable.contains(*provider) && !unwanted {
                return Err(format!("no {provider} is ready yet"));
            }
        }
        Ok(())
    }

    fn expose(&mut self, duties: &BTreeMap<Instance, Duty>) {
        for role in self.roles().iter().filter(|r| r.exposed) {
            for (instance, duty) in duties.iter().filter(|(i, _)| i.role == role.name) {
                // One that was exposed and stumbles stays: the edge tries others by itself.
                let known = self.input.exposure.upstreams.contains_key(&instance.node)
                    && self.current.contains_key(instance);
                let node = self.input.nodes.get(&instance.node);
                // Whoever is led to one that just came must find there what others show; before
                // anything is shown nobody is led anywhere.
                let shown = node
                    .and_then(|n| n.roles.get(role.name))
                    .and_then(|s| s.serving);
                let shows = !self.input.service_type.leads(role)
                    || shown.is_some() && shown == self.plan.serving;
                let answers =
                    *duty == Duty::Serve && (self.ready.contains(instance) && shows || known);
                if let Some(node) = node.filter(|_| answers) {
                    let address =
                        SocketAddr::from((node.record.address, role.port_of(instance.release)));
                    self.plan.exposed.insert(instance.node, address);
                }
            }
        }
    }

    /// Nodes whose place others take, with what they were: dead ones, lost ones, and those that a
    /// person wants replaced.
    fn vacancies(&self) -> Vec<(NodeNumber, &'a Node)> {
        let vacant = |(number, node): &(&NodeNumber, &Node)| {
            !self.target.contains_key(number)
                && node.record.state != NodeState::Releasing
                && (!node.usable() || self.input.spec.retire.contains(number))
        };
        self.input
            .nodes
            .iter()
            .filter(vacant)
            .map(|(number, node)| (*number, node))
            .collect()
    }

    /// Why each new node is wished: for the first vacancy of its size, if there is one.
    fn requests(&self) -> BTreeMap<NodeNumber, RequestReason> {
        let mut vacancies = self.vacancies();
        let new = |number: &NodeNumber| !self.input.nodes.contains_key(number);
        self.target
            .iter()
            .filter(|(number, _)| new(number))
            .map(|(number, shape)| {
                let fits = |(_, node): &(NodeNumber, &Node)| {
                    node.record.cloud == shape.cloud
                        && node.record.instance_type == shape.instance_type
                };
                let reason = match vacancies.iter().position(fits) {
                    Some(place) => RequestReason::Replacement {
                        replaces: vacancies.remove(place).0,
                    },
                    None => RequestReason::Count,
                };
                (*number, reason)
            })
            .collect()
    }

    fn leave_reason(&self, number: NodeNumber, node: &Node) -> LeaveReason {
        if node.record.state == NodeState::Dead {
            LeaveReason::Dead
        } else if node.record.state == NodeState::Up && node.presence == Presence::Lost {
            LeaveReason::Silent { seconds: 0 }
        } else if self.input.spec.retire.contains(&number) {
            LeaveReason::Replaced
        } else {
            LeaveReason::Surplus
        }
    }

    fn wishes(&mut self) {
        self.plan.requested = self.requests();
        for (number, shape) in self.target {
            let wish = NodeWish::Present {
                cloud: shape.cloud.clone(),
                instance_type: shape.instance_type.clone(),
            };
            self.plan.nodes.insert(*number, wish);
        }
        for (number, node) in self.input.nodes {
            if self.target.contains_key(number) || node.record.state == NodeState::Releasing {
                continue;
            }
            let empty = node.level.roles.is_empty()
                && node.confirmed
                && self
                    .plan
                    .levels
                    .get(number)
                    .is_some_and(|level| level.roles.is_empty());
            // A node whose agent never spoke runs nothing of ours; a dead or lost one is replaced.
            if !node.may_run() || empty {
                self.plan.nodes.insert(*number, NodeWish::Gone);
                let reason = self.leave_reason(*number, node);
                self.plan.leaving.insert(*number, reason);
            } else {
                let wish = NodeWish::Present {
                    cloud: node.record.cloud.clone(),
                    instance_type: node.record.instance_type.clone(),
                };
                self.plan.nodes.insert(*number, wish);
            }
        }
    }
}

/// The releases of a role that nodes should have side by side: the one that people should see, and
/// the one that is held for a preview. A role that carries none is there once.
pub(in crate::plan) fn releases_wanted(
    input: &Input<'_>,
    role: &str,
) -> impl Iterator<Item = Option<ReleaseNumber>> + use<> {
    let spec = input.spec;
    let carries = input
        .service_type
        .role(role)
        .is_some_and(|r| r.carries_releases);
    let preview = spec.preview.filter(|p| carries && *p != spec.active);
    let first = carries.then_some(spec.active);
    std::iter::once(first).chain(preview.map(Some))
}

fn duty_of(node: &Node, instance: &Instance) -> Duty {
    let Some(level) = node.level.roles.get(&instance.role) else {
        return Duty::Serve;
    };
    match instance.release {
        Some(release) => level.releases.get(&release).map_or(Duty::Serve, |r| r.duty),
        None => level.duty,
    }
}
