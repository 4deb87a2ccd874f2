//! The nutshell: up twice is up once, it outlives its Director, and it leaves nothing behind.

use conpaas_tests::{World, archive, wait_for};
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

#[test]
fn machines_and_edge_go_on_while_the_director_is_down() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "web"]);
    let archive = world.path().join("v1.tar.gz");
    archive::site(&archive, 1);
    world.ok([
        "code",
        "upload",
        "shop/web",
        archive.to_str().unwrap(),
        "--activate",
    ]);
    world.ok(["app", "start", "shop"]);
    world.wait_status("shop-admin.localhost", "/", 200);

    let director = world
        .processes()
        .into_iter()
        .find(|line| line.contains("conpaas director"))
        .and_then(|line| {
            line.split(' ')
                .next()
                .and_then(|pid| pid.parse::<i32>().ok())
        })
        .expect("a director process");
    // SAFETY: a signal to a process that this test started.
    assert_eq!(unsafe { libc::kill(director, libc::SIGKILL) }, 0);
    for _ in 0..20 {
        let (status, body) = world.get("shop-admin.localhost", "/").unwrap();
        assert_eq!(status, 200, "{body}");
    }
    let refused = world.run(["app", "list"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("hint:"), "{refused:?}");

    assert_eq!(world.up().code, 0);
    world.ok(["service", "scale", "shop/web", "backend=2"]);
    assert_eq!(
        world.ready_roles("shop/web"),
        ["backend=2", "proxy=1", "web=1"]
    );
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
