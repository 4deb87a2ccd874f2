//! Machines in quarantine: those that clouds list with our tags and that a restored store never
//! asked for. Who gets here, and who leaves, is the broker's to decide.

use super::{Millis, all, first, parsed};
use crate::error::DirectorError;
use conpaas_model::ids::{ApplicationId, MachineId};
use rusqlite::{Connection, params};
use std::net::Ipv4Addr;

#[derive(Clone, Debug)]
pub struct QuarantineRow {
    pub cloud: String,
    /// The cloud's name for it.
    pub cloud_id: String,
    /// The name it was given by whoever asked for it.
    pub machine: MachineId,
    pub app: ApplicationId,
    pub hostname: String,
    pub instance_type: String,
    pub address: Ipv4Addr,
    pub created_at: Millis,
    pub since: Millis,
    /// A person said that it is to be destroyed.
    pub condemned: bool,
}

fn quarantine(row: &super::Row<'_>) -> rusqlite::Result<QuarantineRow> {
    Ok(QuarantineRow {
        cloud: row.get("cloud")?,
        cloud_id: row.get("cloud_id")?,
        machine: parsed(row, "machine_id")?,
        app: parsed(row, "app_id")?,
        hostname: row.get("hostname")?,
        instance_type: row.get("instance_type")?,
        address: parsed(row, "address")?,
        created_at: row.get("created_at")?,
        since: row.get("since")?,
        condemned: row.get("condemned")?,
    })
}

/// All of them, the oldest first.
pub fn every(tx: &Connection) -> Result<Vec<QuarantineRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM quarantine ORDER BY created_at, cloud, cloud_id",
        [],
        quarantine,
    )
}

pub fn count(tx: &Connection) -> Result<u64, DirectorError> {
    let found = first(tx, "SELECT count(*) AS n FROM quarantine", [], |row| {
        super::unsigned(row, "n")
    })?;
    Ok(found.unwrap_or(0))
}

/// Records a machine, unless it is there already.
pub fn insert(tx: &Connection, row: &QuarantineRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT OR IGNORE INTO quarantine(cloud, cloud_id, machine_id, app_id, hostname,
             instance_type, address, created_at, since)
         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)",
        params![
            row.cloud,
            row.cloud_id,
            row.machine.as_str(),
            row.app.as_str(),
            row.hostname,
            row.instance_type,
            row.address.to_string(),
            row.created_at,
            row.since
        ],
    )?;
    Ok(())
}

pub fn delete(tx: &Connection, cloud: &str, cloud_id: &str) -> Result<(), DirectorError> {
    tx.execute(
        "DELETE FROM quarantine WHERE cloud = ?1 AND cloud_id = ?2",
        [cloud, cloud_id],
    )?;
    Ok(())
}

/// Says that machines are to be destroyed, by the name of the machine or the cloud's for it; how
/// many that are.
pub fn condemn(tx: &Connection, id: &str) -> Result<usize, DirectorError> {
    Ok(tx.execute(
        "UPDATE quarantine SET condemned = 1 WHERE machine_id = ?1 OR cloud_id = ?1",
        [id],
    )?)
}

/// Addresses that machines in quarantine have in an application's network.
pub fn addresses(tx: &Connection, app: &ApplicationId) -> Result<Vec<Ipv4Addr>, DirectorError> {
    all(
        tx,
        "SELECT address FROM quarantine WHERE app_id = ?1",
        [app.as_str()],
        |row| parsed(row, "address"),
    )
}
