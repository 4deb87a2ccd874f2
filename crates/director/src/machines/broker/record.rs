//! What becomes of the store when the broker acts: each action as rows and events, and the call
//! that it asks for. What is decided, and when, is not decided here.

use super::{Call, Lists, aside};
use crate::error::DirectorError;
use crate::machines::records;
use crate::store::{self, Millis, events, services};
use crate::vault::Vault;
use conpaas_core::broker::{Action, Hindrance, MachineRow, MachineStage, NodeKey, NodeRow};
use conpaas_kill_points::KillPoint;
use conpaas_model::event::EventKind;
use conpaas_model::ids::{MachineId, Name};
use conpaas_model::status::NodeState;
use rusqlite::Connection;

pub(super) fn machine_of(action: &Action) -> Option<&MachineId> {
    match action {
        Action::Create { machine }
        | Action::Adopt { machine, .. }
        | Action::MarkUp { machine }
        | Action::MarkDead { machine, .. }
        | Action::Destroy { machine, .. }
        | Action::MarkGone { machine, .. }
        | Action::RetryLater { machine, .. } => Some(machine),
        Action::RecordIntent { .. }
        | Action::EndNode { .. }
        | Action::DestroyOrphan { .. }
        | Action::Quarantine { .. }
        | Action::EndQuarantine { .. }
        | Action::Trouble { .. } => None,
    }
}

/// The node that an action is about, where it is about one and no machine of it.
pub(super) fn node_of(action: &Action) -> Option<&NodeKey> {
    match action {
        Action::RecordIntent { node, .. }
        | Action::EndNode { node, .. }
        | Action::Trouble { node, .. } => Some(node),
        _ => None,
    }
}

/// Where one dies once an action is committed.
pub(super) fn recorded(action: &Action) -> Option<KillPoint> {
    Some(match action {
        Action::RecordIntent { .. } => KillPoint::IntentRecorded,
        Action::Create { .. } => KillPoint::CreateRecorded,
        Action::MarkUp { .. } => KillPoint::MachineUp,
        Action::Destroy { .. } => KillPoint::DestroyRecorded,
        Action::MarkGone { .. } => KillPoint::MachineGone,
        Action::EndNode { .. } => KillPoint::NodeEnded,
        _ => return None,
    })
}

/// Writes what an action says; gives the call that it asks for. `listed` is what the clouds said
/// last, whole.
#[allow(clippy::too_many_arguments)]
pub(super) fn record(
    tx: &Connection,
    vault: &Vault,
    action: &Action,
    row: Option<&MachineRow>,
    node: Option<&NodeRow>,
    now: Millis,
    deadline: Millis,
    listed: &Lists,
) -> Result<Option<Call>, DirectorError> {
    let key = row.map(|row| &row.node);
    match action {
        Action::RecordIntent {
            node,
            attempts,
            retry_at,
            last_error,
        } => {
            let id = store::new_id(MachineId::from_suffix)?;
            records::insert_intent(
                tx,
                &records::Intent {
                    id: &id,
                    node,
                    attempts: *attempts,
                    retry_at: *retry_at,
                    last_error: last_error.as_deref(),
                },
                now,
            )?;
            records::set_node_state(tx, node, NodeState::Requested, last_error.as_deref(), now)?;
            if *attempts > 0 {
                let what = EventKind::MachineTried {
                    node: node.number,
                    failures: *attempts,
                    pause_ms: retry_at.saturating_sub(records::unsigned(now)),
                };
                tell(tx, node, what, last_error.as_deref())?;
            }
        }
        Action::Create { machine } => {
            let birth = records::creating(tx, machine, vault.birth_token(machine), deadline)?;
            return Ok(birth.map(|birth| Call::Create {
                birth: Box::new(birth),
            }));
        }
        Action::Adopt { machine, cloud_id } => {
            records::adopted(tx, machine, cloud_id, deadline)?;
            if let Some(row) = row {
                records::set_node_state(
                    tx,
                    &row.node,
                    NodeState::Booting,
                    row.last_error.as_deref(),
                    now,
                )?;
            }
        }
        Action::MarkUp { machine } => {
            records::set_stage(tx, machine, MachineStage::Up, None)?;
            records::usage_begins(tx, machine, now)?;
            if let Some(key) = key {
                records::set_node_state(tx, key, NodeState::Up, None, now)?;
                tell(tx, key, EventKind::NodeUp { node: key.number }, None)?;
            }
        }
        Action::MarkDead { machine, signal } => {
            let reason = signal.to_string();
            records::set_stage(tx, machine, MachineStage::Dead, Some(&reason))?;
            if let Some(key) = key {
                records::set_node_state(tx, key, NodeState::Dead, Some(&reason), now)?;
                let what = EventKind::NodeDied {
                    node: key.number,
                    signal: signal.clone(),
                };
                tell(tx, key, what, Some(&reason))?;
                // Its manager may have died with it; what it last said is no longer so.
                services::doubt(tx, &key.service)?;
            }
        }
        Action::Destroy {
            machine,
            cloud_id,
            reason,
            ..
        } => {
            records::set_stage(tx, machine, MachineStage::Destroying, reason.as_deref())?;
            records::set_cloud_id(tx, machine, cloud_id)?;
            let Some(row) = row else { return Ok(None) };
            if node.is_some_and(|node| node.wanted && node.state != NodeState::Dead) {
                records::set_node_state(
                    tx,
                    &row.node,
                    NodeState::Requested,
                    reason.as_deref(),
                    now,
                )?;
                if row.stage != MachineStage::Destroying {
                    let node = row.node.number;
                    let what = EventKind::MachineFailed { node };
                    tell(tx, &row.node, what, reason.as_deref())?;
                }
            }
            return Ok(Some(Call::Destroy {
                machine: machine.clone(),
                cloud: row.cloud.clone(),
                cloud_id: cloud_id.clone(),
            }));
        }
        Action::MarkGone { machine, reason } => {
            records::set_stage(tx, machine, MachineStage::Gone, reason.as_deref())?;
            records::usage_ends(tx, machine, now)?;
        }
        Action::EndNode { node } => {
            tell(tx, node, EventKind::NodeGone { node: node.number }, None)?;
            records::end_node(tx, node)?;
        }
        Action::DestroyOrphan {
            cloud,
            cloud_id,
            token,
        } => {
            return Ok(Some(Call::Orphan {
                cloud: cloud.clone(),
                cloud_id: cloud_id.clone(),
                token: token.clone(),
            }));
        }
        Action::Quarantine { cloud, cloud_id } => {
            let machines = listed.get(cloud).into_iter().flatten();
            for machine in machines.filter(|machine| machine.id.0 == *cloud_id).take(1) {
                aside::enter(tx, cloud, machine, now)?;
            }
        }
        Action::EndQuarantine { cloud, cloud_id } => aside::leave(tx, cloud, cloud_id)?,
        Action::RetryLater {
            machine,
            stage,
            attempts,
            at,
            reason,
            for_good,
        } => {
            records::failed_attempt(tx, machine, *stage, *attempts, *at, reason)?;
            if let Some(row) = row
                && *stage != MachineStage::Destroying
            {
                records::set_refused(tx, &row.node, *for_good)?;
                if row.last_error.as_ref() != Some(reason) {
                    records::set_trouble(tx, &row.node, Some(reason))?;
                    let what = EventKind::NodeDelayed {
                        node: row.node.number,
                        attempts: *attempts,
                        pause_ms: at.saturating_sub(records::unsigned(now)),
                        for_good: *for_good,
                    };
                    tell(tx, &row.node, what, Some(reason))?;
                }
            }
        }
        Action::Trouble { node, what } => {
            let text = what.as_ref().map(Hindrance::to_string);
            records::set_trouble(tx, node, text.as_deref())?;
            let number = node.number;
            match what {
                Some(Hindrance::Quota { quota, in_use }) => {
                    let what = EventKind::QuotaRefused {
                        node: number,
                        quota: *quota,
                        in_use: *in_use,
                    };
                    tell(tx, node, what, None)?;
                }
                Some(Hindrance::Cloud(text)) => {
                    let what = EventKind::NodeBlocked { node: number };
                    tell(tx, node, what, Some(text))?;
                }
                None => {}
            }
        }
    }
    Ok(None)
}

/// Writes an event about a node.
pub fn tell(
    tx: &Connection,
    key: &NodeKey,
    what: EventKind,
    reason: Option<&str>,
) -> Result<(), DirectorError> {
    let Some((application, service)) = records::place_of(tx, &key.service)? else {
        return Ok(());
    };
    let event: events::NewEvent<'_> = events::NewEvent {
        service: Some(&service as &Name),
        actor: "system",
        reason,
        what,
    };
    events::append(tx, &application, &event)
}

/// Tells that a machine which was asked for, and was not wanted any more when it was found, is
/// destroyed.
pub(super) fn tell_stray(tx: &Connection, machine: records::Machine) -> Result<(), DirectorError> {
    let key = NodeKey {
        service: machine.service,
        number: machine.node,
    };
    let what = EventKind::StrayDestroyed {
        node: machine.node,
        machine: machine.id,
    };
    tell(tx, &key, what, None)
}
