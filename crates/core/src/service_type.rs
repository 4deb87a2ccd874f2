//! What a service type states about itself: the pure half that a manager asks (declaration,
//! decisions, disruption, settings, commands). The half that runs daemons on a node is
//! `role_agent`. No type is named here; the registry lists them.

use crate::endpoint::EndpointDeclaration;
use conpaas_model::ids::{NodeNumber, ReleaseNumber, Term};
use conpaas_model::instance::InstanceType;
use conpaas_model::level::Instance;
use conpaas_model::spec::{Release, RoleName, Settings};
use std::collections::{BTreeMap, BTreeSet};

/// When a node of a role may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// As soon as several signals say it is dead (it holds nothing).
    OnSuspicion,
    /// Only after the cloud has confirmed its destruction.
    AfterDestruction,
}

/// A role as its service type declares it.
#[derive(Clone, Debug)]
pub struct RoleDeclaration {
    pub name: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// Roles this one sends work to. The graph has no cycles.
    pub uses: &'static [&'static str],
    /// Runs one instance per release side by side during a switch; others have one instance.
    pub carries_releases: bool,
    /// First port; a role that carries releases takes `port + release % RELEASE_RING`.
    pub port: u16,
    /// The edge leads people to this role.
    pub exposed: bool,
    /// Fewest nodes while the service runs.
    pub min: u32,
    /// Most nodes.
    pub max: u32,
    /// Nodes of a service that was just added.
    pub default_count: u32,
    /// May share a machine with the other packable roles while each of them has one node.
    pub packable: bool,
    pub fencing: Fencing,
    /// Share of a machine's memory for role processes that this role gets, relative to the
    /// other roles on the same machine.
    pub memory_weight: u32,
}

/// A role without nodes of its own, beside its declaration among the roles (with bounds of 0):
/// the core places it on machines that are there, free of charge. It carries no releases.
#[derive(Clone, Copy, Debug)]
pub struct AuxiliaryDeclaration {
    pub role: &'static str,
    /// On how many nodes it runs, if there are so many.
    pub copies: u32,
    /// On nodes of which roles it may run.
    pub beside: &'static [&'static str],
    /// Its part of a node's memory for role processes. It is kept free on every node that may
    /// have to take it, so that nothing else changes when it comes.
    pub memory_percent: u64,
    /// Whether a release needs it.
    pub wanted: fn(&Release) -> bool,
}

/// How many releases of a role can be side by side on a node.
pub const RELEASE_RING: u64 = 8;

/// The number of a new release: one that does not share its place on the ring with those that stay
/// beside it (what serves could then never be replaced). That many releases in a row come to nothing
/// when somebody tries one broken version after the other.
pub fn number_beside(
    next: ReleaseNumber,
    others: impl IntoIterator<Item = ReleaseNumber>,
) -> ReleaseNumber {
    let taken: BTreeSet<u64> = others.into_iter().map(|o| o.0 % RELEASE_RING).collect();
    let mut number = next;
    for _ in 0..RELEASE_RING {
        if !taken.contains(&(number.0 % RELEASE_RING)) {
            break;
        }
        number = number.next();
    }
    number
}

impl RoleDeclaration {
    /// The port an instance of this role listens on.
    pub fn port_of(&self, release: Option<ReleaseNumber>) -> u16 {
        let slot = release
            .filter(|_| self.carries_releases)
            .map_or(0, |r| r.0 % RELEASE_RING);
        // RELEASE_RING is far below u16's range.
        self.port.saturating_add(slot as u16)
    }
}

/// A command of a service type.
#[derive(Clone, Debug)]
pub struct CommandDeclaration {
    pub name: &'static str,
    pub title: &'static str,
    pub kind: CommandKind,
    /// Asked of every ready node with this role; answers come back by node name.
    pub role: &'static str,
    /// JSON Schema of the arguments.
    pub arguments: fn() -> serde_json::Value,
}

/// What a command may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// Reads only.
    Query,
    Change,
}

/// What a type knows when it decides a role's configuration on one node.
pub struct Decision<'a> {
    pub role: &'a str,
    pub node: NodeNumber,
    pub node_name: &'a str,
    pub instance_type: &'a InstanceType,
    /// MiB this role may use on this node (all its releases together, half of it each while
    /// two releases are side by side).
    pub memory_mib: u64,
    /// The release an instance is of; for roles without releases, the one to be served.
    pub release: &'a Release,
}

/// A set of instances that are about to be stopped or replaced.
pub struct Disruption<'a> {
    pub instances: &'a BTreeSet<Instance>,
    /// Instances that are ready to take work; those above that have drained are not among them.
    pub ready: &'a BTreeSet<Instance>,
    /// Facts that agents observed, by node and role.
    pub facts: &'a BTreeMap<(NodeNumber, RoleName), serde_json::Map<String, serde_json::Value>>,
}

/// How an instance of a role with one leader stands, by the facts that its agent half observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It has said what it holds; one that has not may hold everything.
    pub told: bool,
    /// The term in which it works as the leader right now.
    pub leads: Option<Term>,
    /// It has a whole copy of the data of this term, the newest it has.
    pub holds: Option<Term>,
    /// How far its data are, comparable within a term; of one that does not answer any more, how
    /// far they were.
    pub ahead: u64,
}

/// The pure half of a service type.
pub trait ServiceType: Send + Sync {
    fn name(&self) -> &'static str;
    /// One line for people.
    fn title(&self) -> &'static str;
    /// Not offered to people (the system's own).
    fn internal(&self) -> bool {
        false
    }
    /// Roles in the order in which they are shown; names are unique.
    fn roles(&self) -> &'static [RoleDeclaration];
    /// Debian packages the machine image must hold.
    fn packages(&self) -> &'static [&'static str];
    /// JSON Schema of the settings, with defaults, units and ranges.
    fn settings_schema(&self) -> serde_json::Value;
    fn commands(&self) -> &'static [CommandDeclaration] {
        &[]
    }
    /// Fixed addresses at which roles of this type reach others, in an order that never changes
    /// (new ones are added at the end).
    fn endpoints(&self) -> &'static [EndpointDeclaration] {
        &[]
    }
    /// Roles without nodes of their own.
    fn auxiliary(&self) -> &'static [AuxiliaryDeclaration] {
        &[]
    }
    /// Roles of which one instance leads and the others copy it. They carry no releases; users
    /// reach the leader at an endpoint.
    fn led(&self) -> &'static [&'static str] {
        &[]
    }
    /// How an instance of a led role stands.
    fn standing(&self, _facts: &serde_json::Map<String, serde_json::Value>) -> Standing {
        Standing::default()
    }
    /// Whether people upload code for it.
    fn takes_code(&self) -> bool;
    /// Roles whose processes are given a release's environment and secrets; they carry
    /// releases. Without any, the type's services have neither.
    fn takes_environment(&self) -> &'static [&'static str] {
        &[]
    }
    /// Checks beyond the general ones, over one variable or secret; the reason is shown to
    /// people and must not hold the value.
    fn check_environment(&self, _name: &str, _value: &str) -> Result<(), String> {
        Ok(())
    }
    /// Whether its roles that lead people to releases show one that is held to those at the preview
    /// address. Without, none can be held.
    fn previews(&self) -> bool {
        false
    }
    /// The configuration of a role (its own schema). For a role that carries releases it is
    /// asked once per release; for one that uses others, for the role as a whole (with the
    /// release that is served) and for every release it may have to lead people to.
    fn decide(&self, decision: &Decision<'_>) -> serde_json::Value;
    /// How much work one instance can take side by side; 0 when it does not matter.
    fn capacity(&self, _decision: &Decision<'_>) -> u32 {
        0
    }
    /// Whether these instances may be stopped now; the reason is shown to people.
    fn may_disrupt(&self, _disruption: &Disruption<'_>) -> Result<(), String> {
        Ok(())
    }
    /// Checks beyond the schema, over the settings as they would be.
    fn check_settings(&self, _settings: &Settings) -> Result<(), String> {
        Ok(())
    }
    /// What people should know of these settings with so many nodes of each role: nothing is wrong,
    /// and it may still surprise them.
    fn warnings(&self, _settings: &Settings, _counts: &BTreeMap<RoleName, u32>) -> Vec<String> {
        Vec::new()
    }

    /// What a role that is auxiliary is beside being a role.
    fn auxiliary_role(&self, name: &str) -> Option<&'static AuxiliaryDeclaration> {
        self.auxiliary().iter().find(|a| a.role == name)
    }
    /// Whether a role sends work to others that people are led to through it: to any that is
    /// not auxiliary.
    fn leads(&self, role: &RoleDeclaration) -> bool {
        role.uses
            .iter()
            .any(|used| self.auxiliary_role(used).is_none())
    }
    /// A role's declaration by name.
    fn role(&self, name: &str) -> Option<&'static RoleDeclaration> {
        self.roles().iter().find(|role| role.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_release_never_needs_the_place_of_the_one_that_serves() {
        let number = |next, others: &[u64]| {
            number_beside(
                ReleaseNumber(next),
                others.iter().copied().map(ReleaseNumber),
            )
            .0
        };
        assert_eq!(number(2, &[]), 2);
        assert_eq!(number(8, &[1]), 8);
        assert_eq!(
            number(9, &[1]),
            10,
            "the ninth would wait for the first for ever"
        );
        assert_eq!(number(17, &[1]), 18);
        assert_eq!(number(9, &[1, 2]), 11, "nor for one that is held");
    }
}
