//! How an operation ends: it observes that generations of services are reached, and nothing
//! else. What is done to reach them is the planner's business; keeping records is the Director's.

use conpaas_model::ids::Generation;
use conpaas_model::status::{ServiceStatus, Waiting};

/// What an operation waits for at one service, beside how that service stands now.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub service: &'a str,
    /// The generation this operation made.
    pub generation: Generation,
    pub goal: Goal,
    /// Absent when the service's record is gone.
    pub now: Option<Standing<'a>>,
}

/// What counts as reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// What is observed equals the wish.
    Reached,
    /// Nothing of the service is left.
    Removed,
}

/// How a service stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// The newest wish.
    pub generation: Generation,
    /// The newest generation that was ever reached.
    pub reached: Generation,
    /// Its manager's last word.
    pub status: Option<&'a ServiceStatus>,
    /// Why it can have no manager, if that is so for good.
    pub unmanaged: Option<&'a str>,
}

/// How an operation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Running,
    Done,
    /// With the reason for people. The wish stays and work goes on.
    Failed(String),
    /// Newer wishes took the place of whatever was still to be reached.
    Superseded,
}

#[derive(PartialEq)]
enum Progress {
    Pending,
    Reached,
    Replaced,
}

fn progress(target: &Target<'_>) -> Progress {
    match (target.goal, target.now) {
        (Goal::Removed, None) => Progress::Reached,
        (Goal::Removed, Some(_)) => Progress::Pending,
        (Goal::Reached, None) => Progress::Replaced,
        (Goal::Reached, Some(now)) if now.reached >= target.generation => Progress::Reached,
        (Goal::Reached, Some(now)) if now.generation > target.generation => Progress::Replaced,
        (Goal::Reached, Some(_)) => Progress::Pending,
    }
}

/// What keeps a target from being reached for good, as far as its manager saw this generation.
fn failure(target: &Target<'_>) -> Option<String> {
    let now = target.now?;
    if target.goal == Goal::Removed {
        return None;
    }
    let own = now
        .status
        .filter(|status| status.generation >= target.generation)
        .and_then(|status| status.failed.as_ref());
    match (own, now.unmanaged) {
        (Some(reason), _) => Some(format!("{}: {reason}", target.service)),
        (None, Some(reason)) => Some(format!("{}: its manager: {reason}", target.service)),
        (None, None) => None,
    }
}

/// Why a target is not reached yet, in words.
fn reasons(target: &Target<'_>) -> String {
    let status = target.now.and_then(|now| now.status);
    match status {
        Some(status) if status.generation >= target.generation => {
            let waiting: Vec<&str> = status
                .waiting
                .iter()
                .map(|Waiting { text, .. }| text.as_str())
                .collect();
            if waiting.is_empty() {
                format!("{}: its steps are not finished", target.service)
            } else {
                format!("{}: {}", target.service, waiting.join("; "))
            }
        }
        _ => format!(
            "{}: its manager has not taken the change up yet",
            target.service
        ),
    }
}

/// How the operation with these targets stands. It is done only when all are reached.
pub fn judge(targets: &[Target<'_>], deadline_passed: bool) -> Verdict {
    let mut pending = Vec::new();
    let mut replaced = false;
    for target in targets {
        match progress(target) {
            Progress::Pending => pending.push(target),
            Progress::Replaced => replaced = true,
            Progress::Reached => {}
        }
    }
    if pending.is_empty() {
        return if replaced {
            Verdict::Superseded
        } else {
            Verdict::Done
        };
    }
    let failures: Vec<String> = pending.iter().copied().filter_map(failure).collect();
    if !failures.is_empty() {
        return Verdict::Failed(failures.join("; "));
    }
    if deadline_passed {
        let reasons: Vec<String> = pending.iter().copied().map(reasons).collect();
        return Verdict::Failed(format!(
            "not reached within its time; work goes on. {}",
            reasons.join("; ")
        ));
    }
    Verdict::Running
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target<'a>(generation: u64, now: Option<(u64, u64, &'a ServiceStatus)>) -> Target<'a> {
        Target {
            service: "web",
            generation: Generation(generation),
            goal: Goal::Reached,
            now: now.map(|(newest, reached, status)| Standing {
                generation: Generation(newest),
                reached: Generation(reached),
                status: Some(status),
                unmanaged: None,
            }),
        }
    }

    fn status(generation: u64, failed: Option<&str>, waiting: &[&str]) -> ServiceStatus {
        ServiceStatus {
            generation: Generation(generation),
            failed: failed.map(str::to_owned),
            waiting: waiting
                .iter()
                .map(|text| Waiting {
                    kind: "x".to_owned(),
                    text: (*text).to_owned(),
                })
                .collect(),
            ..ServiceStatus::default()
        }
    }

    #[test]
    fn done_only_when_every_target_is_reached() {
        let s = status(5, None, &[]);
        assert_eq!(judge(&[], false), Verdict::Done);
        assert_eq!(judge(&[target(5, Some((5, 5, &s)))], true), Verdict::Done);
        let both = [target(5, Some((5, 5, &s))), target(5, Some((5, 4, &s)))];
        assert_eq!(judge(&both, false), Verdict::Running);
    }

    #[test]
    fn a_newer_wish_takes_the_place_of_what_was_not_reached() {
        let s = status(5, None, &[]);
        assert_eq!(
            judge(&[target(5, Some((6, 4, &s)))], false),
            Verdict::Superseded
        );
        let mixed = [target(5, Some((6, 4, &s))), target(2, Some((2, 1, &s)))];
        assert_eq!(judge(&mixed, false), Verdict::Running);
        assert_eq!(judge(&[target(5, None)], false), Verdict::Superseded);
    }

    #[test]
    fn a_failure_of_this_generation_ends_it_at_once_an_older_one_does_not() {
        let s = status(5, Some("release r3 does not start"), &[]);
        let verdict = judge(&[target(5, Some((5, 4, &s)))], false);
        assert_eq!(
            verdict,
            Verdict::Failed("web: release r3 does not start".to_owned())
        );
        assert_eq!(
            judge(&[target(6, Some((6, 4, &s)))], false),
            Verdict::Running
        );
    }

    #[test]
    fn one_that_can_have_no_manager_fails_at_once_and_a_removal_does_not() {
        let s = status(4, None, &[]);
        let mut waits = target(5, Some((5, 4, &s)));
        if let Some(now) = &mut waits.now {
            now.unmanaged = Some("node 1 cannot be obtained");
        }
        assert_eq!(
            judge(&[waits], false),
            Verdict::Failed("web: its manager: node 1 cannot be obtained".to_owned())
        );
        waits.goal = Goal::Removed;
        assert_eq!(judge(&[waits], false), Verdict::Running);
        // What was reached already needs none.
        let mut reached = target(5, Some((5, 5, &s)));
        if let Some(now) = &mut reached.now {
            now.unmanaged = Some("node 1 cannot be obtained");
        }
        assert_eq!(judge(&[reached], false), Verdict::Done);
    }

    #[test]
    fn at_the_deadline_it_fails_with_the_reasons() {
        let s = status(5, None, &["node 3 is booting"]);
        let Verdict::Failed(reason) = judge(&[target(5, Some((5, 4, &s)))], true) else {
            panic!("not failed")
        };
        assert!(
            reason.contains("node 3 is booting") && reason.contains("work goes on"),
            "{reason}"
        );
    }

    #[test]
    fn a_removal_is_done_when_nothing_is_left_and_never_superseded() {
        let s = status(9, None, &[]);
        let mut removal = target(5, Some((9, 9, &s)));
        removal.goal = Goal::Removed;
        assert_eq!(judge(&[removal], false), Verdict::Running);
        removal.now = None;
        assert_eq!(judge(&[removal], true), Verdict::Done);
    }
}
