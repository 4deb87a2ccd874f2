//! Events: what happened to an application, with a sequence of its own.

use super::{Millis, all, json, now, parsed_or_null, signed, to_json, unsigned};
use crate::error::DirectorError;
use conpaas_model::event::{Event, EventKind};
use conpaas_model::ids::{ApplicationId, Name};
use rusqlite::{Connection, params};

/// An event to write.
pub struct NewEvent<'a> {
    pub service: Option<&'a Name>,
    /// A user's name, or `system`.
    pub actor: &'a str,
    pub reason: Option<&'a str>,
    pub what: EventKind,
}

/// Writes an event with the application's next sequence number. Of an application that is gone
/// nothing is written.
pub fn append(
    tx: &Connection,
    app: &ApplicationId,
    event: &NewEvent<'_>,
) -> Result<(), DirectorError> {
    let at: Millis = now();
    let (kind, facts) = event.what.parts()?;
    let raised = tx.execute(
        "UPDATE apps SET event_sequence = event_sequence + 1 WHERE id = ?1",
        [app.as_str()],
    )?;
    if raised == 0 {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO events(app_id, sequence, at, kind, service, actor, reason, facts_json)
         SELECT id, event_sequence, ?2, ?3, ?4, ?5, ?6, ?7 FROM apps WHERE id = ?1",
        params![
            app.as_str(),
            at,
            kind,
            event.service.map(Name::as_str),
            event.actor,
            event.reason,
            to_json(&facts)?
        ],
    )?;
    Ok(())
}

/// Events after a sequence number, oldest first.
pub fn after(
    tx: &Connection,
    app: &ApplicationId,
    sequence: u64,
    limit: u64,
) -> Result<Vec<Event>, DirectorError> {
    all(
        tx,
        "SELECT * FROM events WHERE app_id = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3",
        params![app.as_str(), signed(sequence), signed(limit)],
        |row| {
            Ok(Event {
                sequence: unsigned(row, "sequence")?,
                at: super::show_time(row.get("at")?),
                service: parsed_or_null(row, "service")?,
                actor: row.get("actor")?,
                reason: row.get("reason")?,
                what: EventKind::of(row.get("kind")?, json(row, "facts_json")?),
            })
        },
    )
}

/// Keeps only an application's newest events.
pub fn forget_old(tx: &Connection, keep: u64) -> Result<(), DirectorError> {
    tx.execute(
        "DELETE FROM events WHERE sequence <= (SELECT event_sequence FROM apps WHERE apps.id = events.app_id) - ?1",
        [signed(keep)],
    )?;
    Ok(())
}
