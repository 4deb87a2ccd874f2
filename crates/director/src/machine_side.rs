//! What the people's side asks of the machine side, as a seam: the API's tests need no clouds.

use crate::error::DirectorError;
use conpaas_model::api::{CloudInfo, RootInfo};
use conpaas_model::ids::{MachineId, ServiceId};

/// The machine side as people's requests need it.
#[async_trait::async_trait]
pub trait MachineSide: Send + Sync {
    /// Runs a command of a service's type; answers by node name.
    async fn command(
        &self,
        service: &ServiceId,
        name: &str,
        arguments: serde_json::Value,
    ) -> Result<serde_json::Value, DirectorError>;
    /// What each cloud offers and has free.
    async fn capacity(&self) -> Vec<CloudInfo>;
    /// Looks at the store at once.
    fn wake(&self);
    /// Limits of a machine as its cloud reads them back, in words.
    async fn limits(&self, machine: &MachineId) -> Option<String>;
    /// Roots that everybody trusts.
    async fn roots(&self) -> Result<Vec<RootInfo>, DirectorError>;
    /// Makes a root that signs as soon as everybody trusts it.
    async fn add_root(&self) -> Result<RootInfo, DirectorError>;
    /// Lets a root be trusted no more; refused while anybody needs it.
    async fn retire_root(&self, fingerprint: &str) -> Result<(), DirectorError>;
    /// After shutdown: waits until all its tasks ended.
    async fn stopped(&self);
}
