//! Which routes the edge should have, and what its answer means for each service: pure functions
//! over what the store says.

use crate::hosts;
use conpaas_model::edge::{Applied, NetworkAccess, Outlet, Route, RouteState, Routes, Upstream};
use conpaas_model::ids::{Generation, Name, NodeNumber, ServiceId};
use conpaas_model::protocol::Exposure;
use conpaas_model::spec::RunWish;
use conpaas_model::status::{EdgeStatus, ExposureVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

/// A service that people can be led to.
#[derive(Clone, Debug)]
pub struct Place {
    pub service: ServiceId,
    pub app: Name,
    pub owner: Name,
    pub name: Name,
    /// The oldest such service of its application: it has the short name.
    pub first: bool,
    pub run: RunWish,
    /// Has been reached since it was last started.
    pub served: bool,
    pub exposure: Exposure,
    /// A release is held for a preview.
    pub preview: bool,
    /// Host names that it has claimed.
    pub domains: Vec<String>,
    /// Nobody has said yet, since a backup was restored, whom people are to be led to.
    pub held: bool,
    pub nodes: Vec<NodePlace>,
}

/// A node of such a service.
#[derive(Clone, Debug)]
pub struct NodePlace {
    pub number: NodeNumber,
    pub address: Ipv4Addr,
    pub network: NetworkAccess,
    /// The cloud does not say that it has died.
    pub alive: bool,
}

/// The exposure each service's route was made from.
pub type Versions = BTreeMap<ServiceId, Exposure>;

/// The routes of all services, and what they were made from. `standing` are those that the edge
/// has now: for a service that is held they go on, also to nodes that the store does not know.
pub fn routes(places: &[Place], base: &str, standing: &[Route]) -> (Vec<Route>, Versions) {
    let own = |place: &Place, first: bool| {
        hosts::host(&place.app, &place.owner, &place.name, first, base).to_ascii_lowercase()
    };
    let all_own: BTreeSet<String> = places
        .iter()
        .flat_map(|place| [own(place, place.first), own(place, false)])
        .collect();
    let mut taken = BTreeSet::new();
    let mut all = Vec::new();
    for place in places {
        // The name of one that is being deleted is free for another already.
        if place.run == RunWish::Deleted && place.exposure.upstreams.is_empty() {
            continue;
        }
        let mut hosts = vec![own(place, place.first)];
        if place.first {
            hosts.push(own(place, false));
        }
        if place.run != RunWish::Deleted {
            // A base domain that was changed since may have made one of them a service's own.
            let claimed = place.domains.iter();
            hosts.extend(claimed.filter(|name| !all_own.contains(*name)).cloned());
        }
        hosts.retain(|host| taken.insert(host.clone()));
        if hosts.is_empty() {
            continue;
        }
        let same = |route: &&Route| {
            route.owner == place.owner.as_str()
                && route.app == place.app.as_str()
                && route.service == place.name.as_str()
                && !route.upstreams.is_empty()
                && !route.preview
        };
        if place.held
            && let Some(stands) = standing.iter().find(same)
        {
            all.push(Route {
                hosts,
                ..stands.clone()
            });
            continue;
        }
        let mut network = None;
        let mut upstreams = Vec::new();
        for (number, address) in &place.exposure.upstreams {
            let Some(node) = place
                .nodes
                .iter()
                .find(|node| node.number == *number && node.alive)
            else {
                continue;
            };
            // One route leads into one network.
            if *network.get_or_insert_with(|| node.network.clone()) == node.network {
                upstreams.push(Upstream {
                    node: format!("{}-{number}", place.name),
                    address: *address,
                });
            }
        }
        let network = network
            .or_else(|| place.nodes.first().map(|node| node.network.clone()))
            .unwrap_or(NetworkAccess::Host);
        let state = match place.run {
            _ if !upstreams.is_empty() => RouteState::Serving,
            RunWish::Stopped | RunWish::Deleted => RouteState::Stopped,
            RunWish::Running if place.served => RouteState::NoBackends,
            RunWish::Running => RouteState::Starting,
        };
        let route = Route {
            hosts,
            owner: place.owner.to_string(),
            app: place.app.to_string(),
            service: place.name.to_string(),
            state,
            network,
            preview: false,
            upstreams,
        };
        let host = hosts::preview_host(&place.app, &place.owner, &place.name, base);
        let host = host.to_ascii_lowercase();
        if place.preview && place.run != RunWish::Deleted && taken.insert(host.clone()) {
            all.push(Route {
                hosts: vec![host],
                preview: true,
                ..route.clone()
            });
        }
        all.push(route);
    }
    let versions = places
        .iter()
        .map(|place| (place.service.clone(), place.exposure.clone()))
        .collect();
    (all, versions)
}

/// What was written for the edge.
#[derive(Default)]
pub struct Written {
    routes: Routes,
    /// For each exposure of a service: since which generation the routes say it.
    exposed: BTreeMap<ServiceId, BTreeMap<ExposureVersion, Said>>,
}

struct Said {
    since: Generation,
    upstreams: BTreeMap<NodeNumber, SocketAddr>,
}

impl Written {
    /// Goes on from the file of an earlier Director.
    pub fn resume(before: Option<Routes>) -> Self {
        Self {
            routes: before.unwrap_or_default(),
            exposed: BTreeMap::new(),
        }
    }

    /// The routes that stand.
    pub fn standing(&self) -> &[Route] {
        &self.routes.routes
    }

    pub fn generation(&self) -> Generation {
        self.routes.generation
    }

    /// The file to write, if these routes are not the ones that stand. Its generation is above
    /// any that was written or `taken` by the edge: the edge refuses others.
    pub fn offer(&self, routes: &[Route], outlets: &[Outlet], taken: Generation) -> Option<Routes> {
        let stands = self.routes.generation > Generation(0)
            && self.routes.generation >= taken
            && self.routes.routes == routes
            && self.routes.outlets == outlets;
        (!stands).then(|| Routes {
            generation: self.routes.generation.max(taken).next(),
            routes: routes.to_vec(),
            outlets: outlets.to_vec(),
        })
    }

    /// The file was written.
    pub fn accept(&mut self, routes: Routes) {
        self.routes = routes;
    }

    /// The routes that stand were made from these exposures.
    pub fn expose(&mut self, versions: Versions) {
        self.exposed
            .retain(|service, _| versions.contains_key(service));
        let since = self.routes.generation;
        for (service, Exposure { version, upstreams }) in versions {
            let known = self.exposed.entry(service).or_default();
            // While routes of other services change, this one's exposure keeps the generation
            // that first said it. A manager that was restarted may reuse a number for other
            // upstreams: that is news.
            if known
                .get(&version)
                .is_none_or(|said| said.upstreams != upstreams)
            {
                known.insert(version, Said { since, upstreams });
            }
            while known.len() > 64 {
                known.pop_first();
            }
        }
    }

    /// What the edge has taken of a service's exposure. Without an edge nothing is in flight, and
    /// what stands will hold as soon as there is one.
    pub fn status(&self, place: &Place, applied: Option<&Applied>) -> EdgeStatus {
        let Some(applied) = applied else {
            return EdgeStatus {
                applied: place.exposure.version,
                using: BTreeSet::new(),
            };
        };
        let version = self
            .exposed
            .get(&place.service)
            .into_iter()
            .flatten()
            .filter(|(_, said)| said.since <= applied.generation)
            .map(|(version, _)| *version)
            .next_back()
            .unwrap_or_default();
        let using = applied
            .draining
            .iter()
            .filter_map(|draining| {
                let same = |node: &&NodePlace| {
                    node.network == draining.network && draining.address.ip() == node.address
                };
                place.nodes.iter().find(same).map(|node| node.number)
            })
            .collect();
        EdgeStatus {
            applied: version,
            using,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::edge::Draining;
    use conpaas_model::ids::Epoch;

    fn place(name: &str, first: bool, generation: u64, nodes: &[u64]) -> Place {
        let address = |number: u64| Ipv4Addr::new(100, 64, 0, 10 + number as u8);
        Place {
            service: format!("svc-{name}").parse().unwrap(),
            app: "shop".parse().unwrap(),
            owner: "ann".parse().unwrap(),
            name: name.parse().unwrap(),
            first,
            run: RunWish::Running,
            served: false,
            exposure: Exposure {
                version: ExposureVersion {
                    epoch: Epoch(1),
                    generation: Generation(generation),
                },
                upstreams: nodes
                    .iter()
                    .map(|n| (NodeNumber(*n), SocketAddr::from((address(*n), 80))))
                    .collect(),
            },
            preview: false,
            domains: Vec::new(),
            held: false,
            nodes: (1..5)
                .map(|n| NodePlace {
                    number: NodeNumber(n),
                    address: address(n),
                    network: NetworkAccess::Host,
                    alive: true,
                })
                .collect(),
        }
    }

    fn applied(generation: u64, draining: &[u64]) -> Applied {
        Applied {
            generation: Generation(generation),
            at: String::new(),
            listening: "127.0.0.1:1".parse().unwrap(),
            draining: draining
                .iter()
                .map(|n| Draining {
                    node: format!("web-{n}"),
                    network: NetworkAccess::Host,
                    address: SocketAddr::from((Ipv4Addr::new(100, 64, 0, 10 + *n as u8), 80)),
                    in_flight: 1,
                })
                .collect(),
        }
    }

    fn write(written: &mut Written, places: &[Place], taken: u64) -> bool {
        let (routes, versions) = routes(places, "localhost", &[]);
        let file = written.offer(&routes, &[], Generation(taken));
        let news = file.is_some();
        file.into_iter().for_each(|file| written.accept(file));
        written.expose(versions);
        news
    }

    #[test]
    fn states_and_names_follow_from_the_records() {
        let stopped = Place {
            run: RunWish::Stopped,
            ..place("c", false, 1, &[])
        };
        let served = Place {
            served: true,
            ..place("d", false, 1, &[])
        };
        let places = [
            place("a", true, 1, &[1, 2]),
            place("b", false, 1, &[]),
            stopped,
            served,
        ];
        let (routes, _) = routes(&places, "localhost", &[]);
        let states: Vec<_> = routes.iter().map(|route| route.state).collect();
        use RouteState::{NoBackends, Serving, Starting, Stopped};
        assert_eq!(states, [Serving, Starting, Stopped, NoBackends]);
        assert_eq!(
            routes[0].hosts,
            ["shop-ann.localhost", "a.shop-ann.localhost"]
        );
        assert_eq!(routes[1].hosts, ["b.shop-ann.localhost"]);
        assert_eq!(routes[0].upstreams.len(), 2);
    }

    #[test]
    fn claimed_names_lead_there_too_and_never_take_one_that_a_service_has_by_itself() {
        let claims = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let one = Place {
            domains: claims(["www.example.org", "b.shop-ann.localhost"]),
            ..place("a", true, 1, &[1])
        };
        let (routes, _) = routes(&[one, place("b", false, 1, &[2])], "localhost", &[]);
        let hosts: Vec<_> = routes.iter().map(|route| route.hosts.clone()).collect();
        assert_eq!(
            hosts,
            [
                vec![
                    "shop-ann.localhost",
                    "a.shop-ann.localhost",
                    "www.example.org"
                ],
                vec!["b.shop-ann.localhost"]
            ]
        );
    }

    #[test]
    fn a_held_release_has_a_name_of_its_own_that_leads_to_the_same_nodes() {
        let one = Place {
            preview: true,
            ..place("a", true, 1, &[1, 2])
        };
        let (routes, _) = routes(&[one], "localhost", &[]);
        assert_eq!(routes[0].hosts, ["preview.a.shop-ann.localhost"]);
        assert!(routes[0].preview && !routes[1].preview);
        assert_eq!(routes[0].upstreams, routes[1].upstreams);
    }

    #[test]
    fn a_service_that_is_held_keeps_the_route_that_stands_until_somebody_speaks() {
        let before = place("a", true, 3, &[2, 3]);
        let (standing, _) = routes(std::slice::from_ref(&before), "localhost", &[]);
        // The restored store knows no exposure, and not all of the nodes.
        let mut held = Place {
            held: true,
            exposure: Exposure::default(),
            ..place("a", true, 0, &[])
        };
        held.nodes.truncate(2);
        let one = std::slice::from_ref(&held);
        assert_eq!(routes(one, "localhost", &standing).0, standing);
        let (nothing, _) = routes(one, "localhost", &[]);
        assert!(nothing[0].upstreams.is_empty());
        // Its manager has spoken: that is what holds.
        let told = Place {
            held: false,
            exposure: place("a", true, 1, &[1]).exposure,
            ..held.clone()
        };
        let (found, _) = routes(&[told], "localhost", &standing);
        assert_eq!(found[0].upstreams.len(), 1);
        // The route of another service of that name is nobody's.
        let other = Place {
            owner: "bob".parse().unwrap(),
            ..held
        };
        let (found, _) = routes(&[other], "localhost", &standing);
        assert!(found[0].upstreams.is_empty());
    }

    #[test]
    fn the_dead_are_led_to_no_more_and_names_are_given_once() {
        let mut one = place("a", true, 1, &[1, 2]);
        one.nodes[0].alive = false;
        let (found, _) = routes(&[one.clone(), one], "localhost", &[]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].upstreams.len(), 1);
    }

    #[test]
    fn an_exposure_holds_when_the_edge_has_taken_it_and_drains_are_told() {
        let mut written = Written::resume(None);
        let one = place("a", true, 1, &[1, 2]);
        assert!(write(&mut written, std::slice::from_ref(&one), 0));
        assert_eq!(
            written.status(&one, Some(&applied(0, &[]))).applied,
            ExposureVersion::default()
        );
        assert_eq!(
            written.status(&one, Some(&applied(1, &[]))).applied,
            one.exposure.version
        );
        let two = place("a", true, 2, &[2]);
        assert!(write(&mut written, std::slice::from_ref(&two), 1));
        assert_eq!(
            written.status(&two, Some(&applied(1, &[]))).applied,
            one.exposure.version
        );
        let status = written.status(&two, Some(&applied(2, &[1])));
        assert_eq!(
            (status.applied, status.using),
            (two.exposure.version, [NodeNumber(1)].into())
        );
        // No edge: nothing is in flight, what stands will hold.
        assert_eq!(written.status(&two, None).applied, two.exposure.version);
        // Another service's change moves nothing here.
        let other = place("b", false, 1, &[3]);
        assert!(write(&mut written, &[two.clone(), other], 2));
        assert_eq!(
            written.status(&two, Some(&applied(2, &[]))).applied,
            two.exposure.version
        );
        // The same number for other upstreams is another exposure.
        let reused = place("a", true, 2, &[3]);
        assert!(write(&mut written, std::slice::from_ref(&reused), 2));
        assert_eq!(
            written.status(&reused, Some(&applied(3, &[]))).applied,
            one.exposure.version
        );
        assert_eq!(
            written.status(&reused, Some(&applied(4, &[]))).applied,
            reused.exposure.version
        );
    }

    #[test]
    fn generations_rise_over_restarts_and_above_what_the_edge_has() {
        let mut written = Written::resume(None);
        let one = place("a", true, 1, &[1]);
        write(&mut written, std::slice::from_ref(&one), 0);
        let file = Routes {
            generation: written.generation(),
            routes: routes(std::slice::from_ref(&one), "localhost", &[]).0,
            outlets: Vec::new(),
        };
        let mut resumed = Written::resume(Some(file));
        assert!(
            !write(&mut resumed, std::slice::from_ref(&one), 1),
            "unchanged routes are not written again"
        );
        assert_eq!(
            resumed.status(&one, Some(&applied(1, &[]))).applied,
            one.exposure.version
        );
        // A restored store: the edge is ahead.
        assert!(write(&mut resumed, &[one], 41));
        assert_eq!(resumed.generation(), Generation(42));
    }
}
