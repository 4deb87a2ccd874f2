//! Who may have the value of a secret: the agent of a node with a role of a release that names it.

use super::world::{Agent, World, code_of};
use crate::store::{now, secrets, services};
use crate::vault::Label;
use conpaas_model::environment::Environment;
use conpaas_model::ids::{NodeNumber, ReleaseNumber, SecretVersion, ServiceId};
use conpaas_model::protocol::{NodeWish, PATH_SECRETS, SecretValue};
use conpaas_model::spec::RunWish;
use conpaas_model::status::{NodeHealth, NodeState, NodeSummary, RoleSummary, ServiceStatus};
use conpaas_pki::KeyPair;

/// Seals two versions of a secret, and makes a release 2 that names the first.
async fn seal(world: &World, service: &ServiceId) {
    let (vault, service) = (world.vault(), service.clone());
    let write = move |tx: &rusqlite::Transaction<'_>| {
        for version in [1, 2].map(SecretVersion) {
            let label = Label {
                service: &service,
                name: "DB",
                version,
            };
            let sealed = vault.seal(&label, &format!("hush {version}")).unwrap();
            let row = secrets::SecretRow {
                service: service.clone(),
                name: "DB".into(),
                version,
                sealed,
                created_at: now(),
                actor: "ann".into(),
            };
            secrets::insert(tx, &row)?;
        }
        let first = services::get_release(tx, &service, ReleaseNumber(1))?.unwrap();
        services::insert_release(
            tx,
            &services::ReleaseRow {
                number: ReleaseNumber(2),
                environment: Environment::default()
                    .with_secret("DB", SecretVersion(1))
                    .unwrap(),
                ..first
            },
        )
    };
    world.store.transaction(write).await.unwrap();
}

/// The manager has said that a node runs a role of a release.
async fn runs(world: &World, service: &ServiceId, node: NodeNumber, role: &str, release: u64) {
    let (service, role) = (service.clone(), role.to_owned());
    let status = ServiceStatus {
        nodes: vec![NodeSummary {
            number: node,
            state: "up".into(),
            roles: vec![RoleSummary {
                role,
                release: Some(ReleaseNumber(release)),
                phase: "starting".into(),
                reason: None,
            }],
            health: NodeHealth::default(),
        }],
        ..ServiceStatus::default()
    };
    world
        .store
        .transaction(move |tx| services::set_status(tx, &service, &status))
        .await
        .unwrap();
}

async fn asked(agent: &Agent, path: &str) -> Result<String, String> {
    let answer: Result<SecretValue, _> = agent
        .client
        .get_json(&format!("{PATH_SECRETS}{path}"))
        .await;
    match answer {
        Ok(found) => Ok(found.value),
        error => Err(code_of(error)),
    }
}

#[tokio::test]
async fn a_secret_is_for_nodes_that_run_a_release_which_names_it() {
    let mut world = World::start().await;
    let (system, web) = (world.system.clone(), world.web.clone());
    world.wish(&system, RunWish::Running).await;
    world.wish(&web, RunWish::Running).await;
    let first = world.birth().await;
    let of_manager = Agent::enrol(&first, None).await.unwrap();
    world.node_is(&system, 1, NodeState::Up).await;
    let mut manager = of_manager.manager().await.unwrap();
    let wish = NodeWish::Present {
        cloud: "memory".into(),
        instance_type: "small".into(),
    };
    let wishes = [(1, wish.clone()), (2, wish)];
    let report = super::managers::report(&world, 1, &wishes, Default::default());
    manager.say(report).await;
    let (one, two) = (world.birth().await, world.birth().await);
    let key = KeyPair::generate().unwrap();
    let agent = Agent::enrol(&one, Some(&key)).await.unwrap();
    let other = Agent::enrol(&two, None).await.unwrap();
    drop(manager);
    seal(&world, &web).await;
    let registry = conpaas_services::registry::Registry::standard();
    let service_type = registry.get(&world.row(&web).await.service_type).unwrap();
    let taker = service_type.service_type.takes_environment()[0];
    let roles = service_type.service_type.roles();
    let bystander = roles.iter().find(|role| role.name != taker).unwrap().name;

    let missing = Err("no_secret".to_owned());
    // Nobody runs the release yet; then another release; then a role that is not given it.
    assert_eq!(asked(&agent, "/DB/1").await, missing);
    runs(&world, &web, one.node, taker, 1).await;
    assert_eq!(asked(&agent, "/DB/1").await, missing);
    runs(&world, &web, one.node, bystander, 2).await;
    assert_eq!(asked(&agent, "/DB/1").await, missing);
    runs(&world, &web, one.node, taker, 2).await;
    assert_eq!(asked(&agent, "/DB/1").await, Ok("hush v1".to_owned()));
    // Not for another node, nor for the manager's, nor in another version or shape.
    assert_eq!(asked(&other, "/DB/1").await, missing);
    assert_eq!(asked(&of_manager, "/DB/1").await, missing);
    for path in [
        "/DB/2", "/DB/3", "/XX/1", "/DB", "", "/DB/1/2", "x", "/DB/-1",
    ] {
        assert_eq!(asked(&agent, path).await, missing, "{path}");
    }
    let nobody: Result<SecretValue, _> = Agent::unnamed(&one)
        .get_json(&format!("{PATH_SECRETS}/DB/1"))
        .await;
    assert_eq!(code_of(nobody), "no_certificate");

    // With another key it is there, but cannot be had: that is told.
    world.stop().await;
    world.lose_vault();
    world.resume().await;
    let agent = agent.at(&world);
    runs(&world, &web, one.node, taker, 2).await;
    assert_eq!(
        asked(&agent, "/DB/1").await,
        Err("secret_unreadable".to_owned())
    );
    world.end().await;
}
