//! Settings of a Director. Reading them from files or flags is the program's business.

use conpaas_model::egress::Egress;
use conpaas_model::instance::{InstanceType, default_instance_types};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// All settings; `new` gives the defaults for a state folder.
#[derive(Clone, Debug)]
pub struct DirectorConfig {
    /// Everything the Director keeps; made with mode 0700.
    pub state: PathBuf,
    /// Where people's API listens (TLS).
    pub listen: SocketAddr,
    /// Further names and addresses for the API's certificate.
    pub names: Vec<String>,
    /// Applications are `NAME-OWNER.BASE`.
    pub base_domain: String,
    /// Port of the edge as people reach it, for URLs.
    pub edge_port: u16,
    /// The edge's port for HTTPS, if it has one.
    pub edge_https_port: Option<u16>,
    /// Where the edge can be reached, as text for people.
    pub edge: Option<String>,
    /// The edge's folder (`STATE/edge` when absent).
    pub edge_folder: Option<PathBuf>,
    /// Where machines of clouds without a listener of their own reach the Director.
    pub host_listener: Option<SocketAddr>,
    /// The cloud of new services' nodes.
    pub default_cloud: String,
    /// Sizes with their prices.
    pub instance_types: Vec<InstanceType>,
    /// The size of new services' nodes.
    pub default_instance_type: String,
    /// Lifetime of a token when none is asked for, and the longest one may ask for.
    pub token_lifetime: Duration,
    pub token_lifetime_max: Duration,
    /// Nodes a new user may have at once.
    pub default_node_quota: u32,
    /// How long an operation may take before it counts as failed.
    pub operation_deadline: Duration,
    /// How long requests in flight may take when a role is let go.
    pub drain: Duration,
    /// As much of a way out as applications may have.
    pub egress: Egress,
    /// How long a machine may take until its agent has enrolled; absent: what its cloud says.
    pub boot_deadline: Option<Duration>,
    /// Lifetime of agents' and managers' certificates.
    pub certificate_lifetime: Duration,
    /// Largest archive taken, in bytes.
    pub max_upload: u64,
    /// Most bytes and members an archive may unpack to.
    pub max_unpacked: u64,
    pub max_members: u64,
    /// Bytes that the code versions of one user may take, as uploaded and as kept for nodes.
    pub code_quota: u64,
    /// Bytes of the state folder's disk that no upload may take, so that the store can go on.
    pub disk_reserve: u64,
    /// How long a deleted application rests in the trash; zero: not at all.
    pub trash: Duration,
    /// How long what is over is remembered.
    pub kept: Kept,
    /// Bytes of daemons' logs that are kept of an application; the oldest go first.
    pub logs_per_application: u64,
    /// Most bytes of the file with metrics; the oldest of whoever has most go first.
    pub metrics_bytes: u64,
}

/// How long what is over is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Answers given under an idempotency key.
    pub keys: Duration,
    /// Operations that ended.
    pub operations: Duration,
    /// The bytes of a deleted code version: nodes may still be fetching or running it.
    pub code: Duration,
    /// Uploads that broke off, since somebody last went on with them.
    pub uploads: Duration,
    /// Events of each application.
    pub events: u64,
}

impl Default for Kept {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            keys: Duration::from_secs(24 * HOUR),
            operations: Duration::from_secs(90 * 24 * HOUR),
            code: Duration::from_secs(HOUR),
            uploads: Duration::from_secs(24 * HOUR),
            events: 10_000,
        }
    }
}

impl DirectorConfig {
    pub fn new(state: PathBuf) -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            state,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            names: Vec::new(),
            base_domain: "localhost".to_owned(),
            edge_port: 8080,
            edge_https_port: None,
            edge: None,
            edge_folder: None,
            host_listener: None,
            default_cloud: "local".to_owned(),
            instance_types: default_instance_types(),
            default_instance_type: "small".to_owned(),
            token_lifetime: Duration::from_secs(30 * DAY),
            token_lifetime_max: Duration::from_secs(365 * DAY),
            default_node_quota: 20,
            operation_deadline: Duration::from_secs(300),
            drain: Duration::from_secs(30),
            egress: Egress::default(),
            boot_deadline: None,
            certificate_lifetime: Duration::from_secs(DAY),
            max_upload: 512 << 20,
            max_unpacked: 4 << 30,
            max_members: 200_000,
            code_quota: 10 << 30,
            disk_reserve: 1 << 30,
            trash: Duration::from_secs(72 * 3600),
            kept: Kept::default(),
            logs_per_application: 256 << 20,
            metrics_bytes: 512 << 20,
        }
    }

    /// The size with this name.
    pub fn instance_type(&self, name: &str) -> Option<&InstanceType> {
        self.instance_types.iter().find(|size| size.name == name)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.state.join("blobs")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Uploads that are not whole yet; they outlive the Director.
    pub(crate) fn parts(&self) -> PathBuf {
        self.state.join("parts")
    }

    pub(crate) fn uploads(&self) -> PathBuf {
        self.state.join("uploads")
    }
}
