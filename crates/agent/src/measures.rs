//! What is measured on this node, as it is now: each role's task puts its part in, the way to the
//! manager takes it out.

use conpaas_model::metrics::{Reading, RoleReading, Source, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clones are the same measures.
#[derive(Clone, Default)]
pub struct Measures(Arc<Mutex<BTreeMap<Option<String>, Vec<Reading>>>>);

impl Measures {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<String>, Vec<Reading>>> {
        // No code that panics runs while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the node itself.
    pub fn of_node(&self, reading: Reading) {
        self.lock().insert(None, vec![reading]);
    }

    /// Of a role, all that it has now.
    pub fn of_role(&self, role: &str, readings: Vec<RoleReading>) {
        let readings = readings.into_iter().map(|reading| Reading {
            source: Source {
                role: Some(role.to_owned()),
                release: reading.release,
            },
            life: reading.life,
            values: reading.values,
        });
        self.lock()
            .insert(Some(role.to_owned()), readings.collect());
    }

    /// A role that has ended is measured no more; what it counted stands, as it may not have been
    /// told yet.
    pub fn ended(&self, role: &str) {
        for reading in self
            .lock()
            .get_mut(&Some(role.to_owned()))
            .into_iter()
            .flatten()
        {
            reading
                .values
                .retain(|_, value| !matches!(value, Value::Gauge(_)));
        }
    }

    /// Everything, the node's own first.
    pub fn all(&self) -> Vec<Reading> {
        self.lock().values().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_ended_role_counted_stands() {
        let measures = Measures::default();
        let values = BTreeMap::from([
            ("queue".to_owned(), Value::gauge(1)),
            ("requests".to_owned(), Value::Counter(7)),
        ]);
        let reading = RoleReading {
            release: None,
            life: 1,
            values,
        };
        measures.of_role("front", vec![reading]);
        measures.ended("front");
        let all = measures.all();
        assert_eq!(all[0].source.role.as_deref(), Some("front"));
        assert_eq!(all[0].values.keys().collect::<Vec<_>>(), ["requests"]);
    }
}
