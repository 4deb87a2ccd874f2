//! Real load balancer, web servers and PHP backends on the loopback network, under load.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end by a panic"
)]

mod common;

use common::{Driven, Load, World, get, request};
use conpaas_core::service_type::{Decision, ServiceType};
use conpaas_model::environment::Environment;
use conpaas_model::ids::{NodeNumber, ReleaseNumber, SecretVersion};
use conpaas_model::instance::default_instance_types;
use conpaas_model::level::{Duty, Provider, ReleaseLevel, RoleLevel};
use conpaas_model::spec::{CodeRef, Release, Settings};
use conpaas_model::status::{InUse, Phase, RoleStatus};
use conpaas_services::php::Php;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const R1: ReleaseNumber = ReleaseNumber(1);
const R2: ReleaseNumber = ReleaseNumber(2);

struct Site<'a> {
    world: &'a World,
    settings: Settings,
    codes: BTreeMap<ReleaseNumber, Option<CodeRef>>,
    environment: Environment,
}

impl Site<'_> {
    fn decision<T>(
        &self,
        role: &str,
        node: u8,
        release: ReleaseNumber,
        ask: impl FnOnce(&Decision<'_>) -> T,
    ) -> T {
        let release = Release {
            number: release,
            code: self.codes[&release].clone(),
            settings: self.settings.clone(),
            environment: self.environment.clone(),
        };
        let instance_type = &default_instance_types()[2];
        ask(&Decision {
            role,
            node: NodeNumber(node.into()),
            node_name: "n",
            instance_type,
            memory_mib: 512,
            release: &release,
        })
    }
    fn config(&self, role: &str, node: u8, release: ReleaseNumber) -> Value {
        let mut config = self.decision(role, node, release, |decision| Php.decide(decision));
        config["base"] = json!(self.world.dir.path().join("srv"));
        config
    }
    fn release(&self, role: &str, node: u8, release: ReleaseNumber) -> ReleaseLevel {
        let port = if role == "proxy" {
            0
        } else {
            Php.role(role).unwrap().port_of(Some(release))
        };
        ReleaseLevel {
            duty: Duty::Serve,
            port,
            code: self.codes[&release].clone(),
            config: self.config(role, node, release),
            environment: if Php.takes_environment().contains(&role) {
                self.environment.clone()
            } else {
                Environment::default()
            },
        }
    }
    fn level(&self, role: &str, node: u8, releases: &[ReleaseNumber]) -> RoleLevel {
        RoleLevel {
            duty: Duty::Serve,
            config: if role == "proxy" {
                self.config(role, node, releases[0])
            } else {
                Value::Null
            },
            releases: releases
                .iter()
                .map(|release| (*release, self.release(role, node, *release)))
                .collect(),
            serve: None,
            preview: None,
            providers: vec![],
            leads: BTreeMap::new(),
        }
    }
    fn provider(&self, role: &str, node: u8, release: ReleaseNumber) -> Provider {
        Provider {
            role: role.to_owned(),
            node: NodeNumber(node.into()),
            release: Some(release),
            address: self.world.address(node),
            port: Php.role(role).unwrap().port_of(Some(release)),
            capacity: self.decision(role, node, release, |decision| Php.capacity(decision)),
        }
    }
}

fn ready(release: ReleaseNumber) -> impl Fn(&RoleStatus) -> bool {
    move |status| status.releases.get(&release).is_some_and(Phase::is_ready)
}

fn serves(release: ReleaseNumber) -> impl Fn(&RoleStatus) -> bool {
    move |status| status.serving == Some(release) && status.own == Some(Phase::Ready)
}

fn uses(status: &RoleStatus, node: u8, release: ReleaseNumber) -> bool {
    status.using.iter().any(|used| {
        used.instance.node == NodeNumber(node.into()) && used.instance.release == Some(release)
    })
}

fn version(body: &str) -> Option<u64> {
    body.split_once("version=")?
        .1
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

const PAGE: &str = r#"<?php
header('Content-Type: text/plain');
if (isset($_GET['slow'])) usleep(300000);
require __DIR__ . '/lib.php';
echo "version=$version root={$_SERVER['DOCUMENT_ROOT']} script={$_SERVER['SCRIPT_NAME']} info=", $_SERVER['PATH_INFO'] ?? '', " uri={$_SERVER['REQUEST_URI']}",
  " from={$_SERVER['REMOTE_ADDR']} https=", $_SERVER['HTTPS'] ?? '', " name={$_SERVER['SERVER_NAME']} pid=", getmypid(),
  " writes=", @file_put_contents(__DIR__ . '/x', 'x') === false ? 'no' : 'yes',
  " scratch=", @file_put_contents(getenv('CONPAAS_SCRATCH') . '/x', 'x') === false ? 'no' : 'yes',
  " outside=", @file_get_contents('/etc/passwd') === false ? 'no' : 'yes', "\n";
"#;

fn code(world: &World, number: u64) -> CodeRef {
    let lib = format!("<?php $version = {number};");
    let css = format!("/* version={number} */");
    let files = [
        ("index.php", PAGE),
        ("lib.php", &lib),
        ("style.css", &css),
        ("a b.txt", "spaced"),
        ("docs/index.html", "docs"),
        (".env", "SECRET"),
    ];
    world.code(&format!("v{number}"), &files)
}

/// Waits until a version is shown to those at the preview address.
async fn previewed(at: std::net::SocketAddrV4, path: &str, number: u64) {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = request(at, "GET", path, "conpaas-preview: 1\r\n", "")
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        if version(&answer.body) == Some(number) {
            return;
        }
        assert!(Instant::now() < limit, "{path}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn gone(driven: &Driven) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !driven.is_stopped() {
        assert!(
            Instant::now() < limit,
            "{} does not stop",
            driven.node.node_name
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(driven.children.pids().is_empty());
}

/// Whether a pool says anything to a request from an address.
async fn pool_answers(from: &str, to: std::net::SocketAddrV4) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(to.into()).await.unwrap();
    // A request without parameters and body.
    let mut records = vec![1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    records.extend([1, 4, 0, 1, 0, 0, 0, 0, 1, 5, 0, 1, 0, 0, 0, 0]);
    let _ = stream.write_all(&records).await;
    let mut answer = [0; 8];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut answer));
    matches!(read.await.unwrap(), Ok(length) if length > 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lives_through_every_change_without_a_failed_request() {
    let world = World::new(1);
    let mut site = Site {
        world: &world,
        settings: Settings::new(),
        codes: BTreeMap::from([(R1, Some(code(&world, 1)))]),
        environment: Environment::default(),
    };
    let proxy = world.drive(&Php, 1, "proxy");
    let web = world.drive(&Php, 2, "web");
    let backends = [3, 4].map(|node| world.drive(&Php, node, "backend"));
    let at = world.at(1, 8080);

    // Start.
    web.set(site.level("web", 2, &[R1]));
    for (node, backend) in [3, 4].into_iter().zip(&backends) {
        backend.set(site.level("backend", node, &[R1]));
    }
    web.until("web ready", ready(R1)).await;
    for backend in &backends {
        backend.until("backend ready", ready(R1)).await;
    }
    let mut level = site.level("proxy", 1, &[R1]);
    level.providers = vec![
        site.provider("backend", 3, R1),
        site.provider("backend", 4, R1),
        site.provider("web", 2, R1),
    ];
    level.serve = Some(R1);
    proxy.set(level);
    proxy.until("proxy serves", serves(R1)).await;

    // Who may speak to a pool, at either of its ports.
    for (from, answers) in [("127.0.0.1", true), ("127.9.9.9", false)] {
        for port in [9001, 9101] {
            let to = world.at(3, port);
            assert_eq!(pool_answers(from, to).await, answers, "{from} to {to}");
        }
    }

    // What answers which path.
    let root = world.dir.path().join("srv/r1").display().to_string();
    let page = request(
        at,
        "GET",
        "/index.php/a/b?q=1",
        "X-Forwarded-For: 1.2.3.4, 203.0.113.7\r\nX-Forwarded-Proto: https\r\n",
        "",
    )
    .await
    .unwrap();
    assert_eq!(page.status, 200, "{page:?}");
    for part in [
        &*format!("root={root} "),
        "script=/index.php ",
        "info=/a/b ",
        "uri=/index.php/a/b?q=1 ",
        "from=203.0.113.7 ",
        "https=on ",
        "name=shop.example ",
        "writes=no",
        "scratch=yes",
        "outside=no",
    ] {
        assert!(page.body.contains(part), "{part} is not in {}", page.body);
    }
    assert!(page.head.contains("conpaas-release=1"), "{}", page.head);
    for (path, status, part) in [
        ("/", 200, "version=1"),
        ("/style.css", 200, "/* version=1 */"),
        ("/a%20b.txt", 200, "spaced"),
        ("/docs/", 200, "docs"),
        ("/docs", 301, ""),
        ("/no/such/page", 200, "uri=/no/such/page "),
        ("/no/such.php", 200, "script=/index.php info= "),
        ("/.env", 404, ""),
        ("/docs/../.env", 400, ""),
        ("/%2e%2e/%2e%2e/etc/passwd", 400, ""),
        ("/.conpaas/status", 404, ""),
    ] {
        let answer = get(at, path).await.unwrap();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(part), "{path}: {answer:?}");
    }
    assert_eq!(
        get(world.at(2, 8201), "/lib.php").await.unwrap().status,
        404,
        "sources are never shown"
    );

    // A new release beside the old, the switch, and the end of the old one.
    let load = Load::start(at, &["/", "/style.css", "/?slow=1", "/index.php"], version);
    site.codes.insert(R2, Some(code(&world, 2)));
    web.set(site.level("web", 2, &[R1, R2]));
    for (node, backend) in [3, 4].into_iter().zip(&backends) {
        backend.set(site.level("backend", node, &[R1, R2]));
    }
    web.until("web ready", ready(R2)).await;
    for backend in &backends {
        backend.until("backend ready", ready(R2)).await;
    }
    proxy.change(|level| {
        level.releases.insert(R2, site.release("proxy", 1, R2));
        level.providers.extend([
            site.provider("backend", 3, R2),
            site.provider("backend", 4, R2),
            site.provider("web", 2, R2),
        ]);
    });
    proxy
        .until("both releases", |status| {
            uses(status, 3, R2)
                && uses(status, 4, R2)
                && uses(status, 2, R2)
                && status.serving == Some(R1)
        })
        .await;
    load.more(200).await;
    // One that is held is shown to those whom the edge says to be at the preview address.
    for (held, number) in [(Some(R2), 2), (None, 1), (Some(R2), 2)] {
        proxy.change(|level| level.preview = held);
        for path in ["/", "/style.css"] {
            previewed(at, path, number).await;
            let others = get(at, path).await.unwrap();
            assert_eq!(version(&others.body), Some(1), "{path}: {others:?}");
        }
    }
    proxy.change(|level| level.preview = None);
    // A crowd waits for the old release's last places: it keeps them until it was served.
    proxy.change(|level| {
        for provider in &mut level.providers {
            if provider.role == "backend" && provider.release == Some(R1) {
                provider.capacity = 1;
            }
        }
    });
    let crowd = Load::start(at, &["/?slow=1"], version);
    crowd.more(8).await;
    proxy.change(|level| level.serve = Some(R2));
    proxy.until("the switch", serves(R2)).await;
    proxy.change(|level| {
        level
            .providers
            .retain(|provider| provider.release == Some(R2));
        level.releases.remove(&R1);
    });
    proxy
        .until("the old let go", |status| {
            status
                .using
                .iter()
                .all(|used| used.instance.release == Some(R2))
        })
        .await;
    crowd.finish("a crowd at the switch").await;
    load.more(200).await;
    for driven in backends.iter().chain([&web]) {
        driven.change(|level| level.releases.get_mut(&R1).unwrap().duty = Duty::Drain);
        driven
            .until("drained", |status| {
                status.releases[&R1] == Phase::Drained && status.releases[&R2] == Phase::Ready
            })
            .await;
        driven.change(|level| drop(level.releases.remove(&R1)));
    }
    for driven in backends.iter().chain([&web]) {
        driven
            .until("the old gone", |status| !status.releases.contains_key(&R1))
            .await;
        let limit = Instant::now() + Duration::from_secs(40);
        while driven
            .children
            .pids()
            .keys()
            .any(|name| name.ends_with("/r1"))
        {
            assert!(Instant::now() < limit, "the old pool stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(version(&get(at, "/").await.unwrap().body), Some(2));
    load.finish("release switch").await;

    // All agents crash: new ones find everything again.
    let load = Load::start(at, &["/", "/style.css"], version);
    let pids = |all: &[&Driven]| {
        all.iter()
            .map(|driven| driven.children.pids())
            .collect::<Vec<_>>()
    };
    let all = [&proxy, &web, &backends[0], &backends[1]];
    let before = pids(&all);
    load.more(50).await;
    for driven in all {
        driven.renew();
    }
    proxy
        .until("proxy found again", |status| {
            serves(R2)(status) && uses(status, 3, R2)
        })
        .await;
    for driven in &all[1..] {
        driven.until("found again", ready(R2)).await;
    }
    assert_eq!(pids(&all), before, "nothing was restarted");
    load.more(100).await;
    load.finish("agents crash").await;

    // A backend joins, another leaves, and one crashes.
    let load = Load::start(at, &["/", "/style.css", "/?slow=1"], version);
    let third = world.drive(&Php, 5, "backend");
    third.set(site.level("backend", 5, &[R2]));
    third.until("third ready", ready(R2)).await;
    proxy.change(|level| level.providers.push(site.provider("backend", 5, R2)));
    proxy
        .until("third used", |status| uses(status, 5, R2))
        .await;
    load.more(200).await;
    proxy.change(|level| {
        level
            .providers
            .retain(|provider| provider.node != NodeNumber(3))
    });
    proxy
        .until("first let go", |status| !uses(status, 3, R2))
        .await;
    backends[0].unset();
    gone(&backends[0]).await;
    load.more(100).await;
    // One level may name others for all that were there: the new come in before the old leave.
    let now = |proxy: &Driven, node: u8| {
        proxy.change(|level| {
            level.providers.retain(|provider| provider.role == "web");
            level.providers.push(site.provider("backend", node, R2));
        });
    };
    for (to, from) in [(4u8, 5u8), (5, 4), (4, 5), (5, 4)] {
        now(&proxy, to);
        proxy
            .until("swapped", |status| {
                let backend = |node| {
                    let held = |used: &InUse| {
                        used.instance.role == "backend" && used.instance.node == NodeNumber(node)
                    };
                    status.using.iter().any(held)
                };
                backend(u64::from(to)) && !backend(u64::from(from))
            })
            .await;
        load.more(50).await;
    }
    proxy.change(|level| level.providers.push(site.provider("backend", 4, R2)));
    proxy.until("both used", |status| uses(status, 4, R2)).await;
    load.finish("backends come and go").await;

    // A crashed pool is started again.
    third.children.crash("backend/r2");
    third.until("third back", ready(R2)).await;

    // A restarted load balancer has the same.
    proxy.children.crash("proxy/balancer");
    proxy.renew();
    proxy
        .until("proxy back", |status| {
            serves(R2)(status) && uses(status, 5, R2) && uses(status, 2, R2)
        })
        .await;
    assert_eq!(version(&get(at, "/").await.unwrap().body), Some(2));

    // Without backends static files still answer.
    proxy.change(|level| level.providers.retain(|provider| provider.role == "web"));
    proxy
        .until("backends let go", |status| {
            status.using.iter().all(|used| used.instance.role == "web")
        })
        .await;
    assert_eq!(get(at, "/style.css").await.unwrap().status, 200);
    let answer = get(at, "/").await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(
        answer.head.to_lowercase().contains("retry-after"),
        "{}",
        answer.head
    );
    let log = std::fs::read_to_string(web.node.log("web", "access")).unwrap();
    assert!(log.contains("GET /style.css"), "{log}");

    for driven in [&proxy, &web, &backends[1], &third] {
        driven.unset();
    }
    for driven in [&proxy, &web, &backends[1], &third] {
        gone(driven).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_code_there_is_a_welcome_page_and_broken_code_never_gets_ready() {
    let world = World::new(2);
    let broken = world.code(
        "broken",
        &[("index.php", "<?php throw new Exception('no database');")],
    );
    let site = Site {
        world: &world,
        settings: Settings::new(),
        codes: BTreeMap::from([(R1, None), (R2, Some(broken))]),
        environment: Environment::default(),
    };
    let (proxy, web, backend) = (
        world.drive(&Php, 1, "proxy"),
        world.drive(&Php, 2, "web"),
        world.drive(&Php, 3, "backend"),
    );
    web.set(site.level("web", 2, &[R1]));
    backend.set(site.level("backend", 3, &[R1, R2]));
    let mut level = site.level("proxy", 1, &[R1]);
    level.providers = vec![site.provider("backend", 3, R1), site.provider("web", 2, R1)];
    level.serve = Some(R1);
    proxy.set(level);
    web.until("web ready", ready(R1)).await;
    backend.until("welcome ready", ready(R1)).await;
    proxy.until("proxy serves", serves(R1)).await;
    let at = world.at(1, 8080);
    let page = get(at, "/").await.unwrap();
    assert!(page.body.contains("Your service is running"), "{page:?}");
    assert_eq!(get(at, "/welcome.css").await.unwrap().status, 200);
    backend
        .until("a reason", |status| matches!(&status.releases[&R2], Phase::Failed(reason) if reason.contains("answers 500") && reason.contains("no database")))
        .await;
    for driven in [&proxy, &web, &backend] {
        driven.unset();
    }
    for driven in [&proxy, &web, &backend] {
        gone(driven).await;
    }
}

/// Values that are hard to hand through a configuration file, and made-up ones of the same kind.
fn hard_values() -> BTreeMap<String, String> {
    let mut values: Vec<String> = [
        "",
        "plain",
        "it's",
        "'",
        "'''",
        "say \"hi\"",
        "back\\slash\\\\\\",
        "\\' \\\" \\n",
        "a$b ${PATH} $",
        "line\n\n\nline\n",
        "\n",
        "\r\n\t",
        "a;b#c=d[e]f",
        "(1|2)&~3!^",
        "PHP_EOL",
        "on",
        "null",
        "007",
        "  spaces  ",
        "\u{fc} \u{20ac} \u{1f511}",
        "-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n",
    ]
    .map(str::to_owned)
    .to_vec();
    values.push((1..32).map(char::from).collect());
    values.push("x".repeat(64 * 1024));
    let alphabet: Vec<char> = "ab'\"\\\n\r;$ {}[]=()|&~!^%#\u{fc}\t".chars().collect();
    // A plain generator: the same values in every run.
    let mut state = 7_u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    for _ in 0..150 {
        let length = 1 + next(40);
        values.push(
            (0..length)
                .map(|_| alphabet[next(alphabet.len())])
                .collect(),
        );
    }
    values.retain(|value| Php.check_environment("V", value).is_ok());
    let named = values.into_iter().enumerate();
    named.map(|(n, value)| (format!("V{n}"), value)).collect()
}

const SHOW: &str = r#"<?php
header('Content-Type: text/plain');
$names = explode(',', $_GET['names']);
foreach ($names as $n) {
  $all = [getenv($n), $_ENV[$n] ?? null, $_SERVER[$n] ?? null];
  echo $n, '=', implode(',', array_map(fn ($v) => is_string($v) ? md5($v) : 'none', $all)), "\n";
}
"#;

/// What code sees of names: md5 by getenv, $_ENV and $_SERVER.
async fn seen(at: std::net::SocketAddrV4, names: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for part in names.chunks(40) {
        let page = get(at, &format!("/index.php?names={}", part.join(",")))
            .await
            .unwrap();
        assert_eq!(page.status, 200, "{page:?}");
        lines.extend(page.body.lines().map(str::to_owned));
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_and_secrets_reach_code_byte_by_byte_and_nobody_else() {
    let world = World::new(3);
    let code = world.code("show", &[("index.php", SHOW)]);
    let values = hard_values();
    assert!(values.len() > 150, "{}", values.len());
    // Every other one is a secret.
    let mut environment = Environment::default();
    for (n, (name, value)) in values.iter().enumerate() {
        if n % 2 == 0 {
            let known = (name.clone(), 3);
            world.secrets.0.lock().unwrap().insert(known, value.clone());
            environment.secrets.insert(name.clone(), SecretVersion(3));
        } else {
            environment.variables.insert(name.clone(), value.clone());
        }
    }
    let site = Site {
        world: &world,
        settings: json!({"warm_up": []}).as_object().unwrap().clone(),
        codes: BTreeMap::from([(R1, Some(code.clone())), (R2, Some(code))]),
        environment,
    };
    let (proxy, web, backend) = (
        world.drive(&Php, 1, "proxy"),
        world.drive(&Php, 2, "web"),
        world.drive(&Php, 3, "backend"),
    );
    web.set(site.level("web", 2, &[R1]));
    backend.set(site.level("backend", 3, &[R1]));
    let mut level = site.level("proxy", 1, &[R1]);
    level.providers = vec![site.provider("backend", 3, R1), site.provider("web", 2, R1)];
    level.serve = Some(R1);
    proxy.set(level);
    web.until("web ready", ready(R1)).await;
    backend.until("backend ready", ready(R1)).await;
    proxy.until("proxy serves", serves(R1)).await;
    let at = world.at(1, 8080);
    let names: Vec<&str> = values.keys().map(String::as_str).collect();
    let lines = seen(at, &names).await;
    assert_eq!(lines.len(), names.len());
    for (line, (name, value)) in lines.iter().zip(&values) {
        let md5 = md5_of(value);
        assert_eq!(*line, format!("{name}={md5},{md5},{md5}"), "{value:?}");
    }

    // One file holds them, for its owner only; no process shows any.
    let secret = "say \"hi\"";
    let folder = backend.node.role_folder("backend");
    let file = folder.join("r1.env.conf");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        let has = text
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        assert_eq!(has, entry.path() == file, "{}", entry.path().display());
    }
    for pid in backend.children.pids().into_values() {
        for pid in [pid].into_iter().chain(children_of(pid)) {
            for part in ["environ", "cmdline"] {
                let text = std::fs::read(format!("/proc/{pid}/{part}")).unwrap_or_default();
                let has = text
                    .windows(secret.len())
                    .any(|part| part == secret.as_bytes());
                assert!(!has, "{part} of {pid}");
            }
        }
    }

    // A new agent finds all as it was; a release that is let go leaves nothing.
    backend.renew();
    backend.until("found again", ready(R1)).await;
    let next = Environment {
        variables: BTreeMap::from([("V0".to_owned(), "new".to_owned())]),
        ..Environment::default()
    };
    backend.change(|level| {
        let release = ReleaseLevel {
            environment: next,
            ..site.release("backend", 3, R2)
        };
        level.releases.insert(R2, release);
    });
    backend.until("the next is ready", ready(R2)).await;
    proxy.change(|level| {
        level.releases.insert(R2, site.release("proxy", 1, R2));
        level.providers.push(site.provider("backend", 3, R2));
        level.serve = Some(R2);
    });
    web.set(site.level("web", 2, &[R1, R2]));
    web.until("web ready", ready(R2)).await;
    proxy.change(|level| level.providers.push(site.provider("web", 2, R2)));
    proxy.until("the switch", serves(R2)).await;
    let md5 = md5_of("new");
    let lines = seen(at, &["V0", "V1"]).await;
    assert_eq!(
        lines,
        [
            format!("V0={md5},{md5},{md5}"),
            "V1=none,none,none".to_owned()
        ]
    );
    backend.change(|level| drop(level.releases.remove(&R1)));
    backend
        .until("the old gone", |status| !status.releases.contains_key(&R1))
        .await;
    assert!(!file.exists() && folder.join("r2.env.conf").exists());
    for driven in [&proxy, &web, &backend] {
        driven.unset();
    }
    for driven in [&proxy, &web, &backend] {
        gone(driven).await;
    }
    assert!(!folder.join("r2.env.conf").exists());
}

fn md5_of(text: &str) -> String {
    use std::io::Write;
    let mut child = std::process::Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout)[..32].to_owned()
}

fn children_of(pid: i32) -> Vec<i32> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_the_application_lead_on_and_choose_the_script() {
    let world = World::new(4);
    let script = "<?php echo \"{$_SERVER['SCRIPT_NAME']} for {$_SERVER['REQUEST_URI']}\";";
    let files = [
        ("index.php", script),
        ("admin/index.php", script),
        ("admin/logo.svg", "logo"),
        ("old/kept.txt", "kept"),
        ("shop.php", script),
    ];
    let code = world.code("rules", &files);
    let settings = json!({
        "front_controllers": [
            {"below": "/admin/", "script": "admin/index.php"},
            {"below": "/none/", "script": "none.php"}
        ],
        "redirects": [
            {"from": "/start", "to": "/admin/", "status": 301},
            {"from": "/shop.php", "to": "/start"},
            {"from": "/old/*", "to": "/new/*"},
            {"from": "/away/*", "to": "https://www.example.org/", "status": 308},
            {"from": "/top/*", "to": "/*", "status": 307}
        ]
    });
    let schema = Php.settings_schema();
    let checked = jsonschema::validate(&schema, &settings);
    assert!(checked.is_ok(), "{checked:?}");
    let settings = settings.as_object().unwrap().clone();
    assert_eq!(Php.check_settings(&settings), Ok(()));
    let site = Site {
        world: &world,
        settings,
        codes: BTreeMap::from([(R1, Some(code.clone())), (R2, Some(code))]),
        environment: Environment::default(),
    };
    let (proxy, web, backend) = (
        world.drive(&Php, 1, "proxy"),
        world.drive(&Php, 2, "web"),
        world.drive(&Php, 3, "backend"),
    );
    web.set(site.level("web", 2, &[R1]));
    backend.set(site.level("backend", 3, &[R1]));
    let mut level = site.level("proxy", 1, &[R1]);
    level.providers = vec![site.provider("backend", 3, R1), site.provider("web", 2, R1)];
    level.serve = Some(R1);
    proxy.set(level);
    web.until("web ready", ready(R1)).await;
    backend.until("backend ready", ready(R1)).await;
    proxy.until("proxy serves", serves(R1)).await;
    let at = world.at(1, 8080);
    for (path, answer) in [
        ("/users/3", "/index.php for /users/3"),
        (
            "/admin/users/3?x=1",
            "/admin/index.php for /admin/users/3?x=1",
        ),
        ("/admin/logo.svg", "logo"),
        ("/administration", "/index.php for /administration"),
        ("/none/x", "/index.php for /none/x"),
        // A rule for a script leads nobody away from what is behind it.
        ("/shop.php/cart", "/shop.php for /shop.php/cart"),
    ] {
        let got = get(at, path).await.unwrap();
        assert_eq!((got.status, got.body.as_str()), (200, answer), "{path}");
    }
    let leads = async |path: &str| {
        let got = get(at, path).await.unwrap();
        let mut lines = got.head.lines();
        let to = lines.find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("location")
                .then(|| value.trim().to_owned())
        });
        (got.status, to.unwrap_or_default())
    };
    for (path, status, to) in [
        ("/start", 301, "/admin/"),
        ("/start?a=b", 301, "/admin/?a=b"),
        ("/old", 302, "/new/"),
        ("/old/", 302, "/new/"),
        ("/old/a/b%20c?x=%2F&y", 302, "/new/a/b%20c?x=%2F&y"),
        // A rule counts before a file.
        ("/shop.php", 302, "/start"),
        ("/%73hop.php", 302, "/start"),
        ("/old/kept.txt", 302, "/new/kept.txt"),
        ("/away/x", 308, "https://www.example.org/"),
        // Nobody is led to another site by the path that they ask for.
        ("/top//evil.example", 307, "/evil.example"),
        ("/top///evil.example", 307, "/evil.example"),
        ("/top/%2Fevil.example", 307, "/%2Fevil.example"),
    ] {
        assert_eq!(leads(path).await, (status, to.to_owned()), "{path}");
    }
    assert_eq!(leads(r"/top/\evil.example").await.0, 400);
    assert_eq!(leads("/older").await.0, 200);

    // Rules are their release's: the next one has none.
    let bare = Site {
        settings: Settings::new(),
        ..site
    };
    backend.change(|level| {
        level.releases.insert(R2, bare.release("backend", 3, R2));
    });
    web.set(bare.level("web", 2, &[R1, R2]));
    backend.until("the next is ready", ready(R2)).await;
    web.until("web ready", ready(R2)).await;
    proxy.change(|level| {
        level.releases.insert(R2, bare.release("proxy", 1, R2));
        level.providers.push(bare.provider("backend", 3, R2));
        level.providers.push(bare.provider("web", 2, R2));
        level.serve = Some(R2);
    });
    proxy.until("the switch", serves(R2)).await;
    assert_eq!(leads("/start").await.0, 200);
    assert_eq!(get(at, "/old/kept.txt").await.unwrap().body, "kept");
    for driven in [&proxy, &web, &backend] {
        driven.unset();
    }
    for driven in [&proxy, &web, &backend] {
        gone(driven).await;
    }
}
