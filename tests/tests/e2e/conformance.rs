//! What every service type must do, run on each: start, scale, drain, settings, command, kill,
//! stop, start, delete.

use conpaas_tests::{World, wait_for};
use serde_json::Value;
use std::time::Duration;

/// What the suite has to know of a type.
struct Subject {
    service_type: &'static str,
    /// A role to scale.
    role: &'static str,
    /// A setting with a new value.
    setting: &'static str,
    /// A command that asks nodes, if the type has one.
    command: Option<&'static str>,
}

fn nodes(world: &World) -> Vec<Value> {
    world.service("shop/it")["nodes"].as_array().cloned().unwrap_or_default()
}

fn count(world: &World, role: &str) -> usize {
    let ready = |node: &Value| {
        node["roles"].as_array().is_some_and(|roles| roles.iter().any(|r| r["role"] == role && r["phase"] == "ready"))
    };
    nodes(world).iter().filter(|n| ready(n)).count()
}

fn suite(subject: &Subject) {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", subject.service_type, "--name", "it"]);
    assert_eq!(world.service("shop/it")["state"], "INIT");
    world.ok(["app", "start", "shop"]);
    assert_eq!(world.service("shop/it")["state"], "RUNNING");

    world.ok(["service", "scale", "shop/it", &format!("{}=+2", subject.role)]);
    assert_eq!(count(&world, subject.role), 3);
    let operation = world.json(["service", "scale", "shop/it", &format!("{}=3", subject.role)]);
    assert!(operation["operation"].is_null(), "the same wish again changes nothing: {operation}");
    world.ok(["service", "scale", "shop/it", &format!("{}=-1", subject.role)]);
    assert_eq!(count(&world, subject.role), 2);

    world.ok(["service", "set", "shop/it", subject.setting]);
    assert_eq!(world.service("shop/it")["state"], "RUNNING");
    if let Some(command) = subject.command {
        let answers = world.json([subject.service_type, command, "shop/it"]);
        assert!(answers.as_object().is_some_and(|a| a.len() == 2), "one answer a node: {answers}");
    }

    let victim = nodes(&world).iter().filter_map(|n| n["number"].as_u64()).max().unwrap();
    kill_machine(&world, victim);
    wait_for("the dead node to be replaced", Duration::from_secs(60), || {
        let numbers: Vec<_> = nodes(&world).iter().filter_map(|n| n["number"].as_u64()).collect();
        let ready = count(&world, subject.role);
        if !numbers.contains(&victim) && ready == 2 { Ok(()) } else { Err((numbers, ready)) }
    });

    world.ok(["service", "stop", "shop/it"]);
    assert_eq!(world.service("shop/it")["state"], "STOPPED");
    assert!(nodes(&world).is_empty());
    world.ok(["service", "start", "shop/it"]);
    assert_eq!(count(&world, subject.role), 2);
    world.ok(["service", "delete", "shop/it", "--yes"]);
    assert_eq!(world.run(["service", "show", "shop/it"]).code, 4);
    world.ok(["app", "delete", "shop", "--yes"]);
    wait_for("all machines to be gone", Duration::from_secs(20), || {
        match std::fs::read_dir(world.state().join("cloud/machines")).unwrap().count() {
            0 => Ok(()),
            left => Err(left),
        }
    });
}

/// Kills PID 1 of a node's machine, as a crash would.
fn kill_machine(world: &World, number: u64) {
    let node = world.json(["node", "show", &format!("shop/it/{number}")]);
    let machine = node["machine"].as_str().expect("a machine").to_owned();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with("/usr/local/bin/conpaas init") && context_of(pid).contains(&machine) {
            // SAFETY: a signal to a machine that this test's own installation made.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
            return;
        }
    }
    panic!("no process of machine {machine}");
}

fn context_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/root/etc/conpaas/context.json")).unwrap_or_default()
}

#[test]
fn php_conforms() {
    suite(&Subject { service_type: "php", role: "backend", setting: "memory_limit=96M", command: None });
}

#[test]
fn helloworld_conforms() {
    suite(&Subject { service_type: "helloworld", role: "greeter", setting: "greeting=Moin", command: Some("greet") });
}
