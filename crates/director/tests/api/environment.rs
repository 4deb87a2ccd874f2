//! Environment and secrets: releases, the way back, bounds, and that a value goes in only.

use crate::world::*;
use conpaas_director::store::secrets;
use conpaas_director::vault::KEY_FILE;

const VALUE: &str = "hush-7c2e-'\"$\\ \u{1f511}";

impl World {
    async fn patch(&self, path: &str, token: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, token, Some(body), &[]).await
    }

    async fn set_secret(&self, service: &str, token: &str, name: &str, value: &str) -> Answer {
        let path = format!("{service}/secrets/{name}");
        let body = json!({"value": value});
        self.send(Method::PUT, &path, token, Some(body), &[]).await
    }

    async fn items(&self, path: &str, token: &str) -> Vec<Value> {
        let found = self.get(path, token).await;
        assert_eq!(found.status, 200, "{found:?}");
        found.body["items"].as_array().unwrap().clone()
    }
}

fn code(answer: &Answer) -> &str {
    answer.body["code"].as_str().unwrap_or("(granted)")
}

fn names(items: &[Value]) -> Vec<String> {
    let name = |item: &Value| item["name"].as_str().unwrap().to_owned();
    items.iter().map(name).collect()
}

/// Every file of a folder that holds these bytes.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if std::fs::read(&path)
            .is_ok_and(|content| content.windows(bytes.len()).any(|part| part == bytes))
        {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn variables_make_releases_and_come_back_with_them() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let env = format!("{service}/env");
    let before = world.get(&env, &ann).await;
    let change = json!({"variables": {"B": "2\n3", "A": ""}});
    let set = world.patch(&env, &ann, change.clone()).await;
    assert_eq!(set.status, 202, "{set:?}");
    assert_eq!(set.body["operation"]["kind"], "env");
    assert_eq!(
        world.items(&env, &ann).await,
        [
            json!({"name": "A", "value": ""}),
            json!({"name": "B", "value": "2\n3"})
        ]
    );
    // Page by page it is the same.
    let first = world.get(&format!("{env}?limit=1"), &ann).await;
    let cursor = first.body["next"].as_str().unwrap().to_owned();
    let rest = world
        .items(&format!("{env}?limit=1&cursor={cursor}"), &ann)
        .await;
    assert_eq!(names(&rest), ["B"]);
    // The same again is nothing new, and a stale look is refused.
    let releases = format!("{service}/releases");
    let count = world.items(&releases, &ann).await.len();
    world.patch(&env, &ann, change.clone()).await;
    assert_eq!(world.items(&releases, &ann).await.len(), count);
    let stale = [("If-Match", before.etag.as_deref().unwrap())];
    let stale = world
        .send(Method::PATCH, &env, &ann, Some(change), &stale)
        .await;
    assert_eq!(stale.status, 412, "{stale:?}");

    world
        .patch(&env, &ann, json!({"variables": {"B": null, "C": "x"}}))
        .await;
    assert_eq!(names(&world.items(&env, &ann).await), ["A", "C"]);
    let newest = world.items(&releases, &ann).await.remove(0);
    assert_eq!(newest["reason"], "environment changed: B, C");
    assert_eq!(
        newest["environment"]["variables"],
        json!({"A": "", "C": "x"})
    );
    let back = world
        .post(&format!("{service}/rollback"), &ann, json!({}))
        .await;
    assert_eq!(back.status, 202, "{back:?}");
    assert_eq!(names(&world.items(&env, &ann).await), ["A", "B"]);

    for (name, value, wrong) in [
        ("a", "x".to_owned(), "bad_name"),
        ("PATH", "x".to_owned(), "bad_name"),
        ("LD_PRELOAD", "x".to_owned(), "bad_name"),
        ("REMOTE_ADDR", "x".to_owned(), "invalid_value"),
        ("D", "x\0y".to_owned(), "invalid_value"),
        ("D", "$pool".to_owned(), "invalid_value"),
        ("D", "x".repeat(64 * 1024 + 1), "too_large"),
    ] {
        let refused = world
            .patch(&env, &ann, json!({"variables": {name: value}}))
            .await;
        assert_eq!(code(&refused), wrong, "{name}: {}", refused.status);
    }
    // A type that runs no code of people has none.
    let registry = Registry::standard();
    let other = registry
        .all()
        .map(|entry| entry.service_type)
        .find(|found| !found.internal() && found.takes_environment().is_empty())
        .unwrap();
    let wish = json!({"service_type": other.name(), "name": "other"});
    world.post("/v1/apps/shop/services", &ann, wish).await;
    let other = "/v1/apps/shop/services/other";
    let refused = world
        .patch(
            &format!("{other}/env"),
            &ann,
            json!({"variables": {"A": "1"}}),
        )
        .await;
    assert_eq!(code(&refused), "no_environment", "{refused:?}");
    let refused = world.set_secret(other, &ann, "A", "1").await;
    assert_eq!(code(&refused), "no_environment", "{refused:?}");
    world.director.stop().await;
}

#[tokio::test]
async fn a_secrets_value_goes_in_and_never_comes_out() {
    let world = World::new().await;
    let (ann, bob) = (world.user("ann").await, world.user("bob").await);
    let service = world.shop(&ann).await;
    let list = format!("{service}/secrets");
    let set = world.set_secret(&service, &ann, "DB", VALUE).await;
    assert_eq!(set.status, 202, "{set:?}");
    let found = world.items(&list, &ann).await.remove(0);
    assert_eq!(
        (
            &found["name"],
            &found["version"],
            &found["actor"],
            &found["readable"]
        ),
        (&json!("DB"), &json!(1), &json!("ann"), &json!(true))
    );
    assert!(found["created_at"].as_str().unwrap().starts_with("20"));
    // The same value is nothing new, another is a new version, an older release has the older.
    world.set_secret(&service, &ann, "DB", VALUE).await;
    assert_eq!(world.items(&list, &ann).await[0]["version"], 1);
    world.set_secret(&service, &ann, "DB", "second-4411").await;
    assert_eq!(world.items(&list, &ann).await[0]["version"], 2);
    world
        .post(&format!("{service}/rollback"), &ann, json!({}))
        .await;
    assert_eq!(world.items(&list, &ann).await[0]["version"], 1);
    world.set_secret(&service, &ann, "DB", "third-90210").await;
    assert_eq!(world.items(&list, &ann).await[0]["version"], 3);
    // A name is a variable or a secret.
    let env = format!("{service}/env");
    let both = json!({"variables": {"DB": "x"}});
    assert_eq!(code(&world.patch(&env, &ann, both).await), "name_taken");
    let not_so = json!({"variables": {"DB": null}});
    assert_eq!(code(&world.patch(&env, &ann, not_so).await), "name_taken");
    // What is refused is not quoted.
    for (name, value, wrong) in [
        ("bad-name", VALUE.to_owned(), "bad_name"),
        ("X", format!("{VALUE}\0"), "invalid_value"),
        ("X", VALUE.repeat(5000), "too_large"),
        ("X", format!("$pool{VALUE}"), "invalid_value"),
    ] {
        let refused = world.set_secret(&service, &ann, name, &value).await;
        assert_eq!(code(&refused), wrong, "{name}: {}", refused.status);
        assert!(
            !refused.body.to_string().contains("hush-7c2e"),
            "{refused:?}"
        );
    }
    let odd = world
        .send(
            Method::PUT,
            &format!("{list}/X"),
            &ann,
            Some(json!({"value": {"hush-7c2e": 1}})),
            &[("Idempotency-Key", "k-1")],
        )
        .await;
    assert_eq!(code(&odd), "invalid_body");
    assert!(!odd.body.to_string().contains("hush-7c2e"), "{odd:?}");
    // A lost answer is asked for again, and nothing happens twice.
    let key = [("Idempotency-Key", "k-2")];
    let path = format!("{list}/DB");
    let wish = json!({"value": "fourth-5511"});
    let first = world
        .send(Method::PUT, &path, &ann, Some(wish.clone()), &key)
        .await;
    let again = world.send(Method::PUT, &path, &ann, Some(wish), &key).await;
    assert!(again.replayed && !first.replayed, "{first:?} {again:?}");
    assert_eq!(first.body, again.body);
    assert_eq!(world.items(&list, &ann).await[0]["version"], 4);
    // A stranger finds nothing there, and changes nothing.
    let theirs = "/v1/apps/ann:shop/services/web";
    for answer in [
        world.get(&format!("{theirs}/secrets"), &bob).await,
        world.set_secret(theirs, &bob, "DB", "theirs").await,
    ] {
        assert_eq!(answer.status, 404, "{answer:?}");
    }

    // Nowhere in answers, and nowhere in the Director's files, can a value be read.
    let id = world.get(&service, &ann).await.body["id"]
        .as_str()
        .unwrap()
        .to_owned();
    world.manager_says(&id, None).await;
    for (path, token) in [
        (service.as_str(), &ann),
        ("/v1/apps/shop", &ann),
        ("/v1/apps/shop/events?limit=1000", &ann),
        (&format!("{service}/releases"), &ann),
        (&list, &ann),
        ("/v1/operations", &ann),
        ("/v1/audit?limit=1000", &world.admin),
    ] {
        let text = world.get(path, token).await.body.to_string();
        for part in ["hush-7c2e", "second-4411", "third-90210", "fourth-5511"] {
            assert!(!text.contains(part), "{path}: {text}");
        }
    }
    let state = world.folder.path().join("state");
    for part in ["hush-7c2e", "second-4411", "third-90210", "fourth-5511"] {
        assert_eq!(
            files_with(&state, part.as_bytes()),
            Vec::<std::path::PathBuf>::new()
        );
    }
    assert!(!files_with(&state, b"secret set: DB").is_empty());

    let unset = world
        .send(Method::DELETE, &format!("{list}/DB"), &ann, None, &[])
        .await;
    assert_eq!(unset.status, 202, "{unset:?}");
    assert!(world.items(&list, &ann).await.is_empty());
    let again = world
        .send(Method::DELETE, &format!("{list}/DB"), &ann, None, &[])
        .await;
    assert_eq!(again.status, 404, "{again:?}");
    world.director.stop().await;
}

#[tokio::test]
async fn a_lost_key_is_told_and_has_a_way_out() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let list = format!("{service}/secrets");
    world.set_secret(&service, &ann, "DB", VALUE).await;
    let folder = world.folder;
    world.director.stop().await;
    let key = folder.path().join("state").join("pki").join(KEY_FILE);
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // Something that is no key is not written over.
    let kept = std::fs::read(&key).unwrap();
    std::fs::write(&key, "damaged").unwrap();
    let refused = start(config(folder.path())).await.err().unwrap();
    assert!(matches!(refused, StartError::Vault(_)), "{refused}");
    assert_eq!(std::fs::read(&key).unwrap(), b"damaged");
    std::fs::remove_file(&key).unwrap();

    let director = start(config(folder.path())).await.unwrap();
    let tls = conpaas_pki::pinned_client_config(director.fingerprint()).unwrap();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .build()
        .unwrap();
    let world = World {
        director,
        client,
        admin: String::new(),
        folder,
    };
    assert_eq!(world.items(&list, &ann).await[0]["readable"], false);
    // Set again, it is a new version that opens; the key's copy brings the old one back.
    let set = world.set_secret(&service, &ann, "DB", VALUE).await;
    assert_eq!(set.status, 202, "{set:?}");
    let found = world.items(&list, &ann).await.remove(0);
    assert_eq!(
        (&found["version"], &found["readable"]),
        (&json!(2), &json!(true))
    );
    world.director.stop().await;
    std::fs::write(&key, kept).unwrap();
    let director = start(config(world.folder.path())).await.unwrap();
    let rows = director
        .store()
        .read(|tx| secrets::heads(tx))
        .await
        .unwrap();
    assert_eq!(rows.len(), 2);
    director.stop().await;
}
