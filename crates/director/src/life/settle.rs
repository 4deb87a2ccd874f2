//! What follows when nodes are gone: stopped services are reached, deleted ones leave the
//! records, and managers that nothing needs any more go too. Repeating it changes nothing.

use super::systems::settle_systems;
use crate::error::DirectorError;
use crate::operations::{judge_running, tell_state};
use crate::shared::Shared;
use crate::store::events::{self, NewEvent};
use crate::store::{apps, machines, now, services};
use conpaas_model::event::{EventKind, LeaveReason};
use conpaas_model::ids::ApplicationId;
use conpaas_model::spec::RunWish;
use rusqlite::Connection;

/// How long a deleted service's manager may take beyond draining until the Director wishes the
/// nodes gone itself: a delete always ends.
const DELETE_GRACE_MS: i64 = 30_000;

/// Draws all conclusions for one application; tells whether anything changed.
pub fn settle(
    tx: &Connection,
    shared: &Shared,
    app: &ApplicationId,
) -> Result<bool, DirectorError> {
    let mut changed = false;
    let at = now();
    // What was deleted ends, whether it rests in the trash or not.
    let trashed = apps::get(tx, app)?.is_some_and(|row| row.trashed_at.is_some());
    for row in services::of_app(tx, app)? {
        if row.run == RunWish::Running {
            continue;
        }
        let nodes = machines::count_of_service(tx, &row.id)?;
        let empty = nodes == 0 && machines::machines_left(tx, &row.id)? == 0;
        if empty && row.run == RunWish::Deleted {
            services::delete(tx, &row.id)?;
            changed = true;
            if !row.internal {
                let event = NewEvent {
                    service: Some(&row.name),
                    actor: "system",
                    reason: None,
                    what: EventKind::ServiceDeleted {},
                };
                events::append(tx, app, &event)?;
            }
        } else if empty && (row.reached < row.generation || row.status.is_some()) {
            services::set_reached(tx, &row.id, row.generation, false)?;
            services::clear_status(tx, &row.id)?;
            changed = true;
        } else if (row.run == RunWish::Deleted || trashed) && nodes > 0 {
            let grace = i64::from(row.drain_seconds).saturating_mul(1000) + DELETE_GRACE_MS;
            let waits_for_nobody = row.internal && row.run == RunWish::Deleted;
            if waits_for_nobody || row.run_since.saturating_add(grace) < at {
                for node in machines::wish_all_gone(tx, &row.id)? {
                    changed = true;
                    let because = LeaveReason::Deleted;
                    let event = NewEvent {
                        service: Some(&row.name),
                        actor: "system",
                        reason: None,
                        what: EventKind::NodeLetGo { node, because },
                    };
                    events::append(tx, app, &event)?;
                }
            }
        }
    }
    if let Some(row) = apps::get(tx, app)? {
        changed |= settle_systems(tx, shared, &row)?;
        if row.run == RunWish::Deleted && services::of_app(tx, app)?.is_empty() {
            apps::delete(tx, app)?;
            changed = true;
        }
    }
    changed |= judge_running(tx, app)?;
    for row in services::of_app(tx, app)? {
        changed |= tell_state(tx, &row.id)?;
    }
    Ok(changed)
}
