//! Applications' way out: for each that may get out, sockets in its network at which its machines
//! knock, and connections made for them from this computer. Who may get out is the Director's
//! business, where to is [`policy`]'s.

mod carry;
mod names;
mod policy;
mod recent;
mod share;

pub use carry::Carrier;
pub use policy::{NoRange, Range};

use conpaas_cloud::{CloudError, MOST_PORTS, network_instance, open_outlet};
use conpaas_model::edge::{NetworkAccess, Outlet};
use conpaas_model::egress::Egress as Policy;
use conpaas_model::ids::ApplicationId;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often it is looked whether a network is there, and is the one that it was.
const LOOK: Duration = Duration::from_millis(250);
/// The longest pause before an outlet that cannot be opened is tried again.
const PAUSE_MOST: Duration = Duration::from_secs(8);

/// How applications get out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressConfig {
    /// As much of a way out as applications may have, whatever routes say.
    pub most: Policy,
    /// The TCP ports that are let through.
    pub ports: Vec<u16>,
    /// Ranges that are let through although they are private or this computer's own.
    pub allow: Vec<Range>,
    /// Whom to ask for names; empty: the name servers of this computer.
    pub name_servers: Vec<IpAddr>,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            most: Policy::default(),
            // The web, git, mail as its users hand it in, and the usual databases.
            ports: vec![
                22, 80, 443, 465, 587, 993, 3306, 5432, 6379, 8080, 8443, 9200, 27017,
            ],
            allow: Vec::new(),
            name_servers: Vec::new(),
        }
    }
}

impl EgressConfig {
    /// What is wrong with the settings, if anything is. `taken` are ports that others listen at in
    /// applications' networks.
    pub fn fault(&self, taken: &[u16]) -> Option<String> {
        let distinct: HashSet<u16> = self.ports.iter().copied().collect();
        if distinct.len() != self.ports.len() {
            return Some("a port is listed twice".to_owned());
        }
        if self.ports.len() > MOST_PORTS {
            return Some(format!("more than {MOST_PORTS} ports are listed"));
        }
        let taken = self
            .ports
            .iter()
            .find(|port| taken.contains(port) || **port == 0);
        taken.map(|port| format!("port {port} cannot be let through: it is the platform's own"))
    }
}

/// What makes an outlet the same one, whoever's program tends it and whatever its application is
/// called.
type Key = (PathBuf, ApplicationId);

/// The outlets that are open. Dropping it closes them and breaks off what they carry.
pub struct Egress {
    carrier: Arc<Carrier>,
    open: HashMap<Key, Kept>,
}

/// An outlet that is kept open.
struct Kept {
    wanted: watch::Sender<Outlet>,
    _task: JoinSet<()>,
}

impl Egress {
    pub fn new(carrier: Arc<Carrier>) -> Self {
        Self {
            carrier,
            open: HashMap::new(),
        }
    }

    /// Opens what lacks, closes the rest; who may no longer get out is cut off at once.
    pub fn set(&mut self, wanted: &[Outlet]) {
        let mut keys = HashSet::new();
        for outlet in wanted {
            // Elsewhere machines get out by themselves.
            let NetworkAccess::Local {
                state_dir, network, ..
            } = &outlet.network
            else {
                continue;
            };
            if self.carrier.config.most == Policy::None {
                continue;
            }
            let key = (state_dir.clone(), network.clone());
            keys.insert(key.clone());
            let kept = self.open.entry(key).or_insert_with(|| {
                let (wanted, now) = watch::channel(outlet.clone());
                let mut task = JoinSet::new();
                task.spawn(keep(self.carrier.clone(), now));
                Kept {
                    wanted,
                    _task: task,
                }
            });
            kept.wanted.send_if_modified(|present| {
                let news = present != outlet;
                if news {
                    present.clone_from(outlet);
                }
                news
            });
        }
        self.open.retain(|key, _| keys.contains(key));
    }
}

/// Keeps an outlet open while its network is there, until all are closed.
async fn keep(carrier: Arc<Carrier>, wanted: watch::Receiver<Outlet>) {
    let mut pause = LOOK;
    let (mut in_vain, mut told) = (String::new(), String::new());
    while !carrier.is_closing() {
        let outlet = wanted.borrow().clone();
        let (app, owner, network) = (outlet.app, outlet.owner, outlet.network);
        // No helper is started for a network without machines.
        let Some(instance) = network_instance(&network) else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let ports = carrier.config.ports.clone();
        let opened = tokio::task::spawn_blocking(move || open_outlet(&network, &ports)).await;
        match opened {
            Ok(Ok(Some(open))) => {
                (in_vain, told) = Default::default();
                tracing::info!(app, owner, "an application is let out");
                let instance = open.instance.clone();
                tokio::select! {
                    () = carrier.serve(open, &wanted) => {}
                    () = other_network(&wanted, &instance) => {}
                }
            }
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                // What a computer that was switched off left names a network that is not there.
                pause = if in_vain == instance {
                    (pause * 2).min(PAUSE_MOST)
                } else {
                    LOOK
                };
                in_vain = instance;
                let text = error.to_string();
                if text != told && !matches!(error, CloudError::NoNetwork { .. }) {
                    tracing::warn!(app, owner, error = text, "an application is not let out");
                    told = text;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Returns when a network is no longer the one of that name.
async fn other_network(wanted: &watch::Receiver<Outlet>, instance: &str) {
    loop {
        let present = network_instance(&wanted.borrow().network);
        if present.as_deref() != Some(instance) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_few_different_and_free() {
        assert_eq!(EgressConfig::default().fault(&[53, 7443]), None);
        for bad in [
            vec![80, 443, 80],
            vec![0],
            vec![53],
            vec![7443],
            (1000..1100).collect(),
        ] {
            let config = EgressConfig {
                ports: bad.clone(),
                ..EgressConfig::default()
            };
            assert!(config.fault(&[53, 7443]).is_some(), "{bad:?}");
        }
    }
}
