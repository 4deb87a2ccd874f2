//! Messages between Director, managers and agents, and the paths they travel on. Levels go
//! down, observations go up; each stream's version is negotiated when it opens.

use crate::ends::EndsToTell;
use crate::event::{LeaveReason, RequestReason};
use crate::ids::{
    ApplicationId, Epoch, Generation, MachineId, NodeNumber, ReleaseNumber, ServiceId,
};
use crate::instance::InstanceType;
use crate::level::{Level, LevelVersion};
use crate::metrics::{NodeMetrics, Reading};
use crate::spec::ServiceSpec;
use crate::status::{AgentReport, EdgeStatus, ExposureVersion, NodeRecord, ServiceStatus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

/// Port of the Director for machines (mutual TLS), at each application's gateway address.
pub const DIRECTOR_PORT: u16 = 7443;
/// Port of a manager for the agents of its application (mutual TLS).
pub const MANAGER_PORT: u16 = 7444;
/// The Director's address inside an isolated application network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

/// Enrolment and renewal: `POST`, [`EnrolRequest`] to [`EnrolAnswer`]; no certificate needed.
pub const PATH_ENROL: &str = "/v1/enrol";
/// A manager process gets its own identity: `POST`, with the certificate of its node's agent.
pub const PATH_ENROL_MANAGER: &str = "/v1/enrol-manager";
/// Where is my manager: `GET` by an agent, gives [`Located`].
pub const PATH_LOCATE: &str = "/v1/locate";
/// Blobs by hash: `GET /v1/blobs/SHA256`, with `Range`, by agents and managers.
pub const PATH_BLOBS: &str = "/v1/blobs";
/// The value of a secret: `GET /v1/secrets/NAME/VERSION` by an agent whose node has a role of a
/// release that names it; gives [`SecretValue`]. To everybody else it is missing.
pub const PATH_SECRETS: &str = "/v1/secrets";
/// A piece of a daemon's log: `POST /v1/logs/ROLE-NAME?file=F&offset=N` by an agent, its bytes the
/// body; answered by [`LogPosition`]. An empty body only asks.
pub const PATH_LOGS: &str = "/v1/logs";
/// What roots a party trusts, said with the certificate it has now: `POST`, [`TrustReport`] to
/// [`TrustAnswer`], by agents and managers.
pub const PATH_TRUST: &str = "/v1/trust";
/// Most bytes of a piece of a log.
pub const MAX_LOG_PIECE: usize = 256 * 1024;
/// Agent's stream, at a manager (or at the Director for nodes of the system service):
/// up [`FromAgent`], down [`ToAgent`].
pub const PATH_AGENT_STREAM: &str = "/v1/agent-stream";
/// Manager's stream at the Director: up [`FromManager`], down [`ToManager`].
pub const PATH_MANAGER_STREAM: &str = "/v1/manager-stream";

/// Where a machine sees its own control group, read-only, if its cloud can show it.
pub const MACHINE_GROUP: &str = "/run/cgroup";

/// The data a machine gets at birth (contextualization), at `/etc/conpaas/context.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Context {
    pub installation: crate::ids::InstallationId,
    pub application: ApplicationId,
    pub service: ServiceId,
    pub node: NodeNumber,
    pub machine: MachineId,
    pub address: Ipv4Addr,
    pub instance_type: InstanceType,
    /// PEM bundle of the roots to trust.
    pub roots: String,
    pub director: SocketAddr,
    /// Secret, bound to this machine, good until its boot deadline.
    pub token: String,
}

/// Asks for a certificate: the signing request proves the key, the token the birth.
#[derive(Clone, Serialize, Deserialize)]
pub struct EnrolRequest {
    pub machine: MachineId,
    /// PEM of the certificate signing request.
    pub csr: String,
    /// Needed the first time; a known key renews without.
    pub token: Option<String>,
    /// Version of ConPaaS that asks.
    pub version: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// PEM chain, leaf first.
    pub chain: String,
    /// PEM bundle of the roots to trust from now on.
    pub roots: String,
    /// Seconds from now until the certificate ends; renew at two thirds of it.
    pub lifetime_seconds: u64,
    /// Stands for the set of roots and for which of them signs; empty from older Directors.
    #[serde(default)]
    pub trust: String,
}

/// A party says whom it trusts; with which certificate it does shows which root that is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustReport {
    /// Fingerprints of the roots.
    pub trusts: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustAnswer {
    /// As in [`EnrolAnswer`]: when it is another than the party's, it should renew.
    pub trust: String,
}

/// The value of one version of a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValue {
    pub value: String,
}

/// A value is never in a log.
impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretValue(..)")
    }
}

/// How far the Director has a log of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// Names the file on the machine (its inode); empty when nothing came from this machine yet.
    pub file: String,
    pub offset: u64,
}

/// Where an agent's manager is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Located {
    pub epoch: Epoch,
    pub manager: ManagerAddress,
    /// As in [`EnrolAnswer`].
    #[serde(default)]
    pub trust: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManagerAddress {
    /// The Director itself manages this node (nodes of the system service).
    Director,
    At {
        machine: MachineId,
        address: SocketAddr,
    },
    /// None at the moment; ask again.
    Nowhere,
}

/// From a manager (or the Director) to an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    Level(Level),
    /// A command of the service type; answered by [`FromAgent::CommandResult`].
    Command {
        id: u64,
        role: String,
        name: String,
        arguments: serde_json::Value,
    },
}

/// From an agent to its manager.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    Report(Box<AgentReport>),
    /// A level was refused: it was older than `seen`.
    Refused {
        refused: LevelVersion,
        seen: LevelVersion,
    },
    CommandResult {
        id: u64,
        result: Result<serde_json::Value, String>,
    },
    /// What changed of what is measured here since this stream's last word.
    Metrics(Vec<Reading>),
}

/// From the Director to a manager.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToManager {
    Level(Box<ManagerLevel>),
    /// A command of the service type; answered by [`FromManager::CommandResult`].
    Command {
        id: u64,
        service: ServiceId,
        name: String,
        arguments: serde_json::Value,
    },
}

/// Everything a manager should know, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManagerLevel {
    /// Orders these within one Director process' life and epoch.
    pub generation: Generation,
    pub application: ApplicationId,
    pub epoch: Epoch,
    pub instance_types: Vec<InstanceType>,
    pub services: Vec<ServiceLevel>,
    /// As in [`EnrolAnswer`].
    #[serde(default)]
    pub trust: String,
}

/// One service of a manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceLevel {
    pub spec: ServiceSpec,
    pub nodes: Vec<NodeRecord>,
    /// Which agent may speak for which node.
    pub machines: BTreeMap<MachineId, NodeNumber>,
    /// The next node number that was never used.
    pub next_node: NodeNumber,
    pub edge: EdgeStatus,
    /// The release that people were last led to, for a manager that does not know.
    #[serde(default)]
    pub shown: Option<ReleaseNumber>,
}

/// From a manager to the Director.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromManager {
    Report(Box<ManagerReport>),
    CommandResult {
        id: u64,
        result: Result<serde_json::Value, String>,
    },
    /// What was heard of nodes since this stream's last word: totals of counters, and gauges.
    Metrics(Vec<NodeMetrics>),
}

/// Everything a manager wishes and observes, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManagerReport {
    pub epoch: Epoch,
    pub services: Vec<ServiceReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub service: ServiceId,
    /// Nodes that should be there or go. One that is not mentioned is left alone.
    pub nodes: BTreeMap<NodeNumber, NodeWish>,
    pub exposure: Exposure,
    pub status: ServiceStatus,
    /// Why nodes are wished that are not there yet, for the events that tell of them.
    #[serde(default)]
    pub requested: BTreeMap<NodeNumber, RequestReason>,
    /// Why nodes are wished gone.
    #[serde(default)]
    pub leaving: BTreeMap<NodeNumber, LeaveReason>,
    /// Ends of processes that should be told, until the level says that they were.
    #[serde(default)]
    pub ends: Vec<EndsToTell>,
}

/// What a manager wishes of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeWish {
    Present {
        cloud: String,
        instance_type: String,
    },
    Gone,
}

/// Where people can be led to, for the edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    pub version: ExposureVersion,
    pub upstreams: BTreeMap<NodeNumber, SocketAddr>,
}
