//! Scenarios that hold on every platform, each a plain function over a world: once with machines
//! that are tasks of this process (`memory`), once with real ones (`local`). The life cycle is
//! what every service type must do: start, scale, drain, settings, command, kill, stop, start,
//! delete.

use conpaas_tests::{Platform, World, archive, load, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";

/// Two tests of one scenario.
macro_rules! on_both {
    ($($scenario:ident),* $(,)?) => {$(
        mod $scenario {
            use super::*;
            #[test]
            fn memory() {
                super::$scenario(&World::start_on(Platform::Memory));
            }
            #[test]
            fn local() {
                super::$scenario(&World::start_on(Platform::Local));
            }
        }
    )*};
}

on_both!(
    php_lives_its_life,
    helloworld_lives_its_life,
    roles_spread_and_pack_again,
    a_version_switches_and_comes_back,
    a_dead_machine_is_replaced,
    a_managers_machine_is_replaced,
    a_service_has_a_manager_of_its_own,
    the_director_restarts_amid_a_scale,
    a_cancelled_scale_leaves_what_was,
    a_stranger_sees_nothing,
);

/// What the life cycle has to know of a type.
struct Subject {
    service_type: &'static str,
    /// A role to scale.
    role: &'static str,
    /// A setting with a new value.
    setting: (&'static str, &'static str),
    /// A command that asks nodes, and whose answers show the setting.
    command: &'static str,
}

fn php_lives_its_life(world: &World) {
    let setting = ("memory_limit", "96M");
    lives(
        world,
        &Subject {
            service_type: "php",
            role: "backend",
            setting,
            command: "info",
        },
    );
}

fn helloworld_lives_its_life(world: &World) {
    let setting = ("greeting", "Moin");
    lives(
        world,
        &Subject {
            service_type: "helloworld",
            role: "greeter",
            setting,
            command: "greet",
        },
    );
}

fn nodes(world: &World) -> Vec<Value> {
    world.service("shop/it")["nodes"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

fn numbers(world: &World) -> BTreeSet<u64> {
    nodes(world)
        .iter()
        .filter_map(|node| node["number"].as_u64())
        .collect()
}

/// How many nodes have a ready instance of a role.
fn ready(world: &World, role: &str) -> usize {
    let is_ready = |node: &Value| {
        node["roles"].as_array().is_some_and(|roles| {
            roles
                .iter()
                .any(|r| r["role"] == role && r["phase"] == "ready")
        })
    };
    nodes(world).iter().filter(|node| is_ready(node)).count()
}

#[track_caller]
fn state(world: &World, state: &str, allowed: &[&str]) {
    let service = world.service("shop/it");
    assert_eq!(service["state"], state, "{service:#}");
    let found: BTreeSet<&str> = service["allowed"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for verb in allowed {
        assert!(
            found.contains(verb),
            "no '{verb}' in state {state}: {found:?}"
        );
    }
    assert!(
        found.contains("delete"),
        "every state has a way out: {found:?}"
    );
    assert_eq!(
        service["operation"],
        Value::Null,
        "nothing is under way: {service:#}"
    );
}

/// Runs a change and gives the finished operation.
#[track_caller]
fn change(world: &World, arguments: &[&str]) -> Value {
    let operation = world.json(arguments);
    assert_eq!(operation["outcome"], "done", "{arguments:?}: {operation:#}");
    assert!(operation["ended_at"].is_string(), "{operation:#}");
    let steps = operation["steps"].as_array().unwrap();
    assert!(
        steps.iter().all(|step| step["done"] == true),
        "{operation:#}"
    );
    operation
}

/// Makes a started service `shop/it`.
fn shop(world: &World, service_type: &str) {
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", service_type, "--name", "it"]);
    world.ok(["app", "start", "shop"]);
}

fn lives(world: &World, subject: &Subject) {
    world.ok(["app", "create", "shop"]);
    world.ok([
        "service",
        "add",
        "shop",
        subject.service_type,
        "--name",
        "it",
    ]);
    state(world, "INIT", &["start", "scale", "set"]);
    assert!(nodes(world).is_empty());
    assert!(
        world.machines().is_empty(),
        "what was never started has no machine"
    );

    let started = change(world, &["app", "start", "shop"]);
    assert_eq!(started["kind"], "start");
    state(world, "RUNNING", &["stop", "scale", "set"]);
    assert_eq!(
        nodes(world).len(),
        1,
        "it starts on one node with all roles"
    );
    assert_eq!(
        world.machines().len(),
        2,
        "its node, and one for the application's managers"
    );
    world.wait_status(HOST, "/", 200);

    let up = change(
        world,
        &[
            "service",
            "scale",
            "shop/it",
            &format!("{}=+2", subject.role),
        ],
    );
    assert_eq!(
        (&up["kind"], &up["service"]),
        (&"scale".into(), &"it".into())
    );
    assert_eq!(ready(world, subject.role), 3);
    let same = world.json([
        "service",
        "scale",
        "shop/it",
        &format!("{}=3", subject.role),
    ]);
    assert_eq!(
        same["operation"],
        Value::Null,
        "the same wish again changes nothing: {same}"
    );
    change(
        world,
        &[
            "service",
            "scale",
            "shop/it",
            &format!("{}=2", subject.role),
        ],
    );
    assert_eq!(ready(world, subject.role), 2);
    state(world, "RUNNING", &["stop", "scale", "set"]);

    let (key, value) = subject.setting;
    let release = world.service("shop/it")["active_release"].clone();
    change(
        world,
        &["service", "set", "shop/it", &format!("{key}={value}")],
    );
    let service = world.service("shop/it");
    assert_eq!(service["settings"][key], value);
    assert_ne!(
        service["active_release"], release,
        "a change of settings is a release"
    );
    let answers = world.json([subject.service_type, subject.command, "shop/it"]);
    let answers = answers.as_object().unwrap();
    assert_eq!(answers.len(), 2, "one answer a node: {answers:?}");
    assert!(
        answers
            .values()
            .all(|answer| answer.to_string().contains(value)),
        "{answers:?}"
    );

    replaced(world, subject.role, 2);

    change(world, &["service", "stop", "shop/it"]);
    state(world, "STOPPED", &["start", "set"]);
    assert!(nodes(world).is_empty());
    let (status, page) = world.get(HOST, "/").unwrap();
    assert_eq!(status, 503, "{page}");
    world.wait_no_leak();

    change(world, &["service", "start", "shop/it"]);
    state(world, "RUNNING", &["stop", "scale", "set"]);
    assert_eq!(
        ready(world, subject.role),
        2,
        "a stop keeps what was wanted"
    );
    assert_eq!(world.service("shop/it")["settings"][key], value);
    world.wait_status(HOST, "/", 200);

    change(world, &["app", "stop", "shop"]);
    wait_for(
        "a stopped application to hold no machine",
        Duration::from_secs(30),
        || {
            let left = world.machines();
            if left.is_empty() { Ok(()) } else { Err(left) }
        },
    );
    change(world, &["app", "start", "shop"]);
    assert_eq!(ready(world, subject.role), 2);

    change(world, &["service", "delete", "shop/it", "--yes"]);
    assert_eq!(world.run(["service", "show", "shop/it"]).code, 4);
    change(world, &["app", "delete", "shop", "--yes"]);
    assert_eq!(world.run(["app", "show", "shop"]).code, 4);
    wait_for("all machines to be gone", Duration::from_secs(30), || {
        let left = world.machines();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    world.ok(["app", "create", "shop"]);
}

/// A started PHP service with code of the test's own.
fn site(world: &World) {
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "it"]);
    upload(world, 1);
    world.ok(["app", "start", "shop"]);
    assert!(world.wait_status(HOST, "/", 200).starts_with("version "));
}

fn upload(world: &World, version: u32) {
    let archive = world.path().join(format!("v{version}.tar.gz"));
    archive::site(&archive, version);
    world.ok([
        "code",
        "upload",
        "shop/it",
        archive.to_str().unwrap(),
        "--activate",
    ]);
}

/// The roles of each node that people ask for, as `role+role`, sorted: what stands beside them is
/// none of their business here.
fn layout(world: &World) -> Vec<String> {
    let roles = |node: &Value| {
        let names: BTreeSet<&str> = node["roles"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|r| r["role"].as_str())
            .filter(|role| *role != "sessions")
            .collect();
        names.into_iter().collect::<Vec<_>>().join("+")
    };
    let mut all: Vec<String> = nodes(world).iter().map(roles).collect();
    all.sort();
    all
}

fn roles_spread_and_pack_again(world: &World) {
    site(world);
    assert_eq!(
        layout(world),
        ["backend+proxy+web"],
        "one node holds all roles"
    );

    let load = load::start(world.edge_port, HOST, "/", Duration::from_millis(10));
    change(world, &["service", "scale", "shop/it", "backend=4"]);
    assert_eq!(
        world.ready_roles("shop/it"),
        ["backend=4", "proxy=1", "web=1"]
    );
    let spread = layout(world);
    assert_eq!(
        spread.iter().filter(|roles| *roles == "backend").count(),
        4,
        "backends have nodes of their own: {spread:?}"
    );
    change(world, &["service", "scale", "shop/it", "backend=1"]);
    let counts = load.finish();
    println!(
        "1 > 4 > 1: {} requests, {} failed",
        counts.sent,
        counts.failed.len()
    );
    assert_eq!(counts.failed, Vec::<String>::new());
    assert_eq!(
        world.ready_roles("shop/it"),
        ["backend=1", "proxy=1", "web=1"]
    );
    assert_eq!(
        layout(world),
        ["backend+proxy+web"],
        "they pack together again"
    );
    assert_eq!(world.wait_no_leak().len(), 2);
}

fn a_version_switches_and_comes_back(world: &World) {
    site(world);
    change(
        world,
        &[
            "service",
            "scale",
            "shop/it",
            "backend=2",
            "web=2",
            "proxy=2",
        ],
    );
    assert_eq!(
        world.ready_roles("shop/it"),
        ["backend=2", "proxy=2", "web=2"]
    );
    let before = world.service("shop/it");
    let load = load::start(world.edge_port, HOST, "/", Duration::from_millis(10));
    upload(world, 2);
    let counts = load.finish();
    assert_eq!(counts.failed, Vec::<String>::new());
    assert_eq!(
        counts.back_steps, 0,
        "nobody steps back to the old version: {counts:?}"
    );
    let switched = world.service("shop/it");
    assert_eq!(switched["serving_release"], switched["active_release"]);
    assert_ne!(switched["active_release"], before["active_release"]);
    assert_eq!(
        world.ready_roles("shop/it"),
        ["backend=2", "proxy=2", "web=2"],
        "the old release has gone"
    );

    change(world, &["service", "rollback", "shop/it"]);
    let back = world.service("shop/it");
    assert_eq!(back["serving_release"], back["active_release"]);
    let releases = world.json(["service", "releases", "shop/it"]);
    let code_of = |number: &Value| {
        releases
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["number"] == *number)
            .map(|r| r["code"].clone())
    };
    assert_eq!(
        code_of(&back["active_release"]),
        code_of(&before["active_release"]),
        "{releases:#}"
    );
}

fn a_dead_machine_is_replaced(world: &World) {
    shop(world, "php");
    change(world, &["service", "scale", "shop/it", "backend=3"]);
    replaced(world, "backend", 3);
    world.wait_no_leak();
}

/// The newest node dies, and another comes in its stead.
fn replaced(world: &World, role: &str, count: usize) {
    let victim = *numbers(world).last().unwrap();
    world.kill_machine(&format!("shop/it/{victim}"));
    wait_for(
        "the dead node to be replaced",
        Duration::from_secs(60),
        || {
            let (numbers, ready) = (numbers(world), ready(world, role));
            if !numbers.contains(&victim) && ready == count {
                Ok(())
            } else {
                Err((numbers, ready))
            }
        },
    );
    wait_for(
        "the service to be at its wish",
        Duration::from_secs(30),
        || {
            let service = world.service("shop/it");
            if service["state"] == "RUNNING" {
                Ok(())
            } else {
                Err(service)
            }
        },
    );
    let events = world.json(["app", "events", "shop"]);
    let died = events
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["kind"] == "node_died" && e["facts"]["node"] == victim);
    let reason =
        died.unwrap_or_else(|| panic!("no event tells of it: {events:#}"))["reason"].as_str();
    assert!(
        reason.is_some_and(|reason| reason.contains("signal 9")),
        "{reason:?}"
    );
}

/// The node of an application's managers.
fn manager_node(world: &World) -> Option<(u64, String)> {
    let nodes = world.json(["node", "list", "shop"]);
    let node = nodes
        .as_array()?
        .iter()
        .find(|node| node["manager"] == true)?
        .clone();
    Some((
        node["number"].as_u64()?,
        node["service"].as_str()?.to_owned(),
    ))
}

fn a_managers_machine_is_replaced(world: &World) {
    shop(world, "helloworld");
    let (victim, service) = manager_node(world).expect("a node for managers");
    let before = numbers(world);
    world.kill_machine(&format!("shop/{service}/{victim}"));
    wait_for(
        "a new node for managers",
        Duration::from_secs(60),
        || match manager_node(world) {
            Some((number, _)) if number != victim => Ok(()),
            other => Err(other),
        },
    );
    let (status, _) = world.get(HOST, "/").unwrap();
    assert_eq!(status, 200, "people notice nothing");
    change(world, &["service", "scale", "shop/it", "greeter=2"]);
    assert_eq!(ready(world, "greeter"), 2);
    assert!(
        before.is_subset(&numbers(world)) || !numbers(world).is_disjoint(&before),
        "the new manager goes on with the nodes there are"
    );
    world.wait_no_leak();
}

/// A service that asked for it is managed from a machine of its own, which comes and goes with it.
fn a_service_has_a_manager_of_its_own(world: &World) {
    shop(world, "helloworld");
    world.ok([
        "service",
        "add",
        "shop",
        "helloworld",
        "--name",
        "own",
        "--own-manager",
        "--start",
    ]);
    let managers = || {
        let nodes = world.json(["node", "list", "shop"]);
        let nodes = nodes.as_array().unwrap().iter();
        let nodes = nodes.filter(|node| node["manager"] == true && node["state"] == "up");
        let mut names: Vec<String> = nodes
            .map(|node| node["service"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let both = managers();
    assert_eq!(
        both.len(),
        2,
        "one for the application, one for the service"
    );
    assert_ne!(both[0], both[1]);
    world.ok(["service", "scale", "shop/own", "greeter=2"]);
    let victim = world.json(["node", "list", "shop"]);
    let own = both.iter().find(|name| *name != "system").cloned();
    let own = own.unwrap_or_else(|| panic!("which is the service's? {both:?}"));
    let victim = victim.as_array().unwrap().iter();
    let victim = victim
        .filter(|node| node["service"] == own.as_str())
        .find_map(|node| node["number"].as_u64())
        .unwrap();
    world.kill_machine(&format!("shop/{own}/{victim}"));
    wait_for(
        "another manager of the service",
        Duration::from_secs(60),
        || match managers() {
            names if names == both => Ok(()),
            names => Err(names),
        },
    );
    world.ok(["service", "scale", "shop/own", "greeter=1"]);
    world.ok(["service", "delete", "shop/own", "--yes"]);
    wait_for(
        "its manager's machine gone",
        Duration::from_secs(60),
        || match managers() {
            names if names.len() == 1 => Ok(()),
            names => Err(names),
        },
    );
    let (status, _) = world.get(HOST, "/").unwrap();
    assert_eq!(status, 200, "the other service goes on");
    world.wait_no_leak();
}

fn the_director_restarts_amid_a_scale(world: &World) {
    shop(world, "helloworld");
    let memory = world.platform() == Platform::Memory;
    if memory {
        // Machines that boot only while nobody is there to enrol them.
        world.cloud().hold_boots(true);
    }
    let operation = world.json(["service", "scale", "shop/it", "greeter=3", "--no-wait"]);
    let id = operation["id"].as_str().unwrap();
    wait_for("a machine on its way", Duration::from_secs(20), || {
        let machines = world.machines();
        if machines.len() > 2 {
            Ok(())
        } else {
            Err(machines)
        }
    });
    world.stop_director();
    if memory {
        world.cloud().hold_boots(false);
        let booted = world
            .cloud()
            .machines()
            .iter()
            .filter(|machine| world.cloud().boot(&machine.id))
            .count();
        assert!(booted > 0, "the scale is not over");
    }
    let (status, page) = world.get(HOST, "/").unwrap();
    assert_eq!(status, 200, "{page}");
    assert!(
        world.machines().len() > 2,
        "machines go on without a Director"
    );
    world.start_director();
    let watched = world.run(["operation", "watch", id]);
    assert_eq!(watched.code, 0, "{watched:?}\n{}", world.logs());
    assert_eq!(ready(world, "greeter"), 3);
    assert_eq!(world.service("shop/it")["state"], "RUNNING");
    world.wait_no_leak();
}

fn a_cancelled_scale_leaves_what_was(world: &World) {
    shop(world, "helloworld");
    let before = world.service("shop/it");
    if world.platform() == Platform::Memory {
        // Machines that do not boot: the operation cannot be over before it is cancelled.
        world.cloud().hold_boots(true);
    }
    let operation = world.json(["service", "scale", "shop/it", "greeter=5", "--no-wait"]);
    let id = operation["id"].as_str().unwrap();
    assert_eq!(operation["cancellable"], true, "{operation:#}");
    if world.platform() == Platform::Memory {
        wait_for("machines that boot", Duration::from_secs(20), || {
            let machines = world.machines();
            if machines.len() > 2 {
                Ok(())
            } else {
                Err(machines)
            }
        });
    }
    let cancelled = world.json(["operation", "cancel", id]);
    assert_eq!(cancelled["outcome"], "cancelled", "{cancelled:#}");
    if world.platform() == Platform::Memory {
        world.cloud().hold_boots(false);
    }
    let service = wait_for(
        "the service to be as it was",
        Duration::from_secs(60),
        || {
            let service = world.service("shop/it");
            let settled = service["state"] == "RUNNING"
                && service["operation"].is_null()
                && ready(world, "greeter") == 1;
            if settled { Ok(service) } else { Err(service) }
        },
    );
    assert_eq!(
        service["roles"], before["roles"],
        "the wish is the one of before"
    );
    assert!(
        service["generation"].as_u64() > before["generation"].as_u64(),
        "as a generation of its own"
    );
    assert_eq!(
        world.run(["operation", "cancel", id]).code,
        5,
        "what has ended cannot be cancelled"
    );
    assert_eq!(world.wait_no_leak().len(), 2);
}

fn a_stranger_sees_nothing(world: &World) {
    shop(world, "helloworld");
    let app = world.json(["app", "show", "shop"])["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let operation = world.json(["operation", "list"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let ada = world.person("ada");
    let listed = world.run_as(&ada, ["app", "list", "--json"]);
    assert_eq!((listed.code, listed.stdout.trim()), (0, "[]"), "{listed:?}");
    let missing = world.run_as(&ada, ["app", "show", "admin:nothing"]);
    for target in ["shop", "admin:shop", app.as_str()] {
        let refused = world.run_as(&ada, ["app", "show", target]);
        assert_eq!(refused.code, 4, "{refused:?}");
        let alike = |text: &str, name: &str| text.replace(name, "NAME");
        if target == "admin:shop" {
            let (there, not) = (
                alike(&refused.stderr, "shop"),
                alike(&missing.stderr, "nothing"),
            );
            assert_eq!(there, not, "a foreign application looks like a missing one");
        }
    }
    let service = format!("{app}/it");
    let attempts: [&[&str]; 9] = [
        &["service", "show", &service],
        &["service", "scale", &service, "greeter=2"],
        &["service", "stop", &service],
        &["service", "delete", &service, "--yes"],
        &["node", "list", &service],
        &["helloworld", "greet", &service],
        &["app", "stop", &app],
        &["app", "events", &app],
        &["operation", "show", &operation],
    ];
    for arguments in attempts {
        let refused = world.run_as(&ada, arguments);
        assert_eq!(refused.code, 4, "{arguments:?}: {refused:?}");
        assert!(refused.stdout.is_empty(), "{arguments:?}: {refused:?}");
    }
    assert_eq!(
        world.run_as(&ada, ["user", "list"]).code,
        3,
        "a user is no operator"
    );
    let own = world.run_as(&ada, ["app", "create", "shop"]);
    assert_eq!(own.code, 0, "names are each owner's own: {own:?}");
    assert_eq!(
        world.service("shop/it")["state"],
        "RUNNING",
        "nothing happened to it"
    );
}
