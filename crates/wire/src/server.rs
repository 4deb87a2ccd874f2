//! The serving side: connections are accepted, named and handed to one handler; a slow peer holds up
//! nobody but itself.

use crate::body::Problem;
use crate::socket::tune;
use crate::stream::is_our_upgrade;
use crate::{Body, TcpSettings, VERSION_HEADER, Versions, WIRE};
use conpaas_pki::{CertificateChain, Identity, peer_identity};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Gives the TLS configuration for each new connection, so that changed roots take effect.
pub type ServerTls = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// One configuration for all connections.
pub fn fixed_server_tls(config: Arc<rustls::ServerConfig>) -> ServerTls {
    Arc::new(move || config.clone())
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `None`: it showed no certificate.
    pub identity: Option<Identity>,
    /// The certificates it showed.
    pub chain: Option<Arc<CertificateChain>>,
    pub address: SocketAddr,
    /// The newest version both speak; `None` when the request states none, as people's tools do.
    pub version: Option<u32>,
}

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a request's head may take. Default 30 s.
    pub header_timeout: Duration,
    /// Connections beyond this are dropped at once; open streams count. Default 4096.
    pub max_connections: usize,
    /// How long requests in flight may take once the server shuts down. Default 10 s.
    pub shutdown_grace: Duration,
    /// A request that states versions of which none is here is refused.
    pub versions: Versions,
    pub tcp: TcpSettings,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            max_connections: 4096,
            shutdown_grace: Duration::from_secs(10),
            versions: WIRE,
            tcp: TcpSettings::default(),
        }
    }
}

/// Travels in a request's extensions, so that a stream made of its connection counts as one.
#[derive(Clone)]
pub(crate) struct Permit {
    _place: Arc<OwnedSemaphorePermit>,
}

struct Shared<H> {
    handler: H,
    settings: ServerSettings,
    /// Take no new work.
    shutdown: CancellationToken,
    /// Let go of everything.
    kill: CancellationToken,
}

/// Serves until `shutdown`; then no new connection is taken, requests in flight end, and it returns,
/// at the latest after the grace. Streams that were upgraded are their handlers' to end.
///
/// A handler's future is dropped when its client hangs up: what must be done to its end belongs into a
/// task of its own.
///
/// A peer whose certificate names nobody is cut off; one without a certificate comes as unnamed, and
/// whether it may is up to `tls` and the handler.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: ServerTls,
    settings: ServerSettings,
    shutdown: CancellationToken,
    handler: H,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(
        settings.max_connections.min(Semaphore::MAX_PERMITS),
    ));
    let kill = CancellationToken::new();
    // When this future is dropped, its connections go too.
    let _kill_on_drop = kill.clone().drop_guard();
    let grace = settings.shutdown_grace;
    let shared = Arc::new(Shared {
        handler,
        settings,
        shutdown: shutdown.clone(),
        kill: kill.clone(),
    });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let (shared, config) = (shared.clone(), tls());
                    tasks.spawn(async move {
                        let kill = shared.kill.clone();
                        tokio::select! {
                            () = kill.cancelled() => {}
                            () = connection(shared, socket, address, config, Permit { _place: Arc::new(place) }) => {}
                        }
                    });
                }
                Err(_) => tracing::warn!(%address, "too many connections: one was dropped"),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Usually no file descriptor is left; do not spin until one is.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if timeout(grace, tasks.wait()).await.is_err() {
        kill.cancel();
        tasks.wait().await;
    }
}

async fn connection<H, F>(
    shared: Arc<Shared<H>>,
    socket: TcpStream,
    address: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    permit: Permit,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    tune(&socket, &shared.settings.tcp);
    let handshake = timeout(
        shared.settings.handshake_timeout,
        TlsAcceptor::from(config).accept(socket),
    );
    let stream = tokio::select! {
        () = shared.shutdown.cancelled() => return,
        shaken = handshake => match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "a handshake failed"),
            Err(_) => return tracing::debug!(%address, "a handshake took too long"),
        },
    };
    let (identity, chain) = match stream.get_ref().1.peer_certificates() {
        None => (None, None),
        Some(chain) => match (peer_identity(chain), CertificateChain::from_der(chain)) {
            (Ok(identity), Ok(chain)) => (Some(identity), Some(Arc::new(chain))),
            (Ok(_), Err(error)) => {
                return tracing::warn!(%address, %error, "a peer's certificates cannot be read");
            }
            (Err(error), _) => {
                return tracing::warn!(%address, %error, "a peer without a name was cut off");
            }
        },
    };
    let peer = Peer {
        identity,
        chain,
        address,
        version: None,
    };
    let service = {
        let shared = shared.clone();
        service_fn(move |request| {
            let (shared, peer, permit) = (shared.clone(), peer.clone(), permit.clone());
            async move { Ok::<_, Infallible>(answer(&shared, request, peer, permit).await) }
        })
    };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.settings.header_timeout)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = shared.shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%address, %error, "a connection ended badly");
    }
}

async fn answer<H, F>(
    shared: &Shared<H>,
    mut request: Request<Incoming>,
    mut peer: Peer,
    permit: Permit,
) -> Response<Body>
where
    H: Fn(Request<Incoming>, Peer) -> F,
    F: Future<Output = Response<Body>>,
{
    if let Some(stated) = request.headers().get(VERSION_HEADER) {
        let ours = shared.settings.versions;
        peer.version = stated.to_str().ok().and_then(|stated| ours.pick(stated));
        // A stream's versions are its own; who accepts it checks them.
        if peer.version.is_none() && !is_our_upgrade(request.headers()) {
            return version_problem(stated, ours).into();
        }
    }
    request.extensions_mut().insert(permit);
    (shared.handler)(request, peer).await
}

/// The refusal of a peer that is too old or too new.
pub(crate) fn version_problem(stated: &http::HeaderValue, ours: Versions) -> Problem {
    let stated = String::from_utf8_lossy(stated.as_bytes())
        .chars()
        .take(60)
        .collect::<String>();
    Problem::new(
        StatusCode::UPGRADE_REQUIRED,
        "version_unsupported",
        format!("you speak version {stated} of this protocol, this side speaks {ours}"),
    )
    .hint("upgrade the older of the two")
}
