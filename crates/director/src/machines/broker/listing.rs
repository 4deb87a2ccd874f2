//! When each cloud is asked for its machines: regularly, at once when a list must show what a call
//! did, and soon when somebody fell silent. Pure; asking is the shell's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Looks that a doubt is worth: a cloud may notice a death a moment after the machine's peers do.
const LOOKS: u8 = 2;
/// A doubt is looked into so long after the last look's end, and not sooner, however many there are:
/// clouds count calls.
const SOON: Duration = Duration::from_millis(250);
/// What is due so small a part of the pause after a look is not left to the next.
const LEAD: u32 = 8;

/// One cloud's turn.
struct Turn {
    /// A list is under way: another one begins when it has ended.
    running: bool,
    /// A list that begins from now on is waited for.
    at_once: bool,
    doubts: u8,
    ended: Option<Instant>,
    regular: Instant,
    /// What the list that is under way was begun for, should it bring no answer.
    took: (bool, u8),
}

impl Turn {
    /// When the next one is due; nothing while one is under way.
    fn next(&self) -> Option<Instant> {
        if self.running {
            return None;
        }
        let past = self.ended.unwrap_or(self.regular);
        Some(match (self.at_once, self.doubts) {
            (true, _) => past,
            (false, 0) => self.regular,
            (false, _) => self.regular.min(past + SOON),
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
                at_once: false,
                doubts: 0,
                ended: None,
                regular: now,
                took: (false, 0),
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
        let lead = self.every / LEAD;
        let mut due = Vec::new();
        for (name, turn) in &mut self.turns {
            let regular = !turn.running && turn.regular <= now + lead;
            if regular || turn.next().is_some_and(|at| at <= now) {
                let look = turn.doubts.min(1);
                turn.took = (std::mem::take(&mut turn.at_once), look);
                turn.doubts -= look;
                turn.running = true;
                due.push(name.clone());
            }
        }
        due
    }

    /// A cloud's list has come, or will not: then what it was for is still to be seen, but soon instead
    /// of at once.
    pub fn ended(&mut self, cloud: &str, answered: bool, now: Instant) {
        if let Some(turn) = self.turns.get_mut(cloud) {
            let (at_once, look) = turn.took;
            if !answered {
                turn.doubts = turn.doubts.max(look).max(u8::from(at_once));
            }
            turn.running = false;
            turn.ended = Some(now);
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
        listing.ended("local", true, start);
        assert!(listing.next().is_some_and(|at| at <= start));
        assert_eq!(listing.begin(start), ["local"]);
        listing.ended("local", true, start);
        assert_eq!(listing.next(), Some(start + EVERY));
    }

    #[test]
    fn a_doubt_is_looked_into_twice_and_soon() {
        let start = Instant::now();
        let mut listing = one(start);
        listing.begin(start);
        listing.ended("local", true, start);
        for _ in 0..100 {
            listing.doubted(&doubt());
        }
        assert!(listing.begin(start).is_empty(), "however many there are");
        for look in 1..=2 {
            let at = start + SOON * look;
            assert_eq!(listing.next(), Some(at));
            assert_eq!(listing.begin(at), ["local"]);
            listing.ended("local", true, at);
        }
        assert_eq!(listing.next(), Some(start + SOON * 2 + EVERY));
    }

    #[test]
    fn what_a_list_without_an_answer_was_for_is_still_looked_for() {
        let start = Instant::now();
        let mut listing = one(start);
        listing.begin(start);
        listing.at_once("local");
        listing.ended("local", true, start);
        assert_eq!(listing.begin(start), ["local"]);
        let end = start + SOON * 8;
        listing.ended("local", false, end);
        assert!(
            listing.begin(end).is_empty(),
            "a cloud in trouble is not pressed"
        );
        assert_eq!(listing.next(), Some(end + SOON));
        assert_eq!(listing.begin(end + SOON), ["local"]);
        listing.ended("local", true, end + SOON);
        assert_eq!(listing.next(), Some(end + SOON + EVERY));
    }

    #[test]
    fn a_slow_cloud_has_its_pause_after_each_list() {
        let start = Instant::now();
        let mut listing = one(start);
        listing.begin(start);
        assert_eq!(listing.next(), None);
        assert!(listing.begin(start + EVERY * 10).is_empty());
        listing.ended("local", true, start + EVERY * 10);
        assert_eq!(listing.next(), Some(start + EVERY * 11));
    }
}
