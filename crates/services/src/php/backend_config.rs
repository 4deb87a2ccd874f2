//! Texts of PHP's configuration: the pool's file and the ini file beside it. Pure.

use super::manager::BackendConfig;
use super::{ACCOUNT, PING, STATUS, sessions, site};
use conpaas_model::block;
use conpaas_model::ids::ReleaseNumber;
use serde_json::Value;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

/// Where one pool's files are.
pub struct Place<'a> {
    pub name: &'a str,
    /// Where people's requests come in.
    pub listen: SocketAddrV4,
    /// Where the pool tells how busy it is, even when all its processes are.
    pub status: SocketAddrV4,
    pub access_log: &'a Path,
    pub error_log: &'a Path,
    /// What code is given beside its settings, if that is anything.
    pub environment: Option<&'a Path>,
    /// Where the node leads to the service's store of sessions.
    pub sessions: SocketAddrV4,
    pub root: bool,
}

/// Least time for what is in flight when a pool is stopped, in seconds.
pub const LEAST_GRACE: u64 = 30;

/// The file of the process manager: one pool of a fixed number of processes.
pub fn pool_file(place: &Place<'_>, config: &BackendConfig, release: ReleaseNumber) -> String {
    let plan = &config.site;
    let scratch = site::scratch(plan);
    let mut text = String::new();
    let mut line = |content: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{content}");
    };
    line(format_args!("; Written by ConPaaS; changes here are lost."));
    line(format_args!("[global]"));
    line(format_args!("error_log = /proc/self/fd/2"));
    line(format_args!("daemonize = no"));
    line(format_args!(
        "process_control_timeout = {}s",
        plan.request_timeout.max(LEAST_GRACE)
    ));
    line(format_args!("[{}]", place.name));
    if place.root {
        line(format_args!("user = {ACCOUNT}"));
        line(format_args!("group = {ACCOUNT}"));
    }
    line(format_args!("listen = {}", place.listen));
    // Whoever may speak to a pool may run code of its own in it: only this service's nodes.
    let allowed: Vec<String> = std::iter::once(Ipv4Addr::LOCALHOST)
        .chain(block::around(*place.listen.ip()))
        .map(|address| address.to_string())
        .collect();
    line(format_args!(
        "listen.allowed_clients = {}",
        allowed.join(",")
    ));
    line(format_args!("listen.backlog = 511"));
    line(format_args!("pm = static"));
    line(format_args!("pm.max_children = {}", config.children));
    line(format_args!("pm.max_requests = 2000"));
    line(format_args!("pm.status_path = {STATUS}"));
    line(format_args!("pm.status_listen = {}", place.status));
    line(format_args!("ping.path = {PING}"));
    line(format_args!("access.log = {}", place.access_log.display()));
    line(format_args!(
        "access.format = \"%t %m %r%Q%q %s %{{milli}}dms %{{kilo}}MkB %C%%\""
    ));
    line(format_args!("access.suppress_path[] = {PING}"));
    line(format_args!("access.suppress_path[] = {STATUS}"));
    line(format_args!("catch_workers_output = yes"));
    line(format_args!("decorate_workers_output = no"));
    line(format_args!("clear_env = yes"));
    line(format_args!("security.limit_extensions = .php"));
    line(format_args!(
        "request_terminate_timeout = {}s",
        plan.request_timeout
    ));
    line(format_args!(
        "chdir = {}",
        site::document_root(plan, release).display()
    ));
    let tmp = scratch.join("tmp");
    line(format_args!("env[TMPDIR] = {}", tmp.display()));
    line(format_args!("env[PATH] = /usr/local/bin:/usr/bin:/bin"));
    line(format_args!("env[CONPAAS_RELEASE] = {}", release.0));
    line(format_args!("env[CONPAAS_SCRATCH] = {}", tmp.display()));
    if let Some(environment) = place.environment {
        line(format_args!("include = {}", environment.display()));
    }
    line(format_args!("php_admin_flag[allow_url_fopen] = off"));
    line(format_args!("php_admin_flag[allow_url_include] = off"));
    line(format_args!("php_admin_flag[enable_dl] = off"));
    line(format_args!(
        "php_admin_value[memory_limit] = {}",
        config.memory_limit
    ));
    line(format_args!(
        "php_admin_value[error_log] = {}",
        place.error_log.display()
    ));
    line(format_args!(
        "php_admin_value[open_basedir] = {}/:{}/:/usr/share/php/",
        site::release_folder(plan, release).display(),
        scratch.display()
    ));
    line(format_args!(
        "php_admin_value[upload_tmp_dir] = {}",
        tmp.display()
    ));
    line(format_args!(
        "php_admin_value[sys_temp_dir] = {}",
        tmp.display()
    ));
    if config.session_lock.is_some() {
        // No admin values: an application may bring a handler of its own.
        line(format_args!("php_value[session.save_handler] = redis"));
        line(format_args!(
            "php_value[session.save_path] = \"{}\"",
            sessions::save_path(place.sessions)
        ));
    } else {
        line(format_args!(
            "php_admin_value[session.save_path] = {}",
            scratch.join("sessions").display()
        ));
    }
    text
}

/// The ini file: what people may set, and what only holds when the master starts.
pub fn ini_file(config: &BackendConfig) -> String {
    let mut text = String::from("; Written by ConPaaS; changes here are lost.\n");
    for (name, value) in &config.php {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {}", ini_value(name, value));
    }
    let writable = !config.site.writable.is_empty();
    let _ = writeln!(
        text,
        "disable_functions = {}",
        config.disable_functions.join(",")
    );
    let _ = writeln!(text, "expose_php = off");
    let _ = writeln!(text, "variables_order = EGPCS");
    let _ = writeln!(text, "session.use_strict_mode = on");
    let _ = writeln!(text, "session.gc_probability = 1");
    text.push_str(
        &config
            .session_lock
            .map_or_else(String::new, sessions::ini_lines),
    );
    let _ = writeln!(text, "opcache.memory_consumption = {}", config.opcache_mib);
    let _ = writeln!(
        text,
        "opcache.interned_strings_buffer = {}",
        (config.opcache_mib / 8).clamp(1, 16)
    );
    let _ = writeln!(text, "opcache.max_accelerated_files = 20000");
    // A release's files never change, unless code itself may write some.
    let _ = writeln!(
        text,
        "opcache.validate_timestamps = {}",
        if writable { "on" } else { "off" }
    );
    let _ = writeln!(text, "opcache.revalidate_freq = 0");
    let _ = writeln!(text, "opcache.jit = off");
    text
}

fn ini_value(name: &str, value: &Value) -> String {
    match value {
        Value::Bool(true) => "on".into(),
        Value::Bool(false) => "off".into(),
        // The only expression; its values are a closed list.
        Value::String(expression) if name == "error_reporting" => expression.clone(),
        // Quotes cannot be in there: every pattern of the schema excludes them.
        Value::String(text) => format!("\"{}\"", text.replace(['"', '\n', '\\', '$'], "")),
        other => other.to_string(),
    }
}
