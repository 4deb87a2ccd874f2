//! The nutshell: up twice is up once, it outlives its Director, and it leaves nothing behind.

use conpaas_tests::{World, load, program, signal, wait_for};
use std::collections::BTreeSet;
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

/// A Director that was dead before it was asked for has not "ended while it started".
#[test]
fn up_waits_for_a_keeper_that_learns_of_a_death_only_now() {
    let world = World::start();
    world.stop_director();
    let keeper = world.daemon("nutshell-keeper");
    let up = std::thread::scope(|scope| {
        let up = scope.spawn(|| world.up());
        std::thread::sleep(Duration::from_secs(1));
        signal(keeper, libc::SIGCONT);
        up.join().unwrap()
    });
    assert_eq!(up.code, 0, "{up:#?}");
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

/// As a reboot does it: every process of the installation ends at once, and with them all mounts,
/// namespaces and networks.
fn pull_the_plug(world: &World) {
    for node in world.json(["node", "list", "shop"]).as_array().unwrap() {
        let target = format!(
            "shop/{}/{}",
            node["service"].as_str().unwrap(),
            node["number"]
        );
        signal(world.first_process(&target), libc::SIGKILL);
    }
    wait_for("all processes to end", Duration::from_secs(30), || {
        let left = world.processes();
        for line in &left {
            let pid = line.split_whitespace().next().unwrap().parse().unwrap();
            // SAFETY: a signal to a process of this very installation, which may have ended.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn after_a_reboot_people_find_what_they_had() {
    let world = World::with_shop();
    world.ok(["service", "set", "shop/web", "memory_limit=96M"]);
    world.ok(["service", "scale", "shop/web", "backend=2"]);
    world.ok(["app", "create", "still"]);
    world.ok(["service", "add", "still", "helloworld", "--name", "hi"]);
    world.wait_status(HOST, "/", 200);
    let kept = |world: &World| {
        let service = world.service("shop/web");
        let releases = world.json(["service", "releases", "shop/web"]);
        let codes = world.json(["code", "list", "shop/web"]);
        let other = world.json(["app", "show", "still"]);
        (
            service["settings"]["memory_limit"].clone(),
            releases.as_array().unwrap().len(),
            codes,
            other["state"].clone(),
        )
    };
    let before = kept(&world);

    pull_the_plug(&world);
    let up = world.up();
    assert_eq!(up.code, 0, "{up:#?}");
    world.wait_status(HOST, "/", 200);
    wait_for("both backends", Duration::from_secs(90), || {
        let ready = world.ready_roles("shop/web");
        let both = ready.iter().any(|role| role == "backend=2");
        if both { Ok(()) } else { Err(ready) }
    });
    assert_eq!(kept(&world), before);
    // What it does next, it does as ever.
    let scaled = world.json(["service", "scale", "shop/web", "backend=1"]);
    assert_eq!(scaled["outcome"], "done", "{scaled:#}");
    world.wait_no_leak();
}

#[test]
fn a_newer_program_takes_over_without_a_failed_request() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    let (machines, load) = (
        world.machines(),
        load::start(world.edge_port, HOST, "/", Duration::from_millis(20)),
    );
    let newer = world.newer_program();
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
    let grown = world.machines();
    assert!(grown.is_superset(&machines), "machines are untouched");

    // What was made before is made anew at a word; what came with the newer program stays.
    let outdated = || {
        let nodes = world.json(["node", "list", "shop"]);
        let all = nodes.as_array().unwrap().iter();
        let old = all.filter(|node| node["outdated"] == true);
        old.map(|node| node["machine"].as_str().unwrap().to_owned())
            .collect::<BTreeSet<String>>()
    };
    let old = outdated();
    assert_eq!(old.len(), machines.len(), "the manager's, too: {old:?}");
    let upgraded = world.json(["app", "upgrade", "shop"]);
    assert_eq!(upgraded["outcome"], "done", "{upgraded:#}");
    assert_eq!(outdated(), BTreeSet::new());
    let made = world.wait_no_leak();
    assert_eq!(made.len(), grown.len());
    assert!(made.is_disjoint(&machines), "{made:?} {machines:?}");
    let stayed = made.intersection(&grown).count();
    assert_eq!(stayed, grown.len() - machines.len(), "{made:?} {grown:?}");
    let nothing = world.run(["app", "upgrade", "shop"]);
    assert_eq!(nothing.code, 0, "{nothing:?}");
    assert!(
        nothing.stderr.contains("nothing had to be done"),
        "{nothing:?}"
    );

    let counts = load.finish();
    println!(
        "upgrade under load: {} requests, {} failed",
        counts.sent,
        counts.failed.len()
    );
    assert_eq!(counts.failed, Vec::<String>::new());
    assert!(counts.sent > 50, "{counts:?}");
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

#[test]
fn a_support_bundle_holds_what_helps_and_no_secret() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "hello"]);
    world.ok(["app", "start", "shop"]);
    let read = |path: &str| {
        let text = std::fs::read_to_string(world.state().join(path)).unwrap();
        text.trim().to_owned()
    };
    let token = world.ok(["token", "create", "ci"]).trim().to_owned();
    let secrets = [read("run/token"), read("director/admin-password"), token];
    // Also when something of ours ever wrote one into a log.
    let log = world.state().join("log/director.log");
    let mut file = std::fs::File::options().append(true).open(log).unwrap();
    for secret in &secrets {
        std::io::Write::write_all(
            &mut file,
            format!("{{\"token\":\"{secret}\"}}\n").as_bytes(),
        )
        .unwrap();
    }
    let bundle = world.path().join("bundle.tar.gz");
    let path = bundle.to_str().unwrap();
    world.ok(["nutshell", "support-bundle", "--output", path]);
    let text = std::process::Command::new("tar")
        .args(["xzOf", path])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for secret in &secrets {
        assert!(secret.len() > 10, "a secret to look for");
        assert!(!text.contains(secret.as_str()), "a secret is in the bundle");
    }
    assert!(!text.contains("PRIVATE KEY-----"));
    let list = std::process::Command::new("tar")
        .args(["tzf", path])
        .output()
        .unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for member in [
        "status.json",
        "checks.json",
        "nutshell.toml",
        "log/director.log",
        "machines/",
    ] {
        assert!(list.contains(member), "no {member} in {list}");
    }
    let again = world.run(["nutshell", "support-bundle", "--output", path]);
    assert_eq!(again.code, 1, "nothing is written over: {again:?}");
    assert!(again.stderr.contains("hint:"), "{again:?}");
}

/// A user of this computer who is gone with the test.
struct Account(String);

impl Account {
    fn make() -> Self {
        let name = format!("cps{}", std::process::id());
        let home = format!("/tmp/{name}");
        run(
            "useradd",
            &[
                "--create-home",
                "--home-dir",
                &home,
                "--shell",
                "/bin/bash",
                &name,
            ],
        );
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(
                text.contains(&format!("{name}:")),
                "{file} has ids for {name}: {text}"
            );
        }
        Self(name)
    }

    fn home(&self) -> std::path::PathBuf {
        format!("/tmp/{}", self.0).into()
    }

    fn conpaas(&self, arguments: &[&str]) -> conpaas_tests::Finished {
        std::process::Command::new("runuser")
            .args(["-u", &self.0, "--"])
            .arg("env")
            .args(["-i", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "NO_COLOR=1"])
            .arg(format!("HOME={}", self.home().display()))
            .arg(format!(
                "CONPAAS_IMAGE={}/image.tar.zst",
                self.home().display()
            ))
            .arg(self.home().join("conpaas"))
            .args(arguments)
            .current_dir("/")
            .output()
            .unwrap()
            .into()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let finished = self.conpaas(arguments);
        assert_eq!(finished.code, 0, "{arguments:?}: {finished:#?}");
        finished.stdout
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let destroyed = self.conpaas(&["nutshell", "destroy", "--yes"]);
        if destroyed.code != 0 {
            eprintln!("{destroyed:#?}");
        }
        run("userdel", &["--remove", &self.0]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    if !output.status.success() {
        eprintln!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn an_ordinary_user_has_a_nutshell_of_their_own() {
    // SAFETY: no arguments, no effects.
    if unsafe { libc::geteuid() } != 0 {
        panic!("making a user needs root");
    }
    let user = Account::make();
    let image = std::env::var("CONPAAS_IMAGE").expect("CONPAAS_IMAGE names the machine image");
    for (from, to) in [(image.into(), "image.tar.zst"), (program(), "conpaas")] {
        let to = user.home().join(to);
        std::fs::copy::<std::path::PathBuf, _>(from, &to).unwrap();
        run("chmod", &["755", to.to_str().unwrap()]);
    }
    user.ok(&["nutshell", "up", "--api-port", "0", "--edge-port", "0"]);
    let status: serde_json::Value =
        serde_json::from_str(&user.ok(&["nutshell", "status", "--json"])).unwrap();
    assert_eq!(status["state"], "up", "{status}");
    assert_eq!(status["mode"], "user", "{status}");
    assert!(
        status["state_folder"]
            .as_str()
            .unwrap()
            .starts_with(user.home().to_str().unwrap())
    );
    let limits = status["clouds"][0]["limits"].as_str().unwrap();
    println!(
        "as an ordinary user: limits {limits}; missing {}",
        status["missing"]
    );
    let missing = status["missing"].to_string();
    assert!(
        !limits.starts_with("none") || missing.contains("limits"),
        "what is missing is said: {status}"
    );
    user.ok(&["app", "create", "shop"]);
    user.ok(&["service", "add", "shop", "helloworld", "--name", "hello"]);
    user.ok(&["app", "start", "shop", "--timeout", "3m"]);
    let service: serde_json::Value =
        serde_json::from_str(&user.ok(&["service", "show", "shop/hello", "--json"])).unwrap();
    assert_eq!(service["state"], "RUNNING", "{service}");
    user.ok(&["nutshell", "down"]);
    wait_for("no process of that user", Duration::from_secs(20), || {
        let left = std::process::Command::new("pgrep")
            .args(["-u", &user.0, "-a"])
            .output()
            .unwrap();
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        // Those that ended and wait to be collected run no more.
        let left: String = left
            .lines()
            .filter(|line| !line.contains("<defunct>"))
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
