//! What the people's side asks of the machine side, as a seam: the API's tests need no clouds.

use crate::error::DirectorError;
use conpaas_model::api::{CloudInfo, RootInfo};
use conpaas_model::ids::{MachineId, ServiceId};
use std::collections::BTreeSet;

/// What a cloud tells of a machine.
#[derive(Clone, Debug)]
pub struct MachineFacts {
    /// Limits as they were read back, in words.
    pub limits: String,
    /// What it started from (image and program), if the cloud knows.
    pub image: Option<String>,
    /// Machines made now start from something else.
    pub outdated: bool,
}

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
    /// What a machine's cloud told of it last.
    async fn facts(&self, machine: &MachineId) -> Option<MachineFacts>;
    /// Machines of these clouds that are made of something older than what they make machines of
    /// now; asked of the clouds.
    async fn outdated(
        &self,
        clouds: &BTreeSet<String>,
    ) -> Result<BTreeSet<MachineId>, DirectorError>;
    /// Roots that everybody trusts.
    async fn roots(&self) -> Result<Vec<RootInfo>, DirectorError>;
    /// Makes a root that signs as soon as everybody trusts it.
    async fn add_root(&self) -> Result<RootInfo, DirectorError>;
    /// Lets a root be trusted no more; refused while anybody needs it.
    async fn retire_root(&self, fingerprint: &str) -> Result<(), DirectorError>;
    /// After shutdown: waits until all its tasks ended.
    async fn stopped(&self);
}
