//! One connection: dialled, shaken hands, the peer's identity checked.

use super::{ClientSettings, Shared};
use crate::socket::tune;
use crate::{Body, WireError};
use conpaas_pki::{NODE_DNS_NAME, peer_identity};
use futures::future::BoxFuture;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How to reach the peer. Any closure that gives a future of a connection is one, so that callers may
/// look addresses up afresh or dial from within another network namespace.
pub trait Dial: Send + Sync + 'static {
    fn dial(&self) -> BoxFuture<'static, io::Result<TcpStream>>;
}

impl<F, Fut> Dial for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    fn dial(&self) -> BoxFuture<'static, io::Result<TcpStream>> {
        Box::pin(self())
    }
}

/// Dials one address.
pub fn dial_address(address: SocketAddr) -> impl Dial {
    move || TcpStream::connect(address)
}

/// Gives the TLS configuration for each new connection, so that changed roots take effect.
pub type ClientTls = Arc<dyn Fn() -> Arc<rustls::ClientConfig> + Send + Sync>;

/// One configuration for all connections.
pub fn fixed_client_tls(config: Arc<rustls::ClientConfig>) -> ClientTls {
    Arc::new(move || config.clone())
}

pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    born: Instant,
    used: Instant,
}

impl Connection {
    pub(super) fn touch(&mut self) {
        self.used = Instant::now();
    }

    /// True while it may carry another request, now or once its present answer is read.
    pub(super) fn is_fit(&self, settings: &ClientSettings) -> bool {
        !self.sender.is_closed()
            && self.born.elapsed() < settings.max_age
            && self.used.elapsed() < settings.idle_timeout
    }
}

pub(super) async fn connect(shared: &Shared) -> Result<Connection, WireError> {
    let socket = shared.dial.dial().await.map_err(WireError::Dial)?;
    tune(&socket, &shared.settings.tcp);
    let name = ServerName::try_from(NODE_DNS_NAME)
        .map_err(|error| WireError::Handshake(io::Error::other(error)))?;
    let stream = TlsConnector::from((shared.tls)())
        .connect(name, socket)
        .await
        .map_err(WireError::Handshake)?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let identity = peer_identity(chain).map_err(WireError::PeerCertificate)?;
    if !(shared.expect)(&identity) {
        return Err(WireError::WrongPeer {
            found: Box::new(identity),
        });
    }
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(WireError::Http)?;
    // Ends by itself once the sender is dropped or the peer hangs up.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection ended badly");
        }
    });
    let now = Instant::now();
    Ok(Connection {
        sender,
        born: now,
        used: now,
    })
}
