//! The world of these tests: a Director with a machine side that has no machines, and a person's
//! ways of asking it. Tests themselves are in the files beside this one.

pub use conpaas_director::access::{self, Access};
pub use conpaas_director::api::operations_of;
pub use conpaas_director::machine_side::{MachineFacts, MachineSide};
pub use conpaas_director::store::{operations as rows, services};
pub use conpaas_director::{
    Director, DirectorConfig, DirectorError, PASSWORD_FILE, StartError, operations,
};
pub use conpaas_model::api::{CloudInfo, Outcome, RootInfo};
pub use conpaas_model::ids::{MachineId, ServiceId};
pub use conpaas_model::instance::default_instance_types;
pub use conpaas_model::status::ServiceStatus;
pub use conpaas_services::registry::Registry;
pub use http::{Method, StatusCode};
pub use serde_json::{Value, json};
pub use std::collections::BTreeSet;
pub use std::net::SocketAddr;
pub use std::os::unix::fs::PermissionsExt;
pub use std::path::Path;
pub use std::sync::Arc;

pub struct NoMachines;

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
    async fn facts(&self, _: &MachineId) -> Option<MachineFacts> {
        None
    }
    async fn outdated(&self, _: &BTreeSet<String>) -> Result<BTreeSet<MachineId>, DirectorError> {
        Ok(BTreeSet::new())
    }
    async fn roots(&self) -> Result<Vec<RootInfo>, DirectorError> {
        Ok(Vec::new())
    }
    async fn add_root(&self) -> Result<RootInfo, DirectorError> {
        Err(DirectorError::conflict("no_machines", "there are none"))
    }
    async fn retire_root(&self, _: &str) -> Result<(), DirectorError> {
        Err(DirectorError::not_found("there are none"))
    }
    async fn stopped(&self) {}
}

pub fn config(state: &Path) -> DirectorConfig {
    let mut config = DirectorConfig::new(state.join("state"));
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.max_upload = 1 << 20;
    config
}

pub async fn start(config: DirectorConfig) -> Result<Director, StartError> {
    let registry = Arc::new(Registry::standard());
    Director::start_with(config, vec!["local".to_owned()], registry, |_| async {
        Ok(Arc::new(NoMachines) as Arc<dyn MachineSide>)
    })
    .await
}

/// A type people may add that takes code, and its first role.
pub fn some_type() -> (String, String) {
    let registry = Registry::standard();
    let mut types = registry.all().map(|entry| entry.service_type);
    let found = types
        .find(|found| !found.internal() && found.takes_code())
        .unwrap();
    (found.name().to_owned(), found.roles()[0].name.to_owned())
}

pub struct World {
    pub director: Director,
    pub client: reqwest::Client,
    pub admin: String,
    pub folder: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
    pub etag: Option<String>,
    pub replayed: bool,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut DirectorConfig)) -> Self {
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

    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.director.address().port())
    }

    pub async fn send(
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

    pub async fn get(&self, path: &str, token: &str) -> Answer {
        self.send(Method::GET, path, token, None, &[]).await
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.send(Method::POST, path, token, Some(body), &[]).await
    }

    pub async fn login(&self, name: &str, password: &str) -> String {
        let answer = self
            .post("/v1/login", "", json!({"name": name, "password": password}))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["secret"].as_str().unwrap().to_owned()
    }

    pub async fn user(&self, name: &str) -> String {
        let wish = json!({"name": name, "password": "long enough"});
        let answer = self.post("/v1/users", &self.admin, wish).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        self.login(name, "long enough").await
    }

    /// An application `shop` with one service; gives its path.
    pub async fn shop(&self, token: &str) -> String {
        let made = self.post("/v1/apps", token, json!({"name": "shop"})).await;
        assert_eq!(made.status, 201, "{made:?}");
        let wish = json!({"service_type": some_type().0, "name": "web"});
        let made = self.post("/v1/apps/shop/services", token, wish).await;
        assert_eq!(made.status, 201, "{made:?}");
        "/v1/apps/shop/services/web".to_owned()
    }

    pub async fn upload(&self, service: &str, token: &str, bytes: Vec<u8>) -> Answer {
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
    pub async fn manager_says(&self, id: &str, failed: Option<&str>) {
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
    pub async fn until(&self, path: &str, token: &str, what: impl Fn(&Answer) -> bool) -> Answer {
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

pub fn tar(path: &str, content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

/// Reads a stream to its end, which must come soon.
pub async fn rest_of(response: reqwest::Response) -> String {
    let bound = std::time::Duration::from_secs(30);
    let rest = tokio::time::timeout(bound, response.text()).await;
    rest.unwrap().unwrap()
}
