//! Records that serve the Director itself: audit, idempotency keys, leases.

use super::{Millis, all, first, parsed_or_null, signed, unsigned};
use crate::error::DirectorError;
use conpaas_model::api::AuditRow;
use conpaas_model::ids::{PrincipalId, TokenId};
use rusqlite::{Connection, params};

/// Writes down who is about to do what; gives the row's number.
pub fn begin_audit(
    tx: &Connection,
    at: Millis,
    actor: &str,
    token: Option<&TokenId>,
    action: &str,
    target: &str,
) -> Result<i64, DirectorError> {
    tx.execute(
        "INSERT INTO audit(at, actor, token_id, action, target) VALUES(?1,?2,?3,?4,?5)",
        params![at, actor, token.map(TokenId::as_str), action, target],
    )?;
    Ok(tx.last_insert_rowid())
}

/// Completes an audit row with the answer's status.
pub fn end_audit(tx: &Connection, id: i64, status: u16) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE audit SET status = ?2 WHERE id = ?1",
        params![id, status],
    )?;
    Ok(())
}

/// Rows before `before`, newest first, of one actor and one action where those are named.
pub fn list_audit(
    tx: &Connection,
    (actor, action): (Option<&str>, Option<&str>),
    before: u64,
    limit: u64,
) -> Result<Vec<AuditRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM audit WHERE id < ?1 AND (?3 IS NULL OR actor = ?3)
         AND (?4 IS NULL OR action = ?4) ORDER BY id DESC LIMIT ?2",
        params![signed(before), signed(limit), actor, action],
        |row| {
            Ok(AuditRow {
                id: unsigned(row, "id")?,
                at: super::show_time(row.get("at")?),
                actor: row.get("actor")?,
                token: parsed_or_null(row, "token_id")?,
                action: row.get("action")?,
                target: row.get("target")?,
                status: row.get("status")?,
            })
        },
    )
}

/// What is known of an idempotency key.
#[derive(Debug)]
pub struct KeyRow {
    pub request_hash: String,
    /// The Director process that took the request.
    pub run_id: String,
    /// The answer, once there is one.
    pub answer: Option<(u16, String)>,
}

pub fn find_key(
    tx: &Connection,
    user: &PrincipalId,
    key: &str,
    not_before: Millis,
) -> Result<Option<KeyRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM idempotency WHERE user_id = ?1 AND key = ?2 AND created_at >= ?3",
        params![user.as_str(), key, not_before],
        |row| {
            let status: Option<u16> = row.get("status")?;
            let body: Option<String> = row.get("body")?;
            Ok(KeyRow {
                request_hash: row.get("request_hash")?,
                run_id: row.get("run_id")?,
                answer: status.zip(body),
            })
        },
    )
}

/// Takes a key, whatever was known of it before.
pub fn take_key(
    tx: &Connection,
    user: &PrincipalId,
    key: &str,
    request_hash: &str,
    run_id: &str,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT OR REPLACE INTO idempotency(user_id, key, request_hash, run_id, created_at) VALUES(?1,?2,?3,?4,?5)",
        params![user.as_str(), key, request_hash, run_id, now],
    )?;
    Ok(())
}

pub fn answer_key(
    tx: &Connection,
    user: &PrincipalId,
    key: &str,
    status: u16,
    body: &str,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE idempotency SET status = ?3, body = ?4 WHERE user_id = ?1 AND key = ?2",
        params![user.as_str(), key, status, body],
    )?;
    Ok(())
}

/// Gives a key back: nothing came of its request.
pub fn drop_key(tx: &Connection, user: &PrincipalId, key: &str) -> Result<(), DirectorError> {
    tx.execute(
        "DELETE FROM idempotency WHERE user_id = ?1 AND key = ?2",
        [user.as_str(), key],
    )?;
    Ok(())
}

pub fn forget_keys(tx: &Connection, before: Millis) -> Result<(), DirectorError> {
    tx.execute("DELETE FROM idempotency WHERE created_at < ?1", [before])?;
    Ok(())
}

/// Takes or extends a lease; gives its fencing number, or `None` while another holds it.
pub fn hold_lease(
    tx: &Connection,
    name: &str,
    holder: &str,
    now: Millis,
    until: Millis,
) -> Result<Option<u64>, DirectorError> {
    let found = first(tx, "SELECT * FROM leases WHERE name = ?1", [name], |row| {
        Ok((
            row.get::<_, String>("holder")?,
            unsigned(row, "fencing")?,
            row.get::<_, i64>("expires_at")?,
        ))
    })?;
    let fencing = match found {
        Some((held_by, fencing, _)) if held_by == holder => fencing,
        Some((_, _, expires_at)) if expires_at > now => return Ok(None),
        Some((_, fencing, _)) => fencing.saturating_add(1),
        None => 1,
    };
    tx.execute(
        "INSERT OR REPLACE INTO leases(name, holder, fencing, expires_at) VALUES(?1,?2,?3,?4)",
        params![name, holder, signed(fencing), until],
    )?;
    Ok(Some(fencing))
}

/// Gives all leases of a holder back.
pub fn release_leases(tx: &Connection, holder: &str) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE leases SET expires_at = 0 WHERE holder = ?1",
        [holder],
    )?;
    Ok(())
}
