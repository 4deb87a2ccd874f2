//! Releases in the events of an application.

use crate::world::*;
use conpaas_model::ids::ReleaseNumber;

#[tokio::test]
async fn releases_that_are_served_or_do_not_come_up_are_told_once() {
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
    let say = async |serving: u64, failed: Option<&str>| {
        let (id, failed) = (id.clone(), failed.map(str::to_owned));
        let say = move |tx: &rusqlite::Transaction<'_>| {
            let row = services::get(tx, &id)?.unwrap();
            let status = ServiceStatus {
                generation: row.generation,
                reached: failed.is_none(),
                failed,
                serving: Some(ReleaseNumber(serving)),
                ..ServiceStatus::default()
            };
            operations::observe(tx, &id, &status)
        };
        world.director.store().transaction(say).await.unwrap();
    };
    say(1, None).await;
    say(1, None).await;
    let bytes = tar("index.html", "one");
    let code = world.upload(&service, &ann, bytes).await;
    let code = code.body["id"].as_str().unwrap();
    let activate = format!("{service}/code/{code}/activate");
    world.post(&activate, &ann, json!({})).await;
    say(1, Some("r2 does not start")).await;
    say(1, Some("r2 does not start, still")).await;
    say(2, None).await;
    let events = world.get("/v1/apps/shop/events", &ann).await;
    let told: Vec<(&str, &Value)> = events.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (event["kind"].as_str().unwrap(), &event["facts"]))
        .filter(|(kind, _)| kind.starts_with("release_"))
        .collect();
    assert_eq!(
        told,
        [
            ("release_served", &json!({"release": 1, "before": null})),
            ("release_refused", &json!({"release": 2, "serving": 1})),
            ("release_served", &json!({"release": 2, "before": 1})),
        ]
    );
    let sequences: Vec<u64> = events.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["sequence"].as_u64().unwrap())
        .collect();
    let count = sequences.len() as u64;
    assert_eq!(sequences, (1..=count).collect::<Vec<_>>());
    world.director.stop().await;
}

#[tokio::test]
async fn a_release_that_is_held_is_promoted_discarded_or_overtaken() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let post = async |path: &str, body| world.post(&format!("{service}/{path}"), &ann, body).await;
    let shown = async |field: &str| world.get(&service, &ann).await.body[field].clone();
    let code = async |text: &str| {
        let made = world.upload(&service, &ann, tar("index.html", text)).await;
        made.body["id"].as_str().unwrap().to_owned()
    };
    let nothing = post("promote", json!({})).await;
    assert_eq!(
        (nothing.status.as_u16(), nothing.body["code"].as_str()),
        (409, Some("nothing_held"))
    );
    let one = code("one").await;
    let hold = format!("code/{one}/activate?preview=true");
    let held = post(&hold, json!({})).await;
    assert_eq!(held.body["operation"]["kind"], "preview", "{held:?}");
    assert_eq!(
        (
            shown("active_release").await,
            shown("preview_release").await
        ),
        (json!(1), json!(2))
    );
    let url = shown("preview_url").await;
    assert!(
        url.as_str().unwrap().contains("//preview.web.shop-ann."),
        "{url}"
    );
    // The same again is nothing new, and what is held is not deleted.
    assert_eq!(post(&hold, json!({})).await.body["operation"], Value::Null);
    let path = format!("{service}/code/{one}");
    let refused = world.send(Method::DELETE, &path, &ann, None, &[]).await;
    assert_eq!(refused.body["code"], "code_active", "{refused:?}");
    let promoted = post("promote", json!({})).await;
    assert_eq!(promoted.body["operation"]["kind"], "promote");
    assert_eq!(
        (
            shown("active_release").await,
            shown("preview_release").await
        ),
        (json!(2), Value::Null)
    );
    assert_eq!(shown("preview_url").await, Value::Null);

    // Discarded, it is there to be taken again; without one, discarding is nothing.
    let two = code("two").await;
    post(&format!("code/{two}/activate?preview=true"), json!({})).await;
    let path = format!("{service}/preview");
    for operation in [json!("discard"), Value::Null] {
        let answer = world.send(Method::DELETE, &path, &ann, None, &[]).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(answer.body["operation"]["kind"], operation);
        assert_eq!(answer.body.get("warnings"), None);
    }
    // Nobody goes back to what was only ever held, unless it is asked for by its number.
    let back = post("rollback", json!({})).await;
    assert_eq!(back.status, 202, "{back:?}");
    let releases = world.get(&format!("{service}/releases"), &ann).await;
    assert_eq!(releases.body["items"][0]["reason"], "rolled back to r1");
    assert_eq!(releases.body["items"][1]["never_active"], true);
    let again = json!({"release": 3, "preview": true});
    post("rollback", again).await;
    assert_eq!(shown("preview_release").await, json!(5));
    // What changes for everybody was not made of what is held.
    let variables = json!({"variables": {"LEVEL": "1"}});
    let path = format!("{service}/env");
    let changed = world
        .send(Method::PATCH, &path, &ann, Some(variables), &[])
        .await;
    let warning = changed.body["warnings"].to_string();
    assert!(warning.contains("r5 is held"), "{changed:?}");
    assert_eq!(shown("preview_release").await, Value::Null);
    let releases = world.get(&format!("{service}/releases"), &ann).await;
    assert_eq!(releases.body["items"][0]["active"], true);
    world.director.stop().await;
}
