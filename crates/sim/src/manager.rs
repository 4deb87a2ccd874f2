//! The manager's process on a simulated machine: its desk, and its stream to the Director.

use crate::desk::Desk;
use crate::host::HostId;
use crate::net::{Message, Server};
use crate::world::{Event, Party, TICK, World};
use conpaas_model::ids::Generation;
use conpaas_model::protocol::ManagerLevel;

/// Every so many ticks everything is reported, changed or not.
const FULL_REPORT: u64 = 6;

/// The process.
pub struct ManagerProcess {
    pub life: u64,
    pub desk: Desk,
    link: Option<u64>,
    newest: Option<Generation>,
    ticks: u64,
}

impl World {
    /// The role `manager` keeps its process running.
    pub fn keep_manager(&mut self, id: HostId, role: &str) {
        if role != "manager" {
            return;
        }
        let (life, now, bug) = (self.lives + 1, self.now, self.bug);
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if host.manager.is_some() || host.processes.is_empty() {
            return;
        }
        self.lives = life;
        host.manager = Some(ManagerProcess {
            life,
            desk: Desk::new(now, bug),
            link: None,
            newest: None,
            ticks: 0,
        });
        self.soon(50, 400, Event::ManagerTries { host: id, life });
        self.after(TICK, Event::ManagerTicks { host: id, life });
    }

    /// The process ends; its role starts another when it looks next.
    pub fn manager_dies(&mut self, id: HostId, by_fault: bool) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let Some(manager) = host.manager.take() else {
            return;
        };
        if by_fault {
            host.processes
                .retain(|instance, _| instance.role != "manager");
        }
        self.close_all_of(manager.life, false);
    }

    fn manager_of(&mut self, id: HostId, life: u64) -> Option<&mut ManagerProcess> {
        self.hosts
            .get_mut(&id)?
            .manager
            .as_mut()
            .filter(|manager| manager.life == life)
    }

    pub fn manager_tries(&mut self, id: HostId, life: u64) {
        let Some(manager) = self.manager_of(id, life) else {
            return;
        };
        if manager.link.is_some() {
            return;
        }
        let reachable = self.travels(Party::Host(id), Party::Director).is_some();
        let link = if reachable {
            self.takes_post(id, life)
        } else {
            None
        };
        match link {
            Some(link) => {
                let now = self.now;
                if let Some(manager) = self.manager_of(id, life) {
                    (manager.link, manager.newest) = (Some(link), None);
                    let out = manager.desk.reached(now);
                    self.carry_out(Server::Manager(id), out);
                }
                self.report_in_full(id);
            }
            None => self.soon(200, 1_200, Event::ManagerTries { host: id, life }),
        }
    }

    pub fn manager_lost_stream(&mut self, id: HostId, life: u64) {
        if let Some(manager) = self.manager_of(id, life) {
            manager.link = None;
            self.soon(50, 800, Event::ManagerTries { host: id, life });
        }
    }

    /// The Director's word has come.
    pub fn manager_level(&mut self, id: HostId, life: u64, level: ManagerLevel) {
        let now = self.now;
        let Some(manager) = self.manager_of(id, life) else {
            return;
        };
        if manager
            .newest
            .is_some_and(|newest| level.generation < newest)
        {
            return;
        }
        manager.newest = Some(level.generation);
        let (out, strangers) = manager.desk.level(now, level);
        for link in strangers {
            self.close(link, true, false);
        }
        if self.dies(Party::Manager(id)) {
            return;
        }
        self.carry_out(Server::Manager(id), out);
        self.dies(Party::Manager(id));
    }

    pub fn manager_ticks(&mut self, id: HostId, life: u64) {
        let now = self.now;
        let Some(manager) = self.manager_of(id, life) else {
            return;
        };
        manager.ticks += 1;
        let full = manager.ticks.is_multiple_of(FULL_REPORT);
        let out = manager.desk.tick(now);
        self.after(TICK, Event::ManagerTicks { host: id, life });
        self.carry_out(Server::Manager(id), out);
        if full {
            self.report_in_full(id);
        }
        self.dies(Party::Manager(id));
    }

    /// Says upwards what has changed, if anything.
    pub fn publish(&mut self, id: HostId) {
        let Some(manager) = self
            .hosts
            .get_mut(&id)
            .and_then(|host| host.manager.as_mut())
        else {
            return;
        };
        if let Some(report) = manager.desk.publish()
            && let Some(link) = manager.link
        {
            self.send(link, true, Message::FromManager(report));
        }
    }

    fn report_in_full(&mut self, id: HostId) {
        let Some(manager) = self
            .hosts
            .get_mut(&id)
            .and_then(|host| host.manager.as_mut())
        else {
            return;
        };
        if let Some(link) = manager.link
            && let Some(report) = manager.desk.report()
        {
            self.send(link, true, Message::FromManager(report));
        }
    }
}
