//! People and their tokens, and the brake on guessing.

use crate::world::*;

#[tokio::test]
async fn guessing_at_the_same_time_is_braked_and_tells_when_to_try_again() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let attempts = (0..40).map(|_| {
        let wish = json!({"name": "ann", "password": "wrong guess"});
        let request = world.client.post(world.url("/v1/login")).json(&wish);
        async move {
            let response = request.send().await.unwrap();
            let wait = response.headers().get("retry-after").cloned();
            (response.status().as_u16(), wait.is_some())
        }
    });
    let answers = futures::future::join_all(attempts).await;
    let count = |wanted| answers.iter().filter(|answer| **answer == wanted).count();
    assert_eq!((count((401, false)), count((429, true))), (5, 35));
    // Changing one's own password is no way around it.
    let wish = json!({"current": "wrong guess", "new": "long enough"});
    let path = "/v1/users/ann/password";
    assert_eq!(world.post(path, &ann, wish).await.status, 429);
    world.director.stop().await;
}

#[tokio::test]
async fn streams_end_with_their_tokens() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let started = world
        .post(&format!("{service}/start"), &ann, json!({}))
        .await;
    let operation = started.body["operation"]["id"].as_str().unwrap();
    let paths = [
        "/v1/apps/shop/events/stream".to_owned(),
        format!("/v1/operations/{operation}/stream"),
    ];
    for (path, seconds) in paths.iter().flat_map(|path| [(path, 600), (path, 3)]) {
        let wish = json!({"label": "watch", "lifetime_seconds": seconds});
        let made = world.post("/v1/tokens", &ann, wish).await;
        assert_eq!(made.status, 201, "{made:?}");
        let request = world.client.get(world.url(path));
        let request = request.bearer_auth(made.body["secret"].as_str().unwrap());
        let mut response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.chunk().await.unwrap().is_some());
        if seconds > 3 {
            let token = format!("/v1/tokens/{}", made.body["id"].as_str().unwrap());
            let revoked = world.send(Method::DELETE, &token, &ann, None, &[]).await;
            assert_eq!(revoked.status, 204);
            let name = format!("{}.html", path.len());
            let sent = world.upload(&service, &ann, tar(&name, "x")).await;
            assert_eq!(sent.status, 201, "{sent:?}");
        }
        let rest = rest_of(response).await;
        // What was uploaded while another stream was watched is no secret of this one.
        let late = rest.contains("code_uploaded");
        assert!(seconds == 3 || !late, "{path}: {rest}");
    }
    world.director.stop().await;
}
