//! What changes in a store when it comes back from a backup: the world may be newer than it, so
//! whatever is numbered from now on must be above what was given meanwhile, and what the backup
//! only half knows is not believed. Who compares these numbers is in `incarnation` and at their uses.

use crate::error::DirectorError;
use crate::incarnation::Incarnation;
use crate::store::Millis;
use crate::store::operations::{self, Target};
use crate::store::services::{self, ReleaseRow, ServiceRow};
use conpaas_core::service_type::number_beside;
use conpaas_model::ids::{ReleaseNumber, ServiceId};
use conpaas_model::spec::RunWish;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;

/// How far events go on beyond the number that the backup knows: who follows them has seen later ones.
/// Far less than is kept of them, so that the history stays.
const EVENTS_AHEAD: i64 = 1000;

/// What the store that a backup takes the place of knew of a service's releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormerReleases {
    pub next: ReleaseNumber,
    pub serving: Option<ReleaseNumber>,
}

/// What the former store knew, by service; nothing when it could not be read.
pub type Former = Option<BTreeMap<ServiceId, FormerReleases>>;

/// Reads that of a store.
pub fn former_releases(
    tx: &Connection,
) -> Result<BTreeMap<ServiceId, FormerReleases>, DirectorError> {
    let rows = services::every(tx)?.into_iter();
    Ok(rows
        .map(|row| {
            let found = FormerReleases {
                next: row.next_release,
                serving: row.status.and_then(|status| status.serving),
            };
            (row.id, found)
        })
        .collect())
}

/// Makes a restored store outrank the world it comes back to.
pub fn outrank(
    tx: &Connection,
    incarnation: Incarnation,
    former: &Former,
    now: Millis,
) -> Result<(), DirectorError> {
    let floor = i64::try_from(incarnation.floor()).unwrap_or(i64::MAX);
    // Machines that were being made come and go within seconds: what became of them is not known,
    // so they are no nodes of ours. Those that are there turn up in quarantine.
    tx.execute(
        "DELETE FROM machines WHERE state IN ('intended','creating','booting')",
        [],
    )?;
    tx.execute(
        "DELETE FROM nodes WHERE wish = 'present' AND state IN ('requested','booting')",
        [],
    )?;
    for row in services::every(tx)? {
        release_anew(tx, &row, incarnation, former, now)?;
    }
    // Whom people are led to now is the edge's to know until a manager speaks.
    tx.execute(
        "UPDATE services SET generation = max(generation + 1, ?1), next_node = max(next_node, ?1),
             next_release = max(next_release, ?1), exposure_json = NULL",
        [floor],
    )?;
    tx.execute(
        "UPDATE apps SET generation = max(generation + 1, ?1), event_sequence = event_sequence + ?2",
        [floor, EVENTS_AHEAD],
    )?;
    tx.execute(
        "UPDATE leases SET expires_at = 0, fencing = max(fencing + 1, ?1)",
        [floor],
    )?;
    let generations: BTreeMap<ServiceId, _> = services::every(tx)?
        .into_iter()
        .map(|row| (row.id, row.generation))
        .collect();
    // What was under way goes on, and is observed by the new generations.
    for operation in operations::running(tx, None)? {
        let targets: Vec<Target> = operation
            .targets
            .into_iter()
            .map(|target| Target {
                generation: generations
                    .get(&target.service)
                    .copied()
                    .unwrap_or(target.generation),
                ..target
            })
            .collect();
        let time = operation.deadline.saturating_sub(operation.created_at);
        tx.execute(
            "UPDATE operations SET targets_json = ?2, deadline = ?3 WHERE id = ?1",
            params![
                operation.id.as_str(),
                serde_json::to_string(&targets)?,
                now.saturating_add(time)
            ],
        )?;
    }
    // What was put aside after an earlier restore is looked for anew.
    tx.execute("DELETE FROM quarantine", [])?;
    incarnation.begin(tx, now)
}

/// Gives the active release a number above all that were given since. Whoever saw a later one (a
/// browser by its cookie) is led to it as to a newer one, not kept at what runs no more.
fn release_anew(
    tx: &Connection,
    row: &ServiceRow,
    incarnation: Incarnation,
    former: &Former,
    now: Millis,
) -> Result<(), DirectorError> {
    let known = former.as_ref().and_then(|former| former.get(&row.id));
    let unchanged = known.is_some_and(|known| known.next == row.next_release);
    if unchanged || row.internal || row.run == RunWish::Deleted {
        return Ok(());
    }
    let Some(active) = services::get_release(tx, &row.id, row.active)? else {
        return Ok(());
    };
    let floor = ReleaseNumber(incarnation.floor().max(row.next_release.0));
    let at_backup = row.status.as_ref().and_then(|status| status.serving);
    // What runs is what the former store saw served; without it, the backup's word is the best.
    let serving = known.map_or(at_backup, |known| known.serving);
    let number = number_beside(floor, serving);
    services::insert_release(
        tx,
        &ReleaseRow {
            number,
            reason: format!("release {} of the backup that was restored", active.number),
            actor: "system".to_owned(),
            created_at: now,
            ..active
        },
    )?;
    // One that was held is held no more: what nodes have of it is of another life.
    tx.execute(
        "UPDATE services SET active_release = ?2, next_release = ?3, preview_release = NULL WHERE id = ?1",
        params![
            row.id.as_str(),
            i64::try_from(number.0).unwrap_or(i64::MAX),
            i64::try_from(number.next().0).unwrap_or(i64::MAX)
        ],
    )?;
    Ok(())
}
