//! End-to-end tests: real Director, real machines, real daemons, real load. They need root (or
//! user namespaces), the machine image and the built program; `make test` brings all of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup;
mod bad_input;
mod changes_of_mind;
mod clouds;
mod crowd;
mod deaths;
mod demo;
mod dokuwiki;
mod domains;
mod egress;
mod elsewhere;
mod image;
mod kill;
mod known_secrets;
mod load;
mod metrics;
mod nutshell;
mod preview;
mod scenarios;
mod secrets;
mod sessions;
mod thread;
mod trust;
mod uploads;
