//! HTTP clients of the tests.

use std::time::Duration;

/// A client that keeps `idle` connections at most; every request has a bound.
pub fn client(idle: usize) -> reqwest::Client {
    // Plain HTTP needs no TLS, but the client is built with it; a second install is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .pool_max_idle_per_host(idle)
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap()
}
