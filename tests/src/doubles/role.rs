//! Any role of a type for people: each instance takes one more look to become ready, drains in
//! two, and whoever is let go is held on to for one look more.

use super::manager::machine;
use crate::memory::{Door, Machines};
use conpaas_core::role_agent::{NodeContext, RoleAgent, RoleError};
use conpaas_core::service_type::RoleDeclaration;
use conpaas_model::ids::{ReleaseNumber, Term};
use conpaas_model::level::{Duty, LeadStage, Provider, RoleLevel};
use conpaas_model::status::{InUse, Phase, RoleStatus};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, Weak};

/// The role itself, or one release of it.
type Part = Option<ReleaseNumber>;

pub struct Role {
    declaration: &'static RoleDeclaration,
    machines: Weak<Machines>,
    started: BTreeSet<Part>,
    ready: BTreeSet<Part>,
    /// Parts that were seen draining.
    draining: BTreeSet<Part>,
    known: Vec<Provider>,
    letting_go: Vec<Provider>,
    config: Value,
    /// Configurations of releases, by number.
    releases: std::collections::BTreeMap<String, Value>,
    /// What people see, for roles they are led to.
    page: Arc<Mutex<String>>,
    door: Option<Door>,
    /// Of a role that has a leader: the term whose data it holds.
    holds: Option<Term>,
}

impl Role {
    pub fn new(declaration: &'static RoleDeclaration, machines: Weak<Machines>) -> Self {
        Self {
            declaration,
            machines,
            started: BTreeSet::new(),
            ready: BTreeSet::new(),
            draining: BTreeSet::new(),
            known: Vec::new(),
            letting_go: Vec::new(),
            config: Value::Null,
            releases: Default::default(),
            page: Arc::default(),
            door: None,
            holds: None,
        }
    }

    /// Plays its part in leading, and tells it as `php` does: one that follows has all at once.
    fn follow(&mut self, node: &NodeContext, level: &RoleLevel, status: &mut RoleStatus) {
        let Some(lead) = level.leads.get(self.declaration.name) else {
            return;
        };
        let begins = lead.stage == LeadStage::Beginning;
        let leads = lead.leader.address == node.address;
        let may = match leads {
            true => begins && self.holds >= lead.after,
            false => !begins,
        };
        if may {
            self.holds = Some(lead.term);
        }
        let mut tell =
            |name: &str, value: u64| drop(status.facts.insert(name.into(), value.into()));
        tell(self.declaration.name, 0);
        tell("ahead", 0);
        if let Some(term) = self.holds {
            tell("holds", term.0);
        }
        if leads && self.holds == Some(lead.term) {
            tell("leads", lead.term.0);
        }
    }

    fn parts(&self, level: &RoleLevel) -> BTreeMap<Part, Duty> {
        if self.declaration.carries_releases {
            level
                .releases
                .iter()
                .map(|(number, release)| (Some(*number), release.duty))
                .collect()
        } else {
            BTreeMap::from([(None, level.duty)])
        }
    }

    fn phase(&mut self, part: Part, duty: Duty) -> Phase {
        match duty {
            _ if !self.ready.contains(&part) => Phase::Starting,
            Duty::Serve => {
                self.draining.remove(&part);
                Phase::Ready
            }
            Duty::Drain if self.draining.insert(part) => Phase::Draining,
            Duty::Drain => Phase::Drained,
        }
    }
}

#[async_trait::async_trait]
impl RoleAgent for Role {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        let parts = self.parts(level);
        if self.declaration.carries_releases {
            for code in level
                .releases
                .values()
                .filter_map(|release| release.code.as_ref())
            {
                node.code.folder(code).await?;
            }
        }
        self.config = level.config.clone();
        let releases = level.releases.iter();
        self.releases = releases
            .map(|(number, release)| (number.to_string(), release.config.clone()))
            .collect();
        let gone: Vec<_> = self
            .known
            .drain(..)
            .filter(|known| !level.providers.contains(known))
            .collect();
        self.letting_go.extend(gone);
        self.letting_go.retain(|old| !level.providers.contains(old));
        self.known = level.providers.clone();
        if self.declaration.exposed {
            let release = level.serve.map_or(0, |release| release.0);
            *self.page.lock().unwrap() = format!("version {release} from {}", node.node_name);
            if self.door.is_none() {
                let port = self.declaration.port_of(None);
                let door = machine(&self.machines, node)?
                    .open_door(port, self.page.clone())
                    .await;
                self.door = Some(door.map_err(RoleError::io("opening a port"))?);
            }
        }
        for known in [&mut self.started, &mut self.ready, &mut self.draining] {
            known.retain(|part| parts.contains_key(part));
        }
        self.ready.extend(self.started.iter().copied());
        let fresh: Vec<Part> = parts
            .into_keys()
            .filter(|part| !self.started.contains(part))
            .collect();
        if fresh.is_empty() {
            return Ok(());
        }
        self.started.extend(fresh);
        Err(RoleError::Io {
            what: "starting".to_owned(),
            source: ErrorKind::WouldBlock.into(),
        })
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let mut status = RoleStatus::default();
        self.follow(node, level, &mut status);
        for (part, duty) in self.parts(level) {
            let phase = self.phase(part, duty);
            match part {
                Some(release) => drop(status.releases.insert(release, phase)),
                None => status.own = Some(phase),
            }
        }
        if status.own.as_ref().is_some_and(Phase::is_ready) {
            status.serving = level.serve;
        }
        let held = self.letting_go.drain(..).map(|provider| InUse {
            instance: provider.instance(),
            in_flight: 1,
        });
        status.using = held.collect();
        status.using.extend(self.known.iter().map(|provider| InUse {
            instance: provider.instance(),
            in_flight: 0,
        }));
        Ok(status)
    }

    async fn stop(&mut self, _node: &NodeContext) -> Result<bool, RoleError> {
        self.door = None;
        Ok(true)
    }

    /// What the node was told to say, as the types' commands do.
    async fn command(
        &mut self,
        _node: &NodeContext,
        name: &str,
        arguments: &Value,
    ) -> Result<Value, RoleError> {
        match self.config.get("text").and_then(Value::as_str) {
            Some(text) if name == "greet" => {
                let shout = arguments
                    .get("shout")
                    .and_then(Value::as_bool)
                    .unwrap_or(false);
                Ok(json!({"says": if shout { text.to_uppercase() } else { text.to_owned() }}))
            }
            _ if name == "info" => Ok(json!({"releases": self.releases})),
            _ => Err(RoleError::Failed(format!(
                "this role has no command '{name}'"
            ))),
        }
    }
}
