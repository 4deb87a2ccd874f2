//! A world small enough for one process: a Director double, a manager, agents, and for each node
//! a real init with real processes. Everything talks by TLS on loopback.

use crate::service::{CODE, TestType};
use base64::Engine;
use conpaas_agent::{AgentParts, Folders, InitProcesses, dial_direct};
use conpaas_agent::{AgentSocket, run_with as run_agent};
use conpaas_manager::{Listen, ManagerParts, run_with as run_manager};
use conpaas_model::ids::{
    ApplicationId, Epoch, Generation, InstallationId, MachineId, NodeNumber, ReleaseNumber,
    ServiceId,
};
use conpaas_model::instance::default_instance_types;
use conpaas_model::protocol::{
    Context, EnrolAnswer, EnrolRequest, FromManager, Located, ManagerAddress, ManagerLevel,
    ManagerReport, PATH_BLOBS, PATH_ENROL, PATH_ENROL_MANAGER, PATH_LOCATE, PATH_MANAGER_STREAM,
    ServiceLevel, ToManager,
};
use conpaas_model::spec::{CodeRef, CountOwner, Pool, Release, RoleWish, RunWish, ServiceSpec};
use conpaas_model::status::{EdgeStatus, NodeRecord, NodeState};
use conpaas_pki::{
    Authority, AuthoritySettings, ClientCertificates, Credentials, Identity, KeyPair, PartyKind,
    csr_key_fingerprint, server_config,
};
use conpaas_services::registry::{Entry, Registry};
use conpaas_wire::{
    Body, Peer, ServerSettings, StreamSettings, accept_stream, error_response, file_response,
    fixed_server_tls, json_response, read_json, serve,
};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const INIT_FOLDER: &str = "CONPAAS_TEST_INIT_FOLDER";

pub fn application() -> ApplicationId {
    "app-a".parse().unwrap()
}
pub fn service() -> ServiceId {
    "svc-a".parse().unwrap()
}
pub fn installation() -> InstallationId {
    "inst-a".parse().unwrap()
}
pub fn machine(number: u64) -> MachineId {
    format!("m-{number}").parse().unwrap()
}
pub fn registry() -> Registry {
    static TYPE: TestType = TestType;
    Registry::new(vec![Entry {
        service_type: &TYPE,
        agents: &TYPE,
    }])
}

/// What the Director double knows and was told.
pub struct Director {
    authority: Authority,
    folder: PathBuf,
    pub located: Mutex<Located>,
    pub level: watch::Sender<Option<ManagerLevel>>,
    pub report: watch::Sender<Option<ManagerReport>>,
    pub commands: tokio::sync::broadcast::Sender<ToManager>,
    pub results: watch::Sender<Option<(u64, Result<serde_json::Value, String>)>>,
    keys: Mutex<BTreeMap<MachineId, String>>,
}

impl Director {
    fn sign(&self, csr: &str, kind: PartyKind) -> Option<EnrolAnswer> {
        let body: String = csr
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let der = base64::engine::general_purpose::STANDARD
            .decode(body)
            .ok()?;
        if let PartyKind::Agent { node, .. } = &kind {
            let print = csr_key_fingerprint(&der).ok()?;
            if *self
                .keys
                .lock()
                .unwrap()
                .entry(node.clone())
                .or_insert(print.clone())
                != print
            {
                return None;
            }
        }
        let lifetime = Duration::from_secs(3600);
        let identity = Identity::new(installation(), kind);
        let chain = self
            .authority
            .sign_csr(&der, &identity, lifetime, SystemTime::now())
            .ok()?;
        Some(EnrolAnswer {
            chain: chain.to_pem(),
            roots: self.authority.roots().to_pem(),
            lifetime_seconds: lifetime.as_secs(),
            trust: self.authority.trust_digest(),
        })
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let refuse = |code| error_response(StatusCode::FORBIDDEN, code, "no", None);
        let path = request.uri().path().to_owned();
        if path == PATH_ENROL {
            let asked: EnrolRequest = match read_json(request, 65536).await {
                Ok(asked) => asked,
                Err(problem) => return problem.into(),
            };
            let known = self.keys.lock().unwrap().contains_key(&asked.machine);
            if !known && asked.token.as_deref() != Some("secret") {
                return refuse("no_token");
            }
            let kind = PartyKind::Agent {
                application: application(),
                node: asked.machine,
            };
            return match self.sign(&asked.csr, kind) {
                Some(answer) => json_response(StatusCode::OK, &answer),
                None => refuse("other_key"),
            };
        }
        let Some(kind) = peer.identity.map(|identity| identity.kind) else {
            return refuse("nobody");
        };
        match (path.as_str(), kind) {
            (PATH_ENROL_MANAGER, PartyKind::Agent { application, node }) => {
                let asked: EnrolRequest = read_json(request, 65536).await.unwrap();
                match self.sign(&asked.csr, PartyKind::Manager { application, node }) {
                    Some(answer) => json_response(StatusCode::OK, &answer),
                    None => refuse("csr"),
                }
            }
            (PATH_LOCATE, PartyKind::Agent { .. }) => {
                let located = self.located.lock().unwrap().clone();
                json_response(StatusCode::OK, &located)
            }
            (PATH_MANAGER_STREAM, PartyKind::Manager { .. }) => {
                let (response, accepting) = accept_stream::<FromManager, ToManager, _>(
                    &mut request,
                    &StreamSettings::default(),
                )
                .unwrap();
                let mut levels = self.level.subscribe();
                levels.mark_changed();
                let mut commands = self.commands.subscribe();
                tokio::spawn(async move {
                    let (sender, mut receiver) = accepting.established().await.unwrap().split();
                    loop {
                        tokio::select! {
                            received = receiver.recv() => match received {
                                Ok(Some(FromManager::Report(report))) => { self.report.send_replace(Some(*report)); }
                                Ok(Some(FromManager::CommandResult { id, result })) => {
                                    self.results.send_replace(Some((id, result)));
                                }
                                _ => return,
                            },
                            _ = levels.changed() => {
                                let level = levels.borrow_and_update().clone();
                                if let Some(level) = level {
                                    let _ = sender.send(&ToManager::Level(Box::new(level))).await;
                                }
                            }
                            Ok(command) = commands.recv() => { let _ = sender.send(&command).await; }
                        }
                    }
                });
                response
            }
            (path, _) if path.starts_with(PATH_BLOBS) => {
                let name = path.rsplit('/').next().unwrap();
                let file = tokio::fs::File::open(self.folder.join("blobs").join(name))
                    .await
                    .unwrap();
                file_response(request.headers(), file).await.unwrap()
            }
            _ => refuse("path"),
        }
    }
}

/// A part of the world that runs in a task and can be ended.
pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.task)
            .await
            .expect("it ends")
            .unwrap();
    }
}

/// An init of its own, with whatever it runs.
pub struct Init(Child);

impl Drop for Init {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub director: Arc<Director>,
    pub address: SocketAddr,
    _inits: Vec<Init>,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    /// A Director double, and an init for each of the nodes 1 and 2.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuthoritySettings::default();
        let now = SystemTime::now();
        let authority =
            Authority::load_or_create(&folder.path().join("ca"), &installation(), &settings, now)
                .unwrap();
        let key = KeyPair::generate().unwrap();
        let identity = Identity::new(installation(), PartyKind::Director);
        let chain = authority
            .sign_csr(
                &key.csr().unwrap(),
                &identity,
                Duration::from_secs(3600),
                now,
            )
            .unwrap();
        let credentials = Credentials::new(chain, &key).unwrap();
        let tls =
            server_config(credentials, authority.roots(), ClientCertificates::Optional).unwrap();
        let blobs = folder.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let director = Arc::new(Director {
            authority,
            folder: folder.path().to_owned(),
            located: Mutex::new(Located {
                epoch: Epoch(0),
                manager: ManagerAddress::Nowhere,
                trust: String::new(),
            }),
            level: watch::Sender::new(None),
            report: watch::Sender::new(None),
            commands: tokio::sync::broadcast::Sender::new(16),
            results: watch::Sender::new(None),
            keys: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (answering, ended) = (director.clone(), stop.clone());
        tokio::spawn(serve(
            listener,
            fixed_server_tls(tls),
            ServerSettings::default(),
            ended,
            move |request, peer| answering.clone().answer(request, peer),
        ));
        let inits = (1..=2)
            .map(|number| start_init(&folder.path().join(format!("node{number}"))))
            .collect();
        Self {
            folder,
            director,
            address,
            _inits: inits,
            _stop: stop.drop_guard(),
        }
    }

    pub fn node_folder(&self, number: u64) -> PathBuf {
        self.folder.path().join(format!("node{number}"))
    }

    pub fn folders(&self, number: u64) -> Folders {
        let root = self.node_folder(number);
        Folders {
            state: root.join("state"),
            run: root.join("run"),
            log: root.join("log"),
        }
    }

    pub fn context(&self, number: u64) -> Context {
        Context {
            installation: installation(),
            application: application(),
            service: service(),
            node: NodeNumber(number),
            machine: machine(number),
            address: Ipv4Addr::LOCALHOST,
            instance_type: default_instance_types().remove(0),
            roots: self.director.authority.roots().to_pem(),
            director: self.address,
            token: "secret".to_owned(),
        }
    }

    pub fn start_agent(&self, number: u64) -> Running {
        let shutdown = CancellationToken::new();
        let parts = AgentParts {
            context: self.context(number),
            processes: Arc::new(InitProcesses::new(
                self.node_folder(number).join("init.sock"),
            )),
            folders: self.folders(number),
            dial: dial_direct(),
            registry: registry(),
            local_net: None,
            unpacker: conpaas_agent::Unpacker::Here,
            shutdown: shutdown.clone(),
        };
        let task = tokio::spawn(async move { run_agent(parts).await.unwrap() });
        Running { shutdown, task }
    }

    /// A manager on node 1, which agents find from now on.
    pub async fn start_manager(&self, epoch: u64) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        *self.director.located.lock().unwrap() = Located {
            epoch: Epoch(epoch),
            manager: ManagerAddress::At {
                machine: machine(1),
                address: listener.local_addr().unwrap(),
            },
            trust: String::new(),
        };
        let shutdown = CancellationToken::new();
        let folders = self.folders(1);
        std::fs::create_dir_all(&folders.run).unwrap();
        let parts = ManagerParts {
            context: self.context(1),
            enrol: Arc::new(AgentSocket::new(folders.agent_socket())),
            state: folders.state.join("manager"),
            status_socket: folders.run.join("manager.sock"),
            dial: dial_direct(),
            registry: registry(),
            listen: Listen::On(listener),
            shutdown: shutdown.clone(),
        };
        let task = tokio::spawn(async move { run_manager(parts).await.unwrap() });
        Running { shutdown, task }
    }

    /// Tells the manager what is wanted: `count` workers running the one release, with code.
    pub fn want(&self, epoch: u64, generation: u64, count: u32) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(CODE.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, "motto", CODE.as_bytes())
            .unwrap();
        let archive = builder.into_inner().unwrap();
        let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&archive));
        std::fs::write(self.folder.path().join("blobs").join(&sha256), &archive).unwrap();
        let code = CodeRef {
            id: "code-a".parse().unwrap(),
            sha256,
            size: archive.len() as u64,
        };
        let pool = Pool {
            cloud: "test".to_owned(),
            instance_type: "small".to_owned(),
            count,
        };
        let spec = ServiceSpec {
            service: service(),
            application: application(),
            display: "shop/web".to_owned(),
            service_type: "test".to_owned(),
            generation: Generation(generation),
            run: RunWish::Running,
            roles: [(
                "worker".to_owned(),
                RoleWish {
                    pools: vec![pool],
                    owner: CountOwner::User,
                    bounds: None,
                },
            )]
            .into(),
            active: ReleaseNumber(1),
            releases: vec![Release {
                number: ReleaseNumber(1),
                code: Some(code),
                settings: serde_json::Map::new(),
                environment: Default::default(),
            }],
            preview: None,
            retire: Default::default(),
            drain_seconds: 1,
        };
        let node = |number| NodeRecord {
            number: NodeNumber(number),
            state: NodeState::Up,
            cloud: "test".to_owned(),
            instance_type: "small".to_owned(),
            address: Ipv4Addr::LOCALHOST,
            trouble: None,
            refused: false,
            told: Default::default(),
        };
        self.director.level.send_replace(Some(ManagerLevel {
            generation: Generation(generation),
            application: application(),
            epoch: Epoch(epoch),
            instance_types: default_instance_types(),
            services: vec![ServiceLevel {
                spec,
                nodes: vec![node(1), node(2)],
                machines: [(machine(1), NodeNumber(1)), (machine(2), NodeNumber(2))].into(),
                next_node: NodeNumber(3),
                edge: EdgeStatus::default(),
                shown: None,
            }],
            trust: String::new(),
        }));
    }

    /// Waits until the Director double has a report like this.
    pub async fn reported(
        &self,
        what: &str,
        like: impl Fn(&ManagerReport) -> bool,
    ) -> ManagerReport {
        let mut reports = self.director.report.subscribe();
        let wait = reports.wait_for(|report| report.as_ref().is_some_and(&like));
        match tokio::time::timeout(Duration::from_secs(40), wait).await {
            Ok(report) => report.unwrap().clone().unwrap(),
            Err(_) => panic!(
                "never reported: {what}; last: {:#?}",
                self.director.report.borrow()
            ),
        }
    }

    pub fn level_on_disk(&self, number: u64) -> String {
        std::fs::read_to_string(self.folders(number).state.join("level.json")).unwrap_or_default()
    }
}

fn start_init(folder: &Path) -> Init {
    std::fs::create_dir_all(folder).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_init", "--nocapture"])
        .env(INIT_FOLDER, folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    Init(child)
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
