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

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::ids::NodeNumber;
    use serde_json::json;

    #[test]
    fn rows_of_before_there_were_typed_facts_are_read_with_all_they_said() {
        let mut store = Connection::open_in_memory().unwrap();
        super::super::migrations::migrate(&mut store, None).unwrap();
        store
            .execute_batch(
                "INSERT INTO users(id, name, password_hash, rank, node_quota, created_at)
                     VALUES('user-a', 'ann', '', 'user', 20, 0);
                 INSERT INTO apps(id, owner_id, name, description, labels_json, run, ever_started,
                     generation, created_at, event_sequence)
                     VALUES('app-a', 'user-a', 'shop', '', '{}', 'stopped', 0, 1, 0, 1);
                 INSERT INTO events VALUES('app-a', 1, 0, 'node_died', NULL, 'system', 'killed',
                     '{\"node\": 2}');",
            )
            .unwrap();
        let app = "app-a".parse().unwrap();
        let node = NodeNumber(3);
        let event = NewEvent {
            service: None,
            actor: "system",
            reason: None,
            what: EventKind::NodeUp { node },
        };
        append(&store, &app, &event).unwrap();
        let found = after(&store, &app, 0, 10).unwrap();
        let old = EventKind::Note {
            kind: "node_died".into(),
            facts: json!({"node": 2}),
        };
        let told: Vec<_> = found.iter().map(|e| (e.sequence, &e.what)).collect();
        assert_eq!(told, [(1, &old), (2, &EventKind::NodeUp { node })]);
        assert_eq!(found[0].reason.as_deref(), Some("killed"));
    }
}
