//! The nutshell: up twice is up once, it outlives its Director, and it leaves nothing behind.

use conpaas_tests::{World, load, program, signal, wait_for};
use std::time::Duration;

fn host_network() -> Vec<String> {
    ["link", "address", "route"]
        .iter()
        .map(|what| {
            let output = std::process::Command::new("ip")
                .args(["-o", what, "show"])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // Lifetimes of leases count down by themselves.
            text.lines()
                .map(|l| l.split("valid_lft").next().unwrap_or(l))
                .collect::<Vec<_>>()
                .join("\n")
        })
        .collect()
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mounts").unwrap()
}

#[test]
fn up_twice_is_up_once_and_down_leaves_nothing() {
    let network = host_network();
    let mounts_before = mounts();
    let world = World::start();
    let first = world.processes();
    let again = world.up();
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(
        world.processes().len(),
        first.len(),
        "{first:#?} {:#?}",
        world.processes()
    );

    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "hello"]);
    world.ok(["app", "start", "shop"]);
    let before = world.json(["node", "list", "shop/hello"]);
    assert!(!before.as_array().unwrap().is_empty());
    assert_eq!(
        host_network(),
        network,
        "the host's own network is left as it is"
    );

    world.ok(["nutshell", "down"]);
    wait_for("all processes to be gone", Duration::from_secs(20), || {
        let left = world.processes();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(mounts(), mounts_before);
    assert_eq!(host_network(), network);
    let config = world.path().join("config");
    assert_eq!(
        std::fs::read_dir(&config).into_iter().flatten().count(),
        0,
        "nothing of a nutshell that is down stays in the person's configuration"
    );

    let up = world.up();
    assert_eq!(up.code, 0, "{up:?}");
    wait_for(
        "the service to run again with what it had",
        Duration::from_secs(60),
        || {
            let state = world.service("shop/hello")["state"].clone();
            if state == "RUNNING" {
                Ok(())
            } else {
                Err(state)
            }
        },
    );
}

const DAEMONS: [&str; 3] = ["nutshell-keeper", "director", "edge"];
const HOST: &str = "shop-admin.localhost";

#[test]
fn machines_and_edge_go_on_while_the_director_is_down() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    world.stop_director();
    for _ in 0..20 {
        let (status, body) = world.get(HOST, "/").unwrap();
        assert_eq!(status, 200, "{body}");
    }
    let refused = world.run(["app", "list"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("hint:"), "{refused:?}");

    world.start_director();
    world.ok(["service", "scale", "shop/web", "backend=2"]);
    assert_eq!(
        world.ready_roles("shop/web"),
        ["backend=2", "proxy=1", "web=1"]
    );
}

/// Waits until another process than `before` is that daemon and the nutshell is up.
fn comes_back(world: &World, name: &str, before: i32) -> serde_json::Value {
    wait_for(
        &format!("another {name} than {before}"),
        Duration::from_secs(60),
        || {
            let status = world.json(["nutshell", "status"]);
            let pid = status[name]["pid"].as_i64();
            let other = pid.is_some_and(|pid| pid != i64::from(before));
            if other && status["state"] == "up" {
                Ok(status)
            } else {
                Err(status)
            }
        },
    )
}

#[test]
fn director_and_edge_that_are_killed_come_back_by_themselves() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    let machines = world.machines();
    for name in ["director", "edge"] {
        let before = world.daemon(name);
        signal(before, libc::SIGKILL);
        if name == "director" {
            for _ in 0..10 {
                let (status, body) = world.get(HOST, "/").unwrap();
                assert_eq!(status, 200, "the edge answers meanwhile: {body}");
            }
        } else {
            // Nobody is refused: the keeper holds the socket, and the next edge takes it up.
            assert_eq!(world.get(HOST, "/").unwrap().0, 200);
        }
        let status = comes_back(&world, name, before);
        assert_eq!(status[name]["restarts"], 1, "{status}");
        assert_eq!(status[name]["last_end"], "signal 9", "{status}");
    }
    let log = std::fs::read_to_string(world.state().join("log/director.log")).unwrap();
    assert!(log.contains("restarted after signal 9"), "{log}");
    assert_eq!(world.machines(), machines, "machines are untouched");
    world.ok(["service", "scale", "shop/web", "backend=2"]);

    // A keeper that is killed takes nobody along, and `up` brings another one.
    signal(world.daemon("nutshell-keeper"), libc::SIGKILL);
    wait_for("status to tell", Duration::from_secs(10), || {
        let status = world.json(["nutshell", "status"]);
        if status["state"] == "partly" {
            Ok(())
        } else {
            Err(status)
        }
    });
    let director = world.daemon("director");
    let up = world.up();
    assert_eq!(up.code, 0, "{up:?}");
    assert_eq!(world.daemon("director"), director);
    assert_eq!(world.json(["nutshell", "status"])["state"], "up");
}

#[test]
fn a_newer_program_takes_over_without_a_failed_request() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    let (machines, load) = (
        world.machines(),
        load::start(world.edge_port, HOST, "/", Duration::from_millis(20)),
    );
    let newer = world.path().join("conpaas-newer");
    std::fs::copy(program(), &newer).unwrap();
    // What follows an executable's own parts changes nothing but who it is.
    let mut file = std::fs::File::options().append(true).open(&newer).unwrap();
    std::io::Write::write_all(&mut file, b"newer").unwrap();
    drop(file);
    let before: Vec<i32> = DAEMONS.iter().map(|name| world.daemon(name)).collect();

    let up = world.up_with(&newer);
    assert_eq!(up.code, 0, "{up:?}\n{}", world.logs());
    assert!(up.stderr.contains("another version runs"), "{up:?}");
    let size = std::fs::metadata(&newer).unwrap().len();
    for (name, before) in DAEMONS.iter().zip(before) {
        let now = world.daemon(name);
        let runs = std::fs::metadata(format!("/proc/{now}/exe")).unwrap().len();
        assert_eq!(runs, size, "{name} runs the newer program");
        // The keeper becomes it in place, the others are new processes.
        assert_eq!(now == before, *name == "nutshell-keeper", "{name}");
    }
    world.ok(["service", "scale", "shop/web", "backend=2"]);
    let counts = load.finish();
    println!(
        "upgrade under load: {} requests, {} failed",
        counts.sent,
        counts.failed.len()
    );
    assert_eq!(counts.failed, Vec::<String>::new());
    assert!(counts.sent > 50, "{counts:?}");
    assert!(
        world.machines().is_superset(&machines),
        "machines are untouched"
    );
    let again = world.up_with(&newer);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(!again.stderr.contains("another version"), "{again:?}");
}

#[test]
fn a_managers_process_sits_in_its_own_machine_and_the_director_in_none() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "hello"]);
    world.ok(["app", "start", "shop"]);
    let namespaces = |pid: &str| -> Vec<String> {
        ["user", "pid", "mnt", "net", "uts", "ipc"]
            .iter()
            .map(|kind| {
                std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    };
    let host = namespaces("self");
    let mut managers = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .map(str::to_owned)
            .filter(|n| n.parse::<u32>().is_ok())
        else {
            continue;
        };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("conpaas manager") {
            let inside = namespaces(&pid);
            println!("manager {pid}: {inside:?}; host {host:?}");
            assert!(
                inside.iter().zip(&host).all(|(a, b)| a != b),
                "{inside:?} {host:?}"
            );
            managers += 1;
        }
    }
    assert!(managers >= 1, "a manager runs");
    let director = world
        .processes()
        .into_iter()
        .find(|line| line.contains("conpaas director"))
        .unwrap();
    let pid = director.split(' ').next().unwrap();
    assert_eq!(namespaces(pid), host, "the Director is in no machine");
}
