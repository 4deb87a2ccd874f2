//! Settings of the `local` driver.

use crate::types::Support;
use conpaas_model::instance::{InstanceType, default_instance_types};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// The gateway's address in every application's network: where machines find the Director.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// Length of the networks' prefix.
pub const PREFIX: u8 = 10;

/// How the `local` driver works on this computer.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The cloud's name.
    pub name: String,
    /// Everything the driver keeps lies here; on a file system that can carry overlays.
    pub state_dir: PathBuf,
    /// The unpacked image machines start from (see [`super::prepare_image`]).
    pub image: PathBuf,
    /// The program with `machine-supervisor` and `machine-helper`, and the one machines see.
    pub program: PathBuf,
    /// What runs as a machine's first process.
    pub init_argv: Vec<String>,
    pub instance_types: Vec<InstanceType>,
    /// As root: the first of the 65,536 host ids that stand behind machines' ids.
    pub id_base: u32,
    /// vCPUs that may be promised for each real one.
    pub cpu_overcommit: f64,
    /// Memory that is never promised, in MiB.
    pub memory_reserve_mib: u64,
    /// All the memory that may be promised, in MiB; `None` for what the computer has.
    pub memory_mib: Option<u64>,
    /// Disk that must stay free, in MiB.
    pub disk_reserve_mib: u64,
    /// Processes and threads a machine may have.
    pub pids_per_machine: u64,
    /// Whether somebody holds the outlets of networks (see [`crate::open_outlet`]).
    pub egress: Support,
    /// How long a machine may take until its first process runs.
    pub start_limit: Duration,
}

impl LocalConfig {
    /// Usual settings, with this very program as the machines' one.
    pub fn new(state_dir: impl Into<PathBuf>, image: impl Into<PathBuf>) -> Self {
        Self {
            name: "local".into(),
            state_dir: state_dir.into(),
            image: image.into(),
            // Stays readable when the file behind it was replaced by a newer build.
            program: "/proc/self/exe".into(),
            init_argv: vec![super::root::PROGRAM.into(), "init".into()],
            instance_types: default_instance_types(),
            id_base: 1_000_000_000,
            cpu_overcommit: 8.0,
            memory_reserve_mib: 512,
            memory_mib: None,
            disk_reserve_mib: 1024,
            pids_per_machine: 2048,
            egress: Support::no("nobody on this computer lets applications out"),
            start_limit: Duration::from_secs(30),
        }
    }
}
