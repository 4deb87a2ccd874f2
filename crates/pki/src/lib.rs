//! Who is who: the certificate authority, the identities it writes into certificates, the decision
//! whether a node may enrol, and the TLS configurations that check all of this.
//!
//! No network lives here, and no clock is read: whoever calls passes `now`. (rustls reads the wall
//! clock itself while it shakes hands.) Files are read and written only by functions that take a path.

mod api_certificate;
mod authority;
mod chain;
mod credentials;
mod enrolment;
mod error;
mod files;
mod identity;
mod keys;
mod roots;
mod rotation;
mod tls;

pub use api_certificate::ApiCertificate;
pub use authority::{Authority, AuthoritySettings};
pub use chain::{CertificateChain, Validity};
pub use credentials::Credentials;
pub use enrolment::{Decision, EnrolmentRequest, NodeRecord, Refusal, decide, hash_token};
pub use error::PkiError;
pub use identity::{Identity, IdentityError, NODE_DNS_NAME, PartyKind, peer_identity};
pub use keys::{KeyPair, csr_key_fingerprint, key_fingerprint};
pub use roots::Roots;
pub use rotation::TrustedRoot;
pub use tls::{
    ClientCertificates, SeenFingerprint, client_config, first_contact_client_config,
    pinned_client_config, server_config,
};
