//! How metrics lie in their file: a table of series with their totals, and a table of steps with
//! what came in each. SQLite, one writer.

use super::{COARSE, COARSE_KEPT, FINE, FINE_KEPT, MetricsError, Series, SeriesKey, Values};
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::metrics::Source;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use std::path::Path;

/// Raised with every change of the tables; a file of another version begins anew.
const VERSION: i64 = 1;
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS series(
    id INTEGER PRIMARY KEY,
    application TEXT NOT NULL,
    service TEXT NOT NULL,
    node INTEGER NOT NULL,
    role TEXT,
    release INTEGER,
    cloud TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    totals_json TEXT NOT NULL,
    sums_json TEXT NOT NULL,
    heard INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS steps(
    series INTEGER NOT NULL,
    length INTEGER NOT NULL,
    at INTEGER NOT NULL,
    values_json TEXT NOT NULL,
    PRIMARY KEY(series, length, at)) WITHOUT ROWID;
";

/// Opens the file with its tables, never to grow beyond a bound.
pub fn open(path: &Path, most_bytes: u64) -> Result<Connection, MetricsError> {
    let database = Connection::open(path)?;
    database.busy_timeout(std::time::Duration::from_secs(10))?;
    database.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // Losing the last step in a power cut is fine; nothing is counted twice or lost by it.
    database.pragma_update(None, "synchronous", "NORMAL")?;
    // The log beside the file is cut to this after each checkpoint.
    database.pragma_update(None, "journal_size_limit", 4 << 20)?;
    database.set_prepared_statement_cache_capacity(32);
    let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version != VERSION {
        database.execute_batch("DROP TABLE IF EXISTS series; DROP TABLE IF EXISTS steps;")?;
        database.pragma_update(None, "user_version", VERSION)?;
    }
    database.execute_batch(TABLES)?;
    let page: u64 = database.query_row("PRAGMA page_size", [], |row| unsigned(row, 0))?;
    let pages = (most_bytes / page.max(1)).max(64);
    let set = format!("PRAGMA max_page_count = {pages}");
    database.query_row(&set, [], |_| Ok(()))?;
    Ok(database)
}

fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// All series, and the next number for one.
pub fn every_series(
    database: &Connection,
) -> Result<(BTreeMap<SeriesKey, Series>, i64), MetricsError> {
    let mut statement = database.prepare(
        "SELECT id, application, service, node, role, release, cloud, instance_type, totals_json, sums_json, heard FROM series",
    )?;
    let mut rows = statement.query([])?;
    let (mut all, mut next) = (BTreeMap::new(), 1);
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        next = next.max(id + 1);
        let release: Option<i64> = row.get(5)?;
        let key = SeriesKey {
            application: row.get(1)?,
            service: row.get(2)?,
            node: unsigned(row, 3)?,
            source: Source {
                role: row.get(4)?,
                release: release
                    .and_then(|n| u64::try_from(n).ok())
                    .map(ReleaseNumber),
            },
        };
        let series = Series {
            id,
            cloud: row.get(6)?,
            instance_type: row.get(7)?,
            totals: serde_json::from_str(&row.get::<_, String>(8)?)?,
            sums: serde_json::from_str(&row.get::<_, String>(9)?)?,
            present: Values::new(),
            heard: row.get(10)?,
        };
        all.insert(key, series);
    }
    Ok((all, next))
}

/// Writes a series as it is now.
pub fn put_series(tx: &Connection, key: &SeriesKey, series: &Series) -> Result<(), MetricsError> {
    tx.prepare_cached(
        "INSERT INTO series(id, application, service, node, role, release, cloud, instance_type, totals_json, sums_json, heard)
         VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT(id) DO UPDATE SET totals_json = ?9, sums_json = ?10, heard = ?11",
    )?
    .execute(params![
        series.id,
        key.application,
        key.service,
        signed(key.node),
        key.source.role,
        key.source.release.map(|release| signed(release.0)),
        series.cloud,
        series.instance_type,
        serde_json::to_string(&series.totals)?,
        serde_json::to_string(&series.sums)?,
        series.heard,
    ])?;
    Ok(())
}

/// Adds values to a step of a series.
pub fn add(
    tx: &Connection,
    series: i64,
    length: i64,
    at: i64,
    came: &Values,
) -> Result<(), MetricsError> {
    let found: Option<String> = tx
        .prepare_cached(
            "SELECT values_json FROM steps WHERE series = ?1 AND length = ?2 AND at = ?3",
        )?
        .query_row(params![series, length, at], |row| row.get(0))
        .optional()?;
    let mut values: Values = match found {
        Some(text) => serde_json::from_str(&text)?,
        None => Values::new(),
    };
    for (name, value) in came {
        match values.get_mut(name) {
            Some(known) => drop(known.merge(value)),
            None => drop(values.insert(name.clone(), value.clone())),
        }
    }
    tx.prepare_cached(
        "INSERT OR REPLACE INTO steps(series, length, at, values_json) VALUES(?1, ?2, ?3, ?4)",
    )?
    .execute(params![series, length, at, serde_json::to_string(&values)?])?;
    Ok(())
}

/// The steps of a series from one moment to before another, in order.
pub fn steps(
    database: &Connection,
    series: i64,
    length: i64,
    from: i64,
    until: i64,
    mut take: impl FnMut(i64, Values),
) -> Result<(), MetricsError> {
    let mut statement = database.prepare_cached(
        "SELECT at, values_json FROM steps WHERE series = ?1 AND length = ?2 AND at >= ?3 AND at < ?4 ORDER BY at",
    )?;
    let mut rows = statement.query(params![series, length, from, until])?;
    while let Some(row) = rows.next()? {
        take(
            row.get(0)?,
            serde_json::from_str(&row.get::<_, String>(1)?)?,
        );
    }
    Ok(())
}

/// Forgets a series.
pub fn forget(database: &Connection, series: i64) -> Result<(), MetricsError> {
    database.execute("DELETE FROM steps WHERE series = ?1", [series])?;
    database.execute("DELETE FROM series WHERE id = ?1", [series])?;
    Ok(())
}

/// Forgets steps that are too old.
pub fn forget_old(
    database: &Connection,
    series: impl Iterator<Item = i64>,
    now: i64,
) -> Result<(), MetricsError> {
    let mut statement = database
        .prepare_cached("DELETE FROM steps WHERE series = ?1 AND length = ?2 AND at < ?3")?;
    for id in series {
        for (length, kept) in [(FINE, FINE_KEPT), (COARSE, COARSE_KEPT)] {
            statement.execute(params![id, length, now - kept])?;
        }
    }
    Ok(())
}

/// Bytes in use, without what is free for others to come.
pub fn used_bytes(database: &Connection) -> Result<u64, MetricsError> {
    let pragma =
        |name: &str| database.query_row(&format!("PRAGMA {name}"), [], |row| unsigned(row, 0));
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok(pages.saturating_mul(pragma("page_size")?))
}

/// Forgets the oldest steps of whoever has most, until four fifths of the bound are not exceeded.
pub fn make_room(database: &Connection, most_bytes: u64) -> Result<(), MetricsError> {
    while used_bytes(database)? > most_bytes / 5 * 4 {
        let worst: Option<(String, i64, i64, i64)> = database
            .query_row(
                "SELECT application, length, min(at), max(at) FROM steps JOIN series ON series.id = steps.series
                 GROUP BY application, length ORDER BY count(*) DESC LIMIT 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )
            .optional()?;
        let Some((application, length, oldest, newest)) = worst else {
            return Ok(());
        };
        let before = oldest + (newest - oldest) / 4 + 1;
        database.execute(
            "DELETE FROM steps WHERE length = ?2 AND at < ?3
             AND series IN (SELECT id FROM series WHERE application = ?1)",
            params![application, length, before],
        )?;
    }
    Ok(())
}
