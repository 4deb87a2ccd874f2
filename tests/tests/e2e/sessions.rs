//! Sessions are shared by all backends without a line in the application: under a load of
//! counters, through changes that we make and through the deaths of machines that keep them.
//! What is asserted are counts.

use conpaas_tests::checker::{Checker, Kind, Tally};
use conpaas_tests::{Platform, World, checker_site, wait_for};
use serde_json::Value;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";
const LOAD: &[(Kind, usize)] = &[(Kind::Session, 6), (Kind::Page, 1)];

fn upload(world: &World, version: u64) {
    let archive = world.path().join(format!("v{version}.tar.gz"));
    checker_site::write(&archive, version);
    let archive = archive.to_str().unwrap();
    world.ok(["code", "upload", "shop/it", archive, "--activate"]);
}

fn scale(world: &World, backends: u32) {
    let count = format!("backend={backends}");
    world.ok(["service", "scale", "shop/it", &count]);
}

fn site() -> World {
    let world = World::start_on(Platform::Local);
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "it"]);
    upload(&world, 1);
    world.ok(["app", "start", "shop"]);
    world.wait_status(HOST, "/count.php", 200);
    world
}

/// Nodes that keep sessions.
fn keepers(world: &World) -> Vec<u64> {
    let service = world.service("shop/it");
    let keeps = |node: &&Value| {
        let roles = node["roles"].as_array();
        roles.is_some_and(|all| all.iter().any(|r| r["role"] == "sessions"))
    };
    let nodes = service["nodes"].as_array().into_iter().flatten();
    nodes
        .filter(keeps)
        .filter_map(|node| node["number"].as_u64())
        .collect()
}

/// Waits until so many copies of the sessions are whole.
fn copies(world: &World, count: usize) {
    wait_for("copies of the sessions", Duration::from_secs(90), || {
        let ready = world.ready("shop/it", "sessions");
        if ready == count { Ok(()) } else { Err(ready) }
    });
}

/// Goes on when the load has run over what the phase before left.
fn settle(checker: &Checker, name: &str) {
    checker.phase(name);
    wait_for("replies after a change", Duration::from_secs(60), || {
        let good = checker.good();
        if good >= 60 { Ok(()) } else { Err(good) }
    });
}

/// Counters that fell or stood still: somebody was logged out, or an increment was lost.
fn lost(tally: &Tally) -> Vec<&String> {
    let fell = |reason: &&String| {
        let words: Vec<&str> = reason.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "after");
        at.is_some_and(|at| {
            let number = |word: Option<&&str>| word.and_then(|w| w.parse::<u64>().ok());
            match (number(words.get(at - 1)), number(words.get(at + 1))) {
                (Some(now), Some(before)) => now <= before,
                _ => false,
            }
        })
    };
    tally.reasons.iter().filter(fell).collect()
}

#[test]
fn planned_changes_lose_no_session() {
    let world = site();
    copies(&world, 1);
    let checker = Checker::start(world.edge_port, HOST, LOAD);
    let change = |name: &str, work: &dyn Fn()| {
        checker.phase(name);
        work();
        settle(&checker, &format!("after: {name}"));
    };
    change("out of one node: three backends", &|| scale(&world, 3));
    copies(&world, 2);
    change("a new version", &|| upload(&world, 2));
    for node in keepers(&world) {
        change(&format!("node {node} with a copy replaced"), &|| {
            world.ok(["node", "replace", &format!("shop/it/{node}")]);
            copies(&world, 2);
        });
    }
    change("back to one node", &|| scale(&world, 1));
    copies(&world, 1);
    let tally = checker.finish();
    println!("{}", tally.table());
    assert_eq!(tally.total().bad(), 0, "{}", tally.table());
    assert!(tally.of(Kind::Session) > 200, "{}", tally.table());
    world.wait_no_leak();
}

#[test]
fn machines_that_keep_sessions_die_and_nobody_is_logged_out() {
    let world = site();
    scale(&world, 3);
    copies(&world, 2);
    let checker = Checker::start(world.edge_port, HOST, LOAD);
    settle(&checker, "at rest");
    // One of the two leads.
    for node in keepers(&world) {
        checker.phase(&format!("node {node} dies"));
        world.kill_machine(&format!("shop/it/{node}"));
        wait_for("another keeper", Duration::from_secs(60), || {
            let now = keepers(&world);
            let others = now.len() == 2 && !now.contains(&node);
            if others { Ok(()) } else { Err(now) }
        });
        copies(&world, 2);
        settle(&checker, &format!("after: node {node} died"));
    }
    let tally = checker.finish();
    println!("{}", tally.table());
    // A page that a dying backend had counted may be asked for again: that counts twice, and
    // nothing else may be.
    assert_eq!(lost(&tally), Vec::<&String>::new(), "{}", tally.table());
    let total = tally.total();
    assert_eq!(total.bad(), total.miscounted, "{}", tally.table());
    assert!(tally.of(Kind::Session) > 100, "{}", tally.table());
    world.wait_no_leak();
}

#[test]
fn shared_sessions_can_be_switched_off_and_on() {
    let world = site();
    copies(&world, 1);
    let counts = |world: &World| {
        let checker = Checker::start(world.edge_port, HOST, &[(Kind::Session, 2)]);
        settle(&checker, "counting");
        let tally = checker.finish();
        assert_eq!(tally.total().bad(), 0, "{}", tally.table());
    };
    counts(&world);
    for (value, count) in [("off", 0), ("on", 1)] {
        let setting = format!("sessions={value}");
        world.ok(["service", "set", "shop/it", &setting]);
        copies(&world, count);
        counts(&world);
    }
    let refused = world.run(["service", "set", "shop/it", "sessions=perhaps"]);
    assert_ne!(refused.code, 0);
    world.wait_no_leak();
}
