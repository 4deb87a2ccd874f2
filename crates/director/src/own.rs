//! What the Director measures of itself: requests of its API, how long its store takes, and how
//! many there are of what it keeps.

use crate::error::DirectorError;
use crate::metrics::Exposition;
use crate::shared::Shared;
use crate::store::{self, now, operations, services};
use conpaas_model::metrics::{Histogram, Value};
use conpaas_model::spec::RunWish;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a successful write to the store stands for the next who ask.
const WRITE_HOLDS: Duration = Duration::from_secs(1);

/// Counted since this process began.
#[derive(Default)]
pub struct Own {
    requests: Mutex<BTreeMap<&'static str, (u64, Histogram)>>,
    writes: Mutex<Histogram>,
    /// When the store was last proven to take a write.
    proven: tokio::sync::Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that panics runs while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Own {
    /// A request was answered; a stream, when its answer began.
    pub fn answered(&self, status: u16, time: Duration) {
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        let mut requests = lock(&self.requests);
        let (count, latency) = requests.entry(class).or_default();
        *count = count.saturating_add(1);
        latency.observe(micros(time));
    }
}

/// Proves that the store takes a write, as everything the Director does needs one. Many who ask at
/// once make it write once.
///
/// # Errors
/// When it does not.
pub async fn prove_store(shared: &Shared) -> Result<(), DirectorError> {
    let mut proven = shared.own.proven.lock().await;
    if proven.is_some_and(|at| at.elapsed() < WRITE_HOLDS) {
        return Ok(());
    }
    *proven = None;
    let begun = Instant::now();
    shared
        .store
        .quiet(|tx| store::set_meta(tx, "proven-at", &now().to_string()))
        .await?;
    lock(&shared.own.writes).observe(micros(begun.elapsed()));
    *proven = Some(Instant::now());
    Ok(())
}

/// Everything in the format of Prometheus.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn exposed(shared: &Shared) -> Result<String, DirectorError> {
    prove_store(shared).await?;
    let counts = shared.store.read(count).await?;
    let mut all = Exposition::default();
    let version = conpaas_model::VERSION.to_owned();
    all.add(
        "director_info",
        "the program that runs",
        &[("version", version)],
        &Value::gauge(1),
    );
    let up = (now() - shared.started_at).max(0);
    let up = u64::try_from(up / 1000).unwrap_or(0);
    let mut gauge = |name: &str, help: &str, labels: &[(&str, String)], value: u64| {
        all.add(name, help, labels, &Value::gauge(value));
    };
    gauge(
        "director_uptime_seconds",
        "since this process began",
        &[],
        up,
    );
    for ((what, state), number) in counts {
        let help = format!("{} that there are", what.replace('_', " "));
        let labels: Vec<_> = state.into_iter().map(|state| ("state", state)).collect();
        gauge(&format!("director_{what}"), &help, &labels, number);
    }
    let metrics = shared.metrics.clone();
    let size = tokio::task::spawn_blocking(move || metrics.size())
        .await
        .unwrap_or_default();
    gauge(
        "director_metrics_bytes",
        "bytes of metrics that are kept",
        &[],
        size.bytes,
    );
    gauge(
        "director_metrics_series",
        "series that are kept",
        &[],
        size.series,
    );
    all.add(
        "director_metrics_left_out",
        "values that were not kept because there were too many",
        &[],
        &Value::Counter(size.left_out),
    );
    for (class, (count, latency)) in lock(&shared.own.requests).iter() {
        let labels = [("class", (*class).to_owned())];
        let help = "requests of the API that were answered";
        all.add("director_requests", help, &labels, &Value::Counter(*count));
        let help = "how long they took";
        let latency = Value::Histogram(latency.clone());
        all.add("director_request", help, &labels, &latency);
    }
    let writes = Value::Histogram(lock(&shared.own.writes).clone());
    all.add(
        "director_store_write",
        "how long the store took to write",
        &[],
        &writes,
    );
    Ok(all.text())
}

type Counts = BTreeMap<(&'static str, Option<String>), u64>;

fn count(tx: &rusqlite::Transaction<'_>) -> Result<Counts, DirectorError> {
    let mut counts = Counts::new();
    let mut add = |what, state: Option<String>, number: u64| {
        *counts.entry((what, state)).or_default() += number;
    };
    add("users", None, store::users::count(tx)?);
    add("applications", None, store::apps::every(tx)?.len() as u64);
    add(
        "operations_running",
        None,
        operations::running(tx, None)?.len() as u64,
    );
    add(
        "machines_in_quarantine",
        None,
        store::quarantine::count(tx)?,
    );
    for row in services::every(tx)? {
        let state = match row.run {
            RunWish::Running => "running",
            RunWish::Stopped => "stopped",
            RunWish::Deleted => "deleted",
        };
        if !row.internal {
            add("services", Some(state.to_owned()), 1);
        }
        for node in store::machines::nodes_of_service(tx, &row.id)? {
            add("nodes", Some(store::as_word(node.state)), 1);
        }
    }
    Ok(counts)
}
