//! Getting out: what an application with a way out reaches, as its own machines try it, and what
//! nobody reaches. The world outside is a network namespace of this test's own.

use conpaas_tests::{World, wait_for};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// This computer's end of the cable to the world outside, and the one host there; addresses for
/// documentation (RFC 5737), which no real network has.
const HERE: &str = "198.51.100.1";
const OUTSIDE: &str = "198.51.100.2";
/// A private address that the same host has.
const PRIVATE: &str = "192.168.213.2";

/// What a long connection hears.
const TICKS: usize = 100;

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

/// The world outside: a network namespace that this thread's one has a cable to, with a host in it
/// that answers for names and serves ports. Both go when nobody is in them any more.
struct Outside {
    work: Sender<Box<dyn FnOnce() + Send>>,
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// This thread, and whatever it starts, is in a network of its own from now on.
fn own_network() {
    // SAFETY: no pointers; only this thread changes its network.
    let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(alone, 0, "{}", std::io::Error::last_os_error());
    ip(&["link", "set", "lo", "up"]);
}

impl Outside {
    fn make() -> Self {
        let (work, works) = channel::<Box<dyn FnOnce() + Send>>();
        let (told, thread) = channel();
        std::thread::spawn(move || {
            own_network();
            // SAFETY: no arguments, never fails.
            told.send(unsafe { libc::gettid() }).unwrap();
            works.iter().for_each(|work| work());
        });
        let thread = thread.recv().unwrap().to_string();
        let link = [
            "link", "add", "here0", "type", "veth", "peer", "name", "out0",
        ];
        ip(&[&link[..], &["netns", &thread]].concat());
        ip(&["addr", "add", &format!("{HERE}/30"), "dev", "here0"]);
        ip(&["link", "set", "here0", "up"]);
        ip(&["route", "add", &format!("{PRIVATE}/32"), "via", OUTSIDE]);
        let own = Self { work };
        own.run(|| {
            ip(&["addr", "add", &format!("{OUTSIDE}/30"), "dev", "out0"]);
            ip(&["addr", "add", &format!("{PRIVATE}/32"), "dev", "lo"]);
            ip(&["link", "set", "out0", "up"]);
        });
        own
    }

    /// Runs outside, to its end; threads that it starts are outside, too.
    fn run(&self, work: impl FnOnce() + Send + 'static) {
        let (done, wait) = channel();
        let work = move || {
            work();
            done.send(()).unwrap();
        };
        self.work.send(Box::new(work)).unwrap();
        wait.recv().unwrap();
    }

    /// Serves a port: every request is answered with who asked.
    fn serve(&self, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
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
                }
            });
        });
    }

    /// Says something to whoever comes, [`TICKS`] times; tells when somebody came.
    fn tick(&self, port: u16) -> Arc<AtomicBool> {
        let begun = Arc::new(AtomicBool::new(false));
        let ticking = begun.clone();
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                for _ in 0..TICKS {
                    ticking.store(true, Ordering::Relaxed);
                    if stream.write_all(b"tick\n").is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        });
        begun
    }

    /// Answers for `outside.example` with the host's address, and knows no other name.
    fn answer_names(&self) {
        self.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 53)).unwrap();
            std::thread::spawn(move || answer_names(&socket));
        });
    }
}

fn answer_names(socket: &UdpSocket) {
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
}

#[test]
fn an_application_gets_out_as_its_policy_says_and_never_into_the_house() {
    // In a network of its own, so that this computer's stays as it is.
    std::thread::spawn(gets_out_and_not_in).join().unwrap();
}

fn gets_out_and_not_in() {
    own_network();
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

    // Nothing that goes out is lost while another edge takes over; a connection that is open goes on
    // over that, and over another name of its application.
    let machine = world.first_process("shop/web/1");
    let (edge, newer) = (world.daemon("edge"), world.newer_program());
    let (over, ticking) = (AtomicBool::new(false), outside.tick(443));
    let (sent, lost) = std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            let command = ["timeout", "60", "/bin/busybox", "nc", OUTSIDE, "443"];
            world.inside(machine, &command).1
        });
        wait_for("the long connection", Duration::from_secs(20), || {
            if ticking.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("not open")
            }
        });
        world.ok(["app", "rename", "shop", "store"]);
        world.ok(["app", "rename", "store", "shop"]);
        world.wait_status(host, "/?to=127.0.0.1:1", 200);
        let calls = scope.spawn(|| {
            let (mut sent, mut lost) = (0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                sent += 1;
                match world.get(host, &format!("/?to={OUTSIDE}")) {
                    Ok((200, said)) if said == format!("outside, asked by {HERE}") => {}
                    other => lost.push(other),
                }
            }
            (sent, lost)
        });
        let up = world.up_with(&newer);
        assert_eq!(up.code, 0, "{up:?}\n{}", world.logs());
        wait_for("the edge of before to end", Duration::from_secs(60), || {
            if Path::new(&format!("/proc/{edge}")).exists() {
                Err(edge)
            } else {
                Ok(())
            }
        });
        over.store(true, Ordering::Relaxed);
        let ticks = long.join().unwrap();
        assert_eq!(ticks.lines().count(), TICKS, "{ticks}");
        calls.join().unwrap()
    });
    println!("{sent} calls out while another edge took over");
    assert!(lost.is_empty() && sent > 50, "{sent} {lost:?}");

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
