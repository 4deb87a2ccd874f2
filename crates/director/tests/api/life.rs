//! The life of applications: created, started, scaled, stopped, deleted.

use crate::world::*;

#[tokio::test]
async fn the_life_of_an_application() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let shown = world.get(&service, &ann).await;
    assert_eq!(shown.body["state"], "INIT");
    let id = shown.body["id"].as_str().unwrap().to_owned();
    let (_, role) = some_type();

    let started = world.post("/v1/apps/shop/start", &ann, json!({})).await;
    assert_eq!(started.status, 202, "{started:?}");
    let operation = format!(
        "/v1/operations/{}",
        started.body["operation"]["id"].as_str().unwrap()
    );
    assert_eq!(
        world.get("/v1/apps/shop", &ann).await.body["state"],
        "PROLOGUE"
    );
    let again = world.post("/v1/apps/shop/start", &ann, json!({})).await;
    assert_eq!(
        again.body["operation"]["id"], started.body["operation"]["id"],
        "starting twice is starting once"
    );
    world.manager_says(&id, None).await;
    assert_eq!(world.get(&operation, &ann).await.body["outcome"], "done");
    assert_eq!(
        world.get("/v1/apps/shop", &ann).await.body["state"],
        "RUNNING"
    );

    // A change supersedes, a failure is an error with a way out, cancelling goes back.
    let scale = |count: &str| json!({"roles": {role.clone(): count}});
    let first = world
        .post(&format!("{service}/scale"), &ann, scale("2"))
        .await;
    assert_eq!(first.status, 202, "{first:?}");
    assert_eq!(world.get(&service, &ann).await.body["state"], "ADAPTING");
    let second = world
        .post(&format!("{service}/scale"), &ann, scale("+1"))
        .await;
    let path = |answer: &Answer| {
        format!(
            "/v1/operations/{}",
            answer.body["operation"]["id"].as_str().unwrap()
        )
    };
    assert_eq!(
        world.get(&path(&first), &ann).await.body["outcome"],
        "superseded"
    );
    world.manager_says(&id, Some("r1 does not start")).await;
    let failed = world.get(&path(&second), &ann).await;
    assert_eq!(failed.body["outcome"], "failed");
    let shown = world.get(&service, &ann).await;
    assert_eq!(shown.body["state"], "ERROR");
    assert!(
        shown.body["reason"]
            .as_str()
            .unwrap()
            .contains("r1 does not start")
    );
    let third = world
        .post(&format!("{service}/scale"), &ann, scale("1"))
        .await;
    let cancelled = world
        .post(&format!("{}/cancel", path(&third)), &ann, json!({}))
        .await;
    assert_eq!(cancelled.body["outcome"], "cancelled", "{cancelled:?}");
    assert_eq!(
        world.get(&service, &ann).await.body["roles"][&role]["pools"][0]["count"],
        3
    );
    world.manager_says(&id, None).await;

    // Bad wishes are refused at once, with the numbers.
    for (wish, words) in [
        (
            json!({"roles": {"nonsense": "1"}}),
            vec!["no role 'nonsense'", role.as_str()],
        ),
        (scale("0"), vec!["cannot have 0", "at least"]),
        (scale("-9"), vec!["cannot have -6"]),
        (scale("x"), vec!["is no count"]),
        (
            json!({"roles": {role.clone(): "2"}, "instance_type": "huge"}),
            vec!["huge", "small, medium, large"],
        ),
        (json!({"roles": {}}), vec!["at least one role"]),
    ] {
        let answer = world
            .post(&format!("{service}/scale"), &ann, wish.clone())
            .await;
        assert_eq!(answer.status, 400, "{wish}: {answer:?}");
        let message = answer.body["message"].as_str().unwrap();
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{wish}: {message}"
        );
    }
    let many = world
        .post(&format!("{service}/scale"), &ann, scale("19"))
        .await;
    assert!(matches!(many.status.as_u16(), 400 | 409), "{many:?}");

    // Stop keeps, delete destroys.
    let stopped = world.post("/v1/apps/shop/stop", &ann, json!({})).await;
    world
        .until(&path(&stopped), &ann, |answer| {
            answer.body["outcome"] == "done"
        })
        .await;
    world
        .until("/v1/apps/shop", &ann, |answer| {
            answer.body["state"] == "STOPPED"
        })
        .await;
    assert_eq!(
        world.get(&service, &ann).await.body["roles"][&role]["pools"][0]["count"],
        3
    );
    let deleted = world
        .send(Method::DELETE, "/v1/apps/shop", &ann, None, &[])
        .await;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    let again = world.post("/v1/apps", &ann, json!({"name": "shop"})).await;
    assert_eq!(again.status, 201, "the name is free: {again:?}");
    world
        .until(&path(&deleted), &ann, |answer| {
            answer.body["outcome"] == "done"
        })
        .await;
    let left = world.get("/v1/apps", &ann).await;
    assert_eq!(left.body["items"].as_array().unwrap().len(), 1);
    world.director.stop().await;
}
