//! What happened to an application: a closed enum whose variants hold the facts as typed fields.
//! Names are stable, words are made at the client. Where events are kept, and who writes them, is
//! the Director's business.

use crate::api::Outcome;
use crate::egress::Egress;
use crate::ends::Exit;
use crate::ids::{CodeId, MachineId, Name, NodeNumber, OperationId, ReleaseNumber};
use crate::spec::{RoleName, RunWish};
use crate::status::ServiceState;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// One thing that happened; words are made at the client from kind, facts and reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Position within its application; the live stream's id.
    pub sequence: u64,
    pub at: String,
    pub service: Option<Name>,
    /// A user's name, or `system` for what ConPaaS decided by itself.
    pub actor: String,
    /// What somebody else said of it, for instance a cloud.
    pub reason: Option<String>,
    #[serde(flatten)]
    pub what: EventKind,
}

/// What happened, as `kind` and `facts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    remote = "Self",
    tag = "kind",
    content = "facts",
    rename_all = "snake_case"
)]
pub enum EventKind {
    ApplicationCreated {
        name: Name,
    },
    ApplicationRenamed {
        from: Name,
        to: Name,
    },
    /// It may get out another way from now on.
    EgressChanged {
        egress: Egress,
    },
    /// It was deleted, and rests in the trash.
    ApplicationTrashed {
        name: Name,
    },
    /// It came back from the trash.
    ApplicationRestored {
        name: Name,
    },
    ServiceAdded {
        #[serde(rename = "type")]
        service_type: String,
    },
    ServiceRenamed {
        from: Name,
        to: Name,
    },
    /// Nothing of the service is left.
    ServiceDeleted {},
    ServiceState {
        from: ServiceState,
        to: ServiceState,
    },
    /// People are led to this release from now on.
    ReleaseServed {
        release: ReleaseNumber,
        before: Option<ReleaseNumber>,
    },
    /// The active release does not come up, so nobody is led to it.
    ReleaseRefused {
        release: ReleaseNumber,
        /// What goes on serving.
        serving: Option<ReleaseNumber>,
    },
    /// What the machines of managers should do now, as it follows from the services they manage.
    ManagersWished {
        wish: RunWish,
    },
    /// A host name leads to the service from now on.
    DomainAdded {
        domain: String,
    },
    DomainRemoved {
        domain: String,
    },
    CodeUploaded {
        code: CodeId,
        filename: String,
        files: u64,
    },
    OperationStarted {
        operation: OperationId,
        kind: String,
    },
    OperationEnded {
        operation: OperationId,
        kind: String,
        outcome: Outcome,
    },
    /// A person wants another node in the place of this one.
    NodeReplaced {
        node: NodeNumber,
    },
    /// A node was written down; a machine will be asked for.
    NodeRequested {
        node: NodeNumber,
        cloud: String,
        instance_type: String,
        because: RequestReason,
    },
    /// Its agent has enrolled.
    NodeUp {
        node: NodeNumber,
    },
    NodeDied {
        node: NodeNumber,
        /// On which its death was judged.
        signal: DeathSignal,
    },
    /// It is wished gone, and its machine will be destroyed.
    NodeLetGo {
        node: NodeNumber,
        because: LeaveReason,
    },
    /// Nothing of the node is left in any cloud.
    NodeGone {
        node: NodeNumber,
    },
    /// A cloud did not give the machine; it is asked again.
    NodeDelayed {
        node: NodeNumber,
        /// How often in a row.
        attempts: u32,
        pause_ms: u64,
        /// It refuses for good: operations that wait for the node fail.
        for_good: bool,
    },
    /// Nothing can be asked of the node's cloud now.
    NodeBlocked {
        node: NodeNumber,
    },
    /// The owner has as many nodes as the quota allows: none is asked for.
    QuotaRefused {
        node: NodeNumber,
        quota: u32,
        in_use: u32,
    },
    /// A machine came to nothing before its agent enrolled; it is destroyed.
    MachineFailed {
        node: NodeNumber,
    },
    /// Another machine is tried for a node whose last one came to nothing.
    MachineTried {
        node: NodeNumber,
        /// How many came to nothing before.
        failures: u32,
        pause_ms: u64,
    },
    /// A machine that was found when nobody wanted it any more, or twice, was destroyed.
    StrayDestroyed {
        node: NodeNumber,
        machine: MachineId,
    },
    /// A machine that a restored store does not know was found; it is left alone until an operator
    /// says otherwise.
    MachineQuarantined {
        machine: MachineId,
        hostname: String,
        cloud: String,
    },
    /// A machine that was in quarantine is gone.
    QuarantineEnded {
        machine: MachineId,
        /// An operator wanted it destroyed.
        wanted: bool,
    },
    EnrolmentRefused {
        node: NodeNumber,
        machine: MachineId,
        code: String,
        /// Refusals since the last event of this machine.
        count: u64,
    },
    /// A role's process ended although nobody had asked it to; its agent starts it again.
    ProcessEnded {
        node: NodeNumber,
        role: RoleName,
        /// Its part of the role, for instance one release's.
        process: String,
        /// How it ended the last time.
        exit: Exit,
        /// How often since the last event of this process.
        times: u64,
        /// How often since the machine was born.
        total: u64,
    },
    /// A node's agent ended and was started again; roles run on meanwhile.
    AgentRestarted {
        node: NodeNumber,
        exit: Exit,
        times: u64,
        total: u64,
    },
    /// Written by another version, or in words; kept as it is.
    Note {
        kind: String,
        #[schema(value_type = Object)]
        facts: serde_json::Value,
    },
}

/// On which a node was judged dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum DeathSignal {
    /// The cloud's list does not hold its machine any more.
    NotListed,
    /// The cloud lists its machine as dead.
    ListedDead {
        /// How it ended, in the cloud's words.
        how: String,
    },
    /// Its agent could not be heard for longer than its manager waits.
    Silence { seconds: u64 },
}

/// Why a node is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum RequestReason {
    /// The wished counts need one more.
    Count,
    /// In the place of a node that died, or that a person wants replaced.
    Replacement { replaces: NodeNumber },
}

/// Why a node is wished gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// The wished counts need it no more, or one of another size.
    Surplus,
    /// A person wanted it replaced.
    Replaced,
    /// Its machine died.
    Dead,
    /// Its agent could not be heard for so long.
    Silent { seconds: u64 },
    /// Its service is deleted, and nobody lets its nodes go in time.
    Deleted,
}

impl std::fmt::Display for DeathSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotListed => f.write_str("the cloud has its machine no more"),
            Self::ListedDead { how } => write!(f, "its machine died: {how}"),
            Self::Silence { seconds } => {
                write!(f, "nothing was heard of its agent for {seconds} s")
            }
        }
    }
}

/// As it is stored and sent.
#[derive(Serialize, Deserialize)]
struct Plain {
    kind: String,
    #[serde(default)]
    facts: serde_json::Value,
}

impl EventKind {
    /// What a kind and its facts say; a note when they are none of ours.
    pub fn of(kind: String, facts: serde_json::Value) -> Self {
        let plain = serde_json::json!({ "kind": kind, "facts": facts });
        // The inherent function that `remote` makes, not the trait's.
        match Self::deserialize(plain) {
            Ok(Self::Note { .. }) | Err(_) => Self::Note { kind, facts },
            Ok(known) => known,
        }
    }

    /// Its stable name and its facts.
    ///
    /// # Errors
    /// None that a value can bring about; serde's signature.
    pub fn parts(&self) -> Result<(String, serde_json::Value), serde_json::Error> {
        if let Self::Note { kind, facts } = self {
            return Ok((kind.clone(), facts.clone()));
        }
        let value = Self::serialize(self, serde_json::value::Serializer)?;
        let Plain { kind, facts } = serde_json::from_value(value)?;
        Ok((kind, facts))
    }
}

impl Serialize for EventKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, facts) = self.parts().map_err(serde::ser::Error::custom)?;
        Serialize::serialize(&Plain { kind, facts }, serializer)
    }
}

impl<'de> Deserialize<'de> for EventKind {
    /// Never fails over a kind: what a newer Director tells is a note to an older client.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Plain { kind, facts } = <Plain as Deserialize>::deserialize(deserializer)?;
        Ok(Self::of(kind, facts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(what: EventKind) -> Event {
        Event {
            sequence: 3,
            at: "2026-01-02T03:04:05Z".into(),
            service: Some("web".parse().unwrap()),
            actor: "system".into(),
            reason: None,
            what,
        }
    }

    #[test]
    fn kind_and_facts_stand_beside_the_rest_and_come_back() {
        let died = event(EventKind::NodeDied {
            node: NodeNumber(2),
            signal: DeathSignal::ListedDead {
                how: "signal 9".into(),
            },
        });
        let text = serde_json::to_value(&died).unwrap();
        assert_eq!(
            text,
            json!({
                "sequence": 3, "at": "2026-01-02T03:04:05Z", "service": "web", "actor": "system",
                "reason": null, "kind": "node_died",
                "facts": {"node": 2, "signal": {"of": "listed_dead", "how": "signal 9"}},
            })
        );
        assert_eq!(serde_json::from_value::<Event>(text).unwrap(), died);
        let empty = event(EventKind::ServiceDeleted {});
        let text = serde_json::to_value(&empty).unwrap();
        assert_eq!(text["facts"], json!({}));
        assert_eq!(serde_json::from_value::<Event>(text).unwrap(), empty);
    }

    #[test]
    fn what_is_not_known_here_is_a_note_with_everything_it_said() {
        // A row of before there were typed facts.
        let old = EventKind::of("node_died".into(), json!({"node": 2}));
        let note = EventKind::Note {
            kind: "node_died".into(),
            facts: json!({"node": 2}),
        };
        assert_eq!(old, note);
        let text = serde_json::to_value(event(note.clone())).unwrap();
        assert_eq!(
            (&text["kind"], &text["facts"]),
            (&json!("node_died"), &json!({"node": 2}))
        );
        assert_eq!(serde_json::from_value::<Event>(text).unwrap().what, note);
        // One whose facts have not changed is what it always was.
        assert_eq!(
            EventKind::of("node_up".into(), json!({"node": 2})),
            EventKind::NodeUp {
                node: NodeNumber(2)
            }
        );
    }
}
