//! Code versions' records. Their bytes are blobs in the state folder, named by hash.

use super::{Millis, all, first, parsed, signed, unsigned};
use crate::error::DirectorError;
use conpaas_model::ids::{CodeId, PrincipalId, ServiceId};
use rusqlite::{Connection, params};
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
pub struct CodeRow {
    pub id: CodeId,
    pub service: ServiceId,
    pub filename: String,
    pub description: String,
    /// Of the normalised archive (a plain tar).
    pub size: u64,
    pub files: u64,
    pub sha256: String,
    /// Of the archive as it was uploaded.
    pub original_size: u64,
    pub original_sha256: String,
    pub created_at: Millis,
    pub actor: String,
    /// Out of sight, kept while a release that nodes may run names it.
    pub deleted_at: Option<Millis>,
}

fn code(row: &super::Row<'_>) -> rusqlite::Result<CodeRow> {
    Ok(CodeRow {
        id: parsed(row, "id")?,
        service: parsed(row, "service_id")?,
        filename: row.get("filename")?,
        description: row.get("description")?,
        size: unsigned(row, "size")?,
        files: unsigned(row, "files")?,
        sha256: row.get("sha256")?,
        original_size: unsigned(row, "original_size")?,
        original_sha256: row.get("original_sha256")?,
        created_at: row.get("created_at")?,
        actor: row.get("actor")?,
        deleted_at: row.get("deleted_at")?,
    })
}

pub fn insert(tx: &Connection, row: &CodeRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO codes(id, service_id, filename, description, size, files, sha256, original_size,
            original_sha256, created_at, actor) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
        params![
            row.id.as_str(),
            row.service.as_str(),
            row.filename,
            row.description,
            signed(row.size),
            signed(row.files),
            row.sha256,
            signed(row.original_size),
            row.original_sha256,
            row.created_at,
            row.actor
        ],
    )?;
    Ok(())
}

/// One code version of a service, even a deleted one.
pub fn get(
    tx: &Connection,
    service: &ServiceId,
    id: &str,
) -> Result<Option<CodeRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM codes WHERE service_id = ?1 AND id = ?2",
        [service.as_str(), id],
        code,
    )
}

/// Code versions of a service that were not deleted, newest first, after the given position
/// (time and id of the last one of the page before).
pub fn list(
    tx: &Connection,
    service: &ServiceId,
    before: (Millis, &str),
    limit: u64,
) -> Result<Vec<CodeRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM codes WHERE service_id = ?1 AND deleted_at IS NULL
            AND (created_at < ?2 OR (created_at = ?2 AND id < ?3))
         ORDER BY created_at DESC, id DESC LIMIT ?4",
        params![service.as_str(), before.0, before.1, signed(limit)],
        code,
    )
}

pub fn mark_deleted(tx: &Connection, id: &CodeId, now: Millis) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE codes SET deleted_at = ?2 WHERE id = ?1",
        params![id.as_str(), now],
    )?;
    Ok(())
}

/// Removes the rows of code versions deleted before `before`.
pub fn forget_deleted(tx: &Connection, before: Millis) -> Result<(), DirectorError> {
    tx.execute("DELETE FROM codes WHERE deleted_at < ?1", [before])?;
    Ok(())
}

/// Hashes of all blobs that a record names.
pub fn blobs(tx: &Connection) -> Result<BTreeSet<String>, DirectorError> {
    let hashes: Vec<String> = all(
        tx,
        "SELECT sha256 AS h FROM codes UNION SELECT original_sha256 AS h FROM codes",
        [],
        |row| row.get("h"),
    )?;
    Ok(hashes.into_iter().collect())
}

/// Hashes of all blobs of versions that were not deleted.
pub fn kept_blobs(tx: &Connection) -> Result<BTreeSet<String>, DirectorError> {
    let hashes: Vec<String> = all(
        tx,
        "SELECT sha256 AS h FROM codes WHERE deleted_at IS NULL
         UNION SELECT original_sha256 AS h FROM codes WHERE deleted_at IS NULL",
        [],
        |row| row.get("h"),
    )?;
    Ok(hashes.into_iter().collect())
}

/// Bytes that an owner's code versions take; the same content counts once, deleted ones do not.
pub fn bytes_of_owner(tx: &Connection, owner: &PrincipalId) -> Result<u64, DirectorError> {
    let found = first(
        tx,
        "WITH own AS (SELECT codes.* FROM codes JOIN services ON services.id = codes.service_id
            JOIN apps ON apps.id = services.app_id
            WHERE apps.owner_id = ?1 AND codes.deleted_at IS NULL)
         SELECT COALESCE(SUM(bytes), 0) AS bytes FROM (SELECT sha256 AS hash, size AS bytes FROM own
            UNION SELECT original_sha256 AS hash, original_size AS bytes FROM own)",
        [owner.as_str()],
        |row| unsigned(row, "bytes"),
    )?;
    Ok(found.unwrap_or(0))
}

/// Whether a code version of this application has this blob: machines may fetch only those.
pub fn blob_of_app(
    tx: &Connection,
    app: &conpaas_model::ids::ApplicationId,
    sha256: &str,
) -> Result<bool, DirectorError> {
    let found = first(
        tx,
        "SELECT 1 FROM codes JOIN services ON services.id = codes.service_id
         WHERE services.app_id = ?1 AND codes.sha256 = ?2 LIMIT 1",
        [app.as_str(), sha256],
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}
