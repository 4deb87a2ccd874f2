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
//!   only what carries this installation's tags, so nothing else is ever touched;
//! - in a store that was restored from a backup, a machine that no record was ever made for is what
//!   the backup does not know: it is put in quarantine, and destroyed only when a person says so.
//!   Machines that are asked for after the restore have records first, so they are never taken for it.

mod decide;
mod types;

#[cfg(test)]
mod tests;

pub use decide::{answered, decide};
pub use types::{
    Action, BrokerSettings, CallResult, CloudView, Hindrance, Listed, MachineRow, MachineStage,
    NodeKey, NodeRow, Quarantined, Strangers, View,
};
