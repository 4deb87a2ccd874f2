//! A simulated cloud: machines are records, and everything that can go wrong with a cloud goes
//! wrong at the wish of the schedule. [`SharedCloud`] puts it behind the trait that all drivers
//! share, so that it passes the same behaviour suite.

use conpaas_cloud::{
    Capacity, Cloud, CloudError, CloudMachineId, CreateMachine, Features, Limits, LimitsSupport,
    Machine, MachineState, NetworkAccess, Resources, Support,
};
use conpaas_model::ids::{ApplicationId, InstallationId};
use conpaas_model::instance::{InstanceType, default_instance_types};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong at the next calls; counted down.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    pub fail_calls: u32,
    pub slow_calls: u32,
    pub delay: u64,
    pub lose_answers: u32,
    pub create_twice: u32,
    pub hide_in_lists: u32,
    /// A machine that so many lists leave out, and that is not destroyed before a moment.
    pub kept: Option<Kept>,
    pub invent_in_lists: u32,
    pub fail_lists: u32,
    pub hang_boots: u32,
    /// No machine fits.
    pub full: bool,
}

/// See [`Troubles::kept`].
#[derive(Clone, Debug)]
pub struct Kept {
    pub id: String,
    pub lists: u32,
    pub until: u64,
}

/// Takes one of a count.
pub fn take(count: &mut u32) -> bool {
    let there = *count > 0;
    *count = count.saturating_sub(1);
    there
}

struct Held {
    machine: Machine,
    size: Resources,
    console: Vec<u8>,
    contextualization: Vec<u8>,
}

/// The records of a cloud.
pub struct SimCloud {
    name: String,
    types: Vec<InstanceType>,
    total: Resources,
    machines: BTreeMap<String, Held>,
    made: u64,
    pub troubles: Troubles,
}

impl SimCloud {
    pub fn new(name: &str, total: Resources) -> Self {
        Self {
            name: name.to_owned(),
            types: default_instance_types(),
            total,
            machines: BTreeMap::new(),
            made: 0,
            troubles: Troubles::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything that is there, dead ones too.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values().map(|held| &held.machine)
    }

    /// What a machine was given at birth.
    pub fn contextualization(&self, id: &str) -> Option<&[u8]> {
        Some(&self.machines.get(id)?.contextualization)
    }

    fn free(&self) -> Resources {
        if self.troubles.full {
            return Resources::default();
        }
        let living = self
            .machines()
            .filter(|m| !matches!(m.state, MachineState::Dead { .. }));
        let sizes = living.filter_map(|m| Some(self.machines.get(m.id.as_str())?.size));
        sizes.fold(self.total, |left, size| Resources {
            vcpus: (left.vcpus - size.vcpus).max(0.0),
            memory_mib: left.memory_mib.saturating_sub(size.memory_mib),
            disk_mib: left.disk_mib,
        })
    }

    /// The machines of a token: one, or (when it is made twice) two.
    ///
    /// # Errors
    /// As every cloud's `create`.
    pub fn create(&mut self, request: &CreateMachine) -> Result<Vec<Machine>, CloudError> {
        if request.token.is_empty() {
            let what = "a machine needs a token that names the wish for it".to_owned();
            return Err(CloudError::Invalid { what });
        }
        let twice = take(&mut self.troubles.create_twice);
        let same =
            |m: &&Machine| m.token == request.token && m.installation == request.installation;
        if let Some(found) = self.machines().find(same).filter(|_| !twice) {
            return Ok(vec![found.clone()]);
        }
        let Some(size) = self.types.iter().find(|t| t.name == request.instance_type) else {
            let known: Vec<&str> = self.types.iter().map(|t| t.name.as_str()).collect();
            return Err(CloudError::UnknownInstanceType {
                name: request.instance_type.clone(),
                known: known.join(", "),
            });
        };
        let asked = Resources {
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            disk_mib: 0,
        };
        let free = self.free();
        if !free.covers(&asked) {
            return Err(CloudError::NoCapacity { asked, free });
        }
        let mut made = Vec::new();
        for _ in 0..1 + u32::from(twice) {
            self.made += 1;
            let id = CloudMachineId(format!("{}-{}", self.name, self.made));
            let machine = Machine {
                id: id.clone(),
                token: request.token.clone(),
                installation: request.installation.clone(),
                application: request.application.clone(),
                machine: request.machine.clone(),
                hostname: request.hostname.clone(),
                instance_type: request.instance_type.clone(),
                address: request.address,
                image: Some(self.image()),
                state: MachineState::Running,
                created_at: 0,
                limits: Limits::None {
                    reason: String::new(),
                },
                network_instance: None,
            };
            let held = Held {
                machine: machine.clone(),
                size: asked,
                console: format!("{} is made\n", request.hostname).into_bytes(),
                contextualization: request.contextualization.clone(),
            };
            self.machines.insert(id.0, held);
            made.push(machine);
        }
        Ok(made)
    }

    /// What machines start from.
    fn image(&self) -> String {
        "simulated".to_owned()
    }

    /// Lets a machine die by itself.
    pub fn kill(&mut self, id: &str) {
        if let Some(held) = self.machines.get_mut(id) {
            let exit = conpaas_cloud::Exit::Signal { signal: 9 };
            held.machine.state = MachineState::Dead { exit };
        }
    }

    /// Ends a machine; repeating it does nothing.
    pub fn destroy(&mut self, id: &str) {
        self.machines.remove(id);
    }
}

/// A simulated cloud behind the drivers' trait.
#[derive(Clone)]
pub struct SharedCloud(Arc<Mutex<SimCloud>>);

impl SharedCloud {
    pub fn new(cloud: SimCloud) -> Self {
        Self(Arc::new(Mutex::new(cloud)))
    }

    fn lock(&self) -> MutexGuard<'_, SimCloud> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Cloud for SharedCloud {
    fn name(&self) -> &str {
        "simulated"
    }

    fn instance_types(&self) -> Vec<InstanceType> {
        self.lock().types.clone()
    }

    fn features(&self) -> Features {
        let none = || Support::No {
            reason: "simulated machines are records".to_owned(),
        };
        Features {
            limits: LimitsSupport::None {
                reason: "simulated machines are records".to_owned(),
            },
            fuse: none(),
            tun: none(),
            egress: none(),
            sized_volumes: none(),
        }
    }

    fn image(&self) -> String {
        self.lock().image()
    }

    async fn capacity(&self) -> Result<Capacity, CloudError> {
        let cloud = self.lock();
        Ok(Capacity {
            total: cloud.total,
            free: cloud.free(),
        })
    }

    async fn create(&self, request: CreateMachine) -> Result<Machine, CloudError> {
        let made = self.lock().create(&request)?;
        let none = || CloudError::Unavailable {
            what: "nothing was made".to_owned(),
        };
        made.into_iter().next().ok_or_else(none)
    }

    async fn list(&self, installation: &InstallationId) -> Result<Vec<Machine>, CloudError> {
        let cloud = self.lock();
        Ok(cloud
            .machines()
            .filter(|m| m.installation == *installation)
            .cloned()
            .collect())
    }

    async fn destroy(&self, id: &CloudMachineId) -> Result<(), CloudError> {
        self.lock().destroy(id.as_str());
        Ok(())
    }

    async fn console(&self, id: &CloudMachineId, max: usize) -> Result<Vec<u8>, CloudError> {
        let cloud = self.lock();
        let missing = || CloudError::NotFound { id: id.clone() };
        let console = &cloud.machines.get(id.as_str()).ok_or_else(missing)?.console;
        Ok(console[console.len().saturating_sub(max)..].to_vec())
    }

    async fn director_listener(
        &self,
        _network: &ApplicationId,
        _port: u16,
    ) -> Result<Option<std::net::TcpListener>, CloudError> {
        Ok(None)
    }

    fn director_address(&self, _network: &ApplicationId, port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    fn network_access(&self, _network: &ApplicationId) -> NetworkAccess {
        NetworkAccess::Host
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_cloud::suite;

    #[tokio::test]
    async fn the_simulated_cloud_behaves_as_every_cloud() {
        let total = Resources {
            vcpus: 4.0,
            memory_mib: 4096,
            disk_mib: 1000,
        };
        let mut cloud = SimCloud::new("simulated", total);
        cloud.types.push(InstanceType {
            name: "giant".into(),
            vcpus: 1.0,
            memory_mib: 1 << 30,
            credits_per_hour: 99.0,
        });
        let subject = suite::Subject {
            small: "small".into(),
            giant: "giant".into(),
            console_text: "is made".into(),
            installation: "inst-suite".parse().unwrap(),
        };
        let cloud = SharedCloud::new(cloud);
        for (name, outcome) in suite::run_all(&cloud, &subject).await {
            assert_eq!(outcome, Ok(()), "{name}");
        }
    }
}
