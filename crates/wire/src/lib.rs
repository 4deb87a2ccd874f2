//! How parties talk: HTTP/1.1 over mutual TLS, and on the same port long-lived streams of framed JSON.
//! Every wire states its version.
//!
//! Who a party is comes from the `pki` crate. What is said lives with those who say it: this crate
//! knows no path and no message.

mod backoff;
mod body;
mod client;
mod error;
mod server;
mod socket;
mod stream;
mod version;

pub use backoff::Backoff;
pub use body::{
    Body, BoxError, Problem, boxed, empty, error_response, file_response, full, json_response,
    read_bytes, read_json, reader_body,
};
pub use client::{Client, ClientSettings, ClientTls, Dial, dial_address, fixed_client_tls};
pub use error::{ErrorBody, WireError};
pub use server::{Peer, ServerSettings, ServerTls, fixed_server_tls, serve};
pub use socket::TcpSettings;
pub use stream::{
    Accepting, FramedStream, StreamHandle, StreamReceiver, StreamSender, StreamSettings,
    accept_stream,
};
pub use version::{VERSION_HEADER, Versions, WIRE};
