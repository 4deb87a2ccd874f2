//! The simulated edge: takes the routes that the Director writes, finishes requests to nodes that
//! were taken off, and says what it has applied. Routes are a file, so they outlive both.

use crate::bugs::Bug;
use crate::schedule::Ms;
use crate::world::{Event, World};
use conpaas_model::ids::{NodeNumber, ServiceId};
use conpaas_model::protocol::Exposure;
use conpaas_model::status::EdgeStatus;
use std::collections::{BTreeMap, BTreeSet};

/// How often the edge looks at its file.
const LOOK: Ms = 400;

/// The edge, and the files between it and the Director.
#[derive(Default)]
pub struct Edge {
    pub up: bool,
    pub life: u64,
    /// What the Director has written.
    pub routes: Exposure,
    /// Dead nodes, by the Director's word: nobody is led to them.
    pub dead: BTreeSet<NodeNumber>,
    /// Whom people are led to.
    pub led: BTreeSet<NodeNumber>,
    /// What the edge has said.
    pub told: EdgeStatus,
    /// Until when requests are in flight to nodes that were taken off.
    pub finishing: BTreeMap<NodeNumber, Ms>,
}

impl Edge {
    /// Whether people, or their requests, may still be at a node.
    pub fn holds(&self, node: NodeNumber, now: Ms) -> bool {
        self.led.contains(&node) || self.finishing.get(&node).is_some_and(|until| *until > now)
    }

    pub fn status(&self, _service: &ServiceId) -> EdgeStatus {
        self.told.clone()
    }
}

impl World {
    /// The Director writes routes when they have changed.
    pub fn write_routes(&mut self) {
        let routes = self
            .web()
            .and_then(|web| web.exposure.clone())
            .unwrap_or_default();
        let dead: BTreeSet<NodeNumber> = self
            .director
            .store
            .nodes_of(&self.names.web)
            .filter(|node| node.state == conpaas_model::status::NodeState::Dead)
            .map(|node| node.key.number)
            .collect();
        if self.edge.routes != routes || self.edge.dead != dead {
            self.edge.routes = routes;
            self.edge.dead = dead;
            self.soon(5, 60, Event::EdgeLooks);
        }
    }

    pub fn edge_starts(&mut self) {
        if self.edge.up {
            return;
        }
        self.edge.up = true;
        self.edge.life = self.life();
        self.edge.finishing.clear();
        self.soon(5, 60, Event::EdgeLooks);
    }

    pub fn edge_dies(&mut self, down: Ms) {
        if self.edge.up {
            self.edge.up = false;
            // Nobody comes in, and what was in flight is cut.
            self.edge.led.clear();
            self.edge.finishing.clear();
            self.after(down.max(1), Event::EdgeStarts);
        }
    }

    pub fn edge_looks(&mut self) {
        if !self.edge.up {
            return;
        }
        let now = self.now;
        let routes = self.edge.routes.clone();
        let early = self.has(Bug::EdgeConfirmsEarly);
        if early && routes.version > self.edge.told.applied {
            // Says that it has applied what it will apply later.
            self.edge.told = EdgeStatus {
                applied: routes.version,
                using: BTreeSet::new(),
            };
            self.wake();
            self.soon(800, 2_500, Event::EdgeLooks);
            return;
        }
        self.check_routes(&routes);
        let led: BTreeSet<NodeNumber> = routes
            .upstreams
            .keys()
            .filter(|node| !self.edge.dead.contains(node))
            .copied()
            .collect();
        let dropped: Vec<NodeNumber> = self.edge.led.difference(&led).copied().collect();
        for node in dropped {
            let lasts = if self.rng.chance(70) {
                self.rng.between(0, 300)
            } else {
                self.rng.between(300, 3_000)
            };
            self.edge.finishing.insert(node, now + lasts);
        }
        self.edge.led = led;
        self.edge.finishing.retain(|_, until| *until > now);
        let using: BTreeSet<NodeNumber> = self
            .edge
            .finishing
            .keys()
            .filter(|node| !self.edge.led.contains(node))
            .copied()
            .collect();
        let more = !using.is_empty();
        let told = EdgeStatus {
            applied: routes.version,
            using,
        };
        if told != self.edge.told {
            self.edge.told = told;
            self.wake();
        }
        if more {
            self.after(LOOK, Event::EdgeLooks);
        }
    }
}
