//! One connection of a client: its TLS handshake, its requests one after the other, and its end
//! when the edge ends. Accepting is `server`'s business, what a request means `proxy`'s.

use crate::config::EdgeConfig;
use crate::proxy::{Client, Proxy};
use crate::tls::Certificates;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// What all connections share.
#[derive(Clone)]
pub struct Serving {
    proxy: Arc<Proxy>,
    http: http1::Builder,
    /// How long a client may take for its handshake or its request's head.
    patience: Duration,
    /// Another edge listens on the same socket: each connection is answered once more.
    left: watch::Receiver<bool>,
    /// The edge ends: what is in flight is finished.
    ended: watch::Receiver<bool>,
}

impl Serving {
    pub fn new(
        proxy: Arc<Proxy>,
        config: &EdgeConfig,
        left: watch::Receiver<bool>,
        ended: watch::Receiver<bool>,
    ) -> Self {
        let patience = Duration::from_secs(config.idle_seconds);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(config.max_header_bytes.max(8192))
            .keep_alive(true);
        Self {
            proxy,
            http,
            patience,
            left,
            ended,
        }
    }

    /// Serves a connection to its end, over TLS if there are certificates for it.
    pub async fn serve(self, stream: TcpStream, from: SocketAddr, tls: Option<Arc<Certificates>>) {
        prepare(&stream);
        let client = Client {
            address: from.ip(),
            secure: tls.is_some(),
        };
        let Some(tls) = tls else {
            return self.requests(stream, client).await;
        };
        let mut ended = self.ended.clone();
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(self.patience, tls.accept(stream)) => handshake,
            _ = ended.wait_for(|ended| *ended) => return,
        };
        match handshake {
            Ok(Ok(stream)) => self.requests(stream, client).await,
            Ok(Err(error)) => tracing::debug!(%from, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%from, "a TLS handshake took too long"),
        }
    }

    async fn requests<S>(self, stream: S, client: Client)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self {
            proxy,
            http,
            left,
            mut ended,
            ..
        } = self;
        let service = service_fn(move |request| {
            let (proxy, left) = (proxy.clone(), left.clone());
            async move {
                let mut answer = proxy.handle(client, request).await;
                if *left.borrow() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    // The next request goes to whoever listens now.
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let serving = http
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
            tracing::debug!(client = %client.address, %error, "a client's connection ended early");
        }
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
