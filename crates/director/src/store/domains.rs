//! Host names that services have claimed. Which names may be claimed is `hosts`' business.

use super::{Millis, all, first, parsed};
use crate::error::DirectorError;
use conpaas_model::ids::ServiceId;
use rusqlite::{Connection, params};

#[derive(Clone, Debug)]
pub struct DomainRow {
    /// In lower case, without a final dot.
    pub name: String,
    pub service: ServiceId,
    pub created_at: Millis,
    pub actor: String,
}

fn domain(row: &super::Row<'_>) -> rusqlite::Result<DomainRow> {
    Ok(DomainRow {
        name: row.get("name")?,
        service: parsed(row, "service_id")?,
        created_at: row.get("created_at")?,
        actor: row.get("actor")?,
    })
}

pub fn insert(tx: &Connection, row: &DomainRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO domains(name, service_id, created_at, actor) VALUES(?1,?2,?3,?4)",
        params![row.name, row.service.as_str(), row.created_at, row.actor],
    )?;
    Ok(())
}

pub fn get(tx: &Connection, name: &str) -> Result<Option<DomainRow>, DirectorError> {
    first(tx, "SELECT * FROM domains WHERE name = ?1", [name], domain)
}

/// Those of one service, by name.
pub fn of_service(tx: &Connection, service: &ServiceId) -> Result<Vec<DomainRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM domains WHERE service_id = ?1 ORDER BY name",
        [service.as_str()],
        domain,
    )
}

/// Those of all services, by name.
pub fn every(tx: &Connection) -> Result<Vec<DomainRow>, DirectorError> {
    all(tx, "SELECT * FROM domains ORDER BY name", [], domain)
}

pub fn delete(tx: &Connection, name: &str) -> Result<(), DirectorError> {
    tx.execute("DELETE FROM domains WHERE name = ?1", [name])?;
    Ok(())
}
