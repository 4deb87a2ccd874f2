//! Routes of the edge: what the Director writes for it, and what it answers. Both are files in
//! the edge's folder, replaced whole; carrying requests is the edge's business, not this module's.

use crate::ids::{ApplicationId, Generation};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Name of the file that the Director writes (a [`Routes`]).
pub const ROUTES_FILE: &str = "routes.json";
/// Name of the file that the edge writes (an [`Applied`]).
pub const APPLIED_FILE: &str = "applied.json";

/// The header by which the edge says that a request came to the preview address. Nobody else may say
/// so: the edge removes it from what clients send.
pub const PREVIEW_HEADER: &str = "conpaas-preview";

/// How a process on the Director's computer reaches an application's network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "via")]
pub enum NetworkAccess {
    /// Machines' addresses are reachable as they are.
    Host,
    /// The network is a namespace of this computer, entered by a helper.
    Local {
        /// The driver's state folder.
        state_dir: PathBuf,
        network: ApplicationId,
        /// The program that has the helper.
        program: PathBuf,
    },
}

/// The whole wanted state of the edge.
///
/// The edge takes higher generations only, also over its own restarts. A Director that lost its
/// count (a restored store, say) reads [`Applied`] and goes on above it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Routes {
    pub generation: Generation,
    pub routes: Vec<Route>,
    /// The applications that the edge lets out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outlets: Vec<Outlet>,
}

/// An application that may get out through the edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outlet {
    /// For logs only.
    pub owner: String,
    /// For logs only.
    pub app: String,
    pub network: NetworkAccess,
}

/// Where the requests for some host names go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Host names in lower case, without a port: `NAME-OWNER.BASE` and claimed ones.
    pub hosts: Vec<String>,
    /// For display only.
    pub owner: String,
    /// For display only.
    pub app: String,
    /// For display only.
    pub service: String,
    pub state: RouteState,
    pub network: NetworkAccess,
    /// These are the preview's host names: whoever is asked is told so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preview: bool,
    /// Whom to ask, in any order. Used in state [`RouteState::Serving`] only.
    pub upstreams: Vec<Upstream>,
}

/// What the edge does with a request for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    /// Leads it on.
    Serving,
    /// Says that the application is starting.
    Starting,
    /// Says that its owner stopped the application.
    Stopped,
    /// Says that nobody is there who could answer.
    NoBackends,
}

/// One place that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The node's name, for logs.
    pub node: String,
    pub address: SocketAddr,
}

/// What the edge has taken, and what it still has to finish.
///
/// A node may be stopped once `generation` has reached the routes without it and `draining` no
/// longer names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    pub generation: Generation,
    /// When this was written, RFC 3339.
    pub at: String,
    /// Where the edge listens.
    pub listening: SocketAddr,
    /// Removed upstreams with requests still in flight; rewritten whenever that changes.
    pub draining: Vec<Draining>,
}

/// A removed upstream that still works on requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    pub node: String,
    pub network: NetworkAccess,
    pub address: SocketAddr,
    /// Requests and open tunnels.
    pub in_flight: u64,
}
