//! Instance types: the sizes of machines a cloud offers. What a given cloud really has free
//! is the cloud driver's business, not this module's.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A size of machine with what it holds and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceType {
    /// Name people use, for instance `small`.
    pub name: String,
    /// Virtual CPUs (1.0 is one core's worth of time).
    pub vcpus: f64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Price in credits per started hour.
    pub credits_per_hour: f64,
}

/// The three sizes a fresh installation offers; an operator's configuration replaces them.
pub fn default_instance_types() -> Vec<InstanceType> {
    let size = |name: &str, vcpus, memory_mib, credits_per_hour| InstanceType {
        name: name.to_owned(),
        vcpus,
        memory_mib,
        credits_per_hour,
    };
    vec![
        size("small", 0.5, 256, 1.0),
        size("medium", 1.0, 512, 2.0),
        size("large", 2.0, 1024, 4.0),
    ]
}
