//! TLS configurations: TLS 1.3 only, the ring provider, and no session resumption, so that every
//! connection proves afresh who its ends are.

use crate::{Credentials, NODE_DNS_NAME, PkiError, Roots, key_fingerprint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, PeerMisbehaved,
    ServerConfig, SignatureScheme,
};
use std::sync::{Arc, OnceLock};

/// The cryptography all configurations use.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()))
        .clone()
}

/// Whether a server asks its clients for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nobody gets in without one of the trusted roots.
    Required,
    /// Those without one get in unnamed (enrolment comes so); one that is shown must be good.
    Optional,
    /// None is asked for.
    None,
}

fn tls(source: TlsError) -> PkiError {
    PkiError::Tls { source }
}

/// A server's configuration. Renewed credentials take effect by themselves; new roots need a new one.
pub fn server_config(
    credentials: Arc<Credentials>,
    roots: &Roots,
    clients: ClientCertificates,
) -> Result<Arc<ServerConfig>, PkiError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?;
    let builder = match clients {
        ClientCertificates::None => builder.with_no_client_auth(),
        ClientCertificates::Required | ClientCertificates::Optional => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.store()?, provider());
            let verifier = if clients == ClientCertificates::Optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|_| PkiError::NoRoots)?)
        }
    };
    let resolver: Arc<dyn ResolvesServerCert> = credentials;
    let mut config = builder.with_cert_resolver(resolver);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client's configuration; the name to dial is [`NODE_DNS_NAME`]. Renewed credentials take effect by
/// themselves; new roots need a new one.
///
/// An expired client certificate fails the handshake, so who enrols or renews late goes without.
pub fn client_config(
    credentials: Option<Arc<Credentials>>,
    roots: &Roots,
) -> Result<Arc<ClientConfig>, PkiError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.store()?, provider())
        .build()
        .map_err(|_| PkiError::NoRoots)?;
    // Dialling by address would send no name and check another one; the name is ours to fix.
    let verifier = Arc::new(FixedName {
        inner: verifier,
        name: fixed_name()?,
    });
    let builder = client_builder(verifier)?;
    let mut config = match credentials {
        Some(credentials) => builder.with_client_cert_resolver(credentials),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn fixed_name() -> Result<ServerName<'static>, PkiError> {
    ServerName::try_from(NODE_DNS_NAME).map_err(|_| PkiError::ServerName {
        name: NODE_DNS_NAME.to_owned(),
    })
}

fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, PkiError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

/// Checks the chain by the standard verifier, always against the fixed name.
#[derive(Debug)]
struct FixedName {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for FixedName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.inner
            .verify_server_cert(leaf, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A client's configuration that accepts exactly the server whose key has this fingerprint (64
/// hexadecimal digits, colons allowed), whatever names or dates its certificate bears.
pub fn pinned_client_config(fingerprint: &str) -> Result<Arc<ClientConfig>, PkiError> {
    let wanted = fingerprint.replace(':', "").to_ascii_lowercase();
    if wanted.len() != 64 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(PkiError::Fingerprint {
            text: fingerprint.to_owned(),
        });
    }
    people_config(Arc::new(ByKey {
        wanted: Some(wanted),
        seen: Arc::default(),
    }))
}

/// A client's configuration for the first contact with a server whose fingerprint is not known yet,
/// and where to read it once a connection stands. Anybody may answer: show the fingerprint to a person
/// and send no secret before they agreed and the connection was made again, pinned.
pub fn first_contact_client_config() -> Result<(Arc<ClientConfig>, Arc<SeenFingerprint>), PkiError>
{
    let seen = Arc::new(SeenFingerprint::default());
    Ok((
        people_config(Arc::new(ByKey {
            wanted: None,
            seen: seen.clone(),
        }))?,
        seen,
    ))
}

fn people_config(verifier: Arc<ByKey>) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = client_builder(verifier)?.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The fingerprint of the key of the first server that was met.
#[derive(Debug, Default)]
pub struct SeenFingerprint(OnceLock<String>);

impl SeenFingerprint {
    /// 64 hexadecimal digits, once a handshake got far enough to show the certificate. Trust it only
    /// when the connection came to stand: the handshake then proved that the server holds the key.
    pub fn get(&self) -> Option<String> {
        self.0.get().cloned()
    }
}

/// Knows a server by its key alone.
#[derive(Debug)]
struct ByKey {
    /// `None`: any key will do, and is noted.
    wanted: Option<String>,
    seen: Arc<SeenFingerprint>,
}

impl ServerCertVerifier for ByKey {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let found = key_fingerprint(leaf).map_err(|_| CertificateError::BadEncoding)?;
        match &self.wanted {
            Some(wanted) if *wanted != found => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => {
                // Within one first contact the server must stay the same.
                if self.seen.0.get_or_init(|| found.clone()) == &found {
                    Ok(ServerCertVerified::assertion())
                } else {
                    Err(CertificateError::ApplicationVerificationFailure.into())
                }
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // Only TLS 1.3 is offered, so a server that answers so is broken.
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(
            message,
            leaf,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
