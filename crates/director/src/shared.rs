//! What all parts of the Director's people side share.

use crate::brake::LoginBrake;
use crate::config::DirectorConfig;
use crate::error::DirectorError;
use crate::logs::LogStore;
use crate::machine_side::MachineSide;
use crate::metrics::MetricsStore;
use crate::own::Own;
use crate::passwords::Passwords;
use crate::store::{Millis, Store};
use crate::vault::Vault;
use conpaas_core::service_type::ServiceType;
use conpaas_model::ids::InstallationId;
use conpaas_services::registry::Registry;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The Director's inside; passed around as `Arc<Shared>`.
pub struct Shared {
    pub store: Store,
    pub logs: Arc<LogStore>,
    pub metrics: Arc<MetricsStore>,
    pub own: Own,
    pub vault: Arc<Vault>,
    pub config: DirectorConfig,
    pub registry: Arc<Registry>,
    pub machines: Arc<dyn MachineSide>,
    pub passwords: Passwords,
    pub brake: LoginBrake,
    pub installation: InstallationId,
    pub started_at: Millis,
    /// Names this process: requests that an earlier one took up will never be answered.
    pub run_id: String,
    /// Names of the clouds machines come from.
    pub clouds: Vec<String>,
    /// Uploads hold it for reading while a blob has no record yet; collecting blobs excludes them.
    pub blobs: tokio::sync::RwLock<()>,
    pub shutdown: CancellationToken,
}

impl Shared {
    /// A service type by name; one that people may add when `offered`.
    pub fn service_type(&self, name: &str) -> Result<&'static dyn ServiceType, DirectorError> {
        self.registry
            .get(name)
            .map(|entry| entry.service_type)
            .ok_or_else(|| {
                let names: Vec<&str> = self
                    .registry
                    .all()
                    .filter(|entry| !entry.service_type.internal())
                    .map(|entry| entry.service_type.name())
                    .collect();
                DirectorError::invalid(
                    "unknown_service_type",
                    format!(
                        "there is no service type '{name}'; there are: {}",
                        names.join(", ")
                    ),
                )
                .hint("list them: conpaas service types")
            })
    }

    /// The system's own service type, whose nodes host managers.
    pub fn system_type(&self) -> Option<&'static dyn ServiceType> {
        self.registry
            .all()
            .map(|entry| entry.service_type)
            .find(|found| found.internal())
    }
}
