//! What managers and agents say to the Director, taken into its records: reports, enrolments,
//! questions where the manager is. The decisions on enrolment are the real ones.

use crate::bugs::Bug;
use crate::director::{DIRECTOR_EPOCH, Post};
use crate::host::HostId;
use crate::net::{Kind, Server};
use crate::store::Place;
use crate::world::{Event, Party, World};
use conpaas_core::broker::{NodeKey, NodeRow};
use conpaas_model::ids::{Epoch, MachineId, NodeNumber};
use conpaas_model::protocol::{
    Located, MANAGER_PORT, ManagerAddress, ManagerReport, NodeWish, ServiceReport,
};
use conpaas_model::spec::RunWish;
use conpaas_model::status::NodeState;
use conpaas_pki::{Decision, EnrolmentRequest, NodeRecord, decide, hash_token};
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

impl World {
    /// A manager's report has come.
    pub fn take_report(&mut self, link: u64, report: ManagerReport) {
        let Some(post) = self.director.posts.get(&link) else {
            return;
        };
        if post.taken.as_ref() == Some(&report) {
            return;
        }
        let (own, current) = (post.epoch, Epoch(self.director.store.epoch));
        let lenient = self.has(Bug::FencingSkipped) || self.has(Bug::TwoInOffice);
        if !lenient && report.epoch != own {
            return;
        }
        if own != current && !lenient {
            self.director.posts.remove(&link);
            self.close(link, true, false);
            return;
        }
        if !self.can_write() {
            return;
        }
        self.report_taken(own, current);
        if let Some(post) = self.director.posts.get_mut(&link) {
            post.taken = Some(report.clone());
        }
        self.take_services(Some(own), report.services);
        self.wake();
        self.dies(Party::Director);
    }

    /// Takes reports in, of a manager (by its epoch) or of the Director's own desk.
    pub fn take_services(&mut self, epoch: Option<Epoch>, reports: Vec<ServiceReport>) {
        for report in reports {
            let internal = self
                .service(&report.service)
                .map(|service| service.internal);
            if internal == Some(epoch.is_none()) {
                self.take_one(report);
            }
        }
    }

    fn take_one(&mut self, report: ServiceReport) {
        let forget_all = self.has(Bug::SilenceMeansGone);
        if forget_all {
            let store = &self.director.store;
            let silent: Vec<NodeKey> = store
                .nodes_of(&report.service)
                .filter(|node| !report.nodes.contains_key(&node.key.number))
                .map(|node| node.key.clone())
                .collect();
            for key in silent {
                self.director.store.wish_gone(&key);
            }
        }
        let Some(service) = self.service(&report.service) else {
            return;
        };
        let (mut next, stale) = (
            service.next_node,
            report.status.generation < service.generation,
        );
        for (number, wish) in &report.nodes {
            let key = NodeKey {
                service: report.service.clone(),
                number: *number,
            };
            match wish {
                // A spec that has changed since may need the node.
                NodeWish::Gone if stale => {}
                NodeWish::Gone => {
                    if self.director.store.wish_gone(&key) {
                        self.node_released(&key);
                    }
                }
                NodeWish::Present {
                    cloud,
                    instance_type,
                } => {
                    let taken = self.director.store.nodes.iter().any(|node| node.key == key);
                    if *number < next || taken {
                        continue;
                    }
                    let address = self.director.store.free_address();
                    self.number_given(&key);
                    self.director.store.nodes.push(NodeRow {
                        key: key.clone(),
                        owner: self.names.owner.clone(),
                        cloud: cloud.clone(),
                        instance_type: instance_type.clone(),
                        wanted: true,
                        state: NodeState::Requested,
                        trouble: None,
                    });
                    self.director.store.places.insert(
                        key,
                        Place {
                            address,
                            retire: false,
                        },
                    );
                    next = number.next();
                }
            }
        }
        let reused = self.has(Bug::NumbersReused);
        let Some(service) = self.service(&report.service) else {
            return;
        };
        if !reused {
            service.next_node = next;
        }
        let newer = |old: &conpaas_model::protocol::Exposure| {
            report.exposure.version >= old.version && report.exposure != *old
        };
        if service.exposure.as_ref().is_none_or(newer) {
            service.exposure = Some(report.exposure);
        }
        let status = report.status;
        if service.run == RunWish::Running
            && status.reached
            && status.generation <= service.generation
        {
            service.reached = service.reached.max(status.generation);
        }
        if service.run == RunWish::Running && status.generation >= service.generation {
            service.shown = status.serving.or(service.shown);
        }
        service.status = Some(status);
        self.judge_running();
    }

    /// Whether a machine that asks for a certificate with this key gets one.
    pub fn enrols(&mut self, machine: &MachineId, token: Option<&str>, key: &str) -> Option<bool> {
        let now = UNIX_EPOCH + Duration::from_millis(self.wall());
        let reusable = self.has(Bug::TokenReusable);
        let Some(birth) = self.director.store.births.get(machine) else {
            return Some(false);
        };
        let record = NodeRecord {
            token_hash: birth.token_hash.clone(),
            token_expires_at: UNIX_EPOCH + Duration::from_millis(birth.expires),
            key_fingerprint: birth.key.clone().filter(|_| !reusable),
            removed: birth.removed,
        };
        let asked = EnrolmentRequest {
            token: token.map(str::to_owned),
            key_fingerprint: key.to_owned(),
        };
        let granted = match decide(&record, &asked, now) {
            Decision::Issue => {
                if !self.can_write() {
                    return None;
                }
                if let Some(birth) = self.director.store.births.get_mut(machine) {
                    birth.key = Some(key.to_owned());
                }
                if let Some(row) = self.director.store.machine(machine) {
                    row.enrolled = true;
                }
                self.wake();
                true
            }
            Decision::IssueAgain => true,
            Decision::Refuse(_) => false,
        };
        if granted {
            self.key_admitted(machine, key, token.map(hash_token));
        }
        Some(granted)
    }

    /// Whether a machine with a certificate may call.
    fn may_call(&self, machine: &MachineId, key: &str) -> bool {
        let birth = self.director.store.births.get(machine);
        birth.is_some_and(|birth| !birth.removed && birth.key.as_deref() == Some(key))
    }

    /// Where the manager of a machine's service is now.
    pub fn locate(&self, machine: &MachineId, key: &str) -> Option<Located> {
        if !self.may_call(machine, key) {
            return None;
        }
        let store = &self.director.store;
        let row = store.machines.iter().find(|row| row.id == *machine)?;
        if store.services.get(&row.node.service)?.internal {
            return Some(Located {
                epoch: DIRECTOR_EPOCH,
                manager: ManagerAddress::Director,
                trust: String::new(),
            });
        }
        let epoch = Epoch(store.epoch);
        let number = NodeNumber(epoch.0);
        let node = store
            .nodes_of(&self.names.system)
            .find(|node| node.key.number == number && node.wanted && node.state == NodeState::Up);
        let machine = store
            .speakers(&self.names.system)
            .filter(|m| m.node.number == number)
            .last();
        let manager = match (node, machine) {
            (Some(node), Some(machine)) => ManagerAddress::At {
                machine: machine.id.clone(),
                address: SocketAddr::from((
                    store.places.get(&node.key).map(|place| place.address)?,
                    MANAGER_PORT,
                )),
            },
            _ => ManagerAddress::Nowhere,
        };
        Some(Located {
            epoch,
            manager,
            trust: String::new(),
        })
    }

    /// A manager opens its stream; nothing when it is refused.
    pub fn takes_post(&mut self, host: HostId, life: u64) -> Option<u64> {
        let (machine, key, own) = {
            let host = self.hosts.get(&host)?;
            (
                host.machine.clone(),
                host.disk.key.clone(),
                Epoch(host.node.number.0),
            )
        };
        if !self.director.up || !self.may_call(&machine, &key) {
            return None;
        }
        let two = self.has(Bug::TwoInOffice);
        if own.0 < self.director.store.epoch && !two {
            return None;
        }
        if own.0 > self.director.store.epoch {
            if !self.can_write() {
                return None;
            }
            self.director.store.epoch = own.0;
        }
        let link = self.open(
            host,
            life,
            Server::Director,
            self.director.life,
            Kind::Manager,
        );
        if !two {
            let older: Vec<u64> = self.director.posts.keys().copied().collect();
            for older in older {
                self.director.posts.remove(&older);
                self.close(older, true, false);
            }
        }
        self.director.posts.insert(
            link,
            Post {
                epoch: own,
                sent: None,
                taken: None,
            },
        );
        self.wake();
        Some(link)
    }

    /// An agent whose manager is the Director opens its stream.
    pub fn joins_director(&mut self, host: HostId, life: u64) -> Option<u64> {
        let machine = self.hosts.get(&host)?.machine.clone();
        let key = self.hosts.get(&host)?.disk.key.clone();
        if !self.director.up
            || !self.may_call(&machine, &key)
            || !self.director.desk.welcomes(&machine)
        {
            return None;
        }
        Some(self.open(
            host,
            life,
            Server::Director,
            self.director.life,
            Kind::Agent,
        ))
    }

    /// Streams of machines that were removed are closed.
    pub fn close_removed(&mut self) {
        let removed = |host: &HostId| {
            let machine = self.hosts.get(host).map(|host| &host.machine);
            machine
                .and_then(|m| self.director.store.births.get(m))
                .is_some_and(|b| b.removed)
        };
        let links: Vec<u64> = self
            .net
            .links
            .iter()
            .filter(|(_, link)| link.server == Server::Director && removed(&link.host))
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            self.director.posts.remove(&link);
            self.after(1, Event::LinkEnds { link, server: true });
            self.close(link, true, false);
        }
    }
}
