//! What can go wrong between a client and the Director.

use conpaas_model::api::ErrorBody;
use std::error::Error as StdError;

/// Why a call gave no answer, or which error the Director answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be one of a Director.
    #[error("'{url}' is no address of a Director: {why}")]
    Address { url: String, why: String },
    /// Nobody listens there.
    #[error("no Director is running at {url}")]
    NotRunning { url: String },
    /// The server's key is not the pinned one.
    #[error("the Director at {url} has another fingerprint than the one that was pinned")]
    OtherFingerprint { url: String },
    /// The network or the handshake failed.
    #[error("the Director at {url} cannot be reached")]
    Unreachable {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// The connection ended in the middle of an answer.
    #[error("the connection to the Director broke off")]
    BrokeOff {
        #[source]
        source: reqwest::Error,
    },
    /// The Director answered an error.
    #[error("{}", body.message)]
    Answered { status: u16, body: ErrorBody },
    /// The Director answered something that is not in its API; versions may differ.
    #[error("the Director's answer makes no sense to this version of conpaas")]
    Malformed {
        #[source]
        source: serde_json::Error,
    },
    /// The TLS configuration could not be made.
    #[error("no secure connection can be made")]
    Tls {
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The HTTP client could not be made.
    #[error("no connection can be made")]
    Setup {
        #[source]
        source: reqwest::Error,
    },
}

impl ClientError {
    /// Sorts an error of the HTTP client by what a person can do about it.
    pub(crate) fn from_transport(url: &str, source: reqwest::Error) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                if io.kind() == std::io::ErrorKind::ConnectionRefused {
                    return Self::NotRunning {
                        url: url.to_owned(),
                    };
                }
                // An I/O error hides what it wraps from `source`.
                if io
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref())
                    .is_some_and(is_other_key)
                {
                    return Self::OtherFingerprint {
                        url: url.to_owned(),
                    };
                }
            }
            if error.downcast_ref().is_some_and(is_other_key) {
                return Self::OtherFingerprint {
                    url: url.to_owned(),
                };
            }
            cause = error.source();
        }
        if source.is_connect() || source.is_timeout() || source.is_builder() {
            Self::Unreachable {
                url: url.to_owned(),
                source: source.without_url(),
            }
        } else {
            Self::BrokeOff {
                source: source.without_url(),
            }
        }
    }

    /// Whether the same call may well succeed a little later: the Director restarts, say.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotRunning { .. } | Self::Unreachable { .. } | Self::BrokeOff { .. } => true,
            Self::Answered { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }

    /// HTTP status, if the Director answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answered { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The stable word of an error that the Director answered.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Answered { body, .. } => Some(&body.code),
            _ => None,
        }
    }
}

fn is_other_key(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)
    )
}
