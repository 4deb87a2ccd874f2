//! Director double, manager, agents, inits and processes together: levels flow down, reports up,
//! whatever is restarted finds its place again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod service;
mod world;

use conpaas_agent::InitProcesses;
use conpaas_core::role_agent::Processes;
use conpaas_manager::ManagerStatus;
use conpaas_model::ids::{Epoch, Generation, NodeNumber};
use conpaas_model::level::{Level, LevelBody, LevelVersion};
use conpaas_model::protocol::{
    FromAgent, Located, ManagerAddress, ManagerReport, ToAgent, ToManager,
};
use serde_json::json;
use service::CODE;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;
use world::{INIT_FOLDER, World, machine, service, until};

/// Not a test: what the world runs as the init of a node.
#[test]
fn as_init() {
    let Ok(folder) = std::env::var(INIT_FOLDER) else {
        return;
    };
    let folder = PathBuf::from(folder);
    conpaas_init::run(conpaas_init::Settings {
        socket: folder.join("init.sock"),
        agent: vec![],
        allowed_uid: nix::unistd::geteuid().as_raw(),
        ..conpaas_init::Settings::default()
    })
    .unwrap();
}

fn reached(generation: u64) -> impl Fn(&ManagerReport) -> bool {
    move |report| {
        report.services.first().is_some_and(|service| {
            service.status.reached && service.status.generation == Generation(generation)
        })
    }
}

fn nodes_in_state(report: &ManagerReport, state: &str) -> usize {
    report.services[0]
        .status
        .nodes
        .iter()
        .filter(|node| node.state == state)
        .count()
}

async fn worker_pid(world: &World, node: u64) -> Option<i32> {
    let init = InitProcesses::new(world.node_folder(node).join("init.sock"));
    let list = init.list().await.ok()?;
    list.into_iter()
        .find(|process| process.name == "worker/r1" && process.running)
        .map(|process| process.pid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn levels_flow_down_reports_and_answers_up() {
    let world = World::new().await;
    let agents = [world.start_agent(1), world.start_agent(2)];
    let manager = world.start_manager(1).await;
    world.want(1, 1, 2);
    world.reported("both workers are ready", reached(1)).await;
    for node in [1, 2] {
        assert!(worker_pid(&world, node).await.is_some());
        let log = world.folders(node).log.join("worker-main.log");
        until("the code came with the level", || {
            std::fs::read_to_string(&log).is_ok_and(|t| t == CODE)
        })
        .await;
    }

    let command = ToManager::Command {
        id: 7,
        service: service(),
        name: "echo".into(),
        arguments: json!([1]),
    };
    world.director.commands.send(command).unwrap();
    let mut results = world.director.results.subscribe();
    let wait = results.wait_for(Option::is_some);
    let result = tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap()
        .unwrap()
        .clone();
    let answer = json!({
        "web-1": { "name": "echo", "arguments": [1] },
        "web-2": { "error": "not in the mood" },
    });
    assert_eq!(result, Some((7, Ok(answer))));

    let mut text = String::new();
    let mut socket =
        std::os::unix::net::UnixStream::connect(world.folders(1).run.join("manager.sock")).unwrap();
    tokio::task::spawn_blocking(move || {
        socket.read_to_string(&mut text).unwrap();
        let status: ManagerStatus = serde_json::from_str(&text).unwrap();
        assert_eq!(
            status,
            ManagerStatus {
                v: 1,
                director: true,
                managing: true,
                services: 1,
                agents: 2
            }
        );
    })
    .await
    .unwrap();

    manager.end().await;
    for agent in agents {
        agent.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_outlive_agents_and_managers() {
    let world = World::new().await;
    let agent = world.start_agent(1);
    let second = world.start_agent(2);
    let manager = world.start_manager(1).await;
    world.want(1, 1, 2);
    world.reported("both workers are ready", reached(1)).await;
    let before = (worker_pid(&world, 1).await, worker_pid(&world, 2).await);
    assert!(before.0.is_some() && before.1.is_some());

    // The agent goes; its manager notices; the role does not.
    agent.end().await;
    assert_eq!(worker_pid(&world, 1).await, before.0);
    let agent = world.start_agent(1);
    world.want(1, 2, 2);
    world
        .reported("all is as it was", |report| {
            reached(2)(report) && nodes_in_state(report, "up") == 2
        })
        .await;

    // The manager goes and another one comes, with a higher epoch and no memory.
    manager.end().await;
    world.director.report.send_replace(None);
    let manager = world.start_manager(2).await;
    world.want(2, 3, 2);
    let report = world
        .reported("the new manager has taken over", reached(3))
        .await;
    assert_eq!(report.epoch, Epoch(2));
    until("agents obey the new epoch", || {
        [1, 2]
            .iter()
            .all(|node| world.level_on_disk(*node).contains("\"epoch\":2"))
    })
    .await;
    assert_eq!(
        (worker_pid(&world, 1).await, worker_pid(&world, 2).await),
        before
    );

    // A worker that dies is started again by its agent.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(before.0.unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while worker_pid(&world, 1)
        .await
        .is_none_or(|pid| Some(pid) == before.0)
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "never started again"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for running in [manager, agent, second] {
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_manager_is_refused_and_left() {
    use conpaas_pki::{
        Authority, AuthoritySettings, ClientCertificates, Credentials, Identity, KeyPair, PartyKind,
    };
    use conpaas_wire::{ServerSettings, StreamSettings, accept_stream, fixed_server_tls, serve};
    let world = World::new().await;
    // A manager's end made by hand: it offers epoch 5 and then, like one that was superseded, 4.
    let now = std::time::SystemTime::now();
    let authority = Authority::load_or_create(
        &world.folder.path().join("ca"),
        &world::installation(),
        &AuthoritySettings::default(),
        now,
    )
    .unwrap();
    let key = KeyPair::generate().unwrap();
    let kind = PartyKind::Manager {
        application: world::application(),
        node: machine(9),
    };
    let identity = Identity::new(world::installation(), kind);
    let chain = authority
        .sign_csr(
            &key.csr().unwrap(),
            &identity,
            Duration::from_secs(600),
            now,
        )
        .unwrap();
    let credentials = Credentials::new(chain, &key).unwrap();
    let tls =
        conpaas_pki::server_config(credentials, authority.roots(), ClientCertificates::Required)
            .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    *world.director.located.lock().unwrap() = Located {
        epoch: Epoch(5),
        manager: ManagerAddress::At {
            machine: machine(9),
            address: listener.local_addr().unwrap(),
        },
        trust: String::new(),
    };
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let stop = tokio_util::sync::CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let handler = move |mut request: http::Request<hyper::body::Incoming>,
                        peer: conpaas_wire::Peer| {
        let heard = heard.clone();
        async move {
            assert!(peer.identity.unwrap().is_agent_of(&world::application()));
            let (response, accepting) =
                accept_stream::<FromAgent, ToAgent, _>(&mut request, &StreamSettings::default())
                    .unwrap();
            tokio::spawn(async move {
                let mut stream = accepting.established().await.unwrap();
                for epoch in [5, 4] {
                    let level = Level {
                        version: LevelVersion {
                            epoch: Epoch(epoch),
                            generation: Generation(1),
                        },
                        service: service(),
                        service_type: "test".into(),
                        node: NodeNumber(1),
                        node_name: "web-1".into(),
                        body: LevelBody::default(),
                    };
                    stream.send(&ToAgent::Level(level)).await.unwrap();
                }
                while let Ok(Some(message)) = stream.recv().await {
                    let _ = heard.send(Some(message));
                }
                let _ = heard.send(None);
            });
            response
        }
    };
    tokio::spawn(serve(
        listener,
        fixed_server_tls(tls),
        ServerSettings::default(),
        stop,
        handler,
    ));
    let agent = world.start_agent(1);
    let (mut refused, mut left) = (false, false);
    while !(refused && left) {
        match tokio::time::timeout(Duration::from_secs(20), hears.recv())
            .await
            .unwrap()
            .unwrap()
        {
            Some(FromAgent::Refused {
                refused: what,
                seen,
            }) => {
                assert_eq!((what.epoch, seen.epoch), (Epoch(4), Epoch(5)));
                refused = true;
            }
            Some(_) => {}
            None => left = true,
        }
    }
    assert!(world.level_on_disk(1).contains("\"epoch\":5"));
    agent.end().await;
}
