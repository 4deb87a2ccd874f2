//! A certificate with the intermediates that lead to its root, and when it is valid.

use crate::{Identity, PkiError, files, peer_identity};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A certificate, leaf first, then the intermediates; never the root. Holds at least the leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateChain(Vec<CertificateDer<'static>>);

/// When a certificate is valid (wall clock).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    pub fn is_over(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// When its holder should ask for the next one: two thirds of the way.
    pub fn renew_at(&self) -> SystemTime {
        let whole = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        self.not_before + whole / 3 * 2
    }

    pub fn should_renew(&self, now: SystemTime) -> bool {
        now >= self.renew_at()
    }

    /// Whether less than a third of a life of this length is left. For who knows for how long a
    /// certificate was given: its beginning is dated back, which counts for much in a short life.
    pub fn should_renew_of(&self, lifetime: Duration, now: SystemTime) -> bool {
        self.not_after
            .duration_since(now)
            .map_or(true, |left| left <= lifetime / 3)
    }
}

impl CertificateChain {
    pub(crate) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, PkiError> {
        if certificates.is_empty() {
            Err(PkiError::EmptyChain)
        } else {
            Ok(Self(certificates))
        }
    }

    /// A chain as a handshake leaves it, leaf first.
    pub fn from_der(certificates: &[CertificateDer<'_>]) -> Result<Self, PkiError> {
        Self::new(
            certificates
                .iter()
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
        )
    }

    /// Reads the certificates of a PEM text, leaf first; each must be readable.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        Self::new(certificates_from_pem(pem)?)
    }

    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.0)
    }

    pub fn load(path: &Path) -> Result<Self, PkiError> {
        Self::from_pem(&files::read(path)?)
    }

    /// Writes the chain whole, mode 0600.
    pub fn save(&self, path: &Path) -> Result<(), PkiError> {
        files::write(path, &self.to_pem())
    }

    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    pub fn leaf(&self) -> &CertificateDer<'static> {
        // Every constructor refuses an empty chain.
        &self.0[0]
    }

    /// The identity the leaf states; who signed it is not checked here.
    pub fn identity(&self) -> Result<Identity, PkiError> {
        Ok(peer_identity(&self.0)?)
    }

    /// The leaf's validity.
    pub fn validity(&self) -> Result<Validity, PkiError> {
        validity(self.leaf())
    }

    /// Fingerprint of the leaf's public key.
    pub fn key_fingerprint(&self) -> Result<String, PkiError> {
        crate::key_fingerprint(self.leaf())
    }
}

pub(crate) fn validity(certificate_der: &[u8]) -> Result<Validity, PkiError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der)
        .map_err(|_| PkiError::CertificateMalformed)?;
    let at = |seconds: i64| {
        u64::try_from(seconds)
            .ok()
            .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .ok_or(PkiError::Time)
    };
    let validity = certificate.validity();
    Ok(Validity {
        not_before: at(validity.not_before.timestamp())?,
        not_after: at(validity.not_after.timestamp())?,
    })
}

/// All certificates of a PEM text, in order; other sections are passed over.
pub(crate) fn certificates_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| PkiError::Pem {
            what: "certificate",
        })?;
    for certificate in &certificates {
        x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| PkiError::CertificateMalformed)?;
    }
    Ok(certificates)
}

pub(crate) fn certificates_to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(certificate);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = tail;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_at_two_thirds() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let validity = Validity {
            not_before: at(100),
            not_after: at(400),
        };
        assert!(!validity.should_renew(at(299)) && validity.should_renew(at(300)));
        assert!(!validity.is_over(at(400)) && validity.is_over(at(401)));
        let short = Duration::from_secs(30);
        assert!(
            !validity.should_renew_of(short, at(389)) && validity.should_renew_of(short, at(390))
        );
        assert!(validity.should_renew_of(short, at(500)));
    }

    #[test]
    fn a_chain_is_never_empty() {
        assert!(matches!(
            CertificateChain::from_pem(""),
            Err(PkiError::EmptyChain)
        ));
        assert!(
            CertificateChain::from_pem(
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
            )
            .is_err()
        );
    }
}
