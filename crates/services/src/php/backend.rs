//! `backend`: PHP-FPM, one master of its own for each release on a port of its own. A pool is
//! ready when it has answered a real request and its warm-up pages.

use super::backend_config::{LEAST_GRACE, Place, ini_file, pool_file};
use super::backend_metrics::Figures;
use super::manager::BackendConfig;
use super::site::{self, Site};
use super::{ACCOUNT, BACKEND, PING, STATUS, environment, fastcgi, info};
use crate::support::background::{Background, MOMENT, Stops, stop_all};
use crate::support::files;
use async_trait::async_trait;
use conpaas_core::role_agent::{
    self, NodeContext, ProcessSpec, ProcessStatus, RoleAgent, RoleError,
};
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::level::{Duty, ReleaseLevel, RoleLevel};
use conpaas_model::metrics::RoleReading;
use conpaas_model::status::{Phase, RoleStatus};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

const PROGRAM: &str = "/usr/sbin/php-fpm8.2";
/// How far a pool's status port is from its own.
pub(super) const STATUS_OFFSET: u16 = 100;
const SIGQUIT: i32 = 3;
/// How long a pool may be silent before it counts as failed.
const SILENCE: Duration = Duration::from_secs(5);
/// Time until something that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The agent half of the role.
#[derive(Default)]
pub struct Backend {
    releases: BTreeMap<ReleaseNumber, Pool>,
    /// As they were last wished.
    configs: BTreeMap<ReleaseNumber, BackendConfig>,
    stops: Stops,
}

/// What this agent remembers of one release.
#[derive(Default)]
struct Pool {
    preparing: Option<Background<Site>>,
    site: Option<Site>,
    warming: Option<Background<()>>,
    failed: Option<(String, Instant)>,
    /// Since when it does not answer.
    silent: Option<Instant>,
    /// What it said when it was looked at.
    figures: Option<Figures>,
}

impl Pool {
    fn fail(&mut self, reason: String) {
        self.failed = Some((reason, Instant::now()));
    }
    fn may_try(&self) -> bool {
        self.failed
            .as_ref()
            .is_none_or(|(_, since)| since.elapsed() >= AGAIN)
    }
}

fn process_name(node: &NodeContext, release: ReleaseNumber) -> String {
    node.process_name(BACKEND, &release.to_string())
}

/// Remembers across agents that a pool with this process number was ready.
fn ready_file(node: &NodeContext, release: ReleaseNumber) -> PathBuf {
    node.role_folder(BACKEND).join(format!("{release}.ready"))
}

fn was_ready(node: &NodeContext, release: ReleaseNumber, pid: i32) -> bool {
    std::fs::read_to_string(ready_file(node, release)).is_ok_and(|text| text == pid.to_string())
}

fn running<'a>(list: &'a [ProcessStatus], name: &str) -> Option<&'a ProcessStatus> {
    list.iter()
        .find(|process| process.name == name && process.running)
}

fn addresses(node: &NodeContext, level: &ReleaseLevel) -> (SocketAddrV4, SocketAddrV4) {
    let status = level.port.saturating_add(STATUS_OFFSET);
    (
        SocketAddrV4::new(node.address, level.port),
        SocketAddrV4::new(node.address, status),
    )
}

/// Fetches a release's code and lays it out, and what code is given beside its settings.
fn prepare(
    node: &NodeContext,
    config: &BackendConfig,
    release: ReleaseNumber,
    level: &ReleaseLevel,
    keep: BTreeSet<ReleaseNumber>,
) -> Background<Site> {
    let (node, plan, level) = (node.clone(), config.site.clone(), level.clone());
    Background::start(async move {
        let source = site::source(&node, &plan, &level).await?;
        let given = role_agent::environment(&*node.secrets, &level.environment).await?;
        environment::write(&node.role_folder(BACKEND), release, &given)?;
        let work = move || {
            let folder = site::lay_out(&source, &plan, release, &keep)?;
            site::survey(&folder, &plan).map_err(RoleError::io(format!(
                "looking through {}",
                folder.display()
            )))
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Err(RoleError::Failed("laying out code was cut off".into())))
    })
}

/// Writes a release's configuration and says how its master is run.
fn configure(
    node: &NodeContext,
    config: &BackendConfig,
    release: ReleaseNumber,
    level: &ReleaseLevel,
) -> Result<ProcessSpec, RoleError> {
    let name = release.to_string();
    let folder = node.role_folder(BACKEND);
    let ini_folder = folder.join(format!("{release}.d"));
    files::folder(&folder, 0o755)?;
    files::folder(&ini_folder, 0o755)?;
    files::folder(&node.log_folder, 0o755)?;
    let (listen, status) = addresses(node, level);
    let error_log = node.log(BACKEND, "php-error");
    if !error_log.exists() {
        files::write_if_changed(&error_log, b"", 0o640)?;
    }
    files::give(&error_log, ACCOUNT).map_err(RoleError::io(format!(
        "giving {} to {ACCOUNT}",
        error_log.display()
    )))?;
    // A file that is missing would be left out without a word.
    let given = environment::file(&folder, release);
    if !given.exists() {
        return Err(RoleError::Failed(format!("{} is gone", given.display())));
    }
    let place = Place {
        name: &name,
        listen,
        status,
        access_log: &node.log(BACKEND, "access"),
        error_log: &error_log,
        environment: (!level.environment.is_empty()).then_some(&*given),
        sessions: super::sessions::place(node)?,
        root: files::is_root(),
    };
    let pool = folder.join(format!("{release}.conf"));
    files::write_if_changed(&pool, pool_file(&place, config, release).as_bytes(), 0o644)?;
    files::write_if_changed(
        &ini_folder.join("settings.ini"),
        ini_file(config).as_bytes(),
        0o644,
    )?;
    Ok(ProcessSpec {
        name: process_name(node, release),
        argv: [
            PROGRAM,
            "--nodaemonize",
            "--fpm-config",
            &pool.display().to_string(),
        ]
        .map(str::to_owned)
        .to_vec(),
        // An empty first part stands for the folder that was compiled in, with the extensions.
        env: vec![
            (
                "PHP_INI_SCAN_DIR".into(),
                format!(":{}", ini_folder.display()),
            ),
            ("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ],
        user: None,
        log: node.log(BACKEND, "fpm"),
        working_directory: PathBuf::from("/"),
        stop_signal: SIGQUIT,
    })
}

/// The newest line of PHP's log that says why a script ended.
fn last_error(log: &Path) -> Option<String> {
    let text = files::tail(log)?;
    let found = text
        .lines()
        .rev()
        .find(|line| line.contains("PHP Fatal error") || line.contains("PHP Parse error"))?;
    Some(
        found
            .split_once("] ")
            .map_or(found, |(_, rest)| rest)
            .to_owned(),
    )
}

/// Proves that a new pool answers, and runs its warm-up pages.
fn warm(
    address: SocketAddr,
    config: &BackendConfig,
    release: ReleaseNumber,
    site: &Site,
    error_log: PathBuf,
) -> Background<()> {
    let root = site::document_root(&config.site, release)
        .display()
        .to_string();
    let limit = Duration::from_secs(config.site.request_timeout);
    let pages: Vec<(String, String)> = config
        .warm_up
        .iter()
        .filter_map(|page| {
            let path = page.split('?').next().unwrap_or_default();
            site.script(path)
                .map(|script| (page.clone(), script.to_owned()))
        })
        .collect();
    Background::start(async move {
        // The master may not listen yet.
        let until = Instant::now() + SILENCE;
        loop {
            match fastcgi::ask_pool(address, PING, "", SILENCE).await {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) => {
                    return Err(RoleError::Failed(format!(
                        "PHP answers its own test with {}",
                        answer.status
                    )));
                }
                Err(error) if Instant::now() >= until => {
                    return Err(RoleError::Failed(format!(
                        "PHP does not answer at {address}: {error}"
                    )));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        for (page, script) in pages {
            let file = format!("{root}{script}");
            let answer =
                fastcgi::request(address, &page_params(&page, &script, &root, &file), limit).await;
            let answer = answer.map_err(|error| {
                RoleError::Failed(format!("the warm-up page {page} does not answer: {error}"))
            })?;
            if answer.status >= 500 {
                let said: String = last_error(&error_log)
                    .unwrap_or(answer.errors)
                    .chars()
                    .take(300)
                    .collect();
                return Err(RoleError::Failed(format!(
                    "the warm-up page {page} answers {}{}{said}; upload code that does not, or set warm_up to other pages",
                    answer.status,
                    if said.is_empty() { "" } else { ": " }
                )));
            }
        }
        Ok(())
    })
}

/// A page's request as the load balancer would send it.
fn page_params<'a>(
    page: &'a str,
    script: &'a str,
    root: &'a str,
    file: &'a str,
) -> Vec<(&'a str, &'a str)> {
    let query = page.split_once('?').map_or("", |(_, query)| query);
    vec![
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_SOFTWARE", "conpaas"),
        ("REQUEST_METHOD", "GET"),
        ("REQUEST_URI", page),
        ("QUERY_STRING", query),
        ("DOCUMENT_ROOT", root),
        ("SCRIPT_NAME", script),
        ("SCRIPT_FILENAME", file),
        ("SERVER_NAME", "localhost"),
        ("SERVER_PORT", "80"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("REMOTE_PORT", "0"),
        ("HTTP_HOST", "localhost"),
        ("HTTP_USER_AGENT", "conpaas-warm-up"),
    ]
}

/// What a pool says of itself.
async fn figures(status: SocketAddr) -> std::io::Result<Figures> {
    let answer = fastcgi::ask_pool(status, STATUS, "json", Duration::from_secs(2)).await?;
    serde_json::from_slice(&answer.body)
        .map_err(|error| std::io::Error::other(format!("a status that says too little: {error}")))
}

#[async_trait]
impl RoleAgent for Backend {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        let list = node.processes.list().await?;
        let wanted: BTreeSet<String> = level
            .releases
            .keys()
            .map(|release| process_name(node, *release))
            .collect();
        let prefix = node.process_name(BACKEND, "");
        for process in list
            .iter()
            .filter(|p| p.name.starts_with(&prefix) && !wanted.contains(&p.name))
        {
            self.stops.begin(
                &node.processes,
                &process.name,
                Duration::from_secs(LEAST_GRACE),
            );
        }
        self.stops.settle(Duration::ZERO).await?;
        self.releases
            .retain(|release, _| level.releases.contains_key(release));
        environment::forget_others(&node.role_folder(BACKEND), |release| {
            level.releases.contains_key(&release)
        });
        self.configs
            .retain(|release, _| level.releases.contains_key(release));
        for (release, wish) in &level.releases {
            let config: BackendConfig = site::read(&wish.config)?;
            self.configs.insert(*release, config.clone());
            let pool = self.releases.entry(*release).or_default();
            if self.stops.under_way(&process_name(node, *release)) {
                // It was let go a moment ago: first let that end.
                continue;
            }
            if pool.site.is_none() && pool.preparing.is_none() && pool.may_try() {
                let keep = level.releases.keys().copied().collect();
                pool.preparing = Some(prepare(node, &config, *release, wish, keep));
            }
            if let Some(work) = &mut pool.preparing
                && let Some(result) = work.poll(MOMENT).await
            {
                pool.preparing = None;
                match result {
                    Ok(site) => (pool.site, pool.failed) = (Some(site), None),
                    Err(error) => pool.fail(describe(&error)),
                }
            }
            let name = process_name(node, *release);
            if pool.site.is_some() && running(&list, &name).is_none() && pool.may_try() {
                if list.iter().any(|p| p.name == name) && pool.warming.is_some() {
                    pool.warming = None;
                }
                node.processes
                    .ensure(&configure(node, &config, *release, wish)?)
                    .await?;
            }
        }
        Ok(())
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let list = node.processes.list().await?;
        let mut status = RoleStatus::default();
        let mut busiest = serde_json::Map::new();
        for (release, wish) in &level.releases {
            let config: BackendConfig = site::read(&wish.config)?;
            let pool = self.releases.entry(*release).or_default();
            pool.figures = None;
            let (phase, in_flight) = look(node, &list, *release, wish, &config, pool).await;
            if let Some(in_flight) = in_flight {
                busiest.insert(release.to_string(), in_flight.into());
            }
            status.releases.insert(*release, phase);
        }
        status.facts.insert("in_flight".into(), busiest.into());
        Ok(status)
    }

    async fn metrics(
        &mut self,
        _node: &NodeContext,
        _level: &RoleLevel,
    ) -> Result<Vec<RoleReading>, RoleError> {
        let reading = |(release, pool): (&ReleaseNumber, &Pool)| {
            Some(pool.figures.as_ref()?.reading(*release))
        };
        Ok(self.releases.iter().filter_map(reading).collect())
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        self.releases.clear();
        environment::forget_others(&node.role_folder(BACKEND), |_| false);
        stop_all(
            &node.processes,
            &mut self.stops,
            &node.process_name(BACKEND, ""),
            Duration::from_secs(LEAST_GRACE),
        )
        .await
    }

    async fn command(
        &mut self,
        _node: &NodeContext,
        name: &str,
        _arguments: &Value,
    ) -> Result<Value, RoleError> {
        if name != "info" {
            return Err(RoleError::Failed(format!(
                "this role has no command '{name}'"
            )));
        }
        info::answer(PROGRAM, &self.configs).await
    }
}

/// The phase of one release, and what is in flight there if it tells.
async fn look(
    node: &NodeContext,
    list: &[ProcessStatus],
    release: ReleaseNumber,
    wish: &ReleaseLevel,
    config: &BackendConfig,
    pool: &mut Pool,
) -> (Phase, Option<u64>) {
    let name = process_name(node, release);
    let (address, status) = addresses(node, wish);
    let Some(process) = running(list, &name) else {
        pool.warming = None;
        if let Some(exit) = list.iter().find(|p| p.name == name).and_then(|p| p.exit) {
            let said = files::last_line(&node.log(BACKEND, "fpm")).unwrap_or_default();
            return (
                Phase::Failed(format!("PHP ended with {exit}: {said}")),
                None,
            );
        }
        return match &pool.failed {
            Some((reason, _)) => (Phase::Failed(reason.clone()), None),
            None if wish.duty == Duty::Drain => (Phase::Drained, None),
            None => (Phase::Starting, None),
        };
    };
    if !was_ready(node, release, process.pid) {
        if wish.duty == Duty::Drain {
            return (Phase::Drained, None);
        }
        if let Some(site) = pool.site.as_ref()
            && pool.warming.is_none()
            && pool.may_try()
        {
            pool.warming = Some(warm(
                address.into(),
                config,
                release,
                site,
                node.log(BACKEND, "php-error"),
            ));
        }
        let result = match &mut pool.warming {
            Some(work) => work.poll(MOMENT).await,
            None => None,
        };
        match result {
            Some(Ok(())) => {
                (pool.warming, pool.failed) = (None, None);
                if let Err(error) = files::write_if_changed(
                    &ready_file(node, release),
                    process.pid.to_string().as_bytes(),
                    0o644,
                ) {
                    return (Phase::Failed(describe(&error)), None);
                }
            }
            Some(Err(error)) => {
                pool.warming = None;
                pool.fail(describe(&error));
            }
            None => {}
        }
        if let Some((reason, _)) = &pool.failed {
            return (Phase::Failed(reason.clone()), None);
        }
        if !was_ready(node, release, process.pid) {
            return (Phase::Starting, None);
        }
    }
    match figures(status.into()).await {
        Ok(figures) => {
            pool.silent = None;
            let in_flight = figures.in_flight();
            pool.figures = Some(figures);
            let phase = match (wish.duty, in_flight) {
                (Duty::Serve, _) => Phase::Ready,
                (Duty::Drain, 0) => Phase::Drained,
                (Duty::Drain, _) => Phase::Draining,
            };
            (phase, Some(in_flight))
        }
        Err(error) => {
            let since = *pool.silent.get_or_insert_with(Instant::now);
            if since.elapsed() >= SILENCE {
                (
                    Phase::Failed(format!("PHP does not answer any more: {error}")),
                    None,
                )
            } else if wish.duty == Duty::Drain {
                (Phase::Draining, None)
            } else {
                (Phase::Ready, None)
            }
        }
    }
}

/// An error with its causes, in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
