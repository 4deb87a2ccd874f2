//! The driver `local`: machines as nested namespaces of this computer, by the same code as root
//! and as an ordinary user. A machine's supervisor is a process of its own and the state folder
//! tells which there are, so whoever drives may die and come back at any time.

mod call;
mod capacity;
mod cgroup;
mod channel;
mod config;
mod console;
mod doctor;
mod enter;
mod harden;
mod helper;
mod idmap;
mod image;
mod lifecycle;
mod netlink;
mod process;
mod records;
mod request;
mod root;
mod step;
mod supervisor;

pub use config::{GATEWAY, LocalConfig, PREFIX};
pub use doctor::{Check, doctor};
pub use image::{prepare_image, remove_state};
pub(crate) use {
    call::helper as helper_command, call::outlet, channel::MOST_FDS, channel::pair,
    channel::receive, channel::send,
};

use crate::error::CloudError;
use crate::types::{
    Capacity, CgroupVersion, CloudMachineId, CreateMachine, Features, LimitsSupport, Machine,
    NetworkAccess, Support,
};
use cgroup::Cgroups;
use conpaas_model::ids::{ApplicationId, InstallationId};
use conpaas_model::instance::InstanceType;
use lifecycle::Inner;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

/// Entry of the program `conpaas machine-supervisor`; call it before any thread is started.
/// Returns the exit code.
pub fn supervisor_main(_args: Vec<OsString>) -> i32 {
    supervisor::main()
}

/// Entry of the program `conpaas machine-helper ARGS..`; call it before any thread is started.
/// Returns the exit code.
pub fn helper_main(args: Vec<OsString>) -> i32 {
    helper::main(args)
}

/// Machines on this computer.
#[derive(Clone)]
pub struct LocalCloud {
    inner: Arc<Inner>,
}

impl LocalCloud {
    /// Opens the state folder (making it when it is not there), checks that machines can be made
    /// here, and clears what interrupted work left. Blocks for some tens of milliseconds.
    ///
    /// # Errors
    /// [`CloudError::Unfit`] and [`CloudError::Image`] say what is missing and the cure.
    pub fn open(config: LocalConfig) -> Result<Self, CloudError> {
        Ok(Self {
            inner: Arc::new(Inner::open(config)?),
        })
    }

    /// A command that runs `argv` inside a machine, with the rights and limits of the machine's
    /// own processes; standard streams are the caller's to set. Exit code 125 means that the
    /// machine could not be entered.
    pub fn exec_command<S: AsRef<OsStr>>(&self, id: &CloudMachineId, argv: &[S]) -> Command {
        let mut command = helper_command(&self.inner.program, "exec");
        command
            .arg(&self.inner.config.state_dir)
            .arg(id.as_str())
            .args(argv);
        if let Some(term) = std::env::var_os("TERM") {
            command.env("TERM", term);
        }
        command
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, CloudError> + Send + 'static,
    ) -> Result<T, CloudError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|e| CloudError::Step {
                step: "finish work on a machine".into(),
                detail: e.to_string(),
            })?
    }
}

#[async_trait::async_trait]
impl crate::Cloud for LocalCloud {
    fn name(&self) -> &str {
        &self.inner.config.name
    }

    fn instance_types(&self) -> Vec<InstanceType> {
        self.inner.config.instance_types.clone()
    }

    fn features(&self) -> Features {
        Features {
            limits: match &self.inner.cgroups {
                Cgroups::V1 { .. } => LimitsSupport::Enforced {
                    by: Some(CgroupVersion::V1),
                },
                Cgroups::V2 { .. } => LimitsSupport::Enforced {
                    by: Some(CgroupVersion::V2),
                },
                Cgroups::None { reason } => LimitsSupport::None {
                    reason: reason.clone(),
                },
            },
            fuse: Support::no("machines on this computer are given no /dev/fuse"),
            tun: Support::no("machines on this computer are given no /dev/net/tun"),
            egress: self.inner.config.egress.clone(),
            sized_volumes: Support::no("this driver has no volumes"),
        }
    }

    fn image(&self) -> String {
        self.inner.image()
    }

    async fn capacity(&self) -> Result<Capacity, CloudError> {
        self.blocking(|inner| inner.capacity()).await
    }

    async fn create(&self, request: CreateMachine) -> Result<Machine, CloudError> {
        self.blocking(move |inner| inner.create(&request)).await
    }

    async fn list(&self, installation: &InstallationId) -> Result<Vec<Machine>, CloudError> {
        let installation = installation.clone();
        self.blocking(move |inner| inner.list(&installation)).await
    }

    async fn destroy(&self, id: &CloudMachineId) -> Result<(), CloudError> {
        let id = id.clone();
        self.blocking(move |inner| inner.destroy(&id)).await
    }

    async fn console(&self, id: &CloudMachineId, max_bytes: usize) -> Result<Vec<u8>, CloudError> {
        let id = id.clone();
        self.blocking(move |inner| inner.console(&id, max_bytes))
            .await
    }

    async fn director_listener(
        &self,
        network: &ApplicationId,
        port: u16,
    ) -> Result<Option<std::net::TcpListener>, CloudError> {
        let network = network.clone();
        self.blocking(move |inner| {
            call::listen(
                &inner.program,
                &inner.config.state_dir,
                &network,
                GATEWAY,
                port,
            )
            .map(Some)
        })
        .await
    }

    fn director_address(&self, _network: &ApplicationId, port: u16) -> SocketAddr {
        (GATEWAY, port).into()
    }

    fn network_access(&self, network: &ApplicationId) -> NetworkAccess {
        NetworkAccess::Local {
            state_dir: self.inner.config.state_dir.clone(),
            network: network.clone(),
            program: self.inner.program.clone(),
        }
    }
}

/// The file that names a network's present incarnation.
pub(crate) fn instance_file(
    state_dir: &std::path::Path,
    network: &ApplicationId,
) -> std::path::PathBuf {
    records::Layout(state_dir.to_owned()).instance(network)
}
