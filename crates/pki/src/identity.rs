//! The identity that a certificate states: installation, kind of party, and for those that live in an
//! application, which one and on which machine. Services and roles are assignments, never identity.

use conpaas_model::ids::{ApplicationId, InstallationId, MachineId};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;
use x509_parser::extensions::GeneralName;

/// The DNS name in every certificate of the authority. Standard verifiers check the chain and this name;
/// who the peer really is stands in its identity, which our code checks afterwards.
pub const NODE_DNS_NAME: &str = "node.conpaas.internal";

const SCHEME: &str = "conpaas://";

/// Why no identity could be taken from a certificate or a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate names {0} identities; exactly one is needed")]
    Count(usize),
    #[error("'{0}' is no identity")]
    Malformed(String),
}

/// What kind of party a certificate belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartyKind {
    /// The daemon people talk to.
    Director,
    /// The front door.
    Edge,
    /// Runs managers of an application, on one of its machines.
    Manager {
        application: ApplicationId,
        node: MachineId,
    },
    /// Runs roles of an application, on one of its machines.
    Agent {
        application: ApplicationId,
        node: MachineId,
    },
}

/// Who a party is. Shown and parsed as `conpaas://INSTALLATION/KIND[/APPLICATION/MACHINE]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The installation whose authority vouches for the party.
    pub installation: InstallationId,
    /// What the party is, and of which application.
    pub kind: PartyKind,
}

impl Identity {
    pub fn new(installation: InstallationId, kind: PartyKind) -> Self {
        Self { installation, kind }
    }

    /// The application the party lives in; `None` for Director and edge.
    pub fn application(&self) -> Option<&ApplicationId> {
        match &self.kind {
            PartyKind::Director | PartyKind::Edge => None,
            PartyKind::Manager { application, .. } | PartyKind::Agent { application, .. } => {
                Some(application)
            }
        }
    }

    /// The machine the party runs on, as the Director's records call it; `None` for Director and edge.
    pub fn node(&self) -> Option<&MachineId> {
        match &self.kind {
            PartyKind::Director | PartyKind::Edge => None,
            PartyKind::Manager { node, .. } | PartyKind::Agent { node, .. } => Some(node),
        }
    }

    pub fn is_director(&self) -> bool {
        self.kind == PartyKind::Director
    }

    /// True for an agent of exactly this application.
    pub fn is_agent_of(&self, wanted: &ApplicationId) -> bool {
        matches!(&self.kind, PartyKind::Agent { application, .. } if application == wanted)
    }

    /// True for a manager of exactly this application.
    pub fn is_manager_of(&self, wanted: &ApplicationId) -> bool {
        matches!(&self.kind, PartyKind::Manager { application, .. } if application == wanted)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.installation)?;
        match &self.kind {
            PartyKind::Director => f.write_str("director"),
            PartyKind::Edge => f.write_str("edge"),
            PartyKind::Manager { application, node } => write!(f, "manager/{application}/{node}"),
            PartyKind::Agent { application, node } => write!(f, "agent/{application}/{node}"),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let malformed = || IdentityError::Malformed(text.chars().take(200).collect());
        let rest = text.strip_prefix(SCHEME).ok_or_else(malformed)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let (installation, kind) = match parts.as_slice() {
            [installation, "director"] => (installation, PartyKind::Director),
            [installation, "edge"] => (installation, PartyKind::Edge),
            [
                installation,
                kind @ ("manager" | "agent"),
                application,
                node,
            ] => {
                let application = application.parse().map_err(|_| malformed())?;
                let node = node.parse().map_err(|_| malformed())?;
                let kind = if *kind == "agent" {
                    PartyKind::Agent { application, node }
                } else {
                    PartyKind::Manager { application, node }
                };
                (installation, kind)
            }
            _ => return Err(malformed()),
        };
        Ok(Self {
            installation: installation.parse().map_err(|_| malformed())?,
            kind,
        })
    }
}

/// Reads the identity from a peer's certificates (leaf first), as a handshake leaves them.
///
/// This does not check who signed them: the handshake did, or [`crate::Roots::verify`] does.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, IdentityError> {
    let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(leaf).map_err(|_| IdentityError::Unreadable)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        })
        .collect();
    match uris.as_slice() {
        [uri] => uri.parse(),
        _ => Err(IdentityError::Count(uris.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_the_round_trip() {
        for text in [
            "conpaas://inst-a/director",
            "conpaas://inst-a/edge",
            "conpaas://inst-a/manager/app-b/m-c",
            "conpaas://inst-a/agent/app-b/m-c",
        ] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for text in [
            "",
            "conpaas://",
            "https://inst-a/director",
            "conpaas://inst-a/director/",
            "conpaas://inst-a/director/app-b/m-c",
            "conpaas://inst-a/agent",
            "conpaas://inst-a/agent/app-b",
            "conpaas://inst-a/agent/m-c/app-b",
            "conpaas://inst-a/agent/app-b/m-c/more",
            "conpaas://inst-a/agent/app-../m-c",
            "conpaas://inst-a/root/app-b/m-c",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }

    #[test]
    fn kinds_and_applications_are_told_apart() {
        let (ours, other): (ApplicationId, ApplicationId) =
            ("app-b".parse().unwrap(), "app-x".parse().unwrap());
        let agent: Identity = "conpaas://inst-a/agent/app-b/m-c".parse().unwrap();
        assert!(agent.is_agent_of(&ours) && !agent.is_agent_of(&other));
        assert!(!agent.is_manager_of(&ours) && !agent.is_director());
        assert_eq!(agent.node().map(MachineId::as_str), Some("m-c"));
    }
}
