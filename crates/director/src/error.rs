//! What can go wrong in the Director, without any word of HTTP; `api::answer` turns it into an
//! answer. Every error carries a stable code, what and why, and the next step where there is one.

use std::fmt;

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explain {
    /// Stable word.
    pub code: &'static str,
    /// What is wrong and why.
    pub message: String,
    /// The next step, often a command to type.
    pub hint: Option<String>,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u32>,
}

impl fmt::Display for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
pub enum DirectorError {
    /// Not there, or not for this principal to know of.
    #[error("{0}")]
    NotFound(Explain),
    /// The thing's present state does not allow it.
    #[error("{0}")]
    Conflict(Explain),
    /// More than the principal's quota or the clouds' capacity.
    #[error("{0}")]
    Quota(Explain),
    #[error("{0}")]
    Invalid(Explain),
    #[error("{0}")]
    Forbidden(Explain),
    #[error("{0}")]
    Unauthenticated(Explain),
    /// The thing changed since the caller looked.
    #[error("{0}")]
    PreconditionFailed(Explain),
    #[error("{0}")]
    TooLarge(Explain),
    /// Cannot be done at the moment; trying again later may work.
    #[error("{0}")]
    Unavailable(Explain),
    /// Ours to mend. The source goes to the log, never to the caller.
    #[error("{what}")]
    Internal {
        what: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn explain(code: &'static str, message: impl Into<String>) -> Explain {
    Explain {
        code,
        message: message.into(),
        hint: None,
        retry_after: None,
    }
}

impl DirectorError {
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::NotFound(explain("not_found", message))
    }
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::Conflict(explain(code, message))
    }
    pub fn quota(code: &'static str, message: impl Into<String>) -> Self {
        Self::Quota(explain(code, message))
    }
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid(explain(code, message))
    }
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::Forbidden(explain("forbidden", message))
    }
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::Unauthenticated(explain("unauthenticated", message)).hint("log in: conpaas login")
    }
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::TooLarge(explain("too_large", message))
    }
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::Unavailable(explain(code, message))
    }
    pub fn internal(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Internal {
            what,
            source: source.into(),
        }
    }

    /// The same error with a next step for people.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(explain) = self.explain_mut() {
            explain.hint = Some(hint.into());
        }
        self
    }

    /// The same error with the seconds after which trying again makes sense.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        if let Some(explain) = self.explain_mut() {
            explain.retry_after = Some(seconds);
        }
        self
    }

    fn explain_mut(&mut self) -> Option<&mut Explain> {
        match self {
            Self::NotFound(explain)
            | Self::Conflict(explain)
            | Self::Quota(explain)
            | Self::Invalid(explain)
            | Self::Forbidden(explain)
            | Self::Unauthenticated(explain)
            | Self::PreconditionFailed(explain)
            | Self::TooLarge(explain)
            | Self::Unavailable(explain) => Some(explain),
            Self::Internal { .. } => None,
        }
    }
}

impl From<rusqlite::Error> for DirectorError {
    fn from(error: rusqlite::Error) -> Self {
        Self::internal("the store did not answer", error)
    }
}

impl From<serde_json::Error> for DirectorError {
    fn from(error: serde_json::Error) -> Self {
        Self::internal("a record could not be read or written", error)
    }
}

/// What stops a Director from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "another Director already uses the state folder {folder}; stop it first, or choose another folder"
    )]
    StateInUse { folder: String },
    #[error(
        "the address {address} is taken by another program; stop that, or choose another address"
    )]
    AddressTaken { address: std::net::SocketAddr },
    #[error("cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        source: std::io::Error,
    },
    #[error("the state folder {folder} cannot be used")]
    StateFolder {
        folder: String,
        source: std::io::Error,
    },
    #[error(
        "the store has schema {found}, newer than this program knows ({known}); use the newer conpaas that wrote it"
    )]
    NewerSchema { found: i64, known: i64 },
    #[error("the store cannot be opened")]
    Store {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the key that secrets are sealed with cannot be used")]
    Vault(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the certificates cannot be set up")]
    Pki(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the machine side cannot start")]
    Machines(#[source] Box<dyn std::error::Error + Send + Sync>),
}
