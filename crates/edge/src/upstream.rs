//! One upstream: its connections that wait for work, what it has in flight, and whether it
//! refused a connection a moment ago.

use crate::body::RequestBody;
use conpaas_model::edge::{Draining, NetworkAccess};
use hyper::client::conn::http1::SendRequest;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a connection may wait before nobody uses it any more. Proxies close theirs later,
/// so that the two sides seldom meet over a closing connection.
const IDLE: Duration = Duration::from_secs(4);
/// The same for requests that must not be sent twice.
const IDLE_FOR_UNREPEATABLE: Duration = Duration::from_millis(500);
const MOST_IDLE: usize = 256;

/// A connection that is ready for a request.
pub type Connection = SendRequest<RequestBody>;

struct Idle {
    connection: Connection,
    since: Instant,
}

/// One place that answers.
pub struct Upstream {
    node: String,
    network: NetworkAccess,
    address: SocketAddr,
    idle: Mutex<Vec<Idle>>,
    in_flight: AtomicU64,
    removed: AtomicBool,
    down_until: Mutex<Option<Instant>>,
    changed: Arc<Notify>,
}

impl Upstream {
    pub fn new(
        node: String,
        network: NetworkAccess,
        address: SocketAddr,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            node,
            network,
            address,
            idle: Mutex::default(),
            in_flight: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            down_until: Mutex::default(),
            changed,
        }
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    pub fn network(&self) -> &NetworkAccess {
        &self.network
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn key(&self) -> (NetworkAccess, SocketAddr) {
        (self.network.clone(), self.address)
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// It is (again) in force.
    pub fn keep(&self) {
        self.removed.store(false, Ordering::Release);
    }

    /// It gets no more requests; connections that wait are closed.
    pub fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    pub fn draining(&self) -> Option<Draining> {
        let in_flight = self.in_flight();
        (in_flight > 0).then(|| Draining {
            node: self.node.clone(),
            network: self.network.clone(),
            address: self.address,
            in_flight,
        })
    }

    pub fn is_up(&self, now: Instant) -> bool {
        let down_until = self
            .down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        down_until.is_none_or(|until| until <= now)
    }

    pub fn mark_down(&self, until: Instant) {
        *self
            .down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    pub fn mark_up(&self) {
        *self
            .down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A waiting connection that still looks sound; the one used last, so that others may end.
    pub fn take_idle(&self, repeatable: bool) -> Option<Connection> {
        let limit = if repeatable {
            IDLE
        } else {
            IDLE_FOR_UNREPEATABLE
        };
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|one| one.connection.is_ready() && now.duration_since(one.since) < IDLE);
        let young = idle
            .last()
            .is_some_and(|one| now.duration_since(one.since) < limit);
        if young {
            idle.pop().map(|one| one.connection)
        } else {
            None
        }
    }

    /// Keeps a connection for a later request.
    pub fn give_idle(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock, so that `remove` cannot pass in between.
        if !self.removed.load(Ordering::Acquire) && idle.len() < MOST_IDLE {
            idle.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }
}

/// Counts one request or tunnel at an upstream for as long as it lives.
pub struct Lease(Arc<Upstream>);

impl Lease {
    pub fn take(upstream: Arc<Upstream>) -> Self {
        upstream.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(upstream)
    }

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.0.removed.load(Ordering::Acquire) {
            self.0.changed.notify_one();
        }
    }
}
