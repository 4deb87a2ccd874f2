//! The set of roots is changed while parties call: each step waits for those who are not there yet,
//! and says who they are.

use super::managers::managed;
use super::world::{Agent, World, code_of, eventually};
use crate::error::DirectorError;
use crate::machine_side::MachineSide;
use conpaas_model::api::{RootInfo, RootState};
use conpaas_model::protocol::{Located, PATH_LOCATE};

async fn roots(world: &World) -> Vec<RootInfo> {
    world.machines().roots().await.unwrap()
}

fn conflict(result: Result<(), DirectorError>) -> (&'static str, String) {
    match result {
        Err(DirectorError::Conflict(explain)) => (explain.code, explain.message),
        other => panic!("no conflict: {other:?}"),
    }
}

#[tokio::test]
async fn roots_are_changed_while_everybody_calls() {
    let (mut world, agent, manager) = managed().await;
    let found = roots(&world).await;
    let old = found[0].fingerprint.clone();
    assert_eq!((found.len(), found[0].state), (1, RootState::Signs));
    assert_eq!(
        (found[0].parties, found[0].trusted_by),
        (2, 0),
        "nobody said anything"
    );
    let (code, _) = conflict(world.machines().retire_root(&old).await);
    assert_eq!(code, "root_signs");
    let first = agent.trusts().await.unwrap().trust;

    let new = world.machines().add_root().await.unwrap();
    assert_eq!(
        (new.state, new.trusted_by, new.parties),
        (RootState::Next, 0, 2)
    );
    let names = ["agent of ann:shop/system/1", "manager of ann:shop/system/1"];
    assert_eq!(new.waits_for, names);
    let again = world.machines().add_root().await;
    assert_eq!(conflict(again.map(|_| ())).0, "root_spreading");
    // A change that is under way outlives the Director.
    world.stop().await;
    world.resume().await;
    let (agent, mut manager) = (agent.at(&world), {
        drop(manager);
        agent.at(&world).manager().await.unwrap()
    });
    assert_eq!(roots(&world).await[1].fingerprint, new.fingerprint);

    // Everybody hears of it where they listen anyway.
    let located: Located = agent.client.get_json(PATH_LOCATE).await.unwrap();
    assert_ne!(located.trust, first);
    assert_eq!(manager.level().await.trust, located.trust);
    // Who knows the old one alone is not counted, whatever certificate it has.
    agent.trusts().await.unwrap();
    assert_eq!(roots(&world).await[1].waits_for, names);
    let agent = agent.renewed().await.unwrap();
    assert_eq!(agent.trusts().await.unwrap().trust, located.trust);
    assert_eq!(roots(&world).await[1].waits_for, names[1..]);
    manager.trusts().await.unwrap();
    eventually("the new root signs", || async {
        let signs = roots(&world).await.remove(0);
        (signs.fingerprint == new.fingerprint).then_some(())
    })
    .await;

    // The old one is trusted still, and kept while anybody has a certificate of it.
    agent.client.get_json::<Located>(PATH_LOCATE).await.unwrap();
    let (code, why) = conflict(world.machines().retire_root(&old[..12]).await);
    assert_eq!(code, "root_in_use");
    assert!(names.iter().all(|name| why.contains(name)), "{why}");
    let renewed = agent.renewed().await.unwrap();
    renewed.trusts().await.unwrap();
    let (_, why) = conflict(world.machines().retire_root(&old).await);
    assert!(!why.contains(names[0]) && why.contains(names[1]), "{why}");
    let manager = renewed.manager().await.unwrap();
    manager.trusts().await.unwrap();
    let found = roots(&world).await;
    assert_eq!((found[0].certificates, found[0].trusted_by), (2, 2));
    assert_eq!(
        (found[1].state, found[1].certificates),
        (RootState::Former, 0)
    );
    assert!(found[1].waits_for.is_empty());
    world.machines().retire_root(&old).await.unwrap();
    let unknown = world.machines().retire_root(&old).await;
    assert!(matches!(unknown, Err(DirectorError::NotFound(_))));

    // From now on a certificate of the old one opens nothing; the new one does, after a restart too.
    let refused = code_of(
        agent
            .at(&world)
            .client
            .get_json::<Located>(PATH_LOCATE)
            .await,
    );
    assert!(
        refused.contains("failed") && !refused.contains("node_removed"),
        "{refused}"
    );
    world.stop().await;
    world.resume().await;
    let there = renewed.at(&world);
    there.client.get_json::<Located>(PATH_LOCATE).await.unwrap();
    assert_eq!(roots(&world).await.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_root_that_is_not_to_sign_after_all_goes_again_and_new_machines_know_all() {
    let world = World::start().await;
    let old = roots(&world).await.remove(0).fingerprint;
    // Nobody is there who would have to trust it first.
    let new = world.machines().add_root().await.unwrap();
    eventually("it signs", || async {
        (roots(&world).await[0].fingerprint == new.fingerprint).then_some(())
    })
    .await;
    world.machines().retire_root(&old).await.unwrap();
    world
        .wish(&world.system, conpaas_model::spec::RunWish::Running)
        .await;
    let context = world.birth().await;
    // A machine that was born counts before it said anything.
    let third = world.machines().add_root().await.unwrap();
    assert_eq!(third.waits_for, ["agent of ann:shop/system/1"]);
    world
        .machines()
        .retire_root(&third.fingerprint)
        .await
        .unwrap();
    let agent = Agent::enrol(&context, None).await.unwrap();
    agent.trusts().await.unwrap();
    let found = roots(&world).await;
    assert_eq!((found.len(), found[0].certificates), (1, 1));
    world.end().await;
}
