//! PID 1 of a machine: reaps whatever ends, keeps the agent running and holds role processes as
//! its own children so that they outlive the agent. It is synchronous, has one thread, knows no
//! network and decides nothing: which processes should run is the agent's business, told over a
//! local socket.

mod keeper;
mod logs;
pub mod protocol;
mod server;
mod signals;
mod spawn;
mod users;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// How an init is set up; the defaults are those of a machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where requests are taken.
    pub socket: PathBuf,
    /// What to run as the agent; nothing when empty.
    pub agent: Vec<String>,
    /// Who may make requests (a uid as init sees it).
    pub allowed_uid: u32,
    /// Folder with `passwd` and `group`.
    pub etc: PathBuf,
    /// How long everything gets to end after SIGTERM.
    pub shutdown_grace: Duration,
    /// A log is set aside as `NAME.1` when it would grow beyond this many bytes.
    pub log_limit: u64,
    /// First pause before an agent that ended is started again.
    pub agent_backoff: Duration,
    /// Longest such pause.
    pub agent_backoff_cap: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(protocol::SOCKET),
            agent: vec!["/usr/local/bin/conpaas".to_owned(), "agent".to_owned()],
            allowed_uid: 0,
            etc: PathBuf::from("/etc"),
            shutdown_grace: Duration::from_secs(5),
            log_limit: 8 * 1024 * 1024,
            agent_backoff: Duration::from_millis(200),
            agent_backoff_cap: Duration::from_secs(10),
        }
    }
}

/// What keeps an init from running at all.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Runs init with a machine's settings until SIGTERM; the answer is the exit code.
pub fn main() -> i32 {
    match run(Settings::default()) {
        Ok(()) => 0,
        Err(error) => {
            use std::error::Error;
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            say("ERROR", &format!("{error}: {cause}"));
            1
        }
    }
}

/// Runs init until SIGTERM or SIGINT, then ends everything it keeps.
pub fn run(settings: Settings) -> Result<(), InitError> {
    keeper::Keeper::new(settings)?.run()
}

/// One JSON line on the console; a console that is gone is no reason to stop.
pub(crate) fn say(level: &str, message: &str) {
    let line = serde_json::json!({ "level": level, "target": "init", "message": message });
    let _ = writeln!(std::io::stderr(), "{line}");
}
