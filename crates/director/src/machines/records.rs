//! What the machine side reads and writes of nodes, machines and usage. Each function works
//! within its caller's transaction.

use crate::error::DirectorError;
use crate::store::{Millis, quarantine};
use conpaas_core::broker::{MachineRow, MachineStage, NodeKey, NodeRow};
use conpaas_model::ends::Told;
use conpaas_model::ids::{ApplicationId, MachineId, Name, NodeNumber, PrincipalId, ServiceId};
use conpaas_model::status::NodeState;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::str::FromStr;

/// First address that nodes get; those below are kept for the gateway and what may come.
const FIRST_NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 10);
/// Last address of the range that every application has for itself.
const LAST_NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 254);

/// A machine with everything the listener and the streams ask of it.
#[derive(Clone, Debug)]
pub struct Machine {
    pub id: MachineId,
    pub application: ApplicationId,
    pub service: ServiceId,
    pub node: NodeNumber,
    pub stage: MachineStage,
    pub token_hash: String,
    pub token_expires_at: Millis,
    pub key_fingerprint: Option<String>,
    pub removed: bool,
}

impl Machine {
    /// Whether it may call at all.
    pub fn is_removed(&self) -> bool {
        self.removed || matches!(self.stage, MachineStage::Destroying | MachineStage::Gone)
    }
}

/// What a machine is created from.
#[derive(Clone)]
pub struct Birth {
    pub machine: MachineId,
    pub application: ApplicationId,
    pub service: ServiceId,
    pub node: NodeNumber,
    pub display: String,
    pub cloud: String,
    pub cloud_token: String,
    pub instance_type: String,
    pub address: Ipv4Addr,
    /// What it proves itself with when it enrols.
    pub token: String,
}

/// A node as its record stands, with what a [`NodeRow`] lacks.
#[derive(Clone, Debug)]
pub struct Node {
    pub key: NodeKey,
    pub cloud: String,
    pub instance_type: String,
    pub address: Ipv4Addr,
    pub wanted: bool,
    pub state: NodeState,
    pub trouble: Option<String>,
    /// Its cloud refuses it for good.
    pub refused: bool,
    /// Ends of its processes that were written down.
    pub told: Told,
}

fn stage_word(stage: MachineStage) -> &'static str {
    match stage {
        MachineStage::Intended => "intended",
        MachineStage::Creating => "creating",
        MachineStage::Booting => "booting",
        MachineStage::Up => "up",
        MachineStage::Dead => "dead",
        MachineStage::Destroying => "destroying",
        MachineStage::Gone => "gone",
    }
}

fn unreadable(column: &str, found: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, format!("{column} '{found}'").into())
}

fn parse<T: FromStr>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| unreadable(column, &text))
}

fn stage(row: &Row<'_>) -> rusqlite::Result<MachineStage> {
    let text: String = row.get("state")?;
    match text.as_str() {
        "intended" => Ok(MachineStage::Intended),
        "creating" => Ok(MachineStage::Creating),
        "booting" => Ok(MachineStage::Booting),
        "up" => Ok(MachineStage::Up),
        "dead" => Ok(MachineStage::Dead),
        "destroying" => Ok(MachineStage::Destroying),
        "gone" => Ok(MachineStage::Gone),
        _ => Err(unreadable("state", &text)),
    }
}

fn node_state(row: &Row<'_>) -> rusqlite::Result<NodeState> {
    let text: String = row.get("state")?;
    serde_json::from_value(serde_json::Value::String(text.clone()))
        .map_err(|_| unreadable("state", &text))
}

fn number(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// SQLite's integers are signed; our counters and times stay far below that.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The other way round.
pub fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The application and the name of a service.
pub fn place_of(
    tx: &Connection,
    service: &ServiceId,
) -> Result<Option<(ApplicationId, Name)>, DirectorError> {
    Ok(tx
        .prepare_cached("SELECT app_id, name FROM services WHERE id = ?1")?
        .query_row([service.as_str()], |row| {
            Ok((parse(row, "app_id")?, parse(row, "name")?))
        })
        .optional()?)
}

fn rows<T>(
    tx: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, DirectorError> {
    let mut statement = tx.prepare_cached(sql)?;
    let found = statement.query_map(params, read)?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// All nodes, for the broker.
pub fn broker_nodes(tx: &Connection) -> Result<Vec<NodeRow>, DirectorError> {
    rows(
        tx,
        "SELECT n.*, a.owner_id FROM nodes n JOIN services s ON s.id = n.service_id
         JOIN apps a ON a.id = s.app_id WHERE n.gone_at IS NULL",
        [],
        |row| {
            Ok(NodeRow {
                key: NodeKey {
                    service: parse(row, "service_id")?,
                    number: NodeNumber(number(row, "number")?),
                },
                owner: parse(row, "owner_id")?,
                cloud: row.get("cloud")?,
                instance_type: row.get("instance_type")?,
                wanted: row.get::<_, String>("wish")? == "present",
                state: node_state(row)?,
                trouble: row.get("trouble")?,
            })
        },
    )
}

/// All machines that are not gone, for the broker.
pub fn broker_machines(
    tx: &Connection,
    settled: &BTreeMap<MachineId, u64>,
) -> Result<Vec<MachineRow>, DirectorError> {
    let mut all = rows(
        tx,
        "SELECT * FROM machines WHERE state <> 'gone'",
        [],
        broker_row,
    )?;
    for row in &mut all {
        row.settled = settled.get(&row.id).copied().unwrap_or(0);
    }
    Ok(all)
}

/// One machine, for the broker; `settled` is not known here.
pub fn broker_machine(
    tx: &Connection,
    id: &MachineId,
) -> Result<Option<MachineRow>, DirectorError> {
    Ok(tx
        .prepare_cached("SELECT * FROM machines WHERE id = ?1")?
        .query_row([id.as_str()], broker_row)
        .optional()?)
}

fn broker_row(row: &Row<'_>) -> rusqlite::Result<MachineRow> {
    Ok(MachineRow {
        id: parse(row, "id")?,
        node: NodeKey {
            service: parse(row, "service_id")?,
            number: NodeNumber(number(row, "node_number")?),
        },
        cloud: row.get("cloud")?,
        token: row.get("cloud_token")?,
        cloud_id: row.get("cloud_id")?,
        stage: stage(row)?,
        enrolled: row.get::<_, Option<String>>("key_fingerprint")?.is_some(),
        attempts: u32::try_from(number(row, "attempts")?).unwrap_or(u32::MAX),
        retry_at: number(row, "retry_at")?,
        boot_deadline: number(row, "token_expires_at")?,
        last_error: row.get("last_error")?,
        settled: 0,
    })
}

/// Most nodes at once, by owner.
pub fn quotas(tx: &Connection) -> Result<BTreeMap<PrincipalId, u32>, DirectorError> {
    let all = rows(tx, "SELECT id, node_quota FROM users", [], |row| {
        Ok((
            parse(row, "id")?,
            u32::try_from(number(row, "node_quota")?).unwrap_or(u32::MAX),
        ))
    })?;
    Ok(all.into_iter().collect())
}

fn machine_row(row: &Row<'_>) -> rusqlite::Result<Machine> {
    Ok(Machine {
        id: parse(row, "id")?,
        application: parse(row, "app_id")?,
        service: parse(row, "service_id")?,
        node: NodeNumber(number(row, "node_number")?),
        stage: stage(row)?,
        token_hash: row.get("token_hash")?,
        token_expires_at: row.get("token_expires_at")?,
        key_fingerprint: row.get("key_fingerprint")?,
        removed: row.get("removed")?,
    })
}

/// Which of these tokens were asked for by this store, gone machines' included.
pub fn remembered<'a>(
    tx: &Connection,
    tokens: impl Iterator<Item = &'a str>,
) -> Result<BTreeSet<String>, DirectorError> {
    // A wish is named by its machine's id.
    let mut statement = tx.prepare_cached("SELECT 1 FROM machines WHERE id = ?1")?;
    let mut found = BTreeSet::new();
    for token in tokens {
        if statement.exists([token])? {
            found.insert(token.to_owned());
        }
    }
    Ok(found)
}

/// A machine by its id, gone ones too.
pub fn machine(tx: &Connection, id: &MachineId) -> Result<Option<Machine>, DirectorError> {
    Ok(tx
        .prepare_cached("SELECT * FROM machines WHERE id = ?1")?
        .query_row([id.as_str()], machine_row)
        .optional()?)
}

/// The machine that a wish at a cloud was for, gone ones too.
pub fn machine_of_wish(
    tx: &Connection,
    cloud: &str,
    token: &str,
) -> Result<Option<Machine>, DirectorError> {
    Ok(tx
        .prepare_cached("SELECT * FROM machines WHERE cloud = ?1 AND cloud_token = ?2")?
        .query_row([cloud, token], machine_row)
        .optional()?)
}

/// Machines of one service that may speak for its nodes.
pub fn machines_of(tx: &Connection, service: &ServiceId) -> Result<Vec<Machine>, DirectorError> {
    rows(
        tx,
        "SELECT * FROM machines WHERE service_id = ?1 AND removed = 0
         AND state IN ('creating','booting','up','dead') ORDER BY created_at",
        [service.as_str()],
        machine_row,
    )
}

/// Machines that may call; streams of others are closed.
pub fn live_machines(tx: &Connection) -> Result<Vec<MachineId>, DirectorError> {
    rows(
        tx,
        "SELECT id FROM machines WHERE removed = 0 AND state IN ('creating','booting','up','dead')",
        [],
        |row| parse(row, "id"),
    )
}

fn node_row(row: &Row<'_>) -> rusqlite::Result<Node> {
    Ok(Node {
        key: NodeKey {
            service: parse(row, "service_id")?,
            number: NodeNumber(number(row, "number")?),
        },
        cloud: row.get("cloud")?,
        instance_type: row.get("instance_type")?,
        address: parse(row, "address")?,
        wanted: row.get::<_, String>("wish")? == "present",
        state: node_state(row)?,
        trouble: row.get("trouble")?,
        refused: row.get("refused")?,
        told: told(row)?,
    })
}

fn told(row: &Row<'_>) -> rusqlite::Result<Told> {
    let text: String = row.get("told_json")?;
    serde_json::from_str(&text).map_err(|_| unreadable("told_json", &text))
}

/// Records up to which counts ends of a node's processes were written down.
pub fn set_told(tx: &Connection, key: &NodeKey, told: &Told) -> Result<(), DirectorError> {
    tx.prepare_cached("UPDATE nodes SET told_json = ?3 WHERE service_id = ?1 AND number = ?2")?
        .execute(params![
            key.service.as_str(),
            signed(key.number.0),
            serde_json::to_string(told)?
        ])?;
    Ok(())
}

/// The nodes of a service by number.
pub fn nodes_of(tx: &Connection, service: &ServiceId) -> Result<Vec<Node>, DirectorError> {
    rows(
        tx,
        "SELECT * FROM nodes WHERE service_id = ?1 AND gone_at IS NULL ORDER BY number",
        [service.as_str()],
        node_row,
    )
}

/// One node.
pub fn node(tx: &Connection, key: &NodeKey) -> Result<Option<Node>, DirectorError> {
    Ok(tx
        .prepare_cached(
            "SELECT * FROM nodes WHERE service_id = ?1 AND number = ?2 AND gone_at IS NULL",
        )?
        .query_row(
            params![key.service.as_str(), signed(key.number.0)],
            node_row,
        )
        .optional()?)
}

/// An address of the application that no node of it has, in a block of the service's own.
pub fn free_address(
    tx: &Connection,
    application: &ApplicationId,
    service: &ServiceId,
) -> Result<Option<Ipv4Addr>, DirectorError> {
    let mut taken: Vec<(Ipv4Addr, Option<ServiceId>)> = rows(
        tx,
        "SELECT n.address, n.service_id FROM nodes n JOIN services s ON s.id = n.service_id
         WHERE s.app_id = ?1 AND n.gone_at IS NULL",
        [application.as_str()],
        |row| Ok((parse(row, "address")?, Some(parse(row, "service_id")?))),
    )?;
    // Machines that the store does not know sit in the same network. In a block that one service
    // had nodes in they are that service's, since blocks are not shared; elsewhere, who knows.
    for address in quarantine::addresses(tx, application)? {
        let block = conpaas_model::block::number(address);
        let mut owners = taken
            .iter()
            .filter(|(other, _)| conpaas_model::block::number(*other) == block);
        let owner = owners.next().and_then(|(_, owner)| owner.clone());
        taken.push((address, owner));
    }
    Ok(conpaas_model::block::free_address(
        &Some(service.clone()),
        &taken,
        FIRST_NODE_ADDRESS,
        LAST_NODE_ADDRESS,
    ))
}

/// Records a node that its manager wishes.
pub fn insert_node(
    tx: &Connection,
    key: &NodeKey,
    cloud: &str,
    instance_type: &str,
    address: Ipv4Addr,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "INSERT INTO nodes(service_id, number, cloud, instance_type, address, state, wish, created_at)
         VALUES(?1, ?2, ?3, ?4, ?5, 'requested', 'present', ?6)",
    )?
    .execute(params![
        key.service.as_str(),
        signed(key.number.0),
        cloud,
        instance_type,
        address.to_string(),
        now
    ])?;
    Ok(())
}

/// Records that a node is wished gone; true when that is new.
pub fn wish_gone(tx: &Connection, key: &NodeKey) -> Result<bool, DirectorError> {
    let changed = tx
        .prepare_cached(
            "UPDATE nodes SET wish = 'gone', state = 'releasing', trouble = NULL
             WHERE service_id = ?1 AND number = ?2 AND wish <> 'gone' AND gone_at IS NULL",
        )?
        .execute(params![key.service.as_str(), signed(key.number.0)])?;
    Ok(changed > 0)
}

/// Records what is in the way of a node.
pub fn set_trouble(
    tx: &Connection,
    key: &NodeKey,
    text: Option<&str>,
) -> Result<(), DirectorError> {
    tx.prepare_cached("UPDATE nodes SET trouble = ?3 WHERE service_id = ?1 AND number = ?2")?
        .execute(params![key.service.as_str(), signed(key.number.0), text])?;
    Ok(())
}

/// Records whether its cloud refuses a node for good.
pub fn set_refused(tx: &Connection, key: &NodeKey, refused: bool) -> Result<(), DirectorError> {
    tx.prepare_cached("UPDATE nodes SET refused = ?3 WHERE service_id = ?1 AND number = ?2")?
        .execute(params![key.service.as_str(), signed(key.number.0), refused])?;
    Ok(())
}

/// Records a node's state, unless it is on its way out. `trouble` is overwritten.
pub fn set_node_state(
    tx: &Connection,
    key: &NodeKey,
    state: NodeState,
    trouble: Option<&str>,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "UPDATE nodes SET state = ?3, trouble = ?4,
             refused = CASE WHEN ?3 = 'requested' THEN refused ELSE 0 END,
             up_at = CASE WHEN ?3 = 'up' THEN coalesce(up_at, ?5) ELSE up_at END
         WHERE service_id = ?1 AND number = ?2 AND wish = 'present'",
    )?
    .execute(params![
        key.service.as_str(),
        signed(key.number.0),
        crate::store::as_word(state),
        trouble,
        now
    ])?;
    Ok(())
}

/// Removes a node of which nothing is left.
pub fn end_node(tx: &Connection, key: &NodeKey) -> Result<(), DirectorError> {
    tx.prepare_cached("DELETE FROM nodes WHERE service_id = ?1 AND number = ?2")?
        .execute(params![key.service.as_str(), signed(key.number.0)])?;
    Ok(())
}

/// The wish for a machine of a node.
pub struct Intent<'a> {
    /// Also names the wish at the cloud: a new wish is a new machine.
    pub id: &'a MachineId,
    pub node: &'a NodeKey,
    pub attempts: u32,
    /// Unix milliseconds.
    pub retry_at: u64,
    pub last_error: Option<&'a str>,
}

/// Records the wish for a machine; nothing has been asked of the cloud yet.
pub fn insert_intent(
    tx: &Connection,
    intent: &Intent<'_>,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "INSERT INTO machines(id, app_id, owner_id, service_id, node_number, cloud, instance_type,
             cloud_token, state, token_hash, token_expires_at, created_at, attempts, last_error, retry_at)
         SELECT ?1, s.app_id, a.owner_id, s.id, n.number, n.cloud, n.instance_type,
             ?1, 'intended', '', 0, ?4, ?5, ?6, ?7
         FROM nodes n JOIN services s ON s.id = n.service_id JOIN apps a ON a.id = s.app_id
         WHERE n.service_id = ?2 AND n.number = ?3",
    )?
    .execute(params![
        intent.id.as_str(),
        intent.node.service.as_str(),
        signed(intent.node.number.0),
        now,
        intent.attempts,
        intent.last_error,
        signed(intent.retry_at)
    ])?;
    Ok(())
}

/// Records that the cloud is about to be asked for a machine that will know `token`. Of that,
/// records keep only the hash.
pub fn creating(
    tx: &Connection,
    id: &MachineId,
    token: String,
    token_expires_at: Millis,
) -> Result<Option<Birth>, DirectorError> {
    let token_hash = conpaas_pki::hash_token(&token);
    tx.prepare_cached(
        "UPDATE machines SET state = 'creating', token_hash = ?2, token_expires_at = ?3
         WHERE id = ?1",
    )?
    .execute(params![id.as_str(), token_hash, token_expires_at])?;
    Ok(tx
        .prepare_cached(
            "SELECT m.*, n.address, a.name || '/' || s.name AS display FROM machines m
             JOIN nodes n ON n.service_id = m.service_id AND n.number = m.node_number
             JOIN services s ON s.id = m.service_id JOIN apps a ON a.id = m.app_id WHERE m.id = ?1",
        )?
        .query_row([id.as_str()], |row| {
            Ok(Birth {
                machine: parse(row, "id")?,
                application: parse(row, "app_id")?,
                service: parse(row, "service_id")?,
                node: NodeNumber(number(row, "node_number")?),
                display: row.get("display")?,
                cloud: row.get("cloud")?,
                cloud_token: row.get("cloud_token")?,
                instance_type: row.get("instance_type")?,
                address: parse(row, "address")?,
                token: token.clone(),
            })
        })
        .optional()?)
}

/// Records that the cloud has the machine; its boot is timed from now on.
pub fn adopted(
    tx: &Connection,
    id: &MachineId,
    cloud_id: &str,
    deadline: Millis,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "UPDATE machines SET state = 'booting', cloud_id = ?2, token_expires_at = max(token_expires_at, ?3)
         WHERE id = ?1 AND state IN ('intended','creating')",
    )?
    .execute(params![id.as_str(), cloud_id, deadline])?;
    Ok(())
}

/// Records a machine's stage; a machine that is to go may call nobody any more.
pub fn set_stage(
    tx: &Connection,
    id: &MachineId,
    stage: MachineStage,
    last_error: Option<&str>,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "UPDATE machines SET state = ?2, last_error = coalesce(?3, last_error),
             removed = removed OR ?2 IN ('destroying','gone') WHERE id = ?1",
    )?
    .execute(params![id.as_str(), stage_word(stage), last_error])?;
    Ok(())
}

/// Records the cloud's name of a machine that is about to be destroyed.
pub fn set_cloud_id(tx: &Connection, id: &MachineId, cloud_id: &str) -> Result<(), DirectorError> {
    tx.prepare_cached("UPDATE machines SET cloud_id = ?2 WHERE id = ?1")?
        .execute([id.as_str(), cloud_id])?;
    Ok(())
}

/// Records a failed attempt. A stage that was overtaken meanwhile stays.
pub fn failed_attempt(
    tx: &Connection,
    id: &MachineId,
    stage: MachineStage,
    attempts: u32,
    at: u64,
    reason: &str,
) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "UPDATE machines SET state = ?2, attempts = ?3, retry_at = ?4, last_error = ?5
         WHERE id = ?1 AND state IN ('intended','creating','destroying')",
    )?
    .execute(params![
        id.as_str(),
        stage_word(stage),
        attempts,
        signed(at),
        reason
    ])?;
    Ok(())
}

/// Records the key that a machine's agent has shown.
pub fn set_key(tx: &Connection, id: &MachineId, fingerprint: &str) -> Result<(), DirectorError> {
    tx.prepare_cached("UPDATE machines SET key_fingerprint = ?2 WHERE id = ?1")?
        .execute([id.as_str(), fingerprint])?;
    Ok(())
}

/// Starts counting a machine's use.
pub fn usage_begins(tx: &Connection, id: &MachineId, now: Millis) -> Result<(), DirectorError> {
    tx.prepare_cached(
        "INSERT OR IGNORE INTO usage(machine_id, owner_id, app_id, service_id, instance_type, started_at)
         SELECT id, owner_id, app_id, service_id, instance_type, ?2 FROM machines WHERE id = ?1",
    )?
    .execute(params![id.as_str(), now])?;
    Ok(())
}

/// Ends counting a machine's use.
pub fn usage_ends(tx: &Connection, id: &MachineId, now: Millis) -> Result<(), DirectorError> {
    tx.prepare_cached("UPDATE usage SET ended_at = ?2 WHERE machine_id = ?1 AND ended_at IS NULL")?
        .execute(params![id.as_str(), now])?;
    Ok(())
}
