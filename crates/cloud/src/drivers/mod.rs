//! The drivers, one each for a kind of cloud.

pub mod local;
pub mod memory;
