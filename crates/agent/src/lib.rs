//! The shell on every node: enrols at the Director, finds its manager, keeps roles at the level
//! it was given and tells what is the case. What it decides, it asks the agent core; how a role
//! runs, it asks the service type; processes are kept by the machine's init.

mod code;
mod endpoints;
mod enrol;
mod files;
mod health;
mod link;
mod local;
mod logs;
mod measures;
mod party;
mod processes;
mod roles;
mod secrets;
mod shell;
mod trust;
mod unpack;
mod unpacker;

pub use code::DirectorCode;
pub use endpoints::{Endpoints, LocalNet};
pub use files::load_context;
pub use local::{AgentSocket, LocalError};
pub use party::{Enrol, EnrolError, Party, Secured, Trust};
pub use processes::InitProcesses;
pub use trust::tell as tell_trust;
pub use unpack::{UnpackError, unpack};
pub use unpacker::{Unpacker, unpack_main};

use conpaas_core::role_agent::Processes;
use conpaas_model::protocol::Context;
use conpaas_pki::PkiError;
use conpaas_services::registry::Registry;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How to reach an address; tests and namespaces bring their own.
pub type DialTo =
    Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<TcpStream>> + Send + Sync>;

/// Dials as the process itself does.
pub fn dial_direct() -> DialTo {
    Arc::new(|address| Box::pin(TcpStream::connect(address)))
}

/// What keeps an agent (or a manager) from running at all.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} cannot be understood", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("keys or certificates are unusable")]
    Pki(#[from] PkiError),
    #[error("cannot listen at {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// Where an agent keeps things.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Survives the agent: key, certificates, the level it obeys, code.
    pub state: PathBuf,
    /// Sockets and roles' generated configuration.
    pub run: PathBuf,
    pub log: PathBuf,
}

impl Default for Folders {
    fn default() -> Self {
        Self {
            state: PathBuf::from("/var/lib/conpaas"),
            run: PathBuf::from("/run/conpaas"),
            log: PathBuf::from("/var/log/conpaas"),
        }
    }
}

impl Folders {
    /// The agent's socket for processes of its own node.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }
    /// The folder with secrets, in memory as all of `run` is.
    pub fn secrets(&self) -> PathBuf {
        self.run.join("secrets")
    }
    /// The folder with unpacked code, one folder per hash.
    pub fn code(&self) -> PathBuf {
        self.state.join("code")
    }
}

/// How `conpaas agent` is set up; the defaults are those of a machine.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The data the machine got at birth.
    pub context: PathBuf,
    pub folders: Folders,
    /// Init's socket.
    pub init: PathBuf,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            context: PathBuf::from("/etc/conpaas/context.json"),
            folders: Folders::default(),
            init: PathBuf::from(conpaas_init::protocol::SOCKET),
        }
    }
}

/// Everything an agent stands on. Nothing is global: several may run in one process.
pub struct AgentParts {
    pub context: Context,
    pub processes: Arc<dyn Processes>,
    pub folders: Folders,
    pub dial: DialTo,
    pub registry: Registry,
    /// The node's own network; absent where several agents share one, and there are then
    /// neither endpoints nor names.
    pub local_net: Option<LocalNet>,
    pub unpacker: Unpacker,
    /// Ends the agent; role processes run on.
    pub shutdown: CancellationToken,
}

/// Runs the agent of this machine until SIGTERM.
pub async fn run(config: AgentConfig, registry: Registry) -> Result<(), ShellError> {
    start_logging();
    let context = load_context(&config.context)?;
    run_with(AgentParts {
        context,
        processes: Arc::new(InitProcesses::new(config.init)),
        folders: config.folders,
        dial: dial_direct(),
        registry,
        local_net: Some(LocalNet::default()),
        unpacker: Unpacker::Child,
        shutdown: cancelled_by_signals()?,
    })
    .await
}

/// Runs an agent made of the given parts until its shutdown is cancelled.
pub async fn run_with(parts: AgentParts) -> Result<(), ShellError> {
    shell::run(parts).await
}

/// JSON lines on standard output, `CONPAAS_LOG` says what; once per process.
pub fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CONPAAS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Fails when the program has set up its logging already, which is as good.
    let _ = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .try_init();
}

/// A token that SIGTERM and SIGINT cancel.
pub fn cancelled_by_signals() -> Result<CancellationToken, ShellError> {
    use tokio::signal::unix::{SignalKind, signal};
    let catch = |kind| {
        signal(kind).map_err(|source| ShellError::File {
            action: "catch signals with",
            path: PathBuf::from("signal(7)"),
            source,
        })
    };
    let (mut term, mut int) = (
        catch(SignalKind::terminate())?,
        catch(SignalKind::interrupt())?,
    );
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}
