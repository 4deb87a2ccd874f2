//! Secrets and environment of a service on real machines: code gets them, an older release brings
//! older ones back, and their values are nowhere but in memory.

use conpaas_tests::search::{files_below, shown_by_processes};
use conpaas_tests::{World, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";
const FIRST: &str = "hush-5b1f ' \" ${HOME} \\ \u{1f511}\nsecond line\n";
const SECOND: &str = "hush-90d2";
/// The parts of the values that are looked for everywhere.
const MARKS: [&str; 2] = ["hush-5b1f", "hush-90d2"];

const PAGE: &str = r#"<?php
header('Content-Type: text/plain');
$v = getenv('DB_PASSWORD');
$same = $v === false
  ? !isset($_ENV['DB_PASSWORD']) && !isset($_SERVER['DB_PASSWORD'])
  : ($_ENV['DB_PASSWORD'] ?? null) === $v && ($_SERVER['DB_PASSWORD'] ?? null) === $v;
echo 'host=', gethostname(), ' secret=', $v === false ? 'none' : hash('sha256', $v),
  ' everywhere=', $same ? 'same' : 'other', ' mode=', getenv('MODE'), "\n";
"#;

/// Kills the processes of a machine whose command line matches, and says which.
const KILL: &str = r#"
for p in /proc/[0-9]*; do
  if tr '\0' ' ' <"$p/cmdline" 2>/dev/null | grep -q "$1"; then
    echo "${p#/proc/}"
    kill -9 "${p#/proc/}" || true
  fi
done
exit 0
"#;

fn sha256(text: &str, folder: &Path) -> String {
    let file = folder.join("hashed");
    std::fs::write(&file, text).unwrap();
    let output = Command::new("sha256sum").arg(&file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

/// Sets the secret to a value from a file that does not stay.
fn set(world: &World, value: &str) -> Value {
    let file = world.path().join("value");
    std::fs::write(&file, value).unwrap();
    let file_name = file.to_str().unwrap();
    let done = world.json([
        "secret",
        "set",
        "shop/web",
        "DB_PASSWORD",
        "--from-file",
        file_name,
        "--exact",
    ]);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(done["outcome"], "done", "{done:#}");
    done
}

/// The page until it says what it should; the names of all hosts that said so.
fn page_says(world: &World, secret: &str, hosts: usize) -> std::collections::BTreeSet<String> {
    let mut seen = std::collections::BTreeSet::new();
    let wanted = format!(" secret={secret} everywhere=same ");
    wait_for(
        &format!("{hosts} hosts to say {wanted}"),
        Duration::from_secs(120),
        || {
            let answer = world.get(HOST, "/");
            match &answer {
                Ok((200, body)) if body.contains(&wanted) => {
                    let host = body.split_whitespace().next().unwrap_or_default();
                    seen.insert(host.to_owned());
                    if seen.len() >= hosts {
                        return Ok(());
                    }
                    Err(format!("{seen:?}"))
                }
                _ => Err(format!("{answer:?}")),
            }
        },
    );
    seen
}

/// Files of an installation that hold one of the marks.
fn files_with_marks(state: &Path) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| has_mark(&std::fs::read(path).unwrap_or_default());
    files_below(state).into_iter().filter(holds).collect()
}

fn has_mark(bytes: &[u8]) -> bool {
    MARKS.iter().any(|mark| {
        bytes
            .windows(mark.len())
            .any(|part| part == mark.as_bytes())
    })
}

fn nothing_shows_a_value(world: &World) {
    for arguments in [
        &["service", "show", "shop/web"][..],
        &["service", "releases", "shop/web"],
        &["app", "events", "shop"],
        &["operation", "list"],
        &["audit", "list"],
        &["secret", "list", "shop/web"],
        &["env", "list", "shop/web"],
        &["logs", "shop/web"],
        &["logs", "shop"],
    ] {
        let said = world.run(arguments.iter().copied().chain(["--json"]));
        assert!(
            !has_mark(said.stdout.as_bytes()),
            "{arguments:?}: {said:#?}"
        );
    }
    // The store, logs, and the disks of machines with their levels are all below this folder.
    assert_eq!(files_with_marks(&world.state()), Vec::<PathBuf>::new());
    let shown = shown_by_processes();
    let shown = shown.iter().filter(|(_, text)| has_mark(text));
    let shown: Vec<&String> = shown.map(|(place, _)| place).collect();
    assert_eq!(shown, Vec::<&String>::new());
    let bundle = world.path().join("bundle.tar.gz");
    world.ok([
        "nutshell",
        "support-bundle",
        "--output",
        bundle.to_str().unwrap(),
    ]);
    let unpacked = Command::new("tar")
        .args(["-xzOf", bundle.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(unpacked.status.success() && unpacked.stdout.len() > 1000);
    assert!(!has_mark(&unpacked.stdout), "the bundle holds a value");
    std::fs::remove_file(bundle).unwrap();
}

/// A node with a backend.
fn backend(world: &World) -> String {
    let service = world.service("shop/web");
    let nodes = service["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| {
        let roles = node["roles"].as_array().unwrap();
        roles.iter().any(|role| role["role"] == "backend")
    });
    format!("shop/web/{}", node.unwrap()["number"])
}

/// What lies in a node's folder of secrets.
fn kept(world: &World) -> String {
    let first = world.first_process(&backend(world));
    world.inside(first, &["ls", "-A", "/run/conpaas/secrets"]).1
}

#[test]
fn secrets_reach_code_and_nothing_else() {
    let world = World::start();
    let site = world.path().join("site");
    std::fs::create_dir(&site).unwrap();
    std::fs::write(site.join("index.php"), PAGE).unwrap();
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "web"]);
    world.ok([
        "code",
        "upload",
        "shop/web",
        site.to_str().unwrap(),
        "--activate",
    ]);
    world.ok(["app", "start", "shop"]);
    page_says(&world, "none", 1);

    // Both come in, and to every backend.
    set(&world, FIRST);
    let first = sha256(FIRST, world.path());
    page_says(&world, &first, 1);
    world.ok(["env", "set", "shop/web", "MODE=slow and 'quiet'"]);
    let body = world.wait_status(HOST, "/", 200);
    assert!(body.contains("mode=slow and 'quiet'"), "{body}");
    world.ok(["service", "scale", "shop/web", "backend=2"]);
    let hosts = page_says(&world, &first, 2);
    assert_eq!(hosts.len(), 2, "{hosts:?}");

    let listed = world.json(["secret", "list", "shop/web"]);
    assert_eq!(listed[0]["name"], "DB_PASSWORD", "{listed:#}");
    assert_eq!(
        (&listed[0]["version"], &listed[0]["actor"]),
        (&1.into(), &"admin".into())
    );
    assert_eq!(kept(&world), "DB_PASSWORD.1");
    let node = world.first_process(&backend(&world));
    let mode = world.inside(
        node,
        &["stat", "-c", "%a %u", "/run/conpaas/secrets/DB_PASSWORD.1"],
    );
    assert_eq!(mode, (Some(0), "600 0".to_owned()));
    let kind = world.inside(node, &["stat", "-f", "-c", "%T", "/run/conpaas/secrets"]);
    assert_eq!(kind.1, "tmpfs");
    nothing_shows_a_value(&world);

    // Without a Director, a backend and its agent that die come back with what they had.
    world.stop_director();
    for victim in ["php-fp[m]:", "conpaas agen[t]"] {
        let (code, said) = world.inside(node, &["sh", "-c", KILL, "sh", victim]);
        assert_eq!(code, Some(0), "{victim}: {said}");
        assert!(!said.is_empty(), "{victim}: nobody was killed");
    }
    let hosts = page_says(&world, &first, 2);
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    world.start_director();

    // Another value, the way back, and the end.
    set(&world, SECOND);
    page_says(&world, &sha256(SECOND, world.path()), 2);
    wait_for("only the new one is kept", Duration::from_secs(60), || {
        let found = kept(&world);
        if found == "DB_PASSWORD.2" {
            Ok(())
        } else {
            Err(found)
        }
    });
    nothing_shows_a_value(&world);
    world.ok(["service", "rollback", "shop/web"]);
    page_says(&world, &first, 2);
    assert_eq!(world.json(["secret", "list", "shop/web"])[0]["version"], 1);
    world.ok(["secret", "unset", "shop/web", "DB_PASSWORD"]);
    page_says(&world, "none", 2);
    wait_for("none is kept", Duration::from_secs(60), || {
        let found = kept(&world);
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    nothing_shows_a_value(&world);

    // To a stranger there is nothing.
    let stranger = world.person("eve");
    for arguments in [
        &["secret", "list", "admin:shop/web"][..],
        &["env", "list", "admin:shop/web"],
        &["secret", "unset", "admin:shop/web", "DB_PASSWORD"],
    ] {
        let refused = world.run_as(&stranger, arguments);
        assert_eq!(refused.code, 4, "{arguments:?}: {refused:#?}");
    }
}
