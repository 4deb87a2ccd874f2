//! Machines that no record claims, as the broker's shell sees them: what the pure broker is to know
//! of them, and the rows and words of quarantine. What is decided is the pure broker's business.

use crate::error::DirectorError;
use crate::machines::records;
use crate::store::Millis;
use crate::store::events::{self, NewEvent};
use crate::store::quarantine::{self, QuarantineRow};
use conpaas_cloud::Machine;
use conpaas_core::broker::{CloudView, Quarantined, Strangers};
use conpaas_model::event::EventKind;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// When calls about machines in quarantine ended, by cloud and the cloud's name for them.
pub(super) type Settled = BTreeMap<(String, String), u64>;

/// What the pure broker is to know of machines without a record.
pub(super) fn strangers(
    tx: &Connection,
    restored: bool,
    views: &BTreeMap<String, CloudView>,
    settled: &Settled,
) -> Result<Strangers, DirectorError> {
    if !restored {
        return Ok(Strangers::default());
    }
    let listed = views.values().flat_map(|view| match view {
        CloudView::Listed { machines, .. } => machines.as_slice(),
        CloudView::Unlistable { .. } => &[],
    });
    let remembered = records::remembered(tx, listed.map(|machine| machine.token.as_str()))?;
    let quarantined = quarantine::every(tx)?
        .into_iter()
        .map(|row| {
            let key = (row.cloud, row.cloud_id);
            let found = Quarantined {
                condemned: row.condemned,
                settled: settled.get(&key).copied().unwrap_or(0),
            };
            (key, found)
        })
        .collect();
    Ok(Strangers {
        restored,
        remembered,
        quarantined,
    })
}

/// Writes down that a machine is in quarantine, and tells it where anybody looks.
pub(super) fn enter(
    tx: &Connection,
    cloud: &str,
    machine: &Machine,
    now: Millis,
) -> Result<(), DirectorError> {
    let created_at = i64::try_from(machine.created_at).unwrap_or(0);
    quarantine::insert(
        tx,
        &QuarantineRow {
            cloud: cloud.to_owned(),
            cloud_id: machine.id.0.clone(),
            machine: machine.machine.clone(),
            app: machine.application.clone(),
            hostname: machine.hostname.clone(),
            instance_type: machine.instance_type.clone(),
            address: machine.address,
            created_at: created_at.saturating_mul(1000),
            since: now,
            condemned: false,
        },
    )?;
    tracing::warn!(
        cloud, machine = %machine.machine, application = %machine.application, hostname = machine.hostname,
        "a machine that the restored store does not know is left alone, in quarantine: conpaas director quarantine list"
    );
    let event = NewEvent {
        service: None,
        actor: "system",
        reason: Some("it was made after the backup that was restored"),
        what: EventKind::MachineQuarantined {
            machine: machine.machine.clone(),
            hostname: machine.hostname.clone(),
            cloud: cloud.to_owned(),
        },
    };
    // Of an application that the backup does not know either, only the list tells.
    events::append(tx, &machine.application, &event)
}

/// Forgets a machine that is there no more.
pub(super) fn leave(tx: &Connection, cloud: &str, cloud_id: &str) -> Result<(), DirectorError> {
    let rows = quarantine::every(tx)?;
    let found = rows
        .into_iter()
        .find(|row| row.cloud == cloud && row.cloud_id == cloud_id);
    quarantine::delete(tx, cloud, cloud_id)?;
    let Some(row) = found else { return Ok(()) };
    tracing::info!(cloud, machine = %row.machine, condemned = row.condemned, "a machine left quarantine: it is gone");
    let event = NewEvent {
        service: None,
        actor: "system",
        reason: None,
        what: EventKind::QuarantineEnded {
            machine: row.machine,
            wanted: row.condemned,
        },
    };
    events::append(tx, &row.app, &event)
}
