//! The service core, sans I/O: what is planned, in which order, and what follows from what is
//! observed. The same machines run in the Director, in managers, in agents and in the simulator.
//! It names no service type and no cloud.

pub mod agent;
pub mod broker;
pub mod endpoint;
pub mod ends;
pub mod lead;
pub mod lint;
pub mod manager;
pub mod metrics;
pub mod operation;
pub mod plan;
pub mod role_agent;
pub mod service_type;

use conpaas_model::ids::NodeNumber;
use conpaas_model::spec::ServiceSpec;

/// What a node is called in texts and file names: its service's name and its number.
pub fn node_name(spec: &ServiceSpec, node: NodeNumber) -> String {
    let service = spec.display.rsplit('/').next().unwrap_or(&spec.display);
    format!("{service}-{node}")
}
