//! An edge on a port of its own and upstreams with the manners a test asks for.

use conpaas_edge::{Dial, Edge, EdgeConfig, Https};
use conpaas_model::edge::{
    APPLIED_FILE, Applied, NetworkAccess, ROUTES_FILE, Route, RouteState, Routes, Upstream,
};
use conpaas_model::ids::Generation;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

pub struct Loopback;

#[async_trait::async_trait]
impl Dial for Loopback {
    async fn connect(&self, _: &NetworkAccess, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

/// Waits for a condition, at most ten seconds.
pub async fn wait<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .is_err()
    {
        panic!("waited in vain: {what}");
    }
}

pub struct TestEdge {
    pub address: SocketAddr,
    pub https: Option<SocketAddr>,
    folder: TempDir,
    end: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl TestEdge {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(folder: TempDir) -> Self {
        Self::start_with(folder, None).await
    }

    pub async fn start_with(folder: TempDir, https: Option<Https>) -> Self {
        let mut config = EdgeConfig::new(folder.path().to_owned());
        config.bind = SocketAddr::from(([127, 0, 0, 1], 0));
        config.https = https;
        let edge = Edge::bind(config, Arc::new(Loopback)).unwrap();
        let (address, https) = (edge.address(), edge.https_address());
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(edge.serve(async move {
            let _ = ended.await;
        }));
        Self {
            address,
            https,
            folder,
            end,
            task,
        }
    }

    pub fn write(&self, generation: u64, routes: Vec<Route>) {
        let routes = Routes {
            outlets: Vec::new(),
            generation: Generation(generation),
            routes,
        };
        let beside = self.folder.path().join("new");
        std::fs::write(&beside, serde_json::to_vec(&routes).unwrap()).unwrap();
        std::fs::rename(beside, self.folder.path().join(ROUTES_FILE)).unwrap();
    }

    pub fn applied(&self) -> Applied {
        let text = std::fs::read(self.folder.path().join(APPLIED_FILE)).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub async fn until(&self, holds: impl Fn(&Applied) -> bool) {
        wait("the edge's answer", || async { holds(&self.applied()) }).await;
    }

    pub async fn feed(&self, generation: u64, routes: Vec<Route>) {
        self.write(generation, routes);
        self.until(|applied| applied.generation.0 == generation)
            .await;
    }

    pub async fn stop(self) -> TempDir {
        let _ = self.end.send(());
        self.task.await.unwrap();
        self.folder
    }
}

pub fn shop(state: RouteState, servers: &[&Server]) -> Route {
    Route {
        hosts: vec!["shop-ann.localhost".into()],
        owner: "ann".into(),
        app: "shop".into(),
        service: "web".into(),
        state,
        network: NetworkAccess::Host,
        preview: false,
        upstreams: servers
            .iter()
            .enumerate()
            .map(|(number, server)| Upstream {
                node: format!("web-{number}"),
                address: server.address,
            })
            .collect(),
    }
}

#[derive(Clone, Copy)]
pub enum Answer {
    /// Sends back the request's head and body.
    Echo,
    Text(&'static str),
    TextThenClose(&'static str),
    /// Answers after `tell`.
    WhenTold(&'static str),
    /// Closes without an answer.
    Hang,
    /// One event at once, another after `tell`.
    Events,
    /// Says how many bytes the body had.
    CountBody,
    /// Changes the protocol and sends everything back.
    Tunnel,
}

pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
    told: Notify,
}

impl Server {
    pub async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let inner = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                inner.connections.fetch_add(1, Ordering::SeqCst);
                let inner = inner.clone();
                tokio::spawn(async move {
                    let _ = serve(stream, answer, &inner).await;
                });
            }
        });
        Self { address, shared }
    }

    /// An address where nobody listens.
    pub async fn refusing() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::default(),
        }
    }

    pub fn tell(&self) {
        self.shared.told.notify_one();
    }

    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub async fn requests_reach(&self, count: usize) {
        wait("requests at an upstream", || async {
            self.requests() >= count
        })
        .await;
    }

    pub async fn bytes_reach(&self, count: usize) {
        wait("bytes at an upstream", || async {
            self.shared.bytes.load(Ordering::SeqCst) >= count
        })
        .await;
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, shared: &Shared) -> io::Result<()> {
    loop {
        let mut seen = Vec::new();
        let end = loop {
            if let Some(end) = seen.windows(4).position(|part| part == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut seen).await? == 0 {
                return Ok(());
            }
        };
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let head = String::from_utf8_lossy(&seen[..end]).into_owned();
        let lower = head.to_ascii_lowercase();
        let length = lower
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        let mut body = seen.split_off(end);
        let mut count = body.len();
        shared.bytes.fetch_add(count, Ordering::SeqCst);
        let chunked = lower.contains("transfer-encoding: chunked");
        while count < length.unwrap_or(0) || (chunked && !body.ends_with(b"0\r\n\r\n")) {
            let more = stream.read_buf(&mut body).await?;
            if more == 0 {
                return Ok(());
            }
            count += more;
            shared.bytes.fetch_add(more, Ordering::SeqCst);
            if matches!(answer, Answer::CountBody) {
                body.clear();
            }
        }
        let text = match answer {
            Answer::Echo => head + &String::from_utf8_lossy(&body),
            Answer::Text(text) | Answer::TextThenClose(text) => text.to_owned(),
            Answer::WhenTold(text) => {
                shared.told.notified().await;
                text.to_owned()
            }
            Answer::CountBody => count.to_string(),
            Answer::Hang => return Ok(()),
            Answer::Events => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nb\r\ndata: one\n\n\r\n")
                    .await?;
                shared.told.notified().await;
                stream.write_all(b"b\r\ndata: two\n\n\r\n0\r\n\r\n").await?;
                continue;
            }
            Answer::Tunnel => {
                stream
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                    .await?;
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await?;
                return Ok(());
            }
        };
        let whole = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(whole.as_bytes()).await?;
        if matches!(answer, Answer::TextThenClose(_)) {
            return Ok(());
        }
    }
}

/// Sends a request on a connection of its own and gives back all that comes.
pub async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // An early refusal may close the connection while this still writes.
    let _ = stream.write_all(request.as_bytes()).await;
    read_to_end(&mut stream).await
}

pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let reading =
        async { while matches!(stream.read_buf(&mut all).await, Ok(count) if count > 0) {} };
    tokio::time::timeout(Duration::from_secs(30), reading)
        .await
        .unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads up to the end of an answer's head, and no byte further.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(Duration::from_secs(10), stream.read_u8())
            .await
            .unwrap();
        head.push(byte.unwrap());
    }
    String::from_utf8_lossy(&head).into_owned()
}
