//! Which ends of a node's processes are to be told, and when: the first at once, those of a
//! process that keeps ending together, at longer and longer intervals. Pure: counts, what was told
//! and the time go in. How ends are counted and written down is not decided here.

use conpaas_model::ends::{ProcessEnds, Told};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long after an end was told the next ones of that process are gathered.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest such time, for a process that goes on and on.
const LONGEST_PAUSE: Duration = Duration::from_secs(900);

#[derive(Clone, Debug)]
struct Telling {
    /// What is being told, until it is known to have been written down.
    open: Option<ProcessEnds>,
    begun: Duration,
    pause: Duration,
}

/// What is told of one node's processes.
#[derive(Clone, Debug, Default)]
pub struct EndsTeller {
    processes: BTreeMap<String, Telling>,
}

impl EndsTeller {
    /// What is to be told now, given what the agent counted and what was written down. The same
    /// until it was written down, so it may be sent as often as one likes.
    pub fn tell(&mut self, now: Duration, ends: &[ProcessEnds], told: &Told) -> Vec<ProcessEnds> {
        let up_to = |process: &str| told.get(process).copied().unwrap_or(0);
        self.processes.retain(|process, telling| {
            telling.open.take_if(|open| open.count <= up_to(process));
            // Whatever was quiet for as long again starts anew.
            telling.open.is_some() || now.saturating_sub(telling.begun) < telling.pause * 2
        });
        for found in ends.iter().filter(|e| e.count > up_to(&e.process)) {
            match self.processes.get_mut(&found.process) {
                None => {
                    let telling = Telling {
                        open: Some(found.clone()),
                        begun: now,
                        pause: FIRST_PAUSE,
                    };
                    self.processes.insert(found.process.clone(), telling);
                }
                Some(telling) if telling.open.is_none() => {
                    if now.saturating_sub(telling.begun) >= telling.pause {
                        telling.open = Some(found.clone());
                        telling.begun = now;
                        telling.pause = (telling.pause * 2).min(LONGEST_PAUSE);
                    }
                }
                Some(_) => {}
            }
        }
        self.processes
            .values()
            .filter_map(|telling| telling.open.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::ends::Exit;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ends(process: &str, count: u64) -> ProcessEnds {
        ProcessEnds {
            process: process.into(),
            count,
            last: Exit::Signal(9),
        }
    }

    #[test]
    fn the_first_end_is_told_at_once_and_until_it_is_written_down() {
        let mut teller = EndsTeller::default();
        let mut told = Told::new();
        assert!(teller.tell(s(0), &[], &told).is_empty());
        let one = [ends("a/x", 1)];
        assert_eq!(teller.tell(s(1), &one, &told), one);
        // It ends again before the first was written down: what is open stays as it was.
        assert_eq!(teller.tell(s(2), &[ends("a/x", 2)], &told), one);
        told.insert("a/x".into(), 1);
        assert!(teller.tell(s(3), &[ends("a/x", 2)], &told).is_empty());
        assert_eq!(
            teller.tell(s(31), &[ends("a/x", 2)], &told),
            [ends("a/x", 2)]
        );
        // One process does not hold up another.
        let both = [ends("a/x", 2), ends("b/y", 1)];
        told.insert("a/x".into(), 2);
        assert_eq!(teller.tell(s(32), &both, &told), [ends("b/y", 1)]);
    }

    #[test]
    fn one_that_keeps_ending_is_told_less_and_less_often_and_no_end_is_lost() {
        let mut teller = EndsTeller::default();
        let mut told = Told::new();
        let (mut tellings, mut sum) = (Vec::new(), 0);
        for now in 0..7200 {
            let count = now / 10 + 1;
            for open in teller.tell(s(now), &[ends("a/x", count)], &told) {
                let before = told.insert("a/x".into(), open.count).unwrap_or(0);
                sum += open.count - before;
                tellings.push(now);
            }
        }
        assert!((8..20).contains(&tellings.len()), "{tellings:?}");
        assert_eq!(sum, told["a/x"]);
        // Once it was well for long, the next end is told at once.
        assert!(
            teller
                .tell(s(20_000), &[ends("a/x", sum)], &told)
                .is_empty()
        );
        let next = [ends("a/x", sum + 1)];
        assert_eq!(teller.tell(s(20_001), &next, &told), next);
    }

    #[test]
    fn one_that_took_over_tells_nothing_twice() {
        let mut teller = EndsTeller::default();
        let told = Told::from([("a/x".to_owned(), 3)]);
        assert!(teller.tell(s(0), &[ends("a/x", 3)], &told).is_empty());
        assert_eq!(
            teller.tell(s(0), &[ends("a/x", 5)], &told),
            [ends("a/x", 5)]
        );
    }
}
