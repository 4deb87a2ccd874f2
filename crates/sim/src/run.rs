//! Runs schedules: one, or as many as asked over the computer's processors. What one schedule
//! does depends on nothing but itself.

use crate::bugs::Bug;
use crate::schedule::Schedule;
use crate::stats::Stats;
use crate::world::{Broken, World};
use conpaas_model::ids::IdError;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// More events than any schedule needs: one that goes on is stuck.
const TOO_MANY: u64 = 200_000;

/// How a schedule ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub broken: Option<Broken>,
    pub stats: Stats,
    /// Simulated milliseconds.
    pub lasted: u64,
}

/// Runs one schedule to its end.
///
/// # Errors
/// Never, as long as the fixed names are valid.
pub fn run(schedule: &Schedule, bug: Option<Bug>) -> Result<Ended, IdError> {
    let mut world = World::new(schedule.clone(), bug)?;
    let mut events = 0;
    while world.step() {
        events += 1;
        if events > TOO_MANY {
            world.broke("the story ends", format!("{events} events and no end"));
        }
    }
    Ok(Ended {
        broken: world.broken,
        stats: world.stats,
        lasted: world.now,
    })
}

/// What many schedules came to.
#[derive(Debug, Default)]
pub struct Summary {
    pub schedules: u64,
    pub stats: Stats,
    pub fewest_events: u64,
    pub fewest_faults: u64,
    /// Seeds that broke something, with what.
    pub broken: Vec<(u64, Broken)>,
}

impl Summary {
    fn add(&mut self, seed: u64, schedule: &Schedule, ended: Ended) {
        let events = ended.stats.total();
        let faults = schedule.faults() as u64;
        if self.schedules == 0 || events < self.fewest_events {
            self.fewest_events = events;
        }
        if self.schedules == 0 || faults < self.fewest_faults {
            self.fewest_faults = faults;
        }
        self.schedules += 1;
        self.stats.merge(&ended.stats);
        if let Some(broken) = ended.broken {
            self.broken.push((seed, broken));
        }
    }
}

/// What to run.
pub struct Order<'a> {
    pub first: u64,
    pub seeds: u64,
    pub workers: usize,
    pub bug: Option<Bug>,
    /// Stop at the first that breaks something.
    pub until_broken: bool,
    /// Asked before each schedule: true ends the run.
    pub enough: &'a (dyn Fn() -> bool + Sync),
}

/// Runs seeds one after the other, on several threads.
///
/// # Errors
/// Never, as long as the fixed names are valid.
pub fn run_many(order: &Order<'_>) -> Result<Summary, IdError> {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let all = Mutex::new(Summary::default());
    let failed = Mutex::new(None);
    let work = || {
        let mut own = Vec::new();
        while !stop.load(Ordering::Relaxed) && !(order.enough)() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= order.seeds {
                break;
            }
            let seed = order.first.wrapping_add(index);
            let schedule = Schedule::of_seed(seed);
            match run(&schedule, order.bug) {
                Ok(ended) => {
                    if ended.broken.is_some() && order.until_broken {
                        stop.store(true, Ordering::Relaxed);
                    }
                    own.push((seed, schedule, ended));
                }
                Err(error) => {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
            if own.len() >= 64 {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                own.drain(..)
                    .for_each(|(seed, schedule, ended)| all.add(seed, &schedule, ended));
            }
        }
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        own.drain(..)
            .for_each(|(seed, schedule, ended)| all.add(seed, &schedule, ended));
    };
    std::thread::scope(|scope| {
        for _ in 0..order.workers.max(1) {
            scope.spawn(work);
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut summary = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.broken.sort_by_key(|(seed, _)| *seed);
    Ok(summary)
}
