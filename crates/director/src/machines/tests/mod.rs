//! The machine side over a cloud of records, with agents and managers that speak the real wire.

mod managers;
mod pairs;
mod secrets;
mod trust;
mod world;

use crate::store;
use conpaas_cloud::Exit;
use conpaas_core::broker::{MachineStage, NodeKey};
use conpaas_model::ids::NodeNumber;
use conpaas_model::protocol::{Located, ManagerAddress, PATH_AGENT_STREAM, PATH_LOCATE};
use conpaas_model::spec::RunWish;
use conpaas_model::status::NodeState;
use conpaas_pki::KeyPair;
use world::{Agent, World, code_of, eventually};

#[tokio::test]
async fn a_system_service_gets_a_machine_that_the_director_manages() {
    let world = World::start().await;
    world.wish(&world.system, RunWish::Running).await;
    let context = world.birth().await;
    assert_eq!(
        (context.service.clone(), context.node),
        (world.system.clone(), NodeNumber(1))
    );
    assert_eq!(context.address.to_string(), "100.64.0.10");
    assert_eq!(context.token.len(), 64);
    let agent = Agent::enrol(&context, None).await.unwrap();
    world.node_is(&world.system, 1, NodeState::Up).await;
    let located: Located = agent.client.get_json(PATH_LOCATE).await.unwrap();
    assert_eq!(located.manager, ManagerAddress::Director);
    let agent = agent.obey();
    let reached = || async {
        let row = world.row(&world.system).await;
        row.status.filter(|status| status.reached).map(|_| ())
    };
    eventually("the system service is reached", reached).await;
    assert!(agent.roles().contains("manager") || !agent.roles().is_empty());
    let used: i64 = world
        .count("SELECT count(*) FROM usage WHERE ended_at IS NULL")
        .await;
    assert_eq!(used, 1);

    // Stopping gives the machine back, and its use ends.
    world.wish(&world.system, RunWish::Stopped).await;
    eventually("nothing is left", || async {
        world.cloud.machines().is_empty().then_some(())
    })
    .await;
    eventually("the node is over", || async {
        (world.count("SELECT count(*) FROM nodes").await == 0).then_some(())
    })
    .await;
    assert_eq!(
        world
            .count("SELECT count(*) FROM usage WHERE ended_at IS NULL")
            .await,
        0
    );
    eventually("the stream of a removed machine is closed", || async {
        agent.is_over().then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn another_key_is_refused_and_told_and_the_removed_get_nothing() {
    let world = World::start().await;
    world.wish(&world.system, RunWish::Running).await;
    let context = world.birth().await;
    let wrong = conpaas_model::protocol::Context {
        token: "0".repeat(64),
        ..context.clone()
    };
    assert_eq!(code_of(Agent::enrol(&wrong, None).await), "unknown_token");
    let key = KeyPair::generate().unwrap();
    let agent = Agent::enrol(&context, Some(&key)).await.unwrap();
    // The same key gets the same answer, without a token too.
    let renewal = conpaas_model::protocol::Context {
        token: String::new(),
        ..context.clone()
    };
    Agent::enrol(&renewal, Some(&key)).await.unwrap();
    assert_eq!(code_of(Agent::enrol(&context, None).await), "other_key");
    let told = world
        .count("SELECT count(*) FROM events WHERE kind = 'enrolment_refused'")
        .await;
    assert_eq!(told, 1);
    // Who goes on is refused, and told no more in that minute.
    for _ in 0..20 {
        assert_eq!(code_of(Agent::enrol(&context, None).await), "other_key");
    }
    let count = "SELECT coalesce(sum(json_extract(facts_json, '$.count')), 0) FROM events WHERE kind = 'enrolment_refused'";
    assert_eq!(world.count(count).await, 1);
    let unknown = conpaas_model::protocol::Context {
        machine: "m-unknown".parse().unwrap(),
        ..context.clone()
    };
    assert_eq!(code_of(Agent::enrol(&unknown, None).await), "unknown_token");

    world.node_is(&world.system, 1, NodeState::Up).await;
    let blob = format!("/v1/blobs/{}", "a".repeat(64));
    assert_eq!(
        code_of(agent.client.get_json::<serde_json::Value>(&blob).await),
        "no_blob"
    );
    world.cloud.fail_next_destroy("not now");
    let key_of_node = NodeKey {
        service: world.system.clone(),
        number: NodeNumber(1),
    };
    world
        .store
        .transaction(move |tx| super::records::wish_gone(tx, &key_of_node))
        .await
        .unwrap();
    eventually("the machine may call no more", || async {
        let refused = agent.client.get_json::<Located>(PATH_LOCATE).await.err()?;
        (refused.code() == Some("node_removed")).then_some(())
    })
    .await;
    assert_eq!(
        code_of(Agent::enrol(&context, Some(&key)).await),
        "node_removed"
    );
    world.end().await;
}

#[tokio::test]
async fn enrolments_that_come_too_fast_are_braked_before_they_cost_anything() {
    let world = World::start().await;
    world.wish(&world.system, RunWish::Running).await;
    let context = world.birth().await;
    let guess = conpaas_model::protocol::Context {
        machine: "m-unknown".parse().unwrap(),
        ..context.clone()
    };
    let key = KeyPair::generate().unwrap();
    let agent = Agent::enrol(&context, Some(&key)).await.unwrap();
    let mut codes = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..80 {
        let code = code_of(Agent::enrol(&guess, Some(&key)).await);
        *codes.entry(code).or_default() += 1;
    }
    let (looked_at, braked) = (codes["unknown_token"], codes["too_many_attempts"]);
    assert!(
        (60..=70).contains(&looked_at) && looked_at + braked == 80,
        "{codes:?}"
    );
    // Calls with a certificate are another matter, and time forgives.
    agent.client.get_json::<Located>(PATH_LOCATE).await.unwrap();
    eventually("it may renew again", || async {
        Agent::enrol(&context, Some(&key)).await.ok()
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn who_shows_no_certificate_or_is_of_the_wrong_kind_gets_nothing() {
    let world = World::start().await;
    world.wish(&world.system, RunWish::Running).await;
    let context = world.birth().await;
    let nobody = Agent::unnamed(&context);
    assert_eq!(
        code_of(nobody.get_json::<Located>(PATH_LOCATE).await),
        "no_certificate"
    );
    assert_eq!(
        code_of(nobody.get_json::<Located>(PATH_AGENT_STREAM).await),
        "no_certificate"
    );
    let agent = Agent::enrol(&context, None).await.unwrap();
    assert_eq!(
        code_of(agent.client.get_json::<Located>("/v1/manager-stream").await),
        "wrong_party"
    );
    assert_eq!(
        code_of(agent.client.get_json::<Located>("/v1/else").await),
        "not_found"
    );
    world.end().await;
}

#[tokio::test]
async fn a_machine_of_an_earlier_attempt_enrols_and_one_that_comes_too_late_is_destroyed() {
    let world = World::start().await;
    // It is made, but neither answered nor listed before it is asked for again.
    world.cloud.hide_next_machine();
    world.wish(&world.system, RunWish::Running).await;
    let first = world.birth().await;
    eventually("it was asked for again and found", || async {
        let found = world
            .count("SELECT count(*) FROM machines WHERE state = 'booting' AND attempts > 0")
            .await;
        (found == 1).then_some(())
    })
    .await;
    Agent::enrol(&first, None).await.unwrap();
    world.node_is(&world.system, 1, NodeState::Up).await;
    assert_eq!(world.cloud.machines().len(), 1);

    // One that shows when its node is not wanted any more is a stray.
    world.wish(&world.system, RunWish::Stopped).await;
    eventually("nothing is left", || async {
        world.cloud.machines().is_empty().then_some(())
    })
    .await;
    for _ in 0..1000 {
        world.cloud.hide_next_machine();
    }
    world.wish(&world.system, RunWish::Running).await;
    let late = world.birth().await;
    world.wish(&world.system, RunWish::Stopped).await;
    eventually("its record is gone", || async {
        let left = world
            .count("SELECT count(*) FROM machines WHERE state <> 'gone'")
            .await;
        (left == 0).then_some(())
    })
    .await;
    assert_eq!(code_of(Agent::enrol(&late, None).await), "node_removed");
    if !world.cloud.machines().is_empty() {
        world.cloud.show_hidden();
    }
    eventually("the stray is told of", || async {
        let told = world
            .count("SELECT count(*) FROM events WHERE kind = 'stray_destroyed'")
            .await;
        (told == 1 && world.cloud.machines().is_empty()).then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn lost_answers_and_refusals_and_late_boots_end_in_one_machine() {
    let mut world = World::start().await;
    world.cloud.fail_next_create("no answer");
    world.cloud.lose_next_answer();
    world.wish(&world.system, RunWish::Running).await;
    let first = world.birth().await;
    // It never enrols: it is destroyed, and another one is tried for the same node.
    let second = world.birth().await;
    assert_eq!(first.node, second.node);
    assert_ne!(first.machine, second.machine);
    assert_eq!(world.cloud.machines().len(), 1);
    assert_eq!(code_of(Agent::enrol(&first, None).await), "node_removed");
    Agent::enrol(&second, None).await.unwrap();
    world.node_is(&world.system, 1, NodeState::Up).await;
    let told = world
        .count("SELECT count(*) FROM events WHERE kind = 'machine_failed'")
        .await;
    assert_eq!(told, 1);

    // A restart finds everything again and doubles nothing; what no record wants goes.
    world.stop().await;
    world.orphan().await;
    assert_eq!(world.cloud.machines().len(), 2);
    world.resume().await;
    eventually("the orphan is gone", || async {
        (world.cloud.machines().len() == 1).then_some(())
    })
    .await;
    assert_eq!(world.cloud.machines()[0].machine, second.machine);
    assert_eq!(
        world
            .count("SELECT count(*) FROM machines WHERE state = 'up'")
            .await,
        1
    );
    world.end().await;
}

#[tokio::test]
async fn a_director_that_ended_within_a_call_finds_the_machine_again() {
    let mut world = World::start().await;
    world
        .cloud
        .set_boot_delay(std::time::Duration::from_millis(200));
    world.wish(&world.system, RunWish::Running).await;
    eventually("the call is under way", || async {
        (!world.cloud.machines().is_empty()).then_some(())
    })
    .await;
    world.stop().await;
    let stages = world
        .count("SELECT count(*) FROM machines WHERE state = 'creating'")
        .await;
    assert_eq!(stages, 1, "the answer came too late to be recorded");
    world.resume().await;
    let mut context = world.birth().await;
    // The Director listens elsewhere now.
    context
        .director
        .set_port(world.machines().host_port().unwrap());
    Agent::enrol(&context, None).await.unwrap();
    world.node_is(&world.system, 1, NodeState::Up).await;
    assert_eq!(world.cloud.machines().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_dead_machine_makes_its_node_dead_and_another_number_takes_its_place() {
    let world = World::start().await;
    world.wish(&world.system, RunWish::Running).await;
    let context = world.birth().await;
    let agent = Agent::enrol(&context, None).await.unwrap().obey();
    world.node_is(&world.system, 1, NodeState::Up).await;
    let id = world.cloud.machines()[0].id.clone();
    agent.hang_up();
    world.cloud.kill(&id, Exit::Signal { signal: 9 });
    let second = world.birth().await;
    assert_eq!(second.node, NodeNumber(2));
    let died = world
        .count("SELECT count(*) FROM events WHERE kind = 'node_died'")
        .await;
    assert_eq!(died, 1);
    eventually("the dead machine is gone", || async {
        (world.cloud.machines().len() == 1).then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn what_does_not_fit_and_what_the_quota_forbids_is_said_with_numbers() {
    let world = World::start().await;
    world.cloud.set_total(Default::default());
    world.wish(&world.system, RunWish::Running).await;
    let trouble = || async {
        let nodes = world.nodes(&world.system).await;
        nodes.into_iter().find_map(|node| node.trouble)
    };
    let text = eventually("the trouble is told", trouble).await;
    assert!(text.contains("256 MiB") && text.contains("0 MiB"), "{text}");
    world.cloud.set_total(World::room());
    world
        .store
        .transaction(|tx| Ok(tx.execute("UPDATE users SET node_quota = 0", [])?))
        .await
        .unwrap();
    let context = world.birth().await;
    assert_eq!(
        context.node,
        NodeNumber(1),
        "what was recorded before is obtained"
    );
    let again = || async {
        let rows = world.nodes(&world.system).await;
        rows.into_iter()
            .find_map(|node| node.trouble)
            .filter(|text| text.contains("quota of 0"))
    };
    // The machine does not enrol in time; for another one the quota has no room.
    eventually("the quota is told", again).await;
    world.end().await;
}

#[tokio::test]
async fn stages_and_states_have_the_words_that_the_store_knows() {
    let world = World::start().await;
    world.wish(&world.system, RunWish::Running).await;
    let context = world.birth().await;
    let id = context.machine.clone();
    let machine = world
        .store
        .read(move |tx| super::records::machine(tx, &id))
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(
        machine.stage,
        MachineStage::Creating | MachineStage::Booting
    ));
    let system = world.system.clone();
    let seen = world
        .store
        .read(move |tx| store::machines::nodes_of_service(tx, &system))
        .await
        .unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].machine.as_ref(), Some(&context.machine));
    assert_eq!(world.row(&world.system).await.next_node, NodeNumber(2));
    world.end().await;
}
