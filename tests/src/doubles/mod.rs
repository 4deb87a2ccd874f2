//! Doubles of the halves that run daemons on nodes, for machines that are only records. What a
//! type is and decides is the real thing; a double starts, serves, drains and lets go as its
//! levels say, so that everything above it has real work.

mod manager;
mod role;

use crate::memory::Machines;
use conpaas_core::role_agent::{RoleAgent, RoleAgents};
use conpaas_core::service_type::ServiceType;
use conpaas_services::registry::{Entry, Registry};
use std::sync::{Arc, Weak};

/// The standard types with doubles for their halves on nodes.
///
/// A registry lives as long as the program, so the doubles of a world are never freed: a few
/// words each, which hold nothing of the world itself.
pub fn registry(machines: &Arc<Machines>) -> Registry {
    let standard = Registry::standard();
    let entries = standard.all().map(|Entry { service_type, .. }| {
        let agents = Box::leak(Box::new(Doubles {
            service_type,
            machines: Arc::downgrade(machines),
        }));
        Entry {
            service_type,
            agents,
        }
    });
    Registry::new(entries.collect())
}

/// Makes the doubles of one type's roles.
struct Doubles {
    service_type: &'static dyn ServiceType,
    machines: Weak<Machines>,
}

impl RoleAgents for Doubles {
    fn role_agent(&self, role: &str) -> Option<Box<dyn RoleAgent>> {
        let declaration = self.service_type.role(role)?;
        let machines = self.machines.clone();
        Some(if self.service_type.internal() {
            Box::new(manager::Manager { machines })
        } else {
            Box::new(role::Role::new(declaration, machines))
        })
    }
}
