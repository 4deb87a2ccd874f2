//! Two service types of different shape, for the world.

use conpaas_core::endpoint::EndpointDeclaration;
use conpaas_core::service_type::*;
use conpaas_model::ids::Term;
use conpaas_model::level::OnChange;
use serde_json::{Value, json};

pub struct Site;

const fn role(
    name: &'static str,
    uses: &'static [&'static str],
    carries: bool,
    exposed: bool,
    port: u16,
) -> RoleDeclaration {
    RoleDeclaration {
        name,
        title: "",
        uses,
        carries_releases: carries,
        port,
        exposed,
        min: 1,
        max: 100_000,
        default_count: 1,
        packable: true,
        fencing: Fencing::OnSuspicion,
        memory_weight: 1,
    }
}

static SITE: [RoleDeclaration; 3] = [
    role("front", &["page", "file"], false, true, 8080),
    role("file", &[], true, false, 8200),
    role("page", &[], true, false, 9000),
];

impl ServiceType for Site {
    fn name(&self) -> &'static str {
        "site"
    }
    fn title(&self) -> &'static str {
        "a site"
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        &SITE
    }
    fn packages(&self) -> &'static [&'static str] {
        &[]
    }
    fn settings_schema(&self) -> Value {
        json!({})
    }
    fn takes_code(&self) -> bool {
        true
    }
    fn takes_environment(&self) -> &'static [&'static str] {
        &["page"]
    }
    fn decide(&self, decision: &Decision<'_>) -> Value {
        json!({ "memory": decision.memory_mib })
    }
}

/// A chain of two, neither packable nor carrying releases, that keeps one helper.
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

impl ServiceType for Chain {
    fn name(&self) -> &'static str {
        "chain"
    }
    fn title(&self) -> &'static str {
        "a chain"
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        &CHAIN
    }
    fn packages(&self) -> &'static [&'static str] {
        &[]
    }
    fn settings_schema(&self) -> Value {
        json!({})
    }
    fn takes_code(&self) -> bool {
        false
    }
    fn decide(&self, decision: &Decision<'_>) -> Value {
        json!({ "release": decision.release.number.0 })
    }
    fn may_disrupt(&self, disruption: &Disruption<'_>) -> Result<(), String> {
        let helpers = disruption
            .instances
            .iter()
            .filter(|i| i.role == "helper")
            .count();
        let left = disruption
            .ready
            .difference(disruption.instances)
            .filter(|i| i.role == "helper")
            .count();
        let askers = disruption.ready.iter().any(|i| i.role == "asker");
        if askers && helpers > 0 && left == 0 {
            Err("one helper must stay".to_owned())
        } else {
            Ok(())
        }
    }
}

/// A site whose pages keep things with an auxiliary role that has a leader, unless a release does without.
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
    wanted: |release| !release.settings.contains_key("off"),
}];

static KEEPER_ENDPOINT: [EndpointDeclaration; 1] = [EndpointDeclaration {
    name: "keeper",
    port: 6300,
    provider: "keeper",
    users: &["page"],
    hold_seconds: 5,
    on_change: OnChange::Resend,
}];

impl ServiceType for Kept {
    fn name(&self) -> &'static str {
        "kept"
    }
    fn title(&self) -> &'static str {
        "a site that keeps things"
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        &KEPT
    }
    fn auxiliary(&self) -> &'static [AuxiliaryDeclaration] {
        &KEEPER
    }
    fn endpoints(&self) -> &'static [EndpointDeclaration] {
        &KEEPER_ENDPOINT
    }
    fn led(&self) -> &'static [&'static str] {
        &["keeper"]
    }
    fn standing(&self, facts: &serde_json::Map<String, Value>) -> Standing {
        let term = |name: &str| facts.get(name).and_then(Value::as_u64).map(Term);
        Standing {
            told: facts.contains_key("ahead"),
            leads: term("leads"),
            holds: term("holds"),
            ahead: term("ahead").unwrap_or_default().0,
        }
    }
    fn packages(&self) -> &'static [&'static str] {
        &[]
    }
    fn settings_schema(&self) -> Value {
        json!({})
    }
    fn takes_code(&self) -> bool {
        true
    }
    fn decide(&self, decision: &Decision<'_>) -> Value {
        json!({ "memory": decision.memory_mib })
    }
}

/// A site over a store of which no two copies may be the same: its nodes are replaced only after
/// their destruction.
pub struct Vault;

static VAULT: [RoleDeclaration; 2] = [
    role("front", &["store"], false, true, 8080),
    RoleDeclaration {
        fencing: Fencing::AfterDestruction,
        ..role("store", &[], false, false, 3306)
    },
];

impl ServiceType for Vault {
    fn name(&self) -> &'static str {
        "vault"
    }
    fn title(&self) -> &'static str {
        "a site over a store"
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        &VAULT
    }
    fn packages(&self) -> &'static [&'static str] {
        &[]
    }
    fn settings_schema(&self) -> Value {
        json!({})
    }
    fn takes_code(&self) -> bool {
        false
    }
    fn decide(&self, _decision: &Decision<'_>) -> Value {
        json!({})
    }
}
