//! People at other computers: who answers is shown and pinned, two installations stand side by
//! side, and the front door speaks TLS.

use conpaas_tests::{World, wait_for};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs the client as somebody else would: nothing of the world's own configuration.
fn client(world: &World, home: &Path, arguments: &[&str], typed: &str) -> (i32, String, String) {
    let mut command: Command = world.command(arguments);
    let mut child = command
        .env("XDG_CONFIG_HOME", home)
        .env("CONPAAS_STATE", home.join("none"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that asks for nothing has closed it already.
    let _ = stdin.write_all(typed.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn two_installations_are_used_side_by_side_from_elsewhere() {
    let (one, two) = (World::start(), World::start());
    let home = tempfile::tempdir().unwrap();
    let mut fingerprints = Vec::new();
    for (name, world) in [("one", &one), ("two", &two)] {
        let url = format!("https://127.0.0.1:{}", world.api_port);
        let password = world.state().join("director/admin-password");
        let password = std::fs::read_to_string(password).unwrap();
        let fingerprint = world.json(["nutshell", "status"])["fingerprint"]
            .as_str()
            .unwrap()
            .to_owned();
        // Whoever answers there is shown, and nothing secret is sent before somebody agreed.
        let login = [
            "login",
            &url,
            "--user",
            "admin",
            "--name",
            name,
            "--password-file",
            "-",
        ];
        let (code, _, said) = client(world, home.path(), &login, &password);
        assert_ne!(code, 0, "nobody agreed to the fingerprint: {said}");
        assert!(said.contains(&fingerprint), "{said}");
        let wrong = "0".repeat(64);
        let pinned = [&login[..], &["--fingerprint", &wrong]].concat();
        let (code, _, said) = client(world, home.path(), &pinned, &password);
        assert_ne!(code, 0, "another one answers: {said}");
        let pinned = [&login[..], &["--fingerprint", &fingerprint]].concat();
        let (code, _, said) = client(world, home.path(), &pinned, &password);
        assert_eq!(code, 0, "{said}");
        fingerprints.push(fingerprint);
    }
    assert_ne!(fingerprints[0], fingerprints[1]);
    let app = |context: &str, arguments: &[&str]| {
        let arguments = [&["--context", context], arguments].concat();
        let (code, out, error) = client(&one, home.path(), &arguments, "");
        assert_eq!(code, 0, "{arguments:?}: {error}");
        out
    };
    app("one", &["app", "create", "first"]);
    app("two", &["app", "create", "second"]);
    assert!(!app("one", &["app", "list", "--json"]).contains("second"));
    assert!(!app("two", &["app", "list", "--json"]).contains("first"));
    // The one that was logged in to last is the chosen one, until another is.
    let current = |arguments: &[&str]| client(&one, home.path(), arguments, "").1;
    assert!(current(&["app", "list", "--json"]).contains("second"));
    app("one", &["context", "use", "one"]);
    assert!(current(&["app", "list", "--json"]).contains("first"));
}

/// What one gets who comes without TLS; redirects are not followed.
fn plain(world: &World) -> String {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", world.edge_port)).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: shop-admin.localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_front_door_speaks_tls() {
    let world = World::prepare();
    let https = conpaas_tests::free_port();
    let (api, edge, https) = (
        world.api_port.to_string(),
        world.edge_port.to_string(),
        https.to_string(),
    );
    let up = [
        "nutshell",
        "up",
        "--api-port",
        &api,
        "--edge-port",
        &edge,
        "--https-port",
        &https,
        "--https-only",
    ];
    world.ok(up);
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "helloworld", "--name", "web"]);
    world.ok(["app", "start", "shop"]);
    let shown = world.json(["app", "show", "shop"]);
    let url = format!("https://shop-admin.localhost:{https}/");
    assert_eq!(shown["urls"][0], url.as_str());
    assert!(plain(&world).starts_with("HTTP/1.1 308"));
    let text = wait_for("an answer over TLS", Duration::from_secs(20), || {
        let output = Command::new("curl")
            .args(["-sk", "--max-time", "5", &url])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("Hello, world") {
            Ok(text)
        } else {
            Err(output)
        }
    });
    assert!(text.contains("This is web-"), "{text}");
    // A restart of the edge by the same keeper leaves both sockets open.
    let edge = world.daemon("edge");
    conpaas_tests::signal(edge, 9);
    assert!(plain(&world).starts_with("HTTP/1.1 308"));
    let again = Command::new("curl")
        .args(["-sk", "--max-time", "20", &url])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&again.stdout).contains("Hello, world"));
}
