//! The store: SQLite in the state folder, one writer and a few readers. The rows of each table
//! live in the module of its name; what a change means is decided by the callers.

pub mod apps;
pub mod changes;
pub mod codes;
pub mod domains;
pub mod events;
pub mod housekeeping;
pub mod machines;
pub mod migrations;
pub mod operations;
pub mod quarantine;
pub mod secrets;
pub mod services;
pub mod users;

use crate::error::{DirectorError, StartError};
use changes::{Changes, Follower, Touched};
use conpaas_model::ids::ApplicationId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// The wall clock now.
pub fn now() -> Millis {
    jiff::Timestamp::now().as_millisecond()
}

/// A time span as the store counts it.
pub fn millis(span: std::time::Duration) -> Millis {
    Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX)
}

/// RFC 3339 in UTC, as the API shows times.
pub fn show_time(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    changes: Changes,
}

fn tune(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // FULL: an answered change survives a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Else whatever a partial index might serve is planned anew for each value that is bound.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(512);
    Ok(())
}

impl Store {
    /// Opens the store, making or migrating it; one that is migrated is copied before.
    pub fn open(path: &Path) -> Result<Self, StartError> {
        let store = |source: rusqlite::Error| StartError::Store {
            source: source.into(),
        };
        let mut writer = Connection::open(path).map_err(store)?;
        tune(&writer).map_err(store)?;
        writer
            .query_row("PRAGMA journal_mode = WAL", [], |row| {
                row.get::<_, String>(0)
            })
            .map_err(store)?;
        migrations::migrate(&mut writer, Some(path))?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                writer: Mutex::new(writer),
                readers: Mutex::new(Vec::new()),
                changes: Changes::default(),
            }),
        })
    }

    /// Runs `change` in a transaction that is committed when it gives `Ok`, and then tells
    /// everybody who waits for changes.
    pub async fn transaction<T, F>(&self, change: F) -> Result<T, DirectorError>
    where
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, DirectorError> + Send + 'static,
        T: Send + 'static,
    {
        self.transaction_of(Touched::Everything, change).await
    }

    /// The same, for a change that touches only some applications: it tells whom it concerns.
    pub async fn transaction_of<T, F>(
        &self,
        touched: impl Into<Touched>,
        change: F,
    ) -> Result<T, DirectorError>
    where
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, DirectorError> + Send + 'static,
        T: Send + 'static,
    {
        let value = self.quiet(change).await?;
        self.tell(&touched.into());
        Ok(value)
    }

    /// The same, for a change that finds out what it touches.
    pub async fn transaction_finding<T, F>(&self, change: F) -> Result<T, DirectorError>
    where
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<(T, Touched), DirectorError>
            + Send
            + 'static,
        T: Send + 'static,
    {
        let (value, touched) = self.quiet(change).await?;
        self.tell(&touched);
        Ok(value)
    }

    /// Wakes whom a change concerns that was made by other ways.
    pub fn tell(&self, touched: &Touched) {
        self.inner.changes.tell(touched);
    }

    /// Like [`Store::transaction`], for records nobody waits for (audit, tokens' last use).
    pub async fn quiet<T, F>(&self, change: F) -> Result<T, DirectorError>
    where
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, DirectorError> + Send + 'static,
        T: Send + 'static,
    {
        let inner = self.inner.clone();
        run(move || {
            // A panic rolled its transaction back: the connection itself is whole.
            let mut writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = change(&tx)?;
            tx.commit()?;
            Ok(value)
        })
        .await
    }

    /// Runs `look` over one consistent state of the store.
    pub async fn read<T, F>(&self, look: F) -> Result<T, DirectorError>
    where
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, DirectorError> + Send + 'static,
        T: Send + 'static,
    {
        let inner = self.inner.clone();
        run(move || {
            let pooled = inner
                .readers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let mut reader = match pooled {
                Some(reader) => reader,
                None => {
                    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                    let reader = Connection::open_with_flags(&inner.path, flags)?;
                    tune(&reader)?;
                    reader
                }
            };
            let tx = reader.transaction()?;
            let value = look(&tx)?;
            drop(tx);
            let mut readers = inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
            if readers.len() < 8 {
                readers.push(reader);
            }
            Ok(value)
        })
        .await
    }

    /// Changes its value after each change, whatever it touches.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changes.all()
    }

    /// Changes its value after each change that touches an application.
    pub fn changed_of(&self, application: &ApplicationId) -> watch::Receiver<u64> {
        self.inner.changes.of(application)
    }

    /// Follows all changes with what they touched.
    pub fn follow(&self) -> Follower {
        self.inner.changes.follow()
    }
}

async fn run<T, F>(work: F) -> Result<T, DirectorError>
where
    F: FnOnce() -> Result<T, DirectorError> + Send + 'static,
    T: Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(DirectorError::internal("a transaction broke off", error)))
}

/// A fresh random part for an id.
pub fn random_suffix() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let bytes: [u8; 12] = rand::random();
    bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
        .collect()
}

/// A fresh random id; `make` is the kind's `from_suffix`.
pub fn new_id<T>(
    make: impl Fn(&str) -> Result<T, conpaas_model::ids::IdError>,
) -> Result<T, DirectorError> {
    make(&random_suffix())
        .map_err(|error| DirectorError::internal("an id could not be made", error))
}

type Row<'a> = rusqlite::Row<'a>;

fn broken(
    column: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    tracing::error!(column, "a record of the store does not parse");
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, source.into())
}

/// A column that holds JSON.
fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| broken(column, error))
}

/// A column that holds JSON or NULL.
fn json_or_null<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|error| broken(column, error)))
        .transpose()
}

/// A column that holds an id, a name or anything else that parses.
fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get::<_, String>(column)?
        .parse()
        .map_err(|error| broken(column, error))
}

fn parsed_or_null<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|error| broken(column, error)))
        .transpose()
}

/// A column that holds one word of an enum, as serde writes it.
fn word<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_value(serde_json::Value::String(text)).map_err(|error| broken(column, error))
}

/// The one word serde writes an enum's value as.
pub fn as_word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        // Only ever asked of enums without fields.
        other => format!("{other:?}"),
    }
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, DirectorError> {
    Ok(serde_json::to_string(value)?)
}

/// SQLite's integers are signed; our counters stay far below that.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn unsigned_or_null(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<u64>> {
    let found: Option<i64> = row.get(column)?;
    Ok(found.map(|number| u64::try_from(number).unwrap_or(0)))
}

/// All rows of a query.
fn all<T>(
    tx: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, DirectorError> {
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map(params, row)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The first row of a query.
fn first<T>(
    tx: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    row: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, DirectorError> {
    use rusqlite::OptionalExtension;
    Ok(tx.prepare_cached(sql)?.query_row(params, row).optional()?)
}

/// A value of the installation itself.
pub fn meta(tx: &Connection, key: &str) -> Result<Option<String>, DirectorError> {
    first(tx, "SELECT value FROM meta WHERE key = ?1", [key], |row| {
        row.get(0)
    })
}

pub fn set_meta(tx: &Connection, key: &str, value: &str) -> Result<(), DirectorError> {
    tx.execute(
        "INSERT INTO meta(key, value) VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2",
        [key, value],
    )?;
    Ok(())
}
