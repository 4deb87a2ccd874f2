//! The decisions themselves.

use super::types::{
    Action, BrokerSettings, CallResult, CloudView, Hindrance, Listed, MachineRow, MachineStage,
    NodeKey, NodeRow, View,
};
use conpaas_model::event::DeathSignal;
use conpaas_model::ids::PrincipalId;
use conpaas_model::status::NodeState;
use std::collections::{BTreeMap, BTreeSet};

/// What a list says of one machine.
enum Word<'a> {
    /// The list was asked too early to know, or there is none.
    Unknown,
    Absent,
    Present(&'a Listed),
}

/// What to do now. Deterministic; at most one action per machine.
pub fn decide(view: &View<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut by_node: BTreeMap<&NodeKey, Vec<&MachineRow>> = BTreeMap::new();
    for machine in view
        .machines
        .iter()
        .filter(|m| m.stage != MachineStage::Gone)
    {
        by_node.entry(&machine.node).or_default().push(machine);
    }
    let mut used = usage(view.nodes, &by_node);

    let mut nodes: Vec<&NodeRow> = view.nodes.iter().collect();
    nodes.sort_by(|a, b| a.key.cmp(&b.key));
    for node in nodes {
        let machines = by_node.remove(&node.key).unwrap_or_default();
        if node.wanted {
            wanted(view, node, &machines, &mut used, &mut actions);
        } else {
            for machine in &machines {
                actions.extend(unwanted(view, machine));
            }
            if machines.is_empty() {
                actions.push(Action::EndNode {
                    node: node.key.clone(),
                });
            }
        }
    }
    // Machines whose node has no record any more.
    for machine in by_node.into_values().flatten() {
        actions.extend(unwanted(view, machine));
    }
    orphans(view, &mut actions);
    actions
}

/// Whether a machine's next attempt is due. The moment is one of the wall clock, which may be set back:
/// one that lies further ahead than the longest pause was written before that, and is not waited for.
fn due(view: &View<'_>, machine: &MachineRow) -> bool {
    let ahead = machine.retry_at.saturating_sub(view.now);
    ahead == 0 || ahead > view.settings.longest_pause
}

/// Whether a machine had its time to boot. One that the wall clock gives twice the longest time there
/// is was asked for before that was set back, nobody knows how long ago.
fn booted_too_long(view: &View<'_>, machine: &MachineRow) -> bool {
    let ahead = machine.boot_deadline.saturating_sub(view.now);
    ahead == 0 || ahead > view.settings.longest_boot.saturating_mul(2)
}

/// How a call's result is to be recorded.
pub fn answered(
    row: &MachineRow,
    result: CallResult,
    now: u64,
    settings: &BrokerSettings,
) -> Option<Action> {
    let later = |stage, reason, for_good| {
        let attempts = row.attempts.saturating_add(1);
        let at = now.saturating_add(settings.pause(attempts));
        Some(Action::RetryLater {
            machine: row.id.clone(),
            stage,
            attempts,
            at,
            reason,
            for_good,
        })
    };
    match result {
        CallResult::Created { cloud_id } => Some(Action::Adopt {
            machine: row.id.clone(),
            cloud_id,
        }),
        CallResult::Refused { reason, for_good } => later(MachineStage::Intended, reason, for_good),
        CallResult::Unclear { reason } => later(MachineStage::Creating, reason, false),
        CallResult::Destroyed => None,
        CallResult::NotDestroyed { reason } => later(MachineStage::Destroying, reason, false),
    }
}

/// Nodes that hold machines, by owner: what quotas count.
fn usage(
    nodes: &[NodeRow],
    machines: &BTreeMap<&NodeKey, Vec<&MachineRow>>,
) -> BTreeMap<PrincipalId, u32> {
    let mut used = BTreeMap::new();
    for node in nodes.iter().filter(|node| machines.contains_key(&node.key)) {
        *used.entry(node.owner.clone()).or_insert(0) += 1;
    }
    used
}

fn wanted(
    view: &View<'_>,
    node: &NodeRow,
    machines: &[&MachineRow],
    used: &mut BTreeMap<PrincipalId, u32>,
    actions: &mut Vec<Action>,
) {
    if machines
        .iter()
        .any(|machine| view.busy.contains(&machine.id))
    {
        return;
    }
    let Some(machine) = newest(machines) else {
        // One whose machine died has had its turn: a new number takes its place.
        if node.state != NodeState::Dead {
            intend(view, node, None, used, actions);
        }
        return;
    };
    // More than one is not made on purpose; whatever is left over has to go.
    for extra in machines.iter().filter(|other| other.id != machine.id) {
        actions.extend(unwanted(view, extra));
    }
    let mut trouble = machine.last_error.clone();
    if let Some(CloudView::Unlistable { reason }) = cloud_view(view, machine)
        && !matches!(machine.stage, MachineStage::Up | MachineStage::Dead)
    {
        trouble = Some(format!(
            "the cloud '{}' does not answer: {reason}",
            machine.cloud
        ));
    } else if !view.clouds.contains_key(&machine.cloud) {
        trouble = Some(format!("there is no cloud '{}' now", machine.cloud));
    }
    let acted = step_wanted(view, node, machine, used, actions);
    // `MarkUp` clears it by itself, and a recorded failure already is the trouble.
    if !acted && node.trouble != trouble && machine.stage != MachineStage::Up {
        actions.push(Action::Trouble {
            node: node.key.clone(),
            what: trouble.map(Hindrance::Cloud),
        });
    }
}

/// The machine that counts for a node: the furthest in its life that is not on its way out.
fn newest<'a>(machines: &[&'a MachineRow]) -> Option<&'a MachineRow> {
    let rank = |stage| match stage {
        MachineStage::Up => 6,
        MachineStage::Dead => 5,
        MachineStage::Booting => 4,
        MachineStage::Creating => 3,
        MachineStage::Intended => 2,
        MachineStage::Destroying => 1,
        MachineStage::Gone => 0,
    };
    machines
        .iter()
        .max_by_key(|m| (rank(m.stage), std::cmp::Reverse(&m.id)))
        .copied()
}

/// The next step of a machine that is wanted; true when there is one.
fn step_wanted(
    view: &View<'_>,
    node: &NodeRow,
    machine: &MachineRow,
    used: &mut BTreeMap<PrincipalId, u32>,
    actions: &mut Vec<Action>,
) -> bool {
    let before = actions.len();
    let id = machine.id.clone();
    // That an agent has enrolled is our own knowledge: it needs no cloud.
    if machine.enrolled
        && matches!(
            machine.stage,
            MachineStage::Creating | MachineStage::Booting
        )
        && machine.cloud_id.is_some()
    {
        actions.push(Action::MarkUp { machine: id });
        return true;
    }
    if !listable(view, machine) {
        return false;
    }
    let word = word(view, machine);
    match machine.stage {
        MachineStage::Intended => {
            if due(view, machine) {
                actions.push(Action::Create { machine: id });
            }
        }
        MachineStage::Creating => match word {
            Word::Present(listed) => actions.push(Action::Adopt {
                machine: id,
                cloud_id: listed.id.clone(),
            }),
            Word::Absent if due(view, machine) => actions.push(Action::Create { machine: id }),
            Word::Absent | Word::Unknown => {}
        },
        MachineStage::Booting => match word {
            Word::Absent => {
                failed(
                    view,
                    node,
                    machine,
                    "its machine vanished while it booted".into(),
                    used,
                    actions,
                );
            }
            Word::Present(Listed {
                died: Some(how),
                id: cloud_id,
                ..
            }) => actions.push(destroy(
                machine,
                cloud_id,
                Some(format!("its machine died while it booted: {how}")),
            )),
            Word::Present(_) | Word::Unknown if booted_too_long(view, machine) => {
                if let Some(cloud_id) = &machine.cloud_id {
                    let reason = "its machine booted, but its agent did not enrol in time";
                    actions.push(destroy(machine, cloud_id, Some(reason.into())));
                }
            }
            Word::Present(_) | Word::Unknown => {}
        },
        MachineStage::Up => {
            let signal = match word {
                Word::Absent => Some(DeathSignal::NotListed),
                Word::Present(listed) => listed
                    .died
                    .clone()
                    .map(|how| DeathSignal::ListedDead { how }),
                Word::Unknown => None,
            };
            if let Some(signal) = signal {
                actions.push(Action::MarkDead {
                    machine: id,
                    signal,
                });
            }
        }
        // Stays as it is (its console may be read) until its node is wished gone.
        MachineStage::Dead | MachineStage::Gone => {}
        MachineStage::Destroying => match word {
            Word::Absent => {
                let reason = machine
                    .last_error
                    .clone()
                    .unwrap_or_else(|| "its machine was destroyed".into());
                if node.state == NodeState::Dead {
                    // It had its turn.
                    actions.push(Action::MarkGone {
                        machine: id,
                        reason: Some(reason),
                    });
                } else {
                    failed(view, node, machine, reason, used, actions);
                }
            }
            Word::Present(listed) if due(view, machine) => {
                actions.push(destroy(machine, &listed.id, machine.last_error.clone()));
            }
            Word::Present(_) | Word::Unknown => {}
        },
    }
    actions.len() > before
}

/// A machine came to nothing before its agent enrolled: another is tried, after a pause.
fn failed(
    view: &View<'_>,
    node: &NodeRow,
    machine: &MachineRow,
    reason: String,
    used: &mut BTreeMap<PrincipalId, u32>,
    actions: &mut Vec<Action>,
) {
    actions.push(Action::MarkGone {
        machine: machine.id.clone(),
        reason: Some(reason.clone()),
    });
    if let Some(count) = used.get_mut(&node.owner) {
        *count = count.saturating_sub(1);
    }
    intend(
        view,
        node,
        Some((machine.attempts.saturating_add(1), reason)),
        used,
        actions,
    );
}

/// Records the wish for a machine, unless the owner's quota is used up.
fn intend(
    view: &View<'_>,
    node: &NodeRow,
    failure: Option<(u32, String)>,
    used: &mut BTreeMap<PrincipalId, u32>,
    actions: &mut Vec<Action>,
) {
    let in_use = used.entry(node.owner.clone()).or_insert(0);
    if let Some(quota) = view.quotas.get(&node.owner)
        && *in_use >= *quota
    {
        let what = Hindrance::Quota {
            quota: *quota,
            in_use: *in_use,
        };
        if node.trouble.as_ref() != Some(&what.to_string()) {
            actions.push(Action::Trouble {
                node: node.key.clone(),
                what: Some(what),
            });
        }
        return;
    }
    *in_use += 1;
    let (attempts, last_error) =
        failure.map_or((0, None), |(attempts, reason)| (attempts, Some(reason)));
    let retry_at = if attempts == 0 {
        0
    } else {
        view.now.saturating_add(view.settings.pause(attempts))
    };
    actions.push(Action::RecordIntent {
        node: node.key.clone(),
        attempts,
        retry_at,
        last_error,
    });
}

/// The next step of a machine that nobody wants.
fn unwanted(view: &View<'_>, machine: &MachineRow) -> Option<Action> {
    if view.busy.contains(&machine.id) {
        return None;
    }
    let gone = || {
        Some(Action::MarkGone {
            machine: machine.id.clone(),
            reason: None,
        })
    };
    if machine.stage == MachineStage::Intended && machine.cloud_id.is_none() {
        // The cloud has nothing of it.
        return gone();
    }
    if !listable(view, machine) {
        return None;
    }
    match (machine.stage, word(view, machine)) {
        // Should the call still bear fruit later, the fruit is an orphan.
        (_, Word::Absent) => gone(),
        (MachineStage::Destroying, Word::Present(listed)) => {
            due(view, machine).then(|| destroy(machine, &listed.id, machine.last_error.clone()))
        }
        (_, Word::Present(listed)) => Some(destroy(machine, &listed.id, None)),
        (MachineStage::Destroying | MachineStage::Creating, Word::Unknown) => None,
        (_, Word::Unknown) => machine
            .cloud_id
            .as_ref()
            .map(|cloud_id| destroy(machine, cloud_id, None)),
    }
}

fn destroy(machine: &MachineRow, cloud_id: &str, reason: Option<String>) -> Action {
    Action::Destroy {
        machine: machine.id.clone(),
        cloud_id: cloud_id.to_owned(),
        reason,
        attempts: machine.attempts,
    }
}

fn cloud_view<'a>(view: &View<'a>, machine: &MachineRow) -> Option<&'a CloudView> {
    view.clouds.get(&machine.cloud)
}

fn listable(view: &View<'_>, machine: &MachineRow) -> bool {
    matches!(cloud_view(view, machine), Some(CloudView::Listed { .. }))
}

/// What the machine's cloud says of it, if it was asked after our last call about it.
fn word<'a>(view: &View<'a>, machine: &MachineRow) -> Word<'a> {
    let Some(CloudView::Listed { asked, machines }) = cloud_view(view, machine) else {
        return Word::Unknown;
    };
    if *asked <= machine.settled {
        return Word::Unknown;
    }
    let mine = |listed: &&Listed| match &machine.cloud_id {
        Some(cloud_id) => listed.id == *cloud_id,
        None => listed.token == machine.token,
    };
    // Of several with our token the first by id is ours; the others turn into orphans.
    machines
        .iter()
        .filter(mine)
        .min_by(|a, b| a.id.cmp(&b.id))
        .map_or(Word::Absent, Word::Present)
}

/// What lists hold although no record wants it.
fn orphans(view: &View<'_>, actions: &mut Vec<Action>) {
    for (cloud, cloud_view) in view.clouds {
        let CloudView::Listed {
            asked,
            machines: listed,
        } = cloud_view
        else {
            continue;
        };
        let rows = || {
            view.machines
                .iter()
                .filter(|m| m.cloud == *cloud && m.stage != MachineStage::Gone)
        };
        let ids: BTreeSet<&str> = rows().filter_map(|m| m.cloud_id.as_deref()).collect();
        // A wish whose answer is outstanding claims whatever bears its token.
        let tokens: BTreeSet<&str> = rows()
            .filter(|m| m.cloud_id.is_none() || view.busy.contains(&m.id))
            .map(|m| m.token.as_str())
            .collect();
        let asked_for: BTreeSet<&str> = rows().map(|m| m.token.as_str()).collect();
        let mut seen = BTreeSet::new();
        for machine in listed {
            let claimed =
                ids.contains(machine.id.as_str()) || tokens.contains(machine.token.as_str());
            if !claimed && seen.insert(machine.id.as_str()) {
                let known = asked_for.contains(machine.token.as_str());
                actions.extend(stranger(view, cloud, machine, known));
            }
        }
        let gone = view
            .strangers
            .quarantined
            .iter()
            .filter(|((of, id), found)| {
                of == cloud && *asked > found.settled && !seen.contains(id.as_str())
            });
        actions.extend(gone.map(|((_, id), _)| Action::EndQuarantine {
            cloud: cloud.clone(),
            cloud_id: id.clone(),
        }));
    }
}

/// What becomes of a listed machine that no record claims. `known` says that a living record has
/// its token: it is the twin of a machine that we have.
fn stranger(view: &View<'_>, cloud: &str, machine: &Listed, known: bool) -> Option<Action> {
    let strangers = view.strangers;
    let (cloud, cloud_id) = (cloud.to_owned(), machine.id.clone());
    let unasked = strangers.restored && !known && !strangers.remembered.contains(&machine.token);
    match strangers
        .quarantined
        .get(&(cloud.clone(), cloud_id.clone()))
    {
        Some(found) if !found.condemned => None,
        None if unasked => Some(Action::Quarantine { cloud, cloud_id }),
        Some(_) | None => Some(Action::DestroyOrphan {
            cloud,
            cloud_id,
            token: machine.token.clone(),
        }),
    }
}
