//! The load balancer's servers: taking in new providers, letting go of old ones, and cutting
//! sessions of those that went down.

use super::haproxy::{Runtime, Server};
use super::proxy_config::{backend_name, parse_server_name, server_name};
use super::{BACKEND, WEB};
use crate::support::background::MOMENT;
use conpaas_core::role_agent::RoleError;
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::level::Provider;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often the watcher looks, and how long a server must be down before its sessions are cut:
/// longer than a connection attempt, so that attempts under way are tried elsewhere first.
const WATCH: Duration = Duration::from_millis(150);
const DOWN_LONG_ENOUGH: Duration = Duration::from_millis(300);

/// How long one call waits for new servers to be up before old ones may drain; the next call
/// goes on waiting.
const TAKING_IN: Duration = Duration::from_millis(700);
/// Seconds after which a server that does not come up is waited for no more.
const GIVEN_UP_AFTER: u64 = 5;
/// How long the last servers of a backend stay for requests that wait for a place: those are given
/// up before this.
const QUEUE_EMPTIES: Duration = Duration::from_secs(super::proxy_config::QUEUE_SECONDS + 1);

/// Wraps an I/O error of the runtime interface with what was tried.
pub fn balancer(what: &str) -> impl FnOnce(std::io::Error) -> RoleError + '_ {
    RoleError::io(what.to_owned())
}

/// Cuts sessions of servers that went down; ends when dropped.
pub struct Watcher(JoinHandle<()>);

impl Watcher {
    pub fn start(runtime: Runtime) -> Self {
        Self(tokio::spawn(watch(runtime)))
    }
    pub fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes in new providers and lets go of those that are absent from the level. `waiting` is since
/// when servers stay for requests that wait for a place.
pub async fn update_servers(
    runtime: &Runtime,
    providers: &[Provider],
    waiting: &mut Option<Instant>,
) -> Result<(), RoleError> {
    let failed = || balancer("reading the load balancer's servers");
    let wanted: BTreeMap<String, &Provider> = providers
        .iter()
        .filter_map(|provider| {
            let release = provider.release?;
            let path = format!(
                "{}/{}",
                backend_name(provider.role == BACKEND, release),
                server_name(release, provider.node.0)
            );
            (provider.role == BACKEND || provider.role == WEB).then_some((path, provider))
        })
        .collect();
    let place = |provider: &Provider| format!("{}:{}", provider.address, provider.port);
    let until = Instant::now() + TAKING_IN;
    let leaving = loop {
        let servers = runtime.servers().await.map_err(failed())?;
        // New ones first, and up: a level may name none of those that were there before, and
        // between the last of them and the first of these nobody would answer.
        take_in_missing(runtime, &servers, &wanted).await?;
        let coming = coming(&servers, &wanted);
        let queued = last_queues(runtime, &servers, &wanted).await?;
        let since = (!queued.is_empty()).then(|| waiting.unwrap_or_else(Instant::now));
        *waiting = since;
        let may_wait = since.is_some_and(|since| since.elapsed() < QUEUE_EMPTIES);
        let stays =
            |backend: &String| coming.contains(backend) || may_wait && queued.contains(backend);
        let (mut leaving, mut held) = (false, false);
        for server in servers
            .iter()
            .filter(|server| parse_server_name(&server.name).is_some())
        {
            match wanted.get(&server.path()) {
                Some(provider) if place(provider) == server.address => {
                    keep(runtime, server, provider).await?
                }
                _ if server.is_draining() || server.in_maintenance() => leaving = true,
                _ if server.is_up() && stays(&server.backend) => held = true,
                _ => {
                    leaving = true;
                    runtime
                        .order(&format!("set server {} state drain", server.path()), &[])
                        .await
                        .map_err(balancer("letting a server drain"))?;
                }
            }
        }
        if !held || Instant::now() >= until {
            break leaving;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    if leaving {
        let_go(runtime, &wanted, place).await?;
        // Those whose places were taken until now.
        let servers = runtime.servers().await.map_err(failed())?;
        take_in_missing(runtime, &servers, &wanted).await?;
    }
    Ok(())
}

/// Backends with a wanted server that is not up yet, but may well be in a moment.
fn coming(servers: &[Server], wanted: &BTreeMap<String, &Provider>) -> BTreeSet<String> {
    let mut backends = BTreeSet::new();
    for (path, provider) in wanted {
        let Some((backend, release)) = path.split('/').next().zip(provider.release) else {
            continue;
        };
        let soon = match servers.iter().find(|server| server.path() == *path) {
            Some(server) => !server.is_up() && server.seconds_so < GIVEN_UP_AFTER,
            None => !is_taken(servers, backend, release),
        };
        if soon {
            backends.insert(backend.to_owned());
        }
    }
    backends
}

/// Backends that are to lose all their servers while requests wait there for a place at one: a
/// server that drains takes none of them, and no other would.
async fn last_queues(
    runtime: &Runtime,
    servers: &[Server],
    wanted: &BTreeMap<String, &Provider>,
) -> Result<BTreeSet<String>, RoleError> {
    let kept: BTreeSet<&str> = wanted
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect();
    let losing = |server: &&Server| {
        parse_server_name(&server.name).is_some()
            && server.is_up()
            && !kept.contains(&*server.backend)
    };
    let losing: BTreeSet<&str> = servers
        .iter()
        .filter(losing)
        .map(|server| &*server.backend)
        .collect();
    if losing.is_empty() {
        return Ok(BTreeSet::new());
    }
    let traffic = runtime
        .traffic()
        .await
        .map_err(balancer("reading the load balancer's queues"))?;
    let queued = traffic
        .into_iter()
        .filter(|one| !one.is_frontend && one.queue > 0 && losing.contains(&*one.name))
        .map(|one| one.name);
    Ok(queued.collect())
}

/// Whether servers of another release still hold a backend of the ring.
fn is_taken(servers: &[Server], backend: &str, release: ReleaseNumber) -> bool {
    servers.iter().any(|server| {
        server.backend == backend
            && parse_server_name(&server.name).is_some_and(|(other, _)| other != release)
    })
}

/// Takes in the providers that are not there and whose place is free.
async fn take_in_missing(
    runtime: &Runtime,
    servers: &[Server],
    wanted: &BTreeMap<String, &Provider>,
) -> Result<(), RoleError> {
    for (path, provider) in wanted {
        let Some(release) = provider.release else {
            continue;
        };
        let backend = backend_name(provider.role == BACKEND, release);
        let blocked = servers.iter().any(|server| server.path() == *path)
            || is_taken(servers, &backend, release);
        if !blocked {
            take_in(runtime, path, provider).await?;
        }
    }
    Ok(())
}

/// A server that stays: undoes a drain that was begun, follows its capacity.
async fn keep(runtime: &Runtime, server: &Server, provider: &Provider) -> Result<(), RoleError> {
    let failed = || balancer("keeping a server");
    if server.is_draining() || server.in_maintenance() {
        runtime
            .order(&format!("set server {} state ready", server.path()), &[])
            .await
            .map_err(failed())?;
    }
    if server.most != u64::from(provider.capacity) {
        runtime
            .order(
                &format!("set maxconn server {} {}", server.path(), provider.capacity),
                &[],
            )
            .await
            .map_err(failed())?;
    }
    Ok(())
}

async fn take_in(runtime: &Runtime, path: &str, provider: &Provider) -> Result<(), RoleError> {
    let failed = || balancer("taking in a server");
    let (address, port, capacity) = (provider.address, provider.port, provider.capacity);
    // Real connections are proofs, too: while the others have all that they may hold at once, a
    // machine that is gone would be tried again and again. One that only stumbles is up again with
    // its next check.
    let check = "check inter 500ms fastinter 200ms fall 3 rise 1 \
                 observe layer4 error-limit 3 on-error mark-down";
    let line = if provider.role == BACKEND {
        let status = port.saturating_add(super::backend::STATUS_OFFSET);
        format!(
            "add server {path} {address}:{port} proto fcgi {check} port {status} maxconn {capacity}"
        )
    } else {
        // A server that is added at run time keeps no idle connections unless told to, and a
        // connection for every request doubles what one costs. Idle ones go soon: while one is
        // there, the server cannot be removed.
        let reuse = "pool-max-conn 64 pool-purge-delay 500ms";
        format!("add server {path} {address}:{port} {check} maxconn {capacity} {reuse}")
    };
    runtime
        .order(&line, &["New server registered"])
        .await
        .map_err(failed())?;
    runtime
        .order(&format!("enable health {path}"), &[])
        .await
        .map_err(failed())?;
    runtime
        .order(&format!("enable server {path}"), &[])
        .await
        .map_err(failed())
}

/// Removes servers that are wanted no more and have nothing in flight. A refusal means that a
/// connection is still attached: the next round tries again.
async fn let_go(
    runtime: &Runtime,
    wanted: &BTreeMap<String, &Provider>,
    place: impl Fn(&Provider) -> String,
) -> Result<(), RoleError> {
    let until = Instant::now() + MOMENT;
    loop {
        let servers = runtime
            .servers()
            .await
            .map_err(balancer("reading the load balancer's servers"))?;
        let mut left = 0;
        for server in servers
            .iter()
            .filter(|server| parse_server_name(&server.name).is_some())
        {
            let stays = wanted
                .get(&server.path())
                .is_some_and(|provider| place(provider) == server.address);
            // One that is down shows that alone and not that it drains, too: whoever is not wanted
            // was told to drain before this.
            if stays || server.in_flight > 0 {
                continue;
            }
            let path = server.path();
            if !server.in_maintenance() {
                runtime
                    .order(&format!("set server {path} state maint"), &[])
                    .await
                    .map_err(balancer("removing a server"))?;
            }
            let answer = runtime
                .ask(&format!("del server {path}"))
                .await
                .map_err(balancer("removing a server"))?;
            if !answer.starts_with("Server deleted") {
                tracing::debug!(server = %path, %answer, "a server cannot be removed yet");
                left += 1;
            }
        }
        if left == 0 || Instant::now() >= until {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Looks for servers that went down while sessions hang on them, and cuts these so that they
/// are tried elsewhere: a frozen or unreachable machine never ends them itself.
async fn watch(runtime: Runtime) {
    let mut down: BTreeMap<String, (Instant, bool)> = BTreeMap::new();
    loop {
        tokio::time::sleep(WATCH).await;
        let Ok(servers) = runtime.servers().await else {
            continue;
        };
        down.retain(|path, _| {
            servers
                .iter()
                .any(|server| server.is_down() && server.path() == *path)
        });
        for server in servers.iter().filter(|server| server.is_down()) {
            let (since, cut) = down
                .entry(server.path())
                .or_insert_with(|| (Instant::now(), false));
            if !*cut && since.elapsed() >= DOWN_LONG_ENOUGH {
                *cut = true;
                if let Err(error) = runtime
                    .order(&format!("shutdown sessions server {}", server.path()), &[])
                    .await
                {
                    tracing::warn!(server = %server.path(), %error, "sessions of a server that is down could not be cut");
                }
            }
        }
    }
}
