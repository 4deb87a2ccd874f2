//! What is read of metrics: steps of many series, laid together by what is asked for.

use super::{COARSE, FINE, MetricsError, Series, SeriesKey, rows};
use conpaas_model::api::MetricPoint;
use conpaas_model::metrics::{Gauge, Histogram, Value};
use rusqlite::Connection;
use std::collections::BTreeMap;

/// Which values are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub application: String,
    pub service: Option<String>,
    pub node: Option<u64>,
    pub role: Option<String>,
    /// A name, or a family of names.
    pub name: Option<String>,
    /// Seconds since 1970, a multiple of `step`.
    pub from: i64,
    /// Before this.
    pub until: i64,
    /// A multiple of the fine step.
    pub step: i64,
    pub by_node: bool,
    pub by_release: bool,
}

/// Values that are laid together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub service: String,
    pub node: Option<u64>,
    pub role: Option<String>,
    pub release: Option<u64>,
    pub name: String,
}

/// What several series say of one step.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Counter(u64),
    /// Means, least and greatest values of each series, added up.
    Gauge {
        mean: f64,
        min: u64,
        max: u64,
    },
    Histogram(Histogram),
}

impl Cell {
    fn of(value: Value) -> Self {
        match value {
            Value::Counter(count) => Self::Counter(count),
            Value::Gauge(gauge) => {
                let (mean, Gauge { min, max, .. }) = (gauge.mean(), gauge);
                Self::Gauge { mean, min, max }
            }
            Value::Histogram(histogram) => Self::Histogram(histogram),
        }
    }

    /// Lays another series beside.
    fn beside(&mut self, other: Self) {
        match (self, other) {
            (Self::Counter(own), Self::Counter(other)) => *own = own.saturating_add(other),
            (
                Self::Gauge { mean, min, max },
                Self::Gauge {
                    mean: other,
                    min: least,
                    max: most,
                },
            ) => {
                *mean += other;
                *min = min.saturating_add(least);
                *max = max.saturating_add(most);
            }
            (Self::Histogram(own), Self::Histogram(other)) => own.merge(&other),
            // Two versions of a type may measure one name differently: the first word holds.
            _ => {}
        }
    }

    /// Stable word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge { .. } => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// By group: the whole time, and each step by its beginning.
pub type Found = BTreeMap<Group, (Cell, BTreeMap<i64, Cell>)>;

fn is_wanted(wanted: &Wanted, name: &str) -> bool {
    wanted.name.as_ref().is_none_or(|family| {
        name.strip_prefix(family.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// See [`super::MetricsStore::read`]; `present` is where the step began that is not on disk yet.
pub fn read(
    database: &Connection,
    series: &BTreeMap<SeriesKey, Series>,
    present: i64,
    wanted: &Wanted,
) -> Result<Found, MetricsError> {
    let length = if wanted.step < COARSE { FINE } else { COARSE };
    let mut found = Found::new();
    for (key, series) in series {
        let fits = key.application == wanted.application
            && wanted
                .service
                .as_ref()
                .is_none_or(|service| *service == key.service)
            && wanted.node.is_none_or(|node| node == key.node)
            && (wanted.role.is_none() || wanted.role == key.source.role)
            && series.heard >= wanted.from;
        if !fits {
            continue;
        }
        let mut whole: BTreeMap<String, Value> = BTreeMap::new();
        let mut parts: BTreeMap<(String, i64), Value> = BTreeMap::new();
        let mut take = |at: i64, values: super::Values| {
            let at = at - at.rem_euclid(wanted.step);
            for (name, value) in values {
                if !is_wanted(wanted, &name) {
                    continue;
                }
                lay(&mut whole, name.clone(), &value);
                lay(&mut parts, (name, at), &value);
            }
        };
        rows::steps(
            database,
            series.id,
            length,
            wanted.from,
            wanted.until,
            &mut take,
        )?;
        if (wanted.from..wanted.until).contains(&present) {
            take(present, series.present.clone());
        }
        let group = |name: String| Group {
            service: key.service.clone(),
            node: wanted.by_node.then_some(key.node),
            role: key.source.role.clone(),
            release: key
                .source
                .release
                .filter(|_| wanted.by_release)
                .map(|release| release.0),
            name,
        };
        for (name, value) in whole {
            let cell = Cell::of(value);
            match found.get_mut(&group(name.clone())) {
                Some((known, _)) => known.beside(cell),
                None => drop(found.insert(group(name), (cell, BTreeMap::new()))),
            }
        }
        for ((name, at), value) in parts {
            let Some((_, steps)) = found.get_mut(&group(name)) else {
                continue;
            };
            let cell = Cell::of(value);
            match steps.get_mut(&at) {
                Some(known) => known.beside(cell),
                None => drop(steps.insert(at, cell)),
            }
        }
    }
    Ok(found)
}

fn lay<K: Ord>(all: &mut BTreeMap<K, Value>, key: K, value: &Value) {
    match all.get_mut(&key) {
        Some(known) => drop(known.merge(value)),
        None => drop(all.insert(key, value.clone())),
    }
}

/// A cell as the API shows it; `seconds` is the time that it covers.
pub fn point(at: String, seconds: i64, cell: &Cell) -> MetricPoint {
    let mut point = MetricPoint {
        at,
        ..MetricPoint::default()
    };
    // Shown to a thousandth: more would be noise.
    let rounded = |value: f64| Some((value * 1000.0).round() / 1000.0);
    let per_second = |count: u64| rounded(count as f64 / seconds.max(1) as f64);
    match cell {
        Cell::Counter(count) => {
            (point.count, point.rate) = (Some(*count), per_second(*count));
        }
        Cell::Gauge { mean, min, max } => {
            (point.mean, point.min, point.max) = (rounded(*mean), Some(*min), Some(*max));
        }
        Cell::Histogram(histogram) => {
            let count = histogram.count();
            let millis = |micros: f64| rounded(micros / 1000.0);
            let quantile = |q| {
                histogram
                    .quantile(q)
                    .and_then(|micros| millis(micros as f64))
            };
            (point.count, point.rate) = (Some(count), per_second(count));
            point.mean = millis(histogram.sum() as f64 / count.max(1) as f64);
            point.p50 = quantile(0.5);
            point.p90 = quantile(0.9);
            point.p99 = quantile(0.99);
        }
    }
    point
}
