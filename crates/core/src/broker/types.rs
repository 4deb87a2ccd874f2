//! Plain data that the broker decides over, and the actions it decides on.

use conpaas_model::event::DeathSignal;
use conpaas_model::ids::{MachineId, NodeNumber, PrincipalId, ServiceId};
use conpaas_model::status::NodeState;
use std::collections::{BTreeMap, BTreeSet};

/// A node by its service and number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    pub service: ServiceId,
    pub number: NodeNumber,
}

/// A node as recorded. Numbers are never reused, so a node is obtained at most once.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    pub key: NodeKey,
    /// Who pays, and whose quota holds.
    pub owner: PrincipalId,
    pub cloud: String,
    pub instance_type: String,
    /// Wanted; otherwise wanted gone.
    pub wanted: bool,
    pub state: NodeState,
    /// What stands recorded as being in the way.
    pub trouble: Option<String>,
}

/// How far a machine is in the Director's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MachineStage {
    /// Recorded; the cloud has nothing of it (never asked, or it refused).
    Intended,
    /// The cloud was asked; what came of it is not known yet.
    Creating,
    /// Exists; its agent has not enrolled.
    Booting,
    /// Its agent has enrolled.
    Up,
    /// The cloud says that it has died.
    Dead,
    /// The cloud was asked to destroy it.
    Destroying,
    /// The cloud has it no more. The record stays for its history.
    Gone,
}

/// A machine as recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineRow {
    pub id: MachineId,
    pub node: NodeKey,
    pub cloud: String,
    /// Names the wish at the cloud.
    pub token: String,
    pub cloud_id: Option<String>,
    pub stage: MachineStage,
    /// Its agent has shown a key.
    pub enrolled: bool,
    /// How often obtaining a machine for this node has failed in a row.
    pub attempts: u32,
    /// Not to be acted on before; Unix milliseconds.
    pub retry_at: u64,
    /// When its agent must have enrolled; Unix milliseconds. Zero before the cloud was asked.
    pub boot_deadline: u64,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// When the last call about it ended, on the scale of [`CloudView::Listed`]'s `asked`; zero
    /// when no call was made in this life of the Director.
    pub settled: u64,
}

/// A machine as its cloud lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub token: String,
    /// How it ended, if nothing of it runs any more.
    pub died: Option<String>,
}

/// What is known of a cloud.
#[derive(Clone, Debug, PartialEq)]
pub enum CloudView {
    /// Everything there that carries our tags. `asked` is when the list was asked for, on a scale
    /// that rises with every call begun or ended.
    Listed {
        asked: u64,
        machines: Vec<Listed>,
    },
    Unlistable {
        reason: String,
    },
}

/// What is known of listed machines that no living record stands for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strangers {
    /// The store came back from a backup, so somebody may have asked for machines that it never
    /// knew: those are not destroyed unless a person says so.
    pub restored: bool,
    /// Tokens that the store has a record of, though the machine is gone: the store itself asked
    /// for them.
    pub remembered: BTreeSet<String>,
    /// Machines in quarantine, by cloud and the cloud's name for them.
    pub quarantined: BTreeMap<(String, String), Quarantined>,
}

/// A machine in quarantine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quarantined {
    /// A person said that it is to be destroyed.
    pub condemned: bool,
    /// When the last call about it ended, on the scale of [`CloudView::Listed`]'s `asked`.
    pub settled: u64,
}

/// Lifetimes and limits of the broker.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerSettings {
    /// First pause after a failed attempt, in milliseconds; doubles with each further one.
    pub first_pause: u64,
    /// Longest pause, in milliseconds.
    pub longest_pause: u64,
    /// The longest that any cloud's machine may take to boot, in milliseconds.
    pub longest_boot: u64,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self {
            first_pause: 1000,
            longest_pause: 60_000,
            longest_boot: 600_000,
        }
    }
}

impl BrokerSettings {
    /// The pause after so many failed attempts in a row, in milliseconds.
    pub fn pause(&self, attempts: u32) -> u64 {
        let doublings = attempts.saturating_sub(1).min(32);
        self.first_pause
            .saturating_mul(1u64 << doublings)
            .min(self.longest_pause)
    }
}

/// Everything the broker decides over. Records must have been read after the lists were received.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub nodes: &'a [NodeRow],
    /// All that are not gone, in any order.
    pub machines: &'a [MachineRow],
    pub clouds: &'a BTreeMap<String, CloudView>,
    /// Most nodes at once, by owner; an owner who is absent may have any number.
    pub quotas: &'a BTreeMap<PrincipalId, u32>,
    /// Machines that a call is under way for: left alone.
    pub busy: &'a BTreeSet<MachineId>,
    pub strangers: &'a Strangers,
    /// Unix milliseconds.
    pub now: u64,
    pub settings: &'a BrokerSettings,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Record a machine for the node (stage `Intended`, a fresh id and token, nothing asked yet).
    RecordIntent {
        node: NodeKey,
        attempts: u32,
        retry_at: u64,
        last_error: Option<String>,
    },
    /// Record stage `Creating` and the boot deadline, then ask the cloud.
    Create { machine: MachineId },
    /// The cloud has it: record its id there, stage `Booting`.
    Adopt {
        machine: MachineId,
        cloud_id: String,
    },
    /// Record stage `Up`, the node's too; forget what was in the way.
    MarkUp { machine: MachineId },
    /// Record stage `Dead`, the node's too.
    MarkDead {
        machine: MachineId,
        signal: DeathSignal,
    },
    /// Record stage `Destroying` and the reason, then ask the cloud.
    Destroy {
        machine: MachineId,
        cloud_id: String,
        reason: Option<String>,
        attempts: u32,
    },
    /// Record stage `Gone`.
    MarkGone {
        machine: MachineId,
        reason: Option<String>,
    },
    /// Nothing of the node is left in any cloud: it ends.
    EndNode { node: NodeKey },
    /// Destroy what no record wants.
    DestroyOrphan {
        cloud: String,
        cloud_id: String,
        /// Names the wish that it was made for.
        token: String,
    },
    /// Record that a machine which the store never asked for is there, and is left alone.
    Quarantine { cloud: String, cloud_id: String },
    /// A machine in quarantine is there no more: forget it.
    EndQuarantine { cloud: String, cloud_id: String },
    /// Record the failed attempt, and with it the stage that the machine is in now.
    RetryLater {
        machine: MachineId,
        stage: MachineStage,
        attempts: u32,
        at: u64,
        reason: String,
        /// The cloud refuses for good: whoever waits for the node should know.
        for_good: bool,
    },
    /// Record what is in the way of the node, or that nothing is.
    Trouble {
        node: NodeKey,
        what: Option<Hindrance>,
    },
}

/// What is in the way of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// The owner's quota is used up.
    Quota { quota: u32, in_use: u32 },
    /// Its cloud does not give it; the cloud's words, or ours about it.
    Cloud(String),
}

impl std::fmt::Display for Hindrance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Quota { quota, in_use } => {
                write!(f, "the quota of {quota} nodes is used up ({in_use} in use)")
            }
            Self::Cloud(text) => f.write_str(text),
        }
    }
}

/// How a call to a cloud ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallResult {
    Created {
        cloud_id: String,
    },
    /// The cloud refused; it made nothing.
    Refused {
        reason: String,
        /// Waiting does not help: it would refuse the same again.
        for_good: bool,
    },
    /// It is not known whether a machine was made.
    Unclear {
        reason: String,
    },
    /// The destroy call succeeded; the next list has the last word.
    Destroyed,
    NotDestroyed {
        reason: String,
    },
}
