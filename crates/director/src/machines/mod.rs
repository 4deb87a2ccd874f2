//! The machine side of the Director: the broker that obtains machines, the listeners that agents
//! and managers talk to, the managers' streams, the system services' own managers, and the routes
//! of the edge. What people may wish, and how they say it, is the people's side.

mod births;
mod broker;
mod edge;
mod enrol;
mod hub;
mod intake;
mod levels;
mod listener;
mod listeners;
mod managers;
mod pace;
mod records;
mod refusals;
mod reports;
mod routes;
mod secrets;
mod shared;
mod system;
mod trust;

#[cfg(test)]
mod tests;

use crate::config::DirectorConfig;
use crate::error::DirectorError;
use crate::incarnation::Incarnation;
use crate::logs::LogStore;
use crate::machine_side::{MachineFacts, MachineSide};
use crate::metrics::MetricsStore;
use crate::store::Store;
use crate::vault::Vault;
use conpaas_cloud::{Capacity, Cloud, Features, LimitsSupport, Support};
use conpaas_core::broker::BrokerSettings;
use conpaas_manager::ServiceManagers;
use conpaas_model::api::{CloudInfo, RootInfo};
use conpaas_model::egress::Egress;
use conpaas_model::ids::{InstallationId, MachineId, ServiceId};
use conpaas_pki::{
    Authority, ClientCertificates, Credentials, Identity, KeyPair, PartyKind, PkiError,
    server_config,
};
use conpaas_services::registry::Registry;
use pace::Pace;
use shared::{Shared, full};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Settings of the machine side.
#[derive(Clone)]
pub struct MachinesConfig {
    /// Where machines of clouds that need no listener of their own reach the Director.
    pub host_listener: Option<SocketAddr>,
    /// Folder with blobs, one file each, named by SHA-256 in hex.
    pub blobs: PathBuf,
    /// Where lines of nodes' logs are kept.
    pub logs: Arc<LogStore>,
    /// Where what was measured of nodes is kept.
    pub metrics: Arc<MetricsStore>,
    /// Opens what agents may have of secrets.
    pub vault: Arc<Vault>,
    /// The edge's folder (`routes.json`, `applied.json`).
    pub edge_folder: PathBuf,
    /// The domain below which applications have their names.
    pub base_domain: String,
    /// As much of a way out as applications may have.
    pub egress: Egress,
    /// How long a machine may take until its agent has enrolled; absent: what its cloud says.
    pub boot_deadline: Option<Duration>,
    /// Lifetime of agents' and managers' certificates.
    pub certificate_lifetime: Duration,
    /// How often each cloud is asked for its machines.
    pub list_every: Duration,
    /// How long an edge that listens no more may still finish requests.
    pub edge_finishing: Duration,
    /// Pauses after failed attempts.
    pub broker: BrokerSettings,
}

impl MachinesConfig {
    /// The machine side's part of a Director's settings.
    pub fn new(
        config: &DirectorConfig,
        logs: Arc<LogStore>,
        metrics: Arc<MetricsStore>,
        vault: Arc<Vault>,
    ) -> Self {
        Self {
            host_listener: config.host_listener,
            blobs: config.blobs(),
            logs,
            metrics,
            vault,
            edge_folder: config
                .edge_folder
                .clone()
                .unwrap_or_else(|| config.state.join("edge")),
            base_domain: config.base_domain.clone(),
            egress: config.egress,
            boot_deadline: config.boot_deadline,
            certificate_lifetime: config.certificate_lifetime,
            list_every: Duration::from_secs(1),
            edge_finishing: Duration::from_secs(35),
            broker: BrokerSettings::default(),
        }
    }
}

/// What stops the machine side from starting.
#[derive(Debug, thiserror::Error)]
pub enum MachinesError {
    #[error("the Director's certificate cannot be made")]
    Certificate(#[from] PkiError),
    #[error("the Director cannot listen for machines on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the store cannot be read")]
    Store(#[source] Box<DirectorError>),
}

/// A handle on the machine side; clones share it.
#[derive(Clone)]
pub struct Machines {
    shared: Arc<Shared>,
}

impl Machines {
    /// Starts the machine side; it ends when `shutdown` is cancelled.
    ///
    /// # Errors
    /// When the Director's own certificate cannot be made, or the listener's address is taken.
    pub async fn start(
        store: Store,
        config: MachinesConfig,
        clouds: BTreeMap<String, Arc<dyn Cloud>>,
        authority: Authority,
        registry: Arc<Registry>,
        shutdown: CancellationToken,
    ) -> Result<Self, MachinesError> {
        let installation = authority.installation().clone();
        let key = KeyPair::generate()?;
        let identity = Identity::new(installation.clone(), PartyKind::Director);
        let lifetime = config.certificate_lifetime;
        let chain = authority.sign_csr(&key.csr()?, &identity, lifetime, SystemTime::now())?;
        let credentials = Credentials::new(chain, &key)?;
        // Enrolment and late renewal come without a certificate.
        let server_tls = server_config(
            credentials.clone(),
            authority.roots(),
            ClientCertificates::Optional,
        )?;
        let host = match config.host_listener {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|source| MachinesError::Listen { address, source })?,
            ),
            None => None,
        };
        let host_port = OnceLock::new();
        if let Some(port) = host
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
            .map(|a| a.port())
        {
            // A fresh cell takes its first value.
            let _ = host_port.set(port);
        }
        let incarnation = store.read(|tx| Incarnation::of(tx)).await;
        let incarnation = incarnation.map_err(|error| MachinesError::Store(Box::new(error)))?;
        let shared = Arc::new(Shared {
            incarnation,
            managers: ServiceManagers::start((*registry).clone(), shutdown.clone()),
            store,
            config,
            clouds,
            registry,
            installation,
            authority: RwLock::new(authority),
            own: shared::Own {
                credentials,
                key,
                identity,
            },
            server_tls: RwLock::new(server_tls),
            shutdown: shutdown.clone(),
            tasks: TaskTracker::new(),
            wake: Notify::new(),
            doubts: shared::Doubts::default(),
            listeners: listeners::Listeners::default(),
            hub: hub::Hub::default(),
            refusals: refusals::Refusals::default(),
            enrolments: Default::default(),
            edge: watch::Sender::default(),
            facts: Default::default(),
            host_port,
        });
        if let Some(listener) = host {
            let task = shared.clone();
            shared
                .tasks
                .spawn(async move { listeners::serve(&task, listener, None, shutdown).await });
        }
        let mut broker = broker::Broker::new(shared.clone());
        if incarnation.is_restored() {
            // Before any address is given, it is known who else sits in the networks.
            broker.look_first().await;
        }
        shared.tasks.spawn(broker.run());
        shared.tasks.spawn(system::run(shared.clone()));
        shared.tasks.spawn(edge::Feed::new(shared.clone()).run());
        shared.tasks.spawn(close_removed(shared.clone()));
        shared.tasks.spawn(trust::follow(shared.clone()));
        shared.tasks.spawn(trust::renew(shared.clone()));
        shared.tasks.close();
        Ok(Self { shared })
    }

    /// Where machines of clouds without a listener of their own reach the Director.
    pub fn host_port(&self) -> Option<u16> {
        self.shared.host_port()
    }

    /// The installation whose machines these are.
    pub fn installation(&self) -> &InstallationId {
        &self.shared.installation
    }

    /// Reports that were refused because their manager was outranked.
    pub fn refused_reports(&self) -> u64 {
        self.shared
            .hub
            .refused_reports
            .load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[async_trait::async_trait]
impl MachineSide for Machines {
    async fn command(
        &self,
        service: &ServiceId,
        name: &str,
        arguments: serde_json::Value,
    ) -> Result<serde_json::Value, DirectorError> {
        managers::command(&self.shared, service, name, arguments).await
    }

    async fn capacity(&self) -> Vec<CloudInfo> {
        let mut all = Vec::new();
        for (name, cloud) in &self.shared.clouds {
            let capacity = match cloud.capacity().await {
                Ok(capacity) => Some(capacity),
                Err(error) => {
                    tracing::warn!(cloud = %name, error = full(&error), "the cloud does not tell what it has free");
                    None
                }
            };
            let machines = match cloud.list(&self.shared.installation).await {
                Ok(machines) => u32::try_from(machines.len()).unwrap_or(u32::MAX),
                Err(_) => 0,
            };
            all.push(cloud_info(name, cloud.as_ref(), capacity, machines));
        }
        all
    }

    fn wake(&self) {
        self.shared.wake.notify_one();
    }

    async fn facts(&self, machine: &MachineId) -> Option<MachineFacts> {
        let all = self
            .shared
            .facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.get(machine).map(|(_, facts)| facts.clone())
    }

    async fn outdated(
        &self,
        clouds: &BTreeSet<String>,
    ) -> Result<BTreeSet<MachineId>, DirectorError> {
        let mut outdated = BTreeSet::new();
        let asked = self.shared.clouds.iter();
        for (name, cloud) in asked.filter(|(name, _)| clouds.contains(*name)) {
            // Not from memory: just after a start there is none.
            let machines = broker::list(cloud.as_ref(), &self.shared.installation).await;
            let machines = machines.map_err(|reason| {
                DirectorError::unavailable(
                    "cloud_silent",
                    format!("the cloud '{name}' does not tell its machines: {reason}"),
                )
            })?;
            let old = machines
                .iter()
                .filter(|one| self.shared.is_outdated(name, one));
            outdated.extend(old.map(|one| one.machine.clone()));
        }
        Ok(outdated)
    }

    async fn roots(&self) -> Result<Vec<RootInfo>, DirectorError> {
        trust::list(&self.shared).await
    }

    async fn add_root(&self) -> Result<RootInfo, DirectorError> {
        trust::add(&self.shared).await
    }

    async fn retire_root(&self, fingerprint: &str) -> Result<(), DirectorError> {
        trust::retire(&self.shared, fingerprint).await
    }

    async fn stopped(&self) {
        self.shared.tasks.wait().await;
    }
}

fn cloud_info(
    name: &str,
    cloud: &dyn Cloud,
    capacity: Option<Capacity>,
    machines: u32,
) -> CloudInfo {
    let Features {
        limits,
        fuse,
        tun,
        egress,
        sized_volumes,
    } = cloud.features();
    let features = [
        ("fuse", fuse),
        ("tun", tun),
        ("egress", egress),
        ("sized volumes", sized_volumes),
    ];
    let free = capacity.map(|capacity| capacity.free).unwrap_or_default();
    CloudInfo {
        name: name.to_owned(),
        driver: cloud.name().to_owned(),
        limits: match limits {
            LimitsSupport::Enforced { by: Some(by) } => format!("enforced ({by:?})").to_lowercase(),
            LimitsSupport::Enforced { by: None } => "enforced".to_owned(),
            LimitsSupport::None { reason } => format!("none: {reason}"),
        },
        features: features
            .into_iter()
            .map(|(what, support)| match support {
                Support::Yes => what.to_owned(),
                Support::No { reason } => format!("no {what}: {reason}"),
            })
            .collect(),
        instance_types: cloud.instance_types(),
        free_vcpus: free.vcpus,
        free_memory_mib: free.memory_mib,
        free_disk_mib: free.disk_mib,
        machines,
    }
}

/// Closes the streams of machines that were removed, whenever records change.
async fn close_removed(shared: Arc<Shared>) {
    let mut changed = shared.store.changed();
    let mut pace = Pace::default();
    loop {
        let begun = Instant::now();
        match shared.store.read(|tx| records::live_machines(tx)).await {
            Ok(live) => shared
                .hub
                .close_others(&live.into_iter().collect::<BTreeSet<_>>()),
            Err(error) => tracing::error!(
                error = full(&error),
                "removed machines could not be looked up"
            ),
        }
        pace.took(begun.elapsed());
        pace.wait().await;
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = changed.changed() => {}
        }
    }
}
