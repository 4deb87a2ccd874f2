//! The store's schema, step by step; `PRAGMA user_version` counts the steps taken. Steps are
//! never edited after a release, only added.

use crate::error::StartError;
use rusqlite::Connection;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Times are milliseconds since the Unix epoch, columns ending in `_json` hold JSON.
const STEPS: &[&str] = &[
    r#"
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE users(
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, password_hash TEXT NOT NULL, rank TEXT NOT NULL,
    node_quota INTEGER NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE tokens(
    id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    label TEXT NOT NULL, secret_hash TEXT NOT NULL, created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, last_used_at INTEGER, revoked_at INTEGER);
CREATE INDEX tokens_user ON tokens(user_id);
CREATE TABLE apps(
    id TEXT PRIMARY KEY, owner_id TEXT NOT NULL REFERENCES users(id), name TEXT NOT NULL,
    description TEXT NOT NULL, labels_json TEXT NOT NULL, run TEXT NOT NULL,
    ever_started INTEGER NOT NULL, generation INTEGER NOT NULL, created_at INTEGER NOT NULL,
    event_sequence INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX apps_name ON apps(owner_id, name) WHERE run <> 'deleted';
CREATE TABLE services(
    id TEXT PRIMARY KEY, app_id TEXT NOT NULL REFERENCES apps(id) ON DELETE CASCADE,
    name TEXT NOT NULL, type TEXT NOT NULL, description TEXT NOT NULL, labels_json TEXT NOT NULL,
    own_manager INTEGER NOT NULL, internal INTEGER NOT NULL, manager_service_id TEXT,
    run TEXT NOT NULL, run_since INTEGER NOT NULL, ever_started INTEGER NOT NULL,
    served INTEGER NOT NULL DEFAULT 0, generation INTEGER NOT NULL,
    reached_generation INTEGER NOT NULL DEFAULT 0, roles_json TEXT NOT NULL,
    active_release INTEGER NOT NULL, drain_seconds INTEGER NOT NULL,
    next_node INTEGER NOT NULL DEFAULT 1, next_release INTEGER NOT NULL DEFAULT 2,
    status_json TEXT, status_epoch INTEGER NOT NULL DEFAULT 0, exposure_json TEXT,
    shown_state TEXT NOT NULL DEFAULT 'INIT', created_at INTEGER NOT NULL);
CREATE UNIQUE INDEX services_name ON services(app_id, name) WHERE run <> 'deleted';
CREATE TABLE releases(
    service_id TEXT NOT NULL REFERENCES services(id) ON DELETE CASCADE, number INTEGER NOT NULL,
    code_id TEXT, settings_json TEXT NOT NULL, reason TEXT NOT NULL, actor TEXT NOT NULL,
    created_at INTEGER NOT NULL, PRIMARY KEY(service_id, number));
CREATE TABLE codes(
    id TEXT PRIMARY KEY, service_id TEXT NOT NULL REFERENCES services(id) ON DELETE CASCADE,
    filename TEXT NOT NULL, description TEXT NOT NULL, size INTEGER NOT NULL,
    files INTEGER NOT NULL, sha256 TEXT NOT NULL, original_size INTEGER NOT NULL,
    original_sha256 TEXT NOT NULL, created_at INTEGER NOT NULL, actor TEXT NOT NULL,
    deleted_at INTEGER);
CREATE INDEX codes_service ON codes(service_id);
CREATE TABLE nodes(
    service_id TEXT NOT NULL REFERENCES services(id) ON DELETE CASCADE, number INTEGER NOT NULL,
    cloud TEXT NOT NULL, instance_type TEXT NOT NULL, address TEXT NOT NULL, state TEXT NOT NULL,
    trouble TEXT, wish TEXT NOT NULL, retire INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, up_at INTEGER, gone_at INTEGER,
    PRIMARY KEY(service_id, number));
-- Machines outlive the rows of what they served: no row goes before its cloud said so.
CREATE TABLE machines(
    id TEXT PRIMARY KEY, app_id TEXT NOT NULL, owner_id TEXT NOT NULL, service_id TEXT NOT NULL,
    node_number INTEGER NOT NULL, cloud TEXT NOT NULL, instance_type TEXT NOT NULL,
    cloud_token TEXT NOT NULL, cloud_id TEXT, state TEXT NOT NULL, token_hash TEXT NOT NULL,
    token_expires_at INTEGER NOT NULL, key_fingerprint TEXT, removed INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, last_error TEXT,
    retry_at INTEGER NOT NULL DEFAULT 0);
CREATE INDEX machines_node ON machines(service_id, node_number);
CREATE TABLE operations(
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, owner_id TEXT NOT NULL, app_id TEXT NOT NULL,
    app_name TEXT NOT NULL, service_id TEXT, service_name TEXT, targets_json TEXT NOT NULL,
    previous_json TEXT NOT NULL, actor TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT,
    steps_json TEXT NOT NULL DEFAULT '[]', created_at INTEGER NOT NULL, deadline INTEGER NOT NULL,
    ended_at INTEGER);
CREATE INDEX operations_app ON operations(app_id);
CREATE INDEX operations_running ON operations(outcome) WHERE outcome = 'running';
CREATE TABLE events(
    app_id TEXT NOT NULL REFERENCES apps(id) ON DELETE CASCADE, sequence INTEGER NOT NULL,
    at INTEGER NOT NULL, kind TEXT NOT NULL, service TEXT, actor TEXT NOT NULL, reason TEXT,
    facts_json TEXT NOT NULL, PRIMARY KEY(app_id, sequence));
CREATE TABLE audit(
    id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, actor TEXT NOT NULL, token_id TEXT,
    action TEXT NOT NULL, target TEXT NOT NULL, status INTEGER);
CREATE TABLE idempotency(
    user_id TEXT NOT NULL REFERENCES users(id) ON DELETE CASCADE, key TEXT NOT NULL,
    request_hash TEXT NOT NULL, run_id TEXT NOT NULL, status INTEGER, body TEXT,
    created_at INTEGER NOT NULL, PRIMARY KEY(user_id, key));
CREATE TABLE usage(
    machine_id TEXT PRIMARY KEY, owner_id TEXT NOT NULL, app_id TEXT NOT NULL,
    service_id TEXT NOT NULL, instance_type TEXT NOT NULL, started_at INTEGER NOT NULL,
    ended_at INTEGER);
CREATE TABLE leases(
    name TEXT PRIMARY KEY, holder TEXT NOT NULL, fencing INTEGER NOT NULL,
    expires_at INTEGER NOT NULL);
"#,
    // By process: up to which count its ends were written down as events.
    "ALTER TABLE nodes ADD COLUMN told_json TEXT NOT NULL DEFAULT '{}';",
    // What a machine is born with, until it has enrolled: a repeated call asks for the very same.
    "ALTER TABLE machines ADD COLUMN secret TEXT;",
    // Its cloud refuses the node, and waiting does not help.
    "ALTER TABLE nodes ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;",
    // Releases that were last told as served, and as refused.
    "ALTER TABLE services ADD COLUMN told_served INTEGER NOT NULL DEFAULT 0;
ALTER TABLE services ADD COLUMN told_refused INTEGER NOT NULL DEFAULT 0;",
    // A deleted application gives its name back, and can come back itself.
    r#"
ALTER TABLE apps ADD COLUMN trashed_at INTEGER;
DROP INDEX apps_name;
CREATE UNIQUE INDEX apps_name ON apps(owner_id, name) WHERE run <> 'deleted' AND trashed_at IS NULL;
"#,
    r#"
ALTER TABLE releases ADD COLUMN environment_json TEXT NOT NULL DEFAULT '{}';
-- Sealed with a key that is not in here.
CREATE TABLE secrets(
    service_id TEXT NOT NULL REFERENCES services(id) ON DELETE CASCADE, name TEXT NOT NULL,
    version INTEGER NOT NULL, sealed BLOB NOT NULL, created_at INTEGER NOT NULL,
    actor TEXT NOT NULL, PRIMARY KEY(service_id, name, version));
"#,
    // What agents and managers last said of the roots they trust.
    r#"
CREATE TABLE trust(
    machine_id TEXT NOT NULL, kind TEXT NOT NULL, root TEXT NOT NULL, trusts_json TEXT NOT NULL,
    at INTEGER NOT NULL, PRIMARY KEY(machine_id, kind));
"#,
    // What a machine is born with is derived from a key that is not in here.
    "ALTER TABLE machines DROP COLUMN secret;",
    // Machines that a restored store does not know, left alone until a person says otherwise.
    r#"
CREATE TABLE quarantine(
    cloud TEXT NOT NULL, cloud_id TEXT NOT NULL, machine_id TEXT NOT NULL, app_id TEXT NOT NULL,
    hostname TEXT NOT NULL, instance_type TEXT NOT NULL, address TEXT NOT NULL,
    created_at INTEGER NOT NULL, since INTEGER NOT NULL, condemned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY(cloud, cloud_id));
CREATE INDEX quarantine_app ON quarantine(app_id);
"#,
    // A release that is held beside the active one, for a preview.
    "ALTER TABLE services ADD COLUMN preview_release INTEGER;",
    // Host names by claim.
    r#"
CREATE TABLE domains(
    name TEXT PRIMARY KEY, service_id TEXT NOT NULL REFERENCES services(id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL, actor TEXT NOT NULL);
CREATE INDEX domains_service ON domains(service_id);
"#,
    // Releases that were held, and never promoted: nobody goes back to those unasked.
    "ALTER TABLE releases ADD COLUMN held INTEGER NOT NULL DEFAULT 0;",
    // Applications' ways out.
    "ALTER TABLE apps ADD COLUMN egress TEXT NOT NULL DEFAULT 'director';",
];

/// The schema this program writes.
pub const KNOWN: i64 = STEPS.len() as i64;

/// Where the copy lies that is made of a store of schema `found` before it is migrated.
fn copy_of(path: &Path, found: i64) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".schema-{found}"));
    path.with_file_name(name)
}

/// Copies a whole store in one consistent state, while others may write to it.
///
/// # Errors
/// When the copy cannot be written; nothing lies at `to` then.
pub fn copy(connection: &Connection, to: &Path) -> Result<(), StartError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| StartError::Store { source };
    let mut draft = to.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(error.into()));
        }
        _ => {}
    }
    // Made before it is filled: it holds what the store holds, so nobody else may read it.
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(|error| failed(error.into()))?;
    connection
        .execute("VACUUM INTO ?1", [draft.to_string_lossy()])
        .map_err(|error| failed(error.into()))?;
    made.sync_all()
        .and_then(|()| std::fs::rename(&draft, to))
        .map_err(|error| failed(error.into()))?;
    Ok(())
}

/// Brings a store to the newest schema, each step in a transaction of its own. One that lies at `path`
/// and is older is copied first.
///
/// # Errors
/// Refuses a store that a newer program wrote, untouched.
pub fn migrate(connection: &mut Connection, path: Option<&Path>) -> Result<(), StartError> {
    take_steps(connection, path, STEPS)
}

fn take_steps(
    connection: &mut Connection,
    path: Option<&Path>,
    steps: &[&str],
) -> Result<(), StartError> {
    let known = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    let store = |source: rusqlite::Error| StartError::Store {
        source: source.into(),
    };
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(store)?;
    if found > known {
        return Err(StartError::NewerSchema { found, known });
    }
    if let Some(path) = path.filter(|_| found > 0 && found < known) {
        let to = copy_of(path, found);
        copy(connection, &to)?;
        tracing::info!(copy = %to.display(), "the store was copied before it is migrated");
    }
    for (step, sql) in (1i64..)
        .zip(steps)
        .skip(usize::try_from(found).unwrap_or(0))
    {
        let tx = connection.transaction().map_err(store)?;
        tx.execute_batch(sql).map_err(store)?;
        tx.pragma_update(None, "user_version", step)
            .map_err(store)?;
        tx.commit().map_err(store)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_store_reaches_the_known_schema_and_again_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, None).unwrap();
        migrate(&mut connection, None).unwrap();
        let found: i64 = connection
            .query_row("PRAGMA user_version", [], |r| r.get(0))
            .unwrap();
        assert_eq!(found, KNOWN);
    }

    #[test]
    fn a_store_that_is_migrated_is_copied_before() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let mut connection = Connection::open(&path).unwrap();
        let steps = ["CREATE TABLE meta(key, value)", "DROP TABLE meta"];
        take_steps(&mut connection, Some(&path), &steps[..1]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        connection
            .execute_batch("INSERT INTO meta VALUES('a', 'b')")
            .unwrap();
        take_steps(&mut connection, Some(&path), &steps).unwrap();
        let copied = folder.path().join("store.db.schema-1");
        let mode = std::fs::metadata(&copied).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let old = Connection::open(&copied).unwrap();
        let found: (i64, String) = old
            .query_row(
                "SELECT user_version, value FROM pragma_user_version, meta WHERE key = 'a'",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!(found, (1, "b".to_owned()));
        drop(old);
        std::fs::remove_file(&copied).unwrap();
        // One that is up to date already is not copied again.
        take_steps(&mut connection, Some(&path), &steps).unwrap();
        assert!(!copied.exists());
    }

    #[test]
    fn a_newer_store_is_refused_untouched() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .pragma_update(None, "user_version", KNOWN + 1)
            .unwrap();
        let error = migrate(&mut connection, None).unwrap_err().to_string();
        assert!(error.contains("newer"), "{error}");
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_master", [], |r| r.get(0))
            .unwrap();
        assert_eq!(tables, 0);
    }
}
