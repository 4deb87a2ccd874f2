//! `make demo` twice, what it tells people to try, `make demo-down`, and `make demo` once more: what
//! a newcomer types first.

use conpaas_tests::{Finished, World, program, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn script(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.join("../scripts").join(name)
}

fn run(world: &World, name: &str, arguments: &[&str]) -> Finished {
    let mut command = world.command_of(&script(name), arguments);
    let done: Finished = command
        .env("CONPAAS_BIN", program())
        .output()
        .unwrap()
        .into();
    assert_eq!(done.code, 0, "{name} {arguments:?}: {done:#?}");
    done
}

fn page(world: &World) -> String {
    world.wait_status("demo-admin.localhost", "/", 200)
}

fn versions(world: &World) -> usize {
    let codes = world.json(["code", "list", "demo/web"]);
    let uploaded = |code: &&Value| code["sha256"].is_string();
    codes.as_array().unwrap().iter().filter(uploaded).count()
}

#[test]
fn the_demo_runs_is_not_doubled_goes_and_comes_back() {
    let mut world = World::prepare();
    let first = run(&world, "demo", &["--api-port", "0", "--edge-port", "0"]);
    world.learn_ports();
    let url = format!("http://demo-admin.localhost:{}/", world.edge_port);
    assert_eq!(first.stdout.trim(), url);
    let shown = page(&world);
    let (processes, uploads) = (world.processes().len(), versions(&world));

    let second = run(&world, "demo", &[]);
    assert_eq!(second.stdout, first.stdout);
    assert_eq!(world.processes().len(), processes);
    assert_eq!(versions(&world), uploads, "nothing is uploaded twice");

    // What it tells people to try does what it says.
    let program = program();
    let told: Vec<Vec<&str>> = second
        .stderr
        .lines()
        .filter_map(|line| line.trim().strip_prefix(program.to_str()?))
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<&str>| !words.contains(&"-f"))
        .collect();
    assert_eq!(told.len(), 2, "{}", second.stderr);
    for words in &told {
        world.ok(words);
    }
    assert_eq!(world.ready("demo/web", "backend"), 2);
    assert_eq!(versions(&world), uploads + 1);
    let other = page(&world);
    assert_ne!(other, shown);

    run(&world, "demo-down", &[]);
    wait_for("all processes to be gone", Duration::from_secs(20), || {
        let left = world.processes();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(world.state().to_str().unwrap()),
        "{mounts}"
    );

    run(&world, "demo", &[]);
    assert_eq!(world.ready("demo/web", "backend"), 2, "as it was");
    assert_eq!(versions(&world), uploads + 1);
    world.ok(["app", "delete", "demo", "--yes"]);
    world.wait_no_leak();
}
