//! Knows every secret of an installation that works (passwords, tokens, private keys, enrolment
//! tokens), and looks for them wherever they have no business: logs, the store, events, audit, answers
//! of the API, arguments and environments of all processes, the support bundle.

use conpaas_tests::search::{files_below, shown_by_processes};
use conpaas_tests::{World, archive};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Larger files are images, not records.
const LARGEST: u64 = 64 << 20;

struct Secret {
    what: String,
    text: String,
    /// Beginnings of paths below the state folder where it may lie.
    home: Vec<String>,
}

fn secret(what: impl Into<String>, text: &str, home: &[&str]) -> Secret {
    let text = text.trim().to_owned();
    let what = what.into();
    assert!(text.len() >= 12, "{what} is too short to look for");
    Secret {
        what,
        text,
        home: home.iter().map(|path| (*path).to_owned()).collect(),
    }
}

/// The lines of a private key in PEM that no other key has.
fn key_lines(what: &str, path: &Path, home: &[&str]) -> Vec<Secret> {
    let pem = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (_, after) = pem
        .split_once("-----BEGIN PRIVATE KEY-----")
        .expect("a key");
    let (body, _) = after.split_once("-----END").expect("an end");
    let lines = body.lines().filter(|line| line.len() == 64);
    let found: Vec<_> = lines.map(|line| secret(what, line, home)).collect();
    assert!(!found.is_empty(), "{what}");
    found
}

/// What was looked through, and what should not have been there.
#[derive(Default)]
struct Search {
    places: BTreeMap<&'static str, usize>,
    found: Vec<String>,
}

impl Search {
    fn look(&mut self, kind: &'static str, place: &str, hay: &[u8], secrets: &[Secret]) {
        *self.places.entry(kind).or_default() += 1;
        let hay = String::from_utf8_lossy(hay);
        for secret in secrets.iter().filter(|secret| hay.contains(&secret.text)) {
            let home = kind == "files of the state folder"
                && secret
                    .home
                    .iter()
                    .any(|home| place.starts_with(home.as_str()))
                && !place.ends_with(".log");
            if !home {
                self.found
                    .push(format!("{} in {kind}: {place}", secret.what));
            }
        }
    }
}

#[test]
fn no_known_secret_lies_where_it_has_no_business() {
    let world = World::with_shop();
    world.wait_status("shop-admin.localhost", "/", 200);
    let ann = world.person("ann");
    let made = world.json(["token", "create", "probe"]);
    let wrong = world.path().join("wrong");
    std::fs::write(&wrong, "a wrong guess that people typed\n").unwrap();
    let url = format!("https://127.0.0.1:{}", world.api_port);
    let refused = world.run_as(
        &ann,
        [
            "login",
            &url,
            "--user",
            "ann",
            "--password-file",
            wrong.to_str().unwrap(),
        ],
    );
    assert_ne!(refused.code, 0, "{refused:?}");
    // Some of everything happens, and some of it goes wrong.
    world.ok(["service", "scale", "shop/web", "backend=2"]);
    world.ok(["service", "set", "shop/web", "memory_limit=96M"]);
    let archive = world.path().join("v2.tar.gz");
    archive::site(&archive, 2);
    world.ok([
        "code",
        "upload",
        "shop/web",
        archive.to_str().unwrap(),
        "--activate",
    ]);
    world.run(["node", "show", "shop/web/999"]);
    world.run(["service", "scale", "shop/web", "backend=9999"]);

    let state = world.state();
    let read = |path: &str| std::fs::read_to_string(state.join(path)).unwrap();
    let mut secrets = vec![
        secret(
            "the operator's password",
            &read("director/admin-password"),
            &["director/admin-password"],
        ),
        secret("the nutshell's token", &read("run/token"), &["run/token"]),
        secret("ann's password", "the long password of ann", &[]),
        secret("a wrong password", "a wrong guess that people typed", &[]),
        secret(
            "a token that was made",
            made["secret"].as_str().unwrap(),
            &[],
        ),
    ];
    for name in ["root.pem", "issuer.pem"] {
        let path = format!("director/pki/{name}");
        secrets.extend(key_lines(name, &state.join(&path), &[&path]));
    }
    let api = "director/api/api.key";
    secrets.extend(key_lines("the API's key", &state.join(api), &[api]));
    let nodes = world.json(["node", "list", "shop"]);
    let mut machines = 0;
    for node in nodes.as_array().unwrap() {
        let target = format!(
            "shop/{}/{}",
            node["service"].as_str().unwrap(),
            node["number"]
        );
        let root = PathBuf::from(format!("/proc/{}/root", world.first_process(&target)));
        let home = &["cloud/machines/"];
        let context = std::fs::read_to_string(root.join("etc/conpaas/context.json")).unwrap();
        let context: serde_json::Value = serde_json::from_str(&context).unwrap();
        let token = context["token"].as_str().unwrap();
        secrets.push(secret(
            format!("the enrolment token of {target}"),
            token,
            home,
        ));
        let keys = root.join("var/lib/conpaas");
        let what = format!("the agent's key of {target}");
        secrets.extend(key_lines(&what, &keys.join("agent.key"), home));
        if node["manager"] == true {
            let what = format!("the manager's key of {target}");
            secrets.extend(key_lines(&what, &keys.join("manager/manager.key"), home));
        }
        machines += 1;
    }
    assert!(machines >= 3, "{nodes:#}");

    let mut search = Search::default();
    for arguments in [
        &["app", "events", "shop"][..],
        &["audit", "list", "--limit", "1000"],
        &["operation", "list"],
        &["app", "show", "shop"],
        &["node", "list", "shop"],
        &["service", "releases", "shop/web"],
        &["user", "list"],
        &["token", "list"],
        &["logs", "shop/web"],
        &["director", "roots", "list"],
        &["nutshell", "status"],
    ] {
        let mut all = arguments.to_vec();
        all.push("--json");
        let said = world.run(&all);
        assert_eq!(said.code, 0, "{said:?}");
        let text = said.stdout + &said.stderr;
        search.look("answers", &arguments.join(" "), text.as_bytes(), &secrets);
    }
    let bundle = world.path().join("bundle.tar.gz");
    world.ok([
        "nutshell",
        "support-bundle",
        "--output",
        bundle.to_str().unwrap(),
    ]);
    let packed = flate2::read::GzDecoder::new(std::fs::File::open(&bundle).unwrap());
    for entry in tar::Archive::new(packed).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = Vec::new();
        entry.read_to_end(&mut text).unwrap();
        search.look("members of the support bundle", &name, &text, &secrets);
    }
    for (place, text) in shown_by_processes() {
        search.look("arguments and environments", &place, &text, &secrets);
    }
    for path in files_below(&state) {
        let size = std::fs::metadata(&path).map_or(0, |found| found.len());
        // What ends meanwhile is gone.
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        if size <= LARGEST {
            let place = path.strip_prefix(&state).unwrap().display().to_string();
            search.look("files of the state folder", &place, &bytes, &secrets);
        }
    }
    println!(
        "{} secrets looked for in {:?}",
        secrets.len(),
        search.places
    );
    assert!(
        search.places.values().all(|count| *count > 5),
        "{:?}",
        search.places
    );
    assert!(search.found.is_empty(), "{:#?}", search.found);
}
