//! Where machines come from: the trait [`Cloud`], its types, and the drivers (`local`, `memory`)
//! that stand behind one behaviour suite. What an application wants, and when a machine may be
//! made or destroyed, is decided elsewhere; a driver only carries out and tells the truth.

mod dialer;
mod error;
mod outlet;
mod types;

pub mod drivers;
pub mod suite;

pub use dialer::Dialer;
pub use drivers::local::{
    Check, LocalCloud, LocalConfig, doctor, helper_main, prepare_image, remove_state,
    supervisor_main,
};
pub use drivers::memory::{MemoryCloud, MemoryEvent};
pub use error::CloudError;
pub use outlet::{MOST_PORTS, Outlet, network_instance, open_outlet};
pub use types::{
    Capacity, CgroupVersion, CloudMachineId, CreateMachine, Exit, Features, Limits, LimitsSupport,
    Machine, MachineState, NetworkAccess, Resources, Support,
};

use conpaas_model::ids::{ApplicationId, InstallationId};
use conpaas_model::instance::InstanceType;
use std::net::SocketAddr;

/// A place machines come from.
///
/// Every call may be repeated: creating twice with one token gives one machine, destroying what
/// is gone succeeds. A driver touches only what carries the tags it wrote itself.
#[async_trait::async_trait]
pub trait Cloud: Send + Sync {
    /// The cloud's name as people write it.
    fn name(&self) -> &str;

    /// The sizes of machines this cloud offers.
    fn instance_types(&self) -> Vec<InstanceType>;

    /// What machines of this cloud can and cannot do, with the reason for each "no".
    fn features(&self) -> Features;

    /// What machines made from now on start from (image and program), compared with
    /// [`Machine::image`].
    fn image(&self) -> String;

    /// What the cloud has in total and what of it can still be promised.
    async fn capacity(&self) -> Result<Capacity, CloudError>;

    /// How long a machine of this cloud may take from being asked for until its agent has
    /// enrolled; its token lives as long.
    fn boot_deadline(&self) -> std::time::Duration {
        std::time::Duration::from_secs(60)
    }

    /// Makes a machine and returns once it exists. The same token gives the same machine.
    ///
    /// # Errors
    /// [`CloudError::NoCapacity`] when it does not fit, [`CloudError::UnknownInstanceType`],
    /// [`CloudError::Invalid`] for a request that can never work.
    async fn create(&self, request: CreateMachine) -> Result<Machine, CloudError>;

    /// All machines that carry this installation's tags, dead ones too.
    async fn list(&self, installation: &InstallationId) -> Result<Vec<Machine>, CloudError>;

    /// Destroys a machine and returns when it is really gone. Repeating it succeeds.
    async fn destroy(&self, id: &CloudMachineId) -> Result<(), CloudError>;

    /// The last `max_bytes` of what the machine wrote to its console.
    async fn console(&self, id: &CloudMachineId, max_bytes: usize) -> Result<Vec<u8>, CloudError>;

    /// A listener that machines of this network reach at [`Cloud::director_address`], where the
    /// cloud needs one; `None` where machines reach the Director's own listener.
    ///
    /// A network that lost all its machines is made anew with the next one: whoever holds a
    /// listener asks again when [`Machine::network_instance`] changes. It is in blocking mode.
    async fn director_listener(
        &self,
        network: &ApplicationId,
        port: u16,
    ) -> Result<Option<std::net::TcpListener>, CloudError>;

    /// The Director's address as machines of this network dial it (for contextualization).
    fn director_address(&self, network: &ApplicationId, port: u16) -> SocketAddr;

    /// How a process on the Director's computer dials into this network (for a [`Dialer`]).
    fn network_access(&self, network: &ApplicationId) -> NetworkAccess;
}
