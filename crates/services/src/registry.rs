//! The registry of service types: one line each.

use conpaas_core::role_agent::RoleAgents;
use conpaas_core::service_type::ServiceType;
use std::collections::BTreeSet;

/// A service type, both halves.
#[derive(Clone, Copy)]
pub struct Entry {
    pub service_type: &'static dyn ServiceType,
    pub agents: &'static dyn RoleAgents,
}

/// The service types an installation knows.
#[derive(Clone)]
pub struct Registry {
    entries: Vec<Entry>,
}

/// Nouns of the command line: a type may not be named like one of them, since its commands
/// stand in the same place.
const NOUNS: &[&str] = &[
    "app",
    "audit",
    "backup",
    "class",
    "cloud",
    "code",
    "context",
    "cp",
    "credit",
    "cron",
    "deploy",
    "director",
    "domain",
    "env",
    "exec",
    "help",
    "image",
    "instance-type",
    "ledger",
    "link",
    "login",
    "logout",
    "logs",
    "metrics",
    "node",
    "nutshell",
    "operation",
    "port-forward",
    "run",
    "secret",
    "service",
    "shell",
    "simulate",
    "team",
    "token",
    "top",
    "user",
    "volume",
    "whoami",
];

/// What makes a registry unusable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("two service types are named '{0}'")]
    Twice(&'static str),
    #[error("a service type cannot be named '{0}': that is a noun of the command line")]
    Noun(&'static str),
    #[error("role '{role}' of '{service_type}' {problem}")]
    Role {
        service_type: &'static str,
        role: &'static str,
        problem: &'static str,
    },
}

impl Registry {
    /// All that ship with ConPaaS.
    pub fn standard() -> Self {
        Self::new(vec![
            Entry {
                service_type: &crate::php::Php,
                agents: &crate::php::Php,
            },
            Entry {
                service_type: &crate::helloworld::HelloWorld,
                agents: &crate::helloworld::HelloWorld,
            },
            Entry {
                service_type: &crate::system::System,
                agents: &crate::system::System,
            },
        ])
    }
    /// A registry of chosen types (tests bring their own).
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { entries }
    }
    pub fn get(&self, name: &str) -> Option<Entry> {
        self.entries
            .iter()
            .find(|entry| entry.service_type.name() == name)
            .copied()
    }
    /// All types, internal ones included.
    pub fn all(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter().copied()
    }
    /// Debian packages of the machine image, sorted.
    pub fn packages(&self) -> BTreeSet<&'static str> {
        self.all()
            .flat_map(|entry| entry.service_type.packages().iter().copied())
            .collect()
    }

    /// Whether names are unique and free, and every role is whole: it uses roles that exist,
    /// has an agent half, and its counts make sense.
    pub fn check(&self) -> Result<(), RegistryError> {
        let mut names = BTreeSet::new();
        for Entry {
            service_type,
            agents,
        } in self.all()
        {
            let name = service_type.name();
            if !names.insert(name) {
                return Err(RegistryError::Twice(name));
            }
            if NOUNS.contains(&name) {
                return Err(RegistryError::Noun(name));
            }
            let mut seen = BTreeSet::new();
            for role in service_type.roles() {
                let bad = |problem| {
                    Err(RegistryError::Role {
                        service_type: name,
                        role: role.name,
                        problem,
                    })
                };
                if !seen.insert(role.name) {
                    return bad("is declared twice");
                }
                if role
                    .uses
                    .iter()
                    .any(|used| *used == role.name || service_type.role(used).is_none())
                {
                    return bad("uses a role that does not exist");
                }
                if role.min > role.default_count || role.default_count > role.max {
                    return bad("has a default count outside its bounds");
                }
                if agents.role_agent(role.name).is_none() {
                    return bad("has no agent half");
                }
            }
            for role in service_type.takes_environment() {
                if !service_type.role(role).is_some_and(|r| r.carries_releases) {
                    return Err(RegistryError::Role {
                        service_type: name,
                        role,
                        problem: "takes an environment, but is no role that carries releases",
                    });
                }
            }
            for command in service_type.commands() {
                if service_type.role(command.role).is_none() {
                    return Err(RegistryError::Role {
                        service_type: name,
                        role: command.role,
                        problem: "is asked by a command, but does not exist",
                    });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_registry_is_sound() {
        let registry = Registry::standard();
        registry.check().unwrap();
        assert!(registry.packages().contains("haproxy"));
        assert!(
            registry
                .get("php")
                .is_some_and(|e| !e.service_type.internal())
        );
        assert!(
            registry
                .get("system")
                .is_some_and(|e| e.service_type.internal())
        );
        assert!(registry.get("nothing").is_none());
    }

    #[test]
    fn a_name_twice_is_refused() {
        let one = Entry {
            service_type: &crate::system::System,
            agents: &crate::system::System,
        };
        assert_eq!(
            Registry::new(vec![one, one]).check(),
            Err(RegistryError::Twice("system"))
        );
    }
}
