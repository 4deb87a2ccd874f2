//! `proxy`: HAProxy, started once and from then on changed only over its runtime interface:
//! servers come and go in a fixed ring of backends, releases are entries of maps, and a switch
//! is one entry that changes.

use super::backend::describe;
use super::haproxy::{Runtime, Server};
use super::manager::{ProxyConfig, SitePlan};
use super::proxy_config::{
    Maps, Place, backend_name, file, front_entries, parse_server_name, path_entries,
};
use super::proxy_maps::{NOBODY, lead_to, numbers_in, replace, serving};
use super::proxy_metrics::{Book, Tap, measure};
use super::proxy_servers::{Watcher, balancer, update_servers};
use super::rules::{Redirect, below_entries, exact_entries};
use super::site::{self, Site};
use super::{BACKEND, PING, PROXY, ROLES, WEB};
use crate::support::background::{Background, MOMENT, Stops, stop_all};
use crate::support::{files, http};
use async_trait::async_trait;
use conpaas_core::role_agent::{NodeContext, ProcessSpec, RoleAgent, RoleError};
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::level::{Duty, Instance, Provider, ReleaseLevel, RoleLevel};
use conpaas_model::metrics::RoleReading;
use conpaas_model::status::{InUse, Phase, RoleStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

const PROGRAM: &str = "/usr/sbin/haproxy";
const SIGUSR1: i32 = 10;
/// Time for requests in flight when a load balancer is stopped.
const GRACE: Duration = Duration::from_secs(60);
/// The same when it has none: only idle connections are left.
const IDLE_GRACE: Duration = Duration::from_secs(2);
/// What a request may take beyond the application's own limit before we give up on it.
const LEEWAY_SECONDS: u64 = 5;
const AGAIN: Duration = Duration::from_secs(2);
/// How long one that answered may be silent before it counts as failed.
const SILENCE: Duration = Duration::from_secs(5);

/// The agent half of the role.
#[derive(Default)]
pub struct Proxy {
    releases: BTreeMap<ReleaseNumber, Known>,
    /// What the running load balancer's maps hold, as far as this agent knows.
    applied: Option<Applied>,
    watcher: Option<Watcher>,
    /// What was measured of the process that runs.
    measured: Option<(Book, Tap)>,
    stops: Stops,
    /// Since when servers stay for requests that wait for a place.
    waiting: Option<Instant>,
    /// When it last answered its own test, and as which process.
    answered: Option<(i32, Instant)>,
}

/// A release as this agent knows it.
struct Known {
    plan: SitePlan,
    redirects: Vec<Redirect>,
    site: Option<Site>,
    looking: Option<Background<Site>>,
    failed: Option<(String, Instant)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Applied {
    /// Of which process.
    pid: i32,
    releases: BTreeSet<ReleaseNumber>,
    ready: BTreeSet<ReleaseNumber>,
    connections: u64,
}

fn process_name(node: &NodeContext) -> String {
    node.process_name(PROXY, "balancer")
}

fn runtime(node: &NodeContext) -> Runtime {
    Runtime::new(&socket(node))
}

fn socket(node: &NodeContext) -> PathBuf {
    node.role_folder(PROXY).join("runtime.sock")
}

fn book_file(node: &NodeContext) -> PathBuf {
    node.role_folder(PROXY).join("metrics.json")
}

fn address(node: &NodeContext) -> SocketAddrV4 {
    let port = ROLES
        .iter()
        .find(|role| role.name == PROXY)
        .map_or(0, |role| role.port);
    SocketAddrV4::new(node.address, port)
}

/// Starts looking through a release's files.
fn look_through(node: &NodeContext, plan: &SitePlan, level: &ReleaseLevel) -> Background<Site> {
    let (node, plan, level) = (node.clone(), plan.clone(), level.clone());
    Background::start(async move {
        let source = site::source(&node, &plan, &level).await?;
        let work = move || {
            site::survey(&source, &plan).map_err(RoleError::io(format!(
                "looking through {}",
                source.display()
            )))
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Err(RoleError::Failed("looking through code was cut off".into())))
    })
}

/// The load balancer's backend that a provider is a server of.
fn provider_backend(provider: &Provider) -> String {
    provider.release.map_or_else(String::new, |release| {
        backend_name(provider.role == BACKEND, release)
    })
}

impl Proxy {
    /// Learns about the level's releases and forgets others.
    async fn learn(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        self.releases
            .retain(|release, _| level.releases.contains_key(release));
        for (release, wish) in &level.releases {
            let config: ProxyConfig = site::read(&wish.config)?;
            let known = self.releases.entry(*release).or_insert_with(|| Known {
                plan: config.site,
                redirects: config.redirects,
                site: None,
                looking: None,
                failed: None,
            });
            let may_try = known
                .failed
                .as_ref()
                .is_none_or(|(_, since)| since.elapsed() >= AGAIN);
            if known.site.is_none() && known.looking.is_none() && may_try {
                known.looking = Some(look_through(node, &known.plan, wish));
            }
            if let Some(work) = &mut known.looking
                && let Some(result) = work.poll(MOMENT).await
            {
                known.looking = None;
                match result {
                    Ok(site) => (known.site, known.failed) = (Some(site), None),
                    Err(error) => known.failed = Some((describe(&error), Instant::now())),
                }
            }
        }
        Ok(())
    }

    /// Starts the load balancer unless it runs; gives its process number.
    async fn start(&mut self, node: &NodeContext, config: &ProxyConfig) -> Result<i32, RoleError> {
        let name = process_name(node);
        if let Some(found) = node
            .processes
            .list()
            .await?
            .into_iter()
            .find(|process| process.name == name && process.running)
        {
            return Ok(found.pid);
        }
        let folder = node.role_folder(PROXY);
        files::folder(&folder, 0o755)?;
        files::folder(&node.log_folder, 0o755)?;
        // Its maps' files are there from an earlier life, or empty; the rest follows at run time.
        let maps = Maps::in_folder(&folder);
        if !maps.active.exists() {
            files::write_if_changed(&maps.active, NOBODY.as_bytes(), 0o644)?;
        }
        for map in [
            &maps.roots,
            &maps.limits,
            &maps.paths,
            &maps.fronts,
            &maps.redirects,
            &maps.redirects_below,
        ] {
            if !map.exists() {
                files::write_if_changed(map, b"", 0o644)?;
            }
        }
        let place = Place {
            listen: address(node),
            socket: &socket(node),
            folder: &folder,
            is_root: files::is_root(),
        };
        let path = folder.join("haproxy.cfg");
        files::write_if_changed(&path, file(&place, config).as_bytes(), 0o644)?;
        let spec = ProcessSpec {
            name,
            argv: [PROGRAM, "-db", "-f", &path.display().to_string()]
                .map(str::to_owned)
                .to_vec(),
            env: vec![],
            user: None,
            log: node.log(PROXY, "access"),
            working_directory: PathBuf::from("/"),
            stop_signal: SIGUSR1,
        };
        Ok(node.processes.ensure(&spec).await?.pid)
    }

    /// Brings maps to what is known, before or after servers change. A release stays ready once
    /// it was; it becomes so when its paths are known and one of each kind of its servers is up.
    async fn update_maps(
        &mut self,
        node: &NodeContext,
        config: &ProxyConfig,
        runtime: &Runtime,
        pid: i32,
        servers: &[Server],
        providers: &[Provider],
    ) -> Result<(), RoleError> {
        let maps = Maps::in_folder(&node.role_folder(PROXY));
        let before = self.applied.take_if(|applied| applied.pid == pid);
        let was_ready = before
            .as_ref()
            .map_or_else(|| numbers_in(&maps.roots), |applied| applied.ready.clone());
        // Pages and files are served by different servers: people are led to a release only when
        // one of each kind that it has is up.
        let up = |provider: &Provider| {
            servers.iter().any(|server| {
                server.is_up()
                    && server.backend == provider_backend(provider)
                    && parse_server_name(&server.name).map(|(release, _)| release)
                        == provider.release
            })
        };
        let all_up = |release: ReleaseNumber| {
            let mut of_release = providers
                .iter()
                .filter(|provider| provider.release == Some(release))
                .peekable();
            of_release.peek().is_some()
                && of_release.all(|one| {
                    providers.iter().any(|other| {
                        other.release == one.release && other.role == one.role && up(other)
                    })
                })
        };
        let known: BTreeMap<ReleaseNumber, (&Known, &Site)> = self
            .releases
            .iter()
            .filter_map(|(release, known)| Some((*release, (known, known.site.as_ref()?))))
            .collect();
        let ready: BTreeSet<ReleaseNumber> = known
            .keys()
            .copied()
            .filter(|release| was_ready.contains(release) || all_up(*release))
            .collect();
        let now = Applied {
            pid,
            releases: known.keys().copied().collect(),
            ready,
            connections: config.connections,
        };
        if before.as_ref() != Some(&now) {
            let limit =
                |known: &Known| ((known.plan.request_timeout + LEEWAY_SECONDS) * 1000).to_string();
            let paths = known.iter().flat_map(|(release, (known, site))| {
                path_entries(*release, site, &known.redirects)
            });
            let limits = known
                .iter()
                .map(|(release, (known, _))| (release.0.to_string(), limit(known)));
            // An agent that starts anew may know less than the running load balancer for a
            // moment: what is in use there stays until its files were looked through again.
            let complete = was_ready
                .iter()
                .all(|release| known.contains_key(release) || !self.releases.contains_key(release));
            if !complete {
                return Ok(());
            }
            if before
                .as_ref()
                .is_none_or(|applied| applied.releases != now.releases)
            {
                let all = || {
                    known
                        .iter()
                        .map(|(release, (known, site))| (*release, *known, *site))
                };
                let fronts = all().flat_map(|(release, _, site)| front_entries(release, site));
                let exact = all().flat_map(|(n, known, _)| exact_entries(n, &known.redirects));
                let below = all().flat_map(|(n, known, _)| below_entries(n, &known.redirects));
                let (fronts, exact, below) = (fronts.collect(), exact.collect(), below.collect());
                replace(runtime, &maps.fronts, fronts).await?;
                replace(runtime, &maps.redirects, exact).await?;
                replace(runtime, &maps.redirects_below, below).await?;
                replace(runtime, &maps.paths, paths.collect()).await?;
                replace(runtime, &maps.limits, limits.collect()).await?;
            }
            let roots = now.ready.iter().filter_map(|release| {
                let (known, _) = known.get(release)?;
                Some((
                    release.0.to_string(),
                    site::document_root(&known.plan, *release)
                        .display()
                        .to_string(),
                ))
            });
            replace(runtime, &maps.roots, roots.collect()).await?;
            let connections = config.connections.min(super::sizing::MOST_CONNECTIONS);
            runtime
                .order(&format!("set maxconn global {connections}"), &[])
                .await
                .map_err(balancer("setting the load balancer's connections"))?;
        }
        self.applied = Some(now);
        Ok(())
    }

    /// Leads people to the wanted release, once it is ready here, and those at the preview address to
    /// the one that is held.
    async fn switch(
        &mut self,
        node: &NodeContext,
        runtime: &Runtime,
        level: &RoleLevel,
    ) -> Result<(), RoleError> {
        let wanted = level.serve.filter(|wanted| {
            self.applied
                .as_ref()
                .is_some_and(|applied| applied.ready.contains(wanted))
        });
        let maps = Maps::in_folder(&node.role_folder(PROXY));
        lead_to(runtime, &maps.active, wanted, level.preview)
            .await
            .map_err(balancer("switching the active release"))
    }
}

#[async_trait]
impl RoleAgent for Proxy {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        let config: ProxyConfig = site::read(&level.config)?;
        self.stops.settle(Duration::ZERO).await?;
        if self.stops.under_way(&process_name(node)) {
            return Ok(());
        }
        let pid = self.start(node, &config).await?;
        self.learn(node, level).await?;
        let runtime = runtime(node);
        let until = Instant::now() + MOMENT;
        while runtime.ask("show version").await.is_err() {
            if Instant::now() >= until {
                // Still starting, or failing: `observe` says which.
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.watcher.as_ref().is_none_or(Watcher::has_ended) {
            self.watcher = Some(Watcher::start(runtime.clone()));
        }
        if self
            .measured
            .as_ref()
            .is_none_or(|(book, _)| !book.is_of(pid))
        {
            // Before anybody is led here: what is answered from now on is heard.
            let book = Book::open(&book_file(node), pid);
            self.measured = Some((book, Tap::start(runtime.clone())));
        }
        update_servers(&runtime, &level.providers, &mut self.waiting).await?;
        let servers = runtime
            .servers()
            .await
            .map_err(balancer("reading the load balancer's servers"))?;
        self.update_maps(node, &config, &runtime, pid, &servers, &level.providers)
            .await?;
        self.switch(node, &runtime, level).await
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let mut status = RoleStatus::default();
        let name = process_name(node);
        let process = node
            .processes
            .list()
            .await?
            .into_iter()
            .find(|process| process.name == name);
        if process.as_ref().is_none_or(|process| !process.running) {
            status.own = Some(match process.and_then(|process| process.exit) {
                Some(exit) => Phase::Failed(format!(
                    "the load balancer ended with {exit}: {}",
                    files::last_line(&node.log(PROXY, "access")).unwrap_or_default()
                )),
                None if level.duty == Duty::Drain => Phase::Drained,
                None => Phase::Starting,
            });
            return Ok(status);
        }
        let runtime = runtime(node);
        let Ok(servers) = runtime.servers().await else {
            status.own = Some(Phase::Starting);
            return Ok(status);
        };
        let mut in_flight = 0;
        let mut up = 0;
        for server in &servers {
            let Some((release, number)) = parse_server_name(&server.name) else {
                continue;
            };
            in_flight += server.in_flight;
            up += u64::from(server.is_up());
            // A release is used from when people could be led to it here.
            let ready = |applied: &Applied| applied.ready.contains(&release);
            if server.in_flight == 0 && !self.applied.as_ref().is_none_or(ready) {
                continue;
            }
            let role = if server.backend.starts_with("php-") {
                BACKEND
            } else {
                WEB
            };
            let instance = Instance {
                role: role.to_owned(),
                node: NodeNumber(number),
                release: Some(release),
            };
            status.using.push(InUse {
                instance,
                in_flight: server.in_flight,
            });
        }
        let maps = Maps::in_folder(&node.role_folder(PROXY));
        status.serving = serving(&runtime, &maps.active)
            .await
            .map_err(balancer("reading the active release"))?;
        status.facts.insert("in_flight".into(), in_flight.into());
        status.facts.insert("servers_up".into(), up.into());
        let answer = http::get(address(node).into(), PING, Duration::from_secs(2)).await;
        let pid = process.map_or(0, |process| process.pid);
        if answer.is_ok() {
            self.answered = Some((pid, Instant::now()));
        }
        let lately = self
            .answered
            .is_some_and(|(of, at)| of == pid && at.elapsed() < SILENCE);
        let trouble = self
            .releases
            .values()
            .find_map(|known| known.failed.as_ref().map(|(reason, _)| reason.clone()));
        status.own = Some(match (answer, level.duty) {
            (Ok(answer), Duty::Serve) if answer.status == 200 => {
                match (status.serving, level.serve, trouble) {
                    (None, Some(_), Some(reason)) => Phase::Failed(reason),
                    (None, Some(_), None) => Phase::Starting,
                    _ => Phase::Ready,
                }
            }
            (Ok(_), Duty::Drain) if in_flight == 0 => Phase::Drained,
            (Ok(_), Duty::Drain) => Phase::Draining,
            (Ok(answer), Duty::Serve) => Phase::Failed(format!(
                "the load balancer answers its own test with {}",
                answer.status
            )),
            // A computer that is short of time is slow to answer and no reason to fail.
            (Err(_), Duty::Serve) if lately => Phase::Ready,
            (Err(error), _) => Phase::Failed(format!("the load balancer does not answer: {error}")),
        });
        Ok(status)
    }

    async fn metrics(
        &mut self,
        node: &NodeContext,
        _level: &RoleLevel,
    ) -> Result<Vec<RoleReading>, RoleError> {
        match &mut self.measured {
            Some((book, tap)) => measure(&runtime(node), book, &book_file(node), tap).await,
            None => Ok(Vec::new()),
        }
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        self.watcher = None;
        self.applied = None;
        self.releases.clear();
        let busy = runtime(node)
            .servers()
            .await
            .is_ok_and(|servers| servers.iter().any(|server| server.in_flight > 0));
        let grace = if busy { GRACE } else { IDLE_GRACE };
        stop_all(
            &node.processes,
            &mut self.stops,
            &node.process_name(PROXY, ""),
            grace,
        )
        .await
    }
}
