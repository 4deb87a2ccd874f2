//! What is said on init's socket: one JSON request a line, one JSON answer a line, in order.
//! Both carry the protocol's version.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// The version spoken here.
pub const VERSION: u32 = 1;
/// Where init listens on a machine.
pub const SOCKET: &str = "/run/conpaas/init.sock";
/// Longest request, in bytes.
pub const MAX_LINE: usize = 1024 * 1024;

/// A process that should run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Unique among the processes init keeps.
    pub name: String,
    /// Program and arguments; the program is looked up in PATH when it has no slash.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// User to run as, by name; init's own when absent.
    pub user: Option<String>,
    /// Where standard output and error are appended.
    pub log: PathBuf,
    pub working_directory: PathBuf,
    /// Signal number for a graceful stop.
    pub stop_signal: i32,
}

impl Spec {
    /// A digest over everything the spec says, in hex.
    pub fn digest(&self) -> String {
        // A spec is made of strings and numbers, so it always encodes.
        let text = serde_json::to_vec(self).unwrap_or_default();
        hex::encode(Sha256::digest(&text))
    }
}

/// A process as init knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    /// Its process id, or the last one it had.
    pub pid: i32,
    pub running: bool,
    /// Exit code, or 128 + signal, of the last end.
    pub exit: Option<i32>,
    /// [`Spec::digest`] of what it was started with.
    pub digest: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// As shells write it: the code, or 128 and the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// How often a process has ended although nobody had asked it to, since init began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The process' name, or [`AGENT`].
    pub name: String,
    pub count: u64,
    /// How it ended the last time.
    pub last: Exit,
}

/// The agent's name among [`Ends`]; no process of a role has it.
pub const AGENT: &str = "agent";

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub v: u32,
    #[serde(flatten)]
    pub call: Call,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Call {
    /// Start it unless it runs; answered by [`Outcome::Process`].
    Ensure { spec: Spec },
    /// Answered by [`Outcome::Processes`].
    List,
    /// Which processes have ended unasked; answered by [`Outcome::Ends`].
    Ends,
    /// Signal a running process; one that does not run is no error.
    Signal { name: String, signal: i32 },
    /// Stop gracefully, by SIGKILL to all its processes after the grace, then forget it.
    /// Answered when it is gone.
    Stop { name: String, grace_ms: u64 },
    /// Drop what is known of an ended process.
    Forget { name: String },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub v: u32,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Process(Status),
    Processes(Vec<Status>),
    Ends(Vec<Ends>),
    Done {},
    Error { code: String, message: String },
}

impl Outcome {
    /// A failure with a stable code and words for people.
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self::Error {
            code: code.to_owned(),
            message: message.into(),
        }
    }
}

/// Reads a request line, or says what to answer instead.
pub fn parse(line: &[u8]) -> Result<Call, Outcome> {
    #[derive(Deserialize)]
    struct Envelope {
        v: u32,
    }
    let malformed =
        |error: serde_json::Error| Outcome::error("malformed", format!("not a request: {error}"));
    let envelope: Envelope = serde_json::from_slice(line).map_err(malformed)?;
    if envelope.v != VERSION {
        return Err(Outcome::error(
            "version",
            format!("version {} is not spoken here, only {VERSION}", envelope.v),
        ));
    }
    serde_json::from_slice::<Request>(line)
        .map(|request| request.call)
        .map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "a/b".into(),
            argv: vec!["x".into()],
            env: vec![],
            user: None,
            log: "/l".into(),
            working_directory: "/".into(),
            stop_signal: 15,
        }
    }

    #[test]
    fn requests_and_answers_survive_the_wire() {
        for call in [
            Call::Ensure { spec: spec() },
            Call::List,
            Call::Ends,
            Call::Signal {
                name: "a".into(),
                signal: 1,
            },
            Call::Stop {
                name: "a".into(),
                grace_ms: 5,
            },
            Call::Forget { name: "a".into() },
        ] {
            let text = serde_json::to_vec(&Request {
                v: VERSION,
                call: call.clone(),
            })
            .unwrap();
            assert_eq!(parse(&text).unwrap(), call);
        }
        for outcome in [
            Outcome::Done {},
            Outcome::Processes(vec![]),
            Outcome::Ends(vec![Ends {
                name: AGENT.into(),
                count: 2,
                last: Exit::Signal(9),
            }]),
            Outcome::error("a", "b"),
        ] {
            let text = serde_json::to_vec(&Answer {
                v: VERSION,
                outcome: outcome.clone(),
            })
            .unwrap();
            assert_eq!(
                serde_json::from_slice::<Answer>(&text).unwrap().outcome,
                outcome
            );
        }
    }

    #[test]
    fn other_versions_are_refused_by_name() {
        let outcome = parse(br#"{"v":2,"do":"dance"}"#).unwrap_err();
        assert!(matches!(outcome, Outcome::Error { code, .. } if code == "version"));
        let outcome = parse(br#"{"v":1,"do":"dance"}"#).unwrap_err();
        assert!(matches!(outcome, Outcome::Error { code, .. } if code == "malformed"));
    }

    #[test]
    fn a_digest_changes_with_the_spec() {
        let other = Spec {
            argv: vec!["y".into()],
            ..spec()
        };
        assert_eq!(spec().digest(), spec().digest());
        assert_ne!(spec().digest(), other.digest());
    }
}
