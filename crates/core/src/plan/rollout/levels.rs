//! From duties to the levels of nodes: configuration, providers, the release to lead people to.
//! Which duties there are is decided before this.

use super::Rollout;
use super::drain::Key;
use crate::plan::{Node, memory_of_role};
use crate::service_type::{Decision, RoleDeclaration};
use conpaas_model::environment::Environment;
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::level::{Duty, Instance, LevelBody, Provider, ReleaseLevel, RoleLevel};
use conpaas_model::spec::{Release, RoleName};
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Rollout<'a> {
    pub(super) fn levels(
        &mut self,
        duties: &BTreeMap<Instance, Duty>,
        serving: Option<ReleaseNumber>,
    ) {
        let mut by_node: BTreeMap<NodeNumber, Vec<(&Instance, Duty)>> = BTreeMap::new();
        for (instance, duty) in duties {
            by_node
                .entry(instance.node)
                .or_default()
                .push((instance, *duty));
        }
        let mut offers: BTreeMap<&str, Vec<Offer>> = BTreeMap::new();
        for role in self.roles() {
            offers.insert(role.name, self.offers(role, duties));
        }
        let live: Vec<(NodeNumber, &Node)> = self
            .input
            .nodes
            .iter()
            .filter(|(_, n)| n.live())
            .map(|(k, n)| (*k, n))
            .collect();
        for (number, node) in live {
            let mut level = LevelBody::default();
            for (instance, duty) in by_node.get(&number).into_iter().flatten() {
                self.add_to_level(&mut level, node, instance, *duty, serving, &offers);
            }
            level.endpoints = crate::endpoint::of_level(self.input.service_type, &level);
            self.plan.levels.insert(number, level);
        }
    }

    /// Instances of a role that serve, with whether they are ready.
    fn offers(&self, role: &RoleDeclaration, duties: &BTreeMap<Instance, Duty>) -> Vec<Offer> {
        if !self.has_users(role.name) {
            return Vec::new();
        }
        duties
            .iter()
            .filter(|(i, duty)| i.role == role.name && **duty == Duty::Serve)
            .filter_map(|(i, _)| {
                let node = self.input.nodes.get(&i.node)?;
                let capacity = match self.release_for(i.release, None) {
                    Some(release) => {
                        self.decision(node, role, release, |d| self.input.service_type.capacity(d))?
                    }
                    None => self.told_capacity(i)?,
                };
                Some(Offer {
                    ready: self.ready.contains(i),
                    provider: Provider {
                        role: i.role.clone(),
                        node: i.node,
                        release: i.release,
                        address: node.record.address,
                        port: role.port_of(i.release),
                        capacity,
                    },
                })
            })
            .collect()
    }

    fn add_to_level(
        &self,
        level: &mut LevelBody,
        node: &Node,
        instance: &Instance,
        duty: Duty,
        serving: Option<ReleaseNumber>,
        offers: &BTreeMap<&str, Vec<Offer>>,
    ) {
        let Some(role) = self.input.service_type.role(&instance.role) else {
            return;
        };
        let before = node.level.roles.get(role.name);
        let entry = level
            .roles
            .entry(instance.role.clone())
            .or_insert_with(|| RoleLevel {
                duty: Duty::Drain,
                config: serde_json::Value::Null,
                releases: BTreeMap::new(),
                serve: None,
                preview: None,
                providers: Vec::new(),
                leads: BTreeMap::new(),
            });
        entry.leads = self
            .leads
            .iter()
            .filter(|(led, _)| **led == role.name || role.uses.contains(led))
            .map(|(led, lead)| {
                let mut lead = lead.clone();
                // Thousands need not know each other.
                if *led == role.name {
                    lead.users = self.led.get(led).cloned().unwrap_or_default();
                }
                ((*led).to_owned(), lead)
            })
            .collect();
        // A role drains as a whole when all its instances do.
        entry.duty = entry.duty.min(duty);
        if let Some(number) = instance.release {
            // What runs keeps what it was started with: a release is immutable on a node, too.
            let known = before.and_then(|b| b.releases.get(&number));
            let made = || {
                let release = self.release_for(Some(number), None)?;
                Some(ReleaseLevel {
                    duty,
                    port: role.port_of(Some(number)),
                    code: release.code.clone(),
                    config: self
                        .decision(node, role, release, |d| self.input.service_type.decide(d))?,
                    environment: self.environment_for(role, release),
                })
            };
            if let Some(release) = known.cloned().or_else(made) {
                entry
                    .releases
                    .insert(number, ReleaseLevel { duty, ..release });
            }
        } else if let Some(release) = self.release_for(None, serving)
            && let Some(config) =
                self.decision(node, role, release, |d| self.input.service_type.decide(d))
        {
            entry.config = config;
        }
        if !role.uses.is_empty() {
            let before: BTreeSet<Key<'_>> = before
                .into_iter()
                .flat_map(|b| &b.providers)
                .map(|p| (p.role.as_str(), p.node, p.release))
                .collect();
            // Whoever uses auxiliary roles only leads nobody anywhere.
            let leads = self.input.service_type.leads(role);
            entry.serve = serving.filter(|_| leads);
            entry.preview = self.input.spec.preview.filter(|_| leads);
            entry.providers = role
                .uses
                .iter()
                .flat_map(|used| offers.get(used).into_iter().flatten())
                // One that is in use and stumbles stays: its users' own checks are quicker.
                .filter(|offer| {
                    offer.ready
                        || before.contains(&(
                            offer.provider.role.as_str(),
                            offer.provider.node,
                            offer.provider.release,
                        ))
                })
                .map(|offer| offer.provider.clone())
                .collect();
            let strangers = self.strangers(node, role, serving, offers);
            entry.providers.extend(strangers.into_iter().cloned());
            entry.providers.sort();
            if leads && !role.carries_releases {
                self.add_release_facts(entry, node, role, duty, serving);
            }
        }
    }

    /// A user learns code and settings of every release that it may have to lead people to.
    fn add_release_facts(
        &self,
        entry: &mut RoleLevel,
        node: &Node,
        role: &RoleDeclaration,
        duty: Duty,
        serving: Option<ReleaseNumber>,
    ) {
        let mut numbers: BTreeSet<ReleaseNumber> =
            entry.providers.iter().filter_map(|p| p.release).collect();
        numbers.extend(serving);
        numbers.insert(self.input.spec.active);
        numbers.extend(self.input.spec.preview);
        for number in numbers {
            let Some(release) = self.input.spec.release(number) else {
                // Not in the spec any more, but somebody may be there yet: what is known holds.
                let before = node.level.roles.get(role.name);
                if let Some(known) = before.and_then(|before| before.releases.get(&number)) {
                    let known = known.clone();
                    entry
                        .releases
                        .insert(number, ReleaseLevel { duty, ..known });
                }
                continue;
            };
            if let Some(config) =
                self.decision(node, role, release, |d| self.input.service_type.decide(d))
            {
                let code = release.code.clone();
                entry.releases.insert(
                    number,
                    ReleaseLevel {
                        duty,
                        port: 0,
                        code,
                        config,
                        // Whoever leads people to code runs none of it.
                        environment: Environment::default(),
                    },
                );
            }
        }
    }

    /// What a role is given of a release's environment: all of it, or nothing.
    fn environment_for(&self, role: &RoleDeclaration, release: &Release) -> Environment {
        if self
            .input
            .service_type
            .takes_environment()
            .contains(&role.name)
        {
            release.environment.clone()
        } else {
            Environment::default()
        }
    }

    /// The release an instance is of; for one without, the one that is served, or will be.
    fn release_for(
        &self,
        own: Option<ReleaseNumber>,
        serving: Option<ReleaseNumber>,
    ) -> Option<&'a Release> {
        let spec = self.input.spec;
        own.map_or_else(
            || {
                serving
                    .and_then(|s| spec.release(s))
                    .or_else(|| spec.release(spec.active))
            },
            |own| spec.release(own),
        )
    }

    fn decision<T>(
        &self,
        node: &Node,
        role: &RoleDeclaration,
        release: &Release,
        ask: impl FnOnce(&Decision<'_>) -> T,
    ) -> Option<T> {
        let number = node.record.number;
        let instance_type = self
            .input
            .instance_types
            .iter()
            .find(|t| t.name == node.record.instance_type)?;
        let mut roles: BTreeSet<RoleName> = node.level.roles.keys().cloned().collect();
        roles.extend(
            self.target
                .get(&number)
                .into_iter()
                .flat_map(|s| s.roles.iter().cloned()),
        );
        let memory_mib = memory_of_role(self.input.service_type, role.name, &roles, instance_type);
        let node_name = crate::node_name(self.input.spec, number);
        Some(ask(&Decision {
            role: role.name,
            node: number,
            node_name: &node_name,
            instance_type,
            memory_mib,
            release,
        }))
    }
}

pub(super) struct Offer {
    pub ready: bool,
    pub provider: Provider,
}
