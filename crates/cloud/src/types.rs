//! The plain data that travels between a cloud and whoever asks it for machines.

use conpaas_model::ids::{ApplicationId, InstallationId, MachineId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

/// A machine's name in its cloud's own words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CloudMachineId(pub String);

impl CloudMachineId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CloudMachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a machine is to be.
#[derive(Clone)]
pub struct CreateMachine {
    /// Names this wish: asking again with the same token gives the same machine.
    pub token: String,
    pub installation: InstallationId,
    /// The application whose private network the machine joins.
    pub application: ApplicationId,
    /// The machine in the Director's records.
    pub machine: MachineId,
    pub hostname: String,
    pub instance_type: String,
    /// The machine's address in its application's network, within 100.64.0.0/10.
    pub address: Ipv4Addr,
    /// What the machine learns at birth; a JSON document that holds secrets.
    pub contextualization: Vec<u8>,
}

impl fmt::Debug for CreateMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The contextualization carries a token: only its size may reach a log.
        f.debug_struct("CreateMachine")
            .field("token", &self.token)
            .field("installation", &self.installation)
            .field("application", &self.application)
            .field("machine", &self.machine)
            .field("hostname", &self.hostname)
            .field("instance_type", &self.instance_type)
            .field("address", &self.address)
            .field("contextualization_bytes", &self.contextualization.len())
            .finish()
    }
}

/// A machine as its cloud sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub id: CloudMachineId,
    pub token: String,
    pub installation: InstallationId,
    pub application: ApplicationId,
    pub machine: MachineId,
    pub hostname: String,
    pub instance_type: String,
    pub address: Ipv4Addr,
    /// What it started from (image and program). `None`: an older driver made it, which did not
    /// say.
    pub image: Option<String>,
    pub state: MachineState,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Limits as they were read back, not as they were asked.
    pub limits: Limits,
    /// Names the network the machine sits in; a network that died and was made anew has another
    /// name. `None` while pending, and in clouds whose networks do not come and go.
    pub network_instance: Option<String>,
}

/// Where a machine is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum MachineState {
    /// Being made.
    Pending,
    /// Its first process runs.
    Running,
    /// Nothing of it runs any more; only `destroy` is left.
    Dead { exit: Exit },
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Exit {
    /// Its first process ended with this code.
    Code { code: i32 },
    /// Its first process was killed by this signal.
    Signal { signal: i32 },
    /// Its supervisor vanished and took the machine along (killed, or the computer restarted).
    SupervisorGone,
    /// It was never finished.
    Interrupted,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code { code } => write!(f, "init ended with code {code}"),
            Exit::Signal { signal } => write!(f, "init was killed by signal {signal}"),
            Exit::SupervisorGone => f.write_str("its supervisor vanished"),
            Exit::Interrupted => f.write_str("its creation was interrupted"),
        }
    }
}

/// The kernel interface that enforces limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupVersion {
    V1,
    V2,
}

/// Limits in force on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "limits")]
pub enum Limits {
    Enforced {
        by: CgroupVersion,
        memory_bytes: u64,
        /// Thousandths of one processor.
        cpu_millis: u64,
        /// Processes and threads.
        pids: u64,
    },
    None {
        reason: String,
    },
}

/// Whether a cloud can enforce limits at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "limits")]
pub enum LimitsSupport {
    Enforced { by: Option<CgroupVersion> },
    None { reason: String },
}

/// One thing that machines of a cloud can do, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "supported")]
pub enum Support {
    Yes,
    No { reason: String },
}

impl Support {
    pub fn no(reason: &str) -> Self {
        Support::No {
            reason: reason.to_owned(),
        }
    }
}

/// What machines of a cloud can and cannot do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    pub limits: LimitsSupport,
    /// File systems in user space.
    pub fuse: Support,
    /// Tunnel devices.
    pub tun: Support,
    /// Connections to the outside.
    pub egress: Support,
    /// Volumes whose size is enforced.
    pub sized_volumes: Support,
}

/// An amount of what machines are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    pub vcpus: f64,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} vCPUs, {} MiB of memory and {} MiB of disk",
            (self.vcpus * 1000.0).round() / 1000.0,
            self.memory_mib,
            self.disk_mib
        )
    }
}

impl Resources {
    /// Whether all of `asked` is there.
    pub fn covers(&self, asked: &Resources) -> bool {
        // Sums of fractions of a vCPU carry rounding errors; a thousandth is below any size.
        self.vcpus + 0.001 >= asked.vcpus
            && self.memory_mib >= asked.memory_mib
            && self.disk_mib >= asked.disk_mib
    }
}

/// What a cloud has, and what of it is not yet promised to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    pub total: Resources,
    pub free: Resources,
}

pub use conpaas_model::edge::NetworkAccess;
