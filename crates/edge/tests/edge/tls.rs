//! HTTPS at the edge: who answers, what upstreams are told, and a certificate that is replaced.

use crate::support::{Answer, Server, TestEdge, exchange, shop, wait};
use conpaas_edge::{EdgeConfig, EdgeError, Https};
use conpaas_model::edge::RouteState;
use conpaas_pki::{ApiCertificate, pinned_client_config};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A certificate in a folder of its own, and the settings that name it.
fn certificate(folder: &Path, only: bool) -> (ApiCertificate, Https) {
    let lifetime = Duration::from_secs(3600);
    let names = ["*.localhost".to_owned()];
    let made = ApiCertificate::load_or_create(folder, &names, lifetime, SystemTime::now()).unwrap();
    let https = Https {
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        certificate: folder.join("api.crt"),
        key: folder.join("api.key"),
        only,
    };
    (made, https)
}

async fn connect(
    address: SocketAddr,
    fingerprint: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connector = TlsConnector::from(pinned_client_config(fingerprint).unwrap());
    let stream = TcpStream::connect(address).await?;
    let name = "shop-ann.localhost".try_into().unwrap();
    connector.connect(name, stream).await
}

#[tokio::test]
async fn people_come_over_tls_and_applications_are_told() {
    let web = Server::start(Answer::Echo).await;
    let keys = tempfile::tempdir().unwrap();
    let (made, https) = certificate(keys.path(), false);
    let edge = TestEdge::start_with(tempfile::tempdir().unwrap(), Some(https)).await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&web])]).await;
    let address = edge.https.unwrap();
    let request = "GET /a HTTP/1.1\r\nHost: shop-ann.localhost\r\nX-Forwarded-Proto: ftp\r\nConnection: close\r\n\r\n";
    let mut stream = connect(address, made.fingerprint()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains("x-forwarded-proto: https"), "{text}");
    let plain = exchange(edge.address, request).await;
    assert!(plain.contains("x-forwarded-proto: http\r\n"), "{plain}");

    // Nobody is kept waiting by one who speaks no TLS there, or nothing at all.
    let silent = TcpStream::connect(address).await.unwrap();
    let wrong = exchange(address, request).await;
    assert!(!wrong.starts_with("HTTP/1.1 200"), "{wrong}");
    assert!(connect(address, made.fingerprint()).await.is_ok());
    drop(silent);
    edge.stop().await;
}

#[tokio::test]
async fn a_certificate_is_replaced_while_the_edge_runs() {
    let keys = tempfile::tempdir().unwrap();
    let (made, https) = certificate(keys.path(), false);
    let edge = TestEdge::start_with(tempfile::tempdir().unwrap(), Some(https)).await;
    let address = edge.https.unwrap();
    connect(address, made.fingerprint()).await.unwrap();
    // A key without its certificate is no reason to stop serving.
    std::fs::remove_file(keys.path().join("api.crt")).unwrap();
    std::fs::remove_file(keys.path().join("api.key")).unwrap();
    connect(address, made.fingerprint()).await.unwrap();
    let (other, _) = certificate(keys.path(), false);
    assert_ne!(made.fingerprint(), other.fingerprint());
    wait("the new certificate in force", || async {
        connect(address, other.fingerprint()).await.is_ok()
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn who_comes_without_tls_is_sent_on_where_only_that_is_served() {
    let web = Server::start(Answer::Text("hello")).await;
    let keys = tempfile::tempdir().unwrap();
    let (_, https) = certificate(keys.path(), true);
    let edge = TestEdge::start_with(tempfile::tempdir().unwrap(), Some(https)).await;
    edge.feed(1, vec![shop(RouteState::Serving, &[&web])]).await;
    let text = exchange(
        edge.address,
        "GET /a?b=c HTTP/1.1\r\nHost: shop-ann.localhost\r\nConnection: close\r\n\r\n",
    )
    .await;
    let port = edge.https.unwrap().port();
    assert!(text.starts_with("HTTP/1.1 308"), "{text}");
    let location = format!("location: https://shop-ann.localhost:{port}/a?b=c\r\n");
    assert!(text.contains(&location), "{text}");
    assert_eq!(web.requests(), 0);
    edge.stop().await;
}

#[tokio::test]
async fn a_key_of_another_certificate_is_refused_in_words() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, mut https) = certificate(one.path(), false);
    https.key = certificate(two.path(), false).1.key;
    let mut config = EdgeConfig::new(one.path().join("edge"));
    config.bind = SocketAddr::from(([127, 0, 0, 1], 0));
    config.https = Some(https);
    let refused = conpaas_edge::Edge::bind(config, Arc::new(crate::support::Loopback));
    let Err(error) = refused else {
        panic!("a key of another certificate was taken");
    };
    assert!(matches!(error, EdgeError::Certificate { .. }), "{error}");
}
