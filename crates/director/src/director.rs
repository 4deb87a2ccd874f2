//! Starting and stopping a Director.

use crate::api::{self, ApiTls};
use crate::auth::random_secret;
use crate::background;
use crate::brake::LoginBrake;
use crate::config::DirectorConfig;
use crate::error::StartError;
use crate::logs::LogStore;
use crate::machine_side::MachineSide;
use crate::machines::{Machines, MachinesConfig};
use crate::metrics::MetricsStore;
use crate::own::Own;
use crate::passwords::Passwords;
use crate::shared::Shared;
use crate::store::users::{self, UserRow};
use crate::store::{self, Store, new_id, now};
use crate::vault::Vault;
use conpaas_cloud::Cloud;
use conpaas_model::api::Rank;
use conpaas_model::ids::{InstallationId, PrincipalId};
use conpaas_pki::{Authority, AuthoritySettings};
use conpaas_services::registry::Registry;
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Name of the first operator.
const ADMIN: &str = "admin";
/// File with the first operator's password.
pub const PASSWORD_FILE: &str = "admin-password";

/// A running Director. Dropping it stops it at once; [`Director::stop`] lets requests finish.
pub struct Director {
    shared: Arc<Shared>,
    address: SocketAddr,
    fingerprint: String,
    tasks: JoinSet<()>,
    _lock: Flock<File>,
}

pub(crate) fn folder(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::StateFolder {
        folder: path.display().to_string(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// Takes the state folder for this process alone.
pub fn lock(state: &Path) -> Result<Flock<File>, StartError> {
    let shown = state.display().to_string();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(state.join("lock"))
        .map_err(|source| StartError::StateFolder {
            folder: shown.clone(),
            source,
        })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => StartError::StateInUse { folder: shown },
        error => StartError::StateFolder {
            folder: shown,
            source: error.into(),
        },
    })
}

fn write_password(state: &Path, password: &str) -> std::io::Result<()> {
    let path = state.join(PASSWORD_FILE);
    let mut file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(state)?;
    writeln!(file, "{password}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// The installation's id, made on the first start.
async fn installation(store: &Store) -> Result<InstallationId, StartError> {
    const KEY: &str = "installation";
    let found = store
        .quiet(|tx| match store::meta(tx, KEY)? {
            Some(found) => Ok(found),
            None => {
                let made = new_id(InstallationId::from_suffix)?.to_string();
                store::set_meta(tx, KEY, &made)?;
                Ok(made)
            }
        })
        .await
        .map_err(|error| StartError::Store {
            source: error.into(),
        })?;
    found
        .parse()
        .map_err(|error: conpaas_model::ids::IdError| StartError::Store {
            source: error.into(),
        })
}

/// Makes the first operator, with a random password in a file only the Director's user reads.
async fn first_operator(
    store: &Store,
    passwords: &Passwords,
    config: &DirectorConfig,
) -> Result<(), StartError> {
    let broken = |error: crate::error::DirectorError| StartError::Store {
        source: error.into(),
    };
    if store.read(|tx| users::count(tx)).await.map_err(broken)? > 0 {
        return Ok(());
    }
    let password = random_secret();
    // The file first: a crash in between leaves a file that the next start replaces.
    write_password(&config.state, &password).map_err(|source| StartError::StateFolder {
        folder: config.state.display().to_string(),
        source,
    })?;
    let row = UserRow {
        id: new_id(PrincipalId::from_suffix).map_err(broken)?,
        name: ADMIN
            .parse()
            .map_err(|error: conpaas_model::ids::IdError| StartError::Store {
                source: error.into(),
            })?,
        password_hash: passwords.hash(password).await.map_err(broken)?,
        rank: Rank::Operator,
        node_quota: config.default_node_quota,
        created_at: now(),
    };
    store
        .quiet(move |tx| users::insert(tx, &row))
        .await
        .map_err(broken)
}

/// Says it at once when secrets were sealed with another key: it is known before a node lacks one.
async fn tell_unreadable(store: &Store, vault: &Arc<Vault>) -> Result<(), StartError> {
    let key = vault.clone();
    let lost = store
        .read(move |tx| {
            let heads = store::secrets::heads(tx)?;
            Ok(heads.iter().filter(|(_, head)| !key.is_ours(head)).count())
        })
        .await
        .map_err(|error| StartError::Store {
            source: error.into(),
        })?;
    if lost > 0 {
        tracing::error!(
            secrets = lost,
            file = crate::vault::KEY_FILE,
            "secrets were sealed with another key: put its file back and start again, or set them again"
        );
    }
    Ok(())
}

impl Director {
    /// Starts API, background duties and the machine side.
    pub async fn start(
        config: DirectorConfig,
        clouds: BTreeMap<String, Arc<dyn Cloud>>,
        registry: Arc<Registry>,
    ) -> Result<Self, StartError> {
        let names: Vec<String> = clouds.keys().cloned().collect();
        Self::start_with(config, names, registry, |prepared| async move {
            let Prepared {
                config,
                store,
                logs,
                metrics,
                vault,
                installation,
                registry,
                shutdown,
            } = prepared;
            let authority = Authority::load_or_create(
                &config.state.join("pki"),
                &installation,
                &AuthoritySettings::default(),
                SystemTime::now(),
            )
            .map_err(|error| StartError::Pki(error.into()))?;
            let settings = MachinesConfig::new(&config, logs, metrics, vault);
            let machines =
                Machines::start(store, settings, clouds, authority, registry, shutdown).await;
            let machines = machines.map_err(|error| StartError::Machines(error.into()))?;
            Ok(Arc::new(machines) as Arc<dyn MachineSide>)
        })
        .await
    }

    /// Starts a Director with a machine side of the caller's.
    pub async fn start_with<F, Fut>(
        config: DirectorConfig,
        clouds: Vec<String>,
        registry: Arc<Registry>,
        machine_side: F,
    ) -> Result<Self, StartError>
    where
        F: FnOnce(Prepared) -> Fut,
        Fut: Future<Output = Result<Arc<dyn MachineSide>, StartError>>,
    {
        folder(&config.state)?;
        let lock = lock(&config.state)?;
        // Half uploads of an earlier life are nobody's.
        let uploads = config.uploads();
        if uploads.exists() {
            std::fs::remove_dir_all(&uploads).map_err(|source| StartError::StateFolder {
                folder: uploads.display().to_string(),
                source,
            })?;
        }
        folder(&uploads)?;
        folder(&config.blobs())?;
        let store = Store::open(&config.state.join("store.db"))?;
        let listener = api::bind(config.listen).await?;
        let address = listener.local_addr().map_err(|source| StartError::Listen {
            address: config.listen,
            source,
        })?;
        let tls = ApiTls::load(config.state.join("api"), config.names.clone())?;
        let installation = installation(&store).await?;
        let passwords = Passwords::default();
        first_operator(&store, &passwords, &config).await?;
        let shutdown = CancellationToken::new();
        let logs = Arc::new(LogStore::new(config.logs()));
        let metrics = MetricsStore::open(&config.state.join("metrics.db"), config.metrics_bytes);
        let metrics = Arc::new(metrics.map_err(|error| StartError::Store {
            source: error.into(),
        })?);
        let vault = Vault::load_or_create(&config.state.join("pki"), &installation)
            .map_err(|error| StartError::Vault(error.into()))?;
        let vault = Arc::new(vault);
        tell_unreadable(&store, &vault).await?;
        let machines = machine_side(Prepared {
            config: config.clone(),
            store: store.clone(),
            logs: logs.clone(),
            metrics: metrics.clone(),
            vault: vault.clone(),
            installation: installation.clone(),
            registry: registry.clone(),
            shutdown: shutdown.clone(),
        })
        .await?;
        let shared = Arc::new(Shared {
            store,
            logs,
            metrics,
            own: Own::default(),
            vault,
            config,
            registry,
            machines,
            passwords,
            brake: LoginBrake::default(),
            installation,
            started_at: now(),
            run_id: random_secret(),
            clouds,
            blobs: tokio::sync::RwLock::new(()),
            shutdown,
        });
        let fingerprint = tls.fingerprint().to_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(background::conclusions(shared.clone()));
        tasks.spawn(background::cleaning(shared.clone(), tls.clone()));
        tasks.spawn(background::measures(shared.clone()));
        tasks.spawn(api::serve(shared.clone(), listener, tls));
        tracing::info!(%address, installation = %shared.installation, "the Director serves");
        Ok(Self {
            shared,
            address,
            fingerprint,
            tasks,
            _lock: lock,
        })
    }

    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API's key, as people pin it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn installation(&self) -> &InstallationId {
        &self.shared.installation
    }

    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Lets requests in flight finish, ends everything, and waits for it.
    pub async fn stop(mut self) {
        self.shared.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.shared.machines.stopped().await;
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        self.shared.shutdown.cancel();
    }
}

/// Runs a Director until it is told to end (SIGTERM, SIGINT); requests in flight finish.
///
/// # Errors
/// When it cannot start: the state folder is in use, a port is taken, the store is newer.
pub async fn run(
    config: DirectorConfig,
    registry: Registry,
    clouds: BTreeMap<String, Arc<dyn Cloud>>,
) -> Result<(), StartError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = config.listen;
    let signals = |kind| {
        signal(kind).map_err(|source| StartError::Listen {
            address: listen,
            source,
        })
    };
    let (mut terminate, mut interrupt) = (
        signals(SignalKind::terminate())?,
        signals(SignalKind::interrupt())?,
    );
    let director = Director::start(config, clouds, Arc::new(registry)).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    director.stop().await;
    Ok(())
}

/// What a machine side starts from.
pub struct Prepared {
    pub config: DirectorConfig,
    pub store: Store,
    pub logs: Arc<LogStore>,
    pub metrics: Arc<MetricsStore>,
    pub vault: Arc<Vault>,
    pub installation: InstallationId,
    pub registry: Arc<Registry>,
    pub shutdown: CancellationToken,
}
