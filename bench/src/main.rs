//! What measures time. `plan` is pure and runs here; what needs machines is in the scripts of
//! `bench/`, which call the real program beside a peer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod plan;

fn main() {
    plan::run();
}
