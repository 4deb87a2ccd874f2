//! How connections to upstreams are made.

use conpaas_cloud::Dialer;
use conpaas_model::edge::NetworkAccess;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;

/// Makes connections into applications' networks.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    /// A fresh connection, or why there is none. The caller bounds the time.
    async fn connect(&self, network: &NetworkAccess, address: SocketAddr) -> io::Result<TcpStream>;

    /// Nobody will dial into other networks than these until routes change: what was kept for
    /// them can go.
    fn forget_others(&self, _in_use: &HashSet<NetworkAccess>) {}
}

/// Dials with the cloud drivers' dialers, one for each network.
#[derive(Default)]
pub struct CloudDial {
    dialers: Mutex<HashMap<NetworkAccess, Arc<Dialer>>>,
}

#[async_trait::async_trait]
impl Dial for CloudDial {
    async fn connect(&self, network: &NetworkAccess, address: SocketAddr) -> io::Result<TcpStream> {
        let dialer = {
            let mut dialers = self.dialers.lock().unwrap_or_else(PoisonError::into_inner);
            dialers
                .entry(network.clone())
                .or_insert_with(|| Arc::new(Dialer::new(network.clone())))
                .clone()
        };
        dialer.connect(address).await
    }

    fn forget_others(&self, in_use: &HashSet<NetworkAccess>) {
        let mut dialers = self.dialers.lock().unwrap_or_else(PoisonError::into_inner);
        dialers.retain(|network, _| in_use.contains(network));
    }
}
