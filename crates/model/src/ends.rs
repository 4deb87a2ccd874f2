//! Ends of a node's processes that nobody had asked for: init counts them, the agent reports the
//! counts, the manager says which of them should be told, and the Director writes that down once.
//! Counts rather than messages, so that nothing is lost or told twice whoever dies on the way.

use crate::ids::NodeNumber;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The agent's name among the processes of a node; those of roles are `ROLE/PART`.
pub const AGENT: &str = "agent";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "it ended with code {code}"),
            Self::Signal(signal) => write!(f, "it was killed by signal {signal}"),
        }
    }
}

/// How often one process of a node has ended unasked, since its machine was born.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnds {
    pub process: String,
    pub count: u64,
    /// How it ended the last time.
    pub last: Exit,
}

/// What a manager wants told: up to this count, the process has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndsToTell {
    pub node: NodeNumber,
    #[serde(flatten)]
    pub ends: ProcessEnds,
}

/// By process: up to which count its ends were told.
pub type Told = BTreeMap<String, u64>;
