//! One request from its client to an upstream and back: whom to ask, when to ask again, and
//! tunnels for protocols that take over the connection.
//!
//! Asking again never risks doing something twice: a request goes to the next upstream when no
//! connection came about, or when it provably was not sent; one that may have been received is
//! sent once more only if its method is idempotent and it has no body.

use crate::access_log::{AccessLog, Record};
use crate::body::{RequestBody, ResponseBody};
use crate::config::EdgeConfig;
use crate::dial::Dial;
use crate::headers;
use crate::pages::{self, Page};
use crate::table::{Entry, Pick, Table};
use crate::upstream::{Connection, Upstream};
use conpaas_model::edge::RouteState;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::copy_bidirectional;
use tokio::task::JoinSet;

/// How long an upstream that refused a connection is passed over.
const DOWN: Duration = Duration::from_secs(1);

/// Who sends requests over a connection.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: IpAddr,
    /// Whether the connection is encrypted.
    pub secure: bool,
}

/// Handles requests.
pub struct Proxy {
    table: Arc<Table>,
    dial: Arc<dyn Dial>,
    log: AccessLog,
    base_domain: String,
    trusted: Vec<IpAddr>,
    /// The port to send those on to who come without TLS.
    https_instead: Option<u16>,
    body_pause: Duration,
    connect: Duration,
    answer: Duration,
    tunnels: Mutex<JoinSet<()>>,
}

/// A request's head as it goes to upstreams, kept in case it goes to several.
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    upgrade: bool,
}

impl Head {
    /// `preview` says that it came to the preview address.
    fn request(&self, body: RequestBody, preview: bool) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if preview {
            let yes = HeaderValue::from_static("1");
            request.headers_mut().insert(headers::PREVIEW, yes);
        }
        request
    }
}

/// How one attempt at one upstream went wrong.
enum Failed {
    /// No connection came about, or it ended before anything was sent.
    Connect {
        error: io::Error,
        body: RequestBody,
    },
    /// A connection that had waited was just closed by the other side, and nothing was sent.
    NotSent(RequestBody),
    /// It may have been received. `reused` says that the connection had waited before.
    Unknown {
        error: hyper::Error,
        reused: bool,
    },
    /// The client broke off, or paused too long.
    Client,
    TooSlow,
}

impl Proxy {
    pub fn new(
        config: &EdgeConfig,
        https_port: Option<u16>,
        table: Arc<Table>,
        dial: Arc<dyn Dial>,
        log: AccessLog,
    ) -> Self {
        Self {
            table,
            dial,
            log,
            base_domain: config.base_domain.clone(),
            trusted: config.trusted_forwarders.clone(),
            https_instead: https_port
                .filter(|_| config.https.as_ref().is_some_and(|https| https.only)),
            body_pause: Duration::from_secs(config.body_pause_seconds),
            connect: Duration::from_secs(config.connect_seconds),
            answer: Duration::from_secs(config.answer_seconds),
            tunnels: Mutex::default(),
        }
    }

    /// Answers one request of a client.
    pub async fn handle(
        self: &Arc<Self>,
        client: Client,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let asked = request.headers().clone();
        let mut record = Record::new(
            self.log.clone(),
            client.address,
            request.method().clone(),
            request.uri(),
        );
        if *request.method() == Method::CONNECT {
            return own(&Page::NoTunnels, &asked, record);
        }
        let Some(host) = headers::host(request.uri(), request.headers()) else {
            return own(&Page::BadHost, &asked, record);
        };
        record.host(&host);
        let trusted = self.trusted.contains(&client.address.to_canonical());
        if let Some(port) = self.https_instead
            && !client.secure
            && !trusted
        {
            let path = request
                .uri()
                .path_and_query()
                .map_or("/", |path| path.as_str());
            let port = if port == 443 {
                String::new()
            } else {
                format!(":{port}")
            };
            let location = format!("https://{host}{port}{path}");
            return own(
                &Page::Secure {
                    location: &location,
                },
                &asked,
                record,
            );
        }

        let upgrade = headers::wanted_upgrade(request.version(), request.headers());
        let client_side = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let shown = match parts
            .uri
            .authority()
            .map(|authority| authority.as_str().parse())
        {
            Some(Ok(value)) => value,
            _ => parts
                .headers
                .get(HOST)
                .cloned()
                .unwrap_or(HeaderValue::from_static("")),
        };
        headers::towards_upstream(
            &mut parts.headers,
            client.address,
            (trusted, client.secure),
            &shown,
            upgrade.as_ref(),
        );
        let head = Head {
            method: parts.method,
            uri: origin_form(&parts.uri),
            headers: parts.headers,
            upgrade: upgrade.is_some(),
        };
        let body = RequestBody::new(body, self.body_pause);
        self.lead(&host, &head, body, &asked, client_side, record)
            .await
    }

    async fn lead(
        self: &Arc<Self>,
        host: &str,
        head: &Head,
        mut body: RequestBody,
        asked: &HeaderMap,
        client_side: Option<OnUpgrade>,
        mut record: Record,
    ) -> Response<ResponseBody> {
        let repeatable = headers::idempotent(&head.method) && body.is_empty() && !head.upgrade;
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut sent_again = false;
        let mut fresh = head.upgrade;
        loop {
            let (entry, lease) = match self.table.pick(host, &tried, Instant::now()) {
                Pick::Upstream(entry, lease) => (entry, lease),
                Pick::UnknownHost => {
                    return own(
                        &Page::UnknownHost {
                            base_domain: &self.base_domain,
                        },
                        asked,
                        record,
                    );
                }
                Pick::NotServing(entry) => return own(&not_serving(&entry), asked, record),
                Pick::Exhausted(entry) => {
                    let app = &entry.route.app;
                    let page = if sent_again {
                        Page::Broken { app }
                    } else {
                        Page::Unreachable { app }
                    };
                    return own(&page, asked, record);
                }
            };
            let upstream = lease.upstream().clone();
            let app = &entry.route.app;
            record.goes_to(app, &entry.route.service, lease);
            let failed = match self
                .attempt(
                    &upstream,
                    head,
                    (body, entry.route.preview),
                    repeatable,
                    fresh,
                )
                .await
            {
                Ok(response) => return self.answer(response, client_side, record),
                Err(failed) => failed,
            };
            record.let_go();
            match failed {
                Failed::Connect { error, body: back } => {
                    tracing::warn!(node = upstream.node(), %error, "no connection to an upstream");
                    upstream.mark_down(Instant::now() + DOWN);
                    tried.push(upstream.address());
                    body = back;
                }
                Failed::NotSent(back) => {
                    fresh = true;
                    body = back;
                }
                Failed::Unknown { error, reused } if repeatable && !sent_again => {
                    tracing::debug!(node = upstream.node(), %error, "asking once more");
                    (sent_again, fresh) = (true, true);
                    // One that breaks off a fresh connection is not asked a second time.
                    if !reused {
                        tried.push(upstream.address());
                    }
                    body = RequestBody::Empty;
                }
                Failed::Client => return own(&Page::ClientStopped, asked, record),
                Failed::Unknown { error, .. } => {
                    tracing::warn!(node = upstream.node(), %error, "an upstream broke off");
                    return own(&Page::Broken { app }, asked, record);
                }
                Failed::TooSlow => return own(&Page::TooSlow { app }, asked, record),
            }
        }
    }

    /// Sends a request over a waiting or a fresh connection, and waits for the answer's head.
    async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        head: &Head,
        (body, preview): (RequestBody, bool),
        repeatable: bool,
        fresh: bool,
    ) -> Result<Response<Incoming>, Failed> {
        let waiting = if fresh {
            None
        } else {
            upstream.take_idle(repeatable)
        };
        let reused = waiting.is_some();
        let mut connection = match waiting {
            Some(connection) => connection,
            None => match self.connect(upstream).await {
                Ok(connection) => connection,
                Err(error) => return Err(Failed::Connect { error, body }),
            },
        };
        let progress = body.progress();
        let sending = connection.try_send_request(head.request(body, preview));
        // Only silence counts: a long upload may take as long as it moves.
        let silence = async {
            loop {
                let deadline = progress.last() + self.answer;
                if deadline <= Instant::now() {
                    break;
                }
                tokio::time::sleep_until(deadline.into()).await;
            }
        };
        let outcome = tokio::select! {
            outcome = sending => outcome,
            () = silence => return Err(Failed::TooSlow),
        };
        match outcome {
            Ok(response) => {
                if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let upstream = upstream.clone();
                    tokio::spawn(async move {
                        // Ready again when request and answer have passed as a whole.
                        if connection.ready().await.is_ok() {
                            upstream.give_idle(connection);
                        }
                    });
                }
                Ok(response)
            }
            Err(mut failed) => match failed.take_message() {
                Some(request) if reused => Err(Failed::NotSent(request.into_body())),
                Some(request) => {
                    let error = io::Error::other(failed.into_error());
                    Err(Failed::Connect {
                        error,
                        body: request.into_body(),
                    })
                }
                None => {
                    let error = failed.into_error();
                    let clients = error.is_user() || progress.client_failed();
                    Err(if clients {
                        Failed::Client
                    } else {
                        Failed::Unknown { error, reused }
                    })
                }
            },
        }
    }

    async fn connect(&self, upstream: &Arc<Upstream>) -> io::Result<Connection> {
        let dialing = self.dial.connect(upstream.network(), upstream.address());
        let stream = tokio::time::timeout(self.connect, dialing)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "a connection to an upstream ended early");
            }
        });
        upstream.mark_up();
        Ok(connection)
    }

    /// Passes an upstream's answer on.
    fn answer(
        &self,
        mut response: Response<Incoming>,
        client_side: Option<OnUpgrade>,
        mut record: Record,
    ) -> Response<ResponseBody> {
        record.status(response.status());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut parts, body) = response.into_parts();
            headers::strip_hop_by_hop(&mut parts.headers);
            // How the upstream speaks to us says nothing about how we speak to the client.
            parts.version = Version::HTTP_11;
            parts.extensions = http::Extensions::new();
            return Response::from_parts(parts, ResponseBody::upstream(body, record));
        }
        let Some(client_side) = client_side else {
            tracing::warn!("an upstream changed the protocol although nobody asked");
            return own(
                &Page::Broken {
                    app: "This application",
                },
                &HeaderMap::new(),
                record,
            );
        };
        let upstream_side = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(UPGRADE).cloned();
        let mut headers = std::mem::take(response.headers_mut());
        headers::strip_hop_by_hop(&mut headers);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            headers.insert(UPGRADE, protocol);
        }
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        while tunnels.try_join_next().is_some() {}
        tunnels.spawn(tunnel(client_side, upstream_side, record));
        drop(tunnels);
        let mut switched = Response::new(ResponseBody::own("", None));
        *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *switched.headers_mut() = headers;
        switched
    }

    /// Returns when no tunnel is open; dropped earlier, it closes those that are.
    pub async fn tunnels_ended(&self) {
        let mut tunnels = self.take_tunnels();
        while tunnels.join_next().await.is_some() {}
    }

    /// Closes all tunnels.
    pub async fn end_tunnels(&self) {
        self.take_tunnels().shutdown().await;
    }

    fn take_tunnels(&self) -> JoinSet<()> {
        std::mem::take(&mut *self.tunnels.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Carries bytes both ways until both sides have ended.
async fn tunnel(client: OnUpgrade, upstream: OnUpgrade, mut record: Record) {
    let (client, upstream) = match tokio::try_join!(client, upstream) {
        Ok(sides) => sides,
        Err(error) => {
            tracing::debug!(%error, "a tunnel did not come about");
            record.broke_off();
            return;
        }
    };
    match copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(upstream)).await {
        Ok((_, down)) => record.add_bytes(down),
        Err(error) => {
            tracing::debug!(%error, "a tunnel broke off");
            record.broke_off();
        }
    }
}

fn not_serving(entry: &Entry) -> Page<'_> {
    let app = &entry.route.app;
    match entry.route.state {
        RouteState::Starting => Page::Starting { app },
        RouteState::Stopped => Page::Stopped { app },
        RouteState::Serving | RouteState::NoBackends => Page::NoBackends { app },
    }
}

/// The target as a server (not a proxy) is asked for it.
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query()
        .map_or_else(|| Uri::from_static("/"), |target| Uri::from(target.clone()))
}

fn own(page: &Page<'_>, asked: &HeaderMap, mut record: Record) -> Response<ResponseBody> {
    let response = pages::answer(page, asked);
    record.status(response.status());
    response.map(|text| ResponseBody::own(text, Some(record)))
}
