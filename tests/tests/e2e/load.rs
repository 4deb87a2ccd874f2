//! No request fails, races or steps back because of a change that we make: all changes, one after
//! the other and amid each other, under the checker's load on real machines. What is asserted are
//! counts.

use conpaas_tests::checker::{Checker, Kind, Tally};
use conpaas_tests::{Platform, World, checker_site, wait_for};
use serde_json::Value;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";

/// Some of everything, so that two busy cores still answer.
const MIXED: &[(Kind, usize)] = &[
    (Kind::Page, 3),
    (Kind::Fresh, 2),
    (Kind::File, 2),
    (Kind::Post, 2),
    (Kind::Slow(5), 2),
    (Kind::Upload, 1),
    (Kind::Stream, 1),
];

/// A started service with the checker's application, and room for its uploads and slow pages.
fn site(world: &World) {
    world.ok(["app", "create", "shop"]);
    world.ok([
        "service",
        "add",
        "shop",
        "php",
        "--name",
        "it",
        "--set",
        "post_max_size=32M",
        "--set",
        "upload_max_filesize=32M",
        "--set",
        "processes=12",
    ]);
    upload(world, 1);
    world.ok(["app", "start", "shop"]);
    world.wait_status(HOST, "/", 200);
}

fn upload(world: &World, version: u64) {
    upload_to(world, version, "--activate");
}

fn upload_to(world: &World, version: u64, whom: &str) {
    let archive = world.path().join(format!("v{version}.tar.gz"));
    checker_site::write(&archive, version);
    let archive = archive.to_str().unwrap();
    world.ok(["code", "upload", "shop/it", archive, whom]);
}

fn scale(world: &World, counts: &[&str]) {
    let mut arguments = vec!["service", "scale", "shop/it"];
    arguments.extend(counts);
    let operation = world.json(&arguments);
    assert_eq!(operation["outcome"], "done", "{counts:?}: {operation:#}");
}

fn nodes(world: &World) -> Vec<Value> {
    let service = world.service("shop/it");
    service["nodes"].as_array().cloned().unwrap_or_default()
}

/// The newest node with a role.
fn node_with(world: &World, role: &str) -> u64 {
    let has = |node: &Value| {
        let roles = node["roles"].as_array();
        roles.is_some_and(|roles| roles.iter().any(|r| r["role"] == role))
    };
    let numbers = nodes(world).into_iter().filter(has);
    numbers
        .filter_map(|node| node["number"].as_u64())
        .max()
        .unwrap()
}

#[track_caller]
fn nothing_bad(tally: &Tally) {
    println!("{}", tally.table());
    assert_eq!(tally.total().bad(), 0, "{}", tally.table());
}

/// Goes on when the load has run over what the phase before left.
fn settle(checker: &Checker, name: &str) {
    checker.phase(name);
    wait_for("replies after a change", Duration::from_secs(60), || {
        let good = checker.good();
        if good >= 20 { Ok(()) } else { Err(good) }
    });
}

#[test]
fn planned_changes_lose_nothing() {
    let world = World::start_on(Platform::Local);
    site(&world);
    let checker = Checker::start(world.edge_port, HOST, MIXED);
    let change = |name: &str, work: &dyn Fn()| {
        checker.phase(name);
        work();
        settle(&checker, &format!("after: {name}"));
    };
    change("one node, a new version", &|| upload(&world, 2));
    change("out of one node: three backends", &|| {
        scale(&world, &["backend=3"])
    });
    change("two proxies and web servers", &|| {
        scale(&world, &["proxy=2", "web=2"]);
    });
    change("a new version over two proxies", &|| upload(&world, 3));
    change("settings", &|| {
        world.ok(["service", "set", "shop/it", "memory_limit=96M"]);
    });
    for role in ["backend", "proxy"] {
        change(&format!("a {role}'s node replaced"), &|| {
            let target = format!("shop/it/{}", node_with(&world, role));
            world.ok(["node", "replace", &target]);
        });
    }
    change("all nodes made anew, the manager's, too", &|| {
        let before = world.machines();
        world.ok(["app", "upgrade", "shop", "--all"]);
        let after = world.wait_no_leak();
        assert!(after.is_disjoint(&before), "{before:?} {after:?}");
    });
    change("a second change amid the first, three proxies", &|| {
        world.ok([
            "service",
            "scale",
            "shop/it",
            "proxy=3",
            "backend=4",
            "--no-wait",
        ]);
        upload(&world, 4);
        scale(&world, &["backend=2"]);
    });
    change("the Director restarts amid a change", &|| {
        world.ok(["service", "scale", "shop/it", "backend=3", "--no-wait"]);
        world.stop_director();
        world.start_director();
        scale(&world, &["backend=2"]);
    });
    change("a version is held, and its nodes change", &|| {
        upload_to(&world, 5, "--preview");
        scale(&world, &["backend=3"]);
    });
    change("promoted", &|| {
        world.ok(["service", "promote", "shop/it"]);
    });
    change("back to one node", &|| {
        scale(&world, &["proxy=1", "web=1", "backend=1"]);
        wait_for("one node", Duration::from_secs(90), || {
            let left = nodes(&world);
            if left.len() == 1 { Ok(()) } else { Err(left) }
        });
    });
    let tally = checker.finish();
    nothing_bad(&tally);
    for (kind, _) in MIXED {
        assert!(tally.of(*kind) > 3, "{kind:?}: {}", tally.table());
    }
    world.wait_no_leak();
}

#[test]
fn a_long_request_outlives_all_that_carries_it() {
    let world = World::start_on(Platform::Local);
    site(&world);
    scale(&world, &["proxy=2", "web=2", "backend=2"]);
    // Several, so that every proxy and every backend has one.
    let checker = Checker::start(world.edge_port, HOST, &[(Kind::Slow(20), 6)]);
    wait_for("requests in flight", Duration::from_secs(20), || {
        let in_flight = checker.in_flight();
        if in_flight == 6 {
            Ok(())
        } else {
            Err(in_flight)
        }
    });
    // What was sent before this has arrived when this was answered.
    world.wait_status(HOST, "/", 200);
    world.ok([
        "service",
        "scale",
        "shop/it",
        "proxy=1",
        "web=1",
        "backend=1",
        "--no-wait",
    ]);
    upload(&world, 2);
    wait_for("one node", Duration::from_secs(120), || {
        let left = nodes(&world);
        if left.len() == 1 { Ok(()) } else { Err(left) }
    });
    let tally = checker.finish();
    nothing_bad(&tally);
    assert!(tally.total().sent >= 6);
}
