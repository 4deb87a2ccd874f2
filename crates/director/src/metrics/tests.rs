//! What is kept, how long, and within which bounds.

use super::*;
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::metrics::{Histogram, Reading};

const APP: &str = "app-a";
/// The beginning of a coarse step.
const T: i64 = 1_800_000_000;

fn node(number: u64, role: Option<&str>, release: u64, values: &[(&str, Value)]) -> NodeMetrics {
    NodeMetrics {
        service: "svc-a".parse().unwrap(),
        node: NodeNumber(number),
        cloud: "local".into(),
        instance_type: "small".into(),
        readings: vec![Reading {
            source: Source {
                role: role.map(str::to_owned),
                release: role.map(|_| ReleaseNumber(release)),
            },
            life: 1,
            values: values
                .iter()
                .map(|(name, value)| (name.to_string(), value.clone()))
                .collect(),
        }],
    }
}

fn requests(number: u64, total: u64) -> NodeMetrics {
    node(
        number,
        Some("front"),
        1,
        &[("requests.2xx", Value::Counter(total))],
    )
}

fn wanted(from: i64, until: i64, step: i64) -> Wanted {
    Wanted {
        application: APP.into(),
        from,
        until,
        step,
        ..Wanted::default()
    }
}

fn counted(found: &Found) -> u64 {
    let cells = found.values().map(|(whole, _)| match whole {
        Cell::Counter(count) => *count,
        _ => 0,
    });
    cells.sum()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }
    fn path(&self) -> PathBuf {
        self.folder.path().join("metrics.db")
    }
    fn open(&self) -> MetricsStore {
        MetricsStore::open(&self.path(), 16 << 20).unwrap()
    }
}

#[test]
fn a_restart_keeps_what_was_and_counts_nothing_twice() {
    let place = Place::new();
    let store = place.open();
    store.take(APP, vec![requests(1, 5)], T).unwrap();
    store
        .take(APP, vec![requests(1, 7), requests(2, 1)], T + 3)
        .unwrap();
    let all = wanted(T, T + 300, 10);
    assert_eq!(
        counted(&store.read(&all).unwrap()),
        8,
        "what is not on disk yet"
    );
    store.flush(T + 10).unwrap();
    assert_eq!(counted(&store.read(&all).unwrap()), 8);
    // Not written before the end: the manager tells all totals again, and they count then.
    store.take(APP, vec![requests(1, 9)], T + 12).unwrap();
    drop(store);
    let store = place.open();
    assert_eq!(counted(&store.read(&all).unwrap()), 8);
    store
        .take(APP, vec![requests(1, 9), requests(2, 1)], T + 15)
        .unwrap();
    store.flush(T + 20).unwrap();
    let found = store.read(&all).unwrap();
    assert_eq!(counted(&found), 10);
    let (_, steps) = found.values().next().unwrap();
    assert_eq!(steps.get(&T), Some(&Cell::Counter(8)));
    assert_eq!(steps.get(&(T + 10)), Some(&Cell::Counter(2)));
    assert_eq!(counted(&store.read(&wanted(T, T + 600, 300)).unwrap()), 10);
}

#[test]
fn series_are_laid_together_or_told_apart() {
    let place = Place::new();
    let store = place.open();
    let latency = |micros: &[u64]| {
        let mut histogram = Histogram::default();
        micros.iter().for_each(|one| histogram.observe(*one));
        ("latency", Value::Histogram(histogram))
    };
    let queue = |looks| ("queue", Value::gauge(looks));
    let told = vec![
        node(1, Some("front"), 1, &[queue(4), latency(&[1000, 1000])]),
        node(1, Some("front"), 1, &[queue(2)]),
        node(
            2,
            Some("front"),
            2,
            &[queue(1), latency(&[1000, 1000, 64_000])],
        ),
        node(2, None, 0, &[("memory_bytes", Value::gauge(9))]),
    ];
    store.take(APP, told, T).unwrap();
    let read = |wanted: Wanted| store.read(&wanted).unwrap();
    let found = read(Wanted {
        name: Some("queue".into()),
        ..wanted(T, T + 10, 10)
    });
    assert_eq!(found.len(), 1);
    let (whole, _) = found.values().next().unwrap();
    // Each node's mean over time, added up: 3 and 1.
    assert_eq!(
        *whole,
        Cell::Gauge {
            mean: 4.0,
            min: 3,
            max: 5
        }
    );
    let found = read(Wanted {
        by_node: true,
        by_release: true,
        role: Some("front".into()),
        ..wanted(T, T + 10, 10)
    });
    assert_eq!(found.len(), 4);
    assert!(found.keys().all(|group| group.node == group.release));
    let found = read(Wanted {
        name: Some("latency".into()),
        ..wanted(T, T + 10, 10)
    });
    let (whole, _) = found.values().next().unwrap();
    let shown = point(String::new(), 10, whole);
    assert_eq!((shown.count, shown.rate), (Some(5), Some(0.5)));
    assert!(
        shown.p50.unwrap() <= 1.1 && shown.p99.unwrap() > 55.0,
        "{shown:?}"
    );
    assert!(
        read(Wanted {
            application: "app-b".into(),
            ..wanted(T, T + 10, 10)
        })
        .is_empty()
    );
    assert!(
        read(Wanted {
            node: Some(3),
            ..wanted(T, T + 10, 10)
        })
        .is_empty()
    );
}

#[test]
fn fine_steps_last_a_day_and_coarse_ones_a_month() {
    let place = Place::new();
    let store = place.open();
    store.take(APP, vec![requests(1, 5)], T).unwrap();
    store.take("app-gone", vec![requests(1, 5)], T).unwrap();
    let keep = |app: &str| app == APP;
    let day = T + FINE_KEPT + 10;
    store.take(APP, vec![requests(1, 6)], day).unwrap();
    store.flush(day + 10).unwrap();
    store.clean(&keep, day + 10).unwrap();
    assert_eq!(store.size().series, 1);
    assert_eq!(counted(&store.read(&wanted(T, day + 20, 10)).unwrap()), 1);
    assert_eq!(counted(&store.read(&wanted(T, day + 20, 300)).unwrap()), 6);
    let month = T + COARSE_KEPT + 300;
    store.clean(&keep, month).unwrap();
    assert_eq!(counted(&store.read(&wanted(T, month, 300)).unwrap()), 1);
    store.clean(&keep, month + COARSE_KEPT).unwrap();
    assert_eq!(store.size().series, 0);
}

#[test]
fn the_file_keeps_its_bound_and_the_modest_keep_their_past() {
    const BOUND: u64 = 1 << 20;
    let place = Place::new();
    let store = MetricsStore::open(&place.path(), BOUND).unwrap();
    store.take("app-modest", vec![requests(1, 3)], T).unwrap();
    for step in 0..1500u32 {
        let now = T + 10 + i64::from(step) * FINE;
        let many: Vec<NodeMetrics> = (0..8)
            .map(|number| requests(number, u64::from(step) + 1))
            .collect();
        // A full file refuses steps; room is made at the next cleaning.
        let _ = store.take(APP, many, now);
        if step % 60 == 59 {
            store.clean(&|_| true, now).unwrap();
        }
    }
    store.clean(&|_| true, T + 20_000).unwrap();
    let size = store.size();
    assert!(size.bytes <= BOUND / 5 * 4, "{size:?}");
    assert!(std::fs::metadata(place.path()).unwrap().len() <= BOUND);
    let log = std::fs::metadata(format!("{}-wal", place.path().display()));
    assert!(log.map_or(0, |found| found.len()) <= 8 << 20);
    let modest = Wanted {
        application: "app-modest".into(),
        ..wanted(T, T + 20_000, 10)
    };
    assert_eq!(counted(&store.read(&modest).unwrap()), 3);
    let newest = store.read(&wanted(T + 14_000, T + 20_000, 10)).unwrap();
    assert!(counted(&newest) > 0, "the newest stay");
}

#[test]
fn an_application_has_no_more_series_than_it_may() {
    let place = Place::new();
    let store = place.open();
    let many = (0..MOST_SERIES as u64 + 3).map(|number| requests(number, 1));
    store.take(APP, many.collect(), T).unwrap();
    store.take("app-b", vec![requests(1, 1)], T).unwrap();
    let size = store.size();
    assert_eq!((size.series, size.left_out), (MOST_SERIES as u64 + 1, 3));
}

#[test]
fn a_file_that_cannot_be_used_is_set_aside() {
    let place = Place::new();
    std::fs::write(
        place.path(),
        "this is no database at all, and long enough to be seen as one".repeat(40),
    )
    .unwrap();
    let store = place.open();
    store.take(APP, vec![requests(1, 1)], T).unwrap();
    store.flush(T + 10).unwrap();
    assert!(place.folder.path().join("metrics.db.broken").exists());
}

#[test]
fn samples_are_told_in_families_with_their_labels() {
    let mut histogram = Histogram::default();
    histogram.observe(900);
    histogram.observe(3_000_000);
    let values = Values::from([
        ("requests.2xx".to_owned(), Value::Counter(7)),
        ("requests.5xx".to_owned(), Value::Counter(1)),
        ("queue".to_owned(), Value::gauge(2)),
        ("latency".to_owned(), Value::Histogram(histogram)),
    ]);
    let mut all = Exposition::default();
    expose(&mut all, &[("service", "we\"b\n".to_owned())], &values);
    let text = all.text();
    for line in [
        "# TYPE conpaas_requests_total counter",
        "conpaas_requests_total{service=\"we\\\"b\\n\",kind=\"2xx\"} 7",
        "conpaas_queue{service=\"we\\\"b\\n\"} 2",
        "conpaas_latency_seconds_bucket{service=\"we\\\"b\\n\",le=\"0.001\"} 1",
        "conpaas_latency_seconds_bucket{service=\"we\\\"b\\n\",le=\"+Inf\"} 2",
        "conpaas_latency_seconds_sum{service=\"we\\\"b\\n\"} 3.0009",
        "conpaas_latency_seconds_count{service=\"we\\\"b\\n\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert_eq!(text.matches("# TYPE conpaas_requests_total").count(), 1);
    let living = Place::new().open().living(&|_| true, T);
    assert!(living.is_empty());
}
