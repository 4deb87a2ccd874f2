//! How TCP notices by itself that a peer has vanished.

use nix::sys::socket::{setsockopt, sockopt};
use std::time::Duration;
use tokio::net::TcpStream;

/// Settings of every TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// Idle time before the first keep-alive probe. Default 10 s.
    pub keepalive_idle: Duration,
    /// Time between probes; after three without an answer the connection is dead. Default 5 s.
    pub keepalive_interval: Duration,
    /// How long sent data may stay unacknowledged. Default 20 s.
    pub user_timeout: Duration,
}

impl Default for TcpSettings {
    fn default() -> Self {
        Self {
            keepalive_idle: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(5),
            user_timeout: Duration::from_secs(20),
        }
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs())
        .unwrap_or(u32::MAX)
        .clamp(1, 32_767)
}

/// Applies the settings. A failure leaves a connection that works but notices loss later, so it is
/// only noted.
pub(crate) fn tune(stream: &TcpStream, settings: &TcpSettings) {
    let user_timeout = u32::try_from(settings.user_timeout.as_millis()).unwrap_or(u32::MAX);
    let done = stream.set_nodelay(true).is_ok()
        && setsockopt(stream, sockopt::KeepAlive, &true).is_ok()
        && setsockopt(
            stream,
            sockopt::TcpKeepIdle,
            &seconds(settings.keepalive_idle),
        )
        .is_ok()
        && setsockopt(
            stream,
            sockopt::TcpKeepInterval,
            &seconds(settings.keepalive_interval),
        )
        .is_ok()
        && setsockopt(stream, sockopt::TcpKeepCount, &3).is_ok()
        && setsockopt(stream, sockopt::TcpUserTimeout, &user_timeout).is_ok();
    if !done {
        tracing::debug!("a connection's keep-alive could not be set");
    }
}
