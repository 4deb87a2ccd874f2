//! The driver `memory`: machines that are only records, for tests and the simulator. Everything
//! that can go wrong with a cloud can be made to happen here, at the wish of the test.

use crate::error::CloudError;
use crate::types::{
    Capacity, CloudMachineId, CreateMachine, Exit, Features, Limits, LimitsSupport, Machine,
    MachineState, NetworkAccess, Resources, Support,
};
use conpaas_model::ids::{ApplicationId, InstallationId};
use conpaas_model::instance::{InstanceType, default_instance_types};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What happened in a [`MemoryCloud`], for a test that runs the machines' agents.
#[derive(Clone, Debug)]
pub enum MemoryEvent {
    /// A machine runs; the request carries its contextualization.
    Running {
        machine: Box<Machine>,
        request: Box<CreateMachine>,
    },
    /// A machine died by itself.
    Died { id: CloudMachineId },
    /// A machine was destroyed.
    Destroyed { id: CloudMachineId },
}

/// What all machines of this cloud are made of.
const IMAGE: &str = "records";

struct Held {
    machine: Machine,
    request: CreateMachine,
    size: Resources,
    console: Vec<u8>,
    /// Not listed yet.
    hidden: bool,
}

struct State {
    types: Vec<InstanceType>,
    total: Resources,
    machines: BTreeMap<CloudMachineId, Held>,
    made: u64,
    now: u64,
    boot_delay: Duration,
    hold_boots: bool,
    fail_creates: VecDeque<String>,
    fail_destroys: VecDeque<String>,
    lose_answers: usize,
    hide_machines: usize,
    listeners: Vec<UnboundedSender<MemoryEvent>>,
}

/// A cloud of records. Clones share one cloud.
#[derive(Clone)]
pub struct MemoryCloud {
    name: Arc<str>,
    state: Arc<Mutex<State>>,
}

impl MemoryCloud {
    /// A cloud with the usual instance types that holds `total` machines' worth of resources.
    pub fn new(name: &str, total: Resources) -> Self {
        let state = State {
            types: default_instance_types(),
            total,
            machines: BTreeMap::new(),
            made: 0,
            now: 0,
            boot_delay: Duration::ZERO,
            hold_boots: false,
            fail_creates: VecDeque::new(),
            fail_destroys: VecDeque::new(),
            lose_answers: 0,
            hide_machines: 0,
            listeners: Vec::new(),
        };
        Self {
            name: name.into(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Records stay whole even if a test panicked while it held them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the instance types.
    pub fn set_instance_types(&self, types: Vec<InstanceType>) {
        self.lock().types = types;
    }

    /// Changes what the cloud has in total; machines that are there stay.
    pub fn set_total(&self, total: Resources) {
        self.lock().total = total;
    }

    /// The wall clock that `created_at` is taken from, in seconds.
    pub fn set_now(&self, unix_seconds: u64) {
        self.lock().now = unix_seconds;
    }

    /// How long `create` takes from now on (by tokio's clock).
    pub fn set_boot_delay(&self, delay: Duration) {
        self.lock().boot_delay = delay;
    }

    /// While set, `create` answers at once and machines stay pending until [`Self::boot`].
    pub fn hold_boots(&self, hold: bool) {
        self.lock().hold_boots = hold;
    }

    /// Lets a pending machine run; `false` when there is none of this id.
    pub fn boot(&self, id: &CloudMachineId) -> bool {
        let mut state = self.lock();
        let Some(held) = state
            .machines
            .get_mut(id)
            .filter(|h| h.machine.state == MachineState::Pending)
        else {
            return false;
        };
        held.machine.state = MachineState::Running;
        let event = MemoryEvent::Running {
            machine: Box::new(held.machine.clone()),
            request: Box::new(held.request.clone()),
        };
        state.tell(event);
        true
    }

    /// The next `create` makes nothing and fails with these words. May be called several times.
    pub fn fail_next_create(&self, what: &str) {
        self.lock().fail_creates.push_back(what.to_owned());
    }

    /// The next `destroy` destroys nothing and fails with these words. May be called several times.
    pub fn fail_next_destroy(&self, what: &str) {
        self.lock().fail_destroys.push_back(what.to_owned());
    }

    /// The next `create` makes the machine, but its answer is lost on the way.
    pub fn lose_next_answer(&self) {
        self.lock().lose_answers += 1;
    }

    /// The next `create` makes the machine, but its answer is lost, and lists do not show it before
    /// it is asked for again or [`Self::show_hidden`].
    pub fn hide_next_machine(&self) {
        self.lock().hide_machines += 1;
    }

    /// Lists show every machine from now on.
    pub fn show_hidden(&self) {
        let mut state = self.lock();
        state.machines.values_mut().for_each(|h| h.hidden = false);
    }

    /// Lets a machine die by itself; `false` when none of this id lives.
    pub fn kill(&self, id: &CloudMachineId, exit: Exit) -> bool {
        let mut state = self.lock();
        let Some(held) = state
            .machines
            .get_mut(id)
            .filter(|h| !matches!(h.machine.state, MachineState::Dead { .. }))
        else {
            return false;
        };
        held.machine.state = MachineState::Dead { exit };
        state.tell(MemoryEvent::Died { id: id.clone() });
        true
    }

    /// Adds to what a machine wrote to its console.
    pub fn write_console(&self, id: &CloudMachineId, bytes: &[u8]) {
        if let Some(held) = self.lock().machines.get_mut(id) {
            held.console.extend(bytes);
        }
    }

    /// Machines of every installation, dead ones too.
    pub fn machines(&self) -> Vec<Machine> {
        self.lock()
            .machines
            .values()
            .map(|h| h.machine.clone())
            .collect()
    }

    /// Everything that happens from now on, in order.
    pub fn events(&self) -> UnboundedReceiver<MemoryEvent> {
        let (sender, receiver) = unbounded_channel();
        self.lock().listeners.push(sender);
        receiver
    }
}

impl State {
    fn tell(&mut self, event: MemoryEvent) {
        self.listeners.retain(|l| l.send(event.clone()).is_ok());
    }

    fn free(&self) -> Resources {
        let living = self
            .machines
            .values()
            .filter(|h| !matches!(h.machine.state, MachineState::Dead { .. }));
        living.fold(self.total, |left, held| Resources {
            vcpus: (left.vcpus - held.size.vcpus).max(0.0),
            memory_mib: left.memory_mib.saturating_sub(held.size.memory_mib),
            disk_mib: left.disk_mib.saturating_sub(held.size.disk_mib),
        })
    }

    /// The machine of a token, old or new.
    fn make(&mut self, request: &CreateMachine) -> Result<Machine, CloudError> {
        let same = |h: &&Held| {
            h.machine.token == request.token && h.machine.installation == request.installation
        };
        let id = self.machines.values().find(same);
        if let Some(id) = id.map(|held| held.machine.id.clone())
            && let Some(held) = self.machines.get_mut(&id)
        {
            held.hidden = false;
            return Ok(held.machine.clone());
        }
        let size = self
            .types
            .iter()
            .find(|t| t.name == request.instance_type)
            .ok_or_else(|| CloudError::UnknownInstanceType {
                name: request.instance_type.clone(),
                known: self
                    .types
                    .iter()
                    .map(|t| t.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        let asked = Resources {
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            disk_mib: 0,
        };
        let free = self.free();
        if !free.covers(&asked) {
            return Err(CloudError::NoCapacity { asked, free });
        }
        self.made += 1;
        let id = CloudMachineId(format!("memory-{}", self.made));
        let machine = Machine {
            id: id.clone(),
            token: request.token.clone(),
            installation: request.installation.clone(),
            application: request.application.clone(),
            machine: request.machine.clone(),
            hostname: request.hostname.clone(),
            instance_type: request.instance_type.clone(),
            address: request.address,
            image: Some(IMAGE.to_owned()),
            state: MachineState::Pending,
            created_at: self.now,
            limits: Limits::None {
                reason: "machines of this cloud are only records".into(),
            },
            network_instance: None,
        };
        let console = format!("{} is made\n", request.hostname).into_bytes();
        self.machines.insert(
            id,
            Held {
                machine: machine.clone(),
                request: request.clone(),
                size: asked,
                console,
                hidden: false,
            },
        );
        Ok(machine)
    }
}

#[async_trait::async_trait]
impl crate::Cloud for MemoryCloud {
    fn name(&self) -> &str {
        &self.name
    }

    fn instance_types(&self) -> Vec<InstanceType> {
        self.lock().types.clone()
    }

    fn features(&self) -> Features {
        let none = || Support::no("machines of this cloud are only records");
        Features {
            limits: LimitsSupport::None {
                reason: "machines of this cloud are only records".into(),
            },
            fuse: none(),
            tun: none(),
            egress: none(),
            sized_volumes: none(),
        }
    }

    fn image(&self) -> String {
        IMAGE.to_owned()
    }

    async fn capacity(&self) -> Result<Capacity, CloudError> {
        let state = self.lock();
        Ok(Capacity {
            total: state.total,
            free: state.free(),
        })
    }

    async fn create(&self, request: CreateMachine) -> Result<Machine, CloudError> {
        if request.token.is_empty() {
            return Err(CloudError::Invalid {
                what: "a machine needs a token that names the wish for it".into(),
            });
        }
        let (mut machine, delay, hold) = {
            let mut state = self.lock();
            if let Some(what) = state.fail_creates.pop_front() {
                return Err(CloudError::Unavailable { what });
            }
            (state.make(&request)?, state.boot_delay, state.hold_boots)
        };
        if machine.state == MachineState::Pending && !hold {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            self.boot(&machine.id);
        }
        let mut state = self.lock();
        if let Some(held) = state.machines.get(&machine.id) {
            machine = held.machine.clone();
        }
        let hide = state.hide_machines > 0;
        if hide {
            state.hide_machines -= 1;
            if let Some(held) = state.machines.get_mut(&machine.id) {
                held.hidden = true;
            }
        }
        if hide || state.lose_answers > 0 {
            state.lose_answers = state.lose_answers.saturating_sub(usize::from(!hide));
            return Err(CloudError::Unavailable {
                what: "the answer was lost on the way".into(),
            });
        }
        Ok(machine)
    }

    async fn list(&self, installation: &InstallationId) -> Result<Vec<Machine>, CloudError> {
        let state = self.lock();
        let listed = state.machines.values().filter(|h| !h.hidden);
        Ok(listed
            .map(|h| h.machine.clone())
            .filter(|m| m.installation == *installation)
            .collect())
    }

    async fn destroy(&self, id: &CloudMachineId) -> Result<(), CloudError> {
        let mut state = self.lock();
        if let Some(what) = state.fail_destroys.pop_front() {
            return Err(CloudError::Unavailable { what });
        }
        if state.machines.remove(id).is_some() {
            state.tell(MemoryEvent::Destroyed { id: id.clone() });
        }
        Ok(())
    }

    async fn console(&self, id: &CloudMachineId, max_bytes: usize) -> Result<Vec<u8>, CloudError> {
        let state = self.lock();
        let held = state
            .machines
            .get(id)
            .ok_or_else(|| CloudError::NotFound { id: id.clone() })?;
        Ok(held.console[held.console.len().saturating_sub(max_bytes)..].to_vec())
    }

    async fn director_listener(
        &self,
        _network: &ApplicationId,
        _port: u16,
    ) -> Result<Option<std::net::TcpListener>, CloudError> {
        Ok(None)
    }

    fn director_address(&self, _network: &ApplicationId, port: u16) -> SocketAddr {
        (std::net::Ipv4Addr::LOCALHOST, port).into()
    }

    fn network_access(&self, _network: &ApplicationId) -> NetworkAccess {
        NetworkAccess::Host
    }
}
