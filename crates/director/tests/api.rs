//! The API through real HTTPS, with a machine side that has no machines: what managers and
//! clouds would say is written to the store by the tests.

// Helpers of tests count as no tests for the lints.
#![allow(clippy::unwrap_used)]

use conpaas_director::access::{self, Access};
use conpaas_director::api::operations_of;
use conpaas_director::machine_side::MachineSide;
use conpaas_director::store::{operations as rows, services};
use conpaas_director::{
    Director, DirectorConfig, DirectorError, PASSWORD_FILE, StartError, operations,
};
use conpaas_model::api::{CloudInfo, Outcome};
use conpaas_model::ids::{MachineId, ServiceId};
use conpaas_model::instance::default_instance_types;
use conpaas_model::status::ServiceStatus;
use conpaas_services::registry::Registry;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

struct NoMachines;

#[async_trait::async_trait]
impl MachineSide for NoMachines {
    async fn command(
        &self,
        _: &ServiceId,
        name: &str,
        arguments: Value,
    ) -> Result<Value, DirectorError> {
        Ok(json!({"web-1": {"command": name, "arguments": arguments}}))
    }
    async fn capacity(&self) -> Vec<CloudInfo> {
        vec![CloudInfo {
            name: "local".to_owned(),
            driver: "none".to_owned(),
            limits: String::new(),
            features: Vec::new(),
            instance_types: default_instance_types(),
            free_vcpus: 12.0,
            free_memory_mib: 8192,
            free_disk_mib: 10_000,
            machines: 7,
        }]
    }
    fn wake(&self) {}
    async fn limits(&self, _: &MachineId) -> Option<String> {
        None
    }
    async fn stopped(&self) {}
}

fn config(state: &Path) -> DirectorConfig {
    let mut config = DirectorConfig::new(state.join("state"));
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.max_upload = 1 << 20;
    config
}

async fn start(config: DirectorConfig) -> Result<Director, StartError> {
    let registry = Arc::new(Registry::standard());
    Director::start_with(config, vec!["local".to_owned()], registry, |_| async {
        Ok(Arc::new(NoMachines) as Arc<dyn MachineSide>)
    })
    .await
}

/// A type people may add that takes code, and its first role.
fn some_type() -> (String, String) {
    let registry = Registry::standard();
    let mut types = registry.all().map(|entry| entry.service_type);
    let found = types
        .find(|found| !found.internal() && found.takes_code())
        .unwrap();
    (found.name().to_owned(), found.roles()[0].name.to_owned())
}

struct World {
    director: Director,
    client: reqwest::Client,
    admin: String,
    folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: Value,
    etag: Option<String>,
    replayed: bool,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut DirectorConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let director = start(config).await.unwrap();
        let tls = conpaas_pki::pinned_client_config(director.fingerprint()).unwrap();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .build()
            .unwrap();
        let mut world = Self {
            director,
            client,
            admin: String::new(),
            folder,
        };
        let path = world.folder.path().join("state").join(PASSWORD_FILE);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let password = std::fs::read_to_string(path).unwrap();
        world.admin = world.login("admin", password.trim()).await;
        world
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.director.address().port())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = self.client.request(method, self.url(path));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let etag = response
            .headers()
            .get("etag")
            .map(|v| v.to_str().unwrap().to_owned());
        let replayed = response.headers().contains_key("idempotent-replayed");
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer {
            status,
            body,
            etag,
            replayed,
        }
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.send(Method::GET, path, token, None, &[]).await
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.send(Method::POST, path, token, Some(body), &[]).await
    }

    async fn login(&self, name: &str, password: &str) -> String {
        let answer = self
            .post("/v1/login", "", json!({"name": name, "password": password}))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["secret"].as_str().unwrap().to_owned()
    }

    async fn user(&self, name: &str) -> String {
        let wish = json!({"name": name, "password": "long enough"});
        let answer = self.post("/v1/users", &self.admin, wish).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        self.login(name, "long enough").await
    }

    /// An application `shop` with one service; gives its path.
    async fn shop(&self, token: &str) -> String {
        let made = self.post("/v1/apps", token, json!({"name": "shop"})).await;
        assert_eq!(made.status, 201, "{made:?}");
        let wish = json!({"service_type": some_type().0, "name": "web"});
        let made = self.post("/v1/apps/shop/services", token, wish).await;
        assert_eq!(made.status, 201, "{made:?}");
        "/v1/apps/shop/services/web".to_owned()
    }

    async fn upload(&self, service: &str, token: &str, bytes: Vec<u8>) -> Answer {
        let url = self.url(&format!("{service}/code?filename=site.tar"));
        let response = self
            .client
            .post(url)
            .bearer_auth(token)
            .body(bytes)
            .send()
            .await
            .unwrap();
        let status = response.status();
        Answer {
            status,
            body: response.json().await.unwrap(),
            etag: None,
            replayed: false,
        }
    }

    /// Says what a manager would: the service is as its newest generation wants it, or failed.
    async fn manager_says(&self, id: &str, failed: Option<&str>) {
        let (id, failed) = (id.parse::<ServiceId>().unwrap(), failed.map(str::to_owned));
        let say = move |tx: &rusqlite::Transaction<'_>| {
            let row = services::get(tx, &id)?.unwrap();
            let reached = failed.is_none();
            let status = ServiceStatus {
                generation: row.generation,
                reached,
                failed,
                ..ServiceStatus::default()
            };
            operations::observe(tx, &id, &status)
        };
        self.director.store().transaction(say).await.unwrap();
    }

    /// Waits until a GET's answer is as wanted.
    async fn until(&self, path: &str, token: &str, what: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let mut changed = self.director.store().changed();
            let answer = self.get(path, token).await;
            if what(&answer) {
                return answer;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{path} stays {answer:?}"
            );
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), changed.changed())
                .await;
        }
    }
}

fn tar(path: &str, content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn the_committed_document_is_the_codes_own() {
    let committed = include_str!("../../../openapi/director.json");
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

#[tokio::test]
async fn an_operation_is_followed_live_to_its_end() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let id = world.get(&service, &ann).await.body["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let started = world
        .post(&format!("{service}/start"), &ann, json!({}))
        .await;
    let operation = started.body["operation"]["id"].as_str().unwrap();
    let url = world.url(&format!("/v1/operations/{operation}/stream"));
    let mut response = world
        .client
        .get(url)
        .bearer_auth(&ann)
        .send()
        .await
        .unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("\"outcome\":\"running\""));
    world.manager_says(&id, None).await;
    let mut rest = String::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(rest.contains("\"outcome\":\"done\""), "{rest}");
    let url = world.url("/v1/apps/shop/events/stream");
    let request = world
        .client
        .get(url)
        .bearer_auth(&ann)
        .header("last-event-id", "1");
    let mut response = request.send().await.unwrap();
    let chunk = response.chunk().await.unwrap().unwrap();
    assert!(
        String::from_utf8_lossy(&chunk).contains("id: 2"),
        "{chunk:?}"
    );
    world.director.stop().await;
}

#[tokio::test]
async fn deadlines_end_operations_and_a_restart_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut short = config(folder.path());
    short.operation_deadline = std::time::Duration::ZERO;
    let director = start(short.clone()).await.unwrap();
    let again = start(short.clone()).await.err().unwrap();
    assert!(matches!(again, StartError::StateInUse { .. }), "{again}");
    let mut other = config(&folder.path().join("other"));
    other.listen = director.address();
    let taken = start(other).await.err().unwrap();
    assert!(matches!(taken, StartError::AddressTaken { .. }), "{taken}");
    let (fingerprint, installation) = (
        director.fingerprint().to_owned(),
        director.installation().clone(),
    );
    let mode = std::fs::metadata(folder.path().join("state"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    director.stop().await;
    let director = start(short).await.unwrap();
    assert_eq!(
        (director.fingerprint(), director.installation()),
        (fingerprint.as_str(), &installation)
    );
    director.stop().await;
}

#[tokio::test]
async fn a_wish_that_takes_too_long_fails_visibly_and_goes_on() {
    let world = World::new().await;
    let ann = world.user("ann").await;
    let service = world.shop(&ann).await;
    let id = world.get(&service, &ann).await.body["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let started = world
        .post(&format!("{service}/start"), &ann, json!({}))
        .await;
    let operation = started.body["operation"]["id"].as_str().unwrap().to_owned();
    let late = operation.clone();
    let end = move |tx: &rusqlite::Transaction<'_>| {
        tx.execute("UPDATE operations SET deadline = 0 WHERE id = ?1", [&late])?;
        let row = rows::get(tx, &late)?.unwrap();
        assert_eq!(row.outcome, Outcome::Running);
        Ok(())
    };
    world.director.store().transaction(end).await.unwrap();
    let path = format!("/v1/operations/{operation}");
    let failed = world
        .until(&path, &ann, |answer| answer.body["outcome"] == "failed")
        .await;
    assert!(
        failed.body["reason"]
            .as_str()
            .unwrap()
            .contains("work goes on")
    );
    assert_eq!(world.get(&service, &ann).await.body["state"], "ERROR");
    world.manager_says(&id, None).await;
    assert_eq!(world.get(&service, &ann).await.body["state"], "RUNNING");
    world.director.stop().await;
}

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

/// Reads a stream to its end, which must come soon.
async fn rest_of(response: reqwest::Response) -> String {
    let bound = std::time::Duration::from_secs(30);
    let rest = tokio::time::timeout(bound, response.text()).await;
    rest.unwrap().unwrap()
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
