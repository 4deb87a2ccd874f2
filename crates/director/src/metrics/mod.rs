//! What was measured of nodes and roles, kept: a day in fine steps, a month in coarse ones, in a
//! file of its own of bounded size. Here is what comes in and goes to disk; `rows` says how rows
//! lie there, `query` what is read of them, `exposition` how others' tools read the totals.

mod exposition;
mod query;
mod rows;
#[cfg(test)]
mod tests;

pub use exposition::{Exposition, Label, expose};
pub use query::{Cell, Found, Group, Wanted, point};

use conpaas_core::metrics::Totals;
use conpaas_model::metrics::{NodeMetrics, Source, Value};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seconds of a fine and of a coarse step, and how long each are kept.
pub const FINE: i64 = 10;
pub const COARSE: i64 = 300;
pub const FINE_KEPT: i64 = 24 * 3600;
pub const COARSE_KEPT: i64 = 31 * 24 * 3600;
/// Most series of one application: what is beyond is not kept.
pub const MOST_SERIES: usize = 4000;
/// Who was silent for so long is not there now.
pub const SILENCE: i64 = 60;

/// What went wrong with the file of metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("the file of metrics cannot be used")]
    Database(#[from] rusqlite::Error),
    #[error("a record of metrics cannot be read")]
    Record(#[from] serde_json::Error),
    #[error("the file of metrics cannot be replaced")]
    File(#[from] std::io::Error),
}

/// Whose values a series holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesKey {
    pub application: String,
    pub service: String,
    pub node: u64,
    pub source: Source,
}

/// Values by name.
pub type Values = BTreeMap<String, Value>;

/// A series as it is known now.
#[derive(Clone, Debug)]
pub struct Series {
    id: i64,
    pub cloud: String,
    pub instance_type: String,
    totals: Totals,
    /// Everything that came since the series began; of gauges, what came last.
    pub sums: Values,
    /// What came in the present fine step.
    present: Values,
    /// Seconds since 1970 when something came last.
    pub heard: i64,
}

struct Inner {
    database: Connection,
    series: BTreeMap<SeriesKey, Series>,
    /// Series by application.
    counts: BTreeMap<String, usize>,
    /// Where the present fine step began.
    step: i64,
    next_id: i64,
    /// Values that were not kept.
    left_out: u64,
}

/// See the module. Every method may wait for the disk.
pub struct MetricsStore {
    inner: Mutex<Inner>,
    most_bytes: u64,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: u64,
    pub series: u64,
    pub left_out: u64,
}

impl MetricsStore {
    /// Opens the file, or makes it. One that cannot be used is set aside: figures of the past are
    /// no reason not to serve.
    ///
    /// # Errors
    /// When no file can be made either.
    pub fn open(path: &Path, most_bytes: u64) -> Result<Self, MetricsError> {
        let opened = match open(path, most_bytes) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "metrics begin anew; what was there is set aside"
                );
                let aside = PathBuf::from(format!("{}.broken", path.display()));
                match std::fs::rename(path, aside) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error.into());
                    }
                    _ => {}
                }
                for part in ["-wal", "-shm"] {
                    // Parts of the file that was set aside; often there are none.
                    let _ = std::fs::remove_file(format!("{}{part}", path.display()));
                }
                open(path, most_bytes)?
            }
        };
        Ok(Self {
            inner: Mutex::new(opened),
            most_bytes,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic amid a change leaves at worst a step without some values.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a manager heard of an application's nodes, at a moment in seconds since 1970.
    ///
    /// # Errors
    /// When the step before cannot be written.
    pub fn take(
        &self,
        application: &str,
        metrics: Vec<NodeMetrics>,
        now: i64,
    ) -> Result<(), MetricsError> {
        let mut inner = self.lock();
        inner.move_on(now)?;
        for node in metrics {
            for reading in node.readings {
                let key = SeriesKey {
                    application: application.to_owned(),
                    service: node.service.to_string(),
                    node: node.node.0,
                    source: reading.source,
                };
                let Some(series) = inner.series(key, &node.cloud, &node.instance_type) else {
                    inner.left_out += reading.values.len() as u64;
                    continue;
                };
                series.heard = now;
                for (name, total) in reading.values {
                    let came = series.totals.came(&name, reading.life, &total);
                    series.add(name, came);
                }
            }
        }
        Ok(())
    }

    /// Writes the present step down.
    ///
    /// # Errors
    /// When the disk does not take it; it is tried again with the next.
    pub fn flush(&self, now: i64) -> Result<(), MetricsError> {
        let mut inner = self.lock();
        if inner.write().is_err() {
            // It may be full; if it is something else, it is said the second time.
            rows::make_room(&inner.database, self.most_bytes)?;
            inner.write()?;
        }
        inner.move_on(now)
    }

    /// Forgets what is too old, what belongs to applications that `keep` does not know, and the
    /// oldest of whoever has most while there is too much.
    ///
    /// # Errors
    /// When the disk does not do it.
    pub fn clean(&self, keep: &dyn Fn(&str) -> bool, now: i64) -> Result<(), MetricsError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let gone: Vec<SeriesKey> = inner
            .series
            .iter()
            .filter(|(key, series)| !keep(&key.application) || series.heard < now - COARSE_KEPT)
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            if let Some(series) = inner.series.remove(&key) {
                rows::forget(&inner.database, series.id)?;
                if let Some(count) = inner.counts.get_mut(&key.application) {
                    *count = count.saturating_sub(1);
                }
            }
        }
        let ids = inner.series.values().map(|series| series.id);
        rows::forget_old(&inner.database, ids, now)?;
        rows::make_room(&inner.database, self.most_bytes)
    }

    pub fn size(&self) -> Size {
        let inner = self.lock();
        Size {
            bytes: rows::used_bytes(&inner.database).unwrap_or(0),
            series: inner.series.len() as u64,
            left_out: inner.left_out,
        }
    }

    /// What is kept of what is wanted.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, wanted: &Wanted) -> Result<Found, MetricsError> {
        let inner = self.lock();
        query::read(&inner.database, &inner.series, inner.step, wanted)
    }

    /// Series of some applications that were heard a moment ago.
    pub fn living(&self, is_wanted: &dyn Fn(&str) -> bool, now: i64) -> Vec<(SeriesKey, Series)> {
        let inner = self.lock();
        inner
            .series
            .iter()
            .filter(|(key, series)| is_wanted(&key.application) && series.heard >= now - SILENCE)
            .map(|(key, series)| (key.clone(), series.clone()))
            .collect()
    }
}

fn open(path: &Path, most_bytes: u64) -> Result<Inner, MetricsError> {
    let database = rows::open(path, most_bytes)?;
    let (series, next_id) = rows::every_series(&database)?;
    let mut counts = BTreeMap::new();
    for key in series.keys() {
        *counts.entry(key.application.clone()).or_default() += 1;
    }
    Ok(Inner {
        database,
        series,
        counts,
        step: 0,
        next_id,
        left_out: 0,
    })
}

impl Inner {
    /// The series of a key, made when it is new and there is room.
    fn series(&mut self, key: SeriesKey, cloud: &str, instance_type: &str) -> Option<&mut Series> {
        if !self.series.contains_key(&key) {
            let count = self.counts.entry(key.application.clone()).or_default();
            if *count >= MOST_SERIES {
                return None;
            }
            *count += 1;
            let series = Series {
                id: self.next_id,
                cloud: cloud.to_owned(),
                instance_type: instance_type.to_owned(),
                totals: Totals::default(),
                sums: Values::new(),
                present: Values::new(),
                heard: 0,
            };
            self.next_id += 1;
            self.series.insert(key.clone(), series);
        }
        self.series.get_mut(&key)
    }

    /// Begins the step of a moment, when the present one is over. A clock that was set back
    /// begins an earlier one; what is there already is added to.
    fn move_on(&mut self, now: i64) -> Result<(), MetricsError> {
        let step = now - now.rem_euclid(FINE);
        if step != self.step {
            if self
                .series
                .values()
                .any(|series| !series.present.is_empty())
            {
                self.write()?;
            }
            self.step = step;
        }
        Ok(())
    }

    /// Writes what came in the present step, with the totals by which it is known that it came:
    /// both or none, so that a crash counts nothing twice and loses nothing.
    fn write(&mut self) -> Result<(), MetricsError> {
        let coarse = self.step - self.step.rem_euclid(COARSE);
        let tx = self.database.transaction()?;
        for (key, series) in &self.series {
            if series.present.is_empty() {
                continue;
            }
            rows::add(&tx, series.id, FINE, self.step, &series.present)?;
            rows::add(&tx, series.id, COARSE, coarse, &series.present)?;
            rows::put_series(&tx, key, series)?;
        }
        tx.commit()?;
        for series in self.series.values_mut() {
            series.present.clear();
        }
        Ok(())
    }
}

impl Series {
    fn add(&mut self, name: String, came: Value) {
        if came.is_nothing() {
            // Known all the same: it may be shown as nothing.
            self.sums.entry(name).or_insert(came);
            return;
        }
        match self.sums.get_mut(&name) {
            Some(sum) if !matches!(came, Value::Gauge(_)) => drop(sum.merge(&came)),
            _ => drop(self.sums.insert(name.clone(), came.clone())),
        }
        match self.present.get_mut(&name) {
            Some(present) => drop(present.merge(&came)),
            None => drop(self.present.insert(name, came)),
        }
    }
}
