//! Processes by way of the machine's init, and how quickly one that keeps ending is started
//! again.

use async_trait::async_trait;
use conpaas_core::agent::RestartPacer;
use conpaas_core::role_agent::{ProcessSpec, ProcessStatus, Processes, RoleError};
use conpaas_init::protocol::{self, Answer, Call, Outcome, Request, Spec, Status, VERSION};
use conpaas_model::ends::{self, ProcessEnds};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// How long init may take for what it does at once.
const DEADLINE: Duration = Duration::from_secs(10);

/// The processes init keeps, over its socket.
#[derive(Clone, Debug)]
pub struct InitProcesses {
    socket: PathBuf,
}

impl InitProcesses {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn ask(&self, call: Call, deadline: Duration) -> Result<Outcome, RoleError> {
        let asked = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            let mut text = serde_json::to_vec(&Request { v: VERSION, call })?;
            text.push(b'\n');
            stream.write_all(&text).await?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await?;
            Ok::<_, std::io::Error>(serde_json::from_str::<Answer>(&line)?)
        };
        let answer = tokio::time::timeout(deadline, asked)
            .await
            .map_err(|_| RoleError::Failed("init did not answer in time".to_owned()))?
            .map_err(RoleError::io("asking init"))?;
        match answer.outcome {
            Outcome::Error { message, .. } => Err(RoleError::Failed(message)),
            outcome => Ok(outcome),
        }
    }
}

fn unexpected() -> RoleError {
    RoleError::Failed("init gave an answer to something else".to_owned())
}

fn status(status: Status) -> ProcessStatus {
    ProcessStatus {
        name: status.name,
        pid: status.pid,
        running: status.running,
        exit: status.exit,
        digest: status.digest,
    }
}

fn ends(found: protocol::Ends) -> ProcessEnds {
    let process = if found.name == protocol::AGENT {
        ends::AGENT.to_owned()
    } else {
        found.name
    };
    ProcessEnds {
        process,
        count: found.count,
        last: match found.last {
            protocol::Exit::Code(code) => ends::Exit::Code(code),
            protocol::Exit::Signal(signal) => ends::Exit::Signal(signal),
        },
    }
}

#[async_trait]
impl Processes for InitProcesses {
    async fn ensure(&self, spec: &ProcessSpec) -> Result<ProcessStatus, RoleError> {
        let spec = Spec {
            name: spec.name.clone(),
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            user: spec.user.clone(),
            log: spec.log.clone(),
            working_directory: spec.working_directory.clone(),
            stop_signal: spec.stop_signal,
        };
        match self.ask(Call::Ensure { spec }, DEADLINE).await? {
            Outcome::Process(found) => Ok(status(found)),
            _ => Err(unexpected()),
        }
    }

    async fn list(&self) -> Result<Vec<ProcessStatus>, RoleError> {
        match self.ask(Call::List, DEADLINE).await? {
            Outcome::Processes(list) => Ok(list.into_iter().map(status).collect()),
            _ => Err(unexpected()),
        }
    }

    async fn ends(&self) -> Result<Vec<ProcessEnds>, RoleError> {
        match self.ask(Call::Ends, DEADLINE).await? {
            Outcome::Ends(list) => Ok(list.into_iter().map(ends).collect()),
            _ => Err(unexpected()),
        }
    }

    async fn signal(&self, name: &str, signal: i32) -> Result<(), RoleError> {
        self.ask(
            Call::Signal {
                name: name.to_owned(),
                signal,
            },
            DEADLINE,
        )
        .await
        .map(drop)
    }

    async fn stop(&self, name: &str, grace: Duration) -> Result<(), RoleError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let call = Call::Stop {
            name: name.to_owned(),
            grace_ms,
        };
        self.ask(call, grace.saturating_add(DEADLINE))
            .await
            .map(drop)
    }
}

/// Processes that are started again with growing pauses when they keep ending by themselves.
pub(crate) struct Paced {
    inner: Arc<dyn Processes>,
    born: Instant,
    pacers: Mutex<HashMap<String, RestartPacer>>,
}

impl Paced {
    pub(crate) fn new(inner: Arc<dyn Processes>) -> Self {
        Self {
            inner,
            born: Instant::now(),
            pacers: Mutex::default(),
        }
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut RestartPacer, Duration) -> T) -> T {
        let now = self.born.elapsed();
        let mut pacers = self.pacers.lock().unwrap_or_else(PoisonError::into_inner);
        let pacer = pacers.entry(name.to_owned()).or_insert(RestartPacer::new(
            Duration::from_secs(1),
            Duration::from_secs(15),
            Duration::from_secs(30),
        ));
        act(pacer, now)
    }
}

#[async_trait]
impl Processes for Paced {
    async fn ensure(&self, spec: &ProcessSpec) -> Result<ProcessStatus, RoleError> {
        let found = self
            .inner
            .list()
            .await?
            .into_iter()
            .find(|found| found.name == spec.name);
        if found.as_ref().is_some_and(|found| found.running) {
            return self.inner.ensure(spec).await;
        }
        let exit = found.and_then(|found| found.exit);
        let held = self.with(&spec.name, |pacer, now| {
            pacer.failed(now);
            let wait = pacer.wait(now).map(|wait| (wait, pacer.failures()));
            if wait.is_none() {
                pacer.started(now);
            }
            wait
        });
        if let Some((wait, failures)) = held {
            let how = exit
                .map(|code| format!(" with code {code}"))
                .unwrap_or_default();
            return Err(RoleError::Failed(format!(
                "process '{}' ended{how} ({failures} times in a row); it is started again in {} s",
                spec.name,
                wait.as_secs() + 1
            )));
        }
        let started = self.inner.ensure(spec).await;
        if started.is_err() {
            self.with(&spec.name, RestartPacer::failed);
        }
        started
    }

    async fn list(&self) -> Result<Vec<ProcessStatus>, RoleError> {
        self.inner.list().await
    }

    async fn ends(&self) -> Result<Vec<ProcessEnds>, RoleError> {
        self.inner.ends().await
    }

    async fn signal(&self, name: &str, signal: i32) -> Result<(), RoleError> {
        self.inner.signal(name, signal).await
    }

    async fn stop(&self, name: &str, grace: Duration) -> Result<(), RoleError> {
        // What is stopped on purpose has not failed.
        self.pacers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        self.inner.stop(name, grace).await
    }
}
