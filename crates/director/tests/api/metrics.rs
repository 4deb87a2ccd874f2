//! Asking for metrics, and for the Director's health.

use crate::world::*;

#[tokio::test]
async fn metrics_are_asked_for_in_a_time_and_steps() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let path = format!("{service}/metrics");
    let empty = world.get(&path, &ann).await;
    assert_eq!(empty.status, 200, "{empty:?}");
    assert_eq!(empty.body["series"], json!([]));
    assert_eq!(empty.body["step_seconds"], 30);
    assert_eq!(world.get("/v1/apps/shop/metrics", &ann).await.status, 200);
    for bad in [
        "since=yesterday",
        "step=7",
        "step=10&since=2020-01-01T00:00:00Z",
        "since=2030-01-01T00:00:00Z",
        "by=colour",
        "name=A%20B",
        "steps=1&step=x",
    ] {
        let answer = world.get(&format!("{path}?{bad}"), &ann).await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
    }
    assert_eq!(world.get(&format!("{path}?node=x"), &ann).await.status, 404);
    let answer = world.get("/v1/apps/shop/metrics?node=1", &ann).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let text = world.get("/v1/metrics", &ann).await;
    assert_eq!((text.status, text.body), (StatusCode::OK, json!("")));
    assert_eq!(world.get("/metrics", &ann).await.status, 403);
    let own = world.get("/metrics", &world.admin).await;
    let own = own.body.as_str().unwrap();
    for line in [
        "conpaas_director_applications{} 1",
        "conpaas_director_services{state=\"stopped\"} 1",
        "conpaas_director_store_write_seconds_count{} 1",
    ] {
        assert!(own.lines().any(|found| found == line), "{line}\n{own}");
    }
    world.director.stop().await;
}

#[tokio::test]
async fn health_is_a_store_that_takes_a_write() {
    let world = World::new().await;
    assert_eq!(world.get("/healthz", "").await.status, 204);
    assert_eq!(world.get("/v1/healthz", "").await.status, 204);
    let proven = |world: &World| {
        let store = world.director.store().clone();
        async move {
            store
                .read(|tx| conpaas_director::store::meta(tx, "proven-at"))
                .await
                .unwrap()
        }
    };
    let first = proven(&world).await;
    assert!(first.is_some(), "it was written");
    // A store that another holds can be read, but takes no write: the Director cannot serve.
    let path = world.folder.path().join("state/store.db");
    let other = rusqlite::Connection::open(path).unwrap();
    let held = world.until("/healthz", "", |answer| {
        let _ = other.execute_batch("BEGIN IMMEDIATE");
        answer.status.is_server_error()
    });
    held.await;
    assert_eq!(proven(&world).await, first);
    other.execute_batch("ROLLBACK").unwrap();
    world
        .until("/healthz", "", |answer| answer.status == 204)
        .await;
    world.director.stop().await;
}
