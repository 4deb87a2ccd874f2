//! What web servers measure: requests, bytes and durations from their log of requests, and how
//! busy they are from their status.

use crate::support::metrics::{Tail, since_epoch};
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::metrics::{Histogram, RoleReading, Value, names};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Releases whose totals are remembered.
const MOST_RELEASES: usize = 64;

#[derive(Default)]
struct Total {
    requests: BTreeMap<&'static str, u64>,
    bytes: u64,
    latency: Histogram,
}

/// What was measured since this agent began to look.
pub struct Measured {
    tail: Tail,
    life: u64,
    totals: BTreeMap<ReleaseNumber, Total>,
}

impl Measured {
    pub fn of(log: PathBuf) -> Self {
        Self {
            tail: Tail::of(log),
            life: since_epoch(),
            totals: BTreeMap::new(),
        }
    }

    /// Reads what was logged meanwhile; `busy` says of each server that answers how many requests
    /// it works on, and how many connections wait for one.
    pub fn look(&mut self, busy: &BTreeMap<ReleaseNumber, (u64, u64)>) -> Vec<RoleReading> {
        let totals = &mut self.totals;
        self.tail.look(|line| {
            let Some(request) = request(line) else { return };
            if totals.len() >= MOST_RELEASES && !totals.contains_key(&request.release) {
                totals.pop_first();
            }
            let total = totals.entry(request.release).or_default();
            let count = total.requests.entry(request.class).or_default();
            *count = count.saturating_add(1);
            total.bytes = total.bytes.saturating_add(request.bytes);
            total.latency.observe(request.micros);
        });
        for release in busy.keys() {
            self.totals.entry(*release).or_default();
        }
        let reading = |(release, total): (&ReleaseNumber, &Total)| {
            let requests = total.requests.iter();
            let mut values: BTreeMap<String, Value> = requests
                .map(|(class, count)| {
                    (
                        format!("{}.{class}", names::REQUESTS),
                        Value::Counter(*count),
                    )
                })
                .collect();
            let latency = Value::Histogram(total.latency.clone());
            values.insert("bytes.out".to_owned(), Value::Counter(total.bytes));
            values.insert(names::LATENCY.to_owned(), latency);
            if let Some((in_flight, idle)) = busy.get(release) {
                values.insert(names::IN_FLIGHT.to_owned(), Value::gauge(*in_flight));
                values.insert("connections_idle".to_owned(), Value::gauge(*idle));
            }
            RoleReading {
                release: Some(*release),
                life: self.life,
                values,
            }
        };
        self.totals.iter().map(reading).collect()
    }
}

struct Request {
    release: ReleaseNumber,
    class: &'static str,
    bytes: u64,
    micros: u64,
}

/// A line of the log (see `web_config`), read from its end: what comes before holds the client's
/// own words.
fn request(line: &str) -> Option<Request> {
    let mut words = line.rsplit(' ');
    let release = words.next()?.strip_prefix("release=")?.parse().ok()?;
    let seconds: f64 = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    let class = match words.next()?.as_bytes() {
        [b'1', _, _] => "1xx",
        [b'2', _, _] => "2xx",
        [b'3', _, _] => "3xx",
        [b'4', _, _] => "4xx",
        [b'5', _, _] => "5xx",
        _ => "other",
    };
    Some(Request {
        release: ReleaseNumber(release),
        class,
        bytes,
        // Whole milliseconds; a negative one becomes nothing.
        micros: (seconds * 1_000_000.0).round() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_release_and_class() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("web-access.log");
        let line =
            |rest: &str| format!("- 10.0.0.2 [2026-11-27T22:00:00+00:00] \"GET /a\" {rest}\n");
        let mut measured = Measured::of(log.clone());
        let text = line("200 512 0.004 release=1")
            + &line("404 10 0.000 release=1")
            + &line("200 1 0.1 release=2");
        std::fs::write(&log, text + "nonsense\n").unwrap();
        let found = measured.look(&BTreeMap::from([(ReleaseNumber(2), (3, 1))]));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].values["requests.2xx"], Value::Counter(1));
        assert_eq!(found[0].values["requests.4xx"], Value::Counter(1));
        assert_eq!(found[0].values["bytes.out"], Value::Counter(522));
        let Value::Histogram(latency) = &found[0].values["latency"] else {
            panic!()
        };
        assert_eq!((latency.count(), latency.sum()), (2, 4000));
        assert_eq!(found[1].values["in_flight"], Value::gauge(3));
    }
}
