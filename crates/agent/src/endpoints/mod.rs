//! Node-local endpoints: behind each fixed loopback address a proxy that leads connections to
//! whoever the level names, holds them while there is nobody, and keeps or cuts what is open
//! when that changes. Which endpoints there are, a level says; names are `resolver`'s.

mod resend;
mod resolver;

pub use resolver::{Names, serve as serve_names};

use conpaas_core::agent::Held;
use conpaas_core::endpoint::{Loopback, RESOLVER};
use conpaas_core::role_agent::RoleAgents;
use conpaas_model::level::{EndpointLevel, Instance, OnChange, Provider};
use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Connections of one endpoint side by side; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 1024;
/// How long a target may take to accept.
const CONNECT: Duration = Duration::from_secs(1);
/// Pause after all targets refused.
const AGAIN: Duration = Duration::from_millis(50);
/// Pause until an address that is taken is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// The part of a node's own network that its agent serves.
#[derive(Clone, Copy, Debug)]
pub struct LocalNet {
    pub loopback: Loopback,
    /// Where names are answered for.
    pub resolver: SocketAddrV4,
}

impl Default for LocalNet {
    fn default() -> Self {
        Self {
            loopback: Loopback::default(),
            resolver: RESOLVER,
        }
    }
}

/// All endpoints of a node; they end when it is dropped.
pub struct Endpoints {
    loopback: Loopback,
    names: Names,
    open: BTreeMap<String, Endpoint>,
    counts: Counts,
}

/// Open connections, counted where they begin and end.
type Counts = Arc<Mutex<Held>>;

struct Endpoint {
    level: watch::Sender<EndpointLevel>,
    task: JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoints {
    pub fn new(loopback: Loopback) -> Self {
        Self {
            loopback,
            names: Names::default(),
            open: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// The names of these endpoints, always as they are now.
    pub fn names(&self) -> Names {
        self.names.clone()
    }

    /// Leads consumers so from now on: when it returns, no new connection goes to anybody else.
    /// The type knows how its questions are asked again.
    pub fn lead(
        &mut self,
        wanted: &BTreeMap<String, EndpointLevel>,
        agents: Option<&'static dyn RoleAgents>,
    ) {
        self.open.retain(|name, _| wanted.contains_key(name));
        for (name, level) in wanted {
            let mut level = level.clone();
            level.listen = self.loopback.place(level.listen);
            match self.open.get(name) {
                Some(open) if open.level.borrow().listen == level.listen => {
                    open.level.send_if_modified(|now| {
                        let differs = *now != level;
                        *now = level;
                        differs
                    });
                }
                _ => {
                    // The old listener must be gone before its place is taken again.
                    self.open.remove(name);
                    let (sender, seen) = watch::channel(level);
                    let counts = Arc::clone(&self.counts);
                    let task = tokio::spawn(run(name.clone(), seen, counts, agents));
                    let endpoint = Endpoint {
                        level: sender,
                        task,
                    };
                    self.open.insert(name.clone(), endpoint);
                }
            }
        }
        self.names.set(
            self.open
                .iter()
                .map(|(name, open)| (name.clone(), *open.level.borrow().listen.ip()))
                .collect(),
        );
    }

    /// To whom how many connections are open.
    pub fn held(&self) -> Held {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn run(
    name: String,
    level: watch::Receiver<EndpointLevel>,
    counts: Counts,
    agents: Option<&'static dyn RoleAgents>,
) {
    let at = level.borrow().listen;
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(SocketAddr::V4(at)).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !told {
                    tracing::warn!(endpoint = name, %at, %error, "an endpoint cannot listen yet");
                    told = true;
                }
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        }
    };
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let turn = Arc::new(AtomicUsize::new(0));
    let name: Arc<str> = name.into();
    // Connections end with the endpoint.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Descriptors are short, most likely: some will be given back.
                tracing::warn!(endpoint = &*name, %error, "an endpoint cannot accept");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let connection = Connection {
            endpoint: Arc::clone(&name),
            level: level.clone(),
            counts: Arc::clone(&counts),
            turn: Arc::clone(&turn),
            agents,
        };
        connections.spawn(async move {
            connection.serve(client).await;
            drop(place);
        });
    }
}

struct Connection {
    endpoint: Arc<str>,
    level: watch::Receiver<EndpointLevel>,
    counts: Counts,
    turn: Arc<AtomicUsize>,
    agents: Option<&'static dyn RoleAgents>,
}

impl Connection {
    async fn serve(mut self, mut client: TcpStream) {
        if self.level.borrow().on_change == OnChange::Resend {
            return resend::serve(self, client).await;
        }
        let Some((mut server, target, _counted)) = self.reach(&client).await else {
            return;
        };
        // Questions and answers are small: none should wait for the next.
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let cut = async {
            let must_end = |level: &EndpointLevel| {
                level.on_change == OnChange::Cut && !level.targets.contains(&target)
            };
            // The endpoint itself ends its connections when it goes.
            if self.level.wait_for(must_end).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            // Ends of connections, in whatever way, are both sides' own business.
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            () = cut => {}
        }
    }

    /// A connection to one of the targets; held until one is to be had, or the client gives up.
    async fn reach(&mut self, client: &TcpStream) -> Option<(TcpStream, Provider, Counted)> {
        let hold = Duration::from_secs(self.level.borrow().hold_seconds.into());
        let deadline = Instant::now() + hold;
        loop {
            let targets = self.level.borrow_and_update().targets.clone();
            let first = self.turn.fetch_add(1, Ordering::Relaxed);
            for at in 0..targets.len() {
                let target = &targets[(first.wrapping_add(at)) % targets.len()];
                // Counted before it connects: whoever is told to let go must not miss it.
                let counted = Counted::new(&self.counts, &self.endpoint, target.instance());
                if !self.level.borrow().targets.contains(target) {
                    break;
                }
                let dial = TcpStream::connect((target.address, target.port));
                if let Ok(Ok(server)) = tokio::time::timeout(CONNECT, dial).await
                    && self.level.borrow().targets.contains(target)
                {
                    return Some((server, target.clone(), counted));
                }
            }
            if has_gone(client).await {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return None,
                changed = self.level.changed() => changed.ok()?,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

/// Whether a client that is held has closed its end (one that has sent something is taken to
/// wait for the answer).
async fn has_gone(client: &TcpStream) -> bool {
    let mut byte = [0u8; 1];
    let peeked = tokio::time::timeout(Duration::ZERO, client.peek(&mut byte)).await;
    matches!(peeked, Ok(Ok(0) | Err(_)))
}

/// One open connection to an instance.
struct Counted {
    counts: Counts,
    endpoint: Arc<str>,
    instance: Instance,
}

impl Counted {
    fn new(counts: &Counts, endpoint: &Arc<str>, instance: Instance) -> Self {
        *counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(endpoint.to_string())
            .or_default()
            .entry(instance.clone())
            .or_default() += 1;
        Self {
            counts: Arc::clone(counts),
            endpoint: Arc::clone(endpoint),
            instance,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(instances) = counts.get_mut(&*self.endpoint) else {
            return;
        };
        if let Some(count) = instances.get_mut(&self.instance) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                instances.remove(&self.instance);
            }
        }
        if instances.is_empty() {
            counts.remove(&*self.endpoint);
        }
    }
}

#[cfg(test)]
mod tests;
