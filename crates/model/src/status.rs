//! What is observed: of role instances and nodes by agents, of machines by the Director, of the
//! edge by the Director, of a whole service by its manager. States shown to people are here too.

use crate::ends::{ProcessEnds, Told};
use crate::ids::{Generation, NodeNumber, ReleaseNumber};
use crate::level::{Instance, Level, LevelVersion};
use crate::spec::RoleName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use utoipa::ToSchema;

/// States of a service and an application, as people see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceState {
    /// Exists, never started.
    Init,
    /// Starting.
    Prologue,
    Running,
    /// Being changed while it serves.
    Adapting,
    /// Stopping.
    Epilogue,
    Stopped,
    /// Something is wrong; the reason says what and what to do next.
    Error,
}

impl std::fmt::Display for ServiceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Init => "INIT",
            Self::Prologue => "PROLOGUE",
            Self::Running => "RUNNING",
            Self::Adapting => "ADAPTING",
            Self::Epilogue => "EPILOGUE",
            Self::Stopped => "STOPPED",
            Self::Error => "ERROR",
        })
    }
}

/// How far one role instance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase", content = "reason")]
pub enum Phase {
    Starting,
    /// Answers a real request.
    Ready,
    /// Takes no new work, still finishes some.
    Draining,
    /// Nothing in flight any more.
    Drained,
    /// Cannot run; the reason is for people. It is tried again all the same.
    Failed(String),
}

impl Phase {
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }
}

/// What an agent observes of one role on its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoleStatus {
    /// The role itself; absent while only releases matter.
    pub own: Option<Phase>,
    /// Each release that runs here.
    pub releases: BTreeMap<ReleaseNumber, Phase>,
    /// The release that people are led to, for roles that use others.
    pub serving: Option<ReleaseNumber>,
    /// Instances this role still uses or has requests in flight to, with their count.
    pub using: Vec<InUse>,
    /// Facts of the service type's own schema.
    pub facts: serde_json::Map<String, serde_json::Value>,
}

/// An instance that a user of it holds on to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    pub instance: Instance,
    pub in_flight: u64,
}

/// What an agent says of its node: the last word is the one with the highest sequence of the
/// newest boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Random per agent process of a machine's life; a new one means its memory is new.
    pub boot: String,
    pub sequence: u64,
    /// The version of ConPaaS the agent was built as.
    pub version: String,
    /// The level it obeys, whole: a manager that lost its memory reads it back here.
    pub level: Option<Level>,
    /// The last level that was carried out completely (processes started or stopped).
    pub applied: Option<LevelVersion>,
    /// By role: the level that this role has carried out, though another may still be at it.
    #[serde(default)]
    pub applied_roles: BTreeMap<RoleName, LevelVersion>,
    pub roles: BTreeMap<RoleName, RoleStatus>,
    pub node: NodeHealth,
    /// Processes of the node that have ended unasked, the agent's own included.
    #[serde(default)]
    pub ends: Vec<ProcessEnds>,
}

/// Figures of a node as its agent reads them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeHealth {
    /// Memory in use by the machine, in MiB; absent when the host keeps no count.
    pub memory_used_mib: Option<u64>,
    /// Disk used by the machine's own writes, in MiB.
    pub disk_used_mib: Option<u64>,
    /// CPU seconds used since boot.
    pub cpu_seconds: Option<f64>,
}

/// A node's machine, as the Director records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Wanted; no machine yet.
    Requested,
    /// A machine boots; its agent has not enrolled yet.
    Booting,
    /// Its agent has enrolled.
    Up,
    /// The cloud says that its machine has died.
    Dead,
    /// Wanted gone; the cloud has not confirmed it yet.
    Releasing,
}

/// A node in the Director's records, as managers see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub number: NodeNumber,
    pub state: NodeState,
    pub cloud: String,
    pub instance_type: String,
    pub address: Ipv4Addr,
    /// Why there is no machine yet, in words, if something is in the way.
    pub trouble: Option<String>,
    /// Its cloud refuses it, and waiting does not help. It is asked again all the same.
    #[serde(default)]
    pub refused: bool,
    /// Ends of its processes that were written down as events.
    #[serde(default)]
    pub told: Told,
}

/// What the edge has taken over of a service's exposure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStatus {
    /// The exposure that the edge has applied.
    pub applied: ExposureVersion,
    /// Nodes it still has requests in flight to, although they are exposed no more.
    pub using: BTreeSet<NodeNumber>,
}

/// Orders exposures of one service, like levels.
pub type ExposureVersion = LevelVersion;

/// What a plan does next, for people; derived, never narrated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// Stable word for the kind of step, for instance `obtain_node`.
    pub kind: String,
    pub text: String,
    pub done: bool,
}

/// Why something does not go on at once, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waiting {
    /// Stable word for the kind of reason, for instance `node_booting`.
    pub kind: String,
    pub text: String,
}

/// One role instance in a service's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RoleSummary {
    pub role: RoleName,
    pub release: Option<ReleaseNumber>,
    /// `starting`, `ready`, `draining`, `drained`, `failed` or `unknown`.
    pub phase: String,
    pub reason: Option<String>,
}

/// State of a node whose agent hung up and has not been given up yet.
pub const SILENT: &str = "silent";

/// One node in a service's status, as its manager sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeSummary {
    pub number: NodeNumber,
    /// `requested`, `booting`, `up`, `silent` (its agent hung up a moment ago), `lost` (it is given up),
    /// `dead` or `releasing`.
    pub state: String,
    pub roles: Vec<RoleSummary>,
    pub health: NodeHealth,
}

/// A service as its manager observes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// The spec generation this was observed under.
    pub generation: Generation,
    /// What is observed equals what that generation wants.
    pub reached: bool,
    /// Something that will not mend itself: the newest release cannot start, say.
    pub failed: Option<String>,
    pub steps: Vec<Step>,
    pub waiting: Vec<Waiting>,
    pub nodes: Vec<NodeSummary>,
    /// The release people are led to now.
    pub serving: Option<ReleaseNumber>,
}
