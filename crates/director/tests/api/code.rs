//! Code versions, settings and releases.

use crate::world::*;

#[tokio::test]
async fn code_settings_and_releases() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let bytes = tar("index.html", "one");
    let one = world.upload(&service, &ann, bytes.clone()).await;
    assert_eq!(one.status, 201, "{one:?}");
    let code = |answer: &Answer| format!("{service}/code/{}", answer.body["id"].as_str().unwrap());
    let activated = world
        .post(&format!("{}/activate", code(&one)), &ann, json!({}))
        .await;
    assert_eq!(
        activated.body["operation"]["outcome"], "done",
        "nothing runs: {activated:?}"
    );
    let again = world
        .post(&format!("{}/activate", code(&one)), &ann, json!({}))
        .await;
    assert_eq!(again.body["operation"], Value::Null);
    let refused = world
        .send(Method::DELETE, &code(&one), &ann, None, &[])
        .await;
    assert_eq!(
        (refused.status.as_u16(), refused.body["code"].as_str()),
        (409, Some("code_active"))
    );
    let response = world
        .client
        .get(world.url(&format!("{}/archive", code(&one))))
        .bearer_auth(&ann)
        .send()
        .await
        .unwrap();
    assert_eq!(response.bytes().await.unwrap(), bytes, "byte for byte");
    let rolled = world
        .post(&format!("{service}/rollback"), &ann, json!({}))
        .await;
    assert_eq!(rolled.status, 202, "{rolled:?}");
    let releases = world.get(&format!("{service}/releases"), &ann).await;
    let reasons: Vec<_> = releases.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["reason"].as_str().unwrap())
        .collect();
    assert_eq!(
        reasons,
        ["rolled back to r1", "code activated: site.tar", "created"]
    );
    assert_eq!(
        world
            .send(Method::DELETE, &code(&one), &ann, None, &[])
            .await
            .status,
        204
    );
    assert!(
        world.get(&format!("{service}/code"), &ann).await.body["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    for (bytes, word) in [
        (tar("../evil", "x"), "climbs out"),
        (b"not an archive".to_vec(), "no archive"),
        (tar("a", "x")[..300].to_vec(), "no archive"),
        (tar("a", &"x".repeat(5000))[..2048].to_vec(), "cut short"),
    ] {
        let answer = world.upload(&service, &ann, bytes).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(
            answer.body["message"].as_str().unwrap().contains(word),
            "{answer:?}"
        );
    }
    let big = world.upload(&service, &ann, vec![0; (1 << 20) + 1]).await;
    assert_eq!(big.status, 413, "{big:?}");
    // An upload that breaks off leaves neither file nor record.
    let uploads = world.folder.path().join("state/uploads");
    let files = move || std::fs::read_dir(&uploads).unwrap().count();
    let arrived = files.clone();
    let half = futures::stream::unfold(0, move |step| {
        let arrived = arrived.clone();
        async move {
            if step == 0 {
                return Some((Ok(bytes::Bytes::from_static(b"half")), 1));
            }
            // Break off only once the Director has begun to take it.
            let mut looks = tokio::time::interval(std::time::Duration::from_millis(10));
            for _ in 0..1000 {
                looks.tick().await;
                if arrived() > 0 {
                    break;
                }
            }
            Some((Err(std::io::Error::other("gone")), 2))
        }
    });
    let request = world
        .client
        .post(world.url(&format!("{service}/code")))
        .bearer_auth(&ann);
    assert!(
        request
            .body(reqwest::Body::wrap_stream(half))
            .send()
            .await
            .is_err()
    );
    world
        .until("/v1/audit", &world.admin, |answer| {
            answer.body["items"][0]["status"] == 400
        })
        .await;
    assert_eq!(files(), 0);
    assert!(
        world.get(&format!("{service}/code"), &ann).await.body["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    let wrong = world
        .send(
            Method::PATCH,
            &format!("{service}/settings"),
            &ann,
            Some(json!({"settings": {"no_such": 1}})),
            &[],
        )
        .await;
    assert_eq!(wrong.status, 400, "{wrong:?}");
    let command = world
        .post(&format!("{service}/commands/no-such"), &ann, json!({}))
        .await;
    assert_eq!(command.status, 404, "{command:?}");
    world.director.stop().await;
}

#[tokio::test]
async fn a_key_names_the_content_of_an_upload() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let send = async |key: &str, bytes: Vec<u8>| {
        let request = world
            .client
            .post(world.url(&format!("{service}/code?filename=site.tar")))
            .bearer_auth(&ann)
            .header("idempotency-key", key)
            .body(bytes);
        let response = request.send().await.unwrap();
        let replayed = response.headers().contains_key("idempotent-replayed");
        let status = response.status().as_u16();
        (status, replayed, response.json::<Value>().await.unwrap())
    };
    let (status, _, first) = send("u1", tar("a.html", "one")).await;
    assert_eq!(status, 201, "{first}");
    let (status, replayed, again) = send("u1", tar("a.html", "one")).await;
    assert_eq!((status, replayed, &again), (201, true, &first));
    // As long, under the same name, but another content.
    let (status, _, other) = send("u1", tar("a.html", "two")).await;
    assert_eq!(
        (status, other["code"].as_str()),
        (409, Some("key_reused")),
        "{other}"
    );
    let codes = world.get(&format!("{service}/code"), &ann).await;
    assert_eq!(codes.body["items"].as_array().unwrap().len(), 1);

    // A key that is none begins nothing, so no audit row stays open.
    let (status, _, _) = send(&"k".repeat(201), tar("a.html", "one")).await;
    assert_eq!(status, 400);
    let audit = world.get("/v1/audit", &world.admin).await;
    let rows = audit.body["items"].as_array().unwrap();
    assert!(rows.iter().all(|row| !row["status"].is_null()), "{audit:?}");
    let left = std::fs::read_dir(world.folder.path().join("state/uploads")).unwrap();
    assert_eq!(left.count(), 0);
    world.director.stop().await;
}

#[tokio::test]
async fn code_has_a_quota_and_the_refusal_says_both_numbers() {
    let world = World::with(|config| config.code_quota = 100 << 10).await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    // A plain tar of 30 kB is kept twice: as it came, and as nodes get it.
    let of = |letter: &str| tar("a.html", &letter.repeat(30_000));
    let first = world.upload(&service, &ann, of("x")).await;
    assert_eq!(first.status, 201, "{first:?}");
    let blobs = || {
        let entries = std::fs::read_dir(world.folder.path().join("state/blobs"));
        entries.unwrap().count()
    };
    let before = blobs();
    let second = world.upload(&service, &ann, of("y")).await;
    assert_eq!(second.status, 409, "{second:?}");
    assert_eq!(second.body["code"], "code_quota_exceeded");
    let message = second.body["message"].as_str().unwrap();
    assert!(message.contains("the quota is 100 KiB"), "{message}");
    assert!(message.contains("would take 1"), "{message}");
    assert_eq!(blobs(), before, "nothing of it stays on the disk");
    // The same content again takes no room; another user has a quota of their own.
    assert_eq!(world.upload(&service, &ann, of("x")).await.status, 201);
    let bob = world.user("bob").await;
    let other = world.shop(&bob).await;
    assert_eq!(world.upload(&other, &bob, of("y")).await.status, 201);
    // What is deleted makes room.
    let codes = world.get(&format!("{service}/code"), &ann).await;
    for code in codes.body["items"].as_array().unwrap() {
        let path = format!("{service}/code/{}", code["id"].as_str().unwrap());
        let gone = world.send(Method::DELETE, &path, &ann, None, &[]).await;
        assert_eq!(gone.status, 204, "{gone:?}");
    }
    assert_eq!(world.upload(&service, &ann, of("y")).await.status, 201);
    world.director.stop().await;
}

#[tokio::test]
async fn an_upload_that_is_cut_off_leaves_nothing() {
    use tokio::sync::mpsc;
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let uploads = world.folder.path().join("state/uploads");
    let blobs = world.folder.path().join("state/blobs");
    let files = |folder: &Path| -> Vec<u64> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        // One that goes meanwhile is gone.
        let sizes = entries.filter_map(|entry| entry.metadata().ok());
        sizes.map(|found| found.len()).collect()
    };
    for key in [None, Some("cut")] {
        let whole = tar("a.html", &"x".repeat(60_000));
        let (pieces, mut taken) = mpsc::channel::<std::io::Result<Vec<u8>>>(1);
        let body = futures::stream::poll_fn(move |context| taken.poll_recv(context));
        let mut request = world
            .client
            .post(world.url(&format!("{service}/code?filename=site.tar")))
            .bearer_auth(&ann)
            .body(reqwest::Body::wrap_stream(body));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let sent = tokio::spawn(request.send());
        pieces.send(Ok(whole[..30_000].to_vec())).await.unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let until = async |what: &dyn Fn(Vec<u64>) -> bool| {
            while !what(files(&uploads)) {
                assert!(
                    std::time::Instant::now() < deadline,
                    "{:?}",
                    files(&uploads)
                );
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        until(&|sizes| sizes == [30_000]).await;
        let cut = std::io::Error::other("the cable is pulled");
        pieces.send(Err(cut)).await.unwrap();
        assert!(sent.await.unwrap().is_err());
        until(&|sizes| sizes.is_empty()).await;
        assert_eq!(files(&blobs), [0u64; 0]);
        let codes = world.get(&format!("{service}/code"), &ann).await;
        assert_eq!(codes.body["items"], json!([]));
    }
    // The same key may send the whole of it now.
    let whole = tar("a.html", &"x".repeat(60_000));
    let request = world
        .client
        .post(world.url(&format!("{service}/code?filename=site.tar")))
        .bearer_auth(&ann)
        .header("idempotency-key", "cut")
        .body(whole);
    assert_eq!(request.send().await.unwrap().status(), 201);
    world.director.stop().await;
}

#[tokio::test]
async fn uploads_leave_the_disk_its_reserve() {
    let world = World::with(|config| config.disk_reserve = u64::MAX).await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let sent = world.upload(&service, &ann, tar("a.html", "x")).await;
    assert_eq!(sent.status, 507, "{sent:?}");
    assert_eq!(sent.body["code"], "disk_full");
    let left = std::fs::read_dir(world.folder.path().join("state/uploads")).unwrap();
    assert_eq!(left.count(), 0);
    world.director.stop().await;
}
