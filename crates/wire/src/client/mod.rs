//! The calling side: dials, checks who answers, sends requests over connections that it keeps for the
//! next one, fetches bulk with resumption, opens streams.

mod connect;
mod download;

pub use connect::{ClientTls, Dial, dial_address, fixed_client_tls};

use crate::body::{Collect, collect, from_json, remote_error};
use crate::stream::{FramedStream, PROTOCOL, StreamSettings, is_our_upgrade};
use crate::{Body, TcpSettings, VERSION_HEADER, Versions, WIRE, WireError, empty, full};
use bytes::Bytes;
use connect::Connection;
use conpaas_pki::{Identity, NODE_DNS_NAME};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How much of a refusal's body is read.
const MAX_ERROR: usize = 64 * 1024;

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// For dialling and the handshake together. Default 10 s.
    pub connect_timeout: Duration,
    /// Until an answer's head is there, request's body included. Default 30 s; a large upload needs more.
    pub response_timeout: Duration,
    /// Longest pause within an answer's body. Default 30 s.
    pub body_timeout: Duration,
    /// Largest JSON answer in bytes. Default 64 MiB.
    pub max_json: usize,
    /// Idle connections kept. Default 4.
    pub max_idle: usize,
    /// A connection idle for longer is not used again. Must be shorter than the server's header
    /// timeout. Default 15 s.
    pub idle_timeout: Duration,
    /// A connection is not used again once it is this old, so that a renewed certificate or a removal
    /// takes effect. Default 10 min.
    pub max_age: Duration,
    /// Versions this side speaks, stated in every request.
    pub versions: Versions,
    pub tcp: TcpSettings,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            max_json: 64 * 1024 * 1024,
            max_idle: 4,
            idle_timeout: Duration::from_secs(15),
            max_age: Duration::from_secs(600),
            versions: WIRE,
            tcp: TcpSettings::default(),
        }
    }
}

struct Shared {
    dial: Box<dyn Dial>,
    tls: ClientTls,
    expect: Box<dyn Fn(&Identity) -> bool + Send + Sync>,
    settings: ClientSettings,
    idle: Mutex<Vec<Connection>>,
}

/// Calls one peer. Clones share connections.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

impl Client {
    /// `expect` is asked after each handshake whether the peer is the one that was meant: its kind and
    /// application. Nothing is sent to another.
    pub fn new(
        dial: impl Dial,
        tls: ClientTls,
        expect: impl Fn(&Identity) -> bool + Send + Sync + 'static,
        settings: ClientSettings,
    ) -> Self {
        Self(Arc::new(Shared {
            dial: Box::new(dial),
            tls,
            expect: Box::new(expect),
            settings,
            idle: Mutex::default(),
        }))
    }

    /// Sends a request (its URI a path, with a query perhaps) and gives the answer, whatever its
    /// status, as soon as its head is there.
    pub async fn request(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, WireError> {
        self.complete(request.headers_mut());
        let settings = &self.0.settings;
        let after = settings.response_timeout;
        let late = |_| WireError::Timeout {
            what: "the answer",
            after,
        };
        while let Some(mut connection) = self.take_idle() {
            match timeout(after, connection.sender.try_send_request(request))
                .await
                .map_err(late)?
            {
                Ok(response) => {
                    self.keep(connection);
                    return Ok(response);
                }
                // The peer hung up before anything was sent: safe to send by another connection.
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(WireError::Http(failed.into_error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        let response = timeout(after, connection.sender.send_request(request))
            .await
            .map_err(late)?
            .map_err(WireError::Http)?;
        self.keep(connection);
        Ok(response)
    }

    /// Gets JSON. An answer that is no success is [`WireError::Remote`].
    pub async fn get_json<O: DeserializeOwned>(&self, path: &str) -> Result<O, WireError> {
        self.for_json(build(Method::GET, path, empty())?).await
    }

    /// Posts JSON and gets JSON; `()` reads an empty answer.
    pub async fn post_json<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        path: &str,
        input: &I,
    ) -> Result<O, WireError> {
        self.send_json(Method::POST, path, input).await
    }

    /// Sends JSON by any method and gets JSON.
    pub async fn send_json<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        input: &I,
    ) -> Result<O, WireError> {
        let mut request = build(
            method,
            path,
            full(serde_json::to_vec(input).map_err(WireError::Encode)?),
        )?;
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.for_json(request).await
    }

    /// Sends a body of bytes (see [`crate::reader_body`]) and gets JSON.
    pub async fn upload<O: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<O, WireError> {
        let mut request = build(method, path, body)?;
        request.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        self.for_json(request).await
    }

    /// Opens a stream that receives `Rx` and sends `Tx`, on a connection of its own. `headers` go with
    /// the request; versions are those of `settings`.
    pub async fn open_stream<Rx, Tx>(
        &self,
        path: &str,
        headers: HeaderMap,
        settings: &StreamSettings,
    ) -> Result<FramedStream<Rx, Tx>, WireError>
    where
        Rx: DeserializeOwned + Send + 'static,
        Tx: Serialize,
    {
        let mut request = build(Method::GET, path, empty())?;
        *request.headers_mut() = headers;
        let stated = request.headers_mut();
        stated.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        stated.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        stated.insert(VERSION_HEADER, settings.versions.header());
        self.complete(stated);
        let after = self.0.settings.response_timeout;
        let late = |_| WireError::Timeout {
            what: "opening the stream",
            after,
        };
        let mut connection = self.connect().await?;
        let mut response = timeout(after, connection.sender.send_request(request))
            .await
            .map_err(late)?
            .map_err(WireError::Http)?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(if status.is_success() {
                WireError::NotUpgraded { status }
            } else {
                self.refusal(response).await
            });
        }
        let version = response
            .headers()
            .get(VERSION_HEADER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| settings.versions.pick(value));
        let (true, Some(version)) = (is_our_upgrade(response.headers()), version) else {
            return Err(WireError::NotUpgraded { status });
        };
        let upgraded = timeout(after, hyper::upgrade::on(&mut response))
            .await
            .map_err(late)?
            .map_err(WireError::Http)?;
        Ok(FramedStream::start(
            TokioIo::new(upgraded),
            version,
            settings,
            None,
        ))
    }

    async fn for_json<O: DeserializeOwned>(&self, request: Request<Body>) -> Result<O, WireError> {
        let response = self.request(request).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let bytes = self.whole(response, self.0.settings.max_json).await?;
        from_json(&bytes).map_err(WireError::Malformed)
    }

    /// The error that an answer other than success means.
    async fn refusal(&self, response: Response<Incoming>) -> WireError {
        let status = response.status();
        match self.whole(response, MAX_ERROR).await {
            Ok(bytes) => remote_error(status, &bytes),
            // What kind of refusal it was matters more than how its text was lost.
            Err(_) => remote_error(status, b""),
        }
    }

    async fn whole(&self, response: Response<Incoming>, limit: usize) -> Result<Bytes, WireError> {
        let pause = self.0.settings.body_timeout;
        let stated = response
            .headers()
            .get(http::header::CONTENT_LENGTH)
            .cloned();
        collect(response.into_body(), limit, pause)
            .await
            .map_err(|failed| match failed {
                Collect::TooLarge => WireError::Oversize {
                    bytes: stated
                        .and_then(|v| v.to_str().ok()?.parse().ok())
                        .unwrap_or(limit as u64 + 1),
                    limit: limit as u64,
                },
                Collect::Paused => WireError::Timeout {
                    what: "the answer's body",
                    after: pause,
                },
                Collect::Broken(error) => WireError::Io(io::Error::other(error)),
            })
    }

    /// Adds the headers that every request carries.
    fn complete(&self, headers: &mut HeaderMap) {
        headers
            .entry(HOST)
            .or_insert(HeaderValue::from_static(NODE_DNS_NAME));
        headers
            .entry(VERSION_HEADER)
            .or_insert_with(|| self.0.settings.versions.header());
    }

    async fn connect(&self) -> Result<Connection, WireError> {
        let after = self.0.settings.connect_timeout;
        timeout(after, connect::connect(&self.0))
            .await
            .map_err(|_| WireError::Timeout {
                what: "connecting",
                after,
            })?
    }

    /// A kept connection that is free; those past their time are let go.
    fn take_idle(&self) -> Option<Connection> {
        let settings = &self.0.settings;
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| connection.is_fit(settings));
        let place = idle
            .iter()
            .position(|connection| connection.sender.is_ready())?;
        Some(idle.swap_remove(place))
    }

    fn keep(&self, mut connection: Connection) {
        connection.touch();
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.0.settings.max_idle {
            idle.push(connection);
        }
    }
}

fn build(method: Method, path: &str, body: Body) -> Result<Request<Body>, WireError> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(body)
        .map_err(WireError::Request)
}
