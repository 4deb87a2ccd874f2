//! Web hosting for PHP: a load balancer that speaks FastCGI, web servers for static files, and
//! PHP backends. What the type is and decides is here and in `manager`; how roles run on a node
//! is in `proxy`, `web`, `backend` and `sessions`.

mod backend;
mod backend_config;
mod backend_metrics;
mod environment;
mod fastcgi;
mod haproxy;
mod info;
mod manager;
mod proxy;
mod proxy_config;
mod proxy_maps;
mod proxy_metrics;
mod proxy_servers;
mod rules;
mod sessions;
mod settings;
mod site;
mod sizing;
mod web;
mod web_config;
mod web_metrics;

#[cfg(test)]
mod tests;

use conpaas_core::endpoint::EndpointDeclaration;
use conpaas_core::role_agent::{RoleAgent, RoleAgents};
use conpaas_core::service_type::{
    AuxiliaryDeclaration, CommandDeclaration, CommandKind, Decision, Fencing, RoleDeclaration,
    ServiceType, Standing,
};
use conpaas_model::level::OnChange;
use conpaas_model::spec::{RoleName, Settings};
use std::collections::BTreeMap;

/// Path of proofs of life on every daemon. Paths with a leading dot are never an application's.
const PING: &str = "/.conpaas/ping";
/// Path at which daemons tell how busy they are.
const STATUS: &str = "/.conpaas/status";
/// The account that runs people's code and serves their files.
const ACCOUNT: &str = "www-data";

const PROXY: &str = "proxy";
const WEB: &str = "web";
const BACKEND: &str = "backend";
const SESSIONS: &str = "sessions";
const SESSIONS_PORT: u16 = 6379;

/// The service type `php`, both halves.
pub struct Php;

static ROLES: [RoleDeclaration; 4] = [
    RoleDeclaration {
        name: PROXY,
        title: "leads requests to web servers and backends",
        uses: &[BACKEND, WEB],
        carries_releases: false,
        port: 8080,
        exposed: true,
        min: 1,
        max: 16,
        default_count: 1,
        packable: true,
        fencing: Fencing::OnSuspicion,
        memory_weight: 1,
    },
    RoleDeclaration {
        name: WEB,
        title: "serves static files",
        uses: &[],
        carries_releases: true,
        port: 8200,
        exposed: false,
        min: 1,
        max: 64,
        default_count: 1,
        packable: true,
        fencing: Fencing::OnSuspicion,
        memory_weight: 1,
    },
    RoleDeclaration {
        name: BACKEND,
        title: "runs the PHP code",
        uses: &[SESSIONS],
        carries_releases: true,
        port: 9000,
        exposed: false,
        min: 1,
        max: 256,
        default_count: 1,
        packable: true,
        fencing: Fencing::OnSuspicion,
        memory_weight: 6,
    },
    RoleDeclaration {
        name: SESSIONS,
        title: "keeps the sessions of PHP",
        uses: &[],
        carries_releases: false,
        port: SESSIONS_PORT,
        exposed: false,
        min: 0,
        max: 0,
        default_count: 0,
        packable: false,
        fencing: Fencing::OnSuspicion,
        memory_weight: 0,
    },
];

static COMMANDS: [CommandDeclaration; 1] = [CommandDeclaration {
    name: "info",
    title: "tells which PHP backends run, with which extensions and settings",
    kind: CommandKind::Query,
    role: BACKEND,
    arguments: no_arguments,
}];

fn no_arguments() -> serde_json::Value {
    serde_json::json!({"type": "object", "additionalProperties": false, "properties": {}})
}
/// The store of sessions: one leads, the other is its copy.
static AUXILIARY: [AuxiliaryDeclaration; 1] = [AuxiliaryDeclaration {
    role: SESSIONS,
    copies: 2,
    beside: &[BACKEND],
    memory_percent: 10,
    wanted: manager::shares_sessions,
}];

/// A backend asks for sessions at one address of its own node. While the leader changes it is
/// held, and what was not answered is asked again: every question of PHP's session handler may
/// be asked twice, but for the one that takes a lock (`asked_again`).
static ENDPOINTS: [EndpointDeclaration; 1] = [EndpointDeclaration {
    name: SESSIONS,
    port: SESSIONS_PORT,
    provider: SESSIONS,
    users: &[BACKEND],
    hold_seconds: sessions::HOLD_SECONDS,
    on_change: OnChange::Resend,
}];

impl ServiceType for Php {
    fn name(&self) -> &'static str {
        "php"
    }
    fn title(&self) -> &'static str {
        "Web hosting for PHP applications"
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        &ROLES
    }
    fn packages(&self) -> &'static [&'static str] {
        &[
            "haproxy",
            "nginx-light",
            "php-redis",
            "php8.2-bcmath",
            "php8.2-curl",
            "php8.2-fpm",
            "php8.2-gd",
            "php8.2-intl",
            "php8.2-mbstring",
            "php8.2-mysql",
            "php8.2-opcache",
            "php8.2-pgsql",
            "php8.2-sqlite3",
            "php8.2-xml",
            "php8.2-zip",
            "redis-server",
        ]
    }
    fn settings_schema(&self) -> serde_json::Value {
        settings::schema()
    }
    fn commands(&self) -> &'static [CommandDeclaration] {
        &COMMANDS
    }
    fn endpoints(&self) -> &'static [EndpointDeclaration] {
        &ENDPOINTS
    }
    fn auxiliary(&self) -> &'static [AuxiliaryDeclaration] {
        &AUXILIARY
    }
    fn led(&self) -> &'static [&'static str] {
        &[SESSIONS]
    }
    fn standing(&self, facts: &serde_json::Map<String, serde_json::Value>) -> Standing {
        sessions::standing(facts)
    }
    fn previews(&self) -> bool {
        true
    }
    fn takes_code(&self) -> bool {
        true
    }
    fn takes_environment(&self) -> &'static [&'static str] {
        &[BACKEND]
    }
    fn check_environment(&self, name: &str, value: &str) -> Result<(), String> {
        environment::check(name, value)
    }
    fn decide(&self, decision: &Decision<'_>) -> serde_json::Value {
        manager::decide(decision)
    }
    fn capacity(&self, decision: &Decision<'_>) -> u32 {
        manager::capacity(decision)
    }
    fn warnings(&self, settings: &Settings, counts: &BTreeMap<RoleName, u32>) -> Vec<String> {
        let backends = counts.get(BACKEND).copied().unwrap_or_default();
        settings::warnings(settings, backends)
    }
    fn check_settings(&self, settings: &Settings) -> Result<(), String> {
        settings::check(settings)
    }
}

impl RoleAgents for Php {
    fn role_agent(&self, role: &str) -> Option<Box<dyn RoleAgent>> {
        match role {
            PROXY => Some(Box::<proxy::Proxy>::default()),
            WEB => Some(Box::<web::Web>::default()),
            BACKEND => Some(Box::<backend::Backend>::default()),
            SESSIONS => Some(Box::<sessions::Sessions>::default()),
            _ => None,
        }
    }
    fn asked_again(&self, endpoint: &str, question: &[u8]) -> Option<Vec<u8>> {
        (endpoint == SESSIONS).then(|| sessions::taken_again(question))?
    }
}
