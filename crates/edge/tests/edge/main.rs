//! The edge over real sockets: routing, feeding and draining, asking again, streams, tunnels.

// Helpers of tests may end a test; the lint knows only functions marked as tests.
#[allow(clippy::unwrap_used, clippy::panic)]
mod support;
#[allow(clippy::unwrap_used)]
mod tls;

use conpaas_model::edge::RouteState;
use std::time::Duration;
use support::{Answer, Server, TestEdge, exchange, read_head, read_to_end, shop};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn requests_reach_their_application_with_the_clients_address() {
    let web = Server::start(Answer::Echo).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&web])]).await;
    let text = exchange(
        edge.address,
        "GET /a?b=secret HTTP/1.1\r\nHost: SHOP-ann.localhost:1\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n",
    )
    .await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let echoed = text.to_ascii_lowercase();
    assert!(echoed.contains("get /a?b=secret http/1.1"), "{text}");
    assert!(echoed.contains("host: shop-ann.localhost:1"), "{text}");
    assert!(echoed.contains("x-forwarded-for: 127.0.0.1"), "{text}");
    assert!(echoed.contains("x-forwarded-proto: http"), "{text}");
    assert!(!echoed.contains("x-hop"), "{text}");
    let folder = edge.stop().await;
    let log = std::fs::read_to_string(folder.path().join("access.log")).unwrap();
    assert!(
        log.contains("127.0.0.1 shop-ann.localhost GET /a?+8 200 "),
        "{log}"
    );
    assert!(log.trim_end().ends_with("shop/web/web-0"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn pages_say_why_nobody_answers() {
    let edge = TestEdge::start().await;
    let get = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n";
    assert!(
        exchange(edge.address, get)
            .await
            .starts_with("HTTP/1.1 404")
    );
    for (generation, state, word) in [
        (1, RouteState::Starting, "is starting"),
        (2, RouteState::Stopped, "is stopped"),
        (3, RouteState::NoBackends, "cannot answer"),
        (4, RouteState::Serving, "cannot answer"),
    ] {
        edge.feed(generation, vec![shop(state, &[])]).await;
        let text = exchange(edge.address, get).await;
        assert!(text.starts_with("HTTP/1.1 503"), "{text}");
        assert!(
            text.to_ascii_lowercase().contains("\r\nretry-after: "),
            "{text}"
        );
        assert!(text.contains(word), "{text}");
    }
    let json = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
    assert!(
        exchange(edge.address, json)
            .await
            .contains("\"code\":\"no_backends\"")
    );
    let other = "GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    let text = exchange(edge.address, other).await;
    assert!(
        text.starts_with("HTTP/1.1 404") && !text.contains("shop"),
        "{text}"
    );
    let two = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n";
    assert!(
        exchange(edge.address, two)
            .await
            .starts_with("HTTP/1.1 400")
    );
    edge.stop().await;
}

#[tokio::test]
async fn older_routes_are_refused_also_after_a_restart() {
    let (old, new) = (
        Server::start(Answer::Text("old")).await,
        Server::start(Answer::Text("new")).await,
    );
    let edge = TestEdge::start().await;
    edge.feed(7, vec![shop(RouteState::Serving, &[&new])]).await;
    edge.write(6, vec![shop(RouteState::Serving, &[&old])]);
    // A later generation shows that the older one was looked at before.
    let folder = edge.stop().await;
    let edge = TestEdge::start_in(folder).await;
    assert_eq!(edge.applied().generation.0, 7);
    let get = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n";
    assert!(exchange(edge.address, get).await.ends_with("new"));
    edge.feed(8, vec![shop(RouteState::Serving, &[&old])]).await;
    assert!(exchange(edge.address, get).await.ends_with("old"));
    edge.stop().await;
}

#[tokio::test]
async fn a_removed_upstream_finishes_what_it_has_and_is_named_until_then() {
    let (slow, other) = (
        Server::start(Answer::WhenTold("late")).await,
        Server::start(Answer::Text("other")).await,
    );
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&slow])])
        .await;
    let get = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n";
    let address = edge.address;
    let waiting = tokio::spawn(async move { exchange(address, get).await });
    slow.requests_reach(1).await;
    edge.feed(2, vec![shop(RouteState::Serving, &[&other])])
        .await;
    let draining = edge.applied().draining;
    assert_eq!((draining.len(), draining[0].in_flight), (1, 1));
    assert_eq!(draining[0].address, slow.address);
    assert!(exchange(address, get).await.ends_with("other"));
    slow.tell();
    assert!(waiting.await.unwrap().ends_with("late"));
    edge.until(|applied| applied.draining.is_empty()).await;
    edge.stop().await;
}

#[tokio::test]
async fn one_who_refuses_connections_is_passed_over_even_for_posts() {
    let gone = Server::refusing().await;
    let web = Server::start(Answer::Echo).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&gone, &web])])
        .await;
    for _ in 0..4 {
        let text = exchange(
            edge.address,
            "POST /x HTTP/1.1\r\nHost: shop-ann.localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        )
        .await;
        assert!(
            text.starts_with("HTTP/1.1 200") && text.ends_with("hello"),
            "{text}"
        );
    }
    edge.feed(2, vec![shop(RouteState::Serving, &[&gone])])
        .await;
    let get = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n";
    assert!(
        exchange(edge.address, get)
            .await
            .contains("cannot be reached")
    );
    edge.stop().await;
}

#[tokio::test]
async fn a_get_is_sent_once_more_and_a_post_never() {
    // Reads a request, then closes without a word.
    let rude = Server::start(Answer::Hang).await;
    let web = Server::start(Answer::Text("fine")).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&rude, &web])])
        .await;
    let get = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n";
    for _ in 0..4 {
        assert!(exchange(edge.address, get).await.ends_with("fine"));
    }
    edge.feed(2, vec![shop(RouteState::Serving, &[&rude])])
        .await;
    let before = rude.requests();
    let post = "POST / HTTP/1.1\r\nHost: shop-ann.localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let text = exchange(edge.address, post).await;
    assert!(text.starts_with("HTTP/1.1 502"), "{text}");
    assert_eq!(rude.requests(), before + 1);
    edge.stop().await;
}

#[tokio::test]
async fn connections_are_used_again_and_a_stale_one_costs_no_request() {
    let web = Server::start(Answer::Text("kept")).await;
    // Closes after each answer without having said so.
    let sly = Server::start(Answer::TextThenClose("sly")).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&web])]).await;
    let get = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n";
    for _ in 0..10 {
        assert!(exchange(edge.address, get).await.ends_with("kept"));
    }
    assert!(web.connections() < 10, "{}", web.connections());
    edge.feed(2, vec![shop(RouteState::Serving, &[&sly])]).await;
    for _ in 0..50 {
        let text = exchange(edge.address, get).await;
        assert!(text.ends_with("sly"), "{text}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn events_arrive_as_they_happen() {
    let events = Server::start(Answer::Events).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&events])])
        .await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: shop-ann.localhost\r\n\r\n")
        .await
        .unwrap();
    let mut seen = read_head(&mut stream).await;
    while !seen.contains("data: one") {
        let mut part = [0; 256];
        let count = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut part))
            .await
            .unwrap()
            .unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    assert!(!seen.contains("data: two"));
    events.tell();
    let rest = tokio::time::timeout(Duration::from_secs(10), async {
        while !seen.contains("data: two") {
            let mut part = [0; 256];
            let count = stream.read(&mut part).await.unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&part[..count]));
        }
    });
    rest.await.unwrap();
    drop(stream);
    edge.stop().await;
}

#[tokio::test]
async fn an_upload_streams_through_before_it_is_complete() {
    let sink = Server::start(Answer::CountBody).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&sink])])
        .await;
    let size: usize = 96 * 1024 * 1024;
    let part = vec![b'x'; 1024 * 1024];
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    let head = format!(
        "POST /up HTTP/1.1\r\nHost: shop-ann.localhost\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for number in 0..size / part.len() {
        stream.write_all(&part).await.unwrap();
        if number == 47 {
            // The other half is not sent before the first has (nearly) arrived over there.
            sink.bytes_reach(40 * 1024 * 1024).await;
        }
    }
    let text = read_to_end(&mut stream).await;
    assert!(text.ends_with(&size.to_string()), "{text}");
    edge.stop().await;
}

#[tokio::test]
async fn tunnels_pass_through_and_count_as_in_flight() {
    let sockets = Server::start(Answer::Tunnel).await;
    let other = Server::start(Answer::Text("other")).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&sockets])])
        .await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
        .await
        .unwrap();
    let head = read_head(&mut stream).await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("upgrade: websocket"), "{head}");
    for word in ["ping!", "pong!"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, word.as_bytes());
    }
    edge.feed(2, vec![shop(RouteState::Serving, &[&other])])
        .await;
    assert_eq!(edge.applied().draining[0].in_flight, 1);
    drop(stream);
    edge.until(|applied| applied.draining.is_empty()).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_request_in_flight_survives_the_end_of_the_edge() {
    let slow = Server::start(Answer::WhenTold("late")).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&slow])])
        .await;
    let address = edge.address;
    let get = "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\n\r\n";
    let waiting = tokio::spawn(async move { exchange(address, get).await });
    slow.requests_reach(1).await;
    let stopping = tokio::spawn(edge.stop());
    // Nobody new gets in.
    support::wait("the listener closes", || async {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    slow.tell();
    assert!(waiting.await.unwrap().ends_with("late"));
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_socket_is_handed_to_another_edge_without_losing_a_connection() {
    let web = Server::start(Answer::Text("hello")).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let start = |end: tokio::sync::oneshot::Receiver<conpaas_edge::Ending>| {
        let config = conpaas_edge::EdgeConfig::new(folder.path().to_owned());
        let own = listener.try_clone().unwrap();
        let dial = std::sync::Arc::new(support::Loopback);
        let given = conpaas_edge::Listeners {
            http: Some(own),
            https: None,
        };
        let edge = conpaas_edge::Edge::with_listeners(config, dial, given).unwrap();
        tokio::spawn(edge.serve_until(async move { end.await.unwrap() }))
    };
    let routes = conpaas_model::edge::Routes {
        outlets: Vec::new(),
        generation: conpaas_model::ids::Generation(1),
        routes: vec![shop(RouteState::Serving, &[&web])],
    };
    let text = serde_json::to_vec(&routes).unwrap();
    std::fs::write(folder.path().join(conpaas_model::edge::ROUTES_FILE), text).unwrap();
    let (end_old, ended) = tokio::sync::oneshot::channel();
    let old = start(ended);
    let get = b"GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\n\r\n";
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(get).await.unwrap();
    assert!(read_head(&mut kept).await.starts_with("HTTP/1.1 200"));
    let mut body = [0; 5];
    kept.read_exact(&mut body).await.unwrap();

    let _ = end_old.send(conpaas_edge::Ending::HandedOver);
    // Nobody takes it yet: it waits in the socket's queue instead of being refused.
    let early = tokio::spawn(exchange(
        address,
        "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n",
    ));
    tokio::task::yield_now().await;
    let (end_new, ended) = tokio::sync::oneshot::channel();
    let new = start(ended);
    assert!(early.await.unwrap().starts_with("HTTP/1.1 200"));
    // The connection that was open is answered once more, and told to come back anew.
    kept.write_all(get).await.unwrap();
    let text = read_to_end(&mut kept).await.to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 200"), "{text}");
    assert!(
        text.contains("connection: close") && text.ends_with("hello"),
        "{text}"
    );
    old.await.unwrap();
    let _ = end_new.send(conpaas_edge::Ending::Stop);
    new.await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_with_the_cure() {
    let edge = TestEdge::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = conpaas_edge::EdgeConfig::new(folder.path().to_owned());
    config.bind = edge.address;
    let Err(error) = conpaas_edge::Edge::bind(config, std::sync::Arc::new(support::Loopback))
    else {
        panic!("two edges on one port");
    };
    let text = error.to_string();
    assert!(
        text.contains("another program has this port") && text.contains("ss -ltnp"),
        "{text}"
    );
    edge.stop().await;
}

#[tokio::test]
async fn heads_that_are_too_big_or_ambiguous_are_refused() {
    let web = Server::start(Answer::Echo).await;
    let edge = TestEdge::start().await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&web])]).await;
    let big = format!(
        "GET / HTTP/1.1\r\nHost: shop-ann.localhost\r\nX-Big: {}\r\nConnection: close\r\n\r\n",
        "x".repeat(400 * 1024)
    );
    let text = exchange(edge.address, &big).await;
    assert!(
        text.is_empty() || text.starts_with("HTTP/1.1 431"),
        "{text}"
    );
    // Two readings of where the body ends: with both, ours is the chunked one, and the length
    // is not passed on.
    let text = exchange(
        edge.address,
        "POST / HTTP/1.1\r\nHost: shop-ann.localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    )
    .await;
    assert!(
        text.starts_with("HTTP/1.1 400")
            || (text.contains("ok") && !text.to_ascii_lowercase().contains("content-length: 3")),
        "{text}"
    );
    let two = "POST / HTTP/1.1\r\nHost: shop-ann.localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd";
    assert!(
        exchange(edge.address, two)
            .await
            .starts_with("HTTP/1.1 400")
    );
    edge.stop().await;
}
