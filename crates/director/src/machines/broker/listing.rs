//! When each cloud is asked for its machines: regularly, at once when a list must show what a call
//! did, and soon when somebody fell silent. Pure; asking is the shell's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Looks that a doubt is worth: a cloud may notice a death a moment after the machine's peers do.
const LOOKS: u8 = 2;
/// A doubt is looked into so soon after the last look began, and not sooner, however many there are:
/// clouds count calls.
const SOON: Duration = Duration::from_millis(250);
/// What is due so small a part of the pause after a look is not left to the next.
const LEAD: u32 = 8;

/// One cloud's turn.
struct Turn {
    /// A list is under way: another one begins when it has ended.
    running: bool,
    begun: Option<Instant>,
    regular: Instant,
    at_once: bool,
    doubts: u8,
}

impl Turn {
    fn next(&self) -> Option<Instant> {
        if self.running {
            return None;
        }
        let past = self.begun.unwrap_or(self.regular);
        if self.at_once {
            return Some(past);
        }
        let soon = past + SOON;
        Some(match self.doubts {
            0 => self.regular,
            _ => self.regular.min(soon),
        })
    }
}

/// The turns of all clouds.
pub struct Listing {
    every: Duration,
    turns: BTreeMap<String, Turn>,
}

impl Listing {
    /// All of them are due now.
    pub fn new(clouds: impl IntoIterator<Item = String>, every: Duration, now: Instant) -> Self {
        let turn = |name| {
            let turn = Turn {
                running: false,
                begun: None,
                regular: now,
                at_once: false,
                doubts: 0,
            };
            (name, turn)
        };
        Self {
            every,
            turns: clouds.into_iter().map(turn).collect(),
        }
    }

    /// The clouds to ask now; their lists count as under way from here on.
    pub fn begin(&mut self, now: Instant) -> Vec<String> {
        let until = now + self.every / LEAD;
        let mut due = Vec::new();
        for (name, turn) in &mut self.turns {
            if turn.next().is_some_and(|at| at <= until) {
                turn.running = true;
                turn.begun = Some(now);
                turn.at_once = false;
                turn.doubts = turn.doubts.saturating_sub(1);
                due.push(name.clone());
            }
        }
        due
    }

    /// A cloud's list has come, or will not.
    pub fn ended(&mut self, cloud: &str, now: Instant) {
        if let Some(turn) = self.turns.get_mut(cloud) {
            turn.running = false;
            turn.regular = now + self.every;
        }
    }

    /// Only a list that begins from now on tells what is waited for.
    pub fn at_once(&mut self, cloud: &str) {
        if let Some(turn) = self.turns.get_mut(cloud) {
            turn.at_once = true;
        }
    }

    /// Machines of these clouds may have died.
    pub fn doubted(&mut self, clouds: &BTreeSet<String>) {
        for cloud in clouds {
            if let Some(turn) = self.turns.get_mut(cloud) {
                turn.doubts = LOOKS;
            }
        }
    }

    /// When the next one is due; nothing while all are under way.
    pub fn next(&self) -> Option<Instant> {
        let each = self.turns.values();
        each.filter_map(Turn::next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    fn one(now: Instant) -> Listing {
        Listing::new(["local".to_owned()], EVERY, now)
    }

    fn doubt() -> BTreeSet<String> {
        BTreeSet::from(["local".to_owned(), "none".to_owned()])
    }

    #[test]
    fn a_call_that_ends_during_a_list_is_seen_by_one_of_its_own() {
        let start = Instant::now();
        let mut listing = one(start);
        assert_eq!(listing.begin(start), ["local"]);
        // The answer of the list that was under way does not stand for what came meanwhile.
        listing.at_once("local");
        assert!(listing.begin(start).is_empty(), "one at a time");
        listing.ended("local", start);
        assert!(listing.next().is_some_and(|at| at <= start));
        assert_eq!(listing.begin(start), ["local"]);
        listing.ended("local", start);
        assert_eq!(listing.next(), Some(start + EVERY));
    }

    #[test]
    fn a_doubt_is_looked_into_twice_and_soon() {
        let start = Instant::now();
        let mut listing = one(start);
        listing.begin(start);
        listing.ended("local", start);
        for _ in 0..100 {
            listing.doubted(&doubt());
        }
        assert!(listing.begin(start).is_empty(), "however many there are");
        for look in 1..=2 {
            let at = start + SOON * look;
            assert_eq!(listing.next(), Some(at));
            assert_eq!(listing.begin(at), ["local"]);
            listing.ended("local", at);
        }
        assert_eq!(listing.next(), Some(start + SOON * 2 + EVERY));
    }

    #[test]
    fn a_slow_cloud_has_its_pause_after_each_list() {
        let start = Instant::now();
        let mut listing = one(start);
        listing.begin(start);
        assert_eq!(listing.next(), None);
        assert!(listing.begin(start + EVERY * 10).is_empty());
        listing.ended("local", start + EVERY * 10);
        assert_eq!(listing.next(), Some(start + EVERY * 11));
    }
}
