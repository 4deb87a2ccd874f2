//! The simulator: the real planner, managers' core, broker, enrolment, operations and agents' core
//! on simulated clouds, machines, network, disks and clocks. One thread, one seed, no real time.
//! What it covers, and what not, is in `docs/simulator.md`.

mod agent;
mod broker;
pub mod bugs;
mod calls;
pub mod cloud;
mod desk;
mod director;
mod edge;
mod faults;
mod host;
mod life;
mod manager;
mod net;
pub mod replay;
mod reports;
mod rest;
mod rng;
pub mod run;
pub mod schedule;
pub mod shrink;
pub mod stats;
mod store;
mod truth;
pub mod types;
mod world;

pub use world::{Broken, World};
