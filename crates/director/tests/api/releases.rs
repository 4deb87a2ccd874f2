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
