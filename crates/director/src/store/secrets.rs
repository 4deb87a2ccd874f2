//! Secrets of services, sealed: one row for each version of each name. Opening them is `vault`'s
//! business, who may have them is decided by the callers.

use super::{Millis, all, first, parsed, signed, unsigned};
use crate::error::DirectorError;
use crate::incarnation::Incarnation;
use conpaas_model::ids::{SecretVersion, ServiceId};
use rusqlite::{Connection, params};
use std::collections::BTreeSet;

#[derive(Clone)]
pub struct SecretRow {
    pub service: ServiceId,
    pub name: String,
    pub version: SecretVersion,
    pub sealed: Vec<u8>,
    pub created_at: Millis,
    pub actor: String,
}

fn secret(row: &super::Row<'_>) -> rusqlite::Result<SecretRow> {
    Ok(SecretRow {
        service: parsed(row, "service_id")?,
        name: row.get("name")?,
        version: SecretVersion(unsigned(row, "version")?),
        sealed: row.get("sealed")?,
        created_at: row.get("created_at")?,
        actor: row.get("actor")?,
    })
}

pub fn insert(tx: &Connection, row: &SecretRow) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO secrets(service_id, name, version, sealed, created_at, actor)
         VALUES(?1,?2,?3,?4,?5,?6)",
        params![
            row.service.as_str(),
            row.name,
            signed(row.version.0),
            row.sealed,
            row.created_at,
            row.actor
        ],
    )?;
    Ok(())
}

pub fn get(
    tx: &Connection,
    service: &ServiceId,
    name: &str,
    version: SecretVersion,
) -> Result<Option<SecretRow>, DirectorError> {
    first(
        tx,
        "SELECT * FROM secrets WHERE service_id = ?1 AND name = ?2 AND version = ?3",
        params![service.as_str(), name, signed(version.0)],
        secret,
    )
}

/// The version that a new value of this name gets.
pub fn next_version(
    tx: &Connection,
    service: &ServiceId,
    name: &str,
) -> Result<SecretVersion, DirectorError> {
    let newest = first(
        tx,
        "SELECT coalesce(max(version), 0) AS n FROM secrets WHERE service_id = ?1 AND name = ?2",
        params![service.as_str(), name],
        |row| unsigned(row, "n"),
    )?;
    // A version that was given after a backup lies on nodes under its number.
    let floor = Incarnation::of(tx)?.floor();
    Ok(SecretVersion(newest.unwrap_or(0).max(floor)).next())
}

/// How many versions of one name, and how many of one service, are kept for going back.
const KEPT_OF_NAME: usize = 20;
const KEPT_OF_SERVICE: usize = 500;

/// Forgets the oldest versions beyond those that are kept; never one that is `in_use`, and never
/// the newest of a name, since versions are counted on from it.
pub fn forget_oldest(
    tx: &Connection,
    service: &ServiceId,
    in_use: &BTreeSet<(String, SecretVersion)>,
) -> Result<(), DirectorError> {
    let newest_first = all(
        tx,
        "SELECT name, version FROM secrets WHERE service_id = ?1 ORDER BY created_at DESC, version DESC",
        [service.as_str()],
        |row| {
            Ok((
                row.get::<_, String>("name")?,
                SecretVersion(unsigned(row, "version")?),
            ))
        },
    )?;
    let mut of_name = std::collections::BTreeMap::<String, usize>::new();
    for (at, (name, version)) in newest_first.into_iter().enumerate() {
        let count = of_name.entry(name.clone()).or_default();
        *count += 1;
        let keep = *count == 1 || (*count <= KEPT_OF_NAME && at < KEPT_OF_SERVICE);
        if keep || in_use.contains(&(name.clone(), version)) {
            continue;
        }
        tx.execute(
            "DELETE FROM secrets WHERE service_id = ?1 AND name = ?2 AND version = ?3",
            params![service.as_str(), name, signed(version.0)],
        )?;
    }
    Ok(())
}

/// The heads of everything sealed there is, to see whether the present key opens it.
pub fn heads(tx: &Connection) -> Result<Vec<(SecretVersion, Vec<u8>)>, DirectorError> {
    all(
        tx,
        "SELECT version, substr(sealed, 1, 16) AS head FROM secrets",
        [],
        |row| Ok((SecretVersion(unsigned(row, "version")?), row.get("head")?)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn old_versions_go_but_not_those_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.db")).unwrap();
        store
            .quiet(|tx| {
                tx.execute_batch("PRAGMA defer_foreign_keys = ON")?;
                let service: ServiceId = "svc-a".parse().unwrap();
                let mut row = SecretRow {
                    service: service.clone(),
                    name: "A".into(),
                    version: SecretVersion(1),
                    sealed: vec![1],
                    created_at: 0,
                    actor: "ann".into(),
                };
                for version in 1..=30 {
                    row.version = next_version(tx, &service, "A")?;
                    row.created_at = version;
                    assert_eq!(row.version, SecretVersion(version as u64));
                    insert(tx, &row)?;
                }
                let in_use = BTreeSet::from([("A".to_owned(), SecretVersion(2))]);
                forget_oldest(tx, &service, &in_use)?;
                let kept: Vec<u64> = heads(tx)?.iter().map(|(version, _)| version.0).collect();
                assert_eq!(kept.len(), 21);
                assert!(kept.contains(&2) && kept.contains(&30) && !kept.contains(&10));
                assert_eq!(next_version(tx, &service, "A")?, SecretVersion(31));
                tx.execute("DELETE FROM secrets", [])?;
                Ok(())
            })
            .await
            .unwrap();
    }
}
