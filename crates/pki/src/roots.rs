//! The set of roots a party trusts. It is a set so that a root can be replaced: the new one is spread
//! beside the old before anything is signed under it.

use crate::chain::{certificates_from_pem, certificates_to_pem};
use crate::{CertificateChain, Identity, PkiError, files, peer_identity, tls};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A set of trusted root certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a bundle in PEM; at least one root must be in it.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let mut roots = Self::new();
        for certificate in certificates_from_pem(pem)? {
            roots.add(certificate);
        }
        if roots.is_empty() {
            Err(PkiError::NoRoots)
        } else {
            Ok(roots)
        }
    }

    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.0)
    }

    pub fn load(path: &Path) -> Result<Self, PkiError> {
        Self::from_pem(&files::read(path)?)
    }

    /// Writes the bundle whole.
    pub fn save(&self, path: &Path) -> Result<(), PkiError> {
        files::write(path, &self.to_pem())
    }

    /// Adds a root; false when it was there already.
    pub fn add(&mut self, root: CertificateDer<'static>) -> bool {
        let new = !self.0.contains(&root);
        if new {
            self.0.push(root);
        }
        new
    }

    /// Adds all of another set.
    pub fn merge(&mut self, other: &Roots) {
        for root in &other.0 {
            self.add(root.clone());
        }
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// The same set without the root of this fingerprint.
    pub fn without(&self, fingerprint: &str) -> Self {
        let stays = |root: &&CertificateDer<'_>| {
            crate::key_fingerprint(root).is_ok_and(|found| found != fingerprint)
        };
        Self(self.0.iter().filter(stays).cloned().collect())
    }

    /// The roots' names: the fingerprints of their keys, in order.
    pub fn fingerprints(&self) -> Result<Vec<String>, PkiError> {
        let prints = self.0.iter().map(|root| crate::key_fingerprint(root));
        prints.collect()
    }

    /// The root that a chain leads to, by its fingerprint. Whether the chain is valid now is not
    /// looked at: a handshake did that.
    pub fn root_of(&self, chain: &CertificateChain) -> Result<Option<String>, PkiError> {
        let Some(last) = chain.certificates().last() else {
            return Ok(None);
        };
        let (_, last) = x509_parser::parse_x509_certificate(last)
            .map_err(|_| PkiError::CertificateMalformed)?;
        for root in &self.0 {
            let (_, parsed) = x509_parser::parse_x509_certificate(root)
                .map_err(|_| PkiError::CertificateMalformed)?;
            let signed = last.issuer().as_raw() == parsed.subject().as_raw()
                && last.verify_signature(Some(parsed.public_key())).is_ok();
            if signed {
                return crate::key_fingerprint(root).map(Some);
            }
        }
        Ok(None)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that a chain (leaf first) leads to one of these roots and is valid at `now`, and reads
    /// whom it names. Handshakes do the same by themselves; this is for chains that came otherwise.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<Identity, PkiError> {
        let (leaf, intermediates) = chain.split_first().ok_or(PkiError::EmptyChain)?;
        let since = now.duration_since(UNIX_EPOCH).map_err(|_| PkiError::Time)?;
        WebPkiClientVerifier::builder_with_provider(self.store()?, tls::provider())
            .build()
            .map_err(|_| PkiError::NoRoots)?
            .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(since))
            .map_err(|source| PkiError::NotTrusted { source })?;
        Ok(peer_identity(chain)?)
    }

    pub(crate) fn store(&self) -> Result<Arc<RootCertStore>, PkiError> {
        if self.is_empty() {
            return Err(PkiError::NoRoots);
        }
        let mut store = RootCertStore::empty();
        for root in &self.0 {
            store
                .add(root.clone())
                .map_err(|source| PkiError::NotTrusted { source })?;
        }
        Ok(Arc::new(store))
    }
}
