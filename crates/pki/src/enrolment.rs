//! Whether a node that asks for a certificate gets one: a pure decision over the Director's record of
//! the node, the request and the time.
//!
//! The first key that comes with the node's token is the node's key from then on. The same key gets
//! the same answer again, with or without a token and however old its certificate is: the signing
//! request proves that the asker holds it. Another key is refused and reported.

use crate::keys::sha256_hex;
use std::fmt;
use std::time::SystemTime;

/// What the Director's record says about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// [`hash_token`] of the token that was given to the machine at birth.
    pub token_hash: String,
    /// From then on the token admits no new key.
    pub token_expires_at: SystemTime,
    /// Fingerprint of the key that enrolled; `None` before.
    pub key_fingerprint: Option<String>,
    /// The node was removed: it gets nothing any more.
    pub removed: bool,
}

/// What a node asks with. The fingerprint comes from [`crate::csr_key_fingerprint`], which checks that
/// the asker holds the key.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentRequest {
    /// The token in clear: a secret.
    pub token: Option<String>,
    pub key_fingerprint: String,
}

impl fmt::Debug for EnrolmentRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolmentRequest")
            .field("token", &self.token.as_ref().map(|_| "(secret)"))
            .field("key_fingerprint", &self.key_fingerprint)
            .finish()
    }
}

/// The answer to an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Record the key's fingerprint, then sign.
    Issue,
    /// The key is recorded already: sign.
    IssueAgain,
    Refuse(Refusal),
}

/// Why a node was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the token is not the one this node was given")]
    UnknownToken,
    #[error("the node's token has expired")]
    TokenExpired,
    #[error("the node has enrolled with another key")]
    OtherKey,
    #[error("the node was removed")]
    Removed,
    #[error("a node that has not enrolled needs its token")]
    NoToken,
}

impl Refusal {
    /// A stable code for answers and records.
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownToken => "unknown_token",
            Self::TokenExpired => "token_expired",
            Self::OtherKey => "other_key",
            Self::Removed => "node_removed",
            Self::NoToken => "token_missing",
        }
    }

    /// True when somebody should hear of it: a second key for a node means that its token leaked or
    /// that its disk was lost.
    pub fn is_reported(self) -> bool {
        matches!(self, Self::OtherKey)
    }
}

/// What a record keeps of a token: its SHA-256 in hexadecimal.
pub fn hash_token(token: &str) -> String {
    sha256_hex(token.as_bytes())
}

/// Decides on an enrolment. Changes nothing: on [`Decision::Issue`] the caller records the key before
/// it signs.
pub fn decide(record: &NodeRecord, request: &EnrolmentRequest, now: SystemTime) -> Decision {
    if record.removed {
        return Decision::Refuse(Refusal::Removed);
    }
    let token_is_right = request
        .token
        .as_ref()
        .map(|token| same(&hash_token(token), &record.token_hash));
    match (&record.key_fingerprint, token_is_right) {
        (Some(known), _) if *known == request.key_fingerprint => Decision::IssueAgain,
        (_, Some(false)) => Decision::Refuse(Refusal::UnknownToken),
        (Some(_), _) => Decision::Refuse(Refusal::OtherKey),
        (None, None) => Decision::Refuse(Refusal::NoToken),
        (None, Some(true)) if now >= record.token_expires_at => {
            Decision::Refuse(Refusal::TokenExpired)
        }
        (None, Some(true)) => Decision::Issue,
    }
}

/// Compares two hashes in a time that does not depend on where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && std::hint::black_box(
            a.bytes()
                .zip(b.bytes())
                .fold(0, |sum, (a, b)| sum | (a ^ b)),
        ) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn table() {
        use Decision::{Issue, IssueAgain, Refuse};
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        // (known key, removed, token, key, now) -> decision; the token lives until 100.
        let table = [
            (None, false, Some("right"), "k1", 50, Issue),
            (
                None,
                false,
                Some("right"),
                "k1",
                100,
                Refuse(Refusal::TokenExpired),
            ),
            (
                None,
                false,
                Some("wrong"),
                "k1",
                50,
                Refuse(Refusal::UnknownToken),
            ),
            (
                None,
                false,
                Some(""),
                "k1",
                50,
                Refuse(Refusal::UnknownToken),
            ),
            (None, false, None, "k1", 50, Refuse(Refusal::NoToken)),
            (
                None,
                true,
                Some("right"),
                "k1",
                50,
                Refuse(Refusal::Removed),
            ),
            (Some("k1"), false, Some("right"), "k1", 50, IssueAgain),
            (Some("k1"), false, Some("right"), "k1", 5000, IssueAgain),
            (Some("k1"), false, Some("wrong"), "k1", 50, IssueAgain),
            (Some("k1"), false, None, "k1", 5000, IssueAgain),
            (
                Some("k1"),
                false,
                Some("right"),
                "k2",
                50,
                Refuse(Refusal::OtherKey),
            ),
            (
                Some("k1"),
                false,
                Some("right"),
                "k2",
                5000,
                Refuse(Refusal::OtherKey),
            ),
            (Some("k1"), false, None, "k2", 50, Refuse(Refusal::OtherKey)),
            (
                Some("k1"),
                false,
                Some("wrong"),
                "k2",
                50,
                Refuse(Refusal::UnknownToken),
            ),
            (
                Some("k1"),
                true,
                Some("right"),
                "k1",
                50,
                Refuse(Refusal::Removed),
            ),
        ];
        for (known, removed, token, key, now, wanted) in table {
            let record = NodeRecord {
                token_hash: hash_token("right"),
                token_expires_at: at(100),
                key_fingerprint: known.map(str::to_owned),
                removed,
            };
            let request = EnrolmentRequest {
                token: token.map(str::to_owned),
                key_fingerprint: key.to_owned(),
            };
            assert_eq!(
                decide(&record, &request, at(now)),
                wanted,
                "{record:?} {token:?} {key} {now}"
            );
        }
    }

    #[test]
    fn a_request_shows_no_token() {
        let request = EnrolmentRequest {
            token: Some("geheim".into()),
            key_fingerprint: "k".into(),
        };
        assert!(!format!("{request:?}").contains("geheim"));
        assert!(Refusal::OtherKey.is_reported() && !Refusal::NoToken.is_reported());
    }
}
