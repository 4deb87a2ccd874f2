//! Uploads that go on where they broke off.

use crate::world::*;
use futures::StreamExt;
use sha2::{Digest, Sha256};

struct Sender<'a> {
    world: &'a World,
    token: &'a str,
    service: &'a str,
    sha256: String,
}

impl Sender<'_> {
    fn path(&self) -> String {
        format!("{}/uploads/{}", self.service, self.sha256)
    }

    async fn append(
        &self,
        (size, offset): (usize, usize),
        body: impl Into<reqwest::Body>,
    ) -> Option<(u16, Value)> {
        let path = format!("{}?size={size}&offset={offset}", self.path());
        let request = self.world.client.patch(self.world.url(&path));
        let request = request.bearer_auth(self.token).body(body);
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.json().await.unwrap()))
    }

    async fn offset(&self) -> Value {
        let answer = self.world.get(&self.path(), self.token).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["offset"].clone()
    }

    async fn finish(&self) -> Answer {
        let path = format!(
            "{}/code?filename=site.tar&upload={}",
            self.service, self.sha256
        );
        self.world.post(&path, self.token, json!({})).await
    }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let bytes = tar("index.html", &"x".repeat(300_000));
    let half = bytes.len() / 2;
    let sender = Sender {
        world: &world,
        token: &ann,
        service: &service,
        sha256: hex::encode(Sha256::digest(&bytes)),
    };
    assert_eq!(sender.offset().await, 0);
    assert_eq!(sender.finish().await.status, 404);

    // It breaks off in the middle: what came stays, and nothing is registered.
    let pieces = [Ok(bytes[..half].to_vec())].into_iter();
    let cut = futures::stream::iter(pieces).chain(futures::stream::once(async {
        // Not before the half was sent: what waits to be sent goes with the connection.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        Err(std::io::Error::other("the network went away"))
    }));
    let cut = reqwest::Body::wrap_stream(cut);
    assert_eq!(sender.append((bytes.len(), 0), cut).await, None);
    // What the connection's end left in buffers may be missing.
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let stands = loop {
        let stands = sender.offset().await.as_u64().unwrap() as usize;
        let (status, body) = sender
            .append((bytes.len(), stands + 1), Vec::new())
            .await
            .unwrap();
        assert_eq!(status, 409, "{body}");
        if body["code"] == "offset_moved" {
            break sender.offset().await.as_u64().unwrap() as usize;
        }
        assert!(
            std::time::Instant::now() < limit,
            "it is still busy: {body}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!((1..=half).contains(&stands), "{stands} of {half}");
    let refused = sender.finish().await;
    assert_eq!(refused.body["code"], "upload_incomplete", "{refused:?}");
    assert_eq!(sender.offset().await, stands, "and still there");
    let list = world.get(&format!("{service}/code"), &ann).await;
    assert_eq!(list.body["items"], json!([]));

    // Whoever is wrong about where it stands does no harm.
    for offset in [0, stands + 1] {
        let (status, body) = sender
            .append((bytes.len(), offset), b"x".to_vec())
            .await
            .unwrap();
        assert_eq!((status, &body["code"]), (409, &json!("offset_moved")));
    }
    let rest = bytes[stands..].to_vec();
    let (status, body) = sender.append((bytes.len(), stands), rest).await.unwrap();
    assert_eq!(
        (status, &body["offset"]),
        (200, &json!(bytes.len())),
        "{body}"
    );
    let made = sender.finish().await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.body["sha256"], json!(sender.sha256));
    assert_eq!(sender.offset().await, 0, "nothing is left of it");
    let path = format!(
        "{service}/code/{}/archive",
        made.body["id"].as_str().unwrap()
    );
    let back = world.client.get(world.url(&path)).bearer_auth(&ann);
    let back = back.send().await.unwrap().bytes().await.unwrap();
    assert_eq!(back, bytes, "byte for byte");
    world.director.stop().await;
}

#[tokio::test]
async fn what_is_not_what_was_announced_is_refused() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let sender = |sha256: String| Sender {
        world: &world,
        token: &ann,
        service: &service,
        sha256,
    };
    let other = sender("ab".repeat(32));
    let (status, body) = other.append((3, 0), b"four".to_vec()).await.unwrap();
    assert_eq!((status, &body["code"]), (400, &json!("upload_too_long")));
    let (status, _) = other.append((4, 0), b"four".to_vec()).await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(other.finish().await.body["code"], "upload_incomplete");
    let gone = world
        .send(Method::DELETE, &other.path(), &ann, None, &[])
        .await;
    assert_eq!(gone.status, 204, "{gone:?}");
    assert_eq!(other.offset().await, 0);
    for (size, status, code) in [
        (1 << 40, 409, "code_quota_exceeded"),
        (1 << 30, 413, "too_large"),
    ] {
        let answer = other.append((size, 0), b"four".to_vec()).await.unwrap();
        assert_eq!((answer.0, &answer.1["code"]), (status, &json!(code)));
    }
    for name in [
        "AB".repeat(32),
        "ab".to_owned(),
        "..%2f..%2fstore.db".to_owned(),
    ] {
        let (status, body) = sender(name).append((4, 0), b"four".to_vec()).await.unwrap();
        assert_eq!((status, &body["code"]), (400, &json!("bad_hash")));
    }
    // No archive, though it came whole: nothing stays of it.
    let sent = sender(hex::encode(Sha256::digest(b"no archive")));
    sent.append((10, 0), b"no archive".to_vec()).await.unwrap();
    assert_eq!(sent.finish().await.body["code"], "bad_archive");
    assert_eq!(sent.offset().await, 0);
    // The fifth takes the place of the oldest that nobody is sending.
    for number in 0..5 {
        let one = sender(format!("{number:064x}"));
        assert_eq!(one.append((9, 0), b"four".to_vec()).await.unwrap().0, 200);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for (number, stands) in [(0, 0), (1, 4), (4, 4)] {
        assert_eq!(sender(format!("{number:064x}")).offset().await, stands);
    }
    // Halves count for the quota, as they take the disk.
    let quota = config(world.folder.path()).code_quota as usize;
    let (status, body) = other.append((quota - 15, 0), b"x".to_vec()).await.unwrap();
    assert_eq!(body["code"], "code_quota_exceeded", "{status} {body}");
    world.director.stop().await;
}
