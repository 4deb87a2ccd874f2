//! Operations and what follows from what is observed: records in the store, judged by the core's
//! pure rules. Changing wishes is `life`.

use crate::error::DirectorError;
use crate::state::{ServiceFacts, Shown, service_state};
use crate::store::events::{self, NewEvent};
use crate::store::operations::{self as rows, OperationRow};
use crate::store::services::ServiceRow;
use crate::store::{apps, machines, now, services};
use conpaas_core::operation::{Goal, Standing, Target, Verdict, judge};
use conpaas_model::api::Outcome;
use conpaas_model::event::EventKind;
use conpaas_model::ids::{ApplicationId, ServiceId};
use conpaas_model::spec::RunWish;
use conpaas_model::status::ServiceStatus;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// Kind of the operations that end when nothing is left.
pub const DELETE: &str = "delete";
/// Kind of the operations that end when nothing runs.
pub const STOP: &str = "stop";
/// Kind of the operations that put an application into the trash; they end as a stop does.
pub const TRASH: &str = "trash";

/// Takes a manager's word on a service in: keeps it, records what was reached, ends operations,
/// and tells changes of state as events. To be called in the transaction that brings it.
pub fn observe(
    tx: &Connection,
    service: &ServiceId,
    status: &ServiceStatus,
) -> Result<(), DirectorError> {
    let Some(row) = services::get(tx, service)? else {
        return Ok(());
    };
    services::set_status(tx, service, status)?;
    // A service that should not run is reached when its nodes are gone, whoever says so.
    if row.run == RunWish::Running && status.reached && status.generation <= row.generation {
        let served = row.served || status.generation == row.generation;
        services::set_reached(tx, service, status.generation, served)?;
    }
    judge_running(tx, &row.app)?;
    tell_release(tx, &row, status)?;
    tell_state(tx, service).map(drop)
}

/// Writes an event when people are led to another release than the one last told, or when the
/// active one cannot be brought up.
fn tell_release(
    tx: &Connection,
    row: &ServiceRow,
    status: &ServiceStatus,
) -> Result<(), DirectorError> {
    if row.run != RunWish::Running || row.internal || status.generation < row.generation {
        return Ok(());
    }
    let told = services::told_releases(tx, &row.id)?;
    let (release, serving) = (row.active, status.serving);
    let mut next = told;
    let tell = |what, reason: Option<&str>| {
        let event = NewEvent {
            service: Some(&row.name),
            actor: "system",
            reason,
            what,
        };
        events::append(tx, &row.app, &event)
    };
    if let Some(serving) = serving.filter(|serving| *serving != told.served) {
        let before = (told.served.0 > 0).then_some(told.served);
        let release = serving;
        next.served = serving;
        tell(EventKind::ReleaseServed { release, before }, None)?;
    }
    if let Some(reason) = &status.failed
        && serving != Some(release)
        && told.refused != release
    {
        next.refused = release;
        let what = EventKind::ReleaseRefused { release, serving };
        tell(what, Some(reason))?;
    }
    if next != told {
        services::set_told_releases(tx, &row.id, next)?;
    }
    Ok(())
}

/// Whether the wish's own generation was made by this operation.
fn made_by(operation: &OperationRow, row: &ServiceRow) -> bool {
    operation
        .targets
        .iter()
        .any(|target| target.service == row.id && target.generation >= row.generation)
}

/// The state of a service as people see it.
pub fn shown(tx: &Connection, row: &ServiceRow) -> Result<Shown, DirectorError> {
    let nodes = machines::count_of_service(tx, &row.id)?;
    let operation = rows::newest_of(tx, &row.app, &row.id)?.filter(|found| made_by(found, row));
    Ok(service_state(&ServiceFacts {
        run: row.run,
        ever_started: row.ever_started,
        served: row.served,
        generation: row.generation,
        status: row.status.as_ref(),
        nodes,
        operation: operation
            .as_ref()
            .map(|found| (found.outcome, found.reason.as_deref())),
    }))
}

/// Writes an event when a service's state is another than the one last told; whether it did.
pub fn tell_state(tx: &Connection, service: &ServiceId) -> Result<bool, DirectorError> {
    let Some(row) = services::get(tx, service)? else {
        return Ok(false);
    };
    let shown = shown(tx, &row)?;
    if shown.state == row.shown_state {
        return Ok(false);
    }
    services::set_shown_state(tx, service, shown.state)?;
    events::append(
        tx,
        &row.app,
        &NewEvent {
            service: Some(&row.name),
            actor: "system",
            reason: shown.reason.as_deref(),
            what: EventKind::ServiceState {
                from: row.shown_state,
                to: shown.state,
            },
        },
    )?;
    Ok(true)
}

/// Ends every operation of an application that has come to its end; tells whether any did.
pub fn judge_running(tx: &Connection, app: &ApplicationId) -> Result<bool, DirectorError> {
    let running = rows::running(tx, Some(app))?;
    if running.is_empty() {
        return Ok(false);
    }
    let found: BTreeMap<ServiceId, ServiceRow> = services::of_app(tx, app)?
        .into_iter()
        .map(|row| (row.id.clone(), row))
        .collect();
    let app_left = apps::get(tx, app)?.is_some();
    let at = now();
    let mut ended = false;
    for operation in running {
        ended |= judge_one(tx, &operation, &found, app_left, at)?;
    }
    Ok(ended)
}

fn standing(row: &ServiceRow) -> Standing<'_> {
    Standing {
        generation: row.generation,
        reached: row.reached,
        status: row.status.as_ref(),
        unmanaged: None,
    }
}

/// Why a service can have no manager: what keeps the internal service whose nodes host it from
/// its wish for good.
fn unmanaged<'a>(row: &ServiceRow, found: &'a BTreeMap<ServiceId, ServiceRow>) -> Option<&'a str> {
    let host = found.get(row.manager.as_ref()?)?;
    let status = host.status.as_ref()?;
    let current = host.run == RunWish::Running && status.generation >= host.generation;
    status.failed.as_deref().filter(|_| current)
}

fn judge_one(
    tx: &Connection,
    operation: &OperationRow,
    found: &BTreeMap<ServiceId, ServiceRow>,
    app_left: bool,
    at: i64,
) -> Result<bool, DirectorError> {
    let goal = if operation.kind == DELETE {
        Goal::Removed
    } else {
        Goal::Reached
    };
    let mut targets: Vec<Target<'_>> = operation
        .targets
        .iter()
        .map(|target| Target {
            service: target.name.as_str(),
            generation: target.generation,
            goal,
            now: found.get(&target.service).map(|row| Standing {
                unmanaged: unmanaged(row, found),
                ..standing(row)
            }),
        })
        .collect();
    if [STOP, TRASH].contains(&operation.kind.as_str()) && operation.service.is_none() {
        // A stopped application holds no machine, its managers' included.
        targets.extend(found.values().filter(|row| row.internal).map(|row| Target {
            service: row.name.as_str(),
            generation: row.generation,
            goal,
            now: Some(standing(row)),
        }));
    }
    if goal == Goal::Removed && operation.service.is_none() && app_left {
        // An application without services is gone when its own row is.
        targets.push(Target {
            service: operation.app_name.as_str(),
            generation: conpaas_model::ids::Generation(0),
            goal,
            now: Some(Standing {
                generation: conpaas_model::ids::Generation(0),
                reached: conpaas_model::ids::Generation(0),
                status: None,
                unmanaged: None,
            }),
        });
    }
    let (outcome, reason) = match judge(&targets, at > operation.deadline) {
        Verdict::Running => {
            let steps: Vec<_> = operation
                .targets
                .iter()
                .filter_map(|target| Some((target, found.get(&target.service)?.status.as_ref()?)))
                .filter(|(target, status)| status.generation >= target.generation)
                .flat_map(|(_, status)| status.steps.clone())
                .collect();
            if !steps.is_empty() && steps != operation.steps {
                rows::set_steps(tx, &operation.id, &steps)?;
            }
            return Ok(false);
        }
        Verdict::Done => (Outcome::Done, None),
        Verdict::Failed(mut reason) => {
            // What stands in the way is often a machine, the manager's own included.
            for trouble in machines::troubles(tx, &operation.app)? {
                reason.push_str("; ");
                reason.push_str(&trouble);
            }
            (Outcome::Failed, Some(reason))
        }
        Verdict::Superseded => (
            Outcome::Superseded,
            Some("a later change took its place".to_owned()),
        ),
    };
    end(tx, operation, outcome, reason.as_deref())?;
    Ok(true)
}

/// Ends an operation and tells it.
pub fn end(
    tx: &Connection,
    operation: &OperationRow,
    outcome: Outcome,
    reason: Option<&str>,
) -> Result<(), DirectorError> {
    if outcome == Outcome::Done && !operation.steps.is_empty() {
        // What is reached has no steps left to take: the last ones seen were taken.
        let mut steps = operation.steps.clone();
        steps.iter_mut().for_each(|step| step.done = true);
        rows::set_steps(tx, &operation.id, &steps)?;
    }
    rows::end(tx, &operation.id, outcome, reason, now())?;
    events::append(
        tx,
        &operation.app,
        &NewEvent {
            service: operation.service_name.as_ref(),
            actor: &operation.actor,
            reason,
            what: EventKind::OperationEnded {
                operation: operation.id.clone(),
                kind: operation.kind.clone(),
                outcome,
            },
        },
    )
}
