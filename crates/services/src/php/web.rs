//! `web`: nginx for static files, one of its own for each release on a port of its own.

use super::manager::WebConfig;
use super::site;
use super::web_config::{Place, file};
use super::web_metrics::Measured;
use super::{PING, STATUS, WEB, backend::describe};
use crate::support::background::{Background, MOMENT, Stops, stop_all};
use crate::support::{files, http};
use async_trait::async_trait;
use conpaas_core::role_agent::{NodeContext, ProcessSpec, ProcessStatus, RoleAgent, RoleError};
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::level::{Duty, ReleaseLevel, RoleLevel};
use conpaas_model::metrics::RoleReading;
use conpaas_model::status::{Phase, RoleStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

const PROGRAM: &str = "/usr/sbin/nginx";
const SIGQUIT: i32 = 3;
/// Time for downloads in flight when a server is stopped.
const GRACE: Duration = Duration::from_secs(30);
/// How long a server may be silent before it counts as failed.
const SILENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(2);

/// The agent half of the role.
#[derive(Default)]
pub struct Web {
    releases: BTreeMap<ReleaseNumber, Server>,
    measured: Option<Measured>,
    stops: Stops,
}

/// What this agent remembers of one release.
#[derive(Default)]
struct Server {
    fetching: Option<Background<PathBuf>>,
    source: Option<PathBuf>,
    failed: Option<(String, Instant)>,
    silent: Option<Instant>,
}

fn process_name(node: &NodeContext, release: ReleaseNumber) -> String {
    node.process_name(WEB, &release.to_string())
}

fn address(node: &NodeContext, level: &ReleaseLevel) -> SocketAddr {
    SocketAddrV4::new(node.address, level.port).into()
}

fn access_log(node: &NodeContext) -> PathBuf {
    node.log(WEB, "access")
}

fn configure(
    node: &NodeContext,
    config: &WebConfig,
    release: ReleaseNumber,
    level: &ReleaseLevel,
    source: &Path,
) -> Result<ProcessSpec, RoleError> {
    let folder = node.role_folder(WEB).join(release.to_string());
    files::folder(&node.role_folder(WEB), 0o755)?;
    files::folder(&folder, 0o755)?;
    files::folder(&node.log_folder, 0o755)?;
    let place = Place {
        listen: SocketAddrV4::new(node.address, level.port),
        root: &site::public(source, &config.site),
        folder: &folder,
        access_log: &access_log(node),
        release,
        is_root: files::is_root(),
    };
    let path = folder.join("nginx.conf");
    files::write_if_changed(&path, file(&place, config).as_bytes(), 0o644)?;
    Ok(ProcessSpec {
        name: process_name(node, release),
        argv: [
            PROGRAM,
            "-e",
            "stderr",
            "-p",
            &folder.display().to_string(),
            "-c",
            &path.display().to_string(),
        ]
        .map(str::to_owned)
        .to_vec(),
        env: vec![],
        user: None,
        log: node.log(WEB, "nginx"),
        working_directory: PathBuf::from("/"),
        stop_signal: SIGQUIT,
    })
}

/// What a server's status says, by the words before the figures.
async fn status(address: SocketAddr) -> std::io::Result<impl Fn(&str) -> Option<u64>> {
    let answer = http::get(address, STATUS, Duration::from_secs(2)).await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    Ok(move |name: &str| {
        let mut words = text.split_whitespace();
        words.find(|word| *word == name)?;
        words.next()?.parse::<u64>().ok()
    })
}

/// Requests a server is working on; idle connections do not count, nor does the question.
async fn busy(address: SocketAddr) -> std::io::Result<u64> {
    let figure = status(address).await?;
    match (figure("Reading:"), figure("Writing:")) {
        (Some(reading), Some(writing)) => Ok((reading + writing).saturating_sub(1)),
        _ => Err(std::io::Error::other("a status without figures")),
    }
}

#[async_trait]
impl RoleAgent for Web {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        let list = node.processes.list().await?;
        let wanted: BTreeSet<String> = level
            .releases
            .keys()
            .map(|release| process_name(node, *release))
            .collect();
        let prefix = node.process_name(WEB, "");
        for process in list
            .iter()
            .filter(|p| p.name.starts_with(&prefix) && !wanted.contains(&p.name))
        {
            self.stops.begin(&node.processes, &process.name, GRACE);
        }
        self.stops.settle(Duration::ZERO).await?;
        self.releases
            .retain(|release, _| level.releases.contains_key(release));
        for (release, wish) in &level.releases {
            let config: WebConfig = site::read(&wish.config)?;
            let name = process_name(node, *release);
            if self.stops.under_way(&name) {
                continue;
            }
            let server = self.releases.entry(*release).or_default();
            let may_try = server
                .failed
                .as_ref()
                .is_none_or(|(_, since)| since.elapsed() >= AGAIN);
            if server.source.is_none() && server.fetching.is_none() && may_try {
                let (node, plan, wish) = (node.clone(), config.site.clone(), wish.clone());
                server.fetching = Some(Background::start(async move {
                    site::source(&node, &plan, &wish).await
                }));
            }
            if let Some(work) = &mut server.fetching
                && let Some(result) = work.poll(MOMENT).await
            {
                server.fetching = None;
                match result {
                    Ok(source) => (server.source, server.failed) = (Some(source), None),
                    Err(error) => server.failed = Some((describe(&error), Instant::now())),
                }
            }
            if let Some(source) = &server.source
                && !list.iter().any(|p| p.name == name && p.running)
            {
                node.processes
                    .ensure(&configure(node, &config, *release, wish, source)?)
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
        for (release, wish) in &level.releases {
            let server = self.releases.entry(*release).or_default();
            let phase = look(node, &list, *release, wish, server).await;
            status.releases.insert(*release, phase);
        }
        Ok(status)
    }

    async fn metrics(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<Vec<RoleReading>, RoleError> {
        let measured = self
            .measured
            .get_or_insert_with(|| Measured::of(access_log(node)));
        let mut busy = BTreeMap::new();
        for (release, wish) in &level.releases {
            let in_use = self
                .releases
                .get(release)
                .is_some_and(|server| server.source.is_some());
            if in_use && let Ok(figure) = status(address(node, wish)).await {
                // This very question is one of those that are written to.
                let asked = figure("Writing:").unwrap_or(1).saturating_sub(1);
                let in_flight = figure("Reading:").unwrap_or(0) + asked;
                busy.insert(*release, (in_flight, figure("Waiting:").unwrap_or(0)));
            }
        }
        Ok(measured.look(&busy))
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        self.releases.clear();
        stop_all(
            &node.processes,
            &mut self.stops,
            &node.process_name(WEB, ""),
            GRACE,
        )
        .await
    }
}

async fn look(
    node: &NodeContext,
    list: &[ProcessStatus],
    release: ReleaseNumber,
    wish: &ReleaseLevel,
    server: &mut Server,
) -> Phase {
    let name = process_name(node, release);
    let found = list.iter().find(|process| process.name == name);
    if found.is_none_or(|process| !process.running) {
        return match (&server.failed, found.and_then(|process| process.exit)) {
            (Some((reason, _)), _) => Phase::Failed(reason.clone()),
            (None, Some(exit)) => Phase::Failed(format!(
                "the web server ended with {exit}: {}",
                files::last_line(&node.log(WEB, "nginx")).unwrap_or_default()
            )),
            (None, None) if wish.duty == Duty::Drain => Phase::Drained,
            (None, None) => Phase::Starting,
        };
    }
    let until = Instant::now() + MOMENT;
    let proven = loop {
        match http::get(address(node, wish), PING, Duration::from_secs(2)).await {
            Ok(answer) if answer.status == 200 => break Ok(()),
            Ok(answer) => break Err(format!("it answers {}", answer.status)),
            Err(error) if Instant::now() >= until => break Err(error.to_string()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    match (proven, wish.duty) {
        (Ok(()), Duty::Serve) => {
            server.silent = None;
            Phase::Ready
        }
        (Ok(()), Duty::Drain) => match busy(address(node, wish)).await {
            Ok(0) => Phase::Drained,
            _ => Phase::Draining,
        },
        (Err(reason), _) => {
            let since = *server.silent.get_or_insert_with(Instant::now);
            if since.elapsed() >= SILENCE {
                Phase::Failed(format!("the web server does not answer: {reason}"))
            } else {
                Phase::Starting
            }
        }
    }
}
