//! Calls to clouds: each arrives, does something or not, and is answered or not, in events of its
//! own. What is called is decided by the broker.

use crate::cloud::take;
use crate::director::Call;
use crate::host::host_id;
use crate::store::Place;
use crate::world::{Event, Party, World};
use conpaas_cloud::{CloudError, CreateMachine};
use conpaas_core::broker::{CallResult, CloudView, answered};
use conpaas_model::ids::MachineId;

/// How long a call is waited for whose answer never comes.
const ANSWER_LOST: u64 = 3_000;

impl World {
    pub fn start_call(&mut self, call: Call) {
        let cloud = match &call {
            Call::Create { machine, cloud, .. } | Call::Destroy { machine, cloud, .. } => {
                self.director.busy.insert(machine.clone());
                *cloud
            }
            Call::Orphan { cloud, id } => {
                if !self.director.orphans.insert(id.clone()) {
                    return;
                }
                *cloud
            }
        };
        let troubles = &mut self.clouds[cloud].troubles;
        let late = if take(&mut troubles.slow_calls) {
            troubles.delay
        } else {
            0
        };
        let (life, delay) = (self.director.life, self.rng.between(5, 60) + late);
        self.after(delay, Event::CallArrives { life, call });
    }

    /// A cloud does what it was asked, or not.
    pub fn call_arrives(&mut self, life: u64, call: Call) {
        match call {
            Call::Create {
                machine,
                cloud,
                secret,
            } => {
                let failed = take(&mut self.clouds[cloud].troubles.fail_calls);
                let result = if failed {
                    CallResult::Unclear {
                        reason: "the cloud is out of order".to_owned(),
                    }
                } else {
                    self.create(&machine, cloud, &secret)
                };
                let lost = take(&mut self.clouds[cloud].troubles.lose_answers);
                let (result, delay) = if lost {
                    let reason = "the answer was lost on the way".to_owned();
                    (CallResult::Unclear { reason }, ANSWER_LOST)
                } else {
                    (result, self.rng.between(5, 60))
                };
                self.after(
                    delay,
                    Event::CallAnswered {
                        life,
                        machine,
                        cloud,
                        result,
                    },
                );
            }
            Call::Destroy { machine, cloud, id } => {
                let gone = self.destroyed(cloud, &id);
                let lost = take(&mut self.clouds[cloud].troubles.lose_answers);
                let result = if gone && !lost {
                    CallResult::Destroyed
                } else {
                    CallResult::NotDestroyed {
                        reason: "the cloud is out of order".to_owned(),
                    }
                };
                self.soon(
                    5,
                    60,
                    Event::CallAnswered {
                        life,
                        machine,
                        cloud,
                        result,
                    },
                );
            }
            Call::Orphan { cloud, id } => {
                let gone = self.destroyed(cloud, &id);
                self.soon(
                    5,
                    60,
                    Event::OrphanAnswered {
                        life,
                        cloud,
                        id,
                        gone,
                    },
                );
            }
        }
    }

    fn create(&mut self, machine: &MachineId, cloud: usize, secret: &str) -> CallResult {
        let store = &mut self.director.store;
        // The request was made when the call was: it carries what was recorded then.
        let key = store
            .machines
            .iter()
            .find(|m| m.id == *machine)
            .map(|m| m.node.clone());
        let key = key.or_else(|| self.truth.homes.get(machine).cloned());
        let Some(key) = key else {
            return CallResult::Refused {
                reason: "the node is gone".to_owned(),
                for_good: false,
            };
        };
        self.truth.homes.insert(machine.clone(), key.clone());
        let place = self.director.store.places.get(&key).cloned();
        let place = place.unwrap_or(Place {
            address: [100, 64, 0, 2].into(),
            retire: false,
        });
        let request = CreateMachine {
            token: machine.to_string(),
            installation: self.names.installation.clone(),
            application: self.names.application.clone(),
            machine: machine.clone(),
            hostname: format!("{}-{}", key.service, key.number),
            instance_type: "small".to_owned(),
            address: place.address,
            contextualization: secret.as_bytes().to_vec(),
        };
        match self.clouds[cloud].create(&request) {
            Ok(made) => {
                let mut first = None;
                let twice = made.len() > 1;
                for machine in made {
                    let id = machine.id.0.clone();
                    self.machine_made(cloud, &id, &machine.machine, &key);
                    if twice && let Some(host) = self.hosts.get_mut(&host_id(&id)) {
                        // Which of them enrols, and which is kept, is chance.
                        host.suspect_until = u64::MAX;
                    }
                    first.get_or_insert(id);
                }
                match first {
                    Some(cloud_id) => CallResult::Created { cloud_id },
                    None => CallResult::Unclear {
                        reason: "nothing was made".to_owned(),
                    },
                }
            }
            Err(CloudError::NoCapacity { .. }) => CallResult::Refused {
                reason: "no machine fits any more".to_owned(),
                for_good: false,
            },
            Err(error) => CallResult::Unclear {
                reason: error.to_string(),
            },
        }
    }

    fn destroyed(&mut self, cloud: usize, id: &str) -> bool {
        if take(&mut self.clouds[cloud].troubles.fail_calls) {
            return false;
        }
        let kept = self.clouds[cloud].troubles.kept.as_ref();
        if kept.is_some_and(|kept| kept.id == id && kept.until > self.now) {
            return false;
        }
        self.clouds[cloud].destroy(id);
        self.machine_ends(id);
        true
    }

    pub fn call_answered(
        &mut self,
        life: u64,
        machine: MachineId,
        cloud: usize,
        result: CallResult,
    ) {
        if !self.director.up || life != self.director.life {
            return;
        }
        self.director.stamp += 1;
        let stamp = self.director.stamp;
        if result == CallResult::Destroyed {
            self.director.due.insert(cloud, self.now);
        }
        let wall = self.wall();
        let settings = self.director.settings.clone();
        if let Some(row) = self.director.store.machine(&machine) {
            row.settled = stamp;
            let row = row.clone();
            // What cannot be recorded is told by the next list.
            if self.can_write()
                && let Some(action) = answered(&row, result, wall, &settings)
            {
                self.record(&action);
            }
        }
        self.director.busy.remove(&machine);
        self.wake();
        self.dies(Party::Director);
    }

    pub fn orphan_answered(&mut self, life: u64, cloud: usize, id: &str, gone: bool) {
        if !self.director.up || life != self.director.life {
            return;
        }
        self.director.orphans.remove(id);
        let name = self.clouds[cloud].name().to_owned();
        if gone && let Some(CloudView::Listed { machines, .. }) = self.director.views.get_mut(&name)
        {
            machines.retain(|machine| machine.id != id);
        }
        self.wake();
    }
}
