//! Service types of different shape that the simulated applications are of: pure halves only,
//! since what runs on a simulated machine is the simulator's own business.

use conpaas_core::service_type::{
    AuxiliaryDeclaration, Decision, Disruption, Fencing, RoleDeclaration, ServiceType,
};
use serde_json::{Value, json};

const fn role(
    name: &'static str,
    uses: &'static [&'static str],
    carries_releases: bool,
    exposed: bool,
    port: u16,
) -> RoleDeclaration {
    RoleDeclaration {
        name,
        title: "",
        uses,
        carries_releases,
        port,
        exposed,
        min: 1,
        max: 6,
        default_count: 1,
        packable: true,
        fencing: Fencing::OnSuspicion,
        memory_weight: 1,
    }
}

/// A front with two kinds of providers, both in releases; all of them may share a machine.
pub struct Site;

static SITE: [RoleDeclaration; 3] = [
    role("front", &["page", "file"], false, true, 8080),
    role("file", &[], true, false, 8200),
    role("page", &[], true, false, 9000),
];

/// A chain of two without releases, never on one machine; the type keeps one helper.
pub struct Chain;

static CHAIN: [RoleDeclaration; 2] = [
    RoleDeclaration {
        packable: false,
        ..role("asker", &["helper"], false, true, 7000)
    },
    RoleDeclaration {
        packable: false,
        ..role("helper", &[], false, false, 7100)
    },
];

/// A site whose pages keep things with an auxiliary role.
pub struct Kept;

static KEPT: [RoleDeclaration; 3] = [
    role("front", &["page"], false, true, 8080),
    role("page", &["keeper"], true, false, 9000),
    RoleDeclaration {
        min: 0,
        max: 0,
        default_count: 0,
        packable: false,
        ..role("keeper", &[], false, false, 6300)
    },
];

static KEEPER: [AuxiliaryDeclaration; 1] = [AuxiliaryDeclaration {
    role: "keeper",
    copies: 2,
    beside: &["page"],
    memory_percent: 10,
    wanted: |_| true,
}];

/// The hosts of managers, as the system's own type declares them.
pub struct Hosts;

static HOSTS: [RoleDeclaration; 1] = [RoleDeclaration {
    min: 0,
    max: 4,
    packable: false,
    ..role("manager", &[], false, false, 7444)
}];

macro_rules! declared {
    ($type:ty, $name:literal, $roles:expr, { $($more:tt)* }) => {
        impl ServiceType for $type {
            fn name(&self) -> &'static str { $name }
            fn title(&self) -> &'static str { $name }
            fn roles(&self) -> &'static [RoleDeclaration] { $roles }
            fn packages(&self) -> &'static [&'static str] { &[] }
            fn settings_schema(&self) -> Value { json!({}) }
            fn takes_code(&self) -> bool { true }
            fn decide(&self, decision: &Decision<'_>) -> Value {
                Value::from(decision.memory_mib)
            }
            $($more)*
        }
    };
}

declared!(Site, "site", &SITE, {});
declared!(Chain, "chain", &CHAIN, {
    fn may_disrupt(&self, disruption: &Disruption<'_>) -> Result<(), String> {
        let of = |role: &'static str| disruption.ready.iter().filter(move |i| i.role == role);
        let left = of("helper")
            .filter(|i| !disruption.instances.contains(i))
            .count();
        let stops = disruption.instances.iter().any(|i| i.role == "helper");
        if stops && left == 0 && of("asker").next().is_some() {
            return Err("one helper must stay".to_owned());
        }
        Ok(())
    }
});
declared!(Kept, "kept", &KEPT, {
    fn auxiliary(&self) -> &'static [AuxiliaryDeclaration] {
        &KEEPER
    }
});
declared!(Hosts, "hosts", &HOSTS, {
    fn internal(&self) -> bool {
        true
    }
});

/// What applications can be of.
pub const NAMES: [&str; 3] = ["site", "chain", "kept"];

/// A type by its name; an unknown one is a `site`.
pub fn by_name(name: &str) -> &'static dyn ServiceType {
    match name {
        "chain" => &Chain,
        "kept" => &Kept,
        "hosts" => &Hosts,
        _ => &Site,
    }
}
