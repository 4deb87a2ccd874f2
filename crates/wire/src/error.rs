//! What can go wrong between two parties, and how a refusal looks on the wire.

use conpaas_pki::{Identity, IdentityError};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;

/// The JSON body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable, for programs.
    pub code: String,
    /// What and why, for people.
    pub message: String,
    /// What to do next, when there is something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A failure of a call or a stream.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the peer cannot be reached")]
    Dial(#[source] io::Error),
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    #[error("the peer's certificate names nobody")]
    PeerCertificate(#[source] IdentityError),
    #[error("the peer is {found}, which is not whom was called")]
    WrongPeer { found: Box<Identity> },
    #[error("{what} took longer than {after:?}")]
    Timeout { what: &'static str, after: Duration },
    #[error("the request failed on the way")]
    Http(#[source] hyper::Error),
    #[error("the request cannot be built")]
    Request(#[source] http::Error),
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// The local end of a download failed, not the wire.
    #[error("what was received cannot be written")]
    Write(#[source] io::Error),
    #[error("the peer answered {status}: {}", body.message)]
    Remote { status: StatusCode, body: ErrorBody },
    #[error("the peer answered {status} where it should have opened a stream")]
    NotUpgraded { status: StatusCode },
    #[error("a message of {bytes} bytes is over the limit of {limit}")]
    Oversize { bytes: u64, limit: u64 },
    #[error("the peer sent something that is no valid message")]
    Malformed(#[source] serde_json::Error),
    #[error("the message cannot be encoded")]
    Encode(#[source] serde_json::Error),
    #[error("the peer was silent for {after:?}")]
    Silent { after: Duration },
    #[error("the peer takes nothing in for {after:?}")]
    Stalled { after: Duration },
    #[error("the stream is closed")]
    Closed,
    #[error("the content changed while it was fetched")]
    Changed,
}

impl WireError {
    /// True when the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Dial(_)
            | Self::Handshake(_)
            | Self::Timeout { .. }
            | Self::Http(_)
            | Self::Io(_)
            | Self::Silent { .. }
            | Self::Stalled { .. }
            | Self::Closed => true,
            Self::Remote { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::PeerCertificate(_)
            | Self::WrongPeer { .. }
            | Self::Request(_)
            | Self::Write(_)
            | Self::NotUpgraded { .. }
            | Self::Oversize { .. }
            | Self::Malformed(_)
            | Self::Encode(_)
            | Self::Changed => false,
        }
    }

    /// The stable code of the peer's refusal, when it was one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Remote { body, .. } => Some(&body.code),
            _ => None,
        }
    }
}
