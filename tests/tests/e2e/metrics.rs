//! What is measured is what happened: requests are counted to the last one, through a restart of
//! the Director too, and every face shows the same.

use conpaas_tests::{World, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";
/// Refused by the proxy itself, and asked for by nobody else: its count says that what was sent
/// before has been counted.
const MARK: &str = "/.conpaas-mark";

fn metrics(world: &World, arguments: &[&str]) -> Value {
    let mut all = vec!["metrics", "shop/web", "--since", "30m"];
    all.extend(arguments);
    world.json(all)
}

/// Requests of the role that people reach, by class.
fn counted(world: &World, arguments: &[&str]) -> BTreeMap<String, u64> {
    let mut all = vec!["--role", "proxy", "--name", "requests"];
    all.extend(arguments);
    let found = metrics(world, &all);
    let mut counts = BTreeMap::new();
    for series in found["series"].as_array().unwrap() {
        let class = series["name"].as_str().unwrap().rsplit('.').next().unwrap();
        *counts.entry(class.to_owned()).or_default() += series["total"]["count"].as_u64().unwrap();
    }
    counts
}

/// Marks the end of what was sent, and waits until all of it has been counted.
fn settled(world: &World, marks: &mut u64) -> BTreeMap<String, u64> {
    assert_eq!(world.get(HOST, MARK).unwrap().0, 404);
    *marks += 1;
    let wanted = *marks;
    wait_for("the mark to be counted", Duration::from_secs(60), || {
        let counts = counted(world, &[]);
        if counts.get("4xx") == Some(&wanted) {
            Ok(counts)
        } else {
            Err(counts)
        }
    })
}

fn send(world: &World, pages: u64, files: u64) {
    for _ in 0..pages {
        assert_eq!(world.get(HOST, "/").unwrap().0, 200);
    }
    for _ in 0..files {
        assert_eq!(world.get(HOST, "/static.txt").unwrap().0, 200);
    }
}

/// The sum over samples of a family that have all these labels.
fn sampled(text: &str, family: &str, labels: &[&str]) -> f64 {
    let mut sum = 0.0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line
            .rsplit_once(' ')
            .unwrap_or_else(|| panic!("no sample: {line}"));
        let value: f64 = value
            .parse()
            .unwrap_or_else(|_| panic!("no number: {line}"));
        let (found, rest) = name.split_once('{').unwrap_or((name, "}"));
        assert!(rest.ends_with('}'), "{line}");
        if found == family && labels.iter().all(|label| rest.contains(label)) {
            sum += value;
        }
    }
    sum
}

/// In a storm how long requests took is told for a part of them, which stands for all.
#[test]
fn a_storm_is_counted_to_the_last_request_and_its_durations_stand_for_all() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    let mut marks = 0;
    let heard = || {
        let found = metrics(&world, &["--role", "proxy", "--name", "latency"]);
        let all = found["series"].as_array().unwrap().iter();
        all.map(|one| one["total"]["count"].as_u64().unwrap())
            .sum::<u64>()
    };
    let before = (settled(&world, &mut marks), heard());
    let storm: u64 = 2000;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| send(&world, 0, storm / 8));
        }
    });
    let after = (settled(&world, &mut marks), heard());
    assert_eq!(
        after.0["2xx"] - before.0["2xx"],
        storm,
        "{before:?} {after:?}"
    );
    let told = after.1 - before.1;
    assert!(
        (storm / 2..=storm * 3 / 2).contains(&told),
        "{told} of {storm}"
    );
}

#[test]
fn every_request_is_counted_and_nodes_are_measured() {
    let world = World::with_shop();
    world.wait_status(HOST, "/", 200);
    let mut marks = 0;
    let before = settled(&world, &mut marks);
    send(&world, 120, 40);
    let after = settled(&world, &mut marks);
    assert_eq!(after["2xx"] - before["2xx"], 160, "{before:?} {after:?}");

    // A Director that was away counts what was answered meanwhile, once.
    world.stop_director();
    send(&world, 15, 5);
    world.start_director();
    let later = settled(&world, &mut marks);
    assert_eq!(later["2xx"] - after["2xx"], 20, "{after:?} {later:?}");

    // Pages and files are told apart by whoever answered, answers by release.
    let released = counted(&world, &["--by", "release"]);
    assert_eq!(released, later, "the releases are all there is");
    let all = metrics(&world, &[]);
    let series = |role: &str, name: &str| {
        let found = all["series"].as_array().unwrap().iter();
        let mut found = found.filter(|one| one["role"] == role && one["name"] == name);
        found
            .next()
            .unwrap_or_else(|| panic!("no {name} of {role}: {all:#}"))
            .clone()
    };
    let latency = series("proxy", "latency");
    let quantile = |name: &str| latency["total"][name].as_f64().unwrap();
    assert!(
        quantile("p50") > 0.0 && quantile("p50") <= quantile("p99"),
        "{latency:#}"
    );
    assert!(quantile("p99") < 60_000.0, "{latency:#}");
    let heard = latency["total"]["count"].as_u64().unwrap();
    assert!((90..=400).contains(&heard), "{latency:#}");
    assert_eq!(
        series("web", "requests.2xx")["total"]["count"],
        45,
        "{all:#}"
    );
    assert!(
        series("backend", "requests")["total"]["count"]
            .as_u64()
            .unwrap()
            >= 135
    );
    assert!(
        series("backend", "processes.idle")["total"]["mean"]
            .as_f64()
            .unwrap()
            >= 0.0
    );
    assert!(
        !all["events"].as_array().unwrap().is_empty(),
        "events are on the same axis"
    );

    let top = world.json(["top", "shop/web"]);
    let node = &top["nodes"][0];
    let memory = node["memory_mib"].as_f64().unwrap();
    assert!(
        (15.0..=256.0).contains(&memory),
        "a small machine that serves: {top:#}"
    );
    assert!(node["cpu_percent"].as_f64().unwrap() > 0.0, "{top:#}");
    assert!(
        node["out_bytes_per_second"].as_f64().unwrap() > 0.0,
        "{top:#}"
    );
    let proxy = top["roles"]
        .as_array()
        .unwrap()
        .iter()
        .find(|role| role["exposed"] == true);
    assert_eq!(proxy.unwrap()["role"], "proxy", "{top:#}");
    let shown = world.json([
        "node",
        "show",
        &format!("shop/web/{}", node["node"].as_str().unwrap()),
    ]);
    let known = shown["summary"]["health"]["memory_used_mib"]
        .as_f64()
        .unwrap();
    assert!((known - memory).abs() < 60.0, "{known} {memory}");

    let text = world.ok(["metrics", "--prometheus"]);
    let of_proxy = ["service=\"web\"", "role=\"proxy\"", "application=\"shop\""];
    let ok = [&of_proxy[..], &["kind=\"2xx\""]].concat();
    assert_eq!(
        sampled(&text, "conpaas_requests_total", &ok),
        later["2xx"] as f64
    );
    let count = sampled(&text, "conpaas_latency_seconds_count", &of_proxy);
    let inf = [&of_proxy[..], &["le=\"+Inf\""]].concat();
    assert_eq!(
        sampled(&text, "conpaas_latency_seconds_bucket", &inf),
        count
    );
    assert!(
        sampled(
            &text,
            "conpaas_memory_bytes",
            &[
                "service=\"web\"",
                "cloud=\"local\"",
                "instance_type=\"small\""
            ]
        ) > 0.0
    );
    let own = world.ok(["director", "metrics"]);
    assert!(sampled(&own, "conpaas_director_requests_total", &["class=\"2xx\""]) > 0.0);
    assert_eq!(sampled(&own, "conpaas_director_applications", &[]), 1.0);

    let plot = world.ok(["metrics", "shop/web", "--since", "10m"]);
    assert!(
        plot.contains("web: requests per second") && plot.is_ascii(),
        "{plot}"
    );
    assert!(world.ok(["top"]).contains("shop/web"));

    let stranger = world.person("eve");
    for command in [["metrics", "admin:shop/web"], ["top", "admin:shop"]] {
        assert_eq!(world.run_as(&stranger, command).code, 4);
    }
    let finished = world.run_as(&stranger, ["metrics", "--prometheus"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (0, ""));
    assert_eq!(world.run_as(&stranger, ["director", "metrics"]).code, 3);
}
