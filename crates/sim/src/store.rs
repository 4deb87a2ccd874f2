//! The Director's records, as its store keeps them: what survives its death. Each function is what
//! one transaction of the real shell does; decisions are the core's.

use crate::schedule::Ms;
use crate::types;
use crate::world::{DRAIN_SECONDS, Names};
use conpaas_core::broker::{MachineRow, MachineStage, NodeKey, NodeRow};
use conpaas_core::service_type::ServiceType;
use conpaas_model::ids::{Generation, MachineId, NodeNumber, ReleaseNumber, ServiceId};
use conpaas_model::protocol::{Exposure, ServiceLevel};
use conpaas_model::spec::{
    CountOwner, Pool, Release, RoleName, RoleWish, RunWish, ServiceSpec, Settings,
};
use conpaas_model::status::{EdgeStatus, NodeRecord, NodeState, ServiceStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// How many of the newest releases a manager is told of.
const RECENT_RELEASES: u64 = 3;

/// What is recorded of a node beside what the broker asks.
#[derive(Clone, Debug)]
pub struct Place {
    pub address: Ipv4Addr,
    pub retire: bool,
}

/// What is recorded of a machine beside what the broker asks; kept when it is gone.
#[derive(Clone, Debug, Default)]
pub struct Birth {
    pub secret: Option<String>,
    pub token_hash: String,
    pub key: Option<String>,
    pub removed: bool,
    pub expires: u64,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    pub id: ServiceId,
    pub internal: bool,
    pub service_type: &'static str,
    pub run: RunWish,
    /// By the wall clock.
    pub run_since: u64,
    pub generation: Generation,
    pub reached: Generation,
    pub roles: BTreeMap<RoleName, RoleWish>,
    pub active: ReleaseNumber,
    pub releases: Vec<Release>,
    pub next_node: NodeNumber,
    pub status: Option<ServiceStatus>,
    /// The release that people were last told to be led to: a new manager's first words say none.
    pub shown: Option<ReleaseNumber>,
    pub exposure: Option<Exposure>,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Running,
    Done,
    Failed,
    Superseded,
    Cancelled,
}

/// What was wished before an operation.
#[derive(Clone, Debug)]
pub struct Previous {
    pub app: RunWish,
    pub run: RunWish,
    pub roles: BTreeMap<RoleName, RoleWish>,
    pub active: ReleaseNumber,
    pub retire: BTreeSet<NodeKey>,
}

/// A change under way, or one that ended.
#[derive(Clone, Debug)]
pub struct Operation {
    pub kind: &'static str,
    /// The generation of the application's service that it waits for, if it changed it.
    pub generation: Option<Generation>,
    pub previous: Previous,
    /// By the wall clock.
    pub deadline: u64,
    /// By the world's own.
    pub begun: Ms,
    pub outcome: Outcome,
}

/// All records.
#[derive(Debug)]
pub struct Store {
    pub app: Option<RunWish>,
    pub services: BTreeMap<ServiceId, Service>,
    pub nodes: Vec<NodeRow>,
    pub places: BTreeMap<NodeKey, Place>,
    /// Those that are not gone.
    pub machines: Vec<MachineRow>,
    pub births: BTreeMap<MachineId, Birth>,
    pub next_machine: u64,
    /// The highest epoch that took the post of the manager.
    pub epoch: u64,
    pub operations: Vec<Operation>,
}

/// The roles of a service that was just added.
fn default_roles(service_type: &dyn ServiceType) -> BTreeMap<RoleName, RoleWish> {
    let with_nodes = service_type
        .roles()
        .iter()
        .filter(|r| service_type.auxiliary_role(r.name).is_none());
    with_nodes
        .map(|r| {
            let pool = Pool {
                cloud: "c0".to_owned(),
                instance_type: "small".to_owned(),
                count: r.default_count,
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
        .collect()
}

/// A release without code.
pub fn release(number: ReleaseNumber) -> Release {
    Release {
        number,
        code: None,
        settings: Settings::new(),
        environment: Default::default(),
    }
}

fn service(id: &ServiceId, service_type: &'static dyn ServiceType) -> Service {
    Service {
        id: id.clone(),
        internal: service_type.internal(),
        service_type: service_type.name(),
        run: RunWish::Stopped,
        run_since: 0,
        generation: Generation(1),
        reached: Generation(0),
        roles: default_roles(service_type),
        active: ReleaseNumber(1),
        releases: vec![release(ReleaseNumber(1))],
        next_node: NodeNumber(1),
        status: None,
        shown: None,
        exposure: None,
    }
}

impl Store {
    /// One application of one service, both stopped, and the service that hosts its manager.
    pub fn new(names: &Names, service_type: &'static dyn ServiceType) -> Self {
        let web = service(&names.web, service_type);
        let system = service(&names.system, types::by_name("hosts"));
        Self {
            app: Some(RunWish::Stopped),
            services: [web, system]
                .into_iter()
                .map(|s| (s.id.clone(), s))
                .collect(),
            nodes: Vec::new(),
            places: BTreeMap::new(),
            machines: Vec::new(),
            births: BTreeMap::new(),
            next_machine: 1,
            epoch: 0,
            operations: Vec::new(),
        }
    }

    pub fn node(&mut self, key: &NodeKey) -> Option<&mut NodeRow> {
        self.nodes.iter_mut().find(|node| node.key == *key)
    }

    pub fn machine(&mut self, id: &MachineId) -> Option<&mut MachineRow> {
        self.machines.iter_mut().find(|machine| machine.id == *id)
    }

    pub fn nodes_of<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = &'a NodeRow> {
        self.nodes
            .iter()
            .filter(move |node| node.key.service == *service)
    }

    /// Records a node's state, unless it is on its way out. `trouble` is overwritten.
    pub fn set_node(&mut self, key: &NodeKey, state: NodeState, trouble: Option<&String>) {
        if let Some(node) = self.node(key).filter(|node| node.wanted) {
            node.state = state;
            node.trouble = trouble.cloned();
        }
    }

    /// Records that a node is wished gone.
    pub fn wish_gone(&mut self, key: &NodeKey) -> bool {
        let Some(node) = self.node(key).filter(|node| node.wanted) else {
            return false;
        };
        (node.wanted, node.state, node.trouble) = (false, NodeState::Releasing, None);
        true
    }

    /// Records a machine's stage; one that is to go may call nobody any more.
    pub fn set_stage(&mut self, id: &MachineId, stage: MachineStage, error: Option<&String>) {
        if let Some(machine) = self.machine(id) {
            machine.stage = stage;
            if error.is_some() {
                machine.last_error = error.cloned();
            }
        }
        if matches!(stage, MachineStage::Destroying | MachineStage::Gone)
            && let Some(birth) = self.births.get_mut(id)
        {
            birth.removed = true;
        }
        if stage == MachineStage::Gone {
            self.machines.retain(|machine| machine.id != *id);
        }
    }

    /// Machines of a service that may speak for its nodes.
    pub fn speakers<'a>(&'a self, service: &'a ServiceId) -> impl Iterator<Item = &'a MachineRow> {
        self.machines.iter().filter(move |machine| {
            machine.node.service == *service
                && matches!(
                    machine.stage,
                    MachineStage::Creating
                        | MachineStage::Booting
                        | MachineStage::Up
                        | MachineStage::Dead
                )
                && self
                    .births
                    .get(&machine.id)
                    .is_none_or(|birth| !birth.removed)
        })
    }

    /// The smallest address that no node has.
    pub fn free_address(&self) -> Ipv4Addr {
        let taken: BTreeSet<u32> = self.places.values().map(|p| u32::from(p.address)).collect();
        let first = u32::from(Ipv4Addr::new(100, 64, 0, 10));
        let free = (first..).find(|address| !taken.contains(address));
        Ipv4Addr::from(free.unwrap_or(first))
    }

    fn spec(&self, service: &Service, names: &Names) -> ServiceSpec {
        let mut numbers = BTreeSet::from([service.active]);
        if let Some(status) = &service.status {
            numbers.extend(status.serving);
            let roles = status.nodes.iter().flat_map(|node| &node.roles);
            numbers.extend(roles.filter_map(|role| role.release));
        }
        let newest = service.releases.len() as u64;
        let releases = service.releases.iter().filter(|release| {
            numbers.contains(&release.number) || release.number.0 + RECENT_RELEASES > newest
        });
        let retired = |node: &&NodeRow| self.places.get(&node.key).is_some_and(|p| p.retire);
        ServiceSpec {
            service: service.id.clone(),
            application: names.application.clone(),
            display: if service.internal {
                "shop/system"
            } else {
                "shop/web"
            }
            .to_owned(),
            service_type: service.service_type.to_owned(),
            generation: service.generation,
            run: service.run,
            roles: service.roles.clone(),
            active: service.active,
            preview: None,
            releases: releases.cloned().collect(),
            retire: self
                .nodes_of(&service.id)
                .filter(retired)
                .map(|n| n.key.number)
                .collect(),
            drain_seconds: DRAIN_SECONDS,
        }
    }

    /// What a manager should know of a service.
    pub fn level(&self, service: &Service, names: &Names, edge: EdgeStatus) -> ServiceLevel {
        let mut nodes: Vec<NodeRecord> = self
            .nodes_of(&service.id)
            .filter_map(|node| {
                Some(NodeRecord {
                    number: node.key.number,
                    state: node.state,
                    cloud: node.cloud.clone(),
                    instance_type: node.instance_type.clone(),
                    address: self.places.get(&node.key)?.address,
                    trouble: node.trouble.clone(),
                    refused: false,
                    told: Default::default(),
                })
            })
            .collect();
        nodes.sort_by_key(|node| node.number);
        ServiceLevel {
            spec: self.spec(service, names),
            nodes,
            machines: self
                .speakers(&service.id)
                .map(|m| (m.id.clone(), m.node.number))
                .collect(),
            next_node: service.next_node,
            edge,
            shown: service.shown,
        }
    }
}
