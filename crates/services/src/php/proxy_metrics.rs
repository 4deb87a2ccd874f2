//! What the load balancer measures: its counters, laid to the releases that its backends carry,
//! and how long answers took, from its log. Requests that prove its own life do not count.

use super::haproxy::{Runtime, Traffic};
use super::proxy_config::{SELF, TAP, parse_server_name};
use super::proxy_servers::balancer;
use crate::support::{files, metrics::since_epoch};
use conpaas_core::role_agent::RoleError;
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::metrics::{Histogram, RoleReading, Value, names};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;

/// Classes of answers as the load balancer counts them.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];
/// How soon the log is listened to again when that broke off.
const AGAIN: Duration = Duration::from_millis(300);

/// Answers by class.
pub type Answers = [u64; CLASSES.len()];

fn less(all: &Answers, part: &Answers) -> Answers {
    std::array::from_fn(|class| all[class].saturating_sub(part[class]))
}

fn more(all: &mut Answers, part: &Answers) {
    for (own, part) in all.iter_mut().zip(part) {
        *own = own.saturating_add(*part);
    }
}

/// One backend of the fixed ring, which carries one release after another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    release: Option<ReleaseNumber>,
    /// What it had counted before this release.
    base: Answers,
    /// What it had counted before any release.
    nobodys: Answers,
    #[serde(skip)]
    last: Answers,
    /// Whether this agent has looked at it.
    #[serde(skip)]
    seen: bool,
}

/// What is known of one load balancer's counters; kept in a file, as it outlives the agent.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Book {
    /// Of which process.
    pid: i32,
    slots: BTreeMap<String, Slot>,
    /// Answers that no backend gave; never told less than before.
    #[serde(skip)]
    own: Answers,
}

impl Book {
    /// The book of a process, as an earlier agent left it.
    pub fn open(path: &Path, pid: i32) -> Self {
        let found = std::fs::read(path).ok();
        found
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|book| book.pid == pid)
            .unwrap_or_else(|| Self {
                pid,
                ..Self::default()
            })
    }

    pub fn is_of(&self, pid: i32) -> bool {
        self.pid == pid
    }

    fn save(&self, path: &Path) -> Result<(), RoleError> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        files::write_if_changed(path, &text, 0o600).map(drop)
    }

    /// Takes the present counters in; true when a backend carries another release than before.
    pub fn take(
        &mut self,
        traffic: &[Traffic],
        releases: &BTreeMap<String, ReleaseNumber>,
    ) -> bool {
        let mut changed = false;
        let (mut all, mut behind) = (Answers::default(), Answers::default());
        for one in traffic {
            if one.is_frontend {
                more(&mut all, &one.answers);
                continue;
            }
            if one.name == SELF {
                more(&mut behind, &one.answers);
                continue;
            }
            let slot = self.slots.entry(one.name.clone()).or_default();
            if let Some(release) = releases.get(&one.name)
                && slot.release != Some(*release)
            {
                // Nobody was led to the new one before the last look, unless that was an earlier
                // agent's.
                let base = if slot.release.is_some() && !slot.seen {
                    one.answers
                } else {
                    slot.last
                };
                if slot.release.is_none() {
                    slot.nobodys = base;
                }
                (slot.release, slot.base) = (Some(*release), base);
                changed = true;
            }
            (slot.last, slot.seen) = (one.answers, true);
            if slot.release.is_some() {
                more(&mut behind, &less(&slot.last, &slot.nobodys));
            }
        }
        let own = less(&all, &behind);
        // Counters are read one after the other while requests end.
        for (known, now) in self.own.iter_mut().zip(own) {
            *known = now.max(*known);
        }
        changed
    }

    /// Takes counters in and keeps the book if it says something else now.
    pub fn take_and_keep(
        &mut self,
        path: &Path,
        traffic: &[Traffic],
        releases: &BTreeMap<String, ReleaseNumber>,
    ) -> Result<(), RoleError> {
        if self.take(traffic, releases) {
            self.save(path)?;
        }
        Ok(())
    }

    /// Answers by release; those that no backend gave are nobody's.
    pub fn answers(&self) -> BTreeMap<Option<ReleaseNumber>, Answers> {
        let mut all = BTreeMap::from([(None, self.own)]);
        for slot in self.slots.values().filter(|slot| slot.release.is_some()) {
            let counted = less(&slot.last, &slot.base);
            more(all.entry(slot.release).or_default(), &counted);
        }
        all
    }
}

/// Looks at everything the load balancer counts.
pub async fn measure(
    runtime: &Runtime,
    book: &mut Book,
    file: &Path,
    tap: &Tap,
) -> Result<Vec<RoleReading>, RoleError> {
    let failed = || balancer("reading what the load balancer counted");
    let mut carried: BTreeMap<String, ReleaseNumber> = BTreeMap::new();
    for server in runtime.servers().await.map_err(failed())? {
        if let Some((release, _)) = parse_server_name(&server.name) {
            let newest = carried.entry(server.backend).or_insert(release);
            *newest = release.max(*newest);
        }
    }
    let traffic = runtime.traffic().await.map_err(failed())?;
    book.take_and_keep(file, &traffic, &carried)?;
    let mut all = readings(book, &traffic);
    all.extend(tap.readings());
    Ok(all)
}

/// Readings of the load balancer's own counters.
fn readings(book: &Book, traffic: &[Traffic]) -> Vec<RoleReading> {
    let life = u64::try_from(book.pid).unwrap_or(0);
    let mut found = Vec::new();
    for (release, answers) in book.answers() {
        let counters = CLASSES.iter().zip(answers);
        let mut values: BTreeMap<String, Value> = counters
            .map(|(class, count)| {
                (
                    format!("{}.{class}", names::REQUESTS),
                    Value::Counter(count),
                )
            })
            .collect();
        if release.is_none() {
            whole(traffic, &mut values);
        }
        found.push(RoleReading {
            release,
            life,
            values,
        });
    }
    found
}

/// What is the load balancer's as a whole.
fn whole(traffic: &[Traffic], values: &mut BTreeMap<String, Value>) {
    let sum = |of: fn(&Traffic) -> u64, frontends: bool| -> u64 {
        let those = traffic
            .iter()
            .filter(|one| one.is_frontend == frontends && one.name != SELF);
        those.map(of).fold(0, u64::saturating_add)
    };
    let mut put = |name: &str, value| drop(values.insert(name.to_owned(), value));
    put(names::IN_FLIGHT, Value::gauge(sum(|t| t.sessions, false)));
    put(names::QUEUE, Value::gauge(sum(|t| t.queue, false)));
    put("connections", Value::gauge(sum(|t| t.sessions, true)));
    put("bytes.in", Value::Counter(sum(|t| t.bytes_in, true)));
    put("bytes.out", Value::Counter(sum(|t| t.bytes_out, true)));
    put("retries", Value::Counter(sum(|t| t.retries, false)));
    put("aborted_by_client", Value::Counter(sum(|t| t.aborts, true)));
}

type Latencies = Arc<Mutex<BTreeMap<Option<ReleaseNumber>, Histogram>>>;

/// Listens to the load balancer's log of requests; ends when dropped.
pub struct Tap {
    latencies: Latencies,
    life: u64,
    task: JoinHandle<()>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tap {
    pub fn start(runtime: Runtime) -> Self {
        let latencies = Latencies::default();
        Self {
            task: tokio::spawn(listen(runtime, latencies.clone())),
            latencies,
            life: since_epoch(),
        }
    }

    pub fn readings(&self) -> Vec<RoleReading> {
        let latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latencies
            .iter()
            .map(|(release, histogram)| RoleReading {
                release: *release,
                life: self.life,
                values: BTreeMap::from([(
                    names::LATENCY.to_owned(),
                    Value::Histogram(histogram.clone()),
                )]),
            })
            .collect()
    }
}

async fn listen(runtime: Runtime, latencies: Latencies) {
    loop {
        // Until the load balancer ends; what it answers while nobody listens is counted, not timed.
        if let Ok(stream) = runtime.begin(&format!("show events {TAP} -w -n")).await {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Some(Timed {
                    release,
                    micros,
                    of,
                }) = latency(&line)
                else {
                    continue;
                };
                let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
                // Nobody can make more of them than there are releases side by side.
                if latencies.len() < 64 || latencies.contains_key(&release) {
                    latencies
                        .entry(release)
                        .or_default()
                        .observe_many(micros, of);
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What a line of the log says about time.
#[derive(Debug, PartialEq, Eq)]
pub struct Timed {
    pub release: Option<ReleaseNumber>,
    pub micros: u64,
    /// Requests that the line stands for.
    pub of: u64,
}

/// Reads a line of the log (see `proxy_config`) from its end: what comes before holds the
/// client's own words. Upgraded connections last as long as they like.
pub fn latency(line: &str) -> Option<Timed> {
    let mut words = line.trim_end().rsplit(' ');
    let last = words.next()?;
    // A load balancer that an older agent started does not say it.
    let (of, release) = match last.strip_prefix("of=") {
        Some(of) => (of.parse().unwrap_or(1).max(1), words.next()?),
        None => (1, last),
    };
    let release = release.strip_prefix("release=")?;
    let millis: u64 = words.nth(3)?.parse().ok()?;
    let status: u16 = words.nth(1)?.parse().ok()?;
    (status != 101).then(|| Timed {
        release: release.parse().ok().map(ReleaseNumber),
        micros: millis.saturating_mul(1000),
        of,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(name: &str, is_frontend: bool, good: u64, bad: u64) -> Traffic {
        Traffic {
            name: name.to_owned(),
            is_frontend,
            answers: [0, good, 0, 0, bad, 0],
            ..Traffic::default()
        }
    }

    fn carried(release: u64) -> BTreeMap<String, ReleaseNumber> {
        BTreeMap::from([("php-s1".to_owned(), ReleaseNumber(release))])
    }

    #[test]
    fn answers_are_laid_to_releases_and_nobodys_are_the_rest() {
        let mut book = Book::default();
        let at = |all, slot, own| {
            [
                traffic("people", true, all, 3),
                traffic(SELF, false, own, 0),
                traffic("php-s1", false, slot, 0),
            ]
        };
        assert!(!book.take(&at(5, 0, 5), &BTreeMap::new()));
        assert!(book.take(&at(7, 0, 7), &carried(1)));
        assert!(!book.take(&at(20, 10, 8), &carried(1)));
        let answers = book.answers();
        assert_eq!(answers[&Some(ReleaseNumber(1))], [0, 10, 0, 0, 0, 0]);
        assert_eq!(answers[&None], [0, 2, 0, 0, 3, 0]);
        // The ring comes round: the ninth release has the first one's place.
        assert!(book.take(&at(24, 12, 8), &carried(9)));
        let answers = book.answers();
        assert_eq!(answers[&Some(ReleaseNumber(9))][1], 2);
        assert!(!answers.contains_key(&Some(ReleaseNumber(1))));
        assert_eq!(answers[&None][1], 4, "{answers:?}");
    }

    #[test]
    fn a_book_is_of_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.json");
        let mut book = Book::open(&path, 7);
        let now = [
            traffic("people", true, 9, 0),
            traffic("php-s1", false, 4, 0),
        ];
        book.take_and_keep(&path, &now, &carried(2)).unwrap();
        book.take_and_keep(&path, &now, &carried(10)).unwrap();
        let mut again = Book::open(&path, 7);
        again.take(&now, &carried(10));
        assert_eq!(again.answers(), book.answers());
        assert!(Book::open(&path, 8).slots.is_empty());
    }

    #[test]
    fn lines_tell_how_long_answers_took() {
        let line = |rest: &str| format!("10.0.0.1 [27/Nov/2026:21:55:50.063] \"GET /a b\" {rest}");
        let timed = |release: Option<u64>, micros, of| {
            let release = release.map(ReleaseNumber);
            Some(Timed {
                release,
                micros,
                of,
            })
        };
        assert_eq!(
            latency(&line("200 73 12 php-s1 r1n2 ---- release=1 of=8")),
            timed(Some(1), 12_000, 8)
        );
        assert_eq!(
            latency(&line("503 73 0 people <NOSRV> LR-- release=-")),
            timed(None, 0, 1)
        );
        for bad in [
            "200 73 -1 php-s1 r1n2 CD-- release=1 of=-",
            "101 0 90000 php-s1 r1n2 ---- release=1 of=-",
            "200 73 12 php-s1",
        ] {
            assert_eq!(latency(&line(bad)), None, "{bad}");
        }
        assert_eq!(latency("Server php-s1/r1n1 is UP"), None);
    }
}
