//! Shrinking: from a schedule that breaks something to a short one that breaks the same. Whatever
//! can be left out is left out; what stays is made smaller where it still breaks.

use crate::bugs::Bug;
use crate::run::run;
use crate::schedule::{Disturbance, Fault, Schedule, What};
use crate::world::Broken;
use conpaas_model::ids::IdError;

/// Most tries; each is a whole run.
const TRIES: usize = 600;

struct Shrinker {
    bug: Option<Bug>,
    invariant: &'static str,
    best: Schedule,
    broken: Broken,
    tries: usize,
}

impl Shrinker {
    /// Takes a candidate if it still breaks the same invariant.
    fn accept(&mut self, candidate: Schedule) -> Result<bool, IdError> {
        if self.tries >= TRIES {
            return Ok(false);
        }
        self.tries += 1;
        match run(&candidate, self.bug)?.broken {
            Some(broken) if broken.invariant == self.invariant => {
                self.best = candidate;
                self.broken = broken;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Leaves out runs of disturbances, long ones first.
    fn leave_out(&mut self) -> Result<bool, IdError> {
        let mut any = false;
        let mut size = self.best.disturbances.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < self.best.disturbances.len() {
                let mut candidate = self.best.clone();
                let end = (at + size).min(candidate.disturbances.len());
                candidate.disturbances.drain(at..end);
                if self.accept(candidate)? {
                    any = true;
                } else {
                    at += size;
                }
            }
            if size == 1 {
                return Ok(any);
            }
            size = size.div_ceil(2);
        }
    }

    /// Makes what stays smaller.
    fn simplify(&mut self) -> Result<bool, IdError> {
        let mut any = false;
        if self.best.teardown {
            any |= self.accept(Schedule {
                teardown: false,
                ..self.best.clone()
            })?;
        }
        for index in 0..self.best.disturbances.len() {
            let Some(smaller) = self.best.disturbances.get(index).and_then(smaller) else {
                continue;
            };
            let mut candidate = self.best.clone();
            candidate.disturbances[index] = smaller;
            any |= self.accept(candidate)?;
        }
        Ok(any)
    }
}

/// A smaller form of a disturbance, if it has one.
fn smaller(disturbance: &Disturbance) -> Option<Disturbance> {
    let What::Fault(fault) = &disturbance.what else {
        return None;
    };
    let mut fault = fault.clone();
    match &mut fault {
        Fault::Lose { messages: count }
        | Fault::Repeat { messages: count }
        | Fault::Reorder { messages: count }
        | Fault::CloudFails { calls: count, .. }
        | Fault::CloudSlow { calls: count, .. }
        | Fault::AnswersLost { calls: count, .. }
        | Fault::CreatesTwice { calls: count, .. }
        | Fault::ListHides { lists: count, .. }
        | Fault::TakenForDead { lists: count, .. }
        | Fault::ListInvents { lists: count, .. }
        | Fault::ListFails { lists: count, .. }
        | Fault::BootsHang {
            machines: count, ..
        } if *count > 1 => {
            *count = 1;
        }
        Fault::Freezes { lasts, .. }
        | Fault::Partition { lasts, .. }
        | Fault::Slow { lasts, .. }
        | Fault::DiskFull { lasts, .. }
            if *lasts > 1_000 =>
        {
            *lasts /= 2;
        }
        _ => return None,
    }
    Some(Disturbance {
        at: disturbance.at,
        what: What::Fault(fault),
    })
}

/// The shortest schedule found that breaks what this one breaks; nothing when it breaks nothing.
///
/// # Errors
/// Never, as long as the fixed names are valid.
pub fn shrink(
    schedule: &Schedule,
    bug: Option<Bug>,
) -> Result<Option<(Schedule, Broken)>, IdError> {
    let Some(broken) = run(schedule, bug)?.broken else {
        return Ok(None);
    };
    let mut shrinker = Shrinker {
        bug,
        invariant: broken.invariant,
        best: schedule.clone(),
        broken,
        tries: 0,
    };
    while shrinker.leave_out()? | shrinker.simplify()? {}
    let Shrinker {
        mut best, broken, ..
    } = shrinker;
    best.found = Some(format!("{}: {}", broken.invariant, broken.text));
    Ok(Some((best, broken)))
}
