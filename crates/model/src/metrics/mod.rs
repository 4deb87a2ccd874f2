//! What is measured of nodes and roles: counters, gauges and histograms that can be laid together
//! in any order, who measured them, and the form they travel in. Measuring is the agents'
//! business, keeping the Director's.
//!
//! Counters and histograms travel as totals since their source's life began, so a message that is
//! lost or comes twice changes nothing: whoever keeps them asks what came [`Value::since`] the
//! total it knew. Only gauges travel as what was seen since the last message.

mod histogram;

pub use histogram::{BOUNDS, Histogram, QUANTILE_ERROR, bounds};

use crate::ids::{NodeNumber, ReleaseNumber, ServiceId};
use crate::spec::RoleName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most values of one node in one message; what is beyond is left out, and counted.
pub const MOST_VALUES: usize = 512;
/// Longest name of a metric.
const MOST_NAME: usize = 48;

/// Names that mean the same for every service type; a type may have further ones. A name is
/// `FAMILY` or `FAMILY.KIND`; a family's kinds add up.
pub mod names {
    /// Counter of a node: milliseconds of CPU time.
    pub const CPU_MILLIS: &str = "cpu_millis";
    /// Gauge of a node: memory in use that could not be given back at once.
    pub const MEMORY_BYTES: &str = "memory_bytes";
    /// Gauge of a node: what its own files take.
    pub const DISK_BYTES: &str = "disk_bytes";
    /// Counters of a node.
    pub const NETWORK_IN_BYTES: &str = "network_bytes.in";
    pub const NETWORK_OUT_BYTES: &str = "network_bytes.out";
    /// Family of counters of a role: requests that were answered, by class of status (`2xx`).
    pub const REQUESTS: &str = "requests";
    /// Of these, those that failed on our side.
    pub const REQUESTS_5XX: &str = "requests.5xx";
    /// Histogram of a role: how long answers took.
    pub const LATENCY: &str = "latency";
    /// Gauge of a role: requests it works on.
    pub const IN_FLIGHT: &str = "in_flight";
    /// Gauge of a role: requests that wait for it.
    pub const QUEUE: &str = "queue";
    /// Counter of a node: values that were left out because there were too many.
    pub const LEFT_OUT: &str = "values_left_out";
}

/// Whether a word can name a metric: lower-case letters, digits and `_`, one `.` within.
pub fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let (family, kind) = name.split_once('.').unwrap_or((name, "x"));
    name.len() <= MOST_NAME
        && family.starts_with(|c: char| c.is_ascii_lowercase())
        && is_word(family)
        && !kind.is_empty()
        && is_word(kind)
}

/// What several looks at something that goes up and down saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u64, u64)", into = "(u64, u64, u64, u64)")]
pub struct Gauge {
    pub sum: u64,
    /// How many looks there were.
    pub looks: u64,
    pub min: u64,
    pub max: u64,
}

impl From<(u64, u64, u64, u64)> for Gauge {
    fn from((sum, looks, min, max): (u64, u64, u64, u64)) -> Self {
        Self {
            sum,
            looks,
            min,
            max,
        }
    }
}

impl From<Gauge> for (u64, u64, u64, u64) {
    fn from(gauge: Gauge) -> Self {
        (gauge.sum, gauge.looks, gauge.min, gauge.max)
    }
}

impl Gauge {
    /// One look.
    pub fn of(value: u64) -> Self {
        Self {
            sum: value,
            looks: 1,
            min: value,
            max: value,
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.sum = self.sum.saturating_add(other.sum);
        self.looks = self.looks.saturating_add(other.looks);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    pub fn mean(&self) -> f64 {
        // Far below 2^53 in all that is measured here.
        self.sum as f64 / self.looks.max(1) as f64
    }
}

/// A measured value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Only grows.
    #[serde(rename = "c")]
    Counter(u64),
    /// Goes up and down.
    #[serde(rename = "g")]
    Gauge(Gauge),
    /// Durations.
    #[serde(rename = "h")]
    Histogram(Histogram),
}

impl Value {
    /// A gauge that was looked at once.
    pub fn gauge(value: u64) -> Self {
        Self::Gauge(Gauge::of(value))
    }

    /// Lays what another time or another source saw to this; false, and nothing done, when the
    /// other is of another kind. Associative and commutative.
    pub fn merge(&mut self, other: &Self) -> bool {
        match (self, other) {
            (Self::Counter(own), Self::Counter(other)) => *own = own.saturating_add(*other),
            (Self::Gauge(own), Self::Gauge(other)) => own.merge(other),
            (Self::Histogram(own), Self::Histogram(other)) => own.merge(other),
            _ => return false,
        }
        true
    }

    /// What came since an earlier total of the same life. A total that is no continuation of the
    /// earlier one began anew. A gauge is what it is.
    pub fn since(&self, earlier: Option<&Self>) -> Self {
        match (self, earlier) {
            (Self::Counter(now), Some(Self::Counter(before))) => {
                Self::Counter(now.checked_sub(*before).unwrap_or(*now))
            }
            (Self::Histogram(now), Some(Self::Histogram(before))) => {
                Self::Histogram(now.since(before).unwrap_or_else(|| now.clone()))
            }
            _ => self.clone(),
        }
    }

    /// Whether it says nothing: of a difference, that nothing came.
    pub fn is_nothing(&self) -> bool {
        match self {
            Self::Counter(count) => *count == 0,
            Self::Gauge(gauge) => gauge.looks == 0,
            Self::Histogram(histogram) => histogram.is_empty(),
        }
    }
}

/// Who is measured on a node: the node itself, a role, or one release of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<RoleName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
}

/// Values of one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    #[serde(flatten)]
    pub source: Source,
    /// Names whoever counts from its beginning; another life counts from nothing.
    pub life: u64,
    pub values: BTreeMap<String, Value>,
}

/// What a role measured; its agent adds which role it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleReading {
    pub release: Option<ReleaseNumber>,
    pub life: u64,
    pub values: BTreeMap<String, Value>,
}

/// What a manager heard of one node since it last told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMetrics {
    pub service: ServiceId,
    pub node: NodeNumber,
    pub cloud: String,
    pub instance_type: String,
    pub readings: Vec<Reading>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        let durations = prop::collection::vec(any::<u32>(), 0..20);
        prop_oneof![
            any::<u64>().prop_map(Value::Counter),
            (any::<u64>(), any::<u64>()).prop_map(|(a, b)| {
                let mut gauge = Gauge::of(a);
                gauge.merge(&Gauge::of(b));
                Value::Gauge(gauge)
            }),
            durations.prop_map(|all| {
                let mut histogram = Histogram::default();
                all.iter().for_each(|v| histogram.observe(u64::from(*v)));
                Value::Histogram(histogram)
            }),
        ]
    }

    fn merged(one: &Value, two: &Value) -> Option<Value> {
        let mut all = one.clone();
        all.merge(two).then_some(all)
    }

    #[test]
    fn names_are_words_with_a_kind_at_most() {
        for good in ["requests", "requests.2xx", "cpu_millis", "a.b_1"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "a.",
            ".b",
            "a.b.c",
            "A",
            "2a",
            "a b",
            &"x".repeat(49),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_total_that_goes_back_began_anew() {
        let counter = Value::Counter;
        assert_eq!(counter(7).since(Some(&counter(5))), counter(2));
        assert_eq!(counter(3).since(Some(&counter(5))), counter(3));
        assert_eq!(counter(3).since(None), counter(3));
        assert_eq!(counter(3).since(Some(&Value::gauge(1))), counter(3));
        assert!(counter(3).since(Some(&counter(3))).is_nothing());
    }

    #[test]
    fn the_form_is_short() {
        let reading = Reading {
            source: Source {
                role: Some("front".into()),
                release: Some(ReleaseNumber(2)),
            },
            life: 9,
            values: BTreeMap::from([
                ("queue".into(), Value::gauge(4)),
                ("requests.2xx".into(), Value::Counter(12)),
            ]),
        };
        let text = serde_json::to_string(&reading).unwrap();
        assert_eq!(
            text,
            r#"{"role":"front","release":2,"life":9,"values":{"queue":{"g":[4,1,4,4]},"requests.2xx":{"c":12}}}"#
        );
        assert_eq!(serde_json::from_str::<Reading>(&text).unwrap(), reading);
    }

    proptest! {
        #[test]
        fn merging_is_associative_and_commutative(a in value(), b in value(), c in value()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            if let (Some(ab), Some(bc)) = (merged(&a, &b), merged(&b, &c)) {
                prop_assert_eq!(merged(&ab, &c), merged(&a, &bc));
            }
        }

        #[test]
        fn differences_of_totals_add_up(parts in prop::collection::vec(any::<u32>(), 1..20)) {
            let (mut total, mut known, mut all) = (0u64, None, 0u64);
            for part in &parts {
                total += u64::from(*part);
                let Value::Counter(came) = Value::Counter(total).since(known.as_ref()) else {
                    unreachable!()
                };
                all += came;
                known = Some(Value::Counter(total));
            }
            prop_assert_eq!(all, total);
        }

        #[test]
        fn what_is_written_is_read(a in value()) {
            let text = serde_json::to_string(&a).unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), a);
        }
    }
}
