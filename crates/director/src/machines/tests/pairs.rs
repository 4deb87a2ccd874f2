//! Every pair of parties on the side of machines, with everything that can be wrong with a caller:
//! what comes of it is compared with `pairs.txt`, which people review. The Director's door into an
//! application and a manager's are the real ones; whoever else answers is an impostor.

use super::world::{Agent, World, csr_pem, eventually};
use crate::machines::listeners;
use crate::machines::shared::Shared;
use async_trait::async_trait;
use conpaas_agent::{Enrol, EnrolError, dial_direct};
use conpaas_manager::{Listen, ManagerParts};
use conpaas_model::ids::ApplicationId;
use conpaas_model::protocol::{
    Context, EnrolAnswer, EnrolRequest, PATH_AGENT_STREAM, PATH_ENROL, PATH_ENROL_MANAGER,
    PATH_LOCATE, PATH_MANAGER_STREAM,
};
use conpaas_model::spec::RunWish;
use conpaas_model::status::NodeState;
use conpaas_pki::{
    Authority, AuthoritySettings, ClientCertificates, Credentials, Identity, KeyPair, Roots,
    client_config, hash_token, server_config,
};
use conpaas_services::registry::Registry;
use conpaas_wire::{
    Body, Client, ClientSettings, ServerSettings, WireError, dial_address, empty, fixed_client_tls,
    fixed_server_tls, full,
};
use http::{Method, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const PARTIES: [&str; 8] = [
    "stranger",
    "user",
    "other-user",
    "operator",
    "manager",
    "agent",
    "edge",
    "director",
];
const FAULTS: [&str; 8] = [
    "right",
    "wrong-kind",
    "wrong-app",
    "removed",
    "expired",
    "other-root",
    "token-twice",
    "token-over",
];

/// Who asks the Director for a manager's certificate, by way of the agent of its node.
struct ByAgent(Agent);

#[async_trait]
impl Enrol for ByAgent {
    async fn enrol(&self, csr: String, _: &Roots, _: bool) -> Result<EnrolAnswer, EnrolError> {
        let request = EnrolRequest {
            machine: self.0.context.machine.clone(),
            csr,
            token: None,
            version: conpaas_model::VERSION.into(),
        };
        let asked = self.0.client.post_json(PATH_ENROL_MANAGER, &request).await;
        asked.map_err(|error: WireError| EnrolError(error.to_string()))
    }
}

/// Somebody's certificate, and how to show it.
struct Bearer {
    credentials: Option<Arc<Credentials>>,
    /// What a person would send.
    token: Option<&'static str>,
}

struct Doors {
    roots: Roots,
    /// The Director's, inside the application's network and inside another's.
    own: SocketAddr,
    others: SocketAddr,
    manager: SocketAddr,
    /// The machine whose token was used.
    used: Context,
    shared: Arc<Shared>,
    elsewhere: Authority,
    system: Context,
    worker: Context,
    _folder: tempfile::TempDir,
    end: CancellationToken,
}

async fn door(shared: &Arc<Shared>, application: &str, end: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shared, end) = (shared.clone(), end.clone());
    let network: ApplicationId = application.parse().unwrap();
    tokio::spawn(async move { listeners::serve(&shared, listener, Some(network), end).await });
    address
}

/// A client that takes whoever answers, or only the Director.
fn client(roots: &Roots, of: &Bearer, to: SocketAddr, director_only: bool) -> Client {
    let tls = fixed_client_tls(client_config(of.credentials.clone(), roots).unwrap());
    let expect = move |peer: &Identity| !director_only || peer.is_director();
    Client::new(dial_address(to), tls, expect, ClientSettings::default())
}

/// What came of a call, in a word.
async fn call(client: &Client, of: &Bearer, method: Method, path: &str, body: Body) -> String {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = of.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    match client.request(request.body(body).unwrap()).await {
        Ok(response) if response.status().is_success() => "granted".to_owned(),
        Ok(response) => {
            let body = axum::body::Body::new(response.into_body());
            let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            value["code"].as_str().unwrap_or("(no code)").to_owned()
        }
        Err(WireError::WrongPeer { .. }) => "wrong_peer".to_owned(),
        // With TLS 1.3 a refused certificate shows when the answer is read.
        Err(WireError::Handshake(_) | WireError::Http(_) | WireError::Closed) => {
            "handshake".to_owned()
        }
        Err(error) => format!("{error:?}"),
    }
}

impl Doors {
    async fn open(world: &World) -> Self {
        world.wish(&world.system, RunWish::Running).await;
        world.wish(&world.web, RunWish::Running).await;
        let system = world.birth().await;
        let agent = Agent::enrol(&system, None).await.unwrap();
        world.node_is(&world.system, 1, NodeState::Up).await;
        let folder = tempfile::tempdir().unwrap();
        let end = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let manager = listener.local_addr().unwrap();
        let parts = ManagerParts {
            context: system.clone(),
            enrol: Arc::new(ByAgent(agent)),
            state: folder.path().join("manager"),
            status_socket: folder.path().join("manager.sock"),
            dial: dial_direct(),
            registry: Registry::standard(),
            listen: Listen::On(listener),
            shutdown: end.clone(),
        };
        tokio::spawn(conpaas_manager::run_with(parts));
        // The manager wishes for the service's nodes by itself.
        let worker = world.birth().await;
        Agent::enrol(&worker, None).await.unwrap();
        let shared = world.machines().shared.clone();
        let elsewhere = Authority::load_or_create(
            &folder.path().join("elsewhere"),
            &shared.installation,
            &AuthoritySettings::default(),
            SystemTime::now(),
        )
        .unwrap();
        add_rows(world, &worker).await;
        let doors = Self {
            roots: Roots::from_pem(&worker.roots).unwrap(),
            own: door(&shared, worker.application.as_str(), &end).await,
            others: door(&shared, "app-x", &end).await,
            manager,
            used: worker.clone(),
            shared,
            elsewhere,
            system,
            worker,
            _folder: folder,
            end,
        };
        eventually("the manager knows its node", || async {
            let found = doors.tried("agent", "manager", "right").await;
            (found == "stream_expected").then_some(())
        })
        .await;
        doors
    }

    /// What a party shows, with a fault; nothing when it cannot have that fault.
    fn shows(&self, party: &str, fault: &str) -> Option<Bearer> {
        let token = match party {
            "user" => Some("cps_a_user"),
            "other-user" => Some("cps_another_user"),
            "operator" => Some("cps_an_operator"),
            _ => None,
        };
        let (mut application, mut machine) = (self.worker.application.as_str(), None);
        match fault {
            "wrong-app" => application = "app-x",
            "removed" => machine = Some("m-gone"),
            _ => {}
        }
        let installation = &self.shared.installation;
        let identity = match party {
            "manager" => {
                let machine = machine.unwrap_or(self.system.machine.as_str());
                format!("conpaas://{installation}/manager/{application}/{machine}")
            }
            "agent" => {
                let machine = machine.unwrap_or(self.worker.machine.as_str());
                format!("conpaas://{installation}/agent/{application}/{machine}")
            }
            "edge" | "director" if matches!(fault, "wrong-app" | "removed") => return None,
            "edge" | "director" => format!("conpaas://{installation}/{party}"),
            // Who has no certificate can only make one.
            _ if fault == "other-root" => format!("conpaas://{installation}/director"),
            _ => {
                return Some(Bearer {
                    credentials: None,
                    token,
                });
            }
        };
        let identity: Identity = identity.parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let (csr, hour) = (key.csr().unwrap(), Duration::from_secs(3600));
        let now = SystemTime::now();
        let chain = match fault {
            "other-root" => self.elsewhere.sign_csr(&csr, &identity, hour, now),
            "expired" => self.sign(&csr, &identity, now - 2 * hour),
            _ => self.sign(&csr, &identity, now),
        };
        Some(Bearer {
            credentials: Some(Credentials::new(chain.unwrap(), &key).unwrap()),
            token,
        })
    }

    fn sign(
        &self,
        csr: &[u8],
        identity: &Identity,
        now: SystemTime,
    ) -> Result<conpaas_pki::CertificateChain, conpaas_pki::PkiError> {
        let authority = self.shared.authority.read();
        let authority = authority.unwrap_or_else(PoisonError::into_inner);
        authority.sign_csr(csr, identity, Duration::from_secs(3600), now)
    }

    /// What comes of one call; `none` where there is nothing to try.
    async fn tried(&self, caller: &str, answers: &str, fault: &str) -> String {
        let none = "none".to_owned();
        if answers != "director" && answers != "manager" {
            return self.at_an_impostor(caller, answers, fault).await;
        }
        let Some(bearer) = self.shows(caller, fault) else {
            return none;
        };
        let token = match fault {
            "token-twice" => Some((self.used.machine.as_str(), self.used.token.as_str())),
            "token-over" => Some(("m-late", "late")),
            _ => None,
        };
        let door = match (answers, fault) {
            ("manager", _) => self.manager,
            (_, "wrong-app") => self.others,
            _ => self.own,
        };
        let client = client(&self.roots, &bearer, door, false);
        if let Some((machine, token)) = token {
            let request = EnrolRequest {
                machine: machine.parse().unwrap(),
                csr: csr_pem(&KeyPair::generate().unwrap()),
                token: Some(token.to_owned()),
                version: conpaas_model::VERSION.into(),
            };
            let body = full(serde_json::to_vec(&request).unwrap());
            return call(&client, &bearer, Method::POST, PATH_ENROL, body).await;
        }
        let mut own = match caller {
            "manager" => PATH_MANAGER_STREAM,
            _ => PATH_LOCATE,
        };
        if answers == "manager" {
            own = PATH_AGENT_STREAM;
        }
        if fault == "wrong-kind" {
            own = match own {
                PATH_MANAGER_STREAM => PATH_LOCATE,
                _ => PATH_MANAGER_STREAM,
            };
        }
        // An application's own door, with a certificate of another application.
        let first = call(&client, &bearer, Method::GET, own, empty()).await;
        if fault != "wrong-app" || answers == "manager" {
            return first;
        }
        // And the other way round: a right certificate at another application's door.
        let right = self.shows(caller, "right").unwrap();
        let client = self::client(&self.roots, &right, self.others, false);
        let second = call(&client, &right, Method::GET, own, empty()).await;
        let client = self::client(&self.roots, &bearer, self.own, false);
        let third = call(&client, &bearer, Method::GET, own, empty()).await;
        assert_eq!(second, third, "{caller}: the two ways to be wrong");
        second
    }

    /// An agent or a manager dials the Director, and somebody else answers.
    async fn at_an_impostor(&self, caller: &str, answers: &str, fault: &str) -> String {
        let none = "none".to_owned();
        let dials = matches!(caller, "agent" | "manager");
        if !dials || fault.starts_with("token") {
            return none;
        }
        let shown = self.shows(
            answers,
            if fault == "wrong-kind" {
                "right"
            } else {
                fault
            },
        );
        let Some(mut shown) = shown else { return none };
        if shown.credentials.is_none() {
            // Whoever has no certificate of ours makes one that says Director.
            shown = match self.shows(answers, "other-root") {
                Some(made) => made,
                None => return none,
            };
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let credentials = shown.credentials.unwrap();
        let optional = ClientCertificates::Optional;
        let tls = server_config(credentials, &self.roots, optional).unwrap();
        let end = CancellationToken::new();
        let heard = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let hears = heard.clone();
        let serving = conpaas_wire::serve(
            listener,
            fixed_server_tls(tls),
            ServerSettings::default(),
            end.clone(),
            move |_, _| {
                hears.store(true, std::sync::atomic::Ordering::Relaxed);
                async { http::Response::new(empty()) }
            },
        );
        let serving = tokio::spawn(serving);
        let bearer = self.shows(caller, "right").unwrap();
        let client = client(&self.roots, &bearer, address, true);
        let found = call(&client, &bearer, Method::GET, PATH_LOCATE, empty()).await;
        end.cancel();
        serving.await.unwrap();
        assert!(
            !heard.load(std::sync::atomic::Ordering::Relaxed),
            "{answers} heard something of {caller}"
        );
        found
    }
}

/// A machine that was removed, and one that boots for ever, whose rows the broker cannot touch.
async fn add_rows(world: &World, like: &Context) {
    let like = like.machine.clone();
    let add = move |tx: &rusqlite::Transaction<'_>| {
        for (id, state, removed, hash) in [
            ("m-gone", "gone", true, String::new()),
            ("m-late", "booting", false, hash_token("late")),
        ] {
            tx.execute(
                "INSERT INTO machines(id, app_id, owner_id, service_id, node_number, cloud,
                     instance_type, cloud_token, state, token_hash, token_expires_at, removed, created_at)
                 SELECT ?2, app_id, owner_id, service_id, 999, cloud, instance_type, ?2, ?3, ?4, 1, ?5, 0
                 FROM machines WHERE id = ?1",
                rusqlite::params![like.as_str(), id, state, hash, removed],
            )?;
        }
        tx.execute_batch(
            "CREATE TRIGGER late BEFORE UPDATE ON machines WHEN OLD.id = 'm-late'
             BEGIN SELECT RAISE(IGNORE); END",
        )?;
        Ok(())
    };
    world.store.quiet(add).await.unwrap();
}

fn expected() -> BTreeMap<(String, String), Vec<String>> {
    let mut lines = BTreeMap::new();
    for line in include_str!("pairs.txt").lines() {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match words.as_slice() {
            [first, ..] if first.starts_with('#') => {}
            [] => {}
            [caller, answers, cells @ ..] => {
                let pair = (caller.clone(), answers.clone());
                assert!(
                    lines.insert(pair, cells.to_vec()).is_none(),
                    "twice: {line}"
                );
            }
            [_] => panic!("no pair: {line}"),
        }
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_of_parties_at_the_machines_listeners() {
    let world = World::start().await;
    let doors = Doors::open(&world).await;
    let mut expected = expected();
    let mut counts = BTreeMap::<String, usize>::new();
    let mut wrong = Vec::new();
    for caller in PARTIES {
        for answers in PARTIES {
            let mut found = Vec::new();
            for fault in FAULTS {
                let outcome = doors.tried(caller, answers, fault).await;
                *counts.entry(outcome.clone()).or_default() += 1;
                found.push(outcome);
            }
            let mut line = format!("{caller:<10} {answers:<10}");
            for cell in &found {
                line.push_str(&format!(" {cell:<17}"));
            }
            let line = line.trim_end().to_owned();
            println!("{line}");
            let pair = (caller.to_owned(), answers.to_owned());
            if expected.remove(&pair).as_ref() != Some(&found) {
                wrong.push(line);
            }
        }
    }
    let cells = PARTIES.len() * PARTIES.len() * FAULTS.len();
    let tried = cells - counts.get("none").copied().unwrap_or(0);
    println!("{cells} cells, {tried} tried: {counts:?}");
    let left: BTreeSet<_> = expected.keys().collect();
    assert!(left.is_empty(), "lines of no pair: {left:?}");
    assert!(
        wrong.is_empty(),
        "not as reviewed in pairs.txt:\n{}",
        wrong.join("\n")
    );
    doors.end.cancel();
    world.end().await;
}
