//! Where a nutshell keeps things, and its settings: one file, `nutshell.toml`, that Director and
//! edge read too, so that nothing about them stands in a command line.

use crate::exit::CliError;
use conpaas_cloud::{LocalConfig, Support};
use conpaas_director::config::{DirectorConfig, Kept};
use conpaas_edge::{EdgeConfig, EgressConfig, Https, Range};
use conpaas_model::egress::Egress;
use conpaas_model::instance::{InstanceType, default_instance_types};
use conpaas_model::protocol::DIRECTOR_PORT;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A state folder and what lies where in it.
#[derive(Clone, Debug)]
pub struct Place {
    state: PathBuf,
}

impl Place {
    pub fn new(state: PathBuf) -> Self {
        Self {
            state: std::path::absolute(&state).unwrap_or(state),
        }
    }

    /// `--state`, `CONPAAS_STATE`, or the usual place: `/var/lib/conpaas` for root, a folder of
    /// their own for others.
    pub fn find(given: Option<PathBuf>) -> Result<Self, CliError> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        if let Some(state) = given {
            return Ok(Self::new(state));
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(Self::new("/var/lib/conpaas".into()));
        }
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|folder| Self::new(folder.join("conpaas")))
            .ok_or_else(|| {
                CliError::usage("there is no folder for state")
                    .hint("set HOME, or add --state FOLDER")
            })
    }

    pub fn state(&self) -> &Path {
        &self.state
    }
    pub fn settings(&self) -> PathBuf {
        self.state.join("nutshell.toml")
    }
    /// The Director's own; nobody else may look in.
    pub fn director(&self) -> PathBuf {
        self.state.join("director")
    }
    pub fn admin_password(&self) -> PathBuf {
        self.director().join(conpaas_director::PASSWORD_FILE)
    }
    pub fn edge(&self) -> PathBuf {
        self.state.join("edge")
    }
    /// Machines; apart from the Director's, since machines' ids must get through to their images.
    pub fn cloud(&self) -> PathBuf {
        self.state.join("cloud")
    }
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }
    pub fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }
    /// The installation whose machines are ours, known also while the Director is down.
    pub fn installation(&self) -> PathBuf {
        self.run().join("installation")
    }
    /// The token of whoever started the nutshell; their context points here.
    pub fn token(&self) -> PathBuf {
        self.run().join("token")
    }
    pub fn record(&self, daemon: &str) -> PathBuf {
        self.run().join(format!("{daemon}.json"))
    }
    /// What the keeper has seen of daemons.
    pub fn kept(&self) -> PathBuf {
        self.run().join("kept.json")
    }
    /// The program that a keeper is to become.
    pub fn program(&self) -> PathBuf {
        self.run().join("program")
    }
    /// Where the edge's own certificate is, for those who bring none.
    pub fn edge_certificate(&self) -> PathBuf {
        self.edge().join("certificate")
    }
    /// The process id of the newest edge that serves.
    pub fn edge_ready(&self) -> PathBuf {
        self.run().join("edge.ready")
    }
    pub fn logs(&self) -> PathBuf {
        self.state.join("log")
    }
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.logs().join(format!("{daemon}.log"))
    }
}

/// Shorter lives than this cannot be renewed in time by a computer that is busy.
const CERTIFICATE_MIN: u64 = 10;
const CERTIFICATE_MAX: u64 = 90 * 24 * 3600;

/// Where machines ask for names.
const NAMES_PORT: u16 = 53;

/// Settings of a nutshell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where applications are reached.
    pub edge: SocketAddr,
    /// Where applications are reached over HTTPS, if at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https: Option<SocketAddr>,
    /// Send requests that come without TLS on to HTTPS.
    pub https_only: bool,
    /// Certificates for HTTPS in PEM; absent: one of this computer's own making, which browsers
    /// warn of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Applications are `NAME-OWNER.BASE`.
    pub base_domain: String,
    /// Further names and addresses of this computer, for the API's certificate.
    pub names: Vec<String>,
    /// The unpacked machine image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// Size of new services' nodes.
    pub default_instance_type: String,
    /// Nodes a new user may have at once.
    pub node_quota: u32,
    /// MiB that the code versions of one user may take.
    pub code_quota_mib: u64,
    /// MiB that one archive may have.
    pub upload_mib: u64,
    /// How long requests in flight may take when a role is let go.
    pub drain_seconds: u64,
    /// How long a deleted application can be brought back; 0: not at all.
    pub trash_hours: u32,
    /// For how long agents' and managers' certificates are given; they renew themselves in time.
    pub certificate_seconds: u64,
    /// How long an answer is kept for whoever repeats a request under its idempotency key.
    pub idempotency_hours: u32,
    /// How long operations that ended are kept.
    pub operations_days: u32,
    /// Events kept of each application; the oldest go first.
    pub events_kept: u64,
    /// How long the bytes of a deleted code version stay, for nodes that still run it.
    pub deleted_code_minutes: u32,
    /// How long what came of an upload that broke off waits to be gone on with.
    pub unfinished_uploads_hours: u32,
    /// As much of a way out as applications may have: `director` or `none`.
    pub egress: Egress,
    /// The TCP ports that applications get out by.
    pub egress_ports: Vec<u16>,
    /// Private networks, or addresses of this computer, that applications may reach.
    pub egress_allow: Vec<Range>,
    /// Whom applications' questions for names go to; empty: this computer's name servers.
    pub name_servers: Vec<IpAddr>,
    /// vCPUs promised for each real one.
    pub cpu_overcommit: f64,
    /// All the memory that machines may have, in MiB; absent: what the computer has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// As root: the first of the 65,536 ids of this computer that stand behind machines' ids.
    pub id_base: u32,
    pub instance_types: Vec<InstanceType>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            edge: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            https: None,
            https_only: false,
            certificate: None,
            key: None,
            base_domain: "localhost".to_owned(),
            names: Vec::new(),
            image: None,
            default_instance_type: "small".to_owned(),
            node_quota: 20,
            code_quota_mib: 10_240,
            upload_mib: 512,
            drain_seconds: 30,
            trash_hours: 72,
            certificate_seconds: 24 * 3600,
            idempotency_hours: 24,
            operations_days: 90,
            events_kept: 10_000,
            deleted_code_minutes: 60,
            unfinished_uploads_hours: 24,
            egress: Egress::default(),
            egress_ports: EgressConfig::default().ports,
            egress_allow: Vec::new(),
            name_servers: Vec::new(),
            cpu_overcommit: 8.0,
            memory_mib: None,
            id_base: 1_000_000_000,
            instance_types: default_instance_types(),
        }
    }
}

impl Settings {
    /// The settings of a nutshell; defaults where there is none yet.
    pub fn load(place: &Place) -> Result<Self, CliError> {
        let path = place.settings();
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let settings: Self = toml::from_str(&text).map_err(|error| {
                    CliError::usage(format!("{} holds no settings of a nutshell", path.display())).because(&error)
                })?;
                settings.check(&path)?;
                Ok(settings)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CliError::failed(format!("{} cannot be read", path.display()))
                .because(&error)
                .hint("another user's nutshell may be there; take a folder of your own: --state FOLDER")),
        }
    }

    fn check(&self, path: &Path) -> Result<(), CliError> {
        let wrong = |why: &str| {
            Err(CliError::usage(format!("{}: {why}", path.display())).hint(
                "for HTTPS set `https` (an address), and `certificate` with `key` (PEM files) unless \
                 a certificate of this computer's own making will do",
            ))
        };
        if self.certificate.is_some() != self.key.is_some() {
            return wrong("`certificate` and `key` belong together");
        }
        if self.https.is_none() && (self.https_only || self.certificate.is_some()) {
            return wrong("there is a setting for HTTPS, and no address to listen on for it");
        }
        if self.https == Some(self.edge) {
            return wrong("HTTP and HTTPS cannot share one port");
        }
        // Ids of people and of the system's own users must never stand behind a machine's.
        if self.id_base < 65_536 || self.id_base.checked_add(65_535).is_none() {
            return Err(CliError::usage(format!(
                "{}: id_base is {}, where no 65,536 ids are free for machines",
                path.display(),
                self.id_base
            ))
            .hint("take a number from 65536 to 4294901760; 1000000000 is usual"));
        }
        if !(CERTIFICATE_MIN..=CERTIFICATE_MAX).contains(&self.certificate_seconds) {
            return Err(CliError::usage(format!(
                "{}: certificate_seconds is {}",
                path.display(),
                self.certificate_seconds
            ))
            .hint(format!(
                "take a number from {CERTIFICATE_MIN} to {CERTIFICATE_MAX} (90 days); 86400 is usual"
            )));
        }
        if let Some(fault) = self.outward().fault(&[NAMES_PORT, DIRECTOR_PORT]) {
            return Err(
                CliError::usage(format!("{}: egress_ports: {fault}", path.display()))
                    .hint("list the ports that applications need, like [80, 443]"),
            );
        }
        if self
            .instance_types
            .iter()
            .any(|size| size.name == self.default_instance_type)
        {
            return Ok(());
        }
        Err(CliError::usage(format!(
            "{}: there is no instance type '{}' to be the default one",
            path.display(),
            self.default_instance_type
        )))
    }

    pub fn save(&self, place: &Place) -> Result<(), CliError> {
        let text = toml::to_string_pretty(self).map_err(|error| {
            CliError::failed("the settings cannot be written down").because(&error)
        })?;
        crate::contexts::write_private(&place.settings(), text.as_bytes())
    }

    /// The address people use: a listener on all addresses is reached at this computer's own.
    pub fn api_url(&self) -> String {
        let ip = if self.api.ip().is_unspecified() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            self.api.ip()
        };
        format!("https://{}", SocketAddr::new(ip, self.api.port()))
    }

    pub fn local(&self, place: &Place) -> LocalConfig {
        let mut config = LocalConfig::new(place.cloud(), self.image.clone().unwrap_or_default());
        config.instance_types = self.instance_types.clone();
        config.cpu_overcommit = self.cpu_overcommit;
        config.memory_mib = self.memory_mib;
        config.id_base = self.id_base;
        config.egress = match self.egress {
            Egress::Director => Support::Yes,
            Egress::None => Support::no("this installation lets no application out"),
        };
        config
    }

    fn outward(&self) -> EgressConfig {
        EgressConfig {
            most: self.egress,
            ports: self.egress_ports.clone(),
            allow: self.egress_allow.clone(),
            name_servers: self.name_servers.clone(),
        }
    }

    pub fn director(&self, place: &Place) -> DirectorConfig {
        let mut config = DirectorConfig::new(place.director());
        config.listen = self.api;
        config.names = self.names.clone();
        if !self.api.ip().is_unspecified() {
            config.names.push(self.api.ip().to_string());
        }
        config.base_domain = self.base_domain.clone();
        config.edge_port = self.edge.port();
        config.edge_https_port = self.https.map(|address| address.port());
        config.edge = Some(self.edge.to_string());
        config.edge_folder = Some(place.edge());
        config.instance_types = self.instance_types.clone();
        config.default_instance_type = self.default_instance_type.clone();
        config.default_node_quota = self.node_quota;
        config.code_quota = self.code_quota_mib.saturating_mul(1 << 20);
        config.max_upload = self.upload_mib.saturating_mul(1 << 20);
        config.egress = self.egress;
        config.drain = Duration::from_secs(self.drain_seconds);
        config.trash = Duration::from_secs(u64::from(self.trash_hours) * 3600);
        config.certificate_lifetime = Duration::from_secs(self.certificate_seconds);
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
        config.kept = Kept {
            keys: hours(self.idempotency_hours),
            operations: hours(self.operations_days.saturating_mul(24)),
            code: Duration::from_secs(u64::from(self.deleted_code_minutes) * 60),
            uploads: hours(self.unfinished_uploads_hours),
            events: self.events_kept,
        };
        config
    }

    /// Where the edge listens: for HTTP, and for HTTPS if it does.
    pub fn edge_addresses(&self) -> Vec<SocketAddr> {
        std::iter::once(self.edge).chain(self.https).collect()
    }

    pub fn edge(&self, place: &Place) -> EdgeConfig {
        let mut config = EdgeConfig::new(place.edge());
        config.bind = self.edge;
        config.https = self.https.map(|bind| {
            let own = || place.edge_certificate();
            let (certificate, key) = match (&self.certificate, &self.key) {
                (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
                _ => (own().join("api.crt"), own().join("api.key")),
            };
            Https {
                bind,
                certificate,
                key,
                only: self.https_only,
            }
        });
        config.base_domain = self.base_domain.clone();
        config.egress = self.outward();
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_and_wrong_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(folder.path().to_owned());
        assert_eq!(Settings::load(&place).unwrap(), Settings::default());
        let settings = Settings {
            base_domain: "apps.example.org".into(),
            memory_mib: Some(2048),
            id_base: 2_000_000_000,
            ..Settings::default()
        };
        settings.save(&place).unwrap();
        assert_eq!(Settings::load(&place).unwrap(), settings);
        assert_eq!(settings.local(&place).id_base, 2_000_000_000);
        for bad in [
            "prot = 1",
            "api = 'x'",
            "default_instance_type = 'huge'",
            "id_base = 1000",
            "https_only = true",
            "https = '127.0.0.1:8080'",
            "https = '127.0.0.1:8443'\ncertificate = '/x.pem'",
            "certificate_seconds = 5",
            "egress = 'all'",
            "egress_ports = [80, 7443]",
            "egress_allow = ['10.0.0.1/8']",
        ] {
            std::fs::write(place.settings(), bad).unwrap();
            assert_eq!(
                Settings::load(&place).unwrap_err().exit,
                crate::exit::Exit::Usage,
                "{bad}"
            );
        }
    }

    #[test]
    fn the_url_is_one_to_dial() {
        let settings = Settings {
            api: "0.0.0.0:7443".parse().unwrap(),
            ..Settings::default()
        };
        assert_eq!(settings.api_url(), "https://127.0.0.1:7443");
    }
}
