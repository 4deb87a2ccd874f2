//! Operations: followed, late, outlived by a restart.

use crate::world::*;

#[tokio::test]
async fn an_operation_is_followed_live_to_its_end() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let id = world.get(&service, &ann).await.body["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let started = world
        .post(&format!("{service}/start"), &ann, json!({}))
        .await;
    let operation = started.body["operation"]["id"].as_str().unwrap();
    let url = world.url(&format!("/v1/operations/{operation}/stream"));
    let mut response = world
        .client
        .get(url)
        .bearer_auth(&ann)
        .send()
        .await
        .unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("\"outcome\":\"running\""));
    world.manager_says(&id, None).await;
    let mut rest = String::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(rest.contains("\"outcome\":\"done\""), "{rest}");
    let url = world.url("/v1/apps/shop/events/stream");
    let request = world
        .client
        .get(url)
        .bearer_auth(&ann)
        .header("last-event-id", "1");
    let mut response = request.send().await.unwrap();
    let chunk = response.chunk().await.unwrap().unwrap();
    assert!(
        String::from_utf8_lossy(&chunk).contains("id: 2"),
        "{chunk:?}"
    );
    world.director.stop().await;
}

#[tokio::test]
async fn deadlines_end_operations_and_a_restart_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut short = config(folder.path());
    short.operation_deadline = std::time::Duration::ZERO;
    let director = start(short.clone()).await.unwrap();
    let again = start(short.clone()).await.err().unwrap();
    assert!(matches!(again, StartError::StateInUse { .. }), "{again}");
    let mut other = config(&folder.path().join("other"));
    other.listen = director.address();
    let taken = start(other).await.err().unwrap();
    assert!(matches!(taken, StartError::AddressTaken { .. }), "{taken}");
    let (fingerprint, installation) = (
        director.fingerprint().to_owned(),
        director.installation().clone(),
    );
    let mode = std::fs::metadata(folder.path().join("state"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    director.stop().await;
    let director = start(short).await.unwrap();
    assert_eq!(
        (director.fingerprint(), director.installation()),
        (fingerprint.as_str(), &installation)
    );
    director.stop().await;
}

#[tokio::test]
async fn a_wish_that_takes_too_long_fails_visibly_and_goes_on() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let id = world.get(&service, &ann).await.body["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let started = world
        .post(&format!("{service}/start"), &ann, json!({}))
        .await;
    let operation = started.body["operation"]["id"].as_str().unwrap().to_owned();
    let late = operation.clone();
    let end = move |tx: &rusqlite::Transaction<'_>| {
        tx.execute("UPDATE operations SET deadline = 0 WHERE id = ?1", [&late])?;
        let row = rows::get(tx, &late)?.unwrap();
        assert_eq!(row.outcome, Outcome::Running);
        Ok(())
    };
    world.director.store().transaction(end).await.unwrap();
    let path = format!("/v1/operations/{operation}");
    let failed = world
        .until(&path, &ann, |answer| answer.body["outcome"] == "failed")
        .await;
    assert!(
        failed.body["reason"]
            .as_str()
            .unwrap()
            .contains("work goes on")
    );
    assert_eq!(world.get(&service, &ann).await.body["state"], "ERROR");
    world.manager_says(&id, None).await;
    assert_eq!(world.get(&service, &ann).await.body["state"], "RUNNING");
    world.director.stop().await;
}

#[tokio::test]
async fn a_replacement_needs_room_for_both_nodes_and_is_taken_back_by_cancelling() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let id: ServiceId = world.get(&service, &ann).await.body["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    world
        .post(&format!("{service}/start"), &ann, json!({}))
        .await;
    let quota = async |nodes: u32| {
        let body = Some(json!({"node_quota": nodes}));
        let path = "/v1/users/ann";
        let set = world.send(Method::PATCH, path, &world.admin, body, &[]);
        assert_eq!(set.await.status, 200);
    };
    // As its manager would have wished for it.
    let key = id.clone();
    let made = move |tx: &rusqlite::Transaction<'_>| {
        tx.execute(
            "INSERT INTO nodes(service_id, number, cloud, instance_type, address, state, wish, created_at)
             VALUES(?1, 1, 'memory', 'small', '100.64.9.9', 'up', 'present', 0)",
            [key.as_str()],
        )?;
        Ok(())
    };
    world.director.store().quiet(made).await.unwrap();
    let retired = async || {
        let key = id.clone();
        let look = move |tx: &rusqlite::Transaction<'_>| {
            conpaas_director::store::machines::to_retire(tx, &key)
        };
        world.director.store().read(look).await.unwrap().len()
    };
    // One node and the one of managers.
    quota(2).await;
    let path = format!("{service}/nodes/1/replace");
    let refused = world.post(&path, &ann, json!({})).await;
    assert_eq!(refused.body["code"], "quota_exceeded", "{refused:?}");
    assert_eq!(retired().await, 0);
    quota(3).await;
    let replaced = world.post(&path, &ann, json!({})).await;
    assert_eq!(replaced.status, 202, "{replaced:?}");
    assert_eq!(retired().await, 1);
    let operation = replaced.body["operation"]["id"].as_str().unwrap();
    let cancel = format!("/v1/operations/{operation}/cancel");
    let cancelled = world.post(&cancel, &ann, json!({})).await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    assert_eq!(retired().await, 0);
    world.director.stop().await;
}

#[tokio::test]
async fn an_upgrade_wants_nodes_replaced_and_cancelling_it_leaves_newer_wishes() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let (_, role) = some_type();
    let id: ServiceId = world.get(&service, &ann).await.body["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let wish = json!({"service_type": some_type().0, "name": "other"});
    let other = world.post("/v1/apps/shop/services", &ann, wish).await;
    let other: ServiceId = other.body["id"].as_str().unwrap().parse().unwrap();
    let upgrade = async |all: bool| {
        let done = world.post("/v1/apps/shop/upgrade", &ann, json!({"all": all}));
        let done = done.await;
        assert_eq!(done.status, 202, "{done:?}");
        done.body["operation"]["id"].as_str().map(str::to_owned)
    };
    let started = world.post("/v1/apps/shop/start", &ann, json!({})).await;
    assert_eq!(started.status, 202, "{started:?}");
    // As its manager and the broker would have done.
    let nodes = [(id.clone(), 1), (id.clone(), 2), (other, 3)];
    let made = move |tx: &rusqlite::Transaction<'_>| {
        for (key, number) in &nodes {
            tx.execute(
                "INSERT INTO nodes(service_id, number, cloud, instance_type, address, state, wish, created_at)
                 VALUES(?1, ?2, 'local', 'small', '100.64.9.' || ?2, 'up', 'present', 0)",
                rusqlite::params![key.as_str(), number],
            )?;
            tx.execute(
                "INSERT INTO machines(id, app_id, owner_id, service_id, node_number, cloud, instance_type,
                     cloud_token, state, token_hash, token_expires_at, created_at)
                 SELECT 'm-made' || ?2, app_id, 'ann', id, ?2, 'local', 'small', '', 'up', '', 0, 0
                 FROM services WHERE id = ?1",
                rusqlite::params![key.as_str(), number],
            )?;
        }
        Ok(())
    };
    world.director.store().quiet(made).await.unwrap();
    let retired = async || {
        let key = id.clone();
        let look = move |tx: &rusqlite::Transaction<'_>| {
            conpaas_director::store::machines::to_retire(tx, &key)
        };
        world.director.store().read(look).await.unwrap().len()
    };
    // Nothing is outdated: what the application is at anyway may be followed, and no more.
    let start = started.body["operation"]["id"].as_str();
    assert_eq!(upgrade(false).await.as_deref(), start);
    assert_eq!(retired().await, 0);
    let first = upgrade(true).await.unwrap();
    assert_eq!(retired().await, 2);
    assert_eq!(upgrade(true).await, Some(first.clone()), "it is under way");

    let scale = format!("{service}/scale");
    let scaled = world.post(&scale, &ann, json!({"roles": {role.as_str(): "3"}}));
    let scaled = scaled.await;
    assert_eq!(scaled.status, 202, "{scaled:?}");
    let counts = async || world.get(&service, &ann).await.body["roles"][role.as_str()].clone();
    let wished = counts().await;
    // The other service still waits, so the upgrade goes on without this one.
    let cancel = format!("/v1/operations/{first}/cancel");
    let cancelled = world.post(&cancel, &ann, json!({})).await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    assert_eq!(retired().await, 0);
    assert_eq!(counts().await, wished);
    world.director.stop().await;
}
