//! The half of a service type that runs on nodes: how a role's daemons are made to match a
//! level. The agent's shell calls it; processes are children of the machine's init, so they
//! outlive the agent and are found again by name.

use crate::endpoint::Loopback;
use async_trait::async_trait;
use conpaas_model::ends::ProcessEnds;
use conpaas_model::environment::Environment;
use conpaas_model::ids::SecretVersion;
use conpaas_model::level::RoleLevel;
use conpaas_model::metrics::RoleReading;
use conpaas_model::spec::CodeRef;
use conpaas_model::status::RoleStatus;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What went wrong on a node, in words for people.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error("{what} failed")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Failed(String),
}

impl RoleError {
    /// Wraps an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A process that init should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Unique on the node, for instance `web/backend/r3`.
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// User and group to run as, by name in the machine's /etc/passwd; root when absent.
    pub user: Option<String>,
    /// Where standard output and error go (appended), for instance `/var/log/conpaas/x.log`.
    pub log: PathBuf,
    pub working_directory: PathBuf,
    /// Signal for a graceful stop (a number as in signal(7)).
    pub stop_signal: i32,
}

/// A process as init knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStatus {
    pub name: String,
    pub pid: i32,
    pub running: bool,
    /// Exit code, or 128 + signal, of the last end.
    pub exit: Option<i32>,
    /// Digest of the spec it was started with, to notice that it should be another now.
    pub digest: String,
}

/// Processes of a node, kept by its init.
#[async_trait]
pub trait Processes: Send + Sync {
    /// Makes a process run: starts it when it is absent or has ended; a running one with the
    /// same spec is left alone, one with another spec is an error (stop it first).
    async fn ensure(&self, spec: &ProcessSpec) -> Result<ProcessStatus, RoleError>;
    async fn list(&self) -> Result<Vec<ProcessStatus>, RoleError>;
    /// Which processes have ended although nobody had asked them to, the agent's own included.
    /// Without an init that counts, none are known.
    async fn ends(&self) -> Result<Vec<ProcessEnds>, RoleError> {
        Ok(Vec::new())
    }
    /// Sends a signal to a running process; one that is not running is no error.
    async fn signal(&self, name: &str, signal: i32) -> Result<(), RoleError>;
    /// Stops gracefully, after `grace` by SIGKILL to its whole group, and forgets it.
    async fn stop(&self, name: &str, grace: std::time::Duration) -> Result<(), RoleError>;
}

/// Code on a node.
#[async_trait]
pub trait CodeStore: Send + Sync {
    /// The folder with the unpacked archive; fetched when absent. Read-only to role processes.
    async fn folder(&self, code: &CodeRef) -> Result<PathBuf, RoleError>;
}

/// Secrets on a node: kept in memory only, while a level names them.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// The value of a version, which is asked of the Director when it is not here yet. That may
    /// take some seconds: to be called from work in the background.
    async fn value(&self, name: &str, version: SecretVersion) -> Result<String, RoleError>;
}

/// All that processes of a release are given, by name: variables and the values of secrets.
///
/// # Errors
/// When the value of a secret cannot be had now.
pub async fn environment(
    secrets: &dyn SecretStore,
    wish: &Environment,
) -> Result<BTreeMap<String, String>, RoleError> {
    let mut all = wish.variables.clone();
    for (name, version) in &wish.secrets {
        all.insert(name.clone(), secrets.value(name, *version).await?);
    }
    Ok(all)
}

/// What a role's agent half may use of its node.
#[derive(Clone)]
pub struct NodeContext {
    pub node_name: String,
    /// `APP/SERVICE`-free id of the service, safe in file names.
    pub service: String,
    pub address: Ipv4Addr,
    pub processes: Arc<dyn Processes>,
    pub code: Arc<dyn CodeStore>,
    pub secrets: Arc<dyn SecretStore>,
    /// Folder for a role's generated configuration, sockets and state, in memory; made on
    /// demand, gone with the machine.
    pub run_folder: PathBuf,
    pub log_folder: PathBuf,
    /// Where the node's endpoints are.
    pub loopback: Loopback,
}

impl NodeContext {
    /// A role's own folder for configuration and sockets.
    pub fn role_folder(&self, role: &str) -> PathBuf {
        self.run_folder.join(role)
    }
    /// A role's log of the given name.
    pub fn log(&self, role: &str, name: &str) -> PathBuf {
        self.log_folder.join(format!("{role}-{name}.log"))
    }
    /// A process name that no other role on the node has.
    pub fn process_name(&self, role: &str, part: &str) -> String {
        format!("{role}/{part}")
    }
    pub fn run_folder(&self) -> &Path {
        &self.run_folder
    }
}

/// One role on a node. The shell never calls two methods of one role at once.
#[async_trait]
pub trait RoleAgent: Send {
    /// Brings the daemons nearer to the level and returns quickly: it starts, reconfigures,
    /// lets go and stops what it can now, and is called again every second (and at once when
    /// the level changes) until `observe` shows the level reached. Idempotent; finds daemons
    /// of an earlier agent again.
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError>;
    /// What is the case now: phases proven by real requests, who is still in use.
    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError>;
    /// What the role's daemons measured: totals since their lives began, and gauges as they are.
    /// Called about every second, after `observe`; cheap, and what does not answer is left out.
    async fn metrics(
        &mut self,
        _node: &NodeContext,
        _level: &RoleLevel,
    ) -> Result<Vec<RoleReading>, RoleError> {
        Ok(Vec::new())
    }
    /// The role is wanted no more: stop all its daemons, with a grace for what they have.
    /// Called again until it answers true (nothing left).
    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError>;
    /// A command of the type for this role.
    async fn command(
        &mut self,
        _node: &NodeContext,
        name: &str,
        _arguments: &serde_json::Value,
    ) -> Result<serde_json::Value, RoleError> {
        Err(RoleError::Failed(format!(
            "this role has no command '{name}'"
        )))
    }
}

/// Makes the agent half of a type's roles.
pub trait RoleAgents: Send + Sync {
    /// The agent half of a role, or nothing when the type has no such role.
    fn role_agent(&self, role: &str) -> Option<Box<dyn RoleAgent>>;
    /// What is asked in place of a question that was asked once at an endpoint (by its name) and
    /// may have been carried out, though no answer came; nothing when the question itself may be
    /// asked twice. Only for endpoints that resend.
    fn asked_again(&self, _endpoint: &str, _question: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
