//! What can go wrong with keys, certificates and the authority's files.

use crate::IdentityError;
use std::path::PathBuf;
use std::time::SystemTime;

/// A failure of this crate. Texts say what was being done; the cause is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} holds no usable {what}", path.display())]
    BadFile { what: &'static str, path: PathBuf },
    #[error("this is no {what} in PEM")]
    Pem { what: &'static str },
    #[error("this is no private key of ECDSA P-256")]
    Key { source: rcgen::Error },
    #[error("the certificate signing request cannot be read")]
    CsrMalformed,
    #[error("the certificate signing request is not signed by the key it names")]
    CsrSignature,
    #[error("the certificate signing request has a key of another kind than ECDSA P-256")]
    CsrKeyKind,
    #[error("the certificate cannot be read")]
    CertificateMalformed,
    #[error("a certificate chain needs at least one certificate")]
    EmptyChain,
    #[error("the certificate cannot be made")]
    Issue { source: rcgen::Error },
    #[error("'{name}' can be no name of a server")]
    ServerName { name: String },
    #[error("the authority is of installation {ours}, not {theirs}")]
    OtherInstallation { ours: String, theirs: String },
    #[error("the issuing certificate is over since {since:?}; refresh the authority")]
    IssuerExpired { since: SystemTime },
    #[error("no root '{fingerprint}' is trusted here")]
    UnknownRoot { fingerprint: String },
    #[error("the root {fingerprint} signs everybody's certificates now")]
    RootSigns { fingerprint: String },
    #[error("another root, {fingerprint}, is being spread already")]
    RootPrepared { fingerprint: String },
    #[error("no root is prepared to sign next")]
    NoRootPrepared,
    #[error("this instant cannot stand in a certificate")]
    Time,
    #[error("the system gives no random bytes")]
    Random,
    #[error("no trusted root is known")]
    NoRoots,
    #[error("a fingerprint is 64 hexadecimal digits; '{text}' is not")]
    Fingerprint { text: String },
    #[error("the certificate is not trusted")]
    NotTrusted { source: rustls::Error },
    #[error("the TLS configuration cannot be made")]
    Tls { source: rustls::Error },
    #[error("the certificate carries no identity")]
    Identity(#[from] IdentityError),
}
