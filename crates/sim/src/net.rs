//! The network: streams that carry messages in order until they break, and faults that delay,
//! lose, repeat and reorder. Who cannot reach whom is asked before every call.

use crate::cloud::take;
use crate::host::HostId;
use crate::schedule::Ms;
use crate::world::{Event, HEARTBEAT, Party, World};
use conpaas_model::level::Level;
use conpaas_model::protocol::{FromAgent, ManagerLevel, ManagerReport};
use std::collections::BTreeMap;

/// What travels on streams.
#[derive(Clone, Debug)]
pub enum Message {
    FromAgent(FromAgent),
    ToAgent(Level),
    FromManager(ManagerReport),
    ToManager(ManagerLevel),
}

impl Message {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::FromAgent(FromAgent::Report(_)) => "agent's report",
            Self::FromAgent(_) => "agent's refusal",
            Self::ToAgent(_) => "level for an agent",
            Self::FromManager(_) => "manager's report",
            Self::ToManager(_) => "level for a manager",
        }
    }

    pub fn describe(&self) -> String {
        match self {
            Self::FromAgent(FromAgent::Report(report)) => format!(
                "report {} of {}, level {:?}, applied {:?}",
                report.sequence,
                report.boot,
                report
                    .level
                    .as_ref()
                    .map(|l| (l.version.epoch.0, l.version.generation.0)),
                report.applied.map(|v| (v.epoch.0, v.generation.0)),
            ),
            Self::FromAgent(other) => format!("{other:?}"),
            Self::ToAgent(level) => format!(
                "level {} {} for node {}: {:?}",
                level.version.epoch,
                level.version.generation,
                level.node,
                level.body.roles.keys().collect::<Vec<_>>()
            ),
            Self::FromManager(report) => {
                let services = report.services.iter();
                let texts = services.map(|s| {
                    format!(
                        "{:?} reached {} {:?}",
                        s.nodes,
                        s.status.reached,
                        s.exposure.upstreams.keys()
                    )
                });
                format!(
                    "manager {} says {}",
                    report.epoch,
                    texts.collect::<Vec<_>>().join("; ")
                )
            }
            Self::ToManager(level) => format!("level {} of {}", level.generation, level.epoch),
        }
    }
}

/// Whose stream it is at its far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Director,
    Manager(HostId),
}

impl Server {
    pub fn party(self) -> Party {
        match self {
            Self::Director => Party::Director,
            Self::Manager(host) => Party::Host(host),
        }
    }
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Agent,
    Manager,
}

/// A stream.
#[derive(Debug)]
pub struct Link {
    pub host: HostId,
    /// The process that opened it.
    pub life: u64,
    pub server: Server,
    /// The process that serves it.
    pub server_life: u64,
    pub kind: Kind,
    client_open: bool,
    server_open: bool,
    /// When the last message up, and down, arrives.
    last: [Ms; 2],
}

/// Streams, and what is wrong between parties.
#[derive(Default)]
pub struct Net {
    pub links: BTreeMap<u64, Link>,
    next: u64,
    pub blocked: Vec<(Party, Party, Ms)>,
    pub slow: BTreeMap<Party, (Ms, Ms)>,
    pub lose: u32,
    pub repeat: u32,
    pub reorder: u32,
}

impl Net {
    /// Until when two cannot reach each other.
    pub fn blocked_until(&self, a: Party, b: Party, now: Ms) -> Option<Ms> {
        let between = |x: Party, y: Party| (x, y) == (a, b) || (y, x) == (a, b);
        self.blocked
            .iter()
            .filter(|(x, y, until)| between(*x, *y) && *until > now)
            .map(|(_, _, until)| *until)
            .max()
    }

    fn extra(&self, a: Party, b: Party, now: Ms) -> Ms {
        let of = |party: Party| {
            let (until, delay) = self.slow.get(&party).copied().unwrap_or_default();
            if until > now { delay } else { 0 }
        };
        of(a).max(of(b))
    }

    /// Everything is well again.
    pub fn heal(&mut self) {
        self.blocked.clear();
        self.slow.clear();
        (self.lose, self.repeat, self.reorder) = (0, 0, 0);
    }
}

impl World {
    /// How long a request and its answer take each; nothing when it cannot come through.
    pub fn travels(&mut self, a: Party, b: Party) -> Option<Ms> {
        if a == b {
            return Some(1);
        }
        if self.net.blocked_until(a, b, self.now).is_some() || take(&mut self.net.lose) {
            return None;
        }
        Some(self.rng.between(1, 20) + self.net.extra(a, b, self.now))
    }

    /// Opens a stream that both ends know of.
    pub fn open(
        &mut self,
        host: HostId,
        life: u64,
        server: Server,
        server_life: u64,
        kind: Kind,
    ) -> u64 {
        self.net.next += 1;
        let id = self.net.next;
        let link = Link {
            host,
            life,
            server,
            server_life,
            kind,
            client_open: true,
            server_open: true,
            last: [0, 0],
        };
        self.net.links.insert(id, link);
        id
    }

    /// Sends a message, unless the sender's end is closed.
    pub fn send(&mut self, id: u64, up: bool, message: Message) {
        let now = self.now;
        let Some(link) = self.net.links.get(&id) else {
            return;
        };
        if !(if up {
            link.client_open
        } else {
            link.server_open
        }) {
            return;
        }
        let (a, b) = (Party::Host(link.host), link.server.party());
        let mut delay = if a == b { 1 } else { self.rng.between(1, 20) };
        if a != b {
            if let Some(until) = self.net.blocked_until(a, b, now) {
                if until > now + HEARTBEAT {
                    return self.break_link(id);
                }
                delay += until - now;
            }
            if take(&mut self.net.lose) {
                return self.break_link(id);
            }
            delay += self.net.extra(a, b, now);
        }
        // Streams to the Director keep their order: nothing orders what managers say but they.
        let free = link.kind == Kind::Agent && a != b;
        let mut at = now + delay;
        let way = usize::from(up);
        if free && take(&mut self.net.reorder) {
            at += self.rng.between(30, 900);
        } else if let Some(link) = self.net.links.get_mut(&id) {
            at = at.max(link.last[way] + 1);
            link.last[way] = at;
        }
        if free && take(&mut self.net.repeat) {
            let again = at + self.rng.between(1, 1_500);
            self.at(
                again,
                Event::Deliver {
                    link: id,
                    up,
                    message: Box::new(message.clone()),
                },
            );
        }
        self.at(
            at,
            Event::Deliver {
                link: id,
                up,
                message: Box::new(message),
            },
        );
    }

    /// A stream is broken; each end finds out by itself.
    pub fn break_link(&mut self, id: u64) {
        if let Some(link) = self.net.links.get_mut(&id) {
            // Nothing that is on its way arrives any more.
            let (client, server) = (link.client_open, link.server_open);
            (link.last[0], link.last[1]) = (Ms::MAX / 2, Ms::MAX / 2);
            if client {
                self.soon(
                    1,
                    HEARTBEAT,
                    Event::LinkEnds {
                        link: id,
                        server: false,
                    },
                );
            }
            if server {
                self.soon(
                    1,
                    HEARTBEAT,
                    Event::LinkEnds {
                        link: id,
                        server: true,
                    },
                );
            }
        }
    }

    /// One end closes a stream; the other finds out soon, or late when it cannot be told.
    pub fn close(&mut self, id: u64, by_server: bool, quietly: bool) {
        let Some(link) = self.net.links.get_mut(&id) else {
            return;
        };
        if by_server {
            link.server_open = false;
        } else {
            link.client_open = false;
        }
        let (low, high) = if quietly {
            (HEARTBEAT / 2, HEARTBEAT)
        } else {
            (1, 30)
        };
        self.soon(
            low,
            high,
            Event::LinkEnds {
                link: id,
                server: !by_server,
            },
        );
    }

    /// All streams that a process holds end with it.
    pub fn close_all_of(&mut self, life: u64, quietly: bool) {
        let ends: Vec<(u64, bool)> = self
            .net
            .links
            .iter()
            .flat_map(|(id, link)| {
                let client = (link.life == life && link.client_open).then_some((*id, false));
                let server = (link.server_life == life && link.server_open).then_some((*id, true));
                client.into_iter().chain(server)
            })
            .collect();
        for (id, by_server) in ends {
            self.close(id, by_server, quietly);
        }
    }

    pub fn deliver(&mut self, id: u64, up: bool, message: Message) {
        let Some(link) = self.net.links.get(&id) else {
            return;
        };
        let broken = link.last[usize::from(up)] >= Ms::MAX / 2;
        if broken
            || !(if up {
                link.server_open
            } else {
                link.client_open
            })
        {
            return;
        }
        let (host, life, server) = (link.host, link.life, link.server);
        match message {
            Message::FromAgent(message) => self.heard(server, id, message),
            Message::ToAgent(level) => self.offered(host, life, level),
            Message::FromManager(report) => self.take_report(id, report),
            Message::ToManager(level) => self.manager_level(host, life, level),
        }
    }

    pub fn link_ends(&mut self, id: u64, server: bool) {
        let Some(link) = self.net.links.get_mut(&id) else {
            return;
        };
        let open = if server {
            &mut link.server_open
        } else {
            &mut link.client_open
        };
        let was_open = std::mem::replace(open, false);
        let (host, life, far, kind) = (link.host, link.life, link.server, link.kind);
        if !link.server_open && !link.client_open {
            self.net.links.remove(&id);
        }
        if !was_open {
            return;
        }
        match (server, kind) {
            (false, Kind::Agent) => self.agent_lost_stream(host, life),
            (false, Kind::Manager) => self.manager_lost_stream(host, life),
            (true, Kind::Agent) => self.seat_lost(far, id),
            (true, Kind::Manager) => self.post_lost(id),
        }
    }
}
