//! Private keys, made by the party that uses them, and the fingerprints of public ones.

use crate::{PkiError, files};
use rcgen::{
    CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// A private key of ECDSA P-256 with its public half. It never leaves the machine it was made on.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    /// Makes a new key from the system's random bytes.
    pub fn generate() -> Result<Self, PkiError> {
        rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|source| PkiError::Key { source })
    }

    /// Reads a PKCS #8 key in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|source| PkiError::Key { source })
    }

    /// The private key in PEM: a secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    pub fn load(path: &Path) -> Result<Self, PkiError> {
        Self::from_pem(&files::read(path)?)
    }

    /// Writes the key whole, mode 0600.
    pub fn save(&self, path: &Path) -> Result<(), PkiError> {
        files::write(path, &self.to_pem())
    }

    /// The key in this file; made and saved when there is none. An unreadable file is an error, not a
    /// reason for a new key: a node with another key would be refused.
    pub fn load_or_create(path: &Path) -> Result<Self, PkiError> {
        if let Some(pem) = files::read_if_there(path)? {
            return Self::from_pem(&pem);
        }
        let key = Self::generate()?;
        key.save(path)?;
        Ok(key)
    }

    /// A certificate signing request in DER. It says nothing but the public key; who it belongs to is
    /// the authority's to write.
    pub fn csr(&self) -> Result<Vec<u8>, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params
            .serialize_request(&self.0)
            .map_err(|source| PkiError::Issue { source })?;
        Ok(csr.der().to_vec())
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo), in hexadecimal.
    pub fn fingerprint(&self) -> String {
        sha256_hex(&self.0.subject_public_key_info())
    }

    pub(crate) fn inner(&self) -> &rcgen::KeyPair {
        &self.0
    }

    pub(crate) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.fingerprint())
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The public key of a signing request, after checking that its owner signed it. All else that the
/// request may say is left aside.
pub(crate) fn csr_public_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, PkiError> {
    let (rest, csr) =
        X509CertificationRequest::from_der(csr_der).map_err(|_| PkiError::CsrMalformed)?;
    if !rest.is_empty() {
        return Err(PkiError::CsrMalformed);
    }
    csr.verify_signature().map_err(|_| PkiError::CsrSignature)?;
    let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|_| PkiError::CsrKeyKind)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(PkiError::CsrKeyKind);
    }
    Ok(key)
}

/// The fingerprint of the key that a signing request (DER) is for; its signature is checked first, so
/// whoever sent it holds the private half.
pub fn csr_key_fingerprint(csr_der: &[u8]) -> Result<String, PkiError> {
    Ok(sha256_hex(
        &csr_public_key(csr_der)?.subject_public_key_info(),
    ))
}

/// The fingerprint of a certificate's (DER) public key: SHA-256 of its SubjectPublicKeyInfo in
/// hexadecimal, the same as [`KeyPair::fingerprint`] of its key. It survives renewal.
pub fn key_fingerprint(certificate_der: &[u8]) -> Result<String, PkiError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der)
        .map_err(|_| PkiError::CertificateMalformed)?;
    Ok(sha256_hex(certificate.public_key().raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_kept_and_its_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let first = KeyPair::load_or_create(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            KeyPair::load_or_create(&path).unwrap().fingerprint(),
            first.fingerprint()
        );
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no draft is left"
        );
        std::fs::write(&path, "broken").unwrap();
        assert!(KeyPair::load_or_create(&path).is_err());
    }

    #[test]
    fn a_request_proves_its_key() {
        let key = KeyPair::generate().unwrap();
        let csr = key.csr().unwrap();
        assert_eq!(csr_key_fingerprint(&csr).unwrap(), key.fingerprint());
        let mut forged = csr.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(csr_key_fingerprint(&forged).is_err());
        assert!(matches!(
            csr_key_fingerprint(b"nonsense"),
            Err(PkiError::CsrMalformed)
        ));
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&other)
            .unwrap();
        assert!(csr_key_fingerprint(csr.der()).is_err());
    }
}
