//! The listener and its connections.

use crate::access_log::{AccessLog, Writer};
use crate::config::{EdgeConfig, EdgeError};
use crate::connection::Serving;
use crate::dial::Dial;
use crate::egress::{Carrier, Egress};
use crate::feed::Feed;
use crate::proxy::Proxy;
use crate::table::Table;
use crate::tls::Certificates;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long one that is taken over keeps its outlets open beside the other's.
const OUTLETS_OPEN: Duration = Duration::from_secs(3);

/// Sockets that listen already and are handed over to an edge.
#[derive(Debug, Default)]
pub struct Listeners {
    pub http: Option<std::net::TcpListener>,
    pub https: Option<std::net::TcpListener>,
}

/// An edge that listens.
pub struct Edge {
    listener: TcpListener,
    address: SocketAddr,
    /// The second listener, for HTTPS.
    secure: Option<(TcpListener, Arc<Certificates>)>,
    config: EdgeConfig,
    proxy: Arc<Proxy>,
    feed: Feed,
    carrier: Arc<Carrier>,
    log_writers: [Writer; 2],
}

/// Why an edge ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nobody listens from now on.
    Stop,
    /// Another edge listens on the same socket and answers the Director.
    HandedOver,
}

impl Edge {
    /// Takes the ports, loads the routes, answers them, and serves nobody yet.
    ///
    /// # Errors
    /// [`EdgeError`] when a port, the certificate or the folder cannot be used.
    pub fn bind(config: EdgeConfig, dial: Arc<dyn Dial>) -> Result<Self, EdgeError> {
        Self::with_listeners(config, dial, Listeners::default())
    }

    /// The same, on sockets that listen already where there are some.
    ///
    /// # Errors
    /// [`EdgeError`] when they are none, or a port, the certificate or the folder cannot be used.
    pub fn with_listeners(
        config: EdgeConfig,
        dial: Arc<dyn Dial>,
        given: Listeners,
    ) -> Result<Self, EdgeError> {
        let listener = listen(config.bind, given.http)?;
        let secure = match &config.https {
            Some(https) => Some((
                listen(https.bind, given.https)?,
                Arc::new(Certificates::load(https.clone())?),
            )),
            None => None,
        };
        let folder_error = |source| EdgeError::Folder {
            path: config.folder.clone(),
            source,
        };
        std::fs::create_dir_all(&config.folder).map_err(folder_error)?;
        let local = |listener: &TcpListener, address| {
            listener
                .local_addr()
                .map_err(|source| EdgeError::Listen { address, source })
        };
        let address = local(&listener, config.bind)?;
        let https_port = match &secure {
            Some((listener, _)) => Some(local(listener, config.bind)?.port()),
            None => None,
        };
        let table = Arc::new(Table::default());
        let (log, log_writer) = AccessLog::open(
            config.folder.join("access.log"),
            config.log_bytes,
            config.log_files,
        )
        .map_err(folder_error)?;
        let (outward_log, outward_writer) = AccessLog::open(
            config.folder.join("egress.log"),
            config.log_bytes,
            config.log_files,
        )
        .map_err(folder_error)?;
        let https_address = secure
            .as_ref()
            .map(|(listener, _)| local(listener, config.bind));
        let front_doors = https_address
            .transpose()?
            .into_iter()
            .chain([address])
            .collect();
        let carrier = Arc::new(Carrier::new(
            config.egress.clone(),
            front_doors,
            outward_log,
        ));
        let feed = Feed::start(
            config.folder.clone(),
            table.clone(),
            dial.clone(),
            Egress::new(carrier.clone()),
            address,
        )
        .map_err(folder_error)?;
        let proxy = Arc::new(Proxy::new(&config, https_port, table, dial, log));
        Ok(Self {
            listener,
            address,
            secure,
            config,
            proxy,
            feed,
            carrier,
            log_writers: [log_writer, outward_writer],
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for HTTPS, if it does.
    pub fn https_address(&self) -> Option<SocketAddr> {
        let (listener, _) = self.secure.as_ref()?;
        listener.local_addr().ok()
    }

    /// Serves until `end`; then stops listening, lets requests in flight finish for at most
    /// `shutdown_seconds`, and returns with the access log written.
    pub async fn serve(self, end: impl Future<Output = ()>) {
        self.serve_until(async {
            end.await;
            Ending::Stop
        })
        .await;
    }

    /// The same, with a reason to end. When it was handed over, connections that are open are
    /// told to come back with their next answer, and only those that stay silent for
    /// `shutdown_seconds` are let go.
    pub async fn serve_until(self, end: impl Future<Output = Ending>) {
        let Self {
            listener,
            address,
            secure,
            config,
            proxy,
            feed,
            carrier,
            log_writers,
        } = self;
        tracing::info!(%address, https = secure.is_some(), "the edge serves");
        let answering = feed.answering();
        let feed = tokio::spawn(feed.follow());
        let (leaving, left) = watch::channel(false);
        let (ending, ended) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(config.max_connections.max(1)));
        let serving = Serving::new(proxy.clone(), &config, left, ended);
        let certificates = secure.as_ref().map(|(_, tls)| tls.clone());
        let certificates = certificates.map(|tls| tokio::spawn(tls.follow()));
        let mut connections = JoinSet::new();
        let mut end = pin!(end);
        let why = loop {
            let slot = tokio::select! {
                why = &mut end => break why,
                slot = slots.clone().acquire_owned() => slot,
            };
            let Ok(slot) = slot else { break Ending::Stop };
            let accepted = tokio::select! {
                why = &mut end => break why,
                accepted = listener.accept() => accepted.map(|(stream, client)| (stream, client, None)),
                accepted = accept_secure(secure.as_ref()) => accepted,
            };
            match accepted {
                Ok((stream, client, tls)) => {
                    let serving = serving.clone();
                    connections.spawn(async move {
                        let _slot = slot;
                        serving.serve(stream, client, tls).await;
                    });
                    while connections.try_join_next().is_some() {}
                }
                Err(error) => {
                    // Mostly too many open files: waiting gives others time to end.
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        drop((listener, secure, serving));
        tracing::info!(?why, "the edge stops; requests in flight may finish");
        let limit = Duration::from_secs(config.shutdown_seconds);
        let outward = tokio::spawn({
            let carrier = carrier.clone();
            async move {
                if why == Ending::HandedOver && carrier.is_busy() {
                    // The other one opens the outlets meanwhile, beside these.
                    tokio::time::sleep(OUTLETS_OPEN).await;
                }
                carrier.close();
            }
        });
        if why == Ending::HandedOver {
            answering.store(false, Ordering::Relaxed);
            let _ = leaving.send(true);
            let all = async { while connections.join_next().await.is_some() {} };
            // Who is silent for so long is let go below.
            let _ = tokio::time::timeout(limit, all).await;
        }
        let _ = ending.send(true);
        let all = async {
            while connections.join_next().await.is_some() {}
            proxy.tunnels_ended().await;
            let _ = outward.await;
            // When nobody takes over, whoever still talks outwards has as long as those who came in;
            // idle connections alone would hold up the end.
            if why == Ending::HandedOver {
                carrier.at_rest().await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("some requests did not finish in time and were broken off");
        }
        connections.shutdown().await;
        proxy.end_tunnels().await;
        if let Some(certificates) = certificates {
            certificates.abort();
        }
        feed.abort();
        let _ = feed.await;
        drop((proxy, carrier));
        let written = tokio::task::spawn_blocking(move || log_writers.map(Writer::join));
        // A body that some task still holds keeps the log open; its line may be lost.
        let _ = tokio::time::timeout(Duration::from_secs(2), written).await;
    }
}

/// A socket that listens: the one that was handed over, or a new one.
fn listen(
    address: SocketAddr,
    given: Option<std::net::TcpListener>,
) -> Result<TcpListener, EdgeError> {
    let listener = match given {
        Some(listener) => listener,
        None => std::net::TcpListener::bind(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => EdgeError::PortTaken { address, source },
            io::ErrorKind::PermissionDenied => EdgeError::PortForbidden { address, source },
            _ => EdgeError::Listen { address, source },
        })?,
    };
    listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .map_err(|source| EdgeError::Listen { address, source })
}

type Accepted = (TcpStream, SocketAddr, Option<Arc<Certificates>>);

/// The next connection for HTTPS; never, where there is no listener for it.
async fn accept_secure(secure: Option<&(TcpListener, Arc<Certificates>)>) -> io::Result<Accepted> {
    match secure {
        Some((listener, tls)) => {
            let (stream, client) = listener.accept().await?;
            Ok((stream, client, Some(tls.clone())))
        }
        None => std::future::pending().await,
    }
}
