//! Applications.

use super::{Millis, all, as_word, first, json, parsed, signed, to_json, unsigned, word};
use crate::error::DirectorError;
use conpaas_model::api::Labels;
use conpaas_model::egress::Egress;
use conpaas_model::ids::{ApplicationId, Generation, Name, PrincipalId};
use conpaas_model::spec::RunWish;
use rusqlite::{Connection, params};

#[derive(Clone, Debug)]
pub struct AppRow {
    pub id: ApplicationId,
    pub owner: PrincipalId,
    /// From the owner's row.
    pub owner_name: Name,
    pub name: Name,
    pub description: String,
    pub labels: Labels,
    /// What its owner wishes; the installation may allow less.
    pub egress: Egress,
    pub run: RunWish,
    pub ever_started: bool,
    pub generation: Generation,
    pub created_at: Millis,
    /// When it was put into the trash, if it was: its name is free, and nothing of it runs.
    pub trashed_at: Option<Millis>,
}

/// Which applications of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Present,
    Trashed,
    All,
}

const SELECT: &str =
    "SELECT apps.*, users.name AS owner_name FROM apps JOIN users ON users.id = apps.owner_id";

fn app(row: &super::Row<'_>) -> rusqlite::Result<AppRow> {
    Ok(AppRow {
        id: parsed(row, "id")?,
        owner: parsed(row, "owner_id")?,
        owner_name: parsed(row, "owner_name")?,
        name: parsed(row, "name")?,
        description: row.get("description")?,
        labels: json(row, "labels_json")?,
        egress: word(row, "egress")?,
        run: word(row, "run")?,
        ever_started: row.get("ever_started")?,
        generation: Generation(unsigned(row, "generation")?),
        created_at: row.get("created_at")?,
        trashed_at: row.get("trashed_at")?,
    })
}

pub fn insert(tx: &Connection, app: &AppRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO apps(id, owner_id, name, description, labels_json, run, ever_started, generation, created_at, egress)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
        params![
            app.id.as_str(),
            app.owner.as_str(),
            app.name.as_str(),
            app.description,
            to_json(&app.labels)?,
            as_word(app.run),
            app.ever_started,
            signed(app.generation.0),
            app.created_at,
            as_word(app.egress)
        ],
    )?;
    Ok(())
}

/// Writes everything that may change of an application.
pub fn update(tx: &Connection, app: &AppRow) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE apps SET name=?2, description=?3, labels_json=?4, run=?5, ever_started=?6, generation=?7, trashed_at=?8, egress=?9 WHERE id=?1",
        params![
            app.id.as_str(),
            app.name.as_str(),
            app.description,
            to_json(&app.labels)?,
            as_word(app.run),
            app.ever_started,
            signed(app.generation.0),
            app.trashed_at,
            as_word(app.egress)
        ],
    )?;
    Ok(())
}

pub fn get(tx: &Connection, id: &ApplicationId) -> Result<Option<AppRow>, DirectorError> {
    first(
        tx,
        &format!("{SELECT} WHERE apps.id = ?1"),
        [id.as_str()],
        app,
    )
}

/// By id, whoever owns it.
pub fn by_id(tx: &Connection, id: &str) -> Result<Option<AppRow>, DirectorError> {
    first(tx, &format!("{SELECT} WHERE apps.id = ?1"), [id], app)
}

/// By owner's name and own name; one that is being deleted only when no other has its name.
pub fn by_name(tx: &Connection, owner: &str, name: &str) -> Result<Option<AppRow>, DirectorError> {
    first(
        tx,
        &format!(
            "{SELECT} WHERE users.name = ?1 AND apps.name = ?2
             AND apps.trashed_at IS NULL
             ORDER BY apps.run = 'deleted', apps.created_at DESC LIMIT 1"
        ),
        [owner, name],
        app,
    )
}

/// The one with a name that was put into the trash last.
pub fn trashed_by_name(
    tx: &Connection,
    owner: &str,
    name: &str,
) -> Result<Option<AppRow>, DirectorError> {
    first(
        tx,
        &format!(
            "{SELECT} WHERE users.name = ?1 AND apps.name = ?2 AND apps.run <> 'deleted'
             AND apps.trashed_at IS NOT NULL ORDER BY apps.trashed_at DESC LIMIT 1"
        ),
        [owner, name],
        app,
    )
}

/// Those that were put into the trash before a moment, and are still there.
pub fn trashed_before(tx: &Connection, moment: Millis) -> Result<Vec<AppRow>, DirectorError> {
    all(
        tx,
        &format!("{SELECT} WHERE apps.trashed_at < ?1 AND apps.run <> 'deleted'"),
        [moment],
        app,
    )
}

/// Applications of one owner (or of all), after the given id, in order of ids.
pub fn list(
    tx: &Connection,
    owner: Option<&PrincipalId>,
    which: Which,
    after: &str,
    limit: u64,
) -> Result<Vec<AppRow>, DirectorError> {
    let owner = owner.map_or("", PrincipalId::as_str);
    let which = match which {
        Which::Present => "AND apps.trashed_at IS NULL",
        Which::Trashed => "AND apps.trashed_at IS NOT NULL",
        Which::All => "",
    };
    all(
        tx,
        &format!(
            "{SELECT} WHERE apps.id > ?2 AND (?1 = '' OR apps.owner_id = ?1) {which} ORDER BY apps.id LIMIT ?3"
        ),
        params![owner, after, signed(limit)],
        app,
    )
}

/// Every application.
pub fn every(tx: &Connection) -> Result<Vec<AppRow>, DirectorError> {
    all(
        tx,
        &format!("{SELECT} ORDER BY apps.created_at, apps.id"),
        [],
        app,
    )
}

/// Those that are on their way out, or in the trash: time alone brings them further.
pub fn leaving(tx: &Connection) -> Result<Vec<ApplicationId>, DirectorError> {
    all(
        tx,
        "SELECT id FROM apps WHERE run = 'deleted' OR trashed_at IS NOT NULL
         UNION SELECT app_id AS id FROM services WHERE run = 'deleted'",
        [],
        |row| parsed(row, "id"),
    )
}

pub fn delete(tx: &Connection, id: &ApplicationId) -> Result<(), DirectorError> {
    tx.execute("DELETE FROM apps WHERE id = ?1", [id.as_str()])?;
    Ok(())
}
