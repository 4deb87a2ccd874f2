//! Who trusts whom, on real machines: certificates that live for seconds, a Director that is away
//! for several of their lives, roots that are changed under load, and what a removed node, a
//! stranger or another application's node gets inside an application's network.

use conpaas_model::protocol::{
    Context, EnrolAnswer, EnrolRequest, Located, MANAGER_PORT, PATH_AGENT_STREAM, PATH_BLOBS,
    PATH_ENROL, PATH_ENROL_MANAGER, PATH_LOCATE, PATH_MANAGER_STREAM,
};
use conpaas_pki::{CertificateChain, Credentials, KeyPair, Roots, client_config};
use conpaas_tests::checker::{Checker, Kind, Tally};
use conpaas_tests::{World, checker_site, signal, wait_for};
use conpaas_wire::{Client, ClientSettings, WireError, dial_address, fixed_client_tls};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const HOST: &str = "shop-admin.localhost";
const LIFETIME: u64 = 20;
const LOAD: &[(Kind, usize)] = &[
    (Kind::Page, 3),
    (Kind::Fresh, 2),
    (Kind::File, 2),
    (Kind::Post, 2),
    (Kind::Slow(5), 2),
];

fn site(world: &World) {
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "it"]);
    let archive = world.path().join("v1.tar.gz");
    checker_site::write(&archive, 1);
    let archive = archive.to_str().unwrap();
    world.ok(["code", "upload", "shop/it", archive, "--activate"]);
    world.ok(["app", "start", "shop"]);
    world.ok(["service", "scale", "shop/it", "backend=2"]);
    world.wait_status(HOST, "/", 200);
}

#[track_caller]
fn nothing_bad(tally: &Tally) {
    println!("{}", tally.table());
    assert_eq!(tally.total().bad(), 0, "{}", tally.table());
    assert!(tally.total().sent > 100, "{}", tally.table());
}

/// A party's file, as this computer's root sees it.
fn file(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root/var/lib/conpaas/{name}"))
}

/// Nodes of the service and of its manager, as targets.
fn nodes(world: &World, app: &str) -> Vec<String> {
    let nodes = world.json(["node", "list", app]);
    let nodes = nodes.as_array().unwrap().iter();
    nodes
        .map(|node| {
            format!(
                "{app}/{}/{}",
                node["service"].as_str().unwrap(),
                node["number"]
            )
        })
        .collect()
}

/// When a chain that lies on a machine ends.
fn ends(pid: i32, name: &str) -> Option<std::time::SystemTime> {
    let chain = CertificateChain::load(&file(pid, name)).ok()?;
    Some(chain.validity().ok()?.not_after)
}

#[test]
fn certificates_of_seconds_are_renewed_without_a_failed_request_and_outlive_a_pause() {
    let world = World::prepare();
    std::fs::DirBuilder::new()
        .mode(0o711)
        .create(world.state())
        .unwrap();
    std::fs::write(
        world.state().join("nutshell.toml"),
        format!("certificate_seconds = {LIFETIME}\n"),
    )
    .unwrap();
    let up = world.up();
    assert_eq!(up.code, 0, "{up:#?}");
    site(&world);
    let all = nodes(&world, "shop");
    let pids: Vec<i32> = all.iter().map(|node| world.first_process(node)).collect();
    let checker = Checker::start(world.edge_port, HOST, LOAD);

    // Six lives of every agent's certificate: each is seen to be renewed that often.
    let mut seen = vec![BTreeSet::new(); pids.len()];
    let begun = Instant::now();
    checker.phase("six lifetimes");
    wait_for("six lives", Duration::from_secs(LIFETIME * 9), || {
        for (ends_seen, pid) in seen.iter_mut().zip(&pids) {
            ends_seen.extend(ends(*pid, "agent.chain.pem"));
        }
        let fewest = seen.iter().map(BTreeSet::len).min().unwrap_or(0);
        if fewest > 6 && begun.elapsed() >= Duration::from_secs(6 * LIFETIME) {
            Ok(())
        } else {
            Err(fewest)
        }
    });
    let renewals: Vec<usize> = seen.iter().map(|ends| ends.len() - 1).collect();
    println!("renewals in {:?} by node: {renewals:?}", begun.elapsed());
    // Not at every look: a life is used for two thirds.
    let most = begun.elapsed().as_secs() / (LIFETIME / 2) + 1;
    assert!(
        renewals.iter().all(|count| *count as u64 <= most),
        "{renewals:?}"
    );

    checker.phase("the Director is paused for three");
    let director = world.daemon("director");
    signal(director, libc::SIGSTOP);
    let begun = Instant::now();
    wait_for(
        "three lives to pass",
        Duration::from_secs(LIFETIME * 5),
        || {
            let now = std::time::SystemTime::now();
            let all_over = pids.iter().all(|pid| {
                [
                    ends(*pid, "agent.chain.pem"),
                    ends(*pid, "manager/manager.chain.pem"),
                ]
                .into_iter()
                .flatten()
                .all(|end| end < now)
            });
            if all_over && begun.elapsed() >= Duration::from_secs(3 * LIFETIME) {
                Ok(())
            } else {
                Err(all_over)
            }
        },
    );
    signal(director, libc::SIGCONT);
    checker.phase("the Director is back");
    wait_for("fresh certificates", Duration::from_secs(60), || {
        let now = std::time::SystemTime::now();
        let fresh = pids
            .iter()
            .filter(|pid| ends(**pid, "agent.chain.pem").is_some_and(|end| end > now));
        let fresh = fresh.count();
        if fresh == pids.len() {
            Ok(())
        } else {
            Err(fresh)
        }
    });
    // The way down to every node works again, over the manager's own certificate.
    let scaled = world.json(["service", "scale", "shop/it", "backend=3"]);
    assert_eq!(scaled["outcome"], "done", "{scaled:#}");
    let after = nodes(&world, "shop");
    assert!(
        all.iter().all(|node| after.contains(node)),
        "{all:?} {after:?}"
    );
    let tally = checker.finish();
    nothing_bad(&tally);
    world.wait_no_leak();
}

fn roots(world: &World) -> Vec<Value> {
    let roots = world.json(["director", "roots", "list"]);
    roots.as_array().unwrap().clone()
}

#[test]
fn roots_are_changed_under_load_without_a_failed_request() {
    let world = World::start();
    site(&world);
    let before = nodes(&world, "shop");
    let old = roots(&world)[0]["fingerprint"].as_str().unwrap().to_owned();
    let checker = Checker::start(world.edge_port, HOST, LOAD);

    checker.phase("a new root is spread");
    let refused = world.run(["director", "roots", "retire", &old]);
    assert_eq!(refused.code, 5, "{refused:?}");
    world.ok(["director", "roots", "add", "--no-wait"]);
    // What is under way outlives the Director.
    world.stop_director();
    world.start_director();
    let refused = world.run(["director", "roots", "retire", &old[..10]]);
    assert_eq!(refused.code, 5, "{refused:?}");
    wait_for("the new root to sign", Duration::from_secs(120), || {
        let all = roots(&world);
        let signs = all[0]["fingerprint"] != old.as_str() && all.len() == 2;
        if signs { Ok(()) } else { Err(all) }
    });

    checker.phase("everybody renews");
    // Which parties are in the way is said while they are.
    let refused = world.run(["director", "roots", "retire", &old]);
    if refused.code != 0 {
        assert_eq!(refused.code, 5, "{refused:?}");
        assert!(refused.stderr.contains("of admin:shop/"), "{refused:?}");
        wait_for(
            "all to have new certificates",
            Duration::from_secs(120),
            || {
                let all = roots(&world);
                let done = all[0]["certificates"] == all[0]["parties"]
                    && all[1]["waits_for"].as_array().is_some_and(Vec::is_empty);
                if done { Ok(()) } else { Err(all) }
            },
        );
        world.ok(["director", "roots", "retire", &old]);
    }
    checker.phase("the old one is trusted no more");
    let all = roots(&world);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(all[0]["parties"], all[0]["certificates"], "{all:#?}");
    assert!(all[0]["parties"].as_u64().unwrap() >= 4, "{all:#?}");
    // Old nodes and new ones still understand each other.
    let scaled = world.json(["service", "scale", "shop/it", "backend=3"]);
    assert_eq!(scaled["outcome"], "done", "{scaled:#}");
    let after = nodes(&world, "shop");
    assert!(
        before.iter().all(|node| after.contains(node)),
        "{before:?} {after:?}"
    );
    // Everybody lets go of the old one by themselves.
    for node in &after {
        let pid = world.first_process(node);
        wait_for("one root on each machine", Duration::from_secs(60), || {
            let known = Roots::load(&file(pid, "agent.roots.pem")).map(|roots| roots.len());
            if known.as_ref().is_ok_and(|count| *count == 1) {
                Ok(())
            } else {
                Err(known)
            }
        });
    }
    let tally = checker.finish();
    nothing_bad(&tally);
    let audit = world.json(["audit", "list"]);
    for action in ["add_root", "retire_root"] {
        let row = audit
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["action"] == action);
        let row = row.unwrap_or_else(|| panic!("no {action}: {audit:#}"));
        assert!(
            row["actor"] == "admin" && row["token"].is_string(),
            "{row:#}"
        );
    }
    world.wait_no_leak();
}

/// Who somebody is, as files on a machine say.
#[derive(Clone)]
struct Who {
    chain: CertificateChain,
    key: String,
    roots: Roots,
    context: Context,
}

impl Who {
    /// The identity of a machine's agent, or of the manager there, copied.
    fn copied(pid: i32, name: &str) -> Self {
        let path = |ending: &str| file(pid, &format!("{name}.{ending}"));
        let context = format!("/proc/{pid}/root/etc/conpaas/context.json");
        Self {
            chain: CertificateChain::load(&path("chain.pem")).unwrap(),
            key: std::fs::read_to_string(path("key")).unwrap(),
            roots: Roots::load(&path("roots.pem")).unwrap(),
            context: serde_json::from_slice(&std::fs::read(context).unwrap()).unwrap(),
        }
    }

    fn client(&self, to: SocketAddr, named: bool) -> Client {
        let key = KeyPair::from_pem(&self.key).unwrap();
        let credentials = named.then(|| Credentials::new(self.chain.clone(), &key).unwrap());
        let tls = client_config(credentials, &self.roots).unwrap();
        let settings = ClientSettings {
            connect_timeout: Duration::from_secs(5),
            ..ClientSettings::default()
        };
        Client::new(dial_address(to), fixed_client_tls(tls), |_| true, settings)
    }
}

/// Runs a call on a thread that stands in a machine's network.
fn from_within<T: Send + 'static>(pid: i32, work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    std::thread::spawn(move || {
        // SAFETY: moves this thread alone, which ends with the call.
        let entered = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    })
    .join()
    .unwrap()
}

/// What came of a call, in a word.
fn outcome<T>(result: Result<T, WireError>) -> String {
    match result {
        Ok(_) => "granted".to_owned(),
        Err(WireError::Remote { status, body }) => format!("{} {}", status.as_u16(), body.code),
        Err(WireError::Handshake(_)) => "handshake".to_owned(),
        // With TLS 1.3 a refused certificate shows when the answer is read.
        Err(WireError::Http(_) | WireError::Closed) => "handshake".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

async fn enrol(who: &Who, key: &str, token: Option<String>) -> String {
    let key = KeyPair::from_pem(key).unwrap();
    let request = EnrolRequest {
        machine: who.context.machine.clone(),
        csr: csr(&key),
        token,
        version: "test".into(),
    };
    let client = who.client(who.context.director, false);
    outcome(
        client
            .post_json::<_, EnrolAnswer>(PATH_ENROL, &request)
            .await,
    )
}

fn csr(key: &KeyPair) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(key.csr().unwrap());
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    )
}

#[test]
fn who_stands_inside_a_machine_gets_what_is_theirs_and_nothing_else() {
    let world = World::start();
    site(&world);
    world.ok(["app", "create", "blog"]);
    world.ok(["service", "add", "blog", "php", "--name", "it"]);
    world.ok(["app", "start", "blog"]);
    let place = |app: &str, service: &str| {
        let prefix = format!("{app}/{service}/");
        let found = nodes(&world, app);
        let target = found
            .iter()
            .filter(|node| node.starts_with(&prefix))
            .max()
            .unwrap();
        (target.clone(), world.first_process(target))
    };
    let system = |app: &str| {
        let nodes = world.json(["node", "list", app]);
        let nodes = nodes.as_array().unwrap().clone();
        let found = nodes.iter().find(|node| node["manager"] == true).unwrap();
        let target = format!(
            "{app}/{}/{}",
            found["service"].as_str().unwrap(),
            found["number"]
        );
        world.first_process(&target)
    };
    let (node, worker) = place("shop", "it");
    let (shop_system, blog_system) = (system("shop"), system("blog"));
    let agent = Who::copied(worker, "agent");
    let manager = Who::copied(shop_system, "manager/manager");
    let other_agent = Who::copied(blog_system, "agent");
    let other_manager = Who::copied(blog_system, "manager/manager");
    let system_agent = Who::copied(shop_system, "agent");
    let shops_manager = SocketAddr::from((system_agent.context.address, MANAGER_PORT));
    let director = agent.context.director;

    let mut wrong = Vec::new();
    let mut tried = 0;
    let mut check = |who: &str, what: &str, found: String, wanted: &str| {
        tried += 1;
        println!("{who:<22} {what:<44} {found}");
        if found != wanted {
            wrong.push(format!("{who}, {what}: {found}, not {wanted}"));
        }
    };
    let get = |who: &Who, to: SocketAddr, named: bool, path: &'static str| {
        let who = who.clone();
        from_within(worker, async move || {
            outcome(who.client(to, named).get_json::<Value>(path).await)
        })
    };
    let blob: &'static str = format!("{PATH_BLOBS}/{}", "0".repeat(64)).leak();
    for (name, who, named, wanted) in [
        ("hosted code", &agent, false, ["401 no_certificate"; 4]),
        (
            "another's agent",
            &other_agent,
            true,
            [
                "403 wrong_application",
                "403 wrong_party",
                "403 wrong_application",
                "403 wrong_application",
            ],
        ),
        (
            "another's manager",
            &other_manager,
            true,
            [
                "403 wrong_party",
                "403 wrong_application",
                "403 wrong_party",
                "403 wrong_application",
            ],
        ),
        (
            "the shop's manager",
            &manager,
            true,
            [
                "403 wrong_party",
                "426 stream_expected",
                "403 wrong_party",
                "404 no_blob",
            ],
        ),
        (
            "the shop's agent",
            &agent,
            true,
            [
                "granted",
                "403 wrong_party",
                "403 no_system_node",
                "404 no_blob",
            ],
        ),
    ] {
        let paths = [PATH_LOCATE, PATH_MANAGER_STREAM, PATH_AGENT_STREAM, blob];
        for (path, wanted) in paths.into_iter().zip(wanted) {
            check(
                name,
                &format!("Director {path}"),
                get(who, director, named, path),
                wanted,
            );
        }
    }
    for (name, who, named, wanted) in [
        ("hosted code", &agent, false, "handshake"),
        ("another's agent", &other_agent, true, "403 unknown_machine"),
        ("another's manager", &other_manager, true, "403 agents_only"),
        ("the shop's agent", &agent, true, "426 stream_expected"),
    ] {
        let found = get(who, shops_manager, named, PATH_AGENT_STREAM);
        check(name, "the shop's manager", found, wanted);
    }
    // A worker's agent gets no manager's certificate, and its token no second key.
    let asker = agent.clone();
    let found = from_within(worker, async move || {
        let request = EnrolRequest {
            machine: asker.context.machine.clone(),
            csr: csr(&KeyPair::generate().unwrap()),
            token: None,
            version: "test".into(),
        };
        let client = asker.client(asker.context.director, true);
        outcome(
            client
                .post_json::<_, EnrolAnswer>(PATH_ENROL_MANAGER, &request)
                .await,
        )
    });
    check(
        "the shop's agent",
        "a manager's certificate",
        found,
        "403 no_system_node",
    );
    let fresh: Arc<str> = KeyPair::generate().unwrap().to_pem().into();
    for (name, from, token, wanted) in [
        (
            "token, another key",
            worker,
            Some(agent.context.token.clone()),
            "403 other_key",
        ),
        ("no token, another key", worker, None, "403 other_key"),
        (
            "token, other network",
            blog_system,
            Some(agent.context.token.clone()),
            "403 unknown_token",
        ),
    ] {
        let (who, key) = (agent.clone(), fresh.clone());
        let found = from_within(from, async move || enrol(&who, &key, token).await);
        check("whoever read the files", name, found, wanted);
    }
    // Code that people bring runs as nobody in particular: what proves a node is not for it.
    for path in [
        "/var/lib/conpaas/agent.key",
        "/var/lib/conpaas/level.json",
        "/etc/conpaas/context.json",
        "/run/conpaas/agent.sock",
    ] {
        let read = format!("setpriv --reuid=33 --regid=33 --clear-groups cat {path}");
        let (code, said) = world.inside(worker, &["sh", "-c", &read]);
        let found = if code == Some(0) {
            said
        } else {
            "refused".to_owned()
        };
        check("hosted code", path, found, "refused");
    }

    // Removed is removed, at once, with a certificate that is good for a day.
    let number = node.rsplit('/').next().unwrap().to_owned();
    world.ok(["service", "scale", "shop/it", "backend=1"]);
    wait_for("a node to be released", Duration::from_secs(90), || {
        let left = nodes(&world, "shop");
        if left.contains(&node) {
            Err(left)
        } else {
            Ok(())
        }
    });
    let who = agent.clone();
    let found = from_within(shop_system, async move || {
        outcome(
            who.client(who.context.director, true)
                .get_json::<Located>(PATH_LOCATE)
                .await,
        )
    });
    check(
        &format!("removed node {number}"),
        "Director",
        found,
        "403 node_removed",
    );
    let who = agent.clone();
    let found = from_within(shop_system, async move || enrol(&who, &who.key, None).await);
    check(
        &format!("removed node {number}"),
        "renewal",
        found,
        "403 node_removed",
    );
    let who = agent.clone();
    let found = from_within(shop_system, async move || {
        outcome(
            who.client(shops_manager, true)
                .get_json::<Value>(PATH_AGENT_STREAM)
                .await,
        )
    });
    check(
        &format!("removed node {number}"),
        "its manager",
        found,
        "403 unknown_machine",
    );
    println!("{tried} calls tried from inside machines");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
