//! Feeding the edge: routes go down as a file when exposures change; what the edge answers tells
//! managers which exposure is in force and which nodes still have requests in flight.

use super::records;
use super::routes::{self, Place, Written};
use super::shared::{Shared, full};
use crate::error::DirectorError;
use crate::incarnation;
use crate::store::apps::AppRow;
use crate::store::changes::Touched;
use crate::store::{Millis, apps, domains, services};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::edge::{APPLIED_FILE, Applied, NetworkAccess, Outlet, ROUTES_FILE, Routes};
use conpaas_model::egress::Egress;
use conpaas_model::ids::{ApplicationId, Generation, ServiceId};
use conpaas_model::spec::RunWish;
use conpaas_model::status::{EdgeStatus, NodeState};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How often the edge's answer is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is asked whether an edge that owes an answer listens at all.
const KNOCK: Duration = Duration::from_secs(1);

/// The feeding of one edge.
pub struct Feed {
    shared: Arc<Shared>,
    written: Written,
    known: BTreeMap<ApplicationId, Known>,
    places: Vec<Place>,
    applied: Option<Applied>,
    /// What tells one state of the edge's file from another.
    seen: Option<(u64, i64, i64, u64)>,
    knocked: Option<Instant>,
    /// Since when nobody listens where the edge did.
    silent: Option<Instant>,
}

impl Feed {
    /// Takes up where an earlier Director left the files.
    pub fn new(shared: Arc<Shared>) -> Self {
        let folder = &shared.config.edge_folder;
        if let Err(error) = std::fs::create_dir_all(folder) {
            tracing::error!(%error, folder = %folder.display(), "the edge's folder cannot be made");
        }
        let before: Option<Routes> = read(folder, ROUTES_FILE);
        let applied: Option<Applied> = read(folder, APPLIED_FILE);
        Self {
            written: Written::resume(before),
            shared,
            known: BTreeMap::new(),
            places: Vec::new(),
            applied,
            seen: None,
            knocked: None,
            silent: None,
        }
    }

    /// Works until the Director ends.
    pub async fn run(mut self) {
        let shared = self.shared.clone();
        let mut changes = shared.store.follow();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let touched = changes.take();
            if touched != Touched::default()
                && let Err(error) = self.write(&touched).await
            {
                changes.put_back(&touched);
                tracing::error!(
                    error = full(&error),
                    "the edge's routes could not be brought up to date"
                );
            }
            self.listen().await;
            self.tell();
            tokio::select! {
                () = shared.shutdown.cancelled() => return,
                _ = changes.changed() => {}
                _ = look.tick() => {}
            }
        }
    }

    /// Writes the routes if they changed.
    async fn write(&mut self, touched: &Touched) -> Result<(), DirectorError> {
        let found = known(&self.shared, touched.clone()).await?;
        absorb(&mut self.known, *touched == Touched::Everything, found);
        // Older applications first, as their names were there first.
        let mut all: Vec<&Known> = self.known.values().collect();
        all.sort_by_key(|known| known.created_at);
        self.places = all.iter().flat_map(|known| known.places.clone()).collect();
        let outlets: Vec<Outlet> = all.iter().flat_map(|known| known.outlets.clone()).collect();
        let (routes, versions) = routes::routes(
            &self.places,
            &self.shared.config.base_domain,
            self.written.standing(),
        );
        let taken = self
            .applied
            .as_ref()
            .map_or(Generation(0), |applied| applied.generation);
        if let Some(file) = self.written.offer(&routes, &outlets, taken) {
            let folder = self.shared.config.edge_folder.clone();
            let text = serde_json::to_vec_pretty(&file)?;
            tokio::task::spawn_blocking(move || replace(&folder, ROUTES_FILE, &text))
                .await
                .map_err(|error| {
                    DirectorError::internal("writing the edge's routes broke off", error)
                })?
                .map_err(|error| {
                    DirectorError::internal("the edge's routes cannot be written", error)
                })?;
            tracing::debug!(generation = %file.generation, "routes written");
            self.written.accept(file);
        }
        self.written.expose(versions);
        Ok(())
    }

    /// Reads the edge's answer, and finds out whether there is an edge at all if it owes one.
    async fn listen(&mut self) {
        let stamp = std::fs::metadata(self.shared.config.edge_folder.join(APPLIED_FILE))
            .ok()
            .map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()));
        if stamp.is_some()
            && stamp != self.seen
            && let Some(applied) = read::<Applied>(&self.shared.config.edge_folder, APPLIED_FILE)
        {
            self.applied = Some(applied);
            self.seen = stamp;
        }
        let Some(applied) = &self.applied else { return };
        let owes = applied.generation < self.written.generation() || !applied.draining.is_empty();
        if !owes {
            self.silent = None;
            return;
        }
        if self.knocked.is_some_and(|at| at.elapsed() < KNOCK) {
            return;
        }
        self.knocked = Some(Instant::now());
        let there = timeout(KNOCK, TcpStream::connect(reachable(applied.listening))).await;
        match there {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.silent.get_or_insert_with(Instant::now);
            }
            _ => self.silent = None,
        }
    }

    /// Whether no edge runs: then nothing is in flight, and the routes hold as soon as one starts.
    fn is_absent(&self) -> bool {
        self.applied.is_none()
            || self
                .silent
                .is_some_and(|since| since.elapsed() >= self.shared.config.edge_finishing)
    }

    fn tell(&self) {
        let absent = self.is_absent();
        let statuses: BTreeMap<ServiceId, EdgeStatus> = self
            .places
            .iter()
            .map(|place| {
                (
                    place.service.clone(),
                    self.written
                        .status(place, self.applied.as_ref().filter(|_| !absent)),
                )
            })
            .collect();
        self.shared.edge.send_if_modified(|present| {
            let changed = *present != statuses;
            if changed {
                *present = statuses;
            }
            changed
        });
    }
}

/// Where to knock at a listener that may be bound to all addresses.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

fn read<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    let text = std::fs::read(folder.join(name)).ok()?;
    match serde_json::from_slice(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(%error, name, "a file of the edge is not valid");
            None
        }
    }
}

/// Replaces a file as a whole, so that it survives a crash of the computer.
fn replace(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let beside = folder.join(format!(".{name}.director"));
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    reached(KillPoint::RoutesPrepared);
    std::fs::rename(&beside, folder.join(name))?;
    reached(KillPoint::RoutesWritten);
    std::fs::File::open(folder)?.sync_all()
}

/// What routes are made of, of one application.
struct Known {
    created_at: Millis,
    places: Vec<Place>,
    outlets: Vec<Outlet>,
}

/// Takes in what was found. `whole`: all there is, so what is not among it is gone, too.
fn absorb<T>(
    known: &mut BTreeMap<ApplicationId, T>,
    whole: bool,
    found: Vec<(ApplicationId, Option<T>)>,
) {
    if whole {
        known.clear();
    }
    for (application, now) in found {
        match now {
            Some(now) => known.insert(application, now),
            None => known.remove(&application),
        };
    }
}

/// What the store says of the applications that were touched, in one look; nothing of those that are
/// gone.
async fn known(
    shared: &Arc<Shared>,
    touched: Touched,
) -> Result<Vec<(ApplicationId, Option<Known>)>, DirectorError> {
    let here = shared.clone();
    shared
        .store
        .read(move |tx| {
            let restored_at = incarnation::restored_at(tx)?;
            let apps: Vec<_> = match touched {
                Touched::Everything => {
                    let all = apps::every(tx)?.into_iter();
                    all.map(|app| (app.id.clone(), Some(app))).collect()
                }
                Touched::Applications(these) => these
                    .into_iter()
                    .map(|id| apps::get(tx, &id).map(|app| (id, app)))
                    .collect::<Result<_, _>>()?,
            };
            apps.into_iter()
                .map(|(id, app)| {
                    let known = app.map(|app| of_app(tx, &here, &app, restored_at));
                    Ok((id, known.transpose()?))
                })
                .collect()
        })
        .await
}

fn of_app(
    tx: &Connection,
    shared: &Shared,
    app: &AppRow,
    restored_at: Option<Millis>,
) -> Result<Known, DirectorError> {
    let (mut places, mut networks, mut first) = (Vec::new(), BTreeSet::new(), true);
    // The host names of what is in the trash are free for others, like its name.
    let gone = app.trashed_at.is_some();
    let network = |cloud: &str| {
        let cloud = shared.clouds.get(cloud);
        cloud.map_or(NetworkAccess::Host, |cloud| cloud.network_access(&app.id))
    };
    for row in services::of_app(tx, &app.id)? {
        let nodes = records::nodes_of(tx, &row.id)?;
        networks.extend(nodes.iter().map(|node| node.cloud.clone()));
        let exposes = shared
            .registry
            .get(&row.service_type)
            .is_some_and(|entry| entry.service_type.roles().iter().any(|role| role.exposed));
        if !exposes {
            continue;
        }
        let claimed = domains::of_service(tx, &row.id)?;
        places.push(Place {
            service: row.id.clone(),
            app: app.name.clone(),
            owner: app.owner_name.clone(),
            name: row.name.clone(),
            first,
            run: if gone { RunWish::Deleted } else { row.run },
            served: row.served,
            preview: row.preview.is_some(),
            domains: claimed.into_iter().map(|domain| domain.name).collect(),
            held: !gone && row.awaits_exposure(restored_at),
            exposure: row.exposure.clone().unwrap_or_default(),
            nodes: nodes
                .into_iter()
                .map(|node| routes::NodePlace {
                    number: node.key.number,
                    address: node.address,
                    network: network(&node.cloud),
                    alive: node.state != NodeState::Dead,
                })
                .collect(),
        });
        first = false;
    }
    let mut outlets = Vec::new();
    if !gone && app.egress.within(shared.config.egress) == Egress::Director {
        // Elsewhere machines get out by themselves.
        let own = networks.iter().map(|cloud| network(cloud));
        let own = own.filter(|network| *network != NetworkAccess::Host);
        outlets.extend(own.map(|network| Outlet {
            owner: app.owner_name.to_string(),
            app: app.name.to_string(),
            network,
        }));
    }
    Ok(Known {
        created_at: app.created_at,
        places,
        outlets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_forgotten_however_that_is_told() {
        let app = |name: &str| ApplicationId::from_suffix(name).unwrap();
        let mut known = BTreeMap::from([(app("1"), 1), (app("2"), 2), (app("3"), 3)]);
        absorb(
            &mut known,
            false,
            vec![(app("1"), None), (app("2"), Some(7))],
        );
        assert_eq!(known, BTreeMap::from([(app("2"), 7), (app("3"), 3)]));
        absorb(&mut known, true, vec![(app("3"), Some(8))]);
        assert_eq!(known, BTreeMap::from([(app("3"), 8)]));
    }
}
