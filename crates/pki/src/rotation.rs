//! Changing the root while everything runs: the new one is spread beside the old, then it signs, then
//! the old one is trusted no more. When each step may be taken is whoever knows the parties' to say.

use crate::authority::{Authority, ISSUER, NEXT, ROOT, Signer, TRUSTED, make_issuer, make_root};
use crate::chain::validity;
use crate::{PkiError, Roots, Validity, files};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::time::SystemTime;

/// A root that everybody is to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedRoot {
    /// Fingerprint of its key: its name.
    pub fingerprint: String,
    pub validity: Validity,
    /// It signs everybody's certificates (by way of its issuing intermediate).
    pub signs: bool,
    /// It is to sign next.
    pub next: bool,
}

fn describe(
    certificate: &CertificateDer<'_>,
    signs: bool,
    next: bool,
) -> Result<TrustedRoot, PkiError> {
    Ok(TrustedRoot {
        fingerprint: crate::key_fingerprint(certificate)?,
        validity: validity(certificate)?,
        signs,
        next,
    })
}

impl Authority {
    /// Brings the set of roots up to date.
    pub(crate) fn gather(&mut self) {
        let mut roots = Roots::new();
        roots.add(self.root.certificate.clone());
        if let Some(next) = &self.next {
            roots.add(next.certificate.clone());
        }
        roots.merge(&self.others);
        self.roots = roots;
    }

    /// All roots: the one that signs, the one that is to sign next, those of before.
    pub fn trusted(&self) -> Result<Vec<TrustedRoot>, PkiError> {
        let mut found = vec![describe(&self.root.certificate, true, false)?];
        if let Some(next) = &self.next {
            found.push(describe(&next.certificate, false, true)?);
        }
        for root in self.others.certificates() {
            found.push(describe(root, false, false)?);
        }
        Ok(found)
    }

    /// The fingerprint of the root that signs.
    pub fn signing_root(&self) -> String {
        self.root.fingerprint()
    }

    /// The fingerprint of the root that is to sign next.
    pub fn next_root(&self) -> Option<String> {
        self.next.as_ref().map(Signer::fingerprint)
    }

    /// Stands for the set of roots and for which of them signs: who holds another one should renew.
    pub fn trust_digest(&self) -> String {
        let mut hash = Sha256::new();
        for root in self.roots.certificates() {
            hash.update(Sha256::digest(root));
        }
        hash.update(self.root.fingerprint());
        hex::encode(hash.finalize())
    }

    /// Makes a root that is to sign next; from now on it is one of those to trust. Gives its
    /// fingerprint.
    ///
    /// # Errors
    /// While another one is being spread.
    pub fn prepare_root(&mut self, now: SystemTime) -> Result<String, PkiError> {
        if let Some(fingerprint) = self.next_root() {
            return Err(PkiError::RootPrepared { fingerprint });
        }
        let next = make_root(&self.installation, &self.settings, now)?;
        next.save(&self.folder.join(NEXT))?;
        let fingerprint = next.fingerprint();
        self.next = Some(next);
        self.gather();
        tracing::info!(root = fingerprint, "a new root was made, to be trusted");
        Ok(fingerprint)
    }

    /// Lets the prepared root sign from now on; the one that signed stays trusted, and its key is
    /// forgotten. Whoever does not trust the new one yet is cut off, so ask first.
    ///
    /// # Errors
    /// When none is prepared. What is on disk is then whole, whichever step was reached.
    pub fn switch_root(&mut self, now: SystemTime) -> Result<(), PkiError> {
        let Some(next) = &self.next else {
            return Err(PkiError::NoRootPrepared);
        };
        // Each step leaves a folder that opens: the old root is trusted before it stops to sign, and
        // an issuer that is of another root is made anew.
        let mut others = self.others.clone();
        others.add(self.root.certificate.clone());
        others.save(&self.folder.join(TRUSTED))?;
        let issuer = make_issuer(next, &self.installation, &self.settings, now)?;
        next.save(&self.folder.join(ROOT))?;
        issuer.save(&self.folder.join(ISSUER))?;
        files::remove(&self.folder.join(NEXT))?;
        if let Some(next) = self.next.take() {
            self.root = next;
        }
        self.issuer = issuer;
        self.others = others;
        self.gather();
        tracing::info!(root = self.signing_root(), "a new root signs from now on");
        Ok(())
    }

    /// Takes a root out of those to trust: one of before, or one that is not to sign after all.
    ///
    /// # Errors
    /// For the one that signs, and one that is not there.
    pub fn retire_root(&mut self, fingerprint: &str) -> Result<(), PkiError> {
        if self.signing_root() == fingerprint {
            return Err(PkiError::RootSigns {
                fingerprint: fingerprint.to_owned(),
            });
        }
        if self.next_root().as_deref() == Some(fingerprint) {
            files::remove(&self.folder.join(NEXT))?;
            self.next = None;
        } else {
            let others = self.others.without(fingerprint);
            if others.len() == self.others.len() {
                return Err(PkiError::UnknownRoot {
                    fingerprint: fingerprint.to_owned(),
                });
            }
            let path = self.folder.join(TRUSTED);
            if others.is_empty() {
                files::remove(&path)?;
            } else {
                others.save(&path)?;
            }
            self.others = others;
        }
        self.gather();
        tracing::info!(root = fingerprint, "a root is trusted no more");
        Ok(())
    }
}
