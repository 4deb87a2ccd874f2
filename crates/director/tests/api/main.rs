//! The API through real HTTPS, with a machine side that has no machines: what managers and
//! clouds would say is written to the store by the tests.

// Helpers of tests count as no tests for the lints.
#![allow(clippy::unwrap_used)]

mod access;
mod code;
mod collections;
mod environment;
mod life;
mod metrics;
mod operations;
mod people;
mod releases;
mod uploads;
mod world;
