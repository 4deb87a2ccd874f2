//! Operations' records.

use super::{Millis, all, as_word, first, json, parsed, parsed_or_null, signed, to_json, word};
use crate::error::DirectorError;
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::api::Outcome;
use conpaas_model::ids::{
    ApplicationId, Generation, Name, NodeNumber, OperationId, PrincipalId, ReleaseNumber, ServiceId,
};
use conpaas_model::spec::{RoleName, RoleWish, RunWish};
use conpaas_model::status::Step;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A generation of one service that has to be reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    pub service: ServiceId,
    pub name: Name,
    pub generation: Generation,
}

/// What was wanted before, for cancelling.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Previous {
    /// The application's own wish, if the operation changed it.
    pub app: Option<RunWish>,
    pub services: Vec<PreviousService>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreviousService {
    pub service: ServiceId,
    pub run: RunWish,
    pub roles: BTreeMap<RoleName, RoleWish>,
    pub active: ReleaseNumber,
    #[serde(default)]
    pub preview: Option<ReleaseNumber>,
    /// Nodes that this operation wants replaced.
    #[serde(default)]
    pub retire: BTreeSet<NodeNumber>,
}

#[derive(Clone, Debug)]
pub struct OperationRow {
    pub id: OperationId,
    /// For instance `scale`.
    pub kind: String,
    pub owner: PrincipalId,
    pub app: ApplicationId,
    pub app_name: Name,
    /// Absent for a change of the whole application.
    pub service: Option<ServiceId>,
    pub service_name: Option<Name>,
    pub targets: Vec<Target>,
    pub previous: Previous,
    pub actor: String,
    pub outcome: Outcome,
    pub reason: Option<String>,
    /// The steps as they were last seen while it ran.
    pub steps: Vec<Step>,
    pub created_at: Millis,
    pub deadline: Millis,
    pub ended_at: Option<Millis>,
}

fn operation(row: &super::Row<'_>) -> rusqlite::Result<OperationRow> {
    Ok(OperationRow {
        id: parsed(row, "id")?,
        kind: row.get("kind")?,
        owner: parsed(row, "owner_id")?,
        app: parsed(row, "app_id")?,
        app_name: parsed(row, "app_name")?,
        service: parsed_or_null(row, "service_id")?,
        service_name: parsed_or_null(row, "service_name")?,
        targets: json(row, "targets_json")?,
        previous: json(row, "previous_json")?,
        actor: row.get("actor")?,
        outcome: word(row, "outcome")?,
        reason: row.get("reason")?,
        steps: json(row, "steps_json")?,
        created_at: row.get("created_at")?,
        deadline: row.get("deadline")?,
        ended_at: row.get("ended_at")?,
    })
}

pub fn insert(tx: &Connection, row: &OperationRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO operations(id, kind, owner_id, app_id, app_name, service_id, service_name, targets_json,
            previous_json, actor, outcome, reason, steps_json, created_at, deadline, ended_at)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16)",
        params![
            row.id.as_str(),
            row.kind,
            row.owner.as_str(),
            row.app.as_str(),
            row.app_name.as_str(),
            row.service.as_ref().map(ServiceId::as_str),
            row.service_name.as_ref().map(Name::as_str),
            to_json(&row.targets)?,
            to_json(&row.previous)?,
            row.actor,
            as_word(row.outcome),
            row.reason,
            to_json(&row.steps)?,
            row.created_at,
            row.deadline,
            row.ended_at
        ],
    )?;
    reached(KillPoint::OperationWritten);
    Ok(())
}

/// Ends a running operation.
pub fn end(
    tx: &Connection,
    id: &OperationId,
    outcome: Outcome,
    reason: Option<&str>,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE operations SET outcome=?2, reason=?3, ended_at=?4 WHERE id=?1 AND outcome='running'",
        params![id.as_str(), as_word(outcome), reason, now],
    )?;
    Ok(())
}

pub fn set_steps(tx: &Connection, id: &OperationId, steps: &[Step]) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE operations SET steps_json=?2 WHERE id=?1",
        params![id.as_str(), to_json(steps)?],
    )?;
    Ok(())
}

pub fn get(tx: &Connection, id: &str) -> Result<Option<OperationRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM operations WHERE id = ?1",
        [id],
        operation,
    )
}

/// What to list; empty text matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub owner: String,
    pub app: String,
    pub service: String,
    pub outcome: String,
}

/// Operations, newest first, after the given position (time and id of the last one seen).
pub fn list(
    tx: &Connection,
    filter: &Filter,
    before: (Millis, &str),
    limit: u64,
) -> Result<Vec<OperationRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM operations
         WHERE (?1 = '' OR owner_id = ?1) AND (?2 = '' OR app_id = ?2)
           AND (?3 = '' OR service_id = ?3 OR instr(targets_json, '\"' || ?3 || '\"') > 0)
           AND (?4 = '' OR outcome = ?4)
           AND (created_at < ?5 OR (created_at = ?5 AND id < ?6))
         ORDER BY created_at DESC, id DESC LIMIT ?7",
        params![
            filter.owner,
            filter.app,
            filter.service,
            filter.outcome,
            before.0,
            before.1,
            signed(limit)
        ],
        operation,
    )
}

/// Those that have not ended, oldest first.
pub fn running(
    tx: &Connection,
    app: Option<&ApplicationId>,
) -> Result<Vec<OperationRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM operations WHERE outcome = 'running' AND (?1 = '' OR app_id = ?1)
         ORDER BY created_at, id",
        [app.map_or("", ApplicationId::as_str)],
        operation,
    )
}

/// The newest operation that concerns a service.
pub fn newest_of(
    tx: &Connection,
    app: &ApplicationId,
    service: &ServiceId,
) -> Result<Option<OperationRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM operations WHERE app_id = ?1 AND instr(targets_json, '\"' || ?2 || '\"') > 0
         ORDER BY created_at DESC, rowid DESC LIMIT 1",
        [app.as_str(), service.as_str()],
        operation,
    )
}

/// Forgets operations that ended before `before`.
pub fn forget(tx: &Connection, before: Millis) -> Result<(), DirectorError> {
    tx.execute("DELETE FROM operations WHERE ended_at < ?1", [before])?;
    Ok(())
}
