//! What a pool of PHP processes measures, from its own status.

use conpaas_model::ids::ReleaseNumber;
use conpaas_model::metrics::{RoleReading, Value, names};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A pool's status, by the names it gives.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Figures {
    /// Seconds since 1970.
    #[serde(rename = "start time")]
    start_time: u64,
    #[serde(rename = "accepted conn")]
    accepted: u64,
    #[serde(rename = "listen queue")]
    queue: u64,
    #[serde(rename = "idle processes")]
    idle: u64,
    #[serde(rename = "active processes")]
    active: u64,
    #[serde(rename = "max children reached")]
    limit_reached: u64,
    #[serde(rename = "slow requests")]
    slow: u64,
}

impl Figures {
    /// Requests the pool is working on or has waiting.
    pub fn in_flight(&self) -> u64 {
        self.active.saturating_add(self.queue)
    }

    pub fn reading(&self, release: ReleaseNumber) -> RoleReading {
        // Each connection is one request; those that warm it up are among them.
        let values = [
            (names::REQUESTS, Value::Counter(self.accepted)),
            (names::QUEUE, Value::gauge(self.queue)),
            ("processes.active", Value::gauge(self.active)),
            ("processes.idle", Value::gauge(self.idle)),
            ("process_limit_reached", Value::Counter(self.limit_reached)),
            ("slow_requests", Value::Counter(self.slow)),
        ];
        RoleReading {
            release: Some(release),
            life: self.start_time,
            values: BTreeMap::from(values.map(|(name, value)| (name.to_owned(), value))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_a_reading() {
        let text = r#"{"pool":"r1","process manager":"static","start time":1764280800,"start since":9,
            "accepted conn":12,"listen queue":1,"max listen queue":2,"listen queue len":511,"idle processes":3,
            "active processes":2,"total processes":5,"max active processes":4,"max children reached":0,"slow requests":7}"#;
        let figures: Figures = serde_json::from_str(text).unwrap();
        assert_eq!(figures.in_flight(), 3);
        let reading = figures.reading(ReleaseNumber(1));
        assert_eq!(reading.life, 1_764_280_800);
        assert_eq!(reading.values["requests"], Value::Counter(12));
        assert_eq!(reading.values["processes.active"], Value::gauge(2));
        assert_eq!(reading.values["slow_requests"], Value::Counter(7));
    }
}
