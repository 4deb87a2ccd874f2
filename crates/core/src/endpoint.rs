//! Endpoints: a consumer dials a fixed loopback address of its own node, and the node's agent
//! leads it to whoever provides the thing now. What a service type declares of them, and which
//! of them a level carries, is here; the proxy behind the address is the agent's.

use crate::service_type::ServiceType;
use conpaas_model::level::{EndpointLevel, LeadStage, LevelBody, OnChange, Provider, RoleLevel};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

/// What follows an endpoint's name where names are resolved: `NAME.internal`.
pub const DOMAIN: &str = "internal";

/// Where the agent of a machine answers for names.
pub const RESOLVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 53), 53);

/// An endpoint as a service type declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointDeclaration {
    /// Consumers may dial `NAME.internal`; unique in its type, lower case.
    pub name: &'static str,
    /// The port consumers dial.
    pub port: u16,
    /// Whom consumers are led to.
    pub provider: &'static str,
    /// Roles that dial it. Each lists `provider` in its `uses`.
    pub users: &'static [&'static str],
    /// How long a consumer is held while nobody can be reached.
    pub hold_seconds: u32,
    /// What becomes of connections to a provider that is no target any more.
    pub on_change: OnChange,
}

/// The part of a node's loopback network that belongs to endpoints: 127.77.0.0/16 on a machine.
/// Several agents of one network (in tests) each have another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loopback(pub [u8; 2]);

impl Default for Loopback {
    fn default() -> Self {
        Self([127, 77])
    }
}

impl Loopback {
    /// Where an endpoint that a level calls by its address on a machine is on this node.
    pub fn place(self, listen: SocketAddrV4) -> SocketAddrV4 {
        let [_, _, c, d] = listen.ip().octets();
        SocketAddrV4::new(Ipv4Addr::new(self.0[0], self.0[1], c, d), listen.port())
    }
}

/// The fixed address of a type's endpoint: by its place among those the type declares, so it is
/// the same on every node and for all time.
pub fn address(service_type: &dyn ServiceType, name: &str) -> Option<SocketAddrV4> {
    let endpoints = service_type.endpoints();
    let place = endpoints.iter().position(|e| e.name == name)?;
    let last = u8::try_from(place + 1).ok()?;
    let [a, b] = Loopback::default().0;
    let port = endpoints[place].port;
    Some(SocketAddrV4::new(Ipv4Addr::new(a, b, 0, last), port))
}

/// The endpoints of a node: those that some role on it dials, leading to the providers that its
/// level lets that role use; of a role that has a leader, to that one only, while it is open.
/// One that nobody may be led to is there all the same, and holds.
pub fn of_level(
    service_type: &dyn ServiceType,
    level: &LevelBody,
) -> BTreeMap<String, EndpointLevel> {
    let mut endpoints = BTreeMap::new();
    for declared in service_type.endpoints() {
        let users: Vec<_> = declared
            .users
            .iter()
            .filter_map(|user| Some((*user, level.roles.get(*user)?)))
            .collect();
        let Some(listen) = address(service_type, declared.name).filter(|_| !users.is_empty())
        else {
            continue;
        };
        let carries = service_type
            .role(declared.provider)
            .is_some_and(|role| role.carries_releases);
        let led = service_type.led().contains(&declared.provider);
        let leads = |role: &RoleLevel, provider: &Provider| {
            role.leads.get(declared.provider).is_some_and(|lead| {
                lead.stage == LeadStage::Open && lead.leader.node == provider.node
            })
        };
        let mut targets: Vec<_> = users
            .iter()
            .flat_map(|(_, role)| role.providers.iter().map(move |p| (*role, p)))
            .filter(|(role, p)| {
                p.role == declared.provider
                    && (!carries || role.serve.is_some() && p.release == role.serve)
                    && (!led || leads(role, p))
            })
            .map(|(_, p)| p.clone())
            .collect();
        targets.sort();
        targets.dedup();
        endpoints.insert(
            declared.name.to_owned(),
            EndpointLevel {
                listen,
                users: users.iter().map(|(user, _)| (*user).to_owned()).collect(),
                targets,
                hold_seconds: declared.hold_seconds,
                on_change: declared.on_change,
            },
        );
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{AgentCore, Effect, Event};
    use crate::service_type::{Decision, Fencing, RoleDeclaration};
    use conpaas_model::ids::{Epoch, Generation, NodeNumber, ReleaseNumber};
    use conpaas_model::level::{Duty, Instance, Level, LevelVersion};
    use conpaas_model::status::{NodeHealth, RoleStatus};

    struct Store;

    const fn role(name: &'static str, uses: &'static [&'static str]) -> RoleDeclaration {
        RoleDeclaration {
            name,
            title: "",
            uses,
            carries_releases: true,
            port: 1,
            exposed: false,
            min: 0,
            max: 9,
            default_count: 1,
            packable: true,
            fencing: Fencing::OnSuspicion,
            memory_weight: 1,
        }
    }

    static ROLES: [RoleDeclaration; 2] = [role("app", &["store"]), role("store", &[])];
    const fn endpoint(name: &'static str) -> EndpointDeclaration {
        EndpointDeclaration {
            name,
            port: 6379,
            provider: "store",
            users: &["app"],
            hold_seconds: 7,
            on_change: OnChange::Cut,
        }
    }
    static ENDPOINTS: [EndpointDeclaration; 2] = [endpoint("read"), endpoint("write")];

    impl ServiceType for Store {
        fn name(&self) -> &'static str {
            "store"
        }
        fn title(&self) -> &'static str {
            ""
        }
        fn roles(&self) -> &'static [RoleDeclaration] {
            &ROLES
        }
        fn packages(&self) -> &'static [&'static str] {
            &[]
        }
        fn settings_schema(&self) -> serde_json::Value {
            serde_json::Value::Null
        }
        fn endpoints(&self) -> &'static [EndpointDeclaration] {
            &ENDPOINTS
        }
        fn takes_code(&self) -> bool {
            false
        }
        fn decide(&self, _: &Decision<'_>) -> serde_json::Value {
            serde_json::Value::Null
        }
    }

    fn provider(node: u64, release: u64) -> Provider {
        Provider {
            role: "store".into(),
            node: NodeNumber(node),
            release: Some(ReleaseNumber(release)),
            address: Ipv4Addr::new(100, 64, 0, node as u8),
            port: 1,
            capacity: 0,
        }
    }

    fn body(role: &str) -> LevelBody {
        let role_level = RoleLevel {
            duty: Duty::Serve,
            config: serde_json::Value::Null,
            releases: BTreeMap::new(),
            serve: Some(ReleaseNumber(2)),
            preview: None,
            providers: vec![provider(3, 2), provider(2, 1), provider(2, 2)],
            leads: BTreeMap::new(),
        };
        let mut body = LevelBody {
            roles: BTreeMap::from([(role.to_owned(), role_level)]),
            endpoints: BTreeMap::new(),
        };
        body.endpoints = of_level(&Store, &body);
        body
    }

    #[test]
    fn a_user_finds_every_provider_of_the_served_release_at_a_fixed_address() {
        let endpoints = body("app").endpoints;
        let listens: Vec<String> = endpoints.values().map(|e| e.listen.to_string()).collect();
        assert_eq!(listens, ["127.77.0.1:6379", "127.77.0.2:6379"]);
        assert_eq!(endpoints["write"].targets, [provider(2, 2), provider(3, 2)]);
        assert_eq!(endpoints["write"].hold_seconds, 7);
        assert!(body("store").endpoints.is_empty(), "nobody dials there");
    }

    #[test]
    fn an_agent_leads_before_it_runs_roles_and_reports_what_is_held_as_use() {
        let version = |generation| LevelVersion {
            epoch: Epoch(1),
            generation: Generation(generation),
        };
        let level = |generation| Level {
            version: version(generation),
            service: "svc-a".parse().unwrap(),
            service_type: "store".into(),
            node: NodeNumber(1),
            node_name: "a-1".into(),
            body: body("app"),
        };
        let new = || {
            AgentCore::new(
                "svc-a".parse().unwrap(),
                NodeNumber(1),
                "b".into(),
                "1".into(),
            )
        };
        let mut core = new();
        let effects = core.handle(Event::Offered(level(1)));
        assert!(matches!(&effects[1], Effect::Lead(led) if led.len() == 2));
        assert!(matches!(&effects[2], Effect::Run { .. }));
        let again = core.handle(Event::Offered(level(2)));
        assert!(!again.iter().any(|e| matches!(e, Effect::Lead(_))));
        let status = RoleStatus::default();
        core.handle(Event::Observed {
            role: "app".into(),
            version: level(2).version,
            status,
        });
        let instance: Instance = provider(2, 1).instance();
        let held = BTreeMap::from([
            ("write".to_owned(), BTreeMap::from([(instance.clone(), 3)])),
            (
                "unknown".to_owned(),
                BTreeMap::from([(instance.clone(), 9)]),
            ),
        ]);
        let report = core.report(NodeHealth::default(), &held);
        let using: BTreeMap<Instance, u64> = report.roles["app"]
            .using
            .iter()
            .map(|used| (used.instance.clone(), used.in_flight))
            .collect();
        // One that is let go, and the two that are led to.
        let targets = [(2, 2), (3, 2)].map(|(n, r)| (provider(n, r).instance(), 0));
        assert_eq!(
            using,
            BTreeMap::from_iter([(instance, 3)].into_iter().chain(targets))
        );
        // After a restart the kept level leads again.
        let effects = new().resume(level(2));
        assert!(matches!(&effects[0], Effect::Lead(led) if led.len() == 2));
    }
}
