//! What the type wants of its nodes: from a release's settings and a machine's size to the
//! configuration of each role. Pure.

use super::rules::{self, Front, Redirect};
use super::settings::{PHP_SETTINGS, bytes, list, number, text, value};
use super::{BACKEND, PROXY, SESSIONS, sizing};
use conpaas_core::service_type::Decision;
use conpaas_model::spec::Release;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where releases appear on every node under the same path, so that load balancer and backends
/// mean the same file. Made by the roles themselves.
const BASE: &str = "/srv/conpaas";

/// What every role must know alike of a release: where it is and what of it is public.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SitePlan {
    /// Folder in which releases are laid out, the same on every node.
    pub base: PathBuf,
    /// Public folder inside a release; empty for all of it.
    pub web_root: String,
    /// Script in the public folder that answers unknown paths; empty for none.
    pub front_controller: String,
    /// Scripts that answer unknown paths below some paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fronts: Vec<Front>,
    /// Paths in the public folder that nobody may fetch.
    pub hidden: Vec<String>,
    /// Paths in the release where code may write.
    pub writable: Vec<String>,
    /// Seconds a request may take.
    pub request_timeout: u64,
}

/// Configuration of `proxy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyConfig {
    #[serde(flatten)]
    pub site: SitePlan,
    pub threads: u32,
    /// Connections it may hold at once.
    pub connections: u64,
    /// Paths that lead elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirects: Vec<Redirect>,
}

/// Configuration of one release of `web`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebConfig {
    #[serde(flatten)]
    pub site: SitePlan,
    pub workers: u32,
    pub cache_seconds: u64,
}

/// Configuration of one release of `backend`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendConfig {
    #[serde(flatten)]
    pub site: SitePlan,
    pub children: u32,
    pub opcache_mib: u64,
    /// PHP's own notation.
    pub memory_limit: String,
    pub disable_functions: Vec<String>,
    pub warm_up: Vec<String>,
    /// Settings that go into PHP's configuration by name.
    pub php: BTreeMap<String, Value>,
    /// Sessions are in the service's store, and a lock on one lasts so many seconds at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_lock: Option<u64>,
}

/// Configuration of `sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsConfig {
    /// Most memory for sessions.
    pub memory_mib: u64,
}

/// Whether a release keeps its sessions in the service's store.
pub fn shares_sessions(release: &Release) -> bool {
    text(&release.settings, "sessions") != "off"
}

/// The configuration of a role on one node.
pub fn decide(decision: &Decision<'_>) -> Value {
    let settings = &decision.release.settings;
    let site = SitePlan {
        base: PathBuf::from(BASE),
        web_root: text(settings, "web_root"),
        front_controller: text(settings, "front_controller"),
        fronts: rules::fronts(settings),
        hidden: list(settings, "hidden"),
        writable: list(settings, "writable"),
        request_timeout: number(settings, "request_timeout"),
    };
    let threads = sizing::threads(decision.instance_type.vcpus);
    let config = match decision.role {
        PROXY => serde_json::to_value(ProxyConfig {
            site,
            threads,
            connections: sizing::connections(decision.memory_mib),
            redirects: rules::redirects(settings),
        }),
        BACKEND => {
            let size = pool(decision);
            serde_json::to_value(BackendConfig {
                site,
                children: size.children,
                opcache_mib: size.opcache_mib,
                memory_limit: text(settings, "memory_limit"),
                disable_functions: list(settings, "disable_functions"),
                warm_up: list(settings, "warm_up"),
                php: PHP_SETTINGS
                    .iter()
                    .map(|name| ((*name).to_owned(), value(settings, name)))
                    .collect(),
                session_lock: shares_sessions(decision.release)
                    .then(|| number(settings, "max_execution_time")),
            })
        }
        SESSIONS => serde_json::to_value(SessionsConfig {
            memory_mib: sizing::store(decision.memory_mib),
        }),
        _ => serde_json::to_value(WebConfig {
            site,
            workers: threads,
            cache_seconds: number(settings, "static_cache_seconds"),
        }),
    };
    // These structures always have a JSON form; a null would be refused by the agent half.
    config.unwrap_or_default()
}

/// Requests a backend can work on at once; web servers have no such bound.
pub fn capacity(decision: &Decision<'_>) -> u32 {
    if decision.role == BACKEND {
        pool(decision).children
    } else {
        0
    }
}

fn pool(decision: &Decision<'_>) -> sizing::PoolSize {
    let settings = &decision.release.settings;
    let limit = bytes(&text(settings, "memory_limit")).unwrap_or(128 << 20);
    sizing::pool(decision.memory_mib, limit, number(settings, "processes"))
}
