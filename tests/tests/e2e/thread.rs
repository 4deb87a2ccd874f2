//! The thread, as a new user walks it: a site appears, scales, changes version, stops, starts
//! again, and nothing is lost; under load no request fails.

use conpaas_tests::{World, archive, load, wait_for};
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";

#[test]
fn a_site_starts_on_one_machine_scales_and_packs_again_without_a_failed_request() {
    let world = World::with_shop();
    assert!(
        world
            .wait_status(HOST, "/", 200)
            .starts_with("version 1 from ")
    );
    assert_eq!(
        world.service("shop/web")["nodes"].as_array().unwrap().len(),
        1
    );
    assert_eq!(
        world.ready_roles("shop/web"),
        ["backend=1", "proxy=1", "web=1"]
    );

    let load = load::start(world.edge_port, HOST, "/", Duration::from_millis(10));
    world.ok(["service", "scale", "shop/web", "backend=4"]);
    assert_eq!(
        world.ready_roles("shop/web"),
        ["backend=4", "proxy=1", "web=1"]
    );
    wait_for(
        "four backends to have answered",
        Duration::from_secs(20),
        || {
            // Asked beside the load, whose own counts come at its end.
            let hosts: std::collections::BTreeSet<String> = (0..12)
                .filter_map(|_| world.get(HOST, "/").ok())
                .map(|(_, body)| body)
                .collect();
            if hosts.len() >= 4 { Ok(()) } else { Err(hosts) }
        },
    );
    world.ok(["service", "scale", "shop/web", "backend=1"]);
    let counts = load.finish();
    println!(
        "1 > 4 > 1 under load: {} requests, {} failed, hosts {:?}",
        counts.sent,
        counts.failed.len(),
        counts.hosts
    );
    assert_eq!(counts.failed, Vec::<String>::new());
    assert_eq!(
        world.ready_roles("shop/web"),
        ["backend=1", "proxy=1", "web=1"]
    );
    assert_eq!(
        world.service("shop/web")["nodes"].as_array().unwrap().len(),
        1
    );
}

/// The rule of adding, draining and removing is the core's: it holds for another type as well.
#[test]
fn helloworld_scales_and_drains_without_a_failed_request() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    // What the load takes for a page of version 1.
    world.ok([
        "service",
        "add",
        "shop",
        "helloworld",
        "--name",
        "web",
        "--set",
        "greeting=version 1 from a greeter",
    ]);
    world.ok(["app", "start", "shop"]);
    world.wait_status(HOST, "/", 200);
    // Each page takes the smallest web server some processes: this is a test of draining, not of load.
    let load = load::start(world.edge_port, HOST, "/", Duration::from_millis(80));
    for counts in [
        ["greeter=3", "front=1"],
        ["greeter=3", "front=3"],
        ["greeter=1", "front=2"],
        ["greeter=2", "front=1"],
        ["greeter=1", "front=1"],
    ] {
        world.ok(["service", "scale", "shop/web", counts[0], counts[1]]);
        assert_eq!(world.ready_roles("shop/web"), [counts[1], counts[0]]);
    }
    let number = world.service("shop/web")["nodes"][0]["number"].to_string();
    world.ok(["node", "replace", &format!("shop/web/{number}")]);
    let counts = load.finish();
    println!(
        "helloworld under load: {} requests, {} failed",
        counts.sent,
        counts.failed.len()
    );
    assert_eq!(counts.failed, Vec::<String>::new());
    assert!(counts.sent > 30, "{counts:?}");
    world.wait_no_leak();
}

#[test]
fn every_role_scales_and_a_new_version_switches_at_one_instant_and_back() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    world.ok([
        "service",
        "scale",
        "shop/web",
        "backend=2",
        "web=2",
        "proxy=2",
    ]);
    assert_eq!(
        world.ready_roles("shop/web"),
        ["backend=2", "proxy=2", "web=2"]
    );

    let load = load::start(world.edge_port, HOST, "/", Duration::from_millis(10));
    let archive = world.path().join("v2.tar.gz");
    archive::site(&archive, 2);
    world.ok([
        "code",
        "upload",
        "shop/web",
        archive.to_str().unwrap(),
        "--activate",
    ]);
    let counts = load.finish();
    println!(
        "version switch under load: {} requests, {} failed, versions {:?}, back {}",
        counts.sent,
        counts.failed.len(),
        counts.versions,
        counts.back_steps
    );
    assert_eq!(counts.failed, Vec::<String>::new());
    assert_eq!(world.wait_status(HOST, "/static.txt", 200), "static 2\n");

    world.ok(["service", "rollback", "shop/web"]);
    assert!(
        world
            .wait_status(HOST, "/", 200)
            .starts_with("version 1 from ")
    );
    assert_eq!(world.wait_status(HOST, "/static.txt", 200), "static 1\n");

    world.ok(["service", "set", "shop/web", "memory_limit=64M"]);
    assert!(
        world
            .wait_status(HOST, "/", 200)
            .starts_with("version 1 from ")
    );
}

#[test]
fn stop_keeps_everything_and_delete_leaves_nothing() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    world.ok(["app", "stop", "shop"]);
    assert_eq!(world.json(["app", "show", "shop"])["state"], "STOPPED");
    let (status, page) = world.get(HOST, "/").unwrap();
    assert_eq!(status, 503, "{page}");
    let machines = std::fs::read_dir(world.state().join("cloud/machines"))
        .unwrap()
        .count();
    assert_eq!(machines, 0, "a stopped application holds no machine");

    world.ok(["app", "start", "shop"]);
    assert!(
        world
            .wait_status(HOST, "/", 200)
            .starts_with("version 1 from ")
    );

    let refused = world.run(["app", "delete", "shop"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("--yes"), "{refused:?}");
    world.ok(["app", "delete", "shop", "--yes"]);
    assert_eq!(world.run(["app", "show", "shop"]).code, 4);
    wait_for(
        "all machines to be gone",
        Duration::from_secs(20),
        || match std::fs::read_dir(world.state().join("cloud/machines"))
            .unwrap()
            .count()
        {
            0 => Ok(()),
            left => Err(left),
        },
    );
    // What was deleted comes back from the trash with its code, settings and history.
    world.ok(["app", "restore", "shop"]);
    assert_eq!(world.json(["app", "show", "shop"])["state"], "STOPPED");
    world.ok(["app", "start", "shop"]);
    assert!(
        world
            .wait_status(HOST, "/", 200)
            .starts_with("version 1 from ")
    );
    world.ok(["app", "delete", "shop", "--now", "--yes"]);
    assert_eq!(
        world.json(["app", "list", "--trash"]),
        serde_json::json!([])
    );
    assert_eq!(world.run(["app", "restore", "shop"]).code, 4);
    world.wait_no_leak();
    world.ok(["app", "create", "shop"]);
}

#[test]
fn with_all_backends_gone_static_files_still_answer_from_the_web_role() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    // Two backends on machines of their own; the first machine keeps proxy and web.
    world.ok(["service", "scale", "shop/web", "backend=2"]);
    let backends: Vec<u64> = world.service("shop/web")["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| {
            node["roles"].as_array().is_some_and(|r| {
                r.iter()
                    .all(|r| r["role"] == "backend" || r["role"] == "sessions")
            })
        })
        .filter_map(|node| node["number"].as_u64())
        .collect();
    assert_eq!(backends.len(), 2);
    let processes: Vec<i32> = backends
        .iter()
        .map(|number| world.first_process(&format!("shop/web/{number}")))
        .collect();
    let written = |number: &u64| {
        let told = world.run(["logs", &format!("shop/web/web-{number}"), "-n", "5"]);
        if told.stdout.contains(&format!("web-{number} backend-")) {
            Ok(())
        } else {
            Err(told)
        }
    };
    // Lines travel within about a second; what a machine took along in less is lost.
    for number in &backends {
        wait_for("a backend's first lines", Duration::from_secs(20), || {
            written(number)
        });
    }
    // Without a Director there are no machines in their stead.
    world.stop_director();
    for process in processes {
        // SAFETY: a signal to a process of this test's own machines.
        assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
    }
    world.wait_status(HOST, "/", 503);
    let page = world.wait_status(HOST, "/static.txt", 200);
    assert_eq!(page, "static 1\n");
    assert!(!world.wait_status(HOST, "/", 503).contains("version"));
    world.start_director();
    wait_for(
        "the web role's log to tell of it",
        Duration::from_secs(20),
        || {
            let log = world.ok(["logs", "shop/web", "--role", "web"]);
            if log.contains("GET /static.txt") {
                Ok(())
            } else {
                Err(log)
            }
        },
    );
    // And they heal.
    assert!(
        world
            .wait_status(HOST, "/", 200)
            .starts_with("version 1 from ")
    );
    // What the dead ones wrote is still there, by node; a node that never was is not found.
    for number in &backends {
        written(number).unwrap();
    }
    let missing = world.run(["logs", "shop/web/web-99"]);
    assert_eq!(missing.code, 4, "{missing:?}");
    world.ok(["app", "stop", "shop"]);
    let log = world.ok(["logs", "shop/web", "--status", "2xx"]);
    assert!(log.contains("GET /static"), "{log}");
    let log = world.ok(["logs", "shop/web", "--status", "418,5xx"]);
    assert!(!log.contains("GET /static"), "{log}");
    let log = world.ok(["logs", "shop/web", "--grep", "GET /static"]);
    assert!(log.contains("GET /static.txt"), "{log}");
}

/// A machine knows the endpoints of its node by name, and says at once that there is no other
/// name, even while Director and manager are dead.
#[test]
fn names_are_answered_inside_a_machine_with_nobody_else_alive() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "it"]);
    world.ok(["app", "start", "shop"]);
    let node = world.service("shop/it")["nodes"][0]["number"].to_string();
    let inside = world.first_process(&format!("shop/it/{node}"));
    let ask = |name: &str| world.inside(inside, &["timeout", "4", "getent", "ahostsv4", name]);
    let greeting = || {
        let url = "http://127.77.0.1:9300/";
        world
            .inside(inside, &["/bin/busybox", "wget", "-q", "-O", "-", url])
            .1
    };
    let names = || {
        let (code, said) = ask("greeter.internal");
        assert!(
            code == Some(0) && said.starts_with("127.77.0.1 "),
            "{code:?}: {said}"
        );
        // 2 says that there is no such name; one that waits for an answer is ended with 124.
        for name in ["nobody.internal", "conpaas.example", "www.conpaas.example"] {
            assert_eq!(ask(name).0, Some(2), "{name}");
        }
        assert!(greeting().starts_with("Hello, world!"));
    };
    names();
    // The manager's machine goes, and nobody is there to make another.
    let managers = world.json(["node", "list", "shop"]);
    let managers = managers.as_array().unwrap();
    let of_manager = managers
        .iter()
        .find(|node| node["manager"] == true)
        .unwrap();
    let of_manager = format!(
        "shop/{}/{}",
        of_manager["service"].as_str().unwrap(),
        of_manager["number"]
    );
    let manager = world.first_process(&of_manager);
    world.stop_director();
    // SAFETY: a signal to a process of this test's own machines.
    assert_eq!(unsafe { libc::kill(manager, libc::SIGKILL) }, 0);
    names();
    // So does the agent: the next one reads its level from disk.
    let script = r#"for p in /proc/[0-9]*; do
        tr '\0' ' ' <"$p/cmdline" | grep -q '^[^ ]*conpaas agent' && kill -9 "${p#/proc/}" && echo killed
    done; true"#;
    assert_eq!(world.inside(inside, &["sh", "-c", script]).1, "killed");
    wait_for(
        "the next agent",
        Duration::from_secs(20),
        || match greeting() {
            said if said.starts_with("Hello, world!") => Ok(()),
            said => Err(said),
        },
    );
    names();
}
