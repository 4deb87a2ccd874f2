//! Applications' way out: for each that may get out, sockets in its network at which its machines
//! knock, and connections made for them from this computer. Who may get out is the Director's
//! business, where to is [`policy`]'s.

mod carry;
mod names;
mod policy;

pub use carry::Carrier;
pub use policy::{NoRange, Range};

use conpaas_cloud::{CloudError, MOST_PORTS, is_current, open_outlet, present_network};
use conpaas_model::edge::Outlet;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How often it is looked whether a network is there, and is the one that it was.
const LOOK: Duration = Duration::from_millis(250);

/// How applications get out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressConfig {
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

/// The outlets that are open. Dropping it closes them and breaks off what they carry.
pub struct Egress {
    carrier: Arc<Carrier>,
    open: HashMap<Outlet, JoinSet<()>>,
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
        let wanted: HashSet<&Outlet> = wanted.iter().collect();
        self.open.retain(|outlet, _| wanted.contains(outlet));
        for outlet in wanted {
            if !self.open.contains_key(outlet) {
                let mut task = JoinSet::new();
                task.spawn(keep(self.carrier.clone(), outlet.clone()));
                self.open.insert(outlet.clone(), task);
            }
        }
    }
}

/// Keeps an outlet open while its network is there, for ever.
async fn keep(carrier: Arc<Carrier>, outlet: Outlet) {
    let mut told = String::new();
    while !carrier.is_closing() {
        let (network, ports) = (outlet.network.clone(), carrier.config.ports.clone());
        let opened = tokio::task::spawn_blocking(move || {
            // No helper is started for a network without machines.
            present_network(&network).then(|| open_outlet(&network, &ports))
        });
        match opened.await {
            Ok(Some(Ok(Some(open)))) => {
                told.clear();
                tracing::info!(
                    app = outlet.app,
                    owner = outlet.owner,
                    "an application is let out"
                );
                let instance = open.instance.clone();
                tokio::select! {
                    () = carrier.serve(open, &outlet) => {}
                    () = other_network(&outlet, &instance) => {}
                }
            }
            // Its machines get out by themselves.
            Ok(Some(Ok(None))) => return,
            Ok(None | Some(Err(CloudError::NoNetwork { .. }))) => {}
            Ok(Some(Err(error))) => {
                let text = error.to_string();
                if text != told {
                    tracing::warn!(
                        app = outlet.app,
                        owner = outlet.owner,
                        error = text,
                        "an application is not let out"
                    );
                    told = text;
                }
            }
            Err(_) => return,
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Returns when a network is no longer the one of that name.
async fn other_network(outlet: &Outlet, instance: &str) {
    while is_current(&outlet.network, instance) {
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
