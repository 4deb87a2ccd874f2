//! Real fronts and greeters on the loopback network.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end by a panic"
)]

mod common;

use common::{Load, World, get};
use conpaas_agent::Endpoints;
use conpaas_core::endpoint;
use conpaas_core::role_agent::RoleAgents;
use conpaas_core::service_type::{Decision, ServiceType};
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::instance::default_instance_types;
use conpaas_model::level::{Duty, LevelBody, Provider, RoleLevel};
use conpaas_model::spec::{Release, Settings};
use conpaas_model::status::Phase;
use conpaas_services::helloworld::HelloWorld;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn level(role: &str, node: u8, settings: &Settings) -> RoleLevel {
    let release = Release {
        number: ReleaseNumber(1),
        code: None,
        settings: settings.clone(),
        environment: Default::default(),
    };
    let name = format!("greeter-{node}");
    let instance_type = &default_instance_types()[0];
    let decision = Decision {
        role,
        node: NodeNumber(node.into()),
        node_name: &name,
        instance_type,
        memory_mib: 64,
        release: &release,
    };
    RoleLevel {
        duty: Duty::Serve,
        config: HelloWorld.decide(&decision),
        releases: BTreeMap::new(),
        serve: Some(ReleaseNumber(1)),
        preview: None,
        providers: vec![],
        leads: BTreeMap::new(),
    }
}

/// Leads the front of the first node as its level says.
fn lead(endpoints: &mut Endpoints, front: &RoleLevel) {
    let level = LevelBody {
        roles: BTreeMap::from([("front".to_owned(), front.clone())]),
        endpoints: BTreeMap::new(),
    };
    endpoints.lead(&endpoint::of_level(&HelloWorld, &level), Some(&HelloWorld));
}

fn greeting(body: &str) -> Option<u64> {
    body.contains("world").then_some(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_hands_on_greetings_while_greeters_come_and_go() {
    assert!(
        std::path::Path::new("/bin/busybox").exists(),
        "this test needs the Debian package busybox"
    );
    let world = World::new(3);
    let settings = Settings::new();
    let provider = |node: u8| Provider {
        role: "greeter".into(),
        node: NodeNumber(node.into()),
        release: None,
        address: world.address(node),
        port: HelloWorld.role("greeter").unwrap().port,
        capacity: 0,
    };
    let front = world.drive(&HelloWorld, 1, "front");
    let greeters = [2, 3].map(|node| world.drive(&HelloWorld, node, "greeter"));
    for (node, greeter) in [2, 3].into_iter().zip(&greeters) {
        greeter.set(level("greeter", node, &settings));
        greeter
            .until("greeter ready", |status| status.own == Some(Phase::Ready))
            .await;
    }
    let mut first = level("front", 1, &settings);
    first.providers = vec![provider(2)];
    let mut endpoints = Endpoints::new(world.loopback());
    lead(&mut endpoints, &first);
    front.set(first.clone());
    front
        .until("front ready", |status| {
            status.own == Some(Phase::Ready) && status.serving == Some(ReleaseNumber(1))
        })
        .await;
    let at = world.at(1, 8080);
    assert_eq!(
        get(at, "/").await.unwrap().body.trim(),
        "Hello, world! This is greeter-2."
    );

    let load = Load::start(at, &["/"], greeting);
    first.providers.push(provider(3));
    lead(&mut endpoints, &first);
    load.more(50).await;
    first.providers.remove(0);
    lead(&mut endpoints, &first);
    let limit = Instant::now() + Duration::from_secs(20);
    while endpoints
        .held()
        .values()
        .flatten()
        .any(|(i, _)| i.node == NodeNumber(2))
    {
        assert!(Instant::now() < limit, "it is not let go");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    greeters[0].change(|level| level.duty = Duty::Drain);
    greeters[0]
        .until("drained", |status| status.own == Some(Phase::Drained))
        .await;
    greeters[0].unset();
    let mut changed = settings.clone();
    changed.insert("greeting".into(), json!("Goedendag"));
    greeters[1].set(level("greeter", 3, &changed));
    greeters[1]
        .until("the new greeting", |status| {
            status
                .facts
                .get("says")
                .is_some_and(|says| says == "Goedendag, world! This is greeter-3.")
        })
        .await;
    load.finish("greeters come and go").await;

    let mut agent = HelloWorld.role_agent("greeter").unwrap();
    let answer = agent
        .command(&greeters[1].node, "greet", &json!({"shout": true}))
        .await
        .unwrap();
    assert_eq!(
        answer,
        json!({"says": "GOEDENDAG, WORLD! THIS IS GREETER-3."})
    );
    assert!(
        agent
            .command(&greeters[1].node, "dance", &json!({}))
            .await
            .is_err()
    );

    front.unset();
    greeters[1].unset();
    let limit = Instant::now() + Duration::from_secs(20);
    while !(front.is_stopped() && greeters.iter().all(common::Driven::is_stopped)) {
        assert!(Instant::now() < limit, "something does not stop");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
