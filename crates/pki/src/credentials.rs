//! A party's certificate and key, replaceable while connections are open: handshakes that begin after
//! a renewal use the new chain, established connections go on as they are.

use crate::{CertificateChain, Identity, KeyPair, PkiError, Validity, tls};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

struct Held {
    chain: CertificateChain,
    certified: Arc<CertifiedKey>,
}

/// Holds a chain and its key for TLS configurations of both sides.
pub struct Credentials(RwLock<Arc<Held>>);

impl Credentials {
    /// Fails when the key is not the chain's.
    pub fn new(chain: CertificateChain, key: &KeyPair) -> Result<Arc<Self>, PkiError> {
        Ok(Arc::new(Self(RwLock::new(hold(chain, key)?))))
    }

    /// Puts a renewed chain in place; on an error the old one stays.
    pub fn replace(&self, chain: CertificateChain, key: &KeyPair) -> Result<(), PkiError> {
        let held = hold(chain, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = held;
        Ok(())
    }

    pub fn chain(&self) -> CertificateChain {
        self.held().chain.clone()
    }

    pub fn identity(&self) -> Result<Identity, PkiError> {
        self.held().chain.identity()
    }

    pub fn validity(&self) -> Result<Validity, PkiError> {
        self.held().chain.validity()
    }

    fn held(&self) -> Arc<Held> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn hold(chain: CertificateChain, key: &KeyPair) -> Result<Arc<Held>, PkiError> {
    let certified = CertifiedKey::from_der(
        chain.certificates().to_vec(),
        key.private_der(),
        &tls::provider(),
    )
    .map_err(|source| PkiError::Tls { source })?;
    Ok(Arc::new(Held {
        chain,
        certified: Arc::new(certified),
    }))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials")
            .field(&self.identity().ok())
            .finish()
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.held().certified.clone())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.held().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
