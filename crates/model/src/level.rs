//! A level: the whole wanted state of one node, sent down with (epoch, generation). An agent
//! obeys the highest pair it has seen and refuses anything older; there are no commands to
//! start or stop things. Secrets travel in levels by name and version only.

use crate::environment::Environment;
use crate::ids::{Epoch, Generation, NodeNumber, ReleaseNumber, ServiceId, Term};
use crate::spec::{CodeRef, RoleName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Orders levels of one node: the manager's epoch first, then its own generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LevelVersion {
    pub epoch: Epoch,
    pub generation: Generation,
}

/// The whole wanted state of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    pub version: LevelVersion,
    pub service: ServiceId,
    pub service_type: String,
    pub node: NodeNumber,
    /// What the node is called in texts and file names, for instance `web-3`.
    pub node_name: String,
    pub body: LevelBody,
}

/// What a level says, without its version: compared to decide whether a new one is needed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LevelBody {
    /// Roles that should run here. A role that is absent must be stopped.
    pub roles: BTreeMap<RoleName, RoleLevel>,
    /// Fixed addresses of this node at which its roles reach others, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, EndpointLevel>,
}

/// One endpoint of a node: an address of its loopback network behind which the agent keeps a
/// proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointLevel {
    /// What consumers dial.
    pub listen: SocketAddrV4,
    /// Roles of this node that dial it.
    pub users: BTreeSet<RoleName>,
    /// Whom new connections may be led to, sorted; with nobody, they are held.
    pub targets: Vec<Provider>,
    /// How long a connection is held while nobody can be reached.
    pub hold_seconds: u32,
    pub on_change: OnChange,
}

/// What becomes of an endpoint's connections to somebody who is no target any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnChange {
    /// They end by themselves.
    Keep,
    /// They are cut at once: whoever is no target must not be spoken to.
    Cut,
    /// They are led to whoever is a target then, and what was asked and not answered is asked
    /// once more, also when a target dies. For protocols of question and answer in which the
    /// consumer speaks first, a connection has no state, and a question may be asked twice.
    Resend,
}

/// Whether something should take work or only finish what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    Serve,
    Drain,
}

/// One role on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleLevel {
    pub duty: Duty,
    /// What the service type decided for this role on this node (its own schema).
    pub config: serde_json::Value,
    /// For roles that carry releases: those that should run here side by side. For roles that
    /// use others: what they must know of each release they may have to lead people to.
    pub releases: BTreeMap<ReleaseNumber, ReleaseLevel>,
    /// For roles that use others: the release to lead people to.
    pub serve: Option<ReleaseNumber>,
    /// For roles that use others: the release that is held for a preview, to be shown only to
    /// those whom the edge says to be at the preview address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<ReleaseNumber>,
    /// For roles that use others: whom they may use now, sorted. One who is absent must be
    /// let go: no new work, and gone from `using` when nothing is in flight any more.
    pub providers: Vec<Provider>,
    /// Who leads: for roles with one leader, and for roles that use such; by the led role.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leads: BTreeMap<RoleName, Lead>,
}

/// Who of a role's instances leads the others: the one that works, while the others copy it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// Grows with every change of leader.
    pub term: Term,
    pub leader: Provider,
    /// The term whose data (or newer ones) the leader must hold to begin; without one it begins
    /// with nothing.
    pub after: Option<Term>,
    /// The node that hands its work over to the leader; without one nobody can.
    pub from: Option<NodeNumber>,
    pub stage: LeadStage,
    /// The other instances that may run, those that are to go included.
    pub others: Vec<Provider>,
    /// Nodes where somebody may be using it, for instances of the role alone: what a node that is
    /// gone held there, nobody gives back.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub users: BTreeSet<NodeNumber>,
}

/// How far a leader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeadStage {
    /// It has not begun; nobody is led to it.
    Beginning,
    /// Users are led to it.
    Open,
    /// Users let go of it, so that another can follow it.
    Closing,
}

/// One release of a role on a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseLevel {
    pub duty: Duty,
    /// The port this release listens on, on the node's application address.
    pub port: u16,
    pub code: Option<CodeRef>,
    /// What the service type decided for this release on this node (its own schema).
    pub config: serde_json::Value,
    /// For roles that take it: what their processes are given beside their configuration.
    #[serde(default, skip_serializing_if = "Environment::is_empty")]
    pub environment: Environment,
}

/// Someone a role may use: one instance of another role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Provider {
    pub role: RoleName,
    pub node: NodeNumber,
    /// For roles that carry releases.
    pub release: Option<ReleaseNumber>,
    pub address: Ipv4Addr,
    pub port: u16,
    /// How much work it can take side by side, as its type decided; 0 means unstated.
    pub capacity: u32,
}

impl Provider {
    /// Which instance this is, without where it is.
    pub fn instance(&self) -> Instance {
        Instance {
            role: self.role.clone(),
            node: self.node,
            release: self.release,
        }
    }
}

/// One role on one node, of one release if the role carries releases.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instance {
    pub role: RoleName,
    pub node: NodeNumber,
    pub release: Option<ReleaseNumber>,
}

impl std::fmt::Display for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.release {
            Some(release) => write!(f, "{} {release} on node {}", self.role, self.node),
            None => write!(f, "{} on node {}", self.role, self.node),
        }
    }
}
