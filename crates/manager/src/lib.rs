//! The shell that runs managers' halves: streams of agents on one side, the Director's word on
//! the other, the pure core in between. [`ServiceManagers`] is the part that the Director uses
//! too, as it manages the system's own service; the rest is the manager process.

mod desk;
mod director;
mod managers;
mod seat;
mod status;

pub use managers::{CommandError, ServiceManagers, StaleLevel};
pub use status::ManagerStatus;

use conpaas_agent::{
    AgentSocket, DialTo, Enrol, Folders, Party, ShellError, cancelled_by_signals, dial_direct,
    load_context, start_logging,
};
use conpaas_model::protocol::{Context, MANAGER_PORT, PATH_AGENT_STREAM};
use conpaas_pki::{Identity, PartyKind, Roots};
use conpaas_services::registry::Registry;
use conpaas_wire::{ServerSettings, error_response, serve};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How `conpaas manager` is set up; the defaults are those of a machine.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// The data the machine got at birth.
    pub context: PathBuf,
    /// The node's folders: the agent's socket is in `run`, own keys go below `state`.
    pub folders: Folders,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            context: PathBuf::from("/etc/conpaas/context.json"),
            folders: Folders::default(),
        }
    }
}

/// Where a manager takes agents in.
pub enum Listen {
    /// Bound once there is a certificate: who can connect finds a manager that works.
    At(SocketAddr),
    /// Bound already.
    On(TcpListener),
}

/// Everything a manager process stands on. Nothing is global: several may run in one process.
pub struct ManagerParts {
    pub context: Context,
    /// Where certificates come from.
    pub enrol: Arc<dyn Enrol>,
    /// Own key, certificate and roots.
    pub state: PathBuf,
    /// Own socket, which tells how the manager is.
    pub status_socket: PathBuf,
    pub dial: DialTo,
    pub registry: Registry,
    /// Where agents come in.
    pub listen: Listen,
    pub shutdown: CancellationToken,
}

/// Runs the manager of this machine until SIGTERM.
pub async fn run(config: ManagerConfig, registry: Registry) -> Result<(), ShellError> {
    start_logging();
    let context = load_context(&config.context)?;
    let listen = Listen::At(SocketAddr::from((context.address, MANAGER_PORT)));
    run_with(ManagerParts {
        context,
        enrol: Arc::new(AgentSocket::new(config.folders.agent_socket())),
        state: config.folders.state.join("manager"),
        status_socket: config.folders.run.join("manager.sock"),
        dial: dial_direct(),
        registry,
        listen,
        shutdown: cancelled_by_signals()?,
    })
    .await
}

/// Runs a manager made of the given parts until its shutdown is cancelled.
pub async fn run_with(parts: ManagerParts) -> Result<(), ShellError> {
    let ManagerParts {
        context,
        enrol,
        state,
        status_socket,
        dial,
        registry,
        listen,
        shutdown,
    } = parts;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&state)
        .map_err(|source| ShellError::File {
            action: "make folder",
            path: state.clone(),
            source,
        })?;
    let identity = Identity::new(
        context.installation.clone(),
        PartyKind::Manager {
            application: context.application.clone(),
            node: context.machine.clone(),
        },
    );
    let given = Roots::from_pem(&context.roots)?;
    let party = Party::load(&state, "manager", &given, &identity, SystemTime::now())?;
    let managers = ServiceManagers::start(registry, shutdown.clone());
    let (connected, connected_seen) = tokio::sync::watch::channel(false);

    let mut tasks = JoinSet::new();
    tasks.spawn(party.clone().keep(enrol, shutdown.clone()));
    let status = status::listen(&status_socket).map_err(|source| ShellError::File {
        action: "listen at",
        path: status_socket.clone(),
        source,
    })?;
    tasks.spawn(status::serve(status, managers.clone(), connected_seen));

    let secured = tokio::select! {
        () = shutdown.cancelled() => None,
        secured = party.secured() => secured,
    };
    if let Some(secured) = secured {
        let listener = match listen {
            Listen::On(listener) => listener,
            Listen::At(address) => TcpListener::bind(address)
                .await
                .map_err(|source| ShellError::Listen { address, source })?,
        };
        tasks.spawn(conpaas_agent::tell_trust(
            party.clone(),
            context.clone(),
            dial.clone(),
        ));
        let link = director::Link {
            client: director::client(&context, &secured, &dial),
            party,
            application: context.application.clone(),
            managers: managers.clone(),
            connected,
        };
        tasks.spawn(link.run());
        serve(
            listener,
            secured.server_tls(),
            ServerSettings::default(),
            shutdown,
            move |request, peer| {
                let managers = managers.clone();
                async move {
                    if request.uri().path() == PATH_AGENT_STREAM {
                        managers.accept_agent(request, &peer).await
                    } else {
                        let text = "a manager has no such path";
                        error_response(http::StatusCode::NOT_FOUND, "not_found", text, None)
                    }
                }
            },
        )
        .await;
    }
    tasks.shutdown().await;
    let _ = std::fs::remove_file(&status_socket);
    Ok(())
}
