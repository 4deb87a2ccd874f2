//! A socket on the node that tells how the manager process is: one JSON line to whoever
//! connects, of its own user. The manager's own node proves by it that the manager works.

use crate::managers::ServiceManagers;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// How a manager process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    pub v: u32,
    /// Its stream to the Director stands.
    pub director: bool,
    /// It knows what is wanted and manages by it.
    pub managing: bool,
    /// Services it has.
    pub services: usize,
    /// Agents connected to it.
    pub agents: usize,
}

pub fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub async fn serve(
    listener: UnixListener,
    managers: ServiceManagers,
    connected: watch::Receiver<bool>,
) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        let (managers, director) = (managers.clone(), *connected.borrow());
        tokio::spawn(async move {
            let count = managers.count().await;
            let status = ManagerStatus {
                v: 1,
                director,
                managing: count.is_some_and(|count| count.level_known),
                services: count.map_or(0, |count| count.services),
                agents: count.map_or(0, |count| count.agents),
            };
            if let Ok(mut text) = serde_json::to_vec(&status) {
                text.push(b'\n');
                let _ = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&text)).await;
            }
        });
    }
}
