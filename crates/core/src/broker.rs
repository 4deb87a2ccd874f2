//! The broker's decisions: which machines to obtain, which to give back, and what to believe of
//! them. Pure: the Director's records, what the clouds list and the time go in, actions come out;
//! whoever carries them out records each result and asks again. Every action may be repeated.
//!
//! What holds it together:
//! - a machine is asked for only after its record (with the token that names the wish) exists, so
//!   an answer that was lost is found again by its token;
//! - nothing is believed gone or dead but by a list that was asked after our last call;
//! - a cloud that cannot be listed changes nothing;
//! - what a list holds without a record that wants it, is an orphan and is destroyed. Lists hold
//!   only what carries this installation's tags, so nothing else is ever touched.

mod decide;
mod types;

#[cfg(test)]
mod tests;

pub use decide::{answered, decide};
pub use types::{
    Action, BrokerSettings, CallResult, CloudView, Hindrance, Listed, MachineRow, MachineStage,
    NodeKey, NodeRow, View,
};
