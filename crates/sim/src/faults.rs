//! What goes wrong, done to the world: one function per kind of fault. Whoever may rightly be
//! taken for dead afterwards is noted, so that invariants do not blame our own steps for it.

use crate::cloud::{Kept, SimCloud};
use crate::host::HostId;
use crate::schedule::{Fault, Ms, Side, What};
use crate::store::Outcome;
use crate::world::{Event, HEARTBEAT, Party, World};
use conpaas_cloud::MachineState;
use conpaas_model::ids::{MachineId, NodeNumber};

/// How long after a fault its consequences may still come.
const AFTERMATH: Ms = 16_000;

impl World {
    /// Something of the schedule happens.
    pub fn disturb(&mut self, index: usize) {
        let Some(disturbance) = self.schedule.disturbances.get(index).cloned() else {
            return;
        };
        self.say(|| format!("=== {:?}", disturbance.what));
        match disturbance.what {
            What::Wish(wish) => self.wish(&wish),
            What::Fault(fault) => {
                let hit = self.fault(&fault);
                self.stats.fault(fault.kind(), hit);
            }
        }
    }

    /// The machine of the manager that is in office.
    pub fn manager_host(&self) -> Option<HostId> {
        let number = NodeNumber(self.director.store.epoch);
        let found = self.hosts.values().find(|host| {
            host.node.service == self.names.system
                && host.node.number == number
                && host.disk.enrolled
        });
        found.map(|host| host.id)
    }

    fn node(&self, pick: u64) -> Option<HostId> {
        let all: Vec<HostId> = self.people().map(|(id, _)| *id).collect();
        let index = (pick % (all.len() as u64).max(1)) as usize;
        all.get(index).copied()
    }

    fn host_of(&self, side: Side) -> Option<HostId> {
        match side {
            Side::Director => None,
            Side::Manager => self.manager_host(),
            Side::Node(pick) => self.node(pick),
        }
    }

    fn party(&self, side: Side) -> Option<Party> {
        match side {
            Side::Director => Some(Party::Director),
            other => self.host_of(other).map(Party::Host),
        }
    }

    /// Somebody may be taken for dead for a while; with the manager or the Director, everybody.
    fn suspect(&mut self, party: Party, lasts: Ms) {
        let until = self.now + lasts + AFTERMATH;
        match party {
            Party::Host(id) if Some(id) != self.manager_host() => {
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.suspect_until = host.suspect_until.max(until);
                }
            }
            _ => {
                for host in self.hosts.values_mut() {
                    host.suspect_until = host.suspect_until.max(until);
                }
            }
        }
    }

    /// A machine is declared dead by a list: rightly when it is, or when the list left it out, and
    /// then for good.
    pub fn condemn(&mut self, machine: &MachineId) {
        let row = self.director.store.machine(machine);
        let Some(cloud_id) = row.and_then(|row| row.cloud_id.clone()) else {
            return;
        };
        let lives = self
            .clouds
            .iter()
            .flat_map(SimCloud::machines)
            .any(|found| found.id.0 == cloud_id && matches!(found.state, MachineState::Running));
        let Some(host) = self.hosts.get_mut(&crate::host::host_id(&cloud_id)) else {
            return;
        };
        if lives && !host.hidden {
            let text = format!("{machine} ({cloud_id}) runs and was listed always");
            return self.broke("the living are not declared dead", text);
        }
        host.suspect_until = Ms::MAX;
    }

    /// A machine is missing in a list.
    pub fn suspect_machine(&mut self, cloud_id: &str) {
        let id = crate::host::host_id(cloud_id);
        if let Some(host) = self.hosts.get_mut(&id) {
            host.hidden = true;
        }
        self.suspect(Party::Host(id), 0);
    }

    /// Somebody's process dies now.
    pub fn crash(&mut self, who: Party, down: Ms) {
        self.say(|| format!("=== {who:?} dies"));
        match who {
            Party::Director => self.director_dies(down),
            Party::Edge => self.edge_dies(down),
            Party::Host(id) => {
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.suspect_until = host.suspect_until.max(self.now + down + AFTERMATH);
                }
                self.agent_dies(id, down);
            }
            Party::Manager(id) => self.manager_dies(id, true),
        }
    }

    /// Does a fault; false when there is nobody to do it to.
    pub fn fault(&mut self, fault: &Fault) -> bool {
        self.try_fault(fault).is_some()
    }

    fn try_fault(&mut self, fault: &Fault) -> Option<()> {
        let now = self.now;
        match *fault {
            Fault::Dies { who, points, down } => {
                let party = self.party(who)?;
                self.doomed.insert(party, (points, down));
            }
            Fault::ManagerProcessDies { points } => {
                let host = self.manager_host()?;
                self.doomed.insert(Party::Manager(host), (points, 1));
            }
            Fault::EdgeDies { down } => self.edge_dies(down),
            Fault::MachineDies { who } => {
                let id = self.host_of(who)?;
                self.machine_dies(id);
            }
            Fault::RoleDies { pick } => {
                let id = self.node(pick)?;
                self.role_dies(id, pick >> 8)?;
            }
            Fault::Freezes { who, lasts } => {
                let id = self.host_of(who)?;
                self.suspect(Party::Host(id), lasts);
                self.freeze(id, lasts);
            }
            Fault::Partition { from, to, lasts } => {
                let (from, to) = (self.party(from)?, self.party(to)?);
                if from == to {
                    return None;
                }
                self.suspect(from, lasts);
                self.suspect(to, lasts);
                self.net.blocked.push((from, to, now + lasts));
                if lasts > HEARTBEAT {
                    self.break_between(from, to);
                }
            }
            Fault::Slow { who, lasts, delay } => {
                let party = self.party(who)?;
                self.suspect(party, lasts + delay);
                self.net.slow.insert(party, (now + lasts, delay));
            }
            Fault::Lose { messages } => {
                self.suspect(Party::Director, 0);
                self.net.lose += messages;
            }
            Fault::Repeat { messages } => self.net.repeat += messages,
            Fault::Reorder { messages } => self.net.reorder += messages,
            Fault::ClockJumps { by } => self.director.clock += by,
            Fault::DiskFull { who, lasts } => {
                let until = now + lasts;
                match self.party(who)? {
                    Party::Host(id) => {
                        self.suspect(Party::Host(id), lasts);
                        self.hosts.get_mut(&id)?.disk.full_until = until;
                    }
                    _ => self.director.disk_full_until = until,
                }
            }
            Fault::TokenStolen { pick } => {
                let id = self.node(pick)?;
                let (machine, secret) = {
                    let host = self.hosts.get(&id)?;
                    (host.machine.clone(), host.secret.clone())
                };
                self.thief(&machine, &secret);
            }
            ref other => self.cloud_trouble(other)?,
        }
        Some(())
    }

    /// Somebody else asks with a machine's token, and may be first.
    fn thief(&mut self, machine: &conpaas_model::ids::MachineId, secret: &str) {
        if !self.director.up {
            return;
        }
        let known = self
            .director
            .store
            .births
            .get(machine)
            .is_some_and(|b| b.key.is_some());
        if known && self.enrols(machine, Some(secret), "a thief's key") == Some(true) {
            let text = format!("the token of {machine} admitted a second key");
            self.broke("tokens admit one key", text);
        }
    }

    fn cloud_trouble(&mut self, fault: &Fault) -> Option<()> {
        let index = |cloud: u64| (cloud % 8 / 7) as usize;
        match *fault {
            Fault::CloudFails { cloud, calls } => {
                self.clouds[index(cloud)].troubles.fail_calls += calls;
            }
            Fault::CloudSlow {
                cloud,
                calls,
                delay,
            } => {
                let troubles = &mut self.clouds[index(cloud)].troubles;
                troubles.slow_calls += calls;
                troubles.delay = delay;
            }
            Fault::AnswersLost { cloud, calls } => {
                self.clouds[index(cloud)].troubles.lose_answers += calls;
            }
            Fault::CreatesTwice { cloud, calls } => {
                self.clouds[index(cloud)].troubles.create_twice += calls;
            }
            Fault::NoCapacity { cloud, .. } => self.clouds[index(cloud)].troubles.full = true,
            Fault::ListHides { cloud, lists } => {
                self.clouds[index(cloud)].troubles.hide_in_lists += lists;
            }
            Fault::TakenForDead { lists, lasts } => {
                let host = self.manager_host()?;
                let until = self.now + lasts;
                let (cloud, id) = self.clouds.iter().enumerate().find_map(|(at, cloud)| {
                    let mut ids = cloud.machines().map(|machine| &machine.id.0);
                    let id = ids.find(|id| crate::host::host_id(id) == host)?;
                    Some((at, id.clone()))
                })?;
                self.clouds[cloud].troubles.kept = Some(Kept { id, lists, until });
            }
            Fault::ListInvents { cloud, lists } => {
                self.clouds[index(cloud)].troubles.invent_in_lists += lists;
            }
            Fault::ListFails { cloud, lists } => {
                self.clouds[index(cloud)].troubles.fail_lists += lists;
            }
            Fault::BootsHang { cloud, machines } => {
                self.clouds[index(cloud)].troubles.hang_boots += machines;
            }
            _ => return None,
        }
        Some(())
    }

    fn machine_dies(&mut self, id: HostId) {
        self.suspect(Party::Host(id), 0);
        let name = self
            .clouds
            .iter()
            .flat_map(|cloud| cloud.machines())
            .map(|machine| machine.id.0.clone())
            .find(|name| crate::host::host_id(name) == id);
        if let Some(name) = name {
            self.lost_to_fault(id);
            for cloud in &mut self.clouds {
                cloud.kill(&name);
            }
            self.machine_ends(&name);
        }
    }

    fn role_dies(&mut self, id: HostId, pick: u64) -> Option<()> {
        let host = self.hosts.get_mut(&id)?;
        let all: Vec<_> = host.processes.keys().cloned().collect();
        let instance = all
            .get((pick % (all.len() as u64).max(1)) as usize)?
            .clone();
        host.processes.remove(&instance);
        let now = self.now;
        self.truth.lost.push((instance, now));
        Some(())
    }

    fn freeze(&mut self, id: HostId, lasts: Ms) {
        let until = self.now + lasts;
        self.lost_to_fault(id);
        if let Some(host) = self.hosts.get_mut(&id) {
            host.frozen_until = host.frozen_until.max(until);
        }
        if lasts > HEARTBEAT {
            self.break_of(Party::Host(id));
        }
    }

    fn break_of(&mut self, party: Party) {
        let all: Vec<u64> = self
            .net
            .links
            .iter()
            .filter(|(_, link)| Party::Host(link.host) == party || link.server.party() == party)
            .map(|(id, _)| *id)
            .collect();
        for id in all {
            self.break_link(id);
        }
    }

    fn break_between(&mut self, from: Party, to: Party) {
        let all: Vec<u64> = self
            .net
            .links
            .iter()
            .filter(|(_, link)| {
                let ends = (Party::Host(link.host), link.server.party());
                ends == (from, to) || ends == (to, from)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in all {
            self.break_link(id);
        }
    }

    /// Faults stop: whatever was broken works again, what died is started.
    pub fn calm_down(&mut self) {
        self.calm = Some(self.now);
        self.net.heal();
        self.doomed.clear();
        self.director.disk_full_until = 0;
        for host in self.hosts.values_mut() {
            // Remembered, since whoever could not write may have forgotten.
            host.disk.full_until = host.disk.full_until.min(1);
        }
        for cloud in &mut self.clouds {
            cloud.troubles = Default::default();
        }
        let running = |op: &&crate::store::Operation| op.outcome == Outcome::Running;
        if self
            .director
            .store
            .operations
            .iter()
            .filter(running)
            .count()
            > 1
        {
            self.stats.state("several operations when faults stop");
        }
        if !self.director.up {
            self.after(1, Event::DirectorStarts);
        }
    }
}
