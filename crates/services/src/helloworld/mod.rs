//! The smallest service type with two roles: `front` asks a `greeter` and hands its greeting on.
//! It shows what a service type states and does; copy this folder to begin one of your own.
//! What the type is and decides is here, how its roles run on a node is in `agent`.

mod agent;

use conpaas_core::endpoint::EndpointDeclaration;
use conpaas_core::role_agent::{RoleAgent, RoleAgents};
use conpaas_core::service_type::{
    CommandDeclaration, CommandKind, Decision, Disruption, Fencing, RoleDeclaration, ServiceType,
};
use conpaas_model::level::{Instance, OnChange};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const FRONT: &str = "front";
const GREETER: &str = "greeter";
const FRONT_PORT: u16 = 8080;
const GREETER_PORT: u16 = 9300;

/// The service type `helloworld`, both halves.
pub struct HelloWorld;

static ROLES: [RoleDeclaration; 2] = [
    RoleDeclaration {
        name: FRONT,
        title: "answers people with what a greeter says",
        uses: &[GREETER],
        carries_releases: false,
        port: FRONT_PORT,
        exposed: true,
        min: 1,
        max: 8,
        default_count: 1,
        packable: true,
        fencing: Fencing::OnSuspicion,
        memory_weight: 1,
    },
    RoleDeclaration {
        name: GREETER,
        title: "says the greeting",
        uses: &[],
        carries_releases: false,
        port: GREETER_PORT,
        exposed: false,
        min: 1,
        max: 32,
        default_count: 1,
        packable: true,
        fencing: Fencing::OnSuspicion,
        memory_weight: 1,
    },
];

/// A front asks at one address of its own node; its agent leads it to some greeter. A request
/// is short, so what is open to a greeter that goes ends by itself.
static ENDPOINTS: [EndpointDeclaration; 1] = [EndpointDeclaration {
    name: GREETER,
    port: GREETER_PORT,
    provider: GREETER,
    users: &[FRONT],
    hold_seconds: 1,
    on_change: OnChange::Keep,
}];

static COMMANDS: [CommandDeclaration; 1] = [CommandDeclaration {
    name: "greet",
    title: "asks every greeter what it says",
    kind: CommandKind::Query,
    role: GREETER,
    arguments: greet_arguments,
}];

fn greet_arguments() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "shout": {"type": "boolean", "title": "In capitals", "default": false}
        }
    })
}

/// Configuration of both roles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Config {
    /// What a greeter says; a front does not need it.
    text: String,
}

impl ServiceType for HelloWorld {
    fn name(&self) -> &'static str {
        "helloworld"
    }
    fn title(&self) -> &'static str {
        "Hello, world: the smallest service"
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        &ROLES
    }
    fn packages(&self) -> &'static [&'static str] {
        &["busybox"]
    }
    fn settings_schema(&self) -> Value {
        let text = |title: &str, description: &str, default: &str| {
            json!({"type": "string", "title": title, "description": description,
                   "minLength": 1, "maxLength": 100, "pattern": r"^[^\u0000-\u001f]*$", "default": default})
        };
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Settings of Hello, world",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "greeting": text("Greeting", "What greeters say.", "Hello"),
                "audience": text("Audience", "Whom they say it to.", "world")
            }
        })
    }
    fn commands(&self) -> &'static [CommandDeclaration] {
        &COMMANDS
    }
    fn endpoints(&self) -> &'static [EndpointDeclaration] {
        &ENDPOINTS
    }
    fn takes_code(&self) -> bool {
        false
    }
    fn decide(&self, decision: &Decision<'_>) -> Value {
        let setting = |name: &str, default: &str| {
            decision
                .release
                .settings
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or(default)
                .to_owned()
        };
        let text = match decision.role {
            GREETER => format!(
                "{}, {}! This is {}.",
                setting("greeting", "Hello"),
                setting("audience", "world"),
                decision.node_name
            ),
            _ => String::new(),
        };
        serde_json::to_value(Config { text }).unwrap_or_default()
    }
    /// A front that goes on serving must keep somebody to ask.
    fn may_disrupt(&self, disruption: &Disruption<'_>) -> Result<(), String> {
        let staying = |role: &str| {
            disruption
                .ready
                .difference(disruption.instances)
                .filter(|instance| instance.role == role)
                .count()
        };
        let greeters: Vec<&Instance> = disruption
            .instances
            .iter()
            .filter(|instance| instance.role == GREETER)
            .collect();
        if greeters.is_empty() || staying(FRONT) == 0 || staying(GREETER) > 0 {
            return Ok(());
        }
        let names: Vec<String> = greeters.iter().map(ToString::to_string).collect();
        Err(format!(
            "{} would leave the front without a greeter: another must be ready first",
            names.join(" and ")
        ))
    }
}

impl RoleAgents for HelloWorld {
    fn role_agent(&self, role: &str) -> Option<Box<dyn RoleAgent>> {
        match role {
            FRONT => Some(Box::<agent::Front>::default()),
            GREETER => Some(Box::<agent::Greeter>::default()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::ids::NodeNumber;
    use std::collections::{BTreeMap, BTreeSet};

    fn instances(of: &[(&str, u64)]) -> BTreeSet<Instance> {
        of.iter()
            .map(|(role, node)| Instance {
                role: (*role).to_owned(),
                node: NodeNumber(*node),
                release: None,
            })
            .collect()
    }

    #[test]
    fn the_last_greeter_stays_while_a_front_serves() {
        let facts = BTreeMap::new();
        let ask = |stop: &[(&str, u64)], ready: &[(&str, u64)]| {
            HelloWorld.may_disrupt(&Disruption {
                instances: &instances(stop),
                ready: &instances(ready),
                facts: &facts,
            })
        };
        let ready = [(FRONT, 1), (GREETER, 1), (GREETER, 2)];
        assert!(ask(&[(GREETER, 1)], &ready).is_ok());
        let reason = ask(&[(GREETER, 1), (GREETER, 2)], &ready).unwrap_err();
        assert!(reason.contains("without a greeter"), "{reason}");
        assert!(ask(&ready, &ready).is_ok(), "all together may stop");
        assert!(ask(&[(FRONT, 1)], &ready).is_ok());
    }
}
