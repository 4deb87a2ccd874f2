//! The agent's socket for processes of its own node, root's only: a manager process gets its
//! certificate by way of it, since the agent's key is nobody else's. One JSON request a line.

use crate::party::{Enrol, EnrolError, chained};
use async_trait::async_trait;
use conpaas_model::ids::MachineId;
use conpaas_model::protocol::{EnrolAnswer, EnrolRequest, PATH_ENROL_MANAGER};
use conpaas_pki::Roots;
use conpaas_wire::Client;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

const VERSION: u32 = 1;
const MAX_LINE: u64 = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(40);

#[derive(Serialize, Deserialize)]
struct Request {
    v: u32,
    #[serde(flatten)]
    call: Call,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Call {
    /// Get a manager's certificate for this signing request (PEM).
    Certify { csr: String },
}

#[derive(Serialize, Deserialize)]
struct Answer {
    v: u32,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Certificate(Box<EnrolAnswer>),
    Error { message: String },
}

/// The socket could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("the agent's socket {} does not work", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the agent's socket gave no valid answer")]
    Malformed(#[source] serde_json::Error),
    #[error("the agent took too long")]
    Timeout,
}

/// Listens; the socket is replaced when an earlier agent left one.
pub(crate) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever connects is asked for its uid as well.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers on the socket for ever.
pub(crate) async fn serve(
    listener: UnixListener,
    machine: MachineId,
    director: watch::Receiver<Option<Client>>,
) {
    let own = nix::unistd::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the agent's socket does not accept");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        if stream.peer_cred().map(|peer| peer.uid()).ok() != Some(own) {
            tracing::warn!("a stranger was refused at the agent's socket");
            continue;
        }
        let (machine, director) = (machine.clone(), director.clone());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(DEADLINE, converse(stream, machine, director)).await;
        });
    }
}

async fn converse(
    stream: UnixStream,
    machine: MachineId,
    director: watch::Receiver<Option<Client>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(MAX_LINE).read_line(&mut line).await?;
    let outcome = match serde_json::from_str::<Request>(&line) {
        Ok(Request {
            v: VERSION,
            call: Call::Certify { csr },
        }) => certify(csr, machine, director).await,
        Ok(_) => Outcome::Error {
            message: format!("only version {VERSION} is spoken here"),
        },
        Err(error) => Outcome::Error {
            message: format!("not a request: {error}"),
        },
    };
    let mut text = serde_json::to_vec(&Answer {
        v: VERSION,
        outcome,
    })?;
    text.push(b'\n');
    stream.get_mut().write_all(&text).await
}

async fn certify(
    csr: String,
    machine: MachineId,
    mut director: watch::Receiver<Option<Client>>,
) -> Outcome {
    let client = match director.wait_for(Option::is_some).await {
        Ok(client) => client.clone(),
        Err(_) => None,
    };
    let Some(client) = client else {
        return Outcome::Error {
            message: "the agent is going down".to_owned(),
        };
    };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let request = EnrolRequest {
        machine,
        csr,
        token: None,
        version,
    };
    match client
        .post_json::<_, EnrolAnswer>(PATH_ENROL_MANAGER, &request)
        .await
    {
        Ok(answer) => Outcome::Certificate(Box::new(answer)),
        Err(error) => Outcome::Error {
            message: chained(&error),
        },
    }
}

/// The other side: what a manager process uses.
#[derive(Clone, Debug)]
pub struct AgentSocket {
    path: PathBuf,
}

impl AgentSocket {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    async fn ask(&self, call: Call) -> Result<Outcome, LocalError> {
        let io = |source| LocalError::Io {
            path: self.path.clone(),
            source,
        };
        let mut stream = UnixStream::connect(&self.path).await.map_err(io)?;
        let mut text =
            serde_json::to_vec(&Request { v: VERSION, call }).map_err(LocalError::Malformed)?;
        text.push(b'\n');
        stream.write_all(&text).await.map_err(io)?;
        let mut line = String::new();
        BufReader::new(stream)
            .read_line(&mut line)
            .await
            .map_err(io)?;
        serde_json::from_str::<Answer>(&line)
            .map(|answer| answer.outcome)
            .map_err(LocalError::Malformed)
    }
}

#[async_trait]
impl Enrol for AgentSocket {
    async fn enrol(
        &self,
        csr: String,
        _roots: &Roots,
        _first: bool,
    ) -> Result<EnrolAnswer, EnrolError> {
        let asked = tokio::time::timeout(DEADLINE, self.ask(Call::Certify { csr })).await;
        match asked.unwrap_or(Err(LocalError::Timeout)) {
            Ok(Outcome::Certificate(answer)) => Ok(*answer),
            Ok(Outcome::Error { message }) => Err(EnrolError(message)),
            Err(error) => Err(EnrolError(chained(&error))),
        }
    }
}
