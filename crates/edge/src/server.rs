//! The listener and its connections.

use crate::access_log::{AccessLog, Writer};
use crate::config::{EdgeConfig, EdgeError};
use crate::dial::Dial;
use crate::feed::Feed;
use crate::proxy::Proxy;
use crate::table::Table;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use std::convert::Infallible;
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

/// An edge that listens.
pub struct Edge {
    listener: TcpListener,
    address: SocketAddr,
    config: EdgeConfig,
    proxy: Arc<Proxy>,
    feed: Feed,
    log_writer: Writer,
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
    /// Takes the port, loads the routes, answers them, and serves nobody yet.
    ///
    /// # Errors
    /// [`EdgeError`] when the port or the folder cannot be used.
    pub async fn bind(config: EdgeConfig, dial: Arc<dyn Dial>) -> Result<Self, EdgeError> {
        let address = config.bind;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => EdgeError::PortTaken { address, source },
                io::ErrorKind::PermissionDenied => EdgeError::PortForbidden { address, source },
                _ => EdgeError::Listen { address, source },
            })?;
        Self::on(config, dial, listener)
    }

    /// The same on a socket that listens already.
    ///
    /// # Errors
    /// [`EdgeError`] when it is none, or the folder cannot be used.
    pub fn with_listener(
        config: EdgeConfig,
        dial: Arc<dyn Dial>,
        listener: std::net::TcpListener,
    ) -> Result<Self, EdgeError> {
        let address = config.bind;
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(listener))
            .map_err(|source| EdgeError::Listen { address, source })?;
        Self::on(config, dial, listener)
    }

    fn on(
        config: EdgeConfig,
        dial: Arc<dyn Dial>,
        listener: TcpListener,
    ) -> Result<Self, EdgeError> {
        let address = config.bind;
        let folder_error = |source| EdgeError::Folder {
            path: config.folder.clone(),
            source,
        };
        std::fs::create_dir_all(&config.folder).map_err(folder_error)?;
        let address = listener
            .local_addr()
            .map_err(|source| EdgeError::Listen { address, source })?;
        let table = Arc::new(Table::default());
        let (log, log_writer) = AccessLog::open(
            config.folder.join("access.log"),
            config.log_bytes,
            config.log_files,
        )
        .map_err(folder_error)?;
        let feed = Feed::start(config.folder.clone(), table.clone(), dial.clone(), address)
            .map_err(folder_error)?;
        let proxy = Arc::new(Proxy::new(&config, table, dial, log));
        Ok(Self {
            listener,
            address,
            config,
            proxy,
            feed,
            log_writer,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
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
            config,
            proxy,
            feed,
            log_writer,
        } = self;
        tracing::info!(%address, "the edge serves");
        let answering = feed.answering();
        let feed = tokio::spawn(feed.follow());
        let (leaving, left) = watch::channel(false);
        let (ending, ended) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(config.max_connections.max(1)));
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
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    let proxy = proxy.clone();
                    let (left, mut ended) = (left.clone(), ended.clone());
                    let mut builder = http1::Builder::new();
                    builder
                        .timer(TokioTimer::new())
                        .header_read_timeout(Duration::from_secs(config.idle_seconds))
                        .max_buf_size(config.max_header_bytes.max(8192))
                        .keep_alive(true);
                    connections.spawn(async move {
                        let _slot = slot;
                        prepare(&stream);
                        let service = service_fn(move |request| {
                            let (proxy, left) = (proxy.clone(), left.clone());
                            async move {
                                let mut answer = proxy.handle(client.ip(), request).await;
                                if *left.borrow()
                                    && answer.status() != StatusCode::SWITCHING_PROTOCOLS
                                {
                                    // The next request goes to whoever listens now.
                                    let close = HeaderValue::from_static("close");
                                    answer.headers_mut().insert(CONNECTION, close);
                                }
                                Ok::<_, Infallible>(answer)
                            }
                        });
                        let serving = builder
                            .serve_connection(TokioIo::new(stream), service)
                            .with_upgrades();
                        let mut serving = pin!(serving);
                        let ending = async {
                            // Also when nobody is left who could say so.
                            let _ = ended.wait_for(|ended| *ended).await;
                        };
                        let outcome = tokio::select! {
                            outcome = &mut serving => Some(outcome),
                            () = ending => None,
                        };
                        let outcome = match outcome {
                            Some(outcome) => outcome,
                            None => {
                                serving.as_mut().graceful_shutdown();
                                serving.await
                            }
                        };
                        if let Err(error) = outcome {
                            tracing::debug!(%client, %error, "a client's connection ended early");
                        }
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
        drop(listener);
        tracing::info!(?why, "the edge stops; requests in flight may finish");
        let limit = Duration::from_secs(config.shutdown_seconds);
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
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("some requests did not finish in time and were broken off");
        }
        connections.shutdown().await;
        proxy.end_tunnels().await;
        feed.abort();
        let _ = feed.await;
        drop(proxy);
        let written = tokio::task::spawn_blocking(move || log_writer.join());
        // A body that some task still holds keeps the log open; its line may be lost.
        let _ = tokio::time::timeout(Duration::from_secs(2), written).await;
    }
}

/// Small writes go out at once, and a client that vanished is noticed.
fn prepare(stream: &TcpStream) {
    let options = stream
        .set_nodelay(true)
        .and_then(|()| Ok(setsockopt(stream, sockopt::KeepAlive, &true)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepIdle, &60)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepInterval, &15)?))
        .and_then(|()| Ok(setsockopt(stream, sockopt::TcpKeepCount, &4)?));
    if let Err(error) = options {
        tracing::debug!(%error, "cannot set a connection's options");
    }
}
