//! Secrets on the node: asked of the Director by name and version, kept in memory only (files of
//! mode 0600 in the machine's /run), there while a level names them. What was fetched is here
//! without the Director, also for an agent that starts again.

use async_trait::async_trait;
use conpaas_core::role_agent::{RoleError, SecretStore};
use conpaas_model::environment::check_name;
use conpaas_model::ids::SecretVersion;
use conpaas_model::level::Level;
use conpaas_model::protocol::{PATH_SECRETS, SecretValue};
use conpaas_wire::Client;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long one is asked for. The Director gives a secret once it has heard of the role that
/// needs it, which is a moment after the level came.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Secrets by name and version.
pub type Names = BTreeSet<(String, SecretVersion)>;

/// The node's secrets, from the Director.
pub struct DirectorSecrets {
    folder: PathBuf,
    director: watch::Receiver<Option<Client>>,
    wanted: Mutex<Names>,
}

/// The secrets that a level names.
pub fn named(level: &Level) -> Names {
    let roles = level.body.roles.values();
    let releases = roles.flat_map(|role| role.releases.values());
    releases
        .flat_map(|release| &release.environment.secrets)
        .map(|(name, version)| (name.clone(), *version))
        .collect()
}

fn file_name(name: &str, version: SecretVersion) -> String {
    format!("{name}.{}", version.0)
}

impl DirectorSecrets {
    /// `director` becomes a client once the agent has a certificate. Half files of an earlier
    /// agent are nobody's.
    pub fn new(folder: PathBuf, director: watch::Receiver<Option<Client>>) -> Self {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if is_draft(&entry) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Self {
            folder,
            director,
            wanted: Mutex::default(),
        }
    }

    /// These may be kept from now on. What is here already stays until it is pruned.
    pub fn want(&self, names: Names) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn wants(&self, name: &str, version: SecretVersion) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.contains(&(name.to_owned(), version))
    }

    /// Removes all that nobody wants any more.
    pub fn prune(&self) -> std::io::Result<()> {
        let wanted = self
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let keep: BTreeSet<String> = wanted
            .iter()
            .map(|(name, version)| file_name(name, *version))
            .collect();
        for entry in std::fs::read_dir(&self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_draft(&entry) && !keep.contains(&name) {
                gone(std::fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }

    async fn ask(&self, name: &str, version: SecretVersion) -> Result<String, RoleError> {
        let failed = |why: String| RoleError::Failed(format!("the secret {name}: {why}"));
        let until = Instant::now() + PATIENCE;
        let mut director = self.director.clone();
        let client = tokio::time::timeout_at(until, director.wait_for(Option::is_some)).await;
        let client = client
            .ok()
            .and_then(|found| found.ok()?.clone())
            .ok_or_else(|| failed("the Director cannot be asked yet".to_owned()))?;
        let path = format!("{PATH_SECRETS}/{name}/{}", version.0);
        loop {
            let asked = client.get_json::<SecretValue>(&path);
            let why = match tokio::time::timeout_at(until, asked).await {
                Ok(Ok(found)) => return Ok(found.value),
                Ok(Err(error)) => {
                    let soon = error.is_transient() || error.code() == Some("no_secret");
                    let why = crate::party::chained(&error);
                    if !soon {
                        return Err(failed(why));
                    }
                    why
                }
                Err(_) => "the Director does not answer".to_owned(),
            };
            if Instant::now() + ASK_AGAIN >= until {
                return Err(failed(why));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Keeps a value, unless it is wanted no more by now.
    fn keep(&self, name: &str, version: SecretVersion, value: &str) -> std::io::Result<()> {
        let path = self.folder.join(file_name(name, version));
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(&self.folder)?;
        file.write_all(value.as_bytes())?;
        file.persist(&path)?;
        if !self.wants(name, version) {
            gone(std::fs::remove_file(path))?;
        }
        Ok(())
    }
}

fn is_draft(entry: &std::fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with('.')
}

fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[async_trait]
impl SecretStore for DirectorSecrets {
    async fn value(&self, name: &str, version: SecretVersion) -> Result<String, RoleError> {
        // It becomes the name of a file.
        check_name(name).map_err(|error| RoleError::Failed(error.to_string()))?;
        if let Some(value) = read(&self.folder.join(file_name(name, version))) {
            return Ok(value);
        }
        let value = self.ask(name, version).await?;
        // Used all the same when there is no room for it: only a later restart lacks it then.
        if let Err(error) = self.keep(name, version, &value) {
            tracing::warn!(%error, name, %version, "a secret cannot be kept in memory");
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_fetched_is_there_without_a_director_while_it_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let store = || {
            let store = DirectorSecrets::new(folder.path().to_owned(), watch::channel(None).1);
            store.want([("A".to_owned(), SecretVersion(1))].into());
            store
        };
        store().keep("A", SecretVersion(1), "hush").unwrap();
        let path = folder.path().join("A.1");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Another agent of the same machine finds it.
        let next = store();
        assert_eq!(next.value("A", SecretVersion(1)).await.unwrap(), "hush");
        // What is wanted no more when it comes is not kept at all.
        next.keep("A", SecretVersion(2), "late").unwrap();
        assert!(!folder.path().join("A.2").exists());
        next.prune().unwrap();
        assert!(path.exists());
        next.want(Names::new());
        next.prune().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = next.value("../A", SecretVersion(1)).await.unwrap_err();
        assert!(error.to_string().contains("cannot be a name"), "{error}");
        // Without a Director it says so, and does not wait for ever.
        let error = next.value("A", SecretVersion(1)).await.unwrap_err();
        assert!(error.to_string().contains("the secret A"), "{error}");
    }
}
