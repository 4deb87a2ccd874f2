//! A real Director with machines of the `memory` cloud, people with tokens of all kinds, and for
//! each call a fresh application, so that no outcome depends on another.

use crate::calls::{self, Body};
use crate::parties::Parties;
use conpaas_cloud::{Cloud, MemoryCloud, MemoryEvent, Resources};
use conpaas_director::access::{self, Access};
use conpaas_director::{Director, DirectorConfig, PASSWORD_FILE};
use conpaas_model::protocol::Context;
use conpaas_pki::{Credentials, Roots, client_config, pinned_client_config};
use conpaas_services::registry::Registry;
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PASSWORD: &str = "a password of length";
/// Stands in everything of the owner's that a stranger must not see.
const CANARY: &str = "canary-of-the-owner";

/// A token with its id.
#[derive(Clone)]
pub struct Token {
    pub id: String,
    pub secret: String,
}

/// What one operation is tried on.
pub struct Fixture {
    /// Who owns all of it.
    pub user: String,
    pub password: String,
    pub owner: Token,
    pub operator: Token,
    stranger: Token,
    /// A name nothing has yet.
    pub fresh: String,
    pub service_type: String,
    pub role: String,
    app: String,
    app_id: String,
    code: String,
    operation: String,
    token: String,
}

pub struct Answer {
    pub status: u16,
    body: Value,
}

pub struct World {
    director: Director,
    people: reqwest::Client,
    parties: Parties,
    admin: String,
    owner: String,
    stranger: String,
    expired: String,
    revoked: String,
    numbers: AtomicU32,
    /// A type people may add that takes code, and its first role.
    service_type: (String, String),
    folder: tempfile::TempDir,
}

fn some_type() -> (String, String) {
    let registry = Registry::standard();
    let mut types = registry.all().map(|entry| entry.service_type);
    let found = types.find(|found| !found.internal() && found.takes_code());
    let found = found.unwrap();
    (found.name().to_owned(), found.roles()[0].name.to_owned())
}

/// The client of somebody who shows a certificate, at any listener.
fn with_certificate(tls: &rustls::ClientConfig) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .build()
        .unwrap()
}

impl World {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = DirectorConfig::new(folder.path().join("state"));
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.host_listener = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        config.default_cloud = "memory".to_owned();
        config.default_node_quota = 1000;
        let room = Resources {
            vcpus: 640.0,
            memory_mib: 655_360,
            disk_mib: 1 << 20,
        };
        let cloud = MemoryCloud::new("memory", room);
        let mut births = cloud.events();
        let clouds = BTreeMap::from([("memory".to_owned(), Arc::new(cloud) as Arc<dyn Cloud>)]);
        let registry = Arc::new(Registry::standard());
        let director = Director::start(config, clouds, registry).await.unwrap();
        let tls = pinned_client_config(director.fingerprint()).unwrap();
        let password = folder.path().join("state").join(PASSWORD_FILE);
        let password = std::fs::read_to_string(password).unwrap();
        let people = with_certificate(&tls);
        let url = |path: &str| format!("https://127.0.0.1:{}{path}", director.address().port());
        let post = async |path: &str, token: &str, body: Value| -> Value {
            let request = people.post(url(path)).bearer_auth(token).json(&body);
            let answer = request.send().await.unwrap();
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            assert!(status.is_success(), "{path}: {status} {text}");
            serde_json::from_str(&text).unwrap_or(Value::Null)
        };
        let secret = |value: &Value| value["secret"].as_str().unwrap().to_owned();
        let login = async |name: &str, password: &str| {
            let wish = json!({"name": name, "password": password});
            secret(&post("/v1/login", "", wish).await)
        };
        let admin = login("admin", password.trim()).await;
        for name in ["ann", "bob"] {
            let wish = json!({"name": name, "password": PASSWORD});
            post("/v1/users", &admin, wish).await;
        }
        let (owner, stranger) = (login("ann", PASSWORD).await, login("bob", PASSWORD).await);
        let short = json!({"label": "short", "lifetime_seconds": 1});
        let expired = secret(&post("/v1/tokens", &owner, short).await);
        let long = json!({"label": "long", "lifetime_seconds": 600});
        let made = post("/v1/tokens", &owner, long).await;
        let revoked = secret(&made);
        let path = format!("/v1/tokens/{}", made["id"].as_str().unwrap());
        let gone = people.delete(url(&path)).bearer_auth(&owner);
        assert!(gone.send().await.unwrap().status().is_success());

        // A machine, for the certificates of machines.
        post("/v1/apps", &owner, json!({"name": "machines"})).await;
        post("/v1/apps/machines/start", &owner, json!({})).await;
        let context: Context = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                if let MemoryEvent::Running { request, .. } = births.recv().await.unwrap() {
                    return serde_json::from_slice(&request.contextualization).unwrap();
                }
            }
        })
        .await
        .expect("in vain: a machine");
        let parties = Parties::enrol(&context).await;
        let world = Self {
            people,
            parties,
            admin,
            owner,
            stranger,
            expired,
            revoked,
            numbers: AtomicU32::new(1),
            service_type: some_type(),
            director,
            folder,
        };
        world.until_expired().await;
        world
    }

    pub async fn stop(self) {
        self.director.stop().await;
    }

    async fn until_expired(&self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while self
            .send(Method::GET, "/v1/whoami", &self.expired, None)
            .await
            .status
            != 401
        {
            assert!(std::time::Instant::now() < deadline, "the token lives on");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.director.address().port())
    }

    async fn send(&self, method: Method, path: &str, token: &str, body: Option<Body>) -> Answer {
        let mut request = self.people.request(method, self.url(path));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        request = match body {
            None => request,
            Some(Body::Json(value)) => request.json(&value),
            Some(Body::Bytes(bytes)) => request.body(bytes),
        };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type");
        // A stream has no end to wait for.
        let endless = kind.is_some_and(|kind| kind.to_str().unwrap().contains("event-stream"));
        let text = if endless {
            String::new()
        } else {
            String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned()
        };
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, body }
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> Value {
        let answer = self
            .send(Method::POST, path, token, Some(Body::Json(body)))
            .await;
        assert!(
            answer.status < 300,
            "{path}: {} {}",
            answer.status,
            answer.body
        );
        answer.body
    }

    async fn token(&self, of: &str) -> Token {
        let wish = json!({"label": "fresh", "lifetime_seconds": 3600});
        let made = self.post("/v1/tokens", of, wish).await;
        let text = |key: &str| made[key].as_str().unwrap().to_owned();
        Token {
            id: text("id"),
            secret: text("secret"),
        }
    }

    /// Everything that an operation may name, made for it alone.
    pub async fn prepare(&self, operation: &str) -> Fixture {
        let (_, (_, path)) = crate::operations()
            .into_iter()
            .find(|(id, _)| id == operation)
            .unwrap();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (service_type, role) = self.service_type.clone();
        let mut user = "ann".to_owned();
        let mut base = self.owner.clone();
        if path.contains("{user}") {
            user = format!("user{number}");
            let wish = json!({"name": user, "password": PASSWORD});
            self.post("/v1/users", &self.admin, wish).await;
            let wish = json!({"name": user, "password": PASSWORD});
            let made = self.post("/v1/login", "", wish).await;
            base = made["secret"].as_str().unwrap().to_owned();
        }
        let mut fixture = Fixture {
            user,
            password: PASSWORD.to_owned(),
            operator: self.token(&self.admin).await,
            stranger: self.token(&self.stranger).await,
            fresh: format!("fresh{number}"),
            service_type,
            role,
            app: format!("shop{number}"),
            app_id: String::new(),
            code: String::new(),
            operation: String::new(),
            token: self.token(&base).await.id,
            owner: self.token(&base).await,
        };
        if path.contains("{machine}") {
            // As a restored store would have found it.
            let put = |tx: &rusqlite::Transaction<'_>| {
                tx.execute(
                    "INSERT OR IGNORE INTO quarantine(cloud, cloud_id, machine_id, app_id, hostname,
                         instance_type, address, created_at, since)
                     VALUES('memory', 'i-aside', 'm-aside', 'app-gone', 'web-9', 'small', '100.64.9.8', 0, 0)",
                    [],
                )?;
                Ok(())
            };
            self.director.store().quiet(put).await.unwrap();
        }
        if !(path.contains("{app}") || path.contains("{operation}")) {
            return fixture;
        }
        let by = &self.owner;
        let wish = json!({"name": fixture.app, "description": CANARY});
        let made = self.post("/v1/apps", by, wish).await;
        fixture.app_id = made["id"].as_str().unwrap().to_owned();
        let services = format!("/v1/apps/{}/services", fixture.app);
        let wish = json!({"service_type": fixture.service_type, "name": "web"});
        let made = self.post(&services, by, wish).await;
        let service = made["id"].as_str().unwrap().to_owned();
        for content in ["one", "two"] {
            let (path, bytes) = (format!("{services}/web/code"), calls::archive(content));
            let sent = self
                .send(Method::POST, &path, by, Some(Body::Bytes(bytes)))
                .await;
            assert_eq!(sent.status, 201, "{}", sent.body);
            let before = std::mem::replace(
                &mut fixture.code,
                sent.body["id"].as_str().unwrap().to_owned(),
            );
            if !before.is_empty() {
                let activate = format!("{services}/web/code/{before}/activate");
                self.post(&activate, by, json!({})).await;
            }
        }
        if path.contains("{operation}") {
            let start = format!("{services}/web/start");
            let started = self.post(&start, by, json!({})).await;
            fixture.operation = started["operation"]["id"].as_str().unwrap().to_owned();
        }
        if operation == "unset_secret" {
            let path = format!("{services}/web/secrets/API_KEY");
            let body = Body::Json(json!({"value": "a value that is kept"}));
            let set = self.send(Method::PUT, &path, by, Some(body)).await;
            assert_eq!(set.status, 202, "{}", set.body);
        }
        if operation == "remove_domain" {
            let path = format!("{services}/web/domains");
            let name = format!("{}.example.org", fixture.fresh);
            self.post(&path, by, json!({"name": name})).await;
        }
        if operation == "restore_app" {
            let path = format!("/v1/apps/{}", fixture.app);
            let gone = self.send(Method::DELETE, &path, by, None).await;
            assert_eq!(gone.status, 202, "{}", gone.body);
        }
        if path.contains("{node}") {
            // As a manager would have wished for it.
            let made = move |tx: &rusqlite::Transaction<'_>| {
                tx.execute(
                    "INSERT INTO nodes(service_id, number, cloud, instance_type, address, state, wish, created_at)
                     VALUES(?1, 1, 'memory', 'small', '100.64.9.9', 'requested', 'present', 0)",
                    [&service],
                )?;
                Ok(())
            };
            self.director.store().quiet(made).await.unwrap();
        }
        fixture
    }

    /// Roots of the installation: the operation that makes one is tried, too.
    fn roots(&self, name: &str) -> Roots {
        let path = self.folder.path().join("state/pki").join(name);
        Roots::from_pem(&std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
    }

    fn fill(&self, path: &str, fixture: &Fixture) -> String {
        // The one that signs, which nobody may retire.
        let signs = self.roots("root.pem").fingerprints().unwrap().remove(0);
        path.replace("{app}", &format!("ann:{}", fixture.app))
            .replace("{root}", &signs)
            .replace("{machine}", "m-aside")
            .replace("{service}", "web")
            .replace("{code}", &fixture.code)
            .replace("{secret}", "API_KEY")
            .replace("{sha256}", &"0".repeat(64))
            .replace("{domain}", &format!("{}.example.org", fixture.fresh))
            .replace("{command}", "no-such-command")
            .replace("{node}", "1")
            .replace("{operation}", &fixture.operation)
            .replace("{token}", &fixture.token)
            .replace("{user}", &fixture.user)
    }

    pub async fn call(
        &self,
        id: &str,
        method: &Method,
        path: &str,
        fixture: &Fixture,
        token: &str,
    ) -> Answer {
        let body = (*method != Method::GET).then(|| calls::body(id, fixture));
        let mut path = self.fill(path, fixture);
        if id == "append_upload" {
            path.push_str(&format!("?size={}&offset=0", calls::PIECE.len()));
        }
        self.send(method.clone(), &path, token, body).await
    }

    /// The status that somebody with a certificate gets at a listener.
    async fn named(
        &self,
        (credentials, port, tls): (&Arc<Credentials>, u16, Option<&Roots>),
        id: &str,
        method: &Method,
        path: &str,
        fixture: &Fixture,
    ) -> u16 {
        let client = match tls {
            // The same trust in the API's listener as people have, and a certificate to show.
            None => {
                let pinned = pinned_client_config(self.director.fingerprint()).unwrap();
                let mut config = (*pinned).clone();
                config.client_auth_cert_resolver = credentials.clone();
                with_certificate(&config)
            }
            Some(roots) => {
                with_certificate(&client_config(Some(credentials.clone()), roots).unwrap())
            }
        };
        let url = format!("https://127.0.0.1:{port}{}", self.fill(path, fixture));
        let mut request = client.request(method.clone(), url);
        if *method != Method::GET {
            request = match calls::body(id, fixture) {
                Body::Json(value) => request.json(&value),
                Body::Bytes(bytes) => request.body(bytes),
            };
        }
        request.send().await.unwrap().status().as_u16()
    }

    /// The outcomes of one operation, in the order of the table's columns.
    pub async fn row(&self, id: &str, method: &Method, path: &str) -> Vec<String> {
        let (first, second) = (self.prepare(id).await, self.prepare(id).await);
        let changes = *method != Method::GET;
        let public = access::of(id) == Some(Access::Public);
        let call = async |token: &str, fixture: &Fixture| {
            self.call(id, method, path, fixture, token).await
        };
        let api = self.director.address().port();
        let before = self.records().await;
        let mut cells = BTreeMap::new();
        for (party, token) in [
            ("nobody", ""),
            ("expired", self.expired.as_str()),
            ("revoked", self.revoked.as_str()),
        ] {
            cells.insert(party, call(token, &first).await.status.to_string());
        }
        for (party, credentials) in [
            ("agent", &self.parties.agent),
            ("manager", &self.parties.manager),
        ] {
            let people = (credentials, api, None);
            let mut roots = self.roots("root.pem");
            roots.merge(&self.roots("trusted.pem"));
            let machines = (credentials, self.parties.machines_port, Some(&roots));
            let people = self.named(people, id, method, path, &first).await;
            let machines = self.named(machines, id, method, path, &first).await;
            cells.insert(party, format!("{people}/{machines}"));
        }
        let stranger = call(&first.stranger.secret, &first).await;
        cells.insert("stranger", stranger.status.to_string());
        let said = stranger.body.to_string();
        let shows =
            said.contains(CANARY) || !first.app_id.is_empty() && said.contains(&first.app_id);
        assert!(!shows, "{id} shows a stranger what is not theirs: {said}");
        if stranger.status >= 400 {
            assert_eq!(
                self.records().await,
                before,
                "{id}: the refused changed something"
            );
        }
        let owner = call(&first.owner.secret, &first).await;
        cells.insert("owner", owner.status.to_string());
        let operator = call(&second.operator.secret, &second).await;
        cells.insert("operator", operator.status.to_string());
        for (fixture, actor, token, answer) in [
            (&first, "bob", &first.stranger, &stranger),
            (&first, first.user.as_str(), &first.owner, &owner),
            (&second, "admin", &second.operator, &operator),
        ] {
            assert_ne!(answer.status, 500, "{id}: {}", answer.body);
            self.written_down(id, changes, public, fixture, (actor, token, answer))
                .await;
        }
        crate::PARTIES
            .iter()
            .map(|party| cells.remove(party).unwrap())
            .collect()
    }

    /// A change has exactly one audit row, with who did it by which token and what came of it.
    async fn written_down(
        &self,
        id: &str,
        changes: bool,
        public: bool,
        fixture: &Fixture,
        (actor, token, answer): (&str, &Token, &Answer),
    ) {
        let by = token.id.clone();
        let look = move |tx: &rusqlite::Transaction<'_>| {
            let mut rows = tx.prepare(
                "SELECT actor, action, status FROM audit WHERE token_id = ?1 ORDER BY id",
            )?;
            let found = rows.query_map([&by], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, u16>(2)?,
                ))
            })?;
            Ok(found.collect::<Result<Vec<_>, _>>()?)
        };
        let rows = self.director.store().read(look).await.unwrap();
        if public {
            // Who logs in has no token yet: the row has the name.
            let (user, wanted) = (fixture.user.clone(), id.to_owned());
            let count = move |tx: &rusqlite::Transaction<'_>| {
                let sql =
                    "SELECT count(*) FROM audit WHERE actor = ?1 AND action = ?2 AND status = 200";
                Ok(tx.query_row(sql, [&user, &wanted], |row| row.get::<_, i64>(0))?)
            };
            let count = self.director.store().read(count).await.unwrap();
            assert_eq!(count > 0, changes, "{id}");
            return;
        }
        let wanted = (actor.to_owned(), id.to_owned(), answer.status);
        let wanted: Vec<_> = changes.then_some(wanted).into_iter().collect();
        assert_eq!(rows, wanted, "{id} by {actor}");
    }

    /// What people have, as far as nothing but requests changes it.
    pub async fn records(&self) -> Vec<String> {
        let look = |tx: &rusqlite::Transaction<'_>| {
            let mut all = Vec::new();
            for sql in [
                "SELECT id, name, password_hash, rank, node_quota FROM users",
                "SELECT id, user_id, label, revoked_at FROM tokens",
                "SELECT id, name, description, run, generation FROM apps",
                "SELECT id, name, description, run, generation, roles_json, active_release FROM services WHERE internal = 0",
                "SELECT service_id, number, code_id, settings_json, reason FROM releases",
                "SELECT id, filename, deleted_at FROM codes",
                "SELECT service_id, number FROM nodes WHERE retire = 1",
                "SELECT user_id, key, status FROM idempotency",
            ] {
                let mut statement = tx.prepare(sql)?;
                let columns = statement.column_count();
                let rows = statement.query_map([], |row| {
                    let cells: rusqlite::Result<Vec<String>> = (0..columns)
                        .map(|at| row.get_ref(at).map(|cell| format!("{cell:?}")))
                        .collect();
                    Ok(cells?.join(" "))
                })?;
                all.extend(rows.collect::<Result<Vec<_>, _>>()?);
            }
            Ok(all)
        };
        self.director.store().read(look).await.unwrap()
    }

    /// From now on no audit row can be written.
    pub async fn break_audit(&self) {
        let sql =
            "CREATE TRIGGER no_audit BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END";
        let store = self.director.store();
        store.quiet(|tx| Ok(tx.execute_batch(sql)?)).await.unwrap();
    }
}
