//! How often refused enrolments are told: they need no credentials, so whoever reaches the
//! listener could fill the log and the history with them.

use crate::store::Millis;
use conpaas_model::ids::MachineId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Each kind is told at most once in this time.
const TOLD_EVERY_MS: Millis = 60_000;
/// How long what was not told yet is kept.
const FORGET_AFTER_MS: Millis = 3_600_000;

/// What is told once a minute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Events of a machine's application.
    Event(MachineId),
    /// Lines of the log about a machine that there is.
    Line(MachineId),
    /// Lines of the log about machines that there never were, all together.
    Unknown,
    /// Lines of the log about attempts that came too fast, all together.
    TooFast,
}

struct Count {
    told_at: Millis,
    untold: u64,
}

/// Counts refusals between one telling and the next. In memory: a restart forgets.
#[derive(Default)]
pub struct Refusals {
    counts: Mutex<HashMap<Told, Count>>,
}

impl Refusals {
    /// Counts a refusal. Gives how many there were since the last telling, this one included,
    /// when it is time to tell again.
    pub fn note(&self, what: Told, now: Millis) -> Option<u64> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, count| count.told_at.saturating_add(FORGET_AFTER_MS) > now);
        match counts.get_mut(&what) {
            Some(count) if count.told_at.saturating_add(TOLD_EVERY_MS) > now => {
                count.untold = count.untold.saturating_add(1);
                None
            }
            found => {
                let untold = found.map_or(0, |count| count.untold);
                let count = Count {
                    told_at: now,
                    untold: 0,
                };
                counts.insert(what, count);
                Some(untold.saturating_add(1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_minute_is_told_with_a_count() {
        let refusals = Refusals::default();
        let (a, b): (MachineId, MachineId) = ("m-a".parse().unwrap(), "m-b".parse().unwrap());
        assert_eq!(refusals.note(Told::Event(a.clone()), 0), Some(1));
        for now in 1..=300 {
            assert_eq!(refusals.note(Told::Event(a.clone()), now), None);
        }
        // Others have counts of their own, and no kind hides another.
        assert_eq!(refusals.note(Told::Event(b), 300), Some(1));
        assert_eq!(refusals.note(Told::Line(a.clone()), 300), Some(1));
        assert_eq!(refusals.note(Told::Unknown, 300), Some(1));
        assert_eq!(refusals.note(Told::Event(a.clone()), 60_000), Some(301));
        assert_eq!(refusals.note(Told::Event(a.clone()), 60_001), None);
        assert_eq!(
            refusals.note(Told::Event(a), 60_000 + 2 * FORGET_AFTER_MS),
            Some(1)
        );
    }
}
