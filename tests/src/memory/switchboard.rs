//! Addresses of applications' networks on loopback. Each application has the same range, so an
//! address means something only together with its application.

use conpaas_agent::DialTo;
use conpaas_model::edge::NetworkAccess;
use conpaas_model::ids::ApplicationId;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpStream;

/// Which address of which application answers at which port of this computer.
#[derive(Clone, Default)]
pub struct Switchboard {
    plugs: Arc<Mutex<BTreeMap<(ApplicationId, SocketAddr), SocketAddr>>>,
}

impl Switchboard {
    pub fn plug(&self, application: &ApplicationId, address: SocketAddr, here: SocketAddr) {
        self.plugs
            .lock()
            .unwrap()
            .insert((application.clone(), address), here);
    }

    /// Takes an address away, unless somebody else has it by now.
    pub fn unplug(&self, application: &ApplicationId, address: SocketAddr, here: SocketAddr) {
        let mut plugs = self.plugs.lock().unwrap();
        let key = (application.clone(), address);
        if plugs.get(&key) == Some(&here) {
            plugs.remove(&key);
        }
    }

    /// How processes on an application's machines reach each other and the Director.
    pub fn dial_within(&self, application: &ApplicationId) -> DialTo {
        let (board, application) = (self.clone(), application.clone());
        Arc::new(move |address| {
            let here = board
                .plugs
                .lock()
                .unwrap()
                .get(&(application.clone(), address))
                .copied();
            Box::pin(connect(address, here))
        })
    }
}

async fn connect(address: SocketAddr, here: Option<SocketAddr>) -> io::Result<TcpStream> {
    match here {
        Some(here) => TcpStream::connect(here).await,
        // The Director is where it is.
        None if address.ip().is_loopback() => TcpStream::connect(address).await,
        None => Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("nobody has {address}"),
        )),
    }
}

/// The edge knows no applications, only addresses: a world whose pages are looked at has one
/// application at a time.
#[async_trait::async_trait]
impl conpaas_edge::Dial for Switchboard {
    async fn connect(
        &self,
        _network: &NetworkAccess,
        address: SocketAddr,
    ) -> io::Result<TcpStream> {
        let here = {
            let plugs = self.plugs.lock().unwrap();
            plugs
                .iter()
                .find(|((_, plugged), _)| *plugged == address)
                .map(|(_, here)| *here)
        };
        connect(address, here).await
    }
}
