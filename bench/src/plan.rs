//! Plan time: one service with 1,000 and 10,000 nodes, at rest, at the first step of a release
//! switch, and at the dearest step on the way to its end; planned and linted, as before every
//! plan that is carried out.

use conpaas_core::plan::{self, Input, Node, Presence};
use conpaas_core::{lint, service_type::ServiceType};
use conpaas_model::ids::*;
use conpaas_model::instance::default_instance_types;
use conpaas_model::level::Duty;
use conpaas_model::protocol::Exposure;
use conpaas_model::spec::*;
use conpaas_model::status::*;
use conpaas_services::registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub fn run() {
    let registry = Registry::standard();
    let types: Vec<&'static dyn ServiceType> = registry
        .all()
        .map(|e| e.service_type)
        .filter(|t| !t.internal() && t.roles().iter().any(|r| r.carries_releases))
        .collect();
    for service_type in types {
        for count in [1_000u32, 10_000] {
            let mut world = World::new(service_type, count);
            world.converge();
            assert!(
                world.nodes.len() >= count as usize,
                "{} nodes",
                world.nodes.len()
            );
            let rest = world.time();
            world.spec.releases.push(Release {
                number: ReleaseNumber(2),
                code: None,
                settings: Settings::new(),
                environment: Default::default(),
            });
            world.spec.active = ReleaseNumber(2);
            let switch = world.time();
            let (steps, dearest) = world.converge();
            println!(
                "plan + lint, {}, {count} nodes: at rest {rest}, first step of a release switch {switch}, dearest of its {steps} steps {dearest}",
                service_type.name(),
            );
        }
    }
}

/// What one step cost.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    sum: Duration,
    plan: Duration,
    lint: Duration,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.1} + {:.1} ms",
            self.plan.as_secs_f64() * 1e3,
            self.lint.as_secs_f64() * 1e3
        )
    }
}

struct World {
    service_type: &'static dyn ServiceType,
    spec: ServiceSpec,
    nodes: BTreeMap<NodeNumber, Node>,
    exposure: Exposure,
}

impl World {
    fn new(service_type: &'static dyn ServiceType, count: u32) -> Self {
        let placed: Vec<_> = service_type
            .roles()
            .iter()
            .filter(|role| service_type.auxiliary_role(role.name).is_none())
            .collect();
        // Nearly all are of the last role that carries releases: users stand before providers.
        let many = placed.iter().rfind(|role| role.carries_releases);
        let many = many.expect("such a role").name;
        let others = u32::try_from(placed.len() - 1).expect("few roles") * 10;
        let roles = placed
            .iter()
            .map(|role| {
                let pool = Pool {
                    cloud: "local".into(),
                    instance_type: "small".into(),
                    count: if role.name == many {
                        count - others
                    } else {
                        10
                    },
                };
                (
                    role.name.to_owned(),
                    RoleWish {
                        pools: vec![pool],
                        owner: CountOwner::User,
                        bounds: None,
                    },
                )
            })
            .collect();
        let spec = ServiceSpec {
            service: ServiceId::from_suffix("1").unwrap(),
            application: ApplicationId::from_suffix("1").unwrap(),
            display: "shop/web".into(),
            service_type: service_type.name().into(),
            generation: Generation(1),
            run: RunWish::Running,
            roles,
            active: ReleaseNumber(1),
            releases: vec![Release {
                number: ReleaseNumber(1),
                code: None,
                settings: Settings::new(),
                environment: Default::default(),
            }],
            preview: None,
            retire: Default::default(),
            drain_seconds: 30,
        };
        Self {
            service_type,
            spec,
            nodes: BTreeMap::new(),
            exposure: Exposure::default(),
        }
    }

    fn plan(&self) -> (plan::Plan, Cost) {
        let types = default_instance_types();
        let edge = EdgeStatus {
            applied: self.exposure.version,
            using: BTreeSet::new(),
        };
        let overdue = BTreeSet::new();
        let next = self.nodes.keys().last().map_or(NodeNumber(1), |n| n.next());
        let input = Input {
            service_type: self.service_type,
            spec: &self.spec,
            instance_types: &types,
            nodes: &self.nodes,
            next_node: next,
            exposure: &self.exposure,
            edge: &edge,
            shown: None,
            overdue: &overdue,
        };
        let begun = Instant::now();
        let plan = plan::plan(&input);
        let planned = begun.elapsed();
        let flaws = lint::check(&input, &plan);
        let sum = begun.elapsed();
        assert!(flaws.is_empty(), "{flaws:?}");
        (
            plan,
            Cost {
                sum,
                plan: planned,
                lint: sum - planned,
            },
        )
    }

    /// Nodes do at once whatever they are told, until nothing changes. Returns how many plans
    /// that took and the cost of the dearest.
    fn converge(&mut self) -> (u32, Cost) {
        let mut dearest = Cost::default();
        for step in 1..=30 {
            let (plan, cost) = self.plan();
            dearest = dearest.max(cost);
            if plan.reached {
                return (step, dearest);
            }
            for number in plan.nodes.keys() {
                self.nodes.entry(*number).or_insert_with(|| Node {
                    record: NodeRecord {
                        number: *number,
                        state: NodeState::Up,
                        cloud: "local".into(),
                        instance_type: "small".into(),
                        address: Ipv4Addr::from(
                            u32::from(Ipv4Addr::new(100, 64, 0, 10)) + number.0 as u32,
                        ),
                        trouble: None,
                        refused: false,
                        told: Default::default(),
                    },
                    presence: Presence::Connected,
                    suspected: false,
                    level: Default::default(),
                    confirmed: true,
                    obeys: true,
                    confirmed_roles: BTreeSet::new(),
                    roles: BTreeMap::new(),
                });
            }
            for (number, level) in plan.levels {
                let node = self.nodes.get_mut(&number).unwrap();
                node.roles.clear();
                for (role, role_level) in &level.roles {
                    let carries = self
                        .service_type
                        .role(role)
                        .is_some_and(|r| r.carries_releases);
                    let releases = if carries {
                        role_level
                            .releases
                            .iter()
                            .map(|(r, l)| (*r, phase(l.duty)))
                            .collect()
                    } else {
                        BTreeMap::new()
                    };
                    node.roles.insert(
                        role.clone(),
                        RoleStatus {
                            own: (!carries).then_some(phase(role_level.duty)),
                            releases,
                            serving: role_level.serve,
                            using: role_level
                                .providers
                                .iter()
                                .map(|p| InUse {
                                    instance: p.instance(),
                                    in_flight: 0,
                                })
                                .collect(),
                            facts: Default::default(),
                        },
                    );
                }
                node.confirmed_roles = level.roles.keys().cloned().collect();
                node.level = level;
            }
            self.exposure.upstreams = plan.exposed;
            self.exposure.version.generation = self.exposure.version.generation.next();
        }
        panic!("did not converge");
    }

    /// The middle of five.
    fn time(&self) -> Cost {
        let mut times: Vec<Cost> = (0..5).map(|_| self.plan().1).collect();
        times.sort();
        times[2]
    }
}

/// What an instance says as soon as it has done what it was told.
fn phase(duty: Duty) -> Phase {
    match duty {
        Duty::Serve => Phase::Ready,
        Duty::Drain => Phase::Drained,
    }
}
