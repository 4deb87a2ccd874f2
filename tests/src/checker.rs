//! The checker: a load of many kinds at once, over an HTTP client of its own that knows the
//! difference between a request that was lost and one that raced with a closing connection. It
//! verifies status, whole body, version and session counter of every reply, and only counts.

use crate::checker_site::{EVENTS, static_file};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// What one client does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A page, over a connection that is kept.
    Page,
    /// A page that only the front controller answers, over a new connection each time.
    Fresh,
    /// A static file of the archive.
    File,
    /// A small body that is to be hashed.
    Post,
    /// A page that takes so many seconds.
    Slow(u64),
    /// 20 MB that are to be hashed.
    Upload,
    /// Server-sent events, all of them and in order.
    Stream,
    /// A page that counts in a session.
    Session,
}

/// Bytes of a large upload.
const UPLOAD: usize = 20 << 20;
/// No reply takes longer than this beyond what its page takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bad ones that are told in words.
const REASONS: usize = 40;

impl Kind {
    /// Time between two requests of one client.
    fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::Page | Self::Fresh => 20,
            Self::File | Self::Post | Self::Session => 40,
            Self::Slow(_) => 100,
            Self::Upload | Self::Stream => 1000,
        })
    }
}

/// Counts of one kind in one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub sent: usize,
    /// Bad status, bad or short body, reset, refused, too slow.
    pub lost: usize,
    /// A kept connection was closed while the request was on its way.
    pub raced: usize,
    /// An older version after a newer one.
    pub stepped_back: usize,
    /// Two versions in one reply.
    pub mixed: usize,
    /// A session's counter that is not one more than before.
    pub miscounted: usize,
}

impl Count {
    /// All that must not be.
    pub fn bad(&self) -> usize {
        self.lost + self.raced + self.stepped_back + self.mixed + self.miscounted
    }
}

/// What came of the load.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By phase (in order) and kind.
    pub counts: Vec<(String, BTreeMap<Kind, Count>)>,
    /// The first bad ones in words.
    pub reasons: Vec<String>,
}

impl Tally {
    fn count(&mut self, phase: usize, kind: Kind) -> &mut Count {
        self.counts[phase].1.entry(kind).or_default()
    }

    /// All together.
    pub fn total(&self) -> Count {
        let all = self.counts.iter().flat_map(|(_, kinds)| kinds.values());
        all.fold(Count::default(), |sum, one| Count {
            sent: sum.sent + one.sent,
            lost: sum.lost + one.lost,
            raced: sum.raced + one.raced,
            stepped_back: sum.stepped_back + one.stepped_back,
            mixed: sum.mixed + one.mixed,
            miscounted: sum.miscounted + one.miscounted,
        })
    }

    /// All of one kind together.
    pub fn of(&self, kind: Kind) -> usize {
        let counts = self.counts.iter().filter_map(|(_, kinds)| kinds.get(&kind));
        counts.map(|count| count.sent).sum()
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (phase, kinds) in &self.counts {
            let _ = write!(text, "{phase}:");
            for (kind, count) in kinds {
                let _ = write!(text, " {kind:?} {}/{}", count.bad(), count.sent);
            }
            text.push('\n');
        }
        let total = self.total();
        let _ = writeln!(text, "in all: {total:?}");
        for reason in &self.reasons {
            let _ = writeln!(text, "  {reason}");
        }
        text
    }
}

struct Shared {
    port: u16,
    host: String,
    stop: AtomicBool,
    in_flight: AtomicUsize,
    begun: Instant,
    tally: Mutex<Tally>,
    upload: (Bytes, String),
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running load.
pub struct Checker {
    shared: Arc<Shared>,
    thread: std::thread::JoinHandle<()>,
}

impl Checker {
    /// Starts so many clients of each kind against the application at `host`.
    pub fn start(port: u16, host: &str, clients: &[(Kind, usize)]) -> Self {
        let body: Vec<u8> = (0..UPLOAD)
            .map(|at| u8::try_from((at * 31 + at / 4096) % 251).unwrap())
            .collect();
        let hash = hex(&body);
        let shared = Arc::new(Shared {
            port,
            host: host.to_owned(),
            stop: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            begun: Instant::now(),
            tally: Mutex::new(Tally {
                counts: vec![("at rest".into(), BTreeMap::new())],
                reasons: vec![],
            }),
            upload: (body.into(), hash),
        });
        let all: Vec<Kind> = clients
            .iter()
            .flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count))
            .collect();
        let given = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let mut tasks = tokio::task::JoinSet::new();
                for kind in all {
                    tasks.spawn(Client::new(given.clone(), kind).run());
                }
                while let Some(ended) = tasks.join_next().await {
                    ended.unwrap();
                }
            });
        });
        Self { shared, thread }
    }

    /// From now on requests count for this phase.
    pub fn phase(&self, name: &str) {
        let mut tally = self.shared.tally();
        tally.counts.push((name.to_owned(), BTreeMap::new()));
    }

    /// How many requests were answered well since the phase began.
    pub fn good(&self) -> usize {
        let tally = self.shared.tally();
        let (_, kinds) = tally.counts.last().unwrap();
        kinds.values().map(|count| count.sent - count.bad()).sum()
    }

    /// How many requests wait for their reply.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Ends the load when all that was sent has been answered.
    pub fn finish(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.shared.tally().clone()
    }
}

/// How one request went wrong.
enum Bad {
    Lost(String),
    Raced(String),
    SteppedBack(String),
    Mixed(String),
    Miscounted(String),
}

/// A reply's version, and what else it is to say.
struct Said {
    version: u64,
    last: u64,
}

/// One client: a person with a browser, who keeps cookies.
struct Client {
    shared: Arc<Shared>,
    kind: Kind,
    cookies: BTreeMap<String, String>,
    kept: Option<SendRequest<Full<Bytes>>>,
    newest: u64,
    turn: u64,
    counter: u64,
}

impl Client {
    fn new(shared: Arc<Shared>, kind: Kind) -> Self {
        Self {
            shared,
            kind,
            cookies: BTreeMap::new(),
            kept: None,
            newest: 0,
            turn: 0,
            counter: 0,
        }
    }

    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.turn += 1;
            let phase = self.shared.tally().counts.len() - 1;
            self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
            let reply = self.once().await;
            self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
            let outcome = match reply {
                Ok(said) if said.last != said.version => {
                    Err(Bad::Mixed(format!("{} and {}", said.version, said.last)))
                }
                Ok(said) if said.version < self.newest => Err(Bad::SteppedBack(format!(
                    "{} after {}",
                    said.version, self.newest
                ))),
                Ok(said) => {
                    self.newest = said.version;
                    Ok(())
                }
                Err(bad) => Err(bad),
            };
            self.record(phase, outcome);
            tokio::time::sleep(self.kind.pause()).await;
        }
    }

    fn record(&mut self, phase: usize, outcome: Result<(), Bad>) {
        let mut tally = self.shared.tally();
        let count = tally.count(phase, self.kind);
        count.sent += 1;
        let Err(bad) = outcome else { return };
        let (slot, what, why) = match bad {
            Bad::Lost(why) => (&mut count.lost, "lost", why),
            Bad::Raced(why) => (&mut count.raced, "raced", why),
            Bad::SteppedBack(why) => (&mut count.stepped_back, "stepped back", why),
            Bad::Mixed(why) => (&mut count.mixed, "mixed", why),
            Bad::Miscounted(why) => (&mut count.miscounted, "miscounted", why),
        };
        *slot += 1;
        if tally.reasons.len() < REASONS {
            let since = self.shared.begun.elapsed().as_millis();
            let (name, _) = &tally.counts[phase];
            let reason = format!("{since} ms, {name}, {:?} {what}: {why}", self.kind);
            tally.reasons.push(reason);
        }
    }

    /// One request and what its reply says.
    async fn once(&mut self) -> Result<Said, Bad> {
        let none = Bytes::new();
        match self.kind {
            Kind::Page => page(&self.get("/", none).await?),
            Kind::Fresh => {
                let path = format!("/front/{}", self.turn);
                let body = self.get(&path, none).await?;
                let value = json(&body)?;
                if value["path"] != path.as_str() {
                    return Err(Bad::Lost(format!("{path} answered for {}", value["path"])));
                }
                page(&body)
            }
            Kind::File => {
                let body = self.get("/files/static.txt", none).await?;
                let text = String::from_utf8_lossy(&body);
                let version: u64 = text
                    .split(' ')
                    .next()
                    .and_then(|word| word.parse().ok())
                    .ok_or_else(|| Bad::Lost(format!("no static file: {}", short(&body))))?;
                if text != static_file(version) {
                    return Err(Bad::Lost("a static file that is not whole".into()));
                }
                Ok(Said {
                    version,
                    last: version,
                })
            }
            Kind::Slow(seconds) => {
                let path = format!("/slow.php?s={seconds}");
                said(&json(&self.get(&path, none).await?)?)
            }
            Kind::Post => {
                let body = Bytes::from(format!("{} {}", self.turn, "y".repeat(2000)));
                let hash = hex(&body);
                self.hashed(body, &hash).await
            }
            Kind::Upload => {
                let (body, hash) = self.shared.upload.clone();
                self.hashed(body, &hash).await
            }
            Kind::Stream => {
                let body = self.get("/stream.php", none).await?;
                let text = String::from_utf8_lossy(&body);
                let events: Vec<&str> = text.split("\n\n").filter(|e| !e.is_empty()).collect();
                let mut version = None;
                for (at, event) in events.iter().enumerate() {
                    let (id, data) = event.split_once("\ndata: ").unwrap_or_default();
                    if id != format!("id: {at}") || version.is_some_and(|v| v != data) {
                        return Err(Bad::Lost(format!("event {at} is {event}")));
                    }
                    version = Some(data);
                }
                let version = version.and_then(|v| v.parse().ok()).unwrap_or(0);
                if events.len() != EVENTS {
                    return Err(Bad::Lost(format!("{} events", events.len())));
                }
                Ok(Said {
                    version,
                    last: version,
                })
            }
            Kind::Session => {
                let value = json(&self.get("/count.php", none).await?)?;
                let n = value["n"].as_u64().unwrap_or(0);
                let before = std::mem::replace(&mut self.counter, n);
                if n != before + 1 {
                    return Err(Bad::Miscounted(format!("{n} after {before}")));
                }
                said(&value)
            }
        }
    }

    async fn hashed(&mut self, body: Bytes, hash: &str) -> Result<Said, Bad> {
        let value = json(&self.exchange(Method::POST, "/hash.php", body).await?)?;
        if value["hash"] != hash || value["method"] != "POST" {
            return Err(Bad::Lost(format!("what was sent did not arrive: {value}")));
        }
        said(&value)
    }

    async fn get(&mut self, path: &str, body: Bytes) -> Result<Bytes, Bad> {
        self.exchange(Method::GET, path, body).await
    }

    /// Sends a request and gives the whole body of a good reply.
    async fn exchange(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Bad> {
        let page_takes = match self.kind {
            Kind::Slow(seconds) => Duration::from_secs(seconds),
            _ => Duration::ZERO,
        };
        let limit = PATIENCE + page_takes;
        tokio::time::timeout(limit, self.exchange_at_leisure(method, path, body))
            .await
            .unwrap_or_else(|_| {
                self.kept = None;
                Err(Bad::Lost(format!("no whole reply within {limit:?}")))
            })
    }

    async fn exchange_at_leisure(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, Bad> {
        // A connection that is known to be closed is not used again; as in a browser.
        let mut kept = self.kept.take().filter(|sender| !sender.is_closed());
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let reused = kept.is_some();
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let sent = sender
            .send_request(self.request(&method, path, &body))
            .await;
        let response = match sent {
            // Nothing of it was sent: no client would show that to anybody.
            Err(error) if reused && error.is_canceled() => {
                sender = self.connect().await?;
                sender
                    .send_request(self.request(&method, path, &body))
                    .await
                    .map_err(|error| Bad::Lost(format!("no reply: {error:?}")))?
            }
            Err(error) if reused => return Err(Bad::Raced(format!("{error:?}"))),
            other => other.map_err(|error| Bad::Lost(format!("no reply: {error:?}")))?,
        };
        let status = response.status();
        for given in response.headers().get_all("set-cookie") {
            let given = given.to_str().unwrap_or_default();
            if let Some((name, value)) = given.split(';').next().and_then(|c| c.split_once('=')) {
                self.cookies.insert(name.trim().into(), value.into());
            }
        }
        let collected = response.into_body().collect().await;
        let body = collected
            .map_err(|error| Bad::Lost(format!("{status}, and its body broke off: {error:?}")))?
            .to_bytes();
        if status != StatusCode::OK {
            return Err(Bad::Lost(format!("{status}: {}", short(&body))));
        }
        if self.kind != Kind::Fresh {
            self.kept = Some(sender);
        }
        Ok(body)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Bad> {
        let failed = |error: String| Bad::Lost(format!("no connection: {error}"));
        let stream = TcpStream::connect(("127.0.0.1", self.shared.port))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.to_string()))?;
        // Its errors come out at the request, too.
        tokio::spawn(driver);
        Ok(sender)
    }

    fn request(&self, method: &Method, path: &str, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.shared.host);
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request = request.header("cookie", pairs.join("; "));
        }
        if self.kind == Kind::Fresh {
            request = request.header("connection", "close");
        }
        request.body(Full::new(body.clone())).unwrap()
    }
}

fn short(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(200).collect()
}

fn hex(body: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(body) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn json(body: &[u8]) -> Result<Value, Bad> {
    serde_json::from_slice(body)
        .map_err(|error| Bad::Lost(format!("no JSON ({error}): {}", short(body))))
}

fn said(value: &Value) -> Result<Said, Bad> {
    match (value["version"].as_u64(), value["last"].as_u64()) {
        (Some(version), Some(last)) => Ok(Said { version, last }),
        _ => Err(Bad::Lost(format!("a reply without a version: {value}"))),
    }
}

fn page(body: &[u8]) -> Result<Said, Bad> {
    let value = json(body)?;
    if value["fill"].as_str().map(str::len) != Some(3000) {
        return Err(Bad::Lost(format!("not the whole page: {}", short(body))));
    }
    said(&value)
}
