//! Services and their releases: the wish, and the last status beside it.

use super::{
    Millis, all, as_word, first, json, json_or_null, parsed, parsed_or_null, signed, to_json,
    unsigned, unsigned_or_null, word,
};
use crate::error::DirectorError;
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::api::Labels;
use conpaas_model::environment::Environment;
use conpaas_model::ids::{
    ApplicationId, CodeId, Epoch, Generation, Name, NodeNumber, ReleaseNumber, ServiceId,
};
use conpaas_model::protocol::Exposure;
use conpaas_model::spec::{CodeRef, Release, RoleName, RoleWish, RunWish, ServiceSpec, Settings};
use conpaas_model::status::{ServiceState, ServiceStatus};
use rusqlite::{Connection, params};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
pub struct ServiceRow {
    pub id: ServiceId,
    pub app: ApplicationId,
    pub name: Name,
    pub service_type: String,
    pub description: String,
    pub labels: Labels,
    /// Its manager has a machine of its own.
    pub own_manager: bool,
    /// The system's own: its nodes host managers.
    pub internal: bool,
    /// The system service whose node hosts this one's manager.
    pub manager: Option<ServiceId>,
    pub run: RunWish,
    /// When `run` last changed.
    pub run_since: Millis,
    pub ever_started: bool,
    /// Has been reached since it was last started.
    pub served: bool,
    pub generation: Generation,
    /// The newest generation that was reached.
    pub reached: Generation,
    pub roles: BTreeMap<RoleName, RoleWish>,
    pub active: ReleaseNumber,
    /// A release that is held beside the active one, for a preview.
    pub preview: Option<ReleaseNumber>,
    pub drain_seconds: u32,
    pub next_node: NodeNumber,
    pub next_release: ReleaseNumber,
    pub status: Option<ServiceStatus>,
    /// Epoch of the manager that gave the status.
    pub status_epoch: Epoch,
    pub exposure: Option<Exposure>,
    /// The state last told in an event.
    pub shown_state: ServiceState,
    pub created_at: Millis,
}

#[derive(Clone, Debug)]
pub struct ReleaseRow {
    pub service: ServiceId,
    pub number: ReleaseNumber,
    pub code: Option<CodeId>,
    pub settings: Settings,
    pub environment: Environment,
    pub reason: String,
    pub actor: String,
    pub created_at: Millis,
    /// It was made to be held, and never promoted.
    pub held: bool,
}

impl ServiceRow {
    /// Whether the store came back from a backup and no manager has said since then whom people
    /// are to be led to: what the backup knew of that may be long over.
    pub fn awaits_exposure(&self, restored_at: Option<Millis>) -> bool {
        self.run == RunWish::Running
            && self.exposure.is_none()
            && restored_at.is_some_and(|at| self.created_at < at)
    }
}

fn service(row: &super::Row<'_>) -> rusqlite::Result<ServiceRow> {
    Ok(ServiceRow {
        id: parsed(row, "id")?,
        app: parsed(row, "app_id")?,
        name: parsed(row, "name")?,
        service_type: row.get("type")?,
        description: row.get("description")?,
        labels: json(row, "labels_json")?,
        own_manager: row.get("own_manager")?,
        internal: row.get("internal")?,
        manager: parsed_or_null(row, "manager_service_id")?,
        run: word(row, "run")?,
        run_since: row.get("run_since")?,
        ever_started: row.get("ever_started")?,
        served: row.get("served")?,
        generation: Generation(unsigned(row, "generation")?),
        reached: Generation(unsigned(row, "reached_generation")?),
        roles: json(row, "roles_json")?,
        active: ReleaseNumber(unsigned(row, "active_release")?),
        preview: unsigned_or_null(row, "preview_release")?.map(ReleaseNumber),
        drain_seconds: u32::try_from(unsigned(row, "drain_seconds")?).unwrap_or(u32::MAX),
        next_node: NodeNumber(unsigned(row, "next_node")?),
        next_release: ReleaseNumber(unsigned(row, "next_release")?),
        status: json_or_null(row, "status_json")?,
        status_epoch: Epoch(unsigned(row, "status_epoch")?),
        exposure: json_or_null(row, "exposure_json")?,
        shown_state: word(row, "shown_state")?,
        created_at: row.get("created_at")?,
    })
}

fn release(row: &super::Row<'_>) -> rusqlite::Result<ReleaseRow> {
    Ok(ReleaseRow {
        service: parsed(row, "service_id")?,
        number: ReleaseNumber(unsigned(row, "number")?),
        code: parsed_or_null(row, "code_id")?,
        settings: json(row, "settings_json")?,
        environment: json(row, "environment_json")?,
        reason: row.get("reason")?,
        actor: row.get("actor")?,
        created_at: row.get("created_at")?,
        held: row.get("held")?,
    })
}

pub fn insert(tx: &Connection, row: &ServiceRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO services(id, app_id, name, type, description, labels_json, own_manager, internal,
            manager_service_id, run, run_since, ever_started, generation, roles_json, active_release,
            drain_seconds, next_node, next_release, created_at)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)",
        params![
            row.id.as_str(),
            row.app.as_str(),
            row.name.as_str(),
            row.service_type,
            row.description,
            to_json(&row.labels)?,
            row.own_manager,
            row.internal,
            row.manager.as_ref().map(ServiceId::as_str),
            as_word(row.run),
            row.run_since,
            row.ever_started,
            signed(row.generation.0),
            to_json(&row.roles)?,
            signed(row.active.0),
            row.drain_seconds,
            signed(row.next_node.0),
            signed(row.next_release.0),
            row.created_at
        ],
    )?;
    Ok(())
}

/// Writes the wish and its counters; what is observed stays as it is.
pub fn update_wish(tx: &Connection, row: &ServiceRow) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE services SET name=?2, description=?3, labels_json=?4, run=?5, run_since=?6, ever_started=?7,
            served=?8, generation=?9, roles_json=?10, active_release=?11, drain_seconds=?12, next_release=?13,
            manager_service_id=?14, preview_release=?15
         WHERE id=?1",
        params![
            row.id.as_str(),
            row.name.as_str(),
            row.description,
            to_json(&row.labels)?,
            as_word(row.run),
            row.run_since,
            row.ever_started,
            row.served,
            signed(row.generation.0),
            to_json(&row.roles)?,
            signed(row.active.0),
            row.drain_seconds,
            signed(row.next_release.0),
            row.manager.as_ref().map(ServiceId::as_str),
            row.preview.map(|preview| signed(preview.0))
        ],
    )?;
    Ok(())
}

/// Writes a manager's last word.
pub fn set_status(
    tx: &Connection,
    id: &ServiceId,
    status: &ServiceStatus,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE services SET status_json = ?2 WHERE id = ?1",
        params![id.as_str(), to_json(status)?],
    )?;
    Ok(())
}

/// What was observed of a service is out of date until its manager speaks again.
pub fn doubt(tx: &Connection, id: &ServiceId) -> Result<(), DirectorError> {
    if let Some(mut status) = get(tx, id)?
        .and_then(|row| row.status)
        .filter(|s| s.reached)
    {
        status.reached = false;
        set_status(tx, id, &status)?;
    }
    Ok(())
}

/// Forgets a status that no longer tells anything (no manager, no nodes).
pub fn clear_status(tx: &Connection, id: &ServiceId) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE services SET status_json = NULL WHERE id = ?1",
        [id.as_str()],
    )?;
    Ok(())
}

/// Records that a generation was reached (never an older one than before).
pub fn set_reached(
    tx: &Connection,
    id: &ServiceId,
    generation: Generation,
    served: bool,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE services SET reached_generation = max(reached_generation, ?2), served = ?3 WHERE id = ?1",
        params![id.as_str(), signed(generation.0), served],
    )?;
    Ok(())
}

pub fn set_shown_state(
    tx: &Connection,
    id: &ServiceId,
    state: ServiceState,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE services SET shown_state = ?2 WHERE id = ?1",
        params![id.as_str(), as_word(state)],
    )?;
    Ok(())
}

pub fn get(tx: &Connection, id: &ServiceId) -> Result<Option<ServiceRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM services WHERE id = ?1",
        [id.as_str()],
        service,
    )
}

/// By name or id within an application; a deleted one only when no other has the name.
pub fn find(
    tx: &Connection,
    app: &ApplicationId,
    name_or_id: &str,
) -> Result<Option<ServiceRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM services WHERE app_id = ?1 AND (name = ?2 OR id = ?2)
         ORDER BY run = 'deleted', created_at DESC LIMIT 1",
        [app.as_str(), name_or_id],
        service,
    )
}

/// All services of an application, the system's own included, oldest first.
pub fn of_app(tx: &Connection, app: &ApplicationId) -> Result<Vec<ServiceRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM services WHERE app_id = ?1 ORDER BY created_at, id",
        [app.as_str()],
        service,
    )
}

/// Every service, oldest first.
pub fn every(tx: &Connection) -> Result<Vec<ServiceRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM services ORDER BY created_at, id",
        [],
        service,
    )
}

pub fn delete(tx: &Connection, id: &ServiceId) -> Result<(), DirectorError> {
    tx.execute("DELETE FROM services WHERE id = ?1", [id.as_str()])?;
    Ok(())
}

pub fn insert_release(tx: &Connection, row: &ReleaseRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO releases(service_id, number, code_id, settings_json, reason, actor, created_at,
            environment_json, held)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)",
        params![
            row.service.as_str(),
            signed(row.number.0),
            row.code.as_ref().map(CodeId::as_str),
            to_json(&row.settings)?,
            row.reason,
            row.actor,
            row.created_at,
            to_json(&row.environment)?,
            row.held
        ],
    )?;
    reached(KillPoint::ReleaseWritten);
    Ok(())
}

/// A release that was held is for everybody from now on.
pub fn promoted(
    tx: &Connection,
    service: &ServiceId,
    number: ReleaseNumber,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE releases SET held = 0 WHERE service_id = ?1 AND number = ?2",
        params![service.as_str(), signed(number.0)],
    )?;
    Ok(())
}

pub fn get_release(
    tx: &Connection,
    service: &ServiceId,
    number: ReleaseNumber,
) -> Result<Option<ReleaseRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM releases WHERE service_id = ?1 AND number = ?2",
        params![service.as_str(), signed(number.0)],
        release,
    )
}

/// The newest release below `number` that was for everybody.
pub fn release_before(
    tx: &Connection,
    service: &ServiceId,
    number: ReleaseNumber,
) -> Result<Option<ReleaseRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM releases WHERE service_id = ?1 AND number < ?2 AND held = 0
         ORDER BY number DESC LIMIT 1",
        params![service.as_str(), signed(number.0)],
        release,
    )
}

/// Releases below `before`, newest first.
pub fn list_releases(
    tx: &Connection,
    service: &ServiceId,
    before: u64,
    limit: u64,
) -> Result<Vec<ReleaseRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM releases WHERE service_id = ?1 AND number < ?2 ORDER BY number DESC LIMIT ?3",
        params![service.as_str(), signed(before), signed(limit)],
        release,
    )
}

/// How many of the newest releases a spec carries although no status mentions them: nodes may
/// run one that was active a moment ago.
const RECENT_RELEASES: u64 = 3;

/// The releases that nodes may run now, or are about to: what a spec carries.
pub fn carried(tx: &Connection, row: &ServiceRow) -> Result<Vec<ReleaseRow>, DirectorError> {
    let mut numbers: BTreeSet<ReleaseNumber> = BTreeSet::from([row.active]);
    numbers.extend(row.preview);
    if let Some(status) = &row.status {
        numbers.extend(status.serving);
        let roles = status.nodes.iter().flat_map(|node| &node.roles);
        numbers.extend(roles.filter_map(|role| role.release));
    }
    let newest = list_releases(tx, &row.id, row.next_release.0, RECENT_RELEASES)?;
    numbers.extend(newest.iter().map(|release| release.number));
    let found = numbers
        .into_iter()
        .map(|number| get_release(tx, &row.id, number));
    Ok(found
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// The whole wish for a service, as its manager gets it.
pub fn spec(
    tx: &Connection,
    row: &ServiceRow,
    app_name: &Name,
) -> Result<ServiceSpec, DirectorError> {
    let mut releases = Vec::new();
    for found in carried(tx, row)? {
        let code = match &found.code {
            None => None,
            Some(id) => super::codes::get(tx, &row.id, id.as_str())?.map(|code| CodeRef {
                id: code.id,
                sha256: code.sha256,
                size: code.size,
            }),
        };
        releases.push(Release {
            number: found.number,
            code,
            settings: found.settings,
            environment: found.environment,
        });
    }
    Ok(ServiceSpec {
        service: row.id.clone(),
        application: row.app.clone(),
        display: format!("{app_name}/{}", row.name),
        service_type: row.service_type.clone(),
        generation: row.generation,
        run: row.run,
        roles: row.roles.clone(),
        active: row.active,
        preview: row.preview,
        releases,
        retire: super::machines::to_retire(tx, &row.id)?,
        drain_seconds: row.drain_seconds,
    })
}

/// Releases of a service that were last told in events; zero when none was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldReleases {
    pub served: ReleaseNumber,
    pub refused: ReleaseNumber,
}

pub fn told_releases(tx: &Connection, id: &ServiceId) -> Result<ToldReleases, DirectorError> {
    let found = first(
        tx,
        "SELECT told_served, told_refused FROM services WHERE id = ?1",
        [id.as_str()],
        |row| {
            Ok(ToldReleases {
                served: ReleaseNumber(unsigned(row, "told_served")?),
                refused: ReleaseNumber(unsigned(row, "told_refused")?),
            })
        },
    )?;
    Ok(found.unwrap_or(ToldReleases {
        served: ReleaseNumber(0),
        refused: ReleaseNumber(0),
    }))
}

pub fn set_told_releases(
    tx: &Connection,
    id: &ServiceId,
    told: ToldReleases,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE services SET told_served = ?2, told_refused = ?3 WHERE id = ?1",
        params![id.as_str(), signed(told.served.0), signed(told.refused.0)],
    )?;
    Ok(())
}
