//! The states people see and what they may do in them: pure functions of records.

use conpaas_model::api::Outcome;
use conpaas_model::ids::Generation;
use conpaas_model::spec::RunWish;
use conpaas_model::status::{ServiceState, ServiceStatus};

/// What a service's state follows from.
#[derive(Clone, Copy, Debug)]
pub struct ServiceFacts<'a> {
    pub run: RunWish,
    pub ever_started: bool,
    /// Has been reached since it was last started.
    pub served: bool,
    pub generation: Generation,
    pub status: Option<&'a ServiceStatus>,
    /// Nodes it still has.
    pub nodes: u64,
    /// Outcome and reason of the newest operation that made its present generation.
    pub operation: Option<(Outcome, Option<&'a str>)>,
}

/// A state and, where something is wrong, why and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub state: ServiceState,
    pub reason: Option<String>,
}

fn shown(state: ServiceState) -> Shown {
    Shown {
        state,
        reason: None,
    }
}

fn error(reason: &str) -> Shown {
    Shown {
        state: ServiceState::Error,
        reason: Some(reason.to_owned()),
    }
}

/// The state of a service.
pub fn service_state(facts: &ServiceFacts<'_>) -> Shown {
    let current = facts
        .status
        .filter(|status| status.generation >= facts.generation);
    match facts.run {
        RunWish::Deleted => shown(ServiceState::Epilogue),
        RunWish::Stopped if facts.nodes == 0 => shown(if facts.ever_started {
            ServiceState::Stopped
        } else {
            ServiceState::Init
        }),
        RunWish::Stopped => match facts.operation {
            Some((Outcome::Failed, Some(reason))) => error(reason),
            _ => shown(ServiceState::Epilogue),
        },
        RunWish::Running => {
            if let Some(status) = current {
                if let Some(reason) = &status.failed {
                    return error(reason);
                }
                if status.reached {
                    return shown(ServiceState::Running);
                }
            }
            if let Some((Outcome::Failed, reason)) = facts.operation {
                return error(reason.unwrap_or("the last change did not succeed; work goes on"));
            }
            shown(if facts.served {
                ServiceState::Adapting
            } else {
                ServiceState::Prologue
            })
        }
    }
}

/// What may be done with a service in a state; every state has a way out.
pub fn service_verbs(state: ServiceState, run: RunWish) -> Vec<String> {
    let verbs: &[&str] = match (state, run) {
        (_, RunWish::Deleted) => &[],
        (ServiceState::Error, RunWish::Running) => &[
            "start", "stop", "scale", "set", "rollback", "activate", "promote", "discard", "delete",
        ],
        (_, RunWish::Running) => &[
            "stop", "scale", "set", "rollback", "activate", "promote", "discard", "delete",
        ],
        (_, RunWish::Stopped) => &[
            "start", "scale", "set", "rollback", "activate", "promote", "discard", "delete",
        ],
    };
    verbs.iter().map(|verb| (*verb).to_owned()).collect()
}

/// One service's part in its application's state.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub internal: bool,
    pub shown: Shown,
}

/// The state of an application, from those of its services.
pub fn app_state(run: RunWish, ever_started: bool, parts: &[Part]) -> Shown {
    use ServiceState::{Adapting, Epilogue, Error, Init, Prologue, Running, Stopped};
    if run == RunWish::Deleted {
        return shown(Epilogue);
    }
    if let Some(part) = parts.iter().find(|part| part.shown.state == Error) {
        let reason = part.shown.reason.as_deref().unwrap_or("something is wrong");
        return error(&format!("{}: {reason}", part.name));
    }
    let has = |state| {
        parts
            .iter()
            .any(|part| !part.internal && part.shown.state == state)
    };
    let system = |state| {
        parts
            .iter()
            .any(|part| part.internal && part.shown.state == state)
    };
    let state = if has(Prologue) {
        Prologue
    } else if has(Adapting) || (has(Running) && has(Epilogue)) {
        Adapting
    } else if has(Running) {
        Running
    } else if has(Epilogue) || (run == RunWish::Stopped && system(Epilogue)) {
        Epilogue
    } else if run == RunWish::Running && !parts.iter().any(|part| !part.internal) {
        // Started before anything was added: only the managers' machine counts.
        if system(Prologue) { Prologue } else { Running }
    } else if ever_started || has(Stopped) {
        Stopped
    } else {
        Init
    };
    shown(state)
}

/// What may be done with an application.
pub fn app_verbs(run: RunWish, shown: &Shown, all_running: bool) -> Vec<String> {
    use ServiceState::{Adapting, Error, Prologue, Running};
    if run == RunWish::Deleted {
        return Vec::new();
    }
    let mut verbs = Vec::new();
    if run != RunWish::Running || !all_running || shown.state == Error {
        verbs.push("start");
    }
    if run == RunWish::Running || matches!(shown.state, Running | Adapting | Prologue | Error) {
        verbs.push("stop");
    }
    verbs.extend(["rename", "delete", "add_service"]);
    verbs.into_iter().map(str::to_owned).collect()
}

/// What a system service depends on: the services whose managers it hosts.
#[derive(Clone, Copy, Debug)]
pub struct Hosted {
    pub run: RunWish,
    /// Nodes it still has.
    pub nodes: u64,
}

/// Whether managers are needed: while anything they manage runs or is not yet gone, and while
/// the application itself is wanted running.
pub fn system_wish(app: RunWish, hosted: &[Hosted]) -> RunWish {
    let needed = hosted
        .iter()
        .any(|service| service.run == RunWish::Running || service.nodes > 0);
    match app {
        _ if needed => RunWish::Running,
        RunWish::Deleted => RunWish::Deleted,
        RunWish::Running => RunWish::Running,
        RunWish::Stopped => RunWish::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ServiceState::*;

    fn facts(run: RunWish) -> ServiceFacts<'static> {
        ServiceFacts {
            run,
            ever_started: true,
            served: false,
            generation: Generation(3),
            status: None,
            nodes: 1,
            operation: None,
        }
    }

    fn status(generation: u64, reached: bool, failed: Option<&str>) -> ServiceStatus {
        ServiceStatus {
            generation: Generation(generation),
            reached,
            failed: failed.map(str::to_owned),
            ..ServiceStatus::default()
        }
    }

    #[test]
    fn states_follow_from_the_records() {
        let (old, new) = (status(2, true, None), status(3, true, None));
        let going = status(3, false, None);
        let bad = status(3, false, Some("r2 does not start"));
        let running = facts(RunWish::Running);
        let stopped = facts(RunWish::Stopped);
        let failed = Some((Outcome::Failed, Some("late")));
        let rows = [
            (
                ServiceFacts {
                    ever_started: false,
                    nodes: 0,
                    ..stopped
                },
                Init,
            ),
            (
                ServiceFacts {
                    nodes: 0,
                    ..stopped
                },
                Stopped,
            ),
            (stopped, Epilogue),
            (
                ServiceFacts {
                    operation: failed,
                    ..stopped
                },
                Error,
            ),
            (running, Prologue),
            (
                ServiceFacts {
                    status: Some(&old),
                    served: true,
                    ..running
                },
                Adapting,
            ),
            (
                ServiceFacts {
                    status: Some(&going),
                    served: true,
                    ..running
                },
                Adapting,
            ),
            (
                ServiceFacts {
                    status: Some(&new),
                    served: true,
                    operation: failed,
                    ..running
                },
                Running,
            ),
            (
                ServiceFacts {
                    status: Some(&bad),
                    served: true,
                    ..running
                },
                Error,
            ),
            (
                ServiceFacts {
                    operation: failed,
                    ..running
                },
                Error,
            ),
            (facts(RunWish::Deleted), Epilogue),
        ];
        for (facts, wanted) in rows {
            let shown = service_state(&facts);
            assert_eq!(shown.state, wanted, "{facts:?}");
            assert_eq!(shown.reason.is_some(), wanted == Error, "{facts:?}");
        }
    }

    #[test]
    fn every_state_has_a_way_out() {
        for state in [Init, Prologue, Running, Adapting, Epilogue, Stopped, Error] {
            for run in [RunWish::Running, RunWish::Stopped] {
                let verbs = service_verbs(state, run);
                assert!(verbs.contains(&"delete".to_owned()), "{state:?}");
                assert!(
                    verbs.iter().any(|verb| verb == "start" || verb == "stop"),
                    "{state:?}"
                );
                let shown = Shown {
                    state,
                    reason: None,
                };
                let verbs = app_verbs(run, &shown, false);
                assert!(verbs.contains(&"start".to_owned()) || verbs.contains(&"stop".to_owned()));
            }
        }
    }

    fn part(internal: bool, state: ServiceState) -> Part {
        Part {
            name: "web".to_owned(),
            internal,
            shown: shown(state),
        }
    }

    #[test]
    fn an_application_is_what_its_services_are() {
        let (user, system) = (|s| part(false, s), |s| part(true, s));
        let rows = [
            (RunWish::Stopped, false, vec![], Init),
            (RunWish::Stopped, false, vec![user(Init)], Init),
            (RunWish::Running, true, vec![system(Prologue)], Prologue),
            (RunWish::Running, true, vec![system(Running)], Running),
            (
                RunWish::Running,
                true,
                vec![system(Adapting), user(Running)],
                Running,
            ),
            (
                RunWish::Running,
                true,
                vec![system(Prologue), user(Prologue)],
                Prologue,
            ),
            (
                RunWish::Running,
                true,
                vec![user(Running), user(Adapting)],
                Adapting,
            ),
            (
                RunWish::Running,
                true,
                vec![user(Running), user(Stopped)],
                Running,
            ),
            (RunWish::Stopped, true, vec![user(Epilogue)], Epilogue),
            (
                RunWish::Stopped,
                true,
                vec![user(Stopped), system(Epilogue)],
                Epilogue,
            ),
            (
                RunWish::Stopped,
                true,
                vec![user(Stopped), system(Stopped)],
                Stopped,
            ),
            (
                RunWish::Running,
                true,
                vec![user(Running), user(Error)],
                Error,
            ),
            (RunWish::Deleted, true, vec![user(Running)], Epilogue),
        ];
        for (run, ever, parts, wanted) in rows {
            assert_eq!(
                app_state(run, ever, &parts).state,
                wanted,
                "{run:?} {parts:?}"
            );
        }
    }

    #[test]
    fn managers_stay_until_what_they_manage_is_gone() {
        let hosted = |run, nodes| Hosted { run, nodes };
        let (run, stop, delete) = (RunWish::Running, RunWish::Stopped, RunWish::Deleted);
        assert_eq!(system_wish(stop, &[]), stop);
        assert_eq!(system_wish(run, &[]), run);
        assert_eq!(system_wish(stop, &[hosted(stop, 2)]), run);
        assert_eq!(system_wish(stop, &[hosted(stop, 0), hosted(run, 0)]), run);
        assert_eq!(system_wish(stop, &[hosted(stop, 0)]), stop);
        assert_eq!(system_wish(delete, &[hosted(delete, 1)]), run);
        assert_eq!(system_wish(delete, &[]), delete);
    }
}
