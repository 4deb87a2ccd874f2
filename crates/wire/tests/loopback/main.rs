//! Two parties on loopback: who gets in, requests, bulk, streams, and what happens when one goes away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod requests;
mod streams;
mod world;
