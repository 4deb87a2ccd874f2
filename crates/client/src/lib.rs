//! The client of the Director's API. `generated` holds one method per operation and is made from
//! the OpenAPI document (`cargo run -p conpaas-client --example generate`); the transport,
//! errors and server-sent events are written by hand. What commands do with the answers, and
//! where addresses and tokens are kept, is the caller's business.

mod error;
mod events;
#[rustfmt::skip]
#[allow(clippy::all)]
mod generated;
mod transport;

pub use error::ClientError;
pub use events::{Events, ServerEvent, ServerEventParser};
pub use generated::*;
pub use transport::{Client, Download, Endpoint, Upload};

/// The fingerprint of a server that was met for the first time.
pub use conpaas_pki::SeenFingerprint;
