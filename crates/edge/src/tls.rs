//! The certificate that clients see: read from files, and read anew when those change, so that a
//! renewed certificate needs no restart. Where the files come from is not decided here.

use crate::config::{EdgeError, Https};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// What tells one state of the files from another.
type Stamp = [(u64, i64, i64, u64); 2];

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The certificate in force, and how to take connections with it.
pub struct Certificates {
    files: Https,
    acceptor: TlsAcceptor,
    in_force: Arc<InForce>,
}

struct InForce(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InForce")
    }
}

impl ResolvesServerCert for InForce {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(held.clone())
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// [`EdgeError::Certificate`] when they cannot be read or do not belong together.
    pub fn load(files: Https) -> Result<Self, EdgeError> {
        let refused = |source: AnyError| EdgeError::Certificate {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        };
        let key = read(&files).map_err(refused)?;
        let in_force = Arc::new(InForce(RwLock::new(Arc::new(key))));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(error.into()))?
            .with_no_client_auth()
            .with_cert_resolver(in_force.clone());
        // What the proxy behind speaks.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            files,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            in_force,
        })
    }

    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Follows the files for ever; what cannot be used leaves the certificate as it is.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = stamp(&self.files);
        loop {
            tokio::time::sleep(LOOK).await;
            let now = stamp(&self.files);
            if now == seen {
                continue;
            }
            match read(&self.files) {
                Ok(key) => {
                    let held = &self.in_force.0;
                    *held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                    tracing::info!("another certificate is in force");
                    seen = now;
                }
                // Tried again: the two files may be half replaced.
                Err(error) => tracing::warn!(error, "the new certificate cannot be used"),
            }
        }
    }
}

fn stamp(files: &Https) -> Option<Stamp> {
    let of = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
    };
    Some([of(&files.certificate)?, of(&files.key)?])
}

fn read(files: &Https) -> Result<CertifiedKey, AnyError> {
    let chain =
        CertificateDer::pem_file_iter(&files.certificate)?.collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() {
        return Err("it holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(CertifiedKey::from_der(chain, key, &provider)?)
}
