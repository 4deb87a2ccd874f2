//! What can go wrong with a cloud, made to happen on `memory`: another machine is tried, no
//! operation ends as a success with fewer nodes than asked, and no machine is left over.

use conpaas_cloud::Resources;
use conpaas_tests::{Platform, World, memory::PLENTY, wait_for};
use serde_json::Value;
use std::time::Duration;

/// A started service `shop/it` with two roles on one node.
fn shop(world: &World) {
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "it"]);
    world.ok(["app", "start", "shop"]);
}

fn greeters(world: &World) -> usize {
    world.ready("shop/it", "greeter")
}

fn events(world: &World, kind: &str) -> Vec<Value> {
    let events = world.json(["app", "events", "shop"]);
    events
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["kind"] == kind)
        .cloned()
        .collect()
}

#[test]
fn a_cloud_that_fails_is_asked_again() {
    let world = World::start_on(Platform::Memory);
    shop(&world);
    world.cloud().fail_next_create("the cloud is ill");
    world.cloud().fail_next_create("the cloud is still ill");
    let scaled = world.json(["service", "scale", "shop/it", "greeter=3"]);
    assert_eq!(scaled["outcome"], "done", "{scaled:#}");
    assert_eq!(greeters(&world), 3);
    let delayed = events(&world, "node_delayed");
    assert!(
        delayed
            .iter()
            .any(|event| event["reason"].to_string().contains("ill")),
        "{delayed:#?}"
    );
    world.wait_no_leak();

    world.cloud().fail_next_destroy("the cloud is ill again");
    world.cloud().fail_next_destroy("the cloud is ill again");
    world.ok(["service", "scale", "shop/it", "greeter=1"]);
    assert_eq!(world.wait_no_leak().len(), 2);
}

#[test]
fn a_lost_answer_makes_no_second_machine() {
    let world = World::start_on(Platform::Memory);
    shop(&world);
    for _ in 0..3 {
        world.cloud().lose_next_answer();
    }
    let scaled = world.json(["service", "scale", "shop/it", "greeter=3"]);
    assert_eq!(scaled["outcome"], "done", "{scaled:#}");
    assert_eq!(greeters(&world), 3);
    world.wait_no_leak();
    world.ok(["app", "delete", "shop", "--yes"]);
    wait_for("all machines to be gone", Duration::from_secs(30), || {
        let left = world.machines();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_machine_that_does_not_come_up_is_given_up_for_another() {
    let world = World::start_memory(|config| config.boot_deadline = Some(Duration::from_secs(3)));
    shop(&world);
    let before = world.machines();
    world.cloud().hold_boots(true);
    let operation = world.json(["service", "scale", "shop/it", "greeter=2", "--no-wait"]);
    let stuck = wait_for(
        "machines that do not come up",
        Duration::from_secs(20),
        || {
            let fresh: Vec<String> = world.machines().difference(&before).cloned().collect();
            if fresh.is_empty() {
                Err(fresh)
            } else {
                Ok(fresh)
            }
        },
    );
    world.cloud().hold_boots(false);
    let watched = world.run(["operation", "watch", operation["id"].as_str().unwrap()]);
    assert_eq!(watched.code, 0, "{watched:?}");
    assert_eq!(greeters(&world), 2);
    let machines = world.wait_no_leak();
    assert!(
        stuck.iter().all(|machine| !machines.contains(machine)),
        "{stuck:?} {machines:?}"
    );
}

#[test]
fn a_full_cloud_is_no_success_and_the_work_goes_on() {
    let world = World::start_memory(|config| config.operation_deadline = Duration::from_secs(10));
    shop(&world);
    let too_much = world.run(["service", "scale", "shop/it", "greeter=32"]);
    assert_eq!(too_much.code, 5, "more than the quota: {too_much:?}");

    // What was free when it was asked is taken by somebody else before the machines are made.
    for _ in 0..8 {
        world.cloud().fail_next_create("somebody else was faster");
    }
    let asked = world.json(["service", "scale", "shop/it", "greeter=4", "--no-wait"]);
    world.cloud().set_total(Resources {
        vcpus: 1.6,
        ..PLENTY
    });
    let watched = world.run(["operation", "watch", asked["id"].as_str().unwrap()]);
    assert_eq!(watched.code, 1, "{watched:?}");
    let service = world.service("shop/it");
    assert_eq!(service["state"], "ERROR", "{service:#}");
    assert!(service["reason"].is_string(), "{service:#}");
    assert!(greeters(&world) < 4);
    let refused = world.run(["service", "scale", "shop/it", "greeter=9"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.stderr.contains("vCPUs"),
        "the numbers are said: {refused:?}"
    );

    world.cloud().set_total(PLENTY);
    wait_for(
        "the wish to be reached after all",
        Duration::from_secs(90),
        || {
            let service = world.service("shop/it");
            if service["state"] == "RUNNING" && greeters(&world) == 4 {
                Ok(())
            } else {
                Err(service)
            }
        },
    );
    world.wait_no_leak();
}

#[test]
fn a_manager_that_is_refused_for_good_ends_the_operation() {
    let world = World::start_on(Platform::Memory);
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "it"]);
    // Waiting does not mend that; the application's internal service is the first to ask.
    world.cloud().set_instance_types(Vec::new());
    let begun = std::time::Instant::now();
    let started = world.run(["app", "start", "shop", "--json"]);
    assert_eq!(started.code, 1, "{started:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "long before its deadline: {:?}",
        begun.elapsed()
    );
    let operation: Value = serde_json::from_str(&started.stdout).unwrap();
    assert_eq!(operation["outcome"], "failed", "{operation:#}");
    let reason = operation["reason"].as_str().unwrap();
    assert!(
        reason.contains("its manager") && reason.contains("instance type"),
        "{reason}"
    );
    let refused = events(&world, "node_delayed");
    assert!(
        refused.iter().any(|e| e["facts"]["for_good"] == true),
        "{refused:#?}"
    );
    let service = world.service("shop/it");
    assert_eq!(service["state"], "ERROR", "{service:#}");

    // The wish stays: once the cloud gives it, all comes up.
    world
        .cloud()
        .set_instance_types(conpaas_model::instance::default_instance_types());
    wait_for(
        "the wish to be reached after all",
        Duration::from_secs(90),
        || {
            let service = world.service("shop/it");
            if service["state"] == "RUNNING" {
                Ok(())
            } else {
                Err(service)
            }
        },
    );
    world.wait_no_leak();
}
