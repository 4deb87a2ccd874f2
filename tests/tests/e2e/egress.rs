//! Getting out: what an application with a way out reaches, as its own machines try it, and what
//! nobody reaches. The world outside is a network namespace of this test's own.

use conpaas_tests::{World, wait_for};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::process::Command;
use std::time::Duration;

/// This computer's end of the cable to the world outside, and the one host there; addresses for
/// documentation (RFC 5737), which no real network has.
const HERE: &str = "198.51.100.1";
const OUTSIDE: &str = "198.51.100.2";
/// A private address that the same host has.
const PRIVATE: &str = "192.168.213.2";

/// Asks whom it is told to, and shows the answer's body or why there is none.
const CALLER: &str = r#"<?php
[$host, $port] = explode(':', $_GET['to'] . ':80');
$call = @stream_socket_client("tcp://$host:$port", $code, $why, 20) or die("no: $why");
fwrite($call, "GET / HTTP/1.0\r\n\r\n");
stream_set_timeout($call, 20);
$answer = @stream_get_contents($call);
if (stream_get_meta_data($call)['timed_out']) die('no: timed out');
echo strstr((string) $answer, 'outside') ?: 'no: broken off';
"#;

/// A network namespace with a host in it that answers for names and serves two ports.
struct Outside {
    namespace: String,
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

impl Outside {
    fn make() -> Self {
        let own = Self {
            namespace: format!("cps-out-{}", std::process::id()),
        };
        let here = format!("cps{}", std::process::id());
        let inside = |arguments: &[&str]| ip(&[&["-n", &own.namespace], arguments].concat());
        ip(&["netns", "add", &own.namespace]);
        ip(&[
            "link",
            "add",
            &here,
            "type",
            "veth",
            "peer",
            "name",
            "out0",
            "netns",
            &own.namespace,
        ]);
        ip(&["addr", "add", &format!("{HERE}/30"), "dev", &here]);
        ip(&["link", "set", &here, "up"]);
        ip(&["route", "add", &format!("{PRIVATE}/32"), "via", OUTSIDE]);
        inside(&["link", "set", "lo", "up"]);
        inside(&["addr", "add", &format!("{OUTSIDE}/30"), "dev", "out0"]);
        inside(&["addr", "add", &format!("{PRIVATE}/32"), "dev", "lo"]);
        inside(&["link", "set", "out0", "up"]);
        own
    }

    /// Runs in the namespace, in a thread of its own, for as long as the test runs.
    fn run(&self, work: impl FnOnce() + Send + 'static) {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::os::fd::AsRawFd;
            // SAFETY: no pointers; only this thread changes its network.
            let joined = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(joined, 0, "{}", std::io::Error::last_os_error());
            ready.send(()).unwrap();
            work();
        });
        wait.recv().unwrap();
    }

    /// Serves a port: every request is answered with who asked and what was posted.
    fn serve(&self, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            for stream in listener.incoming() {
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                        head.push(byte[0]);
                    }
                    let body = format!("outside, asked by {}", stream.peer_addr().unwrap().ip());
                    let _ = write!(
                        stream,
                        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                });
            }
        });
    }

    /// Answers for `outside.example` with the host's address, and knows no other name.
    fn answer_names(&self) {
        self.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 53)).unwrap();
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let question = &buffer[..length];
                let name = b"\x07outside\x07example\x00";
                let (known, is_a) = match question.get(12..12 + name.len()) {
                    Some(asked) => (
                        asked == name,
                        question[12 + name.len()..].starts_with(&[0, 1]),
                    ),
                    None => (false, false),
                };
                let end = question[12..].iter().position(|byte| *byte == 0).unwrap() + 17;
                let mut answer = question[..end].to_vec();
                answer[2] = 0x81;
                answer[3] = if known { 0x80 } else { 0x83 };
                answer[6..12].copy_from_slice(&[0, u8::from(known && is_a), 0, 0, 0, 0]);
                if known && is_a {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 2]);
                }
                let _ = socket.send_to(&answer, from);
            }
        });
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The cable goes with its other end.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.namespace])
            .status();
    }
}

#[test]
fn an_application_gets_out_as_its_policy_says_and_never_into_the_house() {
    let outside = Outside::make();
    outside.serve(80);
    outside.serve(8081);
    outside.answer_names();

    let mut world = World::prepare();
    std::fs::DirBuilder::new()
        .mode(0o711)
        .create(world.state())
        .unwrap();
    let settings = format!(
        "egress = \"director\"\negress_ports = [80, 443, {}]\nname_servers = [\"{OUTSIDE}\"]\n",
        world.api_port
    );
    std::fs::write(world.state().join("nutshell.toml"), settings).unwrap();
    let up = world.up();
    assert_eq!(up.code, 0, "{up:#?}");
    world.learn_ports();
    // A server of this computer, on an address that it has to the world.
    let house = TcpListener::bind((HERE, 443)).unwrap();
    std::thread::spawn(move || house.incoming().for_each(drop));

    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "web"]);
    let archive = world.path().join("caller.tar.gz");
    conpaas_tests::archive::tar_gz(&archive, &[("index.php", CALLER)]);
    world.ok([
        "code",
        "upload",
        "shop/web",
        archive.to_str().unwrap(),
        "--activate",
    ]);
    world.ok(["app", "start", "shop"]);
    let host = "shop-admin.localhost";
    world.wait_status(host, "/?to=127.0.0.1:1", 200);
    let ask = |to: &str| world.get(host, &format!("/?to={to}")).unwrap().1;
    let gets_out = |to: &str| {
        let expected = format!("outside, asked by {HERE}");
        wait_for(to, Duration::from_secs(30), || {
            let said = ask(to);
            if said == expected { Ok(()) } else { Err(said) }
        });
    };
    let refused = |to: &str| {
        let said = ask(to);
        assert!(
            said.starts_with("no: ") && !said.contains("timed out"),
            "{to}: {said}"
        );
    };

    // By address and by name; a name that nobody has is one at once.
    gets_out(OUTSIDE);
    gets_out("outside.example");
    refused("nobody.example");
    // Not by other ports, not into the house: its private networks, this computer, whose API is
    // there for people alone, clouds' credentials, loopback, other applications.
    refused(&format!("{OUTSIDE}:8081"));
    refused(PRIVATE);
    refused(&format!("{HERE}:443"));
    refused(&format!("127.0.0.1:{}", world.api_port));
    refused(&format!("{HERE}:{}", world.api_port));
    refused("169.254.169.254");
    refused("100.64.0.1");
    // It is written down who went where.
    let log = world.state().join("edge/egress.log");
    wait_for("the log of ways out", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let said = |what: &str| {
            text.lines()
                .any(|line| line.contains("admin/shop") && line.contains(what))
        };
        let all = said(&format!("{OUTSIDE}:80 ")) && said("refused: a private network");
        if all && said("refused: this computer") {
            Ok(())
        } else {
            Err(text)
        }
    });

    // The Director is not needed for it.
    world.stop_director();
    gets_out("outside.example");
    world.start_director();

    // What it may no longer do ends at once, and the machines stay as they are.
    let before = world.machines();
    assert_eq!(
        world.ok(["app", "set", "shop", "egress=none"]).trim(),
        "egress=none"
    );
    wait_for("no way out", Duration::from_secs(30), || {
        let said = (ask(OUTSIDE), ask("outside.example"));
        if said.0.contains("refused") && said.1.starts_with("no: ") {
            Ok(())
        } else {
            Err(said)
        }
    });
    world.ok(["app", "set", "shop", "egress=director"]);
    gets_out("outside.example");
    assert_eq!(world.machines(), before);

    let wrong = world.run(["app", "set", "shop", "egress=all"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
}
