//! Settings of the edge and the errors of starting it.

use crate::egress::EgressConfig;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Settings of the edge, read from a JSON file. Only `folder` has no default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// Where routes are read and `applied.json` and the access log are written.
    pub folder: PathBuf,
    /// Where to listen. Port 0 takes any free port; `applied.json` says which.
    #[serde(default = "defaults::bind")]
    pub bind: SocketAddr,
    /// Where to listen for HTTPS, if at all.
    #[serde(default)]
    pub https: Option<Https>,
    /// The domain below which applications have their names; said on the page for unknown hosts.
    #[serde(default = "defaults::base_domain")]
    pub base_domain: String,
    /// How applications get out.
    #[serde(default)]
    pub egress: EgressConfig,
    /// Proxies in front of this edge whose `X-Forwarded-*` headers are believed.
    #[serde(default)]
    pub trusted_forwarders: Vec<IpAddr>,
    /// How long a client may take to send a request's head, or hold an idle connection.
    #[serde(default = "defaults::idle_seconds")]
    pub idle_seconds: u64,
    /// How long a client may pause while it sends a body. There is no limit on the whole.
    #[serde(default = "defaults::body_pause_seconds")]
    pub body_pause_seconds: u64,
    /// About the greatest size of a request's head, in bytes (at least 8192). A head that arrives in
    /// large pieces may pass with up to twice as much.
    #[serde(default = "defaults::max_header_bytes")]
    pub max_header_bytes: usize,
    /// Greatest number of client connections at once; more wait in the listener's queue.
    #[serde(default = "defaults::max_connections")]
    pub max_connections: usize,
    /// How long to wait for an upstream to take a connection.
    #[serde(default = "defaults::connect_seconds")]
    pub connect_seconds: u64,
    /// How long to wait for an upstream to begin its answer.
    #[serde(default = "defaults::answer_seconds")]
    pub answer_seconds: u64,
    /// How long to finish what is in flight when told to end.
    #[serde(default = "defaults::shutdown_seconds")]
    pub shutdown_seconds: u64,
    /// The access log is put aside when it has grown to this many bytes.
    #[serde(default = "defaults::log_bytes")]
    pub log_bytes: u64,
    /// How many access logs that were put aside to keep.
    #[serde(default = "defaults::log_files")]
    pub log_files: u32,
}

/// HTTPS: where to listen, and the files that say who answers there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Https {
    pub bind: SocketAddr,
    /// Certificates in PEM, the edge's own first.
    pub certificate: PathBuf,
    /// Its key in PEM.
    pub key: PathBuf,
    /// Whether requests that come without TLS are sent on to HTTPS.
    #[serde(default)]
    pub only: bool,
}

mod defaults {
    use super::{IpAddr, Ipv4Addr, SocketAddr};

    pub fn bind() -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080)
    }
    pub fn base_domain() -> String {
        "localhost".to_owned()
    }
    pub fn idle_seconds() -> u64 {
        60
    }
    pub fn body_pause_seconds() -> u64 {
        60
    }
    pub fn max_header_bytes() -> usize {
        64 * 1024
    }
    pub fn max_connections() -> usize {
        10_000
    }
    pub fn connect_seconds() -> u64 {
        2
    }
    pub fn answer_seconds() -> u64 {
        600
    }
    pub fn shutdown_seconds() -> u64 {
        30
    }
    pub fn log_bytes() -> u64 {
        64 * 1024 * 1024
    }
    pub fn log_files() -> u32 {
        4
    }
}

impl EdgeConfig {
    /// The default settings for a folder.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            bind: defaults::bind(),
            https: None,
            base_domain: defaults::base_domain(),
            egress: EgressConfig::default(),
            trusted_forwarders: Vec::new(),
            idle_seconds: defaults::idle_seconds(),
            body_pause_seconds: defaults::body_pause_seconds(),
            max_header_bytes: defaults::max_header_bytes(),
            max_connections: defaults::max_connections(),
            connect_seconds: defaults::connect_seconds(),
            answer_seconds: defaults::answer_seconds(),
            shutdown_seconds: defaults::shutdown_seconds(),
            log_bytes: defaults::log_bytes(),
            log_files: defaults::log_files(),
        }
    }

    /// Reads settings from a JSON file.
    ///
    /// # Errors
    /// [`EdgeError::ConfigFile`] when it cannot be read, [`EdgeError::ConfigFormat`] when it
    /// does not hold what it should.
    pub fn load(path: &Path) -> Result<Self, EdgeError> {
        let text = std::fs::read(path).map_err(|source| EdgeError::ConfigFile {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| EdgeError::ConfigFormat {
            path: path.to_owned(),
            source,
        })
    }
}

/// Why the edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    #[error("cannot read the edge's settings in {}", path.display())]
    ConfigFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the edge's settings in {} are not valid", path.display())]
    ConfigFormat {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "the edge cannot listen on {address}: another program has this port. \
         'ss -ltnp sport = :{}' shows which; stop it, or choose another port for the edge",
        address.port()
    )]
    PortTaken {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error(
        "the edge may not listen on {address}: ports below 1024 need root; \
         choose a higher port for the edge"
    )]
    PortForbidden {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the edge cannot listen on {address}: choose an address that this computer has")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the edge cannot use its folder {}", path.display())]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the edge cannot use the certificate {} with the key {}",
        certificate.display(),
        key.display()
    )]
    Certificate {
        certificate: PathBuf,
        key: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_a_folder_alone_gives_the_defaults() {
        let config: EdgeConfig = serde_json::from_str(r#"{"folder": "/x"}"#).unwrap();
        assert_eq!(config, EdgeConfig::new(PathBuf::from("/x")));
        assert!(serde_json::from_str::<EdgeConfig>(r#"{"folder": "/x", "prot": 1}"#).is_err());
    }
}
