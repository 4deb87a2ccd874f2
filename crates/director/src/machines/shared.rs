//! What all parts of the machine side share: the store, the clouds, the authority, and what is
//! known of machines beyond the records.

use super::MachinesConfig;
use super::hub::Hub;
use super::listeners::Listeners;
use super::refusals::Refusals;
use crate::brake::EnrolmentBrake;
use crate::incarnation::Incarnation;
use crate::machine_side::MachineFacts;
use crate::store::Store;
use conpaas_cloud::{CgroupVersion, Cloud, Limits};
use conpaas_manager::ServiceManagers;
use conpaas_model::ids::{InstallationId, MachineId, ServiceId};
use conpaas_model::instance::InstanceType;
use conpaas_model::status::EdgeStatus;
use conpaas_pki::{
    Authority, CertificateChain, ClientCertificates, Credentials, Identity, KeyPair, PkiError,
    server_config,
};
use conpaas_services::registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::SystemTime;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The Director's own certificate, with what it takes to renew it.
pub struct Own {
    pub credentials: Arc<Credentials>,
    pub key: KeyPair,
    pub identity: Identity,
}

/// Clouds that are worth a look before their regular turn.
#[derive(Default)]
pub struct Doubts(Mutex<BTreeSet<String>>);

impl Doubts {
    /// Machines of these clouds may have died.
    pub fn add(&self, clouds: BTreeSet<String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(clouds);
    }

    /// Those that were added since the last call.
    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// See the module.
pub struct Shared {
    pub store: Store,
    pub config: MachinesConfig,
    pub clouds: BTreeMap<String, Arc<dyn Cloud>>,
    pub registry: Arc<Registry>,
    pub installation: InstallationId,
    /// Which life of the store this is.
    pub incarnation: Incarnation,
    pub authority: RwLock<Authority>,
    /// What the Director itself shows machines.
    pub own: Own,
    /// For connections to come: it changes with the roots.
    pub server_tls: RwLock<Arc<rustls::ServerConfig>>,
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
    /// Makes the broker look at once.
    pub wake: Notify,
    /// Clouds in which machines may have died, for the broker's next look.
    pub doubts: Doubts,
    pub listeners: Listeners,
    pub hub: Hub,
    pub refusals: Refusals,
    pub enrolments: EnrolmentBrake,
    /// The managers of system services, which the Director runs itself.
    pub managers: ServiceManagers,
    /// What the edge has taken, by service.
    pub edge: watch::Sender<BTreeMap<ServiceId, EdgeStatus>>,
    /// What clouds tell of machines, with the cloud that did.
    pub facts: Mutex<BTreeMap<MachineId, (String, MachineFacts)>>,
    pub host_port: OnceLock<u16>,
}

impl Shared {
    /// The port where machines reach the Director's own listener, if there is one.
    pub fn host_port(&self) -> Option<u16> {
        self.host_port.get().copied()
    }

    /// PEM bundle of the roots that machines should trust.
    pub fn roots_pem(&self) -> String {
        self.authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .roots()
            .to_pem()
    }

    /// Signs a request for an identity, with the configured lifetime.
    ///
    /// # Errors
    /// When the request is not signed by its key, or the issuing certificate is over.
    pub fn sign(&self, csr: &[u8], identity: &Identity) -> Result<CertificateChain, PkiError> {
        self.authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .sign_csr(
                csr,
                identity,
                self.config.certificate_lifetime,
                SystemTime::now(),
            )
    }

    /// Stands for the roots that everybody should trust and for which of them signs.
    pub fn trust_digest(&self) -> String {
        self.authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .trust_digest()
    }

    /// Gives the Director itself a new certificate.
    ///
    /// # Errors
    /// When the issuing certificate is over; the present one then stays.
    pub fn renew_own(&self) -> Result<(), PkiError> {
        let Own {
            credentials,
            key,
            identity,
        } = &self.own;
        credentials.replace(self.sign(&key.csr()?, identity)?, key)
    }

    /// Lets connections to come be checked against the present roots.
    ///
    /// # Errors
    /// When there are none.
    pub fn renew_tls(&self) -> Result<(), PkiError> {
        let roots = self
            .authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .roots()
            .clone();
        // Enrolment and late renewal come without a certificate.
        let optional = ClientCertificates::Optional;
        let config = server_config(self.own.credentials.clone(), &roots, optional)?;
        *self
            .server_tls
            .write()
            .unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// The sizes of machines over all clouds, each name once.
    pub fn instance_types(&self) -> Vec<InstanceType> {
        let mut all: Vec<InstanceType> = Vec::new();
        for size in self
            .clouds
            .values()
            .flat_map(|cloud| cloud.instance_types())
        {
            if all.iter().all(|known| known.name != size.name) {
                all.push(size);
            }
        }
        all
    }

    /// Notes what a cloud tells of a machine that it made.
    pub fn note_made(&self, cloud: &str, machine: &conpaas_cloud::Machine) {
        let facts = (cloud.to_owned(), self.facts_of(cloud, machine));
        self.facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(machine.machine.clone(), facts);
    }

    /// Notes what a cloud's list tells of its machines; machines it lacks are forgotten.
    pub fn note_listed(&self, cloud: &str, machines: &[conpaas_cloud::Machine]) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.retain(|_, (of, _)| of != cloud);
        for machine in machines {
            let new = (cloud.to_owned(), self.facts_of(cloud, machine));
            facts.insert(machine.machine.clone(), new);
        }
    }

    fn facts_of(&self, cloud: &str, machine: &conpaas_cloud::Machine) -> MachineFacts {
        MachineFacts {
            limits: limits_in_words(&machine.limits),
            image: machine.image.clone(),
            outdated: self.is_outdated(cloud, machine),
        }
    }

    /// Whether its cloud makes machines of something else now.
    pub fn is_outdated(&self, cloud: &str, machine: &conpaas_cloud::Machine) -> bool {
        let now = self.clouds.get(cloud).map(|cloud| cloud.image());
        now.is_some() && machine.image != now
    }
}

fn limits_in_words(limits: &Limits) -> String {
    match limits {
        Limits::Enforced {
            by,
            memory_bytes,
            cpu_millis,
            pids,
        } => {
            let by = match by {
                CgroupVersion::V1 => "cgroup v1",
                CgroupVersion::V2 => "cgroup v2",
            };
            format!(
                "{} MiB of memory, {} vCPUs, {pids} processes ({by})",
                memory_bytes / (1024 * 1024),
                f64::from(u32::try_from(*cpu_millis).unwrap_or(u32::MAX)) / 1000.0
            )
        }
        Limits::None { reason } => format!("none: {reason}"),
    }
}

/// An error with its causes, for logs and for what is told of a node.
pub fn full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
