//! Feeding the edge: routes go down as a file when exposures change; what the edge answers tells
//! managers which exposure is in force and which nodes still have requests in flight.

use super::records;
use super::routes::{self, Place, Written};
use super::shared::{Shared, full};
use crate::error::DirectorError;
use crate::incarnation;
use crate::store::{apps, domains, services};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::edge::{APPLIED_FILE, Applied, NetworkAccess, Outlet, ROUTES_FILE, Routes};
use conpaas_model::egress::Egress;
use conpaas_model::ids::{Generation, ServiceId};
use conpaas_model::status::{EdgeStatus, NodeState};
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
        let mut changed = shared.store.changed();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = true;
        loop {
            if due {
                match self.write().await {
                    Ok(()) => due = false,
                    Err(error) => tracing::error!(
                        error = full(&error),
                        "the edge's routes could not be brought up to date"
                    ),
                }
            }
            self.listen().await;
            self.tell();
            tokio::select! {
                () = shared.shutdown.cancelled() => return,
                _ = changed.changed() => due = true,
                _ = look.tick() => {}
            }
        }
    }

    /// Writes the routes if they changed.
    async fn write(&mut self) -> Result<(), DirectorError> {
        let (places, outlets) = places(&self.shared).await?;
        self.places = places;
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

/// Everything routes are made of, in one look at the store, and who is let out.
async fn places(shared: &Arc<Shared>) -> Result<(Vec<Place>, Vec<Outlet>), DirectorError> {
    let most = shared.config.egress;
    let registry = shared.registry.clone();
    let clouds: BTreeMap<String, Arc<dyn conpaas_cloud::Cloud>> = shared.clouds.clone();
    shared
        .store
        .read(move |tx| {
            let (mut places, mut outlets) = (Vec::new(), Vec::new());
            let restored_at = incarnation::restored_at(tx)?;
            let mut claimed: BTreeMap<ServiceId, Vec<String>> = BTreeMap::new();
            for domain in domains::every(tx)? {
                claimed.entry(domain.service).or_default().push(domain.name);
            }
            for app in apps::every(tx)? {
                // The host names of what is in the trash are free for others, like its name.
                let gone = app.trashed_at.is_some();
                let mut first = true;
                let network = |cloud: &str| {
                    clouds
                        .get(cloud)
                        .map_or(NetworkAccess::Host, |cloud| cloud.network_access(&app.id))
                };
                let mut networks = BTreeSet::new();
                for row in services::of_app(tx, &app.id)? {
                    let nodes = records::nodes_of(tx, &row.id)?;
                    networks.extend(nodes.iter().map(|node| node.cloud.clone()));
                    let exposes = registry.get(&row.service_type).is_some_and(|entry| {
                        entry.service_type.roles().iter().any(|role| role.exposed)
                    });
                    if !exposes {
                        continue;
                    }
                    places.push(Place {
                        service: row.id.clone(),
                        app: app.name.clone(),
                        owner: app.owner_name.clone(),
                        name: row.name.clone(),
                        first,
                        run: if gone {
                            conpaas_model::spec::RunWish::Deleted
                        } else {
                            row.run
                        },
                        served: row.served,
                        preview: row.preview.is_some(),
                        domains: claimed.remove(&row.id).unwrap_or_default(),
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
                if !gone && app.egress.within(most) == Egress::Director {
                    // Elsewhere machines get out by themselves.
                    let own = networks.iter().map(|cloud| network(cloud));
                    let own = own.filter(|network| *network != NetworkAccess::Host);
                    outlets.extend(own.map(|network| Outlet {
                        owner: app.owner_name.to_string(),
                        app: app.name.to_string(),
                        network,
                    }));
                }
            }
            Ok((places, outlets))
        })
        .await
}
