//! The front door: a process that leads people's requests from the Director's computer to
//! applications' proxies. It is fed routes by level and generation from a file, says in another
//! file what it has taken, and goes on with what it last took while the Director is away.
//! Who gets which host name, and when a node may stop, is the Director's business.

mod access_log;
mod body;
mod config;
mod dial;
mod feed;
mod headers;
mod pages;
mod proxy;
mod server;
mod table;
mod upstream;

pub use config::{EdgeConfig, EdgeError};
pub use dial::{CloudDial, Dial};
pub use server::Edge;

use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the edge until SIGTERM or SIGINT: then it stops listening, finishes what is in flight
/// (at most `shutdown_seconds`) and returns.
///
/// # Errors
/// [`EdgeError`] when it cannot start: port taken, folder missing.
pub async fn run(config: EdgeConfig) -> Result<(), EdgeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(EdgeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(EdgeError::Signals)?;
    let edge = Edge::bind(config, Arc::new(CloudDial::default())).await?;
    edge.serve(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await;
    Ok(())
}
