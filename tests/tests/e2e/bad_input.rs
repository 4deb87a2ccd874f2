//! Wrong input: a clear error, and nothing lost.

use conpaas_tests::{Finished, World, archive, program};
use std::path::Path;
use std::process::Command;

#[track_caller]
fn refused(finished: Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, code, "{finished:?}");
    assert!(
        finished.stdout.is_empty(),
        "errors belong on standard error: {finished:?}"
    );
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "no '{word}' in {finished:?}"
        );
    }
}

#[test]
fn impossible_wishes_are_refused_at_once_with_the_numbers() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "web"]);
    let before = world.service("shop/web")["generation"].clone();

    refused(
        world.run(["service", "scale", "shop/web", "backend=10000"]),
        2,
        &["10000", "256", "quota is 20"],
    );
    refused(
        world.run(["service", "scale", "shop/web", "backend=200"]),
        5,
        &["200", "20"],
    );
    refused(
        world.run(["service", "scale", "shop/web", "backend=0"]),
        2,
        &["backend"],
    );
    for negative in ["backend=-3", "backend=-1"] {
        refused(
            world.run(["service", "scale", "shop/web", negative]),
            2,
            &["backend", "is no count"],
        );
    }
    refused(
        world.run(["service", "scale", "shop/web", "frontend=2"]),
        2,
        &["frontend", "backend"],
    );
    refused(world.run(["app", "create", "shop"]), 5, &["shop"]);
    refused(world.run(["app", "create", "Sh op"]), 2, &["Sh op"]);
    refused(world.run(["service", "add", "shop", "pph"]), 2, &["pph"]);
    refused(
        world.run(["service", "set", "shop/web", "memory_limit=lots"]),
        2,
        &["memory_limit"],
    );
    refused(
        world.run(["service", "set", "shop/web", "no_such_thing=1"]),
        2,
        &["no_such_thing"],
    );
    refused(world.run(["app", "show", "nowhere"]), 4, &["nowhere"]);
    refused(
        world.run(["service", "rollback", "shop/web"]),
        5,
        &["release"],
    );
    refused(
        world.run([
            "service",
            "set",
            "shop/web",
            "memory_limit=64M",
            "--if-match",
            "g99",
        ]),
        5,
        &["look again"],
    );

    let nothing = world.path().join("nothing.tar.gz");
    std::fs::write(&nothing, "this is no archive").unwrap();
    refused(
        world.run(["code", "upload", "shop/web", nothing.to_str().unwrap()]),
        2,
        &["archive"],
    );
    let evil = world.path().join("evil.tar.gz");
    archive::tar_gz(&evil, &[("index.php", "hello")]);
    let cut = std::fs::read(&evil).unwrap();
    std::fs::write(&evil, &cut[..cut.len() / 2]).unwrap();
    refused(
        world.run(["code", "upload", "shop/web", evil.to_str().unwrap()]),
        2,
        &[],
    );
    assert_eq!(
        world
            .json(["code", "list", "shop/web"])
            .as_array()
            .map(Vec::len),
        Some(0)
    );
    assert_eq!(
        world.service("shop/web")["generation"],
        before,
        "nothing was changed by what was refused"
    );
}

#[test]
fn more_than_the_computer_has_is_refused_with_the_numbers() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "web"]);
    world.ok(["user", "quota", "admin", "1000"]);
    let clouds = world.json(["cloud", "list"]);
    let free = clouds[0]["free_memory_mib"].as_u64().unwrap();
    let size = clouds[0]["instance_types"]
        .as_array()
        .unwrap()
        .iter()
        .max_by_key(|size| size["memory_mib"].as_u64())
        .unwrap();
    let fit = free / size["memory_mib"].as_u64().unwrap();
    let wish = format!("backend={}", (fit + 10).min(250));
    // Refused when it would begin to take machines: a stopped service takes none.
    let size = size["name"].as_str().unwrap().to_owned();
    world.ok([
        "service",
        "scale",
        "shop/web",
        &wish,
        "--instance-type",
        &size,
    ]);
    let refusal = world.run(["app", "start", "shop"]);
    refused(refusal, 5, &["local", "MiB free", "cloud list"]);
    assert_eq!(world.service("shop/web")["state"], "INIT");
    assert!(
        world
            .json(["node", "list", "shop"])
            .as_array()
            .unwrap()
            .is_empty(),
        "nothing was begun"
    );
    world.ok(["service", "scale", "shop/web", "backend=1"]);
}

#[test]
fn a_second_nutshell_a_taken_port_and_a_director_that_is_down() {
    let world = World::prepare();
    refused(world.run(["app", "list"]), 3, &["hint:", "nutshell up"]);

    let taken = std::net::TcpListener::bind(("127.0.0.1", world.edge_port)).unwrap();
    let up = world.up();
    assert_eq!(up.code, 5, "{up:?}");
    assert!(up.stderr.contains(&world.edge_port.to_string()), "{up:?}");
    assert!(
        !world.state().exists(),
        "what did not come up leaves no half state folder"
    );
    let status = world.json(["nutshell", "status"]);
    assert_eq!(status["state"], "down");
    assert!(status["password_file"].is_null(), "{status}");
    drop(taken);

    let up = world.up();
    assert_eq!(up.code, 0, "{up:?}\n{}", world.logs());
    let other_ports = world.run(["nutshell", "up", "--api-port", "1", "--edge-port", "2"]);
    assert_ne!(
        other_ports.code, 0,
        "a second nutshell on the same state folder: {other_ports:?}"
    );
}

/// `conpaas nutshell up` behind some other program, in a state folder of its own.
fn up_behind(folder: &Path, wrapper: &[&str], state: &Path) -> Finished {
    // Where anybody may run it.
    let own = folder.join("conpaas");
    if !own.exists() {
        std::fs::copy(program(), &own).unwrap();
    }
    Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg(&own)
        .args([
            "nutshell",
            "up",
            "--api-port",
            "0",
            "--edge-port",
            "0",
            "--state",
        ])
        .arg(state)
        .env("HOME", folder)
        .env_remove("CONPAAS_IMAGE")
        .env_remove("XDG_CONFIG_HOME")
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
        .into()
}

#[test]
fn what_this_computer_does_not_allow_is_said_with_the_cure() {
    let folder = tempfile::Builder::new()
        .prefix("cps-bad-")
        .tempdir()
        .unwrap();
    open(folder.path());

    // No privilege: a user for whom no ids are set aside.
    let state = folder.path().join("nobody");
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let refusal = up_behind(folder.path(), &user, &state);
    refused_because(
        &refusal,
        &["cannot run ConPaaS yet", "/etc/subuid", "hint:"],
    );
    assert!(!state.exists(), "no half state folder");

    // No namespaces at all.
    let state = folder.path().join("none");
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" \"$@\"";
    let refusal = up_behind(
        folder.path(),
        &["unshare", "-Ur", "bash", "-c", forbid],
        &state,
    );
    refused_because(&refusal, &["max_user_namespaces", "hint:", "sysctl"]);
    assert!(!state.exists(), "no half state folder");

    // A state folder on a file system that carries no overlays: an overlay itself.
    for name in ["lower", "upper", "work", "on"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let on = folder.path().join("on");
    let mount = format!(
        "cd {} && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work on && exec \"$0\" \"$@\"",
        folder.path().display()
    );
    let refusal = up_behind(
        folder.path(),
        &["unshare", "-m", "bash", "-c", &mount],
        &on.join("state"),
    );
    refused_because(
        &refusal,
        &[
            "could not mount an overlay",
            "hint:",
            "Put the state folder on",
        ],
    );
    assert!(
        !folder.path().join("upper/state").exists(),
        "no half state folder"
    );
}

#[track_caller]
fn refused_because(finished: &Finished, words: &[&str]) {
    println!("{}", finished.stderr);
    assert_eq!(finished.code, 1, "{finished:?}");
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "no '{word}' in {finished:?}"
        );
    }
}

fn open(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
}
