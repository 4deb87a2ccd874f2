//! Nouns and rules that every part of ConPaaS shares: typed identifiers, specs, statuses,
//! levels, metrics, wire messages and API types. No I/O, no clock, no randomness lives here.

pub mod api;
pub mod block;
pub mod edge;
pub mod egress;
pub mod ends;
pub mod environment;
pub mod event;
pub mod ids;
pub mod instance;
pub mod level;
pub mod metrics;
pub mod protocol;
pub mod spec;
pub mod status;

/// The version of ConPaaS this was built as.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
