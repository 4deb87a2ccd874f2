//! Whoever dies on a machine of `local` leaves an event that says who it was, where, how it ended
//! and how often; so does a node that is judged dead by the silence of its agent.

use conpaas_tests::{World, wait_for};
use serde_json::Value;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";

/// Sends a signal to those first processes of a role (or the agent) whose command line fits.
fn strike(world: &World, machine: i32, signal: &str, command: &str) {
    let script = format!(
        r#"for p in /proc/[0-9]*; do
            grep -q '^PPid:.1$' "$p/status" || continue
            tr '\0' ' ' <"$p/cmdline" | grep -q '{command}' || continue
            kill -{signal} "${{p#/proc/}}" && echo struck
        done; true"#
    );
    let (_, said) = world.inside(machine, &["sh", "-c", &script]);
    assert_eq!(said, "struck", "{command}");
}

/// Waits for an event, and gives it.
fn told(world: &World, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let mut found = Value::Null;
    wait_for(what, Duration::from_secs(40), || {
        let events = world.json(["app", "events", "shop", "--lines", "1000"]);
        let event = events.as_array().into_iter().flatten().find(|e| fits(e));
        match event {
            Some(event) => {
                found = event.clone();
                Ok(())
            }
            None => Err(events),
        }
    });
    found
}

#[test]
fn whoever_dies_on_a_machine_leaves_an_event_with_its_reason() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    let node = world.service("shop/web")["nodes"][0]["number"].clone();
    let machine = world.first_process(&format!("shop/web/{node}"));
    for (role, command) in [
        ("backend", "php-fpm: master"),
        ("web", "nginx: master"),
        ("proxy", "haproxy -db"),
    ] {
        strike(&world, machine, "KILL", command);
        let event = told(&world, &format!("the end of {role} to be told"), |event| {
            event["kind"] == "process_ended" && event["facts"]["role"] == role
        });
        println!("{event}");
        let facts = &event["facts"];
        assert_eq!(
            (&facts["node"], &facts["exit"]["signal"], &facts["times"]),
            (&node, &9.into(), &1.into())
        );
        assert_eq!(
            (&event["service"], &event["actor"]),
            (&"web".into(), &"system".into())
        );
        let reason = event["reason"].as_str().unwrap();
        assert!(reason.contains("signal 9"), "{reason}");
    }
    world.wait_status(HOST, "/", 200);

    strike(&world, machine, "KILL", "conpaas agent");
    let event = told(&world, "the end of the agent to be told", |event| {
        event["kind"] == "agent_restarted" && event["facts"]["node"] == node
    });
    println!("{event}");
    assert_eq!(event["facts"]["exit"]["signal"], 9);
    let words = world.ok(["app", "events", "shop", "--lines", "1000"]);
    for said in [
        format!("web: the agent of node {node} ended and is started again"),
        format!("on node {node} ended and is started again: it was killed by signal 9"),
    ] {
        assert!(words.contains(&said), "{said} is not in:\n{words}");
    }

    // An agent that stands still cannot be heard: its node is given up, and another comes.
    strike(&world, machine, "STOP", "conpaas agent");
    let event = told(&world, "the silent node to be judged dead", |event| {
        event["kind"] == "node_died" && event["facts"]["node"] == node
    });
    println!("{event}");
    assert_eq!(event["facts"]["signal"]["of"], "silence");
    assert!(event["reason"].as_str().unwrap().contains("10 s"));
    let another = told(&world, "another node to be asked for", |event| {
        event["kind"] == "node_requested" && event["facts"]["because"]["replaces"] == node
    });
    let another = another["facts"]["node"].clone();
    told(&world, "the other node to be up", |event| {
        event["kind"] == "node_up" && event["facts"]["node"] == another
    });
    world.wait_status(HOST, "/", 200);
}
