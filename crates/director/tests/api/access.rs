//! Who may call what, and what strangers see.

use crate::world::*;

#[test]
fn the_committed_document_is_the_codes_own() {
    let committed = include_str!("../../../../openapi/director.json");
    let made = conpaas_director::openapi().to_pretty_json().unwrap();
    assert!(
        committed.trim_end() == made,
        "run: cargo run -p conpaas-director --example openapi"
    );
}

#[test]
fn every_operation_says_who_may_call_it() {
    let operations = operations_of(&conpaas_director::openapi());
    for id in operations.values() {
        assert!(
            access::of(id).is_some(),
            "{id} is missing in the access table"
        );
    }
    for (id, _) in access::TABLE {
        assert!(
            operations.values().any(|found| found == id),
            "{id} is no operation"
        );
    }
}

#[tokio::test]
async fn nobody_and_strangers_get_nothing() {
    let world = World::new().await;
    let (ann, bob) = (world.user("ann").await, world.user("bob").await);
    let service = world.shop(&ann).await;
    let code = world.upload(&service, &ann, tar("a.html", "x")).await.body["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let started = world.post("/v1/apps/shop/start", &ann, json!({})).await;
    let operation = started.body["operation"]["id"].as_str().unwrap().to_owned();
    let token = world.get("/v1/tokens", &ann).await.body["items"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for ((method, path), id) in operations_of(&conpaas_director::openapi()) {
        let access = access::of(&id).unwrap();
        if access == Access::Public || id.starts_with("stream_") && access == Access::LoggedIn {
            continue;
        }
        let fill = |app: &str, operation: &str, token: &str, user: &str| {
            path.replace("{app}", app)
                .replace("{service}", "web")
                .replace("{code}", &code)
                .replace("{command}", "x")
                .replace("{secret}", "X")
                .replace("{node}", "1")
                .replace("{operation}", operation)
                .replace("{token}", token)
                .replace("{user}", user)
        };
        let foreign = fill("ann:shop", &operation, &token, "ann");
        let nobody = world
            .send(method.clone(), &foreign, "", Some(json!({})), &[])
            .await;
        assert_eq!(nobody.status, 401, "{id}: {nobody:?}");
        match access {
            Access::Operator => {
                let stranger = world
                    .send(method, &foreign, &bob, Some(json!({})), &[])
                    .await;
                assert_eq!(stranger.status, 403, "{id}: {stranger:?}");
            }
            Access::Owner => {
                let stranger = world
                    .send(method.clone(), &foreign, &bob, Some(json!({})), &[])
                    .await;
                assert_eq!(stranger.status, 404, "{id}: {stranger:?}");
                // A missing thing of the same shape answers in the same words.
                let missing = fill("ann:shap", "op-missing", "tok-missing", "nobody");
                let missing = world
                    .send(method, &missing, &bob, Some(json!({})), &[])
                    .await;
                let same = |answer: &Answer| {
                    let text = answer.body.to_string();
                    text.replace("shap", "shop")
                        .replace("op-missing", &operation)
                        .replace("tok-missing", &token)
                        .replace("nobody", "ann")
                };
                assert_eq!(
                    (missing.status, same(&missing)),
                    (stranger.status, same(&stranger)),
                    "{id}"
                );
            }
            Access::Public | Access::LoggedIn => {}
        }
    }
    // Logged out is out.
    assert_eq!(
        world
            .send(Method::POST, "/v1/logout", &bob, None, &[])
            .await
            .status,
        204
    );
    assert_eq!(world.get("/v1/whoami", &bob).await.status, 401);
    let audit = world.get("/v1/audit?limit=1000", &world.admin).await;
    let rows = audit.body["items"].as_array().unwrap();
    assert!(
        rows.iter()
            .any(|row| row["action"] == "create_app" && row["status"] == 201)
    );
    assert!(
        rows.iter().any(|row| row["actor"] == "bob"
            && row["action"] == "delete_app"
            && row["status"] == 404)
    );
    assert!(!audit.body.to_string().contains("long enough"));
    world.director.stop().await;
}
