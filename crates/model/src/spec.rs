//! What is wanted of a service. Written by the Director alone; a change makes a new generation.
//! How a wish becomes reality is the planner's business, not this module's.

use crate::environment::Environment;
use crate::ids::{ApplicationId, CodeId, Generation, NodeNumber, ReleaseNumber, ServiceId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// The name of a role within its service type, for instance `proxy`.
pub type RoleName = String;

/// Settings of a release: validated against the service type's JSON Schema.
pub type Settings = serde_json::Map<String, serde_json::Value>;

/// Whether a service should be running at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunWish {
    Running,
    /// No nodes; configuration, code versions and history are kept.
    Stopped,
    /// No nodes, and then no record either.
    Deleted,
}

/// Who decided a count; one owner never resets what another set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CountOwner {
    /// The service type's default; anybody may change it.
    Default,
    User,
    Manifest,
    Autoscaler,
}

/// Part of a role's wish: so many nodes of one instance type from one cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    pub cloud: String,
    pub instance_type: String,
    pub count: u32,
}

/// Between which counts of a role an automatic scaler may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bounds {
    pub min: u32,
    pub max: u32,
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.min, self.max)
    }
}

/// How many nodes of one role are wanted, from where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RoleWish {
    /// The first pool is the default one, which `ROLE=N` edits.
    pub pools: Vec<Pool>,
    pub owner: CountOwner,
    /// Absent: nobody scales it by itself, unless its count is still the type's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Bounds>,
}

impl RoleWish {
    /// Nodes wanted over all pools.
    pub fn count(&self) -> u32 {
        self.pools.iter().map(|pool| pool.count).sum()
    }
}

/// Where an uploaded archive's bytes are: content-addressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CodeRef {
    pub id: CodeId,
    /// SHA-256 of the normalised archive (a plain tar), in hex.
    pub sha256: String,
    /// Size of that archive in bytes.
    pub size: u64,
}

/// An immutable numbered set of code version, settings, environment and secret versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    pub number: ReleaseNumber,
    /// Absent until something was uploaded: the service type serves its own welcome page then.
    pub code: Option<CodeRef>,
    #[schema(value_type = Object)]
    pub settings: Settings,
    #[serde(default, skip_serializing_if = "Environment::is_empty")]
    pub environment: Environment,
}

/// The whole wish for one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub service: ServiceId,
    pub application: ApplicationId,
    /// `APP/SERVICE` as people write it; used in texts only.
    pub display: String,
    pub service_type: String,
    pub generation: Generation,
    pub run: RunWish,
    pub roles: BTreeMap<RoleName, RoleWish>,
    /// The release people should see.
    pub active: ReleaseNumber,
    /// A release that is kept ready beside the active one and shown at the preview address alone.
    #[serde(default)]
    pub preview: Option<ReleaseNumber>,
    /// The active release and those that nodes may still be running.
    pub releases: Vec<Release>,
    /// Nodes that a person wants replaced: others take their place, a few at a time, then they are
    /// let go.
    #[serde(default)]
    pub retire: BTreeSet<NodeNumber>,
    /// How long a role that is let go may finish requests in flight, in seconds.
    pub drain_seconds: u32,
}

impl ServiceSpec {
    /// The release with this number, if the spec still carries it.
    pub fn release(&self, number: ReleaseNumber) -> Option<&Release> {
        self.releases
            .iter()
            .find(|release| release.number == number)
    }

    /// Whether any node is wanted.
    pub fn wanted_any(&self) -> bool {
        self.roles.keys().any(|role| self.wanted(role) > 0)
    }

    /// Nodes wanted of a role: none unless the service should run.
    pub fn wanted(&self, role: &str) -> u32 {
        match self.run {
            RunWish::Running => self.roles.get(role).map_or(0, RoleWish::count),
            RunWish::Stopped | RunWish::Deleted => 0,
        }
    }
}
