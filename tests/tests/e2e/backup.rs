//! A backup of the Director comes back while everything it tells of has gone on: people notice
//! nothing, what was wished then is reached again, and what the backup does not know is left alone
//! until an operator says that it may go.

use conpaas_tests::{World, load, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";
const PATIENCE: Duration = Duration::from_secs(120);

fn quarantined(world: &World) -> Vec<Value> {
    let listed = world.json(["director", "quarantine", "list"]);
    listed.as_array().cloned().unwrap_or_default()
}

/// Machines that the Director knows of one application, its manager's included.
fn machines_of(world: &World, app: &str) -> BTreeSet<String> {
    let nodes = world.json(["node", "list", app]);
    let nodes = nodes.as_array().into_iter().flatten();
    nodes
        .filter_map(|node| node["machine"].as_str().map(str::to_owned))
        .collect()
}

fn upload(world: &World, target: &str, version: u32) {
    let archive = world.path().join(format!("v{version}.tar.gz"));
    conpaas_tests::archive::site(&archive, version);
    let archive = archive.to_str().unwrap();
    world.ok(["code", "upload", target, archive, "--activate"]);
}

fn serves(world: &World, host: &str, version: u32) {
    let wanted = format!("version {version} ");
    wait_for("a version to be served", PATIENCE, || {
        match world.get(host, "/") {
            Ok((200, body)) if body.starts_with(&wanted) => Ok(()),
            other => Err(other),
        }
    });
}

#[test]
fn a_backup_comes_back_under_load_and_what_it_does_not_know_is_left_alone() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    let load = load::start(world.edge_port, HOST, "/", Duration::from_millis(50));
    let archive = world.path().join("backup.tar.gz");
    let archive = archive.to_str().unwrap();
    let taken = world.json(["director", "backup", archive]);
    println!("{taken}");
    let again = world.run(["director", "backup", archive]);
    assert_eq!(again.code, 5, "{again:#?}");
    assert!(again.stderr.contains("--force"), "{again:#?}");
    let before = machines_of(&world, "shop");

    // The world goes on: more nodes, another release, another application.
    let scaled = world.json(["service", "scale", "shop/web", "backend=2"]);
    assert_eq!(scaled["outcome"], "done", "{scaled:#}");
    upload(&world, "shop/web", 2);
    serves(&world, HOST, 2);
    world.ok(["app", "create", "blog"]);
    world.ok(["service", "add", "blog", "php", "--name", "web"]);
    upload(&world, "blog/web", 3);
    world.ok(["app", "start", "blog"]);
    serves(&world, "blog-admin.localhost", 3);
    let blog = machines_of(&world, "blog");
    let later: BTreeSet<String> = machines_of(&world, "shop")
        .difference(&before)
        .chain(&blog)
        .cloned()
        .collect();
    assert!(later.len() > blog.len(), "{later:?}");
    let all = world.wait_no_leak();

    let refused = world.run(["director", "restore", archive, "--yes"]);
    assert_eq!(refused.code, 5, "{refused:#?}");
    assert!(refused.stderr.contains("down --director"), "{refused:#?}");
    world.ok(["nutshell", "down", "--director"]);
    let restored = world.json(["director", "restore", archive, "--yes"]);
    println!("{restored}");
    assert!(std::path::Path::new(restored["former"].as_str().unwrap()).is_dir());
    let up = world.up();
    assert_eq!(up.code, 0, "{up:#?}\n{}", world.logs());

    // The wish of then is reached again, by agents that had obeyed newer levels.
    wait_for("the old wish to be reached", PATIENCE, || {
        let service = world.service("shop/web");
        let roles = world.ready_roles("shop/web");
        let one = roles.iter().any(|role| role == "backend=1");
        if service["state"] == "RUNNING" && one {
            Ok(())
        } else {
            Err((service["state"].clone(), service["reason"].clone(), roles))
        }
    });
    serves(&world, HOST, 1);
    let apps = world.json(["app", "list"]);
    let apps: Vec<_> = apps
        .as_array()
        .unwrap()
        .iter()
        .map(|app| &app["name"])
        .collect();
    assert_eq!(apps, ["shop"]);

    // What the backup does not know is told of, and still there.
    let found: BTreeSet<String> = quarantined(&world)
        .iter()
        .map(|machine| machine["machine"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(found, later);
    assert!(world.machines().is_superset(&later));
    let info = world.json(["director", "status"]);
    assert_eq!(info["quarantined"], later.len());
    assert_eq!(info["incarnation"], restored["incarnation"]);
    let events = world.json(["app", "events", "shop", "--lines", "1000"]);
    let events = events.as_array().unwrap().iter();
    let told = events.filter(|event| event["kind"] == "machine_quarantined");
    assert_eq!(told.count(), later.len() - blog.len());

    // Agents and managers obey the Director that came back.
    let scaled = world.json(["service", "scale", "shop/web", "backend=2"]);
    assert_eq!(scaled["outcome"], "done", "{scaled:#}");
    let counts = load.finish();
    println!("{counts:?}");
    assert!(counts.failed.is_empty(), "{counts:#?}\n{}", world.logs());
    assert_eq!(counts.versions, [1, 2]);
    assert!(world.machines().is_superset(&all));

    // Until an operator says that it may go.
    let unknown = world.run(["director", "quarantine", "destroy", "m-nobody", "--yes"]);
    assert_eq!(unknown.code, 4, "{unknown:#?}");
    world.ok(["director", "quarantine", "destroy", "--all", "--yes"]);
    wait_for("quarantine to be empty", PATIENCE, || {
        let left = quarantined(&world);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let left = world.wait_no_leak();
    assert!(left.is_disjoint(&later), "{left:?}");
    serves(&world, HOST, 1);
}
