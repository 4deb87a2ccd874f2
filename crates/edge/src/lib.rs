//! The front door: a process that leads people's requests from the Director's computer to
//! applications' proxies. It is fed routes by level and generation from a file, says in another
//! file what it has taken, and goes on with what it last took while the Director is away. Out of
//! the same door applications get out that may.
//! Who gets which host name, and when a node may stop, is the Director's business.

mod access_log;
mod body;
mod config;
mod connection;
mod dial;
mod egress;
mod feed;
mod headers;
mod pages;
mod proxy;
mod server;
mod table;
mod tls;
mod upstream;

pub use config::{EdgeConfig, EdgeError, Https};
pub use dial::{CloudDial, Dial};
pub use egress::{EgressConfig, NoRange, Range};
pub use server::{Edge, Ending, Listeners};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the edge until SIGTERM or SIGINT: then it stops listening, finishes what is in flight
/// (at most `shutdown_seconds`) and returns. SIGUSR1 says that another edge listens on the same
/// socket: then idle connections may still ask once more before they are let go.
///
/// It listens on those `listeners` that were handed over, else on its own; `ready` is called once
/// connections are taken.
///
/// # Errors
/// [`EdgeError`] when it cannot start: port taken, folder missing.
pub async fn run(
    config: EdgeConfig,
    listeners: Listeners,
    ready: impl FnOnce(),
) -> Result<(), EdgeError> {
    let mut handed_over = signal(SignalKind::user_defined1()).map_err(EdgeError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(EdgeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(EdgeError::Signals)?;
    raise_open_files();
    let dial = Arc::new(CloudDial::default());
    let edge = Edge::with_listeners(config, dial, listeners)?;
    ready();
    edge.serve_until(async move {
        tokio::select! {
            _ = terminate.recv() => Ending::Stop,
            _ = interrupt.recv() => Ending::Stop,
            _ = handed_over.recv() => Ending::HandedOver,
        }
    })
    .await;
    Ok(())
}

/// As many connections as this process may have at all; what it was started with is often few.
fn raise_open_files() {
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    if let Err(error) = limits.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
