//! A Director's machine side with a store, a cloud of records, and parties that speak the wire.

use crate::error::DirectorError;
use crate::machine_side::MachineSide;
use crate::machines::records::{self, Node};
use crate::machines::{Machines, MachinesConfig};
use crate::scale::default_roles;
use crate::store::{self, Store, apps, services, users};
use conpaas_cloud::{Cloud, MemoryCloud, MemoryEvent, Resources};
use conpaas_core::broker::BrokerSettings;
use conpaas_model::api::Rank;
use conpaas_model::ids::{
    ApplicationId, Generation, InstallationId, NodeNumber, ReleaseNumber, ServiceId,
};
use conpaas_model::level::Level;
use conpaas_model::protocol::{
    Context, EnrolAnswer, EnrolRequest, FromAgent, FromManager, ManagerLevel, ManagerReport,
    PATH_AGENT_STREAM, PATH_ENROL, PATH_ENROL_MANAGER, PATH_MANAGER_STREAM, PATH_TRUST, ToAgent,
    ToManager, TrustAnswer, TrustReport,
};
use conpaas_model::spec::RunWish;
use conpaas_model::status::{AgentReport, EdgeStatus, NodeHealth, NodeState, Phase, RoleStatus};
use conpaas_pki::{
    Authority, AuthoritySettings, CertificateChain, Credentials, KeyPair, Roots, client_config,
};
use conpaas_services::registry::Registry;
use conpaas_wire::{
    Client, ClientSettings, FramedStream, StreamHandle, StreamSettings, WireError, dial_address,
    fixed_client_tls,
};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

/// Waits for a condition, with a bound.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The code of a refusal.
pub fn code_of<T>(result: Result<T, WireError>) -> String {
    match result {
        Ok(_) => "(granted)".to_owned(),
        Err(error) => error
            .code()
            .map_or_else(|| error.to_string(), str::to_owned),
    }
}

pub struct World {
    folder: TempDir,
    pub store: Store,
    pub cloud: MemoryCloud,
    births: tokio::sync::Mutex<UnboundedReceiver<MemoryEvent>>,
    installation: InstallationId,
    app: ApplicationId,
    pub system: ServiceId,
    pub web: ServiceId,
    list_every: Duration,
    running: Option<(Machines, CancellationToken)>,
}

fn id<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

impl World {
    pub fn room() -> Resources {
        Resources {
            vcpus: 64.0,
            memory_mib: 65_536,
            disk_mib: 0,
        }
    }

    pub async fn start() -> Self {
        Self::listing(Duration::from_millis(50)).await
    }

    /// A world whose cloud is asked for its machines so often.
    pub async fn listing(list_every: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.db")).unwrap();
        let (app, system, web) = (id("app-a"), id("svc-system"), id("svc-web"));
        let rows = (app, system, web);
        let (app, system, web) = rows.clone();
        store
            .transaction(move |tx| insert(tx, &rows.0, &rows.1, &rows.2))
            .await
            .unwrap();
        let cloud = MemoryCloud::new("memory", Self::room());
        let births = tokio::sync::Mutex::new(cloud.events());
        let mut world = Self {
            folder,
            store,
            cloud,
            births,
            installation: id("inst-a"),
            app,
            system,
            web,
            list_every,
            running: None,
        };
        world.resume().await;
        world
    }

    /// The key that secrets are sealed with.
    pub fn vault(&self) -> Arc<crate::vault::Vault> {
        let folder = self.folder.path().join("authority");
        Arc::new(crate::vault::Vault::load_or_create(&folder, &self.installation).unwrap())
    }

    pub fn lose_vault(&self) {
        let folder = self.folder.path().join("authority");
        std::fs::remove_file(folder.join(crate::vault::KEY_FILE)).unwrap();
    }

    /// Starts the machine side (again).
    pub async fn resume(&mut self) {
        let folder = self.folder.path();
        let config = MachinesConfig {
            host_listener: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            blobs: folder.join("blobs"),
            logs: Arc::new(crate::logs::LogStore::new(folder.join("logs"))),
            metrics: Arc::new(
                crate::metrics::MetricsStore::open(&folder.join("metrics.db"), 16 << 20).unwrap(),
            ),
            vault: self.vault(),
            edge_folder: self.edge_folder(),
            base_domain: "localhost".into(),
            egress: Default::default(),
            boot_deadline: Some(Duration::from_millis(1500)),
            certificate_lifetime: Duration::from_secs(3600),
            list_every: self.list_every,
            edge_finishing: Duration::from_secs(35),
            broker: BrokerSettings {
                first_pause: 20,
                longest_pause: 200,
                ..BrokerSettings::default()
            },
        };
        let authority = Authority::load_or_create(
            &folder.join("authority"),
            &self.installation,
            &AuthoritySettings::default(),
            SystemTime::now(),
        )
        .unwrap();
        let cloud: Arc<dyn Cloud> = Arc::new(self.cloud.clone());
        let clouds = BTreeMap::from([("memory".to_owned(), cloud)]);
        let shutdown = CancellationToken::new();
        let registry = Arc::new(Registry::standard());
        let machines = Machines::start(
            self.store.clone(),
            config,
            clouds,
            authority,
            registry,
            shutdown.clone(),
        )
        .await
        .unwrap();
        self.running = Some((machines, shutdown));
    }

    pub fn machines(&self) -> &Machines {
        &self.running.as_ref().unwrap().0
    }

    /// Ends the machine side, with whatever is under way.
    pub async fn stop(&mut self) {
        let (machines, shutdown) = self.running.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), machines.stopped())
            .await
            .unwrap();
    }

    pub async fn end(mut self) {
        self.stop().await;
    }

    pub fn edge_folder(&self) -> PathBuf {
        self.folder.path().join("edge")
    }

    pub fn edge_status(&self) -> EdgeStatus {
        self.machines()
            .shared
            .edge
            .borrow()
            .get(&self.web)
            .cloned()
            .unwrap_or_default()
    }

    pub async fn wish(&self, service: &ServiceId, run: RunWish) {
        let service = service.clone();
        self.store
            .transaction(move |tx| {
                let mut row = services::get(tx, &service)?.unwrap();
                row.set_run(run);
                row.generation = row.generation.next();
                services::update_wish(tx, &row)
            })
            .await
            .unwrap();
    }

    /// The contextualization of the next machine that runs.
    pub async fn birth(&self) -> Context {
        let mut births = self.births.lock().await;
        let next = async {
            loop {
                if let MemoryEvent::Running { request, .. } = births.recv().await.unwrap()
                    && let Ok(context) =
                        serde_json::from_slice::<Context>(&request.contextualization)
                {
                    return context;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), next)
            .await
            .expect("in vain: a machine")
    }

    /// A machine of ours that no record knows.
    pub async fn orphan(&self) {
        let request = conpaas_cloud::CreateMachine {
            token: "t-orphan".into(),
            installation: self.installation.clone(),
            application: self.app.clone(),
            machine: id("m-orphan"),
            hostname: "orphan".into(),
            instance_type: "small".into(),
            address: id("100.64.3.3"),
            contextualization: b"{}".to_vec(),
        };
        self.cloud.create(request).await.unwrap();
    }

    pub async fn row(&self, service: &ServiceId) -> services::ServiceRow {
        let service = service.clone();
        self.store
            .read(move |tx| services::get(tx, &service))
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn nodes(&self, service: &ServiceId) -> Vec<Node> {
        let service = service.clone();
        self.store
            .read(move |tx| records::nodes_of(tx, &service))
            .await
            .unwrap()
    }

    pub async fn node_is(&self, service: &ServiceId, number: u64, state: NodeState) {
        let there = || async {
            let nodes = self.nodes(service).await;
            nodes
                .iter()
                .any(|n| n.key.number == NodeNumber(number) && n.state == state)
                .then_some(())
        };
        eventually(&format!("node {number} is {state:?}"), there).await;
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        self.store
            .read(move |tx| Ok(tx.query_row(sql, [], |row| row.get(0))?))
            .await
            .unwrap()
    }
}

fn insert(
    tx: &rusqlite::Connection,
    app: &ApplicationId,
    system: &ServiceId,
    web: &ServiceId,
) -> Result<(), DirectorError> {
    users::insert(
        tx,
        &users::UserRow {
            id: id("user-ann"),
            name: id("ann"),
            password_hash: String::new(),
            rank: Rank::User,
            node_quota: 20,
            created_at: 0,
        },
    )?;
    apps::insert(
        tx,
        &apps::AppRow {
            id: app.clone(),
            owner: id("user-ann"),
            owner_name: id("ann"),
            name: id("shop"),
            description: String::new(),
            labels: Default::default(),
            egress: Default::default(),
            run: RunWish::Running,
            ever_started: true,
            generation: Generation(1),
            created_at: 0,
            trashed_at: None,
        },
    )?;
    let registry = Registry::standard();
    let internal = registry
        .all()
        .find(|entry| entry.service_type.internal())
        .unwrap()
        .service_type;
    let exposing = registry
        .all()
        .find(|entry| {
            !entry.service_type.internal()
                && entry.service_type.roles().iter().any(|role| role.exposed)
        })
        .unwrap()
        .service_type;
    for (own, service_type, name, manager) in [
        (system, internal, "system", None),
        (web, exposing, "web", Some(system.clone())),
    ] {
        services::insert(
            tx,
            &services::ServiceRow {
                id: own.clone(),
                app: app.clone(),
                name: id(name),
                service_type: service_type.name().to_owned(),
                description: String::new(),
                labels: Default::default(),
                own_manager: false,
                internal: service_type.internal(),
                manager,
                run: RunWish::Stopped,
                run_since: 0,
                ever_started: false,
                served: false,
                generation: Generation(1),
                reached: Generation(0),
                roles: default_roles(service_type, "memory", "small"),
                active: ReleaseNumber(1),
                drain_seconds: 1,
                next_node: NodeNumber(1),
                next_release: ReleaseNumber(2),
                preview: None,
                status: None,
                status_epoch: Default::default(),
                exposure: None,
                shown_state: conpaas_model::status::ServiceState::Init,
                created_at: 0,
            },
        )?;
        services::insert_release(
            tx,
            &services::ReleaseRow {
                service: own.clone(),
                number: ReleaseNumber(1),
                code: None,
                settings: Default::default(),
                environment: Default::default(),
                reason: "created".into(),
                actor: "ann".into(),
                created_at: store::now(),
                held: false,
            },
        )?;
    }
    Ok(())
}

pub fn csr_pem(key: &KeyPair) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(key.csr().unwrap());
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    )
}

fn client(context: &Context, credentials: Option<Arc<Credentials>>) -> Client {
    let roots = Roots::from_pem(&context.roots).unwrap();
    let tls = fixed_client_tls(client_config(credentials, &roots).unwrap());
    Client::new(
        dial_address(context.director),
        tls,
        conpaas_pki::Identity::is_director,
        ClientSettings::default(),
    )
}

/// An agent that has enrolled.
pub struct Agent {
    pub context: Context,
    credentials: Arc<Credentials>,
    pub client: Client,
    key: KeyPair,
}

/// Says whom a party trusts, by a connection that shows its present certificate.
async fn report_trust(client: &Client, roots: &str) -> Result<TrustAnswer, WireError> {
    let trusts = Roots::from_pem(roots).unwrap().fingerprints().unwrap();
    client.post_json(PATH_TRUST, &TrustReport { trusts }).await
}

impl Agent {
    pub fn unnamed(context: &Context) -> Client {
        client(context, None)
    }

    pub async fn enrol(context: &Context, key: Option<&KeyPair>) -> Result<Self, WireError> {
        let fresh = KeyPair::generate().unwrap();
        let key = key.unwrap_or(&fresh);
        let request = EnrolRequest {
            machine: context.machine.clone(),
            csr: csr_pem(key),
            token: (!context.token.is_empty()).then(|| context.token.clone()),
            version: conpaas_model::VERSION.into(),
        };
        let answer: EnrolAnswer = client(context, None)
            .post_json(PATH_ENROL, &request)
            .await?;
        let chain = CertificateChain::from_pem(&answer.chain).unwrap();
        assert!(chain.identity().unwrap().is_agent_of(&context.application));
        let credentials = Credentials::new(chain, key).unwrap();
        let mut context = context.clone();
        context.roots = answer.roots;
        Ok(Self {
            client: client(&context, Some(credentials.clone())),
            context,
            credentials,
            key: KeyPair::from_pem(&key.to_pem()).unwrap(),
        })
    }

    /// The same agent with a new certificate, and the roots that came with it.
    pub async fn renewed(&self) -> Result<Self, WireError> {
        Self::enrol(&self.context, Some(&self.key)).await
    }

    /// Says whom it trusts.
    pub async fn trusts(&self) -> Result<TrustAnswer, WireError> {
        report_trust(&self.client, &self.context.roots).await
    }

    /// The same agent, dialling a Director that listens elsewhere now.
    pub fn at(&self, world: &World) -> Self {
        let mut context = self.context.clone();
        context
            .director
            .set_port(world.machines().host_port().unwrap());
        let client = client(&context, Some(self.credentials.clone()));
        Self {
            context,
            client,
            credentials: self.credentials.clone(),
            key: KeyPair::from_pem(&self.key.to_pem()).unwrap(),
        }
    }

    /// The manager process of this node, connected.
    pub async fn manager(&self) -> Result<Manager, WireError> {
        let key = KeyPair::generate().unwrap();
        let request = EnrolRequest {
            machine: self.context.machine.clone(),
            csr: csr_pem(&key),
            token: None,
            version: conpaas_model::VERSION.into(),
        };
        let answer: EnrolAnswer = self.client.post_json(PATH_ENROL_MANAGER, &request).await?;
        let chain = CertificateChain::from_pem(&answer.chain).unwrap();
        assert!(
            chain
                .identity()
                .unwrap()
                .is_manager_of(&self.context.application)
        );
        let mut context = self.context.clone();
        context.roots = answer.roots;
        let client = client(&context, Some(Credentials::new(chain, &key).unwrap()));
        let stream = client
            .open_stream(
                PATH_MANAGER_STREAM,
                Default::default(),
                &StreamSettings::default(),
            )
            .await?;
        Ok(Manager {
            stream,
            client,
            context,
        })
    }

    /// Opens its stream at the Director and carries every level out at once.
    pub fn obey(self) -> Obedient {
        let (roles, over) = (
            Arc::new(Mutex::new(BTreeSet::new())),
            CancellationToken::new(),
        );
        let (seen, done, hang_up) = (roles.clone(), over.clone(), CancellationToken::new());
        let end = hang_up.clone();
        tokio::spawn(async move {
            let run = async {
                let stream: FramedStream<ToAgent, FromAgent> = loop {
                    match self
                        .client
                        .open_stream(
                            PATH_AGENT_STREAM,
                            Default::default(),
                            &StreamSettings::default(),
                        )
                        .await
                    {
                        Ok(stream) => break stream,
                        Err(error) if error.code() == Some("node_removed") => return,
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                };
                let (sender, mut receiver) = stream.split();
                let mut sequence = 1;
                let _ = sender
                    .send(&FromAgent::Report(Box::new(obeyed(None, sequence))))
                    .await;
                while let Ok(Some(message)) = receiver.recv().await {
                    if let ToAgent::Level(level) = message {
                        sequence += 1;
                        *seen.lock().unwrap() = level.body.roles.keys().cloned().collect();
                        let _ = sender
                            .send(&FromAgent::Report(Box::new(obeyed(Some(level), sequence))))
                            .await;
                    }
                }
            };
            tokio::select! {
                () = run => {}
                () = end.cancelled() => {}
            }
            done.cancel();
        });
        Obedient {
            roles,
            over,
            hang_up,
        }
    }
}

fn obeyed(level: Option<Level>, sequence: u64) -> AgentReport {
    let version = level.as_ref().map(|level| level.version);
    let roles: Vec<String> = level
        .iter()
        .flat_map(|level| level.body.roles.keys().cloned())
        .collect();
    AgentReport {
        boot: "b1".into(),
        sequence,
        version: conpaas_model::VERSION.into(),
        applied: version,
        applied_roles: roles
            .iter()
            .filter_map(|role| Some((role.clone(), version?)))
            .collect(),
        roles: roles
            .into_iter()
            .map(|role| {
                (
                    role,
                    RoleStatus {
                        own: Some(Phase::Ready),
                        ..RoleStatus::default()
                    },
                )
            })
            .collect(),
        level,
        node: NodeHealth::default(),
        ends: Vec::new(),
    }
}

/// An agent that obeys.
pub struct Obedient {
    roles: Arc<Mutex<BTreeSet<String>>>,
    over: CancellationToken,
    hang_up: CancellationToken,
}

impl Obedient {
    pub fn roles(&self) -> BTreeSet<String> {
        self.roles.lock().unwrap().clone()
    }

    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    pub fn hang_up(&self) {
        self.hang_up.cancel();
    }
}

/// A manager process with its stream.
pub struct Manager {
    stream: FramedStream<ToManager, FromManager>,
    pub client: Client,
    context: Context,
}

impl Manager {
    /// Says whom it trusts.
    pub async fn trusts(&self) -> Result<TrustAnswer, WireError> {
        report_trust(&self.client, &self.context.roots).await
    }

    async fn next(&mut self) -> Option<ToManager> {
        let next = tokio::time::timeout(Duration::from_secs(30), self.stream.recv()).await;
        next.expect("in vain: a word of the Director")
            .ok()
            .flatten()
    }

    pub async fn level(&mut self) -> ManagerLevel {
        self.level_when(|_| true).await
    }

    pub async fn level_when(&mut self, fits: impl Fn(&ManagerLevel) -> bool) -> ManagerLevel {
        loop {
            if let ToManager::Level(level) = self.next().await.expect("the stream is open")
                && fits(&level)
            {
                return *level;
            }
        }
    }

    pub async fn command(&mut self) -> ToManager {
        loop {
            let message = self.next().await.expect("the stream is open");
            if matches!(message, ToManager::Command { .. }) {
                return message;
            }
        }
    }

    pub async fn say(&mut self, report: ManagerReport) {
        self.send(&FromManager::Report(Box::new(report))).await;
    }

    pub async fn send(&mut self, message: &FromManager) {
        self.stream.send(message).await.unwrap();
    }

    pub async fn is_over(&mut self) {
        while self.next().await.is_some() {}
    }

    pub fn hang_up(&self) {
        let handle: StreamHandle = self.stream.handle();
        handle.close();
    }
}
