//! The harness of the end-to-end tests: a `World` is one whole installation of its own (state
//! folder, ports, machines), driven through the real `conpaas` program as a person would, and
//! taken away whole when it ends, even when a test fails. Its machines are namespaces of this
//! computer (`local`) or tasks of the test's own process (`memory`); the scenarios are the same.
//! What is asserted are states and counts, never times; waits are on conditions, with a bound and
//! a status text.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod archive;
pub mod checker;
pub mod checker_site;
pub mod doubles;
pub mod http;
pub mod load;
pub mod memory;
pub mod search;
pub mod world;

pub use world::{Finished, Person, Platform, World, free_port, program, signal, wait_for};
