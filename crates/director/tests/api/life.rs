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
        (scale("-9"), vec!["is no count", "has 3 now"]),
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
    assert!(
        deleted.body["operation"].is_null(),
        "nothing runs, so there is nothing to follow: {deleted:?}"
    );
    let again = world.post("/v1/apps", &ann, json!({"name": "shop"})).await;
    assert_eq!(again.status, 201, "the name is free: {again:?}");
    let left = world.get("/v1/apps", &ann).await;
    assert_eq!(left.body["items"].as_array().unwrap().len(), 1);
    world.director.stop().await;
}

#[tokio::test]
async fn what_was_deleted_rests_in_the_trash_and_comes_back_with_all_it_had() {
    let world = World::with(|config| config.trash = std::time::Duration::from_secs(3600)).await;
    let (ann, bob) = (world.user("ann").await, world.user("bob").await);
    let service = world.shop(&ann).await;
    let code = world.upload(&service, &ann, tar("index.php", "one")).await;
    assert_eq!(code.status, 201, "{code:?}");
    let id = world.get("/v1/apps/shop", &ann).await.body["id"].clone();
    let id = id.as_str().unwrap().to_owned();
    let delete = async |path: &str| world.send(Method::DELETE, path, &ann, None, &[]).await;
    assert_eq!(delete("/v1/apps/shop").await.status, 202);

    // Gone for all that goes by names, there for who looks into the trash.
    assert_eq!(world.get("/v1/apps/shop", &ann).await.status, 404);
    let names = async |query: &str| {
        let page = world.get(&format!("/v1/apps{query}"), &ann).await;
        let items = page.body["items"].as_array().unwrap().clone();
        // They come in the order of their ids.
        let names = items
            .iter()
            .map(|app| app["name"].as_str().unwrap().to_owned());
        names
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    assert!(names("").await.is_empty());
    assert_eq!(names("?trash=true").await, ["shop"]);
    let shown = world.get(&format!("/v1/apps/{id}"), &ann).await;
    assert!(shown.body["destroyed_at"].is_string(), "{shown:?}");
    assert_eq!(shown.body["allowed"], json!(["restore", "delete"]));
    let start = world
        .post(&format!("/v1/apps/{id}/start"), &ann, json!({}))
        .await;
    assert_eq!(start.body["code"], "in_trash");
    let path = format!("/v1/apps/{id}/services/web/settings");
    let set = world
        .send(
            Method::PATCH,
            &path,
            &ann,
            Some(json!({"settings": {}})),
            &[],
        )
        .await;
    assert_eq!(set.body["code"], "in_trash");
    for path in [
        "/v1/apps/ann:shop/restore",
        &format!("/v1/apps/{id}/restore"),
    ] {
        let foreign = world.post(path, &bob, json!({})).await;
        assert_eq!(foreign.status, 404, "{foreign:?}");
    }

    // Its name may have gone to another.
    assert_eq!(
        world
            .post("/v1/apps", &ann, json!({"name": "shop"}))
            .await
            .status,
        201
    );
    let restore = format!("/v1/apps/{id}/restore");
    let taken = world.post(&restore, &ann, json!({})).await;
    assert_eq!(taken.body["code"], "name_taken", "{taken:?}");
    let back = world.post(&restore, &ann, json!({"name": "old"})).await;
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(names("").await, ["old", "shop"]);
    let kept = world.get("/v1/apps/old/services/web/code", &ann).await;
    assert_eq!(kept.body["items"][0]["id"], code.body["id"]);
    let again = world.post(&restore, &ann, json!({})).await;
    assert_eq!(again.body["code"], "not_in_trash");

    // For good; by name the one that was put there last is meant.
    assert_eq!(delete("/v1/apps/old").await.status, 202);
    let named = world.post("/v1/apps/old/restore", &ann, json!({})).await;
    assert_eq!(named.status, 200, "{named:?}");
    assert_eq!(delete("/v1/apps/old?now=true").await.status, 202);
    world
        .until("/v1/apps?trash=true", &ann, |page| {
            page.body["items"] == json!([])
        })
        .await;
    assert_eq!(world.get(&format!("/v1/apps/{id}"), &ann).await.status, 404);
    world.director.stop().await;
}

#[tokio::test]
async fn what_has_rested_long_enough_is_destroyed() {
    let short = std::time::Duration::from_millis(1);
    let mut world = World::with(|config| config.trash = short).await;
    world.shop(&world.admin.clone()).await;
    let delete = world
        .send(Method::DELETE, "/v1/apps/shop", &world.admin, None, &[])
        .await;
    assert_eq!(delete.status, 202);
    // The trash is emptied by the cleaning, which also a start begins with.
    let mut same = config(world.folder.path());
    same.trash = short;
    same.listen = world.director.address();
    world.director.stop().await;
    world.director = start(same).await.unwrap();
    world
        .until("/v1/apps?trash=true", &world.admin, |page| {
            page.body["items"] == json!([])
        })
        .await;
    world.director.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_chooses_a_way_out_within_what_the_installation_allows() {
    use conpaas_model::egress::Egress;
    let world = World::new().await;
    let ann = world.user("ann").await;
    let made = world.post("/v1/apps", &ann, json!({"name": "shop"})).await;
    assert_eq!(
        (made.status.as_u16(), &made.body["egress"]),
        (201, &json!("director"))
    );
    let change = async |wish: &str| {
        let body = json!({ "egress": wish });
        world
            .send(Method::PATCH, "/v1/apps/shop", &ann, Some(body), &[])
            .await
    };
    let none = change("none").await;
    assert_eq!(
        (none.status.as_u16(), &none.body["egress"]),
        (200, &json!("none"))
    );
    assert_eq!(change("all").await.status, 400);
    let events = world.get("/v1/apps/shop/events", &ann).await;
    let told = events.body["items"].as_array().unwrap().iter();
    assert!(told.clone().any(|event| event["kind"] == "egress_changed"));

    // Where nobody gets out, it is said so, and asked for in vain.
    let world = World::with(|config| config.egress = Egress::None).await;
    let admin = &world.admin;
    let made = world.post("/v1/apps", admin, json!({"name": "shop"})).await;
    assert_eq!(
        (made.status.as_u16(), &made.body["egress"]),
        (201, &json!("none"))
    );
    let wish = json!({"name": "other", "egress": "director"});
    let refused = world.post("/v1/apps", admin, wish).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert_eq!(refused.body["code"], "egress_not_allowed", "{refused:?}");
    let wish = json!({"name": "third", "egress": "none"});
    assert_eq!(world.post("/v1/apps", admin, wish).await.status, 201);
}
