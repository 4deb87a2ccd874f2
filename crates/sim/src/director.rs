//! The simulated Director: its records, what it forgets when it dies, and its loop. It is woken
//! when a record changes, as the real one is, and draws all conclusions then.

use crate::bugs::Bug;
use crate::desk::Desk;
use crate::net::{Message, Server};
use crate::schedule::Ms;
use crate::store::Store;
use crate::world::{Event, Names, Party, TICK, World};
use conpaas_core::broker::{BrokerSettings, CloudView};
use conpaas_core::service_type::ServiceType;
use conpaas_model::ids::{Epoch, Generation, MachineId, ServiceId};
use conpaas_model::instance::default_instance_types;
use conpaas_model::protocol::{ManagerLevel, ManagerReport, ServiceLevel};
use std::collections::{BTreeMap, BTreeSet};

/// The Director's own epoch as manager of the hosts of managers.
pub const DIRECTOR_EPOCH: Epoch = Epoch(1);
/// Where the wall clock starts, in Unix milliseconds.
const BEGIN: u64 = 1_700_000_000_000;

/// A call to a cloud.
#[derive(Clone, Debug)]
pub enum Call {
    Create {
        machine: MachineId,
        cloud: usize,
        secret: String,
    },
    Destroy {
        machine: MachineId,
        cloud: usize,
        id: String,
    },
    Orphan {
        cloud: usize,
        id: String,
    },
}

/// A manager that is connected.
#[derive(Debug)]
pub struct Post {
    pub epoch: Epoch,
    pub sent: Option<ManagerLevel>,
    pub taken: Option<ManagerReport>,
}

/// The Director.
pub struct Director {
    pub store: Store,
    pub quota: u32,
    pub settings: BrokerSettings,
    /// How far its wall clock is off.
    pub clock: i64,
    pub disk_full_until: Ms,
    pub up: bool,
    pub life: u64,
    /// A wake-up is under way.
    pub dirty: bool,
    /// The own desk has something to say.
    pub news: bool,
    pub desk: Desk,
    pub views: BTreeMap<String, CloudView>,
    pub busy: BTreeSet<MachineId>,
    pub orphans: BTreeSet<String>,
    /// Rises with every list begun and every call ended.
    pub stamp: u64,
    pub due: BTreeMap<usize, Ms>,
    pub posts: BTreeMap<u64, Post>,
    sent_system: Option<ServiceLevel>,
    number: u64,
}

impl Director {
    pub fn new(names: &Names, service_type: &'static dyn ServiceType, quota: u32) -> Self {
        Self {
            store: Store::new(names, service_type),
            quota,
            settings: BrokerSettings {
                first_pause: 500,
                longest_pause: 4_000,
                longest_boot: crate::broker::BOOT_DEADLINE,
            },
            clock: 0,
            disk_full_until: 0,
            up: false,
            life: 0,
            dirty: false,
            news: false,
            desk: Desk::new(0, None),
            views: BTreeMap::new(),
            busy: BTreeSet::new(),
            orphans: BTreeSet::new(),
            stamp: 0,
            due: BTreeMap::new(),
            posts: BTreeMap::new(),
            sent_system: None,
            number: 0,
        }
    }
}

impl World {
    /// What the Director's wall clock shows.
    pub fn wall(&self) -> u64 {
        (BEGIN + self.now).saturating_add_signed(self.director.clock)
    }

    /// Whether the Director can write records now.
    pub fn can_write(&self) -> bool {
        self.director.up && self.director.disk_full_until <= self.now
    }

    /// Something the Director should look at has changed.
    pub fn wake(&mut self) {
        if self.director.up && !self.director.dirty {
            self.director.dirty = true;
            self.soon(1, 6, Event::DirectorWakes);
        }
    }

    pub fn director_starts(&mut self) {
        if self.director.up {
            return;
        }
        let (life, now, bug) = (self.life(), self.now, self.bug);
        let director = &mut self.director;
        director.up = true;
        director.life = life;
        director.dirty = false;
        director.desk = Desk::new(now, bug);
        director.views.clear();
        director.busy.clear();
        director.orphans.clear();
        director.stamp = 0;
        director.due = (0..self.clouds.len()).map(|cloud| (cloud, now)).collect();
        director.posts.clear();
        director.sent_system = None;
        director.number = 0;
        for machine in &mut director.store.machines {
            machine.settled = 0;
        }
        self.after(TICK, Event::DirectorTicks);
        self.wake();
    }

    /// The Director's process dies; what it had not written down is lost.
    pub fn director_dies(&mut self, down: Ms) {
        if !self.director.up {
            return;
        }
        self.director.up = false;
        self.close_all_of(self.director.life, false);
        self.after(down.max(1), Event::DirectorStarts);
    }

    pub fn director_ticks(&mut self) {
        if !self.director.up {
            return;
        }
        let now = self.now;
        let out = self.director.desk.tick(now);
        self.carry_out(Server::Director, out);
        self.after(TICK, Event::DirectorTicks);
        self.director.dirty = false;
        self.wake();
    }

    pub fn director_wakes(&mut self) {
        if !self.director.up || !self.director.dirty {
            return;
        }
        self.director.dirty = false;
        if self.can_write() {
            self.settle();
        }
        self.list_due();
        if self.director.views.len() == self.clouds.len() {
            self.rounds();
        }
        if !self.director.up {
            return;
        }
        self.feed_own_desk();
        if std::mem::take(&mut self.director.news)
            && let Some(report) = self.director.desk.publish()
        {
            if self.can_write() {
                self.take_services(None, report.services);
                self.wake();
            } else {
                // Reports are whole: the next one says it again.
                self.director.desk.say_again();
                self.director.news = true;
            }
            if self.dies(Party::Director) {
                return;
            }
        }
        self.tell_managers();
        self.write_routes();
    }

    fn feed_own_desk(&mut self) {
        let (names, store) = (&self.names, &self.director.store);
        let Some(system) = store.services.get(&names.system) else {
            return self.drop_own_desk();
        };
        let level = store.level(system, names, Default::default());
        if self.director.sent_system.as_ref() == Some(&level) {
            return;
        }
        self.director.sent_system = Some(level.clone());
        self.tell_own_desk(vec![level]);
    }

    fn drop_own_desk(&mut self) {
        if self.director.sent_system.take().is_some() {
            self.tell_own_desk(Vec::new());
        }
    }

    fn tell_own_desk(&mut self, services: Vec<ServiceLevel>) {
        self.director.number += 1;
        let level = ManagerLevel {
            trust: String::new(),
            generation: Generation(self.director.number),
            application: self.names.application.clone(),
            epoch: DIRECTOR_EPOCH,
            instance_types: default_instance_types(),
            services,
        };
        let (out, strangers) = self.director.desk.level(self.now, level);
        for link in strangers {
            self.close(link, true, false);
        }
        self.carry_out(Server::Director, out);
    }

    fn tell_managers(&mut self) {
        if self.director.posts.is_empty() {
            return;
        }
        let (names, store) = (&self.names, &self.director.store);
        let edge = self.edge.status(&names.web);
        let services: Vec<ServiceLevel> = store
            .services
            .get(&names.web)
            .map(|web| store.level(web, names, edge))
            .into_iter()
            .collect();
        let highest = Epoch(store.epoch);
        let links: Vec<u64> = self.director.posts.keys().copied().collect();
        for link in links {
            let (two, application) = (self.has(Bug::TwoInOffice), self.names.application.clone());
            let Some(post) = self.director.posts.get_mut(&link) else {
                continue;
            };
            if post
                .sent
                .as_ref()
                .is_some_and(|sent| sent.services == services)
            {
                continue;
            }
            self.director.number += 1;
            let level = ManagerLevel {
                trust: String::new(),
                generation: Generation(self.director.number),
                application,
                epoch: if two { highest } else { post.epoch },
                instance_types: default_instance_types(),
                services: services.clone(),
            };
            post.sent = Some(level.clone());
            self.send(link, false, Message::ToManager(level));
            if self.dies(Party::Director) {
                return;
            }
        }
    }

    /// A manager's stream is over at the Director.
    pub fn post_lost(&mut self, link: u64) {
        self.director.posts.remove(&link);
    }

    /// The service of people, if it is there.
    pub fn web(&self) -> Option<&crate::store::Service> {
        self.director.store.services.get(&self.names.web)
    }

    /// The same by its name.
    pub fn service(&mut self, id: &ServiceId) -> Option<&mut crate::store::Service> {
        self.director.store.services.get_mut(id)
    }
}
