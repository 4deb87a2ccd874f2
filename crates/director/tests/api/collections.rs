//! Habits of every collection: pages, filters, labels, entity tags, idempotency keys.

use crate::world::*;

#[tokio::test]
async fn keys_tags_pages_and_names() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let key = [("idempotency-key", "k1")];
    let wish = || Some(json!({"name": "one", "labels": {"tier": "a"}}));
    let first = world
        .send(Method::POST, "/v1/apps", &ann, wish(), &key)
        .await;
    let again = world
        .send(Method::POST, "/v1/apps", &ann, wish(), &key)
        .await;
    assert_eq!(
        (first.status.as_u16(), again.status.as_u16(), again.replayed),
        (201, 201, true)
    );
    assert_eq!(first.body, again.body);
    let other = world
        .send(
            Method::POST,
            "/v1/apps",
            &ann,
            Some(json!({"name": "two"})),
            &key,
        )
        .await;
    assert_eq!(
        (other.status.as_u16(), other.body["code"].as_str()),
        (409, Some("key_reused"))
    );
    let taken = world.post("/v1/apps", &ann, json!({"name": "one"})).await;
    assert_eq!(
        (taken.status.as_u16(), taken.body["code"].as_str()),
        (409, Some("name_taken"))
    );

    let tag = world.get("/v1/apps/one", &ann).await.etag.unwrap();
    let rename = |name: &str| Some(json!({"name": name}));
    let fresh = [("if-match", tag.as_str())];
    assert_eq!(
        world
            .send(Method::PATCH, "/v1/apps/one", &ann, rename("uno"), &fresh)
            .await
            .status,
        200
    );
    assert_eq!(
        world
            .send(Method::PATCH, "/v1/apps/uno", &ann, rename("one"), &fresh)
            .await
            .status,
        412
    );

    for name in ["b", "c", "d"] {
        assert_eq!(
            world
                .post("/v1/apps", &ann, json!({"name": name}))
                .await
                .status,
            201
        );
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = world.get(&format!("/v1/apps?limit=3{cursor}"), &ann).await;
        seen.extend(
            page.body["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|app| app["name"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page.body["next"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    seen.sort();
    assert_eq!(seen, ["b", "c", "d", "uno"]);
    let labelled = world.get("/v1/apps?label=tier=a", &ann).await;
    assert_eq!(labelled.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        world.get("/v1/apps?cursor=x", &ann).await.body["code"],
        "invalid_cursor"
    );
    assert_eq!(
        world
            .post("/v1/apps", &ann, json!({"name": "Bad Name"}))
            .await
            .status,
        400
    );
    let long = "x".repeat(40);
    assert_eq!(
        world
            .post("/v1/apps", &ann, json!({"name": long}))
            .await
            .status,
        201
    );
    let dashed = world
        .post(
            "/v1/users",
            &world.admin,
            json!({"name": "a-b", "password": "long enough"}),
        )
        .await;
    assert_eq!(dashed.status, 400);
    let events = world.get("/v1/apps/uno/events", &ann).await;
    assert_eq!(events.body["items"][0]["kind"], "application_created");
    assert_eq!(
        world.get("/v1/nonsense", &ann).await.body["code"],
        "not_found"
    );
    assert_eq!(
        world
            .send(Method::PUT, "/v1/apps", &ann, None, &[])
            .await
            .status,
        405
    );
    assert_eq!(
        world.get("/v1/clouds", &ann).await.body["items"][0]["machines"],
        0
    );
    assert_eq!(
        world.get("/v1/clouds", &world.admin).await.body["items"][0]["machines"],
        7
    );
    world.director.stop().await;
}

fn document() -> Value {
    serde_json::to_value(conpaas_director::openapi()).unwrap()
}

/// Every operation of the document: its id, method, path and the names of its parameters.
fn operations() -> Vec<(String, String, String, Vec<String>)> {
    let document = document();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let parameters = operation["parameters"].as_array();
            let names = parameters.into_iter().flatten();
            let names = names.map(|known| known["name"].as_str().unwrap().to_owned());
            let id = operation["operationId"].as_str().unwrap().to_owned();
            found.push((id, method.clone(), path.clone(), names.collect()));
        }
    }
    found
}

#[test]
fn the_document_shows_the_habits_of_every_collection() {
    for (id, method, path, parameters) in operations() {
        let has = |name: &str| parameters.iter().any(|found| found == name);
        if id.starts_with("list_") {
            assert!(has("cursor") && has("limit"), "{id} has no pages");
        }
        let makes_release = ["set_settings", "set_env", "set_secret", "unset_secret"];
        if id.starts_with("create_") || id == "upload_code" || makes_release.contains(&&*id) {
            assert!(has("Idempotency-Key"), "{id} cannot be repeated");
        }
        let named = path.contains("{app}") || path.contains("{user}");
        // These leave what is wished as it is.
        let harmless = ["call_command", "append_upload", "discard_upload"];
        if method != "get" && named && !harmless.contains(&&*id) {
            assert!(has("If-Match"), "{id} takes no entity tag");
        }
    }
}

#[tokio::test]
async fn every_list_is_the_same_in_one_page_and_in_pages_of_one() {
    let world = World::new().await;
    let admin = world.admin.clone();
    world.shop(&admin).await;
    for name in ["cache", "two"] {
        let wish = json!({"service_type": some_type().0, "name": name, "labels": {"tier": name}});
        let made = world.post("/v1/apps/shop/services", &admin, wish).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    world.user("ann").await;
    let mut long = 0;
    for (id, _, path, _) in operations() {
        if !id.starts_with("list_") {
            continue;
        }
        let path = path.replace("{app}", "shop").replace("{service}", "web");
        // Rows of the audit are added by nothing that only looks.
        let whole = world.get(&format!("{path}?limit=1000"), &admin).await;
        let whole = whole.body["items"].as_array().unwrap().clone();
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = world.get(&format!("{path}?limit=1{cursor}"), &admin).await;
            assert_eq!(page.status, 200, "{id}: {page:?}");
            let items = page.body["items"].as_array().unwrap();
            assert!(items.len() <= 1, "{id}");
            seen.extend(items.clone());
            let Some(next) = page.body["next"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, whole, "{id}");
        long += usize::from(whole.len() > 1);
    }
    assert!(long >= 6, "only {long} lists had more than one item");

    let names = async |query: &str| {
        let page = world
            .get(&format!("/v1/apps/shop/services?{query}"), &admin)
            .await;
        let items = page.body["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| item["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("label=tier=two").await, ["two"]);
    assert_eq!(names("label=tier").await, ["cache", "two"]);
    assert!(names("type=nothing").await.is_empty());
    let by_ann = world.get("/v1/audit?actor=ann&limit=1000", &admin).await;
    for row in by_ann.body["items"].as_array().unwrap() {
        assert_eq!(row["actor"], "ann");
    }
    let state = world
        .get("/v1/apps/shop/nodes?state=nonsense", &admin)
        .await;
    assert_eq!(state.body["code"], "invalid_query");
}

#[tokio::test]
async fn what_changed_since_one_looked_is_not_changed() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let stale = [("if-match", "\"g0\"")];
    let tries: [(Method, String, Option<Value>); 11] = [
        (Method::POST, "/v1/apps/shop/start".to_owned(), None),
        (Method::POST, "/v1/apps/shop/stop".to_owned(), None),
        (Method::DELETE, "/v1/apps/shop".to_owned(), None),
        (Method::POST, format!("{service}/start"), None),
        (Method::POST, format!("{service}/stop"), None),
        (Method::DELETE, service.clone(), None),
        (
            Method::POST,
            format!("{service}/rollback"),
            Some(json!({"release": 1})),
        ),
        (Method::POST, format!("{service}/promote"), None),
        (Method::DELETE, format!("{service}/preview"), None),
        (
            Method::PATCH,
            format!("{service}/settings"),
            Some(json!({"settings": {}})),
        ),
        (
            Method::POST,
            "/v1/apps/shop/services".to_owned(),
            Some(json!({"service_type": some_type().0})),
        ),
    ];
    for (method, path, body) in tries {
        let answer = world.send(method.clone(), &path, &ann, body, &stale).await;
        assert_eq!(answer.status, 412, "{method} {path}: {answer:?}");
        assert!(answer.body["hint"].is_string(), "{answer:?}");
    }
    let tag = world.get(&service, &ann).await.etag.unwrap();
    let start = format!("{service}/start");
    let fresh = [("if-match", tag.as_str())];
    let answer = world.send(Method::POST, &start, &ann, None, &fresh).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let stop = format!("{service}/stop");
    let answer = world.send(Method::POST, &stop, &ann, None, &fresh).await;
    assert_eq!(answer.status, 412, "it runs now: {answer:?}");

    let user = world.get("/v1/users/ann", &world.admin).await.etag.unwrap();
    let quota = |nodes: u32| Some(json!({"node_quota": nodes}));
    let fresh = [("if-match", user.as_str())];
    let set = |body| world.send(Method::PATCH, "/v1/users/ann", &world.admin, body, &fresh);
    assert_eq!(set(quota(7)).await.status, 200);
    assert_eq!(set(quota(8)).await.status, 412);
}

#[tokio::test]
async fn a_token_is_made_once_under_one_key_and_its_secret_is_kept_nowhere() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let key = [("idempotency-key", "one")];
    let make = |token: String| {
        let wish = Some(json!({"label": "a program"}));
        let world = &world;
        async move {
            world
                .send(Method::POST, "/v1/tokens", &token, wish, &key)
                .await
        }
    };
    let first = make(ann.clone()).await;
    let again = make(ann.clone()).await;
    assert!(again.replayed && !first.replayed);
    assert_eq!(first.body, again.body);
    let secret = first.body["secret"].as_str().unwrap();
    assert_eq!(world.get("/v1/whoami", secret).await.status, 200);
    let kept = world
        .director
        .store()
        .read(|tx| {
            let mut rows = tx.prepare("SELECT body FROM idempotency")?;
            let rows = rows.query_map([], |row| row.get::<_, Option<String>>(0))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })
        .await
        .unwrap();
    let hidden = secret.rsplit('_').next().unwrap();
    assert!(!kept.is_empty());
    for answer in kept.into_iter().flatten() {
        assert!(!answer.contains(hidden), "{answer}");
    }
    // Under another login the same key names another request.
    let other = world.login("ann", "long enough").await;
    assert_eq!(make(other).await.body["code"], "key_reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_is_not_sent_again_until_it_changes() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    world.shop(&ann).await;
    let tag = |answer: &Answer| answer.etag.clone().expect("an entity tag");
    for path in [
        "/v1/apps",
        "/v1/apps/shop",
        "/v1/apps/shop/services",
        "/v1/apps/shop/nodes",
        "/v1/apps/shop/events",
        "/v1/operations",
        "/v1/service-types",
    ] {
        let first = world.get(path, &ann).await;
        assert_eq!(first.status, 200, "{path}: {first:?}");
        let known = tag(&first);
        let again = async |known: &str| {
            let header = [("if-none-match", known)];
            world.send(Method::GET, path, &ann, None, &header).await
        };
        let same = again(&format!("\"other\", W/{known}")).await;
        assert_eq!(
            (same.status.as_u16(), tag(&same)),
            (304, known.clone()),
            "{path}"
        );
        assert_eq!(again("\"other\"").await.status, 200, "{path}");
        // Tags are for those who may read it.
        let header = [("if-none-match", known.as_str())];
        let stranger = world.send(Method::GET, path, "no token", None, &header);
        assert_eq!(stranger.await.status, 401, "{path}");
    }
    // A tag as it was read is one to change by, until something was changed.
    let read = tag(&world.get("/v1/apps/shop", &ann).await);
    let describe = async |text: &str| {
        let body = Some(json!({ "description": text }));
        let header = [("if-match", read.as_str())];
        world
            .send(Method::PATCH, "/v1/apps/shop", &ann, body, &header)
            .await
    };
    assert_eq!(describe("one").await.status, 200);
    assert_eq!(describe("two").await.status, 412);
    let header = [("if-none-match", read.as_str())];
    let changed = world.send(Method::GET, "/v1/apps/shop", &ann, None, &header);
    assert_eq!(changed.await.body["description"], "one");
}
