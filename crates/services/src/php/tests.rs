//! Pure tests of the type: settings, sizes, texts of configurations, and what of an archive is
//! public. Tests with real daemons are beside the crate's sources.

use super::manager::{BackendConfig, ProxyConfig, SitePlan, WebConfig};
use super::site::{self, Target};
use super::{BACKEND, PROXY, Php, WEB, backend_config, proxy_config, settings, sizing, web_config};
use conpaas_core::service_type::{Decision, ServiceType};
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::instance::default_instance_types;
use conpaas_model::spec::{Release, Settings};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn settings_of(value: Value) -> Settings {
    value.as_object().cloned().unwrap_or_default()
}

fn decide<T: DeserializeOwned>(role: &str, memory_mib: u64, settings: Value) -> T {
    let release = Release {
        number: ReleaseNumber(3),
        code: None,
        settings: settings_of(settings),
        environment: Default::default(),
    };
    let instance_type = &default_instance_types()[1];
    let decision = Decision {
        role,
        node: NodeNumber(1),
        node_name: "n-1",
        instance_type,
        memory_mib,
        release: &release,
    };
    serde_json::from_value(Php.decide(&decision)).unwrap()
}

#[test]
fn defaults_satisfy_the_schema_and_the_checks() {
    let schema = Php.settings_schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let defaults: Settings = schema["properties"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, p)| (name.clone(), p["default"].clone()))
        .collect();
    let problems: Vec<String> = validator
        .iter_errors(&Value::Object(defaults.clone()))
        .map(|e| e.to_string())
        .collect();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(Php.check_settings(&defaults), Ok(()));
    assert_eq!(Php.check_settings(&Settings::new()), Ok(()));
    for (name, property) in schema["properties"].as_object().unwrap() {
        assert!(property["title"].is_string(), "{name} has no title");
    }
    for name in settings::PHP_SETTINGS {
        assert!(
            !schema["properties"][name]["default"].is_null(),
            "{name} is not in the schema"
        );
    }
}

#[test]
fn wrong_settings_are_refused() {
    let validator = jsonschema::validator_for(&Php.settings_schema()).unwrap();
    for bad in [
        json!({"redirects": [{"from": "old", "to": "/new"}]}),
        json!({"redirects": [{"from": "/old", "to": "//evil.org"}]}),
        json!({"redirects": [{"from": "/old", "to": "javascript:alert(1)"}]}),
        json!({"redirects": [{"from": "/old", "to": "/a b"}]}),
        json!({"redirects": [{"from": "/old", "to": "/a|b"}]}),
        json!({"redirects": [{"from": "/old", "to": "/%[env(HOME)]"}]}),
        json!({"redirects": [{"from": "/old\n", "to": "/a"}]}),
        json!({"redirects": [{"from": "/o*d", "to": "/a"}]}),
        json!({"redirects": [{"from": "/old*", "to": "/a"}]}),
        json!({"redirects": [{"from": "/old", "to": "/a", "status": 200}]}),
        json!({"redirects": [{"from": "/old", "to": "/a", "more": 1}]}),
        json!({"front_controllers": [{"below": "/a", "script": "a.php"}]}),
        json!({"front_controllers": [{"below": "/a/", "script": "../a.php"}]}),
        json!({"max_execution_time": 0}),
        json!({"max_execution_time": "30"}),
        json!({"memory_limit": "-1"}),
        json!({"memory_limit": "lots"}),
        json!({"writable": ["../etc"]}),
        json!({"writable": ["/etc"]}),
        json!({"writable": ["a/../../b"]}),
        json!({"hidden": ["a b; } evil"]}),
        json!({"web_root": ".git"}),
        json!({"disable_functions": ["exec\nauto_prepend_file=/x"]}),
        json!({"date.timezone": "UTC\"\nx"}),
        json!({"allow_url_fopen": true}),
    ] {
        assert!(!validator.is_valid(&bad), "{bad}");
    }
    for good in [
        json!({"memory_limit": "256M", "web_root": "public", "writable": ["data", "conf/local.d"], "date.timezone": "Europe/Amsterdam"}),
        json!({"date.timezone": "Etc/GMT+5", "warm_up": ["/", "/doku.php?id=start"]}),
    ] {
        assert!(validator.is_valid(&good), "{good}");
    }
    let check = |value: Value| Php.check_settings(&settings_of(value)).unwrap_err();
    assert!(check(json!({"upload_max_filesize": "64M"})).contains("post_max_size"));
    assert!(check(json!({"memory_limit": "8M"})).contains("16M"));
    assert!(check(json!({"writable": ["data", "data/pages"]})).contains("inside"));
    assert!(check(json!({"date.timezone": "Europe/Atlantis"})).contains("no time zone"));
    assert!(check(json!({"date.timezone": "europe/berlin"})).contains("Europe/Berlin"));
    let default = Php.check_settings(&settings_of(json!({})));
    assert_eq!(default, Ok(()), "defaults are good");
}

#[test]
fn pools_fit_into_half_of_their_memory() {
    let pool = |memory, limit: u64, wished| sizing::pool(memory, limit << 20, wished);
    assert_eq!(
        pool(192, 128, 0),
        sizing::PoolSize {
            children: 2,
            opcache_mib: 16
        }
    );
    assert_eq!(
        pool(512, 128, 0),
        sizing::PoolSize {
            children: 6,
            opcache_mib: 42
        }
    );
    assert_eq!(
        pool(1024, 128, 0),
        sizing::PoolSize {
            children: 12,
            opcache_mib: 85
        }
    );
    assert_eq!(pool(1024, 512, 0).children, 3);
    assert_eq!(pool(512, 128, 40).children, 40);
    assert_eq!(pool(0, 128, 0).children, 2);
    for memory in (128..16_384).step_by(64) {
        let size = pool(memory, 128, 0);
        let used = size.opcache_mib + u64::from(size.children) * 32;
        assert!(
            size.children == 2 || used <= memory / 2,
            "{memory}: {size:?}"
        );
    }
    assert_eq!(sizing::threads(0.5), 1);
    assert_eq!(sizing::threads(f64::NAN), 1);
}

#[test]
fn the_pool_holds_what_was_decided() {
    let config: BackendConfig = decide(
        BACKEND,
        512,
        json!({"memory_limit": "256M", "request_timeout": 60, "date.timezone": "Europe/Paris", "writable": ["data"]}),
    );
    let place = backend_config::Place {
        name: "r3",
        listen: "100.64.0.9:9003".parse().unwrap(),
        status: "100.64.0.9:9103".parse().unwrap(),
        access_log: Path::new("/log/a"),
        error_log: Path::new("/log/e"),
        environment: Some(Path::new("/run/r3.env.conf")),
        sessions: "127.77.0.1:6379".parse().unwrap(),
        root: true,
    };
    let text = backend_config::pool_file(&place, &config, ReleaseNumber(3));
    for line in [
        "user = www-data",
        "listen = 100.64.0.9:9003",
        "include = /run/r3.env.conf",
        "pm = static",
        "pm.max_children = 3",
        "pm.status_listen = 100.64.0.9:9103",
        "process_control_timeout = 60s",
        "request_terminate_timeout = 60s",
        "clear_env = yes",
        "php_admin_flag[allow_url_fopen] = off",
        "php_admin_flag[allow_url_include] = off",
        "php_admin_value[memory_limit] = 256M",
        "php_value[session.save_handler] = redis",
        "php_value[session.save_path] = \"tcp://127.77.0.1:6379?timeout=20&read_timeout=20&prefix=PHPREDIS_SESSION:\"",
        "php_admin_value[open_basedir] = /srv/conpaas/r3/:/srv/conpaas/scratch/:/usr/share/php/",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let allowed = text
        .lines()
        .find_map(|l| l.strip_prefix("listen.allowed_clients = "))
        .unwrap();
    let allowed: Vec<&str> = allowed.split(',').collect();
    assert_eq!(allowed.len(), 513);
    for (address, may) in [
        ("127.0.0.1", true),
        ("100.64.1.255", true),
        ("100.64.2.0", false),
    ] {
        assert_eq!(allowed.contains(&address), may, "{address}");
    }
    let ini = backend_config::ini_file(&config);
    for line in [
        "date.timezone = \"Europe/Paris\"",
        "max_execution_time = 30",
        "display_errors = off",
        "opcache.validate_timestamps = on",
        "error_reporting = E_ALL & ~E_DEPRECATED & ~E_STRICT",
        "redis.session.locking_enabled = 1",
        "redis.session.lock_expire = 30",
        "redis.session.lock_retries = 7000",
    ] {
        assert!(ini.lines().any(|l| l == line), "{line} is not in\n{ini}");
    }
    let config: BackendConfig = decide(BACKEND, 512, json!({"sessions": "off"}));
    let text = backend_config::pool_file(&place, &config, ReleaseNumber(3));
    assert!(
        text.contains("php_admin_value[session.save_path] = /srv/conpaas/scratch/sessions\n")
            && !text.contains("save_handler")
    );
    assert!(!backend_config::ini_file(&config).contains("redis"));
}

#[test]
fn a_web_server_refuses_scripts_hidden_and_writable_paths() {
    let config: WebConfig = decide(
        WEB,
        64,
        json!({"web_root": "public", "hidden": ["private"], "writable": ["public/uploads", "var"]}),
    );
    let place = web_config::Place {
        listen: "100.64.0.9:8203".parse().unwrap(),
        root: Path::new("/code/x/public"),
        folder: Path::new("/run/web"),
        access_log: Path::new("/log/a"),
        release: ReleaseNumber(3),
        is_root: false,
    };
    let text = web_config::file(&place, &config);
    assert!(text.contains("location ^~ /private/ { return 404; }"));
    assert!(text.contains("location ^~ /uploads/ { return 404; }"));
    assert!(
        !text.contains("/var/"),
        "what is outside the public folder needs no rule"
    );
    // As `web_metrics` reads it.
    assert!(text.contains("$request_time release=3';"), "{text}");
    assert!(text.contains("disable_symlinks on"));
    assert!(!text.contains("user www-data"));
}

#[test]
fn the_load_balancers_text_depends_on_no_setting() {
    let text = |settings| {
        let config: ProxyConfig = decide(PROXY, 64, settings);
        let place = proxy_config::Place {
            listen: "100.64.0.9:8080".parse().unwrap(),
            socket: Path::new("/s"),
            folder: Path::new("/f"),
            is_root: true,
        };
        proxy_config::file(&place, &config)
    };
    assert_eq!(
        text(json!({})),
        text(json!({"request_timeout": 900, "web_root": "public"}))
    );
    assert_eq!(text(json!({})).matches("\nbackend ").count(), 18);
}

#[test]
fn names_of_servers_say_whose_they_are() {
    let name = proxy_config::server_name(ReleaseNumber(12), 7);
    assert_eq!(
        proxy_config::parse_server_name(&name),
        Some((ReleaseNumber(12), 7))
    );
    assert_eq!(proxy_config::parse_server_name("none"), None);
    assert_eq!(
        proxy_config::backend_name(true, ReleaseNumber(12)),
        "php-s4"
    );
    assert_eq!(proxy_config::encode("/a b/é~"), "%2Fa%20b%2F%C3%A9~");
}

fn plan(base: &Path) -> SitePlan {
    let config: BackendConfig = decide(BACKEND, 512, json!({}));
    SitePlan {
        base: base.to_owned(),
        ..config.site
    }
}

fn write(folder: &Path, path: &str, content: &str) -> PathBuf {
    let file = folder.join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, content).unwrap();
    file
}

#[test]
fn only_real_public_files_have_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("code");
    for path in [
        "index.php",
        "style.css",
        "a b.txt",
        "sub/index.html",
        "sub/page.php",
        ".htaccess",
        ".git/config",
        ".well-known/x",
        "data/secret.txt",
        "lib/.x/y.php",
    ] {
        write(&code, path, "x");
    }
    std::os::unix::fs::symlink("/etc/passwd", code.join("out.txt")).unwrap();
    std::os::unix::fs::symlink("/etc", code.join("etc")).unwrap();
    std::os::unix::fs::symlink("index.php", code.join("alias.php")).unwrap();
    std::os::unix::fs::symlink("/etc/x.php", code.join("away.php")).unwrap();
    let mut plan = plan(dir.path());
    plan.writable = vec!["data".into()];
    let found = site::survey(&code, &plan).unwrap();
    let paths: Vec<&str> = found.paths.keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "/",
            "/.well-known",
            "/.well-known/x",
            "/a b.txt",
            "/alias.php",
            "/index.php",
            "/lib",
            "/style.css",
            "/sub",
            "/sub/",
            "/sub/index.html",
            "/sub/page.php"
        ]
    );
    assert_eq!(found.paths["/"], Target::Script("/index.php".into()));
    assert_eq!(found.paths["/sub/"], Target::Static);
    assert_eq!(found.script("/no/such"), Some("/index.php"));
    assert_eq!(found.script("/style.css"), None);
    plan.front_controller = String::new();
    assert_eq!(site::survey(&code, &plan).unwrap().script("/no/such"), None);
    let entries: Vec<(String, String)> =
        proxy_config::path_entries(ReleaseNumber(2), &found, &[]).collect();
    assert!(entries.contains(&("2|*".into(), "%2Findex.php".into())));
    assert!(entries.contains(&("2|%2Fa%20b.txt".into(), "static".into())));
}

#[test]
fn a_release_is_laid_out_whole_and_scratch_survives_it() {
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("code");
    write(&code, "index.php", "one");
    write(&code, "data/pages/start.txt", "hello");
    write(&code, "conf/local.php", "conf");
    std::os::unix::fs::symlink("/etc/passwd", code.join("out.txt")).unwrap();
    let mut plan = plan(&dir.path().join("srv"));
    plan.writable = vec!["data".into(), "conf/local.php".into(), "fresh/cache".into()];
    let keep = |numbers: &[u64]| {
        numbers
            .iter()
            .copied()
            .map(ReleaseNumber)
            .collect::<BTreeSet<_>>()
    };
    let first = site::lay_out(&code, &plan, ReleaseNumber(1), &keep(&[1])).unwrap();
    assert_eq!(
        std::fs::read_to_string(first.join("data/pages/start.txt")).unwrap(),
        "hello"
    );
    assert!(
        !first.join("out.txt").exists(),
        "links that lead out are left behind"
    );
    assert!(first.join("fresh/cache").is_dir());
    std::fs::write(first.join("data/pages/start.txt"), "changed").unwrap();
    std::fs::write(first.join("conf/local.php"), "mine").unwrap();
    assert_eq!(
        std::fs::read_to_string(code.join("conf/local.php")).unwrap(),
        "conf",
        "the upload is untouched"
    );
    let second = site::lay_out(&code, &plan, ReleaseNumber(2), &keep(&[1, 2])).unwrap();
    assert!(first.is_dir());
    assert_eq!(
        std::fs::read_to_string(second.join("data/pages/start.txt")).unwrap(),
        "changed"
    );
    assert_eq!(
        std::fs::read_to_string(second.join("conf/local.php")).unwrap(),
        "mine"
    );
    site::lay_out(&code, &plan, ReleaseNumber(3), &keep(&[2, 3])).unwrap();
    assert!(
        !first.exists(),
        "a release that is wanted no more is tidied away"
    );
    assert!(second.is_dir());
}
