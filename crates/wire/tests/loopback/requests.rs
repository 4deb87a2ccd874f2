//! Requests, bulk, limits and shutdown.

use crate::world::{AGENT, MANAGER, Note, World, bounded, cutting_proxy, note};
use bytes::Bytes;
use conpaas_pki::{Identity, client_config};
use conpaas_wire::{
    Body, Client, ClientSettings, ErrorBody, Peer, Problem, ServerSettings, Versions, WireError,
    dial_address, empty, error_response, file_response, fixed_client_tls, json_response, read_json,
    reader_body,
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

async fn whoami(request: Request<Incoming>, peer: Peer) -> Response<Body> {
    let agents_of = "app-b".parse().unwrap();
    match (request.uri().path(), &peer.identity) {
        ("/enrol", None) => json_response(StatusCode::OK, "unnamed"),
        ("/echo", Some(_)) => match read_json::<Note, _>(request, 100).await {
            Ok(note) => json_response(StatusCode::OK, &note),
            Err(problem) => problem.into(),
        },
        (_, Some(identity)) if identity.is_agent_of(&agents_of) => {
            assert_eq!(peer.version, Some(1));
            json_response(StatusCode::OK, &identity.to_string())
        }
        (_, identity) => {
            let message = format!("{identity:?} may not");
            error_response(
                StatusCode::FORBIDDEN,
                "wrong_kind",
                message,
                Some("be an agent".into()),
            )
        }
    }
}

#[tokio::test]
async fn both_ends_check_each_other() {
    let world = World::new();
    let server = world.server(ServerSettings::default(), whoami).await;
    let agent = world.client(Some(AGENT), server.address);
    assert_eq!(agent.get_json::<String>("/").await.unwrap(), AGENT);
    assert_eq!(
        agent
            .post_json::<_, Note>("/echo", &note("hi"))
            .await
            .unwrap(),
        note("hi")
    );
    let long = agent
        .post_json::<_, Note>("/echo", &note("x".repeat(200)))
        .await
        .unwrap_err();
    assert_eq!(long.code(), Some("body_too_large"));
    let broken = agent.post_json::<_, Note>("/echo", &7).await.unwrap_err();
    assert_eq!(broken.code(), Some("body_invalid"));

    let manager = world.client(Some(MANAGER), server.address);
    match manager.get_json::<String>("/").await.unwrap_err() {
        WireError::Remote {
            status,
            body: ErrorBody { code, hint, .. },
        } => {
            assert_eq!(
                (status, code.as_str(), hint.as_deref()),
                (StatusCode::FORBIDDEN, "wrong_kind", Some("be an agent"))
            );
        }
        other => panic!("{other:?}"),
    }
    let unnamed = world.client(None, server.address);
    assert_eq!(
        unnamed.get_json::<String>("/enrol").await.unwrap(),
        "unnamed"
    );
    assert_eq!(
        unnamed.get_json::<String>("/").await.unwrap_err().code(),
        Some("wrong_kind")
    );

    let app = "app-b".parse().unwrap();
    let lost = world.client_expecting(Some(AGENT), server.address, move |peer| {
        peer.is_manager_of(&app)
    });
    match lost.get_json::<String>("/").await.unwrap_err() {
        WireError::WrongPeer { found } => assert!(found.is_director()),
        other => panic!("{other:?}"),
    }
    let foreign = World::new().client(Some(AGENT), server.address);
    assert!(matches!(
        foreign.get_json::<String>("/").await.unwrap_err(),
        WireError::Handshake(_)
    ));
}

#[tokio::test]
async fn connections_are_used_again_and_replaced_when_gone() {
    let world = World::new();
    let dialled = Arc::new(AtomicUsize::new(0));
    let server = world.server(ServerSettings::default(), whoami).await;
    let address = server.address;
    let config = client_config(Some(world.credentials(AGENT)), world.authority.roots()).unwrap();
    let count = dialled.clone();
    let dial = move || {
        count.fetch_add(1, Ordering::SeqCst);
        TcpStream::connect(address)
    };
    let client = Client::new(
        dial,
        fixed_client_tls(config),
        Identity::is_director,
        ClientSettings::default(),
    );
    for _ in 0..20 {
        client.get_json::<String>("/").await.unwrap();
    }
    assert!(
        dialled.load(Ordering::SeqCst) < 20,
        "no connection was used twice"
    );
    server.shutdown.cancel();
    bounded("shutdown", server.task).await.unwrap();
    assert!(
        client
            .get_json::<String>("/")
            .await
            .unwrap_err()
            .is_transient()
    );
}

#[tokio::test]
async fn a_version_nobody_speaks_is_refused() {
    let world = World::new();
    let server = world.server(ServerSettings::default(), whoami).await;
    let config = client_config(Some(world.credentials(AGENT)), world.authority.roots()).unwrap();
    let settings = ClientSettings {
        versions: Versions {
            oldest: 7,
            newest: 8,
        },
        ..ClientSettings::default()
    };
    let client = Client::new(
        dial_address(server.address),
        fixed_client_tls(config),
        Identity::is_director,
        settings,
    );
    assert_eq!(
        client.get_json::<String>("/").await.unwrap_err().code(),
        Some("version_unsupported")
    );
}

#[tokio::test]
async fn requests_in_flight_end_before_a_shutdown() {
    let world = World::new();
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (begun.clone(), go_on.clone());
    let server = world
        .server(ServerSettings::default(), move |_, _| {
            let (begins, goes_on) = (begins.clone(), goes_on.clone());
            async move {
                begins.notify_one();
                goes_on.notified().await;
                json_response(StatusCode::OK, "done")
            }
        })
        .await;
    let client = world.client(Some(AGENT), server.address);
    let call = tokio::spawn(async move { client.get_json::<String>("/").await });
    bounded("the request", begun.notified()).await;
    server.shutdown.cancel();
    assert!(!server.task.is_finished());
    go_on.notify_one();
    assert_eq!(bounded("the answer", call).await.unwrap().unwrap(), "done");
    bounded("shutdown", server.task).await.unwrap();
}

#[tokio::test]
async fn slow_peers_hold_up_nobody_and_connections_have_a_limit() {
    let world = World::new();
    let settings = ServerSettings {
        handshake_timeout: Duration::from_millis(500),
        max_connections: 3,
        ..ServerSettings::default()
    };
    let server = world.server(settings, whoami).await;
    let mut mute: Vec<TcpStream> = Vec::new();
    for _ in 0..2 {
        mute.push(TcpStream::connect(server.address).await.unwrap());
    }
    world
        .client(Some(AGENT), server.address)
        .get_json::<String>("/")
        .await
        .unwrap();
    for stream in &mut mute {
        assert_eq!(
            bounded("the cut", stream.read(&mut [0; 8]))
                .await
                .unwrap_or(0),
            0
        );
    }
    let held: Vec<TcpStream> = {
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(TcpStream::connect(server.address).await.unwrap());
        }
        held
    };
    // Once those are timed out, there is room again.
    bounded("room", async {
        while world
            .client(Some(AGENT), server.address)
            .get_json::<String>("/")
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(held);
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let world = World::new();
    let content: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    std::fs::write(&path, &content).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = asked.clone();
    let server = world
        .server(ServerSettings::default(), move |request, _| {
            let path = path.clone();
            asks.fetch_add(1, Ordering::SeqCst);
            async move {
                if request.uri().path() != "/blob" {
                    return Problem::new(StatusCode::NOT_FOUND, "not_found", "no such blob").into();
                }
                let file = tokio::fs::File::open(path).await.unwrap();
                file_response(request.headers(), file).await.unwrap()
            }
        })
        .await;
    let direct = world.client(Some(AGENT), server.address);
    let size = content.len() as u64;
    for from in [0, 1, 3_999_999, size] {
        let mut got = Vec::new();
        assert_eq!(
            direct.download("/blob", &mut got, from).await.unwrap(),
            size
        );
        assert!(
            got == content[usize::try_from(from).unwrap()..],
            "from {from}"
        );
    }
    let beyond = direct
        .download("/blob", &mut Vec::new(), size + 1)
        .await
        .unwrap_err();
    assert!(matches!(beyond, WireError::Changed));
    let missing = direct
        .download("/none", &mut Vec::new(), 0)
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Some("not_found"));

    asked.store(0, Ordering::SeqCst);
    let cut = cutting_proxy(server.address, 1_500_000).await;
    let mut got = Vec::new();
    let broken = world.client(Some(AGENT), cut);
    assert_eq!(
        bounded("the download", broken.download("/blob", &mut got, 0))
            .await
            .unwrap(),
        size
    );
    assert!(got == content);
    assert!(asked.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn bodies_are_streamed_up() {
    let world = World::new();
    let server = world
        .server(ServerSettings::default(), |request, _| async move {
            use http_body_util::BodyExt;
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            json_response(StatusCode::OK, &bytes.len())
        })
        .await;
    let client = world.client(Some(AGENT), server.address);
    let body = reader_body(tokio::io::repeat(7).take(3_000_000));
    assert_eq!(
        client
            .upload::<usize>(Method::PUT, "/", body)
            .await
            .unwrap(),
        3_000_000
    );
    let response = client
        .request(Request::get("/?x=1").body(empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn nonsense_on_the_port_harms_nobody() {
    let world = World::new();
    let server = world.server(ServerSettings::default(), whoami).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(&Bytes::from(vec![0x47; 5000]))
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = bounded("the cut", stream.read_to_end(&mut rest)).await;
    world
        .client(Some(AGENT), server.address)
        .get_json::<String>("/")
        .await
        .unwrap();
}
