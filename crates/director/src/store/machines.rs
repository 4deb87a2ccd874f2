//! Nodes as people ask for them. What happens to nodes and machines is written by the machine
//! side, which keeps its own rows in these tables (`nodes`, `machines`, `usage`).

use super::{Millis, all, first, parsed, parsed_or_null, unsigned, word};
use crate::error::DirectorError;
use conpaas_model::ids::{ApplicationId, MachineId, Name, NodeNumber, ServiceId};
use conpaas_model::status::NodeState;
use rusqlite::Connection;
use std::collections::BTreeSet;

/// A node with its service's name and its present machine.
#[derive(Clone, Debug)]
pub struct NodeRow {
    pub service: ServiceId,
    pub service_name: Name,
    pub internal: bool,
    pub number: NodeNumber,
    pub cloud: String,
    pub instance_type: String,
    pub address: String,
    pub state: NodeState,
    pub trouble: Option<String>,
    pub created_at: Millis,
    pub machine: Option<MachineId>,
}

const SELECT: &str = "SELECT nodes.*, services.name AS service_name, services.internal AS internal,
    (SELECT machines.id FROM machines WHERE machines.service_id = nodes.service_id
        AND machines.node_number = nodes.number AND machines.state <> 'gone'
        ORDER BY machines.created_at DESC LIMIT 1) AS machine
    FROM nodes JOIN services ON services.id = nodes.service_id";

fn node(row: &super::Row<'_>) -> rusqlite::Result<NodeRow> {
    Ok(NodeRow {
        service: parsed(row, "service_id")?,
        service_name: parsed(row, "service_name")?,
        internal: row.get("internal")?,
        number: NodeNumber(unsigned(row, "number")?),
        cloud: row.get("cloud")?,
        instance_type: row.get("instance_type")?,
        address: row.get("address")?,
        state: word(row, "state")?,
        trouble: row.get("trouble")?,
        created_at: row.get("created_at")?,
        machine: parsed_or_null(row, "machine")?,
    })
}

/// Nodes of an application that are not gone, managers' included.
pub fn nodes_of_app(tx: &Connection, app: &ApplicationId) -> Result<Vec<NodeRow>, DirectorError> {
    all(
        tx,
        &format!(
            "{SELECT} WHERE services.app_id = ?1 AND nodes.gone_at IS NULL
             ORDER BY services.created_at, services.id, nodes.number"
        ),
        [app.as_str()],
        node,
    )
}

/// Nodes of a service that are not gone.
pub fn nodes_of_service(tx: &Connection, id: &ServiceId) -> Result<Vec<NodeRow>, DirectorError> {
    all(
        tx,
        &format!(
            "{SELECT} WHERE nodes.service_id = ?1 AND nodes.gone_at IS NULL ORDER BY nodes.number"
        ),
        [id.as_str()],
        node,
    )
}

/// What stands in the way of an application's nodes, in words.
pub fn troubles(tx: &Connection, app: &ApplicationId) -> Result<Vec<String>, DirectorError> {
    let mut rows = tx.prepare_cached(
        "SELECT services.name AS name, nodes.number AS number, nodes.trouble AS trouble
         FROM nodes JOIN services ON services.id = nodes.service_id
         WHERE services.app_id = ?1 AND nodes.trouble IS NOT NULL AND nodes.gone_at IS NULL
           AND nodes.wish <> 'gone'
         ORDER BY services.id, nodes.number LIMIT 3",
    )?;
    let texts = rows.query_map([app.as_str()], |row| {
        let (name, number) = (row.get::<_, String>("name")?, row.get::<_, i64>("number")?);
        Ok(format!(
            "node {name}-{number}: {}",
            row.get::<_, String>("trouble")?
        ))
    })?;
    Ok(texts.collect::<Result<_, _>>()?)
}

/// How many nodes of a service are not gone.
pub fn count_of_service(tx: &Connection, id: &ServiceId) -> Result<u64, DirectorError> {
    Ok(first(
        tx,
        "SELECT count(*) AS n FROM nodes WHERE service_id = ?1 AND gone_at IS NULL",
        [id.as_str()],
        |row| unsigned(row, "n"),
    )?
    .unwrap_or(0))
}

/// How many machines of a service its clouds have not yet confirmed to be gone.
pub fn machines_left(tx: &Connection, id: &ServiceId) -> Result<u64, DirectorError> {
    Ok(first(
        tx,
        "SELECT count(*) AS n FROM machines WHERE service_id = ?1 AND state <> 'gone'",
        [id.as_str()],
        |row| unsigned(row, "n"),
    )?
    .unwrap_or(0))
}

/// How many nodes of an owner are there now.
pub fn count_of_owner(
    tx: &Connection,
    owner: &conpaas_model::ids::PrincipalId,
) -> Result<u64, DirectorError> {
    Ok(first(
        tx,
        "SELECT count(*) AS n FROM nodes JOIN services ON services.id = nodes.service_id
         JOIN apps ON apps.id = services.app_id WHERE apps.owner_id = ?1 AND nodes.gone_at IS NULL",
        [owner.as_str()],
        |row| unsigned(row, "n"),
    )?
    .unwrap_or(0))
}

/// Wishes every node of a service gone (a deleted service whose manager does not); which ones
/// were not yet.
pub fn wish_all_gone(tx: &Connection, id: &ServiceId) -> Result<Vec<NodeNumber>, DirectorError> {
    all(
        tx,
        "UPDATE nodes SET wish = 'gone', state = 'releasing', trouble = NULL
         WHERE service_id = ?1 AND wish <> 'gone' AND gone_at IS NULL RETURNING number",
        [id.as_str()],
        |row| Ok(NodeNumber(unsigned(row, "number")?)),
    )
}

/// Wishes one node gone; its manager makes another in its stead.
pub fn retire(tx: &Connection, id: &ServiceId, number: NodeNumber) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE nodes SET retire = 1 WHERE service_id = ?1 AND number = ?2 AND gone_at IS NULL",
        rusqlite::params![id.as_str(), super::signed(number.0)],
    )?;
    Ok(())
}

/// Nodes of a service need not be replaced any more.
pub fn keep(
    tx: &Connection,
    id: &ServiceId,
    numbers: &BTreeSet<NodeNumber>,
) -> Result<(), DirectorError> {
    for number in numbers {
        tx.execute(
            "UPDATE nodes SET retire = 0 WHERE service_id = ?1 AND number = ?2 AND gone_at IS NULL",
            rusqlite::params![id.as_str(), super::signed(number.0)],
        )?;
    }
    Ok(())
}

/// Cloud and instance type of each node that another is to replace: for a while both are there.
pub fn replaced(tx: &Connection, id: &ServiceId) -> Result<Vec<(String, String)>, DirectorError> {
    all(
        tx,
        "SELECT cloud, instance_type FROM nodes
         WHERE service_id = ?1 AND retire = 1 AND wish = 'present' AND gone_at IS NULL
         ORDER BY number",
        [id.as_str()],
        |row| Ok((row.get("cloud")?, row.get("instance_type")?)),
    )
}

/// Nodes that people want replaced and that are still there.
pub fn to_retire(tx: &Connection, id: &ServiceId) -> Result<BTreeSet<NodeNumber>, DirectorError> {
    let mut rows = tx.prepare_cached(
        "SELECT number FROM nodes WHERE service_id = ?1 AND retire = 1 AND gone_at IS NULL",
    )?;
    let numbers = rows.query_map([id.as_str()], |row| row.get::<_, i64>(0))?;
    numbers
        .map(|number| Ok(NodeNumber(u64::try_from(number?).unwrap_or_default())))
        .collect()
}
