//! Who a process is towards the others: its own key, a certificate that renews itself, the roots
//! it trusts. The agent gets its certificates from the Director, a manager by way of its node's
//! agent; both keep them here.

use async_trait::async_trait;
use base64::Engine;
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::protocol::EnrolAnswer;
use conpaas_pki::{
    CertificateChain, ClientCertificates, Credentials, Identity, KeyPair, PartyKind, PkiError,
    Roots, client_config, server_config,
};
use conpaas_wire::{Backoff, ClientTls, ServerTls};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the wall clock is looked at, at least: a machine that slept must notice soon.
const CLOCK_LOOK: Duration = Duration::from_secs(5);
/// And at most, however short-lived certificates are.
const CLOCK_LOOK_MIN: Duration = Duration::from_millis(100);

/// A certificate could not be had; it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EnrolError(pub String);

/// Gets a certificate for a signing request.
#[async_trait]
pub trait Enrol: Send + Sync {
    /// `csr` is PEM. `roots` are those trusted now. `first` is false when the key had a
    /// certificate before.
    async fn enrol(
        &self,
        csr: String,
        roots: &Roots,
        first: bool,
    ) -> Result<EnrolAnswer, EnrolError>;
}

/// What a party that has a certificate speaks TLS with.
pub struct Secured {
    credentials: Arc<Credentials>,
    client: RwLock<Arc<rustls::ClientConfig>>,
    server: RwLock<Arc<rustls::ServerConfig>>,
}

impl Secured {
    fn new(credentials: Arc<Credentials>, roots: &Roots) -> Result<Self, PkiError> {
        Ok(Self {
            client: RwLock::new(client_config(Some(credentials.clone()), roots)?),
            server: RwLock::new(server_config(
                credentials.clone(),
                roots,
                ClientCertificates::Required,
            )?),
            credentials,
        })
    }

    fn renew(&self, chain: CertificateChain, key: &KeyPair, roots: &Roots) -> Result<(), PkiError> {
        self.credentials.replace(chain, key)?;
        let fresh = Self::new(self.credentials.clone(), roots)?;
        let client = fresh
            .client
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        let server = fresh
            .server
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        *self.server.write().unwrap_or_else(PoisonError::into_inner) = server;
        Ok(())
    }

    /// The configuration for dialling; renewals take effect by themselves.
    pub fn client_tls(self: &Arc<Self>) -> ClientTls {
        let own = self.clone();
        Arc::new(move || {
            own.client
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        })
    }

    /// The configuration for listening, with certificates required of clients.
    pub fn server_tls(self: &Arc<Self>) -> ServerTls {
        let own = self.clone();
        Arc::new(move || {
            own.server
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        })
    }
}

/// A party with its key, certificate and roots on disk.
pub struct Party {
    key: KeyPair,
    chain_file: PathBuf,
    roots_file: PathBuf,
    roots: RwLock<Roots>,
    had_certificate: bool,
    kind: PartyKind,
    secured: watch::Sender<Option<Arc<Secured>>>,
    /// For how long certificates are given, once that was said.
    lifetime: RwLock<Option<Duration>>,
    /// The set of roots that came with the present certificate.
    trust: watch::Sender<Trust>,
    /// What the Director said last of the set of roots.
    noticed: watch::Sender<String>,
}

/// The set of roots that a party trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// As the Director named it; empty when that was an older one, or was not asked yet.
    pub digest: String,
    /// Their fingerprints.
    pub roots: Vec<String>,
}

impl Party {
    /// Takes key, certificate and roots from `folder` (files `NAME.key`, `NAME.chain.pem` and
    /// `NAME.roots.pem`), makes the key when there is none, and begins with the `given` roots.
    /// A certificate that is over, or is not `expected`'s, is not used.
    pub fn load(
        folder: &Path,
        name: &str,
        given: &Roots,
        expected: &Identity,
        now: SystemTime,
    ) -> Result<Arc<Self>, PkiError> {
        let key = KeyPair::load_or_create(&folder.join(format!("{name}.key")))?;
        let chain_file = folder.join(format!("{name}.chain.pem"));
        let roots_file = folder.join(format!("{name}.roots.pem"));
        let roots = Roots::load(&roots_file).unwrap_or_else(|_| given.clone());
        let chain = CertificateChain::load(&chain_file).ok().filter(|chain| {
            chain
                .key_fingerprint()
                .is_ok_and(|print| print == key.fingerprint())
                && chain.identity().is_ok_and(|identity| identity == *expected)
        });
        let had_certificate = chain.is_some();
        let usable = chain.filter(|chain| {
            chain
                .validity()
                .is_ok_and(|validity| !validity.is_over(now))
        });
        let secured = match usable {
            Some(chain) => Some(Arc::new(Secured::new(
                Credentials::new(chain, &key)?,
                &roots,
            )?)),
            None => None,
        };
        Ok(Arc::new(Self {
            key,
            chain_file,
            roots_file,
            roots: RwLock::new(roots),
            had_certificate,
            kind: expected.kind.clone(),
            secured: watch::Sender::new(secured),
            lifetime: RwLock::default(),
            trust: watch::Sender::default(),
            noticed: watch::Sender::default(),
        }))
    }

    /// Waits until there is a certificate. None when the party is given up before.
    pub async fn secured(&self) -> Option<Arc<Secured>> {
        self.secured
            .subscribe()
            .wait_for(Option::is_some)
            .await
            .ok()?
            .clone()
    }

    /// The roots trusted now.
    pub fn roots(&self) -> Roots {
        self.roots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The Director says which set of roots is in force: when it is another than this party's, a
    /// new certificate brings it.
    pub fn notice(&self, trust: &str) {
        if !trust.is_empty() {
            self.noticed.send_if_modified(|noticed| {
                let news = noticed != trust;
                if news {
                    trust.clone_into(noticed);
                }
                news
            });
        }
    }

    /// The set of roots as it came with the present certificate; changes with it.
    pub fn trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    /// Gets a certificate, and a new one whenever it is time, until shut down.
    pub async fn keep(self: Arc<Self>, enrol: Arc<dyn Enrol>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.renew_for_ever(&*enrol) => {}
        }
    }

    async fn renew_for_ever(&self, enrol: &dyn Enrol) {
        let mut backoff = Backoff::for_parties();
        let mut first = !self.had_certificate;
        let mut noticed = self.noticed.subscribe();
        loop {
            if !self.is_due(SystemTime::now()) {
                let lifetime = *self.lifetime.read().unwrap_or_else(PoisonError::into_inner);
                let look = lifetime.map_or(CLOCK_LOOK, |lifetime| CLOCK_LOOK.min(lifetime / 6));
                tokio::select! {
                    () = tokio::time::sleep(look.max(CLOCK_LOOK_MIN)) => {}
                    _ = noticed.changed() => {}
                }
                continue;
            }
            match self.once(enrol, first).await {
                Ok(()) => {
                    first = false;
                    backoff.reset();
                }
                Err(error) => {
                    tracing::warn!(error = %chained(&*error), "no certificate yet; it is tried again");
                    tokio::time::sleep(backoff.next(rand::random())).await;
                }
            }
        }
    }

    fn is_due(&self, now: SystemTime) -> bool {
        let lifetime = *self.lifetime.read().unwrap_or_else(PoisonError::into_inner);
        let over = match &*self.secured.borrow() {
            None => true,
            Some(secured) => {
                secured
                    .credentials
                    .validity()
                    .map_or(true, |validity| match lifetime {
                        Some(lifetime) => validity.should_renew_of(lifetime, now),
                        None => validity.should_renew(now),
                    })
            }
        };
        let noticed = self.noticed.borrow();
        over || !noticed.is_empty() && *noticed != self.trust.borrow().digest
    }

    async fn once(
        &self,
        enrol: &dyn Enrol,
        first: bool,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let csr = csr_pem(&self.key.csr()?);
        let answer = enrol.enrol(csr, &self.roots(), first).await?;
        let chain = CertificateChain::from_pem(&answer.chain)?;
        let roots = Roots::from_pem(&answer.roots)?;
        chain.save(&self.chain_file)?;
        roots.save(&self.roots_file)?;
        reached(match self.kind {
            PartyKind::Manager { .. } => KillPoint::ManagerSecured,
            _ => KillPoint::AgentSecured,
        });
        *self.roots.write().unwrap_or_else(PoisonError::into_inner) = roots.clone();
        let present = self.secured.borrow().clone();
        match present {
            Some(secured) => secured.renew(chain, &self.key, &roots)?,
            None => {
                let secured = Secured::new(Credentials::new(chain, &self.key)?, &roots)?;
                self.secured.send_replace(Some(Arc::new(secured)));
            }
        }
        let lifetime = Duration::from_secs(answer.lifetime_seconds);
        *self
            .lifetime
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(lifetime);
        // What was noticed before is overtaken; what comes next counts again.
        self.noticed.send_replace(answer.trust.clone());
        self.trust.send_replace(Trust {
            digest: answer.trust,
            roots: roots.fingerprints()?,
        });
        tracing::info!(
            lifetime_seconds = answer.lifetime_seconds,
            "a certificate was issued"
        );
        Ok(())
    }
}

fn csr_pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE REQUEST-----\n");
    pem
}

/// An error with its causes, in one line.
pub(crate) fn chained(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
