//! Principals and their tokens.

use super::{Millis, all, as_word, first, parsed, signed, unsigned, word};
use crate::error::DirectorError;
use conpaas_model::api::Rank;
use conpaas_model::ids::{Name, PrincipalId, TokenId};
use rusqlite::{Connection, params};

#[derive(Clone, Debug)]
pub struct UserRow {
    pub id: PrincipalId,
    pub name: Name,
    /// argon2id, in PHC form.
    pub password_hash: String,
    pub rank: Rank,
    pub node_quota: u32,
    pub created_at: Millis,
}

#[derive(Clone, Debug)]
pub struct TokenRow {
    pub id: TokenId,
    pub user: PrincipalId,
    pub label: String,
    /// SHA-256 of the secret half, in hex.
    pub secret_hash: String,
    pub created_at: Millis,
    pub expires_at: Millis,
    pub last_used_at: Option<Millis>,
    pub revoked_at: Option<Millis>,
}

fn user(row: &super::Row<'_>) -> rusqlite::Result<UserRow> {
    Ok(UserRow {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        password_hash: row.get("password_hash")?,
        rank: word(row, "rank")?,
        node_quota: u32::try_from(unsigned(row, "node_quota")?).unwrap_or(u32::MAX),
        created_at: row.get("created_at")?,
    })
}

fn token(row: &super::Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow {
        id: parsed(row, "id")?,
        user: parsed(row, "user_id")?,
        label: row.get("label")?,
        secret_hash: row.get("secret_hash")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        last_used_at: row.get("last_used_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}

pub fn insert(tx: &Connection, user: &UserRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO users(id, name, password_hash, rank, node_quota, created_at) VALUES(?1,?2,?3,?4,?5,?6)",
        params![
            user.id.as_str(),
            user.name.as_str(),
            user.password_hash,
            as_word(user.rank),
            user.node_quota,
            user.created_at
        ],
    )?;
    Ok(())
}

/// By name or id.
pub fn find(tx: &Connection, name_or_id: &str) -> Result<Option<UserRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM users WHERE name = ?1 OR id = ?1",
        [name_or_id],
        user,
    )
}

/// Users after `after` (a name), in order of names.
pub fn list(tx: &Connection, after: &str, limit: u64) -> Result<Vec<UserRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM users WHERE name > ?1 ORDER BY name LIMIT ?2",
        params![after, signed(limit)],
        user,
    )
}

pub fn count(tx: &Connection) -> Result<u64, DirectorError> {
    Ok(first(tx, "SELECT count(*) AS n FROM users", [], |row| {
        unsigned(row, "n")
    })?
    .unwrap_or(0))
}

pub fn set_password(tx: &Connection, user: &PrincipalId, hash: &str) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE users SET password_hash = ?2 WHERE id = ?1",
        [user.as_str(), hash],
    )?;
    Ok(())
}

pub fn set_quota(tx: &Connection, user: &PrincipalId, quota: u32) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE users SET node_quota = ?2 WHERE id = ?1",
        params![user.as_str(), quota],
    )?;
    Ok(())
}

pub fn delete(tx: &Connection, user: &PrincipalId) -> Result<(), DirectorError> {
    tx.execute("DELETE FROM users WHERE id = ?1", [user.as_str()])?;
    Ok(())
}

pub fn insert_token(tx: &Connection, token: &TokenRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO tokens(id, user_id, label, secret_hash, created_at, expires_at) VALUES(?1,?2,?3,?4,?5,?6)",
        params![
            token.id.as_str(),
            token.user.as_str(),
            token.label,
            token.secret_hash,
            token.created_at,
            token.expires_at
        ],
    )?;
    Ok(())
}

pub fn find_token(tx: &Connection, id: &str) -> Result<Option<TokenRow>, DirectorError> {
    first(tx, "SELECT * FROM tokens WHERE id = ?1", [id], token)
}

/// A user's tokens that are neither revoked nor over, after `after` (an id).
pub fn list_tokens(
    tx: &Connection,
    user: &PrincipalId,
    now: Millis,
    after: &str,
    limit: u64,
) -> Result<Vec<TokenRow>, DirectorError> {
    all(
        tx,
        "SELECT * FROM tokens WHERE user_id = ?1 AND revoked_at IS NULL AND expires_at > ?2 AND id > ?3
         ORDER BY id LIMIT ?4",
        params![user.as_str(), now, after, signed(limit)],
        token,
    )
}

pub fn touch_token(tx: &Connection, id: &TokenId, now: Millis) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE tokens SET last_used_at = ?2 WHERE id = ?1",
        params![id.as_str(), now],
    )?;
    Ok(())
}

pub fn revoke_token(tx: &Connection, id: &TokenId, now: Millis) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE tokens SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
        params![id.as_str(), now],
    )?;
    Ok(())
}

/// Revokes a user's tokens, `except` one.
pub fn revoke_all_tokens(
    tx: &Connection,
    user: &PrincipalId,
    except: Option<&TokenId>,
    now: Millis,
) -> Result<(), DirectorError> {
    tx.execute(
        "UPDATE tokens SET revoked_at = ?2 WHERE user_id = ?1 AND revoked_at IS NULL AND id <> ?3",
        params![user.as_str(), now, except.map_or("", TokenId::as_str)],
    )?;
    Ok(())
}

/// Forgets tokens that ended long ago.
pub fn forget_tokens(tx: &Connection, before: Millis) -> Result<(), DirectorError> {
    tx.execute(
        "DELETE FROM tokens WHERE expires_at < ?1 OR revoked_at < ?1",
        [before],
    )?;
    Ok(())
}
