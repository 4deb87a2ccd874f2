//! People who change their mind: cancelling, another wish, or deleting, at every step of what is
//! under way. Each time the last wish is what is reached, and no machine is left over.

use conpaas_tests::{Platform, World, signal, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

/// More steps than any of these operations has.
const MOST_STEPS: usize = 20;

fn shop() -> World {
    let world = World::start_on(Platform::Memory);
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "it"]);
    world
}

/// Waits until so many steps of an operation are done, or it has ended; how many are.
fn reaches(world: &World, operation: &str, steps: usize) -> usize {
    wait_for("a step", Duration::from_secs(60), || {
        let seen = world.json(["operation", "show", operation]);
        let all = seen["steps"].as_array().unwrap();
        let done = all.iter().filter(|step| step["done"] == true).count();
        if done >= steps || !seen["ended_at"].is_null() {
            Ok(done)
        } else {
            Err(seen)
        }
    })
}

fn rests(world: &World, count: usize) -> Value {
    wait_for("the last wish", Duration::from_secs(60), || {
        let service = world.service("shop/it");
        let rests = service["state"] == "RUNNING" && service["operation"].is_null();
        if rests && world.ready("shop/it", "greeter") == count {
            Ok(service)
        } else {
            Err(service)
        }
    })
}

#[test]
fn cancelled_at_every_step_the_former_wish_is_what_is_reached() {
    let world = shop();
    world.ok(["app", "start", "shop"]);
    for (from, to) in [(1, 3), (3, 1)] {
        world.ok(["service", "scale", "shop/it", &format!("greeter={from}")]);
        let before = rests(&world, from);
        let machines = world.wait_no_leak().len();
        let mut cancelled = 0;
        for step in 0..MOST_STEPS {
            let wish = format!("greeter={to}");
            let operation = world.json(["service", "scale", "shop/it", &wish, "--no-wait"]);
            let id = operation["id"].as_str().unwrap();
            let done = reaches(&world, id, step);
            let ended = world.run(["operation", "cancel", id]);
            println!(
                "{from} to {to}, cancelled after {done} steps: {}",
                ended.code
            );
            if ended.code != 0 {
                // It was over before: what was wished is what is, and the way back is a wish, too.
                assert_eq!(ended.code, 5, "{ended:?}");
                rests(&world, to);
                break;
            }
            cancelled += 1;
            let service = rests(&world, from);
            assert_eq!(service["roles"], before["roles"]);
            assert_eq!(world.wait_no_leak().len(), machines);
        }
        assert!(cancelled >= 2, "only {cancelled} were cancelled in time");
    }
}

#[test]
fn another_wish_at_every_step_is_the_one_that_counts() {
    let world = shop();
    world.ok(["app", "start", "shop"]);
    for step in 0..6 {
        let first = world.json(["service", "scale", "shop/it", "greeter=4", "--no-wait"]);
        let id = first["id"].as_str().unwrap();
        reaches(&world, id, step);
        world.ok(["service", "scale", "shop/it", "greeter=2"]);
        rests(&world, 2);
        let outcome = world.json(["operation", "show", id])["outcome"].clone();
        println!("another wish after {step} steps: {outcome}");
        assert!(
            outcome == "superseded" || outcome == "done",
            "{outcome} after {step} steps"
        );
        world.ok(["service", "scale", "shop/it", "greeter=1"]);
        rests(&world, 1);
        assert_eq!(world.wait_no_leak().len(), 2);
    }
}

#[test]
fn deleted_at_every_step_of_its_start_an_application_leaves_nothing() {
    for step in 0..6 {
        let world = shop();
        let start = world.json(["app", "start", "shop", "--no-wait"]);
        let id = start["id"].as_str().unwrap();
        let done = reaches(&world, id, step);
        let deleted = world.run(["app", "delete", "shop", "--yes", "--now"]);
        println!("deleted after {done} steps: {}", deleted.code);
        assert_eq!(deleted.code, 0, "{deleted:?}");
        wait_for("no machine", Duration::from_secs(60), || {
            let left = world.machines();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        let outcome = world.json(["operation", "show", id])["outcome"].clone();
        assert_ne!(outcome, "running", "after {step} steps");
        // The name is free again.
        world.ok(["app", "create", "shop"]);
    }
}

#[test]
fn ctrl_c_ends_the_looking_on_and_the_work_goes_on() {
    let world = World::start();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "it"]);
    let mut command = world.command(["app", "start", "shop"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("step: ") {
        assert_ne!(told.read_line(&mut text).unwrap(), 0, "{text}");
    }
    signal(child.id().try_into().unwrap(), libc::SIGINT);
    told.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(6), "{text}");
    assert!(text.contains("is no longer followed"), "{text}");
    let hint = "hint: follow it with: conpaas ";
    let next = text.lines().find_map(|line| line.strip_prefix(hint));
    let words: Vec<&str> = next.expect(&text).split_whitespace().collect();
    world.ok(words);
    assert_eq!(world.service("shop/it")["state"], "RUNNING");
}
