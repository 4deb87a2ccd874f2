//! Serving the API over TLS.

use crate::error::StartError;
use crate::shared::Shared;
use conpaas_pki::ApiCertificate;
use conpaas_wire::{ServerSettings, boxed};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;

/// Lifetime of the API's self-signed certificate; its key, which people pin, stays.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// The API's certificate, made anew when it is due.
pub struct ApiTls {
    folder: PathBuf,
    names: Vec<String>,
    current: RwLock<Arc<rustls::ServerConfig>>,
    fingerprint: String,
}

impl ApiTls {
    pub fn load(folder: PathBuf, names: Vec<String>) -> Result<Arc<Self>, StartError> {
        let (config, fingerprint) = read(&folder, &names)?;
        Ok(Arc::new(Self {
            folder,
            names,
            current: RwLock::new(config),
            fingerprint,
        }))
    }

    /// What people pin.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Makes the certificate anew if it is due.
    pub fn renew(&self) -> Result<(), StartError> {
        let (config, _) = read(&self.folder, &self.names)?;
        *self
            .current
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = config;
        Ok(())
    }
}

fn read(
    folder: &std::path::Path,
    names: &[String],
) -> Result<(Arc<rustls::ServerConfig>, String), StartError> {
    let pki = |error: conpaas_pki::PkiError| StartError::Pki(error.into());
    let now = SystemTime::now();
    let found = ApiCertificate::load_or_create(folder, names, CERTIFICATE_LIFETIME, now);
    let found = found.map_err(pki)?;
    Ok((
        found.server_config().map_err(pki)?,
        found.fingerprint().to_owned(),
    ))
}

/// Binds the API's address.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => StartError::AddressTaken { address },
            _ => StartError::Listen { address, source },
        })
}

/// Serves until shutdown; requests in flight are finished.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, tls: Arc<ApiTls>) {
    let router = TowerToHyperService::new(super::router(shared.clone()));
    let config = Arc::new(move || {
        tls.current
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    });
    let settings = ServerSettings::default();
    conpaas_wire::serve(
        listener,
        config,
        settings,
        shared.shutdown.clone(),
        move |request, peer| {
            let router = router.clone();
            async move {
                let mut request = request.map(axum::body::Body::new);
                request.extensions_mut().insert(peer.address);
                match router.call(request).await {
                    Ok(response) => response.map(boxed),
                    Err(never) => match never {},
                }
            }
        },
    )
    .await;
}
