//! The routes in force: which host name leads where, whom to ask next, and what removed
//! upstreams still have to finish.

use crate::upstream::{Lease, Upstream};
use conpaas_model::edge::{Draining, NetworkAccess, Route, RouteState, Routes};
use conpaas_model::ids::Generation;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;
use tokio::sync::Notify;

/// A route with its living upstreams.
pub struct Entry {
    pub route: Route,
    upstreams: Vec<Arc<Upstream>>,
    turn: AtomicUsize,
}

/// Where a request may go.
pub enum Pick {
    UnknownHost,
    /// The route leads nowhere now; its state says why.
    NotServing(Arc<Entry>),
    /// Everyone was tried already.
    Exhausted(Arc<Entry>),
    Upstream(Arc<Entry>, Lease),
}

/// What became of routes that were offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer {
    Applied,
    /// The very generation in force.
    Same,
    /// Older than what is in force: refused.
    Stale {
        in_force: Generation,
    },
}

type Key = (NetworkAccess, SocketAddr);

#[derive(Default)]
struct Inner {
    generation: Generation,
    hosts: HashMap<String, Arc<Entry>>,
    upstreams: HashMap<Key, Arc<Upstream>>,
    removed: Vec<Arc<Upstream>>,
}

/// The routes in force, shared by all connections.
#[derive(Default)]
pub struct Table {
    // Leases are taken under the read lock and routes change under the write lock: after a
    // change nobody can begin a request at an upstream that it removed.
    inner: RwLock<Inner>,
    /// Told when routes changed or a removed upstream finished a request.
    pub changed: Arc<Notify>,
}

/// Whether an offered generation is to be taken.
fn decide(in_force: Generation, offered: Generation) -> Offer {
    match offered.cmp(&in_force) {
        std::cmp::Ordering::Greater => Offer::Applied,
        std::cmp::Ordering::Equal => Offer::Same,
        std::cmp::Ordering::Less => Offer::Stale { in_force },
    }
}

impl Table {
    /// Takes routes if they are newer than those in force.
    pub fn offer(&self, routes: Routes) -> Offer {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let verdict = decide(inner.generation, routes.generation);
        if verdict != Offer::Applied {
            return verdict;
        }
        let mut before = std::mem::take(&mut inner.upstreams);
        // One that comes back keeps counting what it never finished.
        for upstream in inner.removed.drain(..) {
            before.insert(upstream.key(), upstream);
        }
        let mut now: HashMap<Key, Arc<Upstream>> = HashMap::new();
        let mut hosts = HashMap::new();
        for route in routes.routes {
            let upstreams = route
                .upstreams
                .iter()
                .map(|wanted| {
                    let key = (route.network.clone(), wanted.address);
                    let upstream = now.entry(key.clone()).or_insert_with(|| {
                        before.remove(&key).unwrap_or_else(|| {
                            Arc::new(Upstream::new(
                                wanted.node.clone(),
                                key.0,
                                key.1,
                                self.changed.clone(),
                            ))
                        })
                    });
                    upstream.keep();
                    upstream.clone()
                })
                .collect();
            let names = route.hosts.clone();
            let entry = Arc::new(Entry {
                route,
                upstreams,
                turn: AtomicUsize::new(0),
            });
            for name in names {
                hosts.insert(name.to_ascii_lowercase(), entry.clone());
            }
        }
        inner.removed = before.into_values().collect();
        for upstream in &inner.removed {
            upstream.remove();
        }
        inner.removed.retain(|upstream| upstream.in_flight() > 0);
        inner.hosts = hosts;
        inner.upstreams = now;
        inner.generation = routes.generation;
        drop(inner);
        self.changed.notify_one();
        Offer::Applied
    }

    /// The networks of the upstreams in force.
    pub fn networks(&self) -> HashSet<NetworkAccess> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner
            .upstreams
            .keys()
            .map(|(network, _)| network.clone())
            .collect()
    }

    /// The generation in force, and removed upstreams that still have requests.
    pub fn status(&self) -> (Generation, Vec<Draining>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.removed.retain(|upstream| upstream.in_flight() > 0);
        let mut draining: Vec<Draining> = inner
            .removed
            .iter()
            .filter_map(|upstream| upstream.draining())
            .collect();
        draining.sort_by(|a, b| (&a.node, a.address).cmp(&(&b.node, b.address)));
        (inner.generation, draining)
    }

    /// Chooses whom to ask: in turn, passing over who was tried and, while there are others, who
    /// refused a connection a moment ago.
    pub fn pick(&self, host: &str, tried: &[SocketAddr], now: Instant) -> Pick {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = inner.hosts.get(host).cloned() else {
            return Pick::UnknownHost;
        };
        if entry.route.state != RouteState::Serving || entry.upstreams.is_empty() {
            return Pick::NotServing(entry);
        }
        let count = entry.upstreams.len();
        let first = entry.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..count)
            .filter_map(|step| entry.upstreams.get(first.wrapping_add(step) % count))
            .filter(|upstream| !tried.contains(&upstream.address()));
        let mut second_best = None;
        let mut chosen = None;
        for upstream in in_turn {
            if upstream.is_up(now) {
                chosen = Some(upstream);
                break;
            }
            second_best = second_best.or(Some(upstream));
        }
        match chosen.or(second_best) {
            Some(upstream) => {
                let lease = Lease::take(upstream.clone());
                Pick::Upstream(entry, lease)
            }
            None => Pick::Exhausted(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::edge::Upstream as Wanted;
    use std::time::Duration;

    fn routes(generation: u64, ports: &[u16]) -> Routes {
        Routes {
            outlets: Vec::new(),
            generation: Generation(generation),
            routes: vec![Route {
                hosts: vec!["a.localhost".into()],
                owner: "ann".into(),
                app: "a".into(),
                service: "web".into(),
                state: RouteState::Serving,
                network: NetworkAccess::Host,
                preview: false,
                upstreams: ports
                    .iter()
                    .map(|port| Wanted {
                        node: format!("web-{port}"),
                        address: SocketAddr::from(([127, 0, 0, 1], *port)),
                    })
                    .collect(),
            }],
        }
    }

    fn lease(table: &Table, tried: &[SocketAddr]) -> Option<Lease> {
        match table.pick("a.localhost", tried, Instant::now()) {
            Pick::Upstream(_, lease) => Some(lease),
            _ => None,
        }
    }

    #[test]
    fn older_routes_are_refused_and_the_same_change_nothing() {
        let table = Table::default();
        assert_eq!(table.offer(routes(5, &[1])), Offer::Applied);
        assert_eq!(
            table.offer(routes(4, &[2])),
            Offer::Stale {
                in_force: Generation(5)
            }
        );
        assert_eq!(table.offer(routes(5, &[2])), Offer::Same);
        assert_eq!(lease(&table, &[]).unwrap().upstream().address().port(), 1);
    }

    #[test]
    fn a_removed_upstream_is_named_until_its_last_request_ends() {
        let table = Table::default();
        table.offer(routes(1, &[1]));
        let (first, second) = (lease(&table, &[]).unwrap(), lease(&table, &[]).unwrap());
        table.offer(routes(2, &[2]));
        assert_eq!(table.status().1[0].in_flight, 2);
        assert_eq!(lease(&table, &[]).unwrap().upstream().address().port(), 2);
        drop(first);
        assert_eq!(table.status().1[0].in_flight, 1);
        // Coming back and going again loses no count.
        table.offer(routes(3, &[1, 2]));
        assert!(table.status().1.is_empty());
        table.offer(routes(4, &[2]));
        assert_eq!(table.status().1[0].in_flight, 1);
        drop(second);
        assert!(table.status().1.is_empty());
    }

    #[test]
    fn turns_go_round_and_pass_over_who_is_down_or_tried() {
        let table = Table::default();
        table.offer(routes(1, &[1, 2, 3]));
        let mut ports: Vec<u16> = (0..3)
            .map(|_| lease(&table, &[]).unwrap().upstream().address().port())
            .collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 2, 3]);
        for _ in 0..3 {
            let lease = lease(&table, &[]).unwrap();
            if lease.upstream().address().port() != 3 {
                lease
                    .upstream()
                    .mark_down(Instant::now() + Duration::from_secs(60));
            }
        }
        for _ in 0..4 {
            assert_eq!(lease(&table, &[]).unwrap().upstream().address().port(), 3);
        }
        let third = SocketAddr::from(([127, 0, 0, 1], 3));
        assert_ne!(lease(&table, &[third]).unwrap().upstream().address(), third);
        let all: Vec<SocketAddr> = (1..=3)
            .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
            .collect();
        assert!(lease(&table, &all).is_none());
    }
}
