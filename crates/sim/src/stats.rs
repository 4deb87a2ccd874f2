//! What a run has met: events, faults, wishes, states, how operations ended. Printed with every
//! run, so that nobody mistakes an empty one for a good one.

use crate::store::Outcome;
use std::collections::BTreeMap;

/// Counts, by name.
pub type Counts = BTreeMap<&'static str, u64>;

/// What was met.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub events: Counts,
    pub faults: Counts,
    pub wishes: Counts,
    pub states: Counts,
    pub outcomes: BTreeMap<(&'static str, &'static str), u64>,
    /// Disturbances that found nobody to happen to.
    pub missed: u64,
}

fn add(counts: &mut Counts, what: &'static str) {
    *counts.entry(what).or_default() += 1;
}

impl Stats {
    pub fn event(&mut self, kind: &'static str) {
        add(&mut self.events, kind);
    }

    pub fn fault(&mut self, kind: &'static str, hit: bool) {
        if hit {
            add(&mut self.faults, kind);
        } else {
            self.missed += 1;
        }
    }

    pub fn wish(&mut self, kind: &'static str, accepted: bool) {
        add(&mut self.wishes, if accepted { kind } else { "refused" });
    }

    pub fn state(&mut self, what: &'static str) {
        add(&mut self.states, what);
    }

    pub fn outcome(&mut self, kind: &'static str, outcome: Outcome) {
        let word = match outcome {
            Outcome::Running => "running",
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Superseded => "superseded",
            Outcome::Cancelled => "cancelled",
        };
        *self.outcomes.entry((kind, word)).or_default() += 1;
    }

    /// All events.
    pub fn total(&self) -> u64 {
        self.events.values().sum()
    }

    /// Faults that happened to somebody.
    pub fn faults_met(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        let pairs = [
            (&mut self.events, &other.events),
            (&mut self.faults, &other.faults),
            (&mut self.wishes, &other.wishes),
            (&mut self.states, &other.states),
        ];
        for (own, more) in pairs {
            for (what, count) in more {
                *own.entry(what).or_default() += count;
            }
        }
        for (what, count) in &other.outcomes {
            *self.outcomes.entry(*what).or_default() += count;
        }
        self.missed += other.missed;
    }
}
