//! A class that works at once: many applications of many owners with many nodes, on `memory`, and
//! people who look and change without a pause. Nothing fails, and what was asked for is there.
//!
//! `CONPAAS_CROWD=APPS` takes another number than is usual in a run of all tests.

use conpaas_cloud::Resources;
use conpaas_tests::{World, wait_for};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Nodes of each application, one of them its managers'.
const NODES: usize = 10;
const USUAL_APPS: usize = 12;
/// People at work at once, at most; who has more applications than one works on the next after it.
const MOST_PEOPLE: usize = 100;

/// Somebody with a token.
#[derive(Clone)]
struct Somebody {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Somebody {
    /// What came of a call: anything but a success is a failure of this test.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self
            .client
            .request(method.clone(), format!("{}/v1{path}", self.url))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await;
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    /// Follows what a change began to its end.
    async fn done(&self, method: Method, path: &str, body: Option<Value>) {
        let accepted = self.call(method, path, body).await;
        let Some(id) = accepted["operation"]["id"].as_str() else {
            return;
        };
        loop {
            let operation = self.get(&format!("/operations/{id}")).await;
            match operation["outcome"].as_str() {
                Some("running") => tokio::time::sleep(Duration::from_millis(500)).await,
                Some("done") => return,
                _ => panic!("{path}: {operation:#}"),
            }
        }
    }
}

/// Memory of this process in MiB: Director, edge, managers, agents and people together.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let at = (sorted.len() as f64 * part) as usize;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

#[test]
fn a_class_works_at_once_and_nothing_fails() {
    let apps = std::env::var("CONPAAS_CROWD")
        .ok()
        .and_then(|n| n.parse().ok());
    let apps: usize = apps.unwrap_or(USUAL_APPS);
    let people = apps.min(MOST_PEOPLE);
    let world = World::start_memory(|config| {
        config.default_node_quota = (apps.div_ceil(people) * NODES) as u32;
    });
    world.cloud().set_total(Resources {
        vcpus: 1e6,
        memory_mib: 1 << 32,
        disk_mib: 1 << 32,
    });
    let names: Vec<String> = (0..people)
        .map(|number| format!("student{number}"))
        .collect();
    let begun = Instant::now();
    let url = format!("https://127.0.0.1:{}", world.api_port);
    let password_of = |name: &str| format!("the long password of {name}");
    for name in &names {
        let file = world.path().join("password");
        std::fs::write(&file, password_of(name)).unwrap();
        world.ok([
            "user",
            "create",
            name,
            "--password-file",
            file.to_str().unwrap(),
        ]);
    }
    println!("{people} people in {:?}", begun.elapsed());

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // A second install is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .danger_accept_invalid_certs(true)
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap();
    runtime.block_on(async {
        // Everybody comes in at the same moment, and makes what they have.
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (number, name) in names.iter().enumerate() {
            let (name, password) = (name.clone(), password_of(name));
            let mut one = Somebody {
                client: client.clone(),
                url: url.clone(),
                token: String::new(),
            };
            let mine: Vec<usize> = (number..apps).step_by(people).collect();
            tasks.spawn(async move {
                let wish = json!({"name": name, "password": password});
                let answer = one.call(Method::POST, "/login", Some(wish)).await;
                one.token = answer["secret"].as_str().unwrap().to_owned();
                for app in &mine {
                    let app = format!("app{app}");
                    one.call(Method::POST, "/apps", Some(json!({"name": app})))
                        .await;
                    let wish = json!({"service_type": "helloworld", "name": "it"});
                    one.call(Method::POST, &format!("/apps/{app}/services"), Some(wish))
                        .await;
                    one.done(Method::POST, &format!("/apps/{app}/start"), None)
                        .await;
                    // Its front and greeters have machines of their own, and its managers one.
                    let wish = json!({"roles": {"greeter": (NODES - 2).to_string()}});
                    let scale = format!("/apps/{app}/services/it/scale");
                    one.done(Method::POST, &scale, Some(wish)).await;
                }
                (one, mine)
            });
        }
        let everybody = tasks.join_all().await;
        println!(
            "{apps} applications in {:?}, {} MiB in all",
            begun.elapsed(),
            memory()
        );
        let machines = world.machines().len();
        assert_eq!(machines, apps * NODES, "machines");

        // And then all look, and some change, without a pause.
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        let first = everybody.clone();
        for (one, mine) in everybody {
            tasks.spawn(async move {
                let (mut lists, mut turn) = (Vec::new(), 0);
                while begun.elapsed() < Duration::from_secs(10) {
                    let app = format!("app{}", mine[turn % mine.len()]);
                    let asked = Instant::now();
                    let list = one.get("/apps").await;
                    lists.push(asked.elapsed());
                    assert_eq!(list["items"].as_array().unwrap().len(), mine.len());
                    for what in ["", "/services/it", "/nodes", "/events"] {
                        one.get(&format!("/apps/{app}{what}")).await;
                    }
                    if turn % 4 == 0 {
                        let wish = json!({"settings": {"greeting": format!("Hello {turn}")}});
                        let settings = format!("/apps/{app}/services/it/settings");
                        one.call(Method::PATCH, &settings, Some(wish)).await;
                    }
                    turn += 1;
                }
                lists
            });
        }
        let mut lists: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        lists.sort_unstable();
        println!(
            "{} lists of applications: half within {:?}, 99 of 100 within {:?}; {} MiB in all",
            lists.len(),
            percentile(&lists, 0.5),
            percentile(&lists, 0.99),
            memory()
        );
        // What everybody wished last is what there is.
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (one, mine) in first {
            tasks.spawn(async move {
                for app in mine {
                    let path = format!("/apps/app{app}/services/it");
                    loop {
                        let service = one.get(&path).await;
                        if service["state"] == "RUNNING" && service["operation"].is_null() {
                            break;
                        }
                        assert!(begun.elapsed() < Duration::from_secs(300), "{service:#}");
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    one.call(Method::DELETE, &format!("/apps/app{app}?now=true"), None)
                        .await;
                }
            });
        }
        tasks.join_all().await;
        println!("all at rest in {:?}", begun.elapsed());
    });
    wait_for("no machine to be left", Duration::from_secs(300), || {
        let left = world.machines().len();
        if left == 0 { Ok(()) } else { Err(left) }
    });
}
