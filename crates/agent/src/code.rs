//! Code on the node: fetched from the Director by hash, checked, unpacked once, kept while a
//! level names it and a little longer.

use crate::unpacker::Unpacker;
use async_trait::async_trait;
use conpaas_core::role_agent::{CodeStore, RoleError};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::protocol::PATH_BLOBS;
use conpaas_model::spec::CodeRef;
use conpaas_wire::Client;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a role waits for code before it is told to come again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Unused code that is kept, the newest first.
const SPARE: usize = 2;
const PARTIAL: &str = ".partial";

type Fetching = watch::Receiver<Option<Result<(), String>>>;

/// The node's code, from the Director.
pub struct DirectorCode {
    folder: PathBuf,
    director: watch::Receiver<Option<Client>>,
    fetching: Mutex<HashMap<String, Fetching>>,
    unpacker: Unpacker,
}

impl DirectorCode {
    /// `director` becomes a client once the agent has a certificate.
    pub fn new(
        folder: PathBuf,
        director: watch::Receiver<Option<Client>>,
        unpacker: Unpacker,
    ) -> Self {
        Self {
            folder,
            director,
            fetching: Mutex::default(),
            unpacker,
        }
    }

    /// Removes code that is not in `keep`, except for the newest few.
    pub fn prune(&self, keep: &BTreeSet<String>) -> std::io::Result<()> {
        let mut unused = Vec::new();
        for entry in std::fs::read_dir(&self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_hash(&name) && !keep.contains(&name) {
                unused.push((entry.metadata()?.modified()?, name));
            }
        }
        unused.sort();
        unused.truncate(unused.len().saturating_sub(SPARE));
        for (_, name) in unused {
            // Renamed first: code is there whole or not at all.
            let gone = self.folder.join(format!(".gone-{name}"));
            std::fs::rename(self.folder.join(&name), &gone)?;
            std::fs::remove_dir_all(&gone)?;
        }
        Ok(())
    }

    fn start(&self, code: &CodeRef) -> Fetching {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = fetching.get(&code.sha256) {
            return present.clone();
        }
        let (sender, receiver) = watch::channel(None);
        fetching.insert(code.sha256.clone(), receiver.clone());
        let (folder, director, code) = (self.folder.clone(), self.director.clone(), code.clone());
        let unpacker = self.unpacker;
        tokio::spawn(async move {
            let result = fetch(&folder, director, &code, unpacker).await;
            sender.send_replace(Some(result));
        });
        receiver
    }

    fn forget(&self, sha256: &str) {
        self.fetching
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(sha256);
    }
}

#[async_trait]
impl CodeStore for DirectorCode {
    /// While code is being fetched for long, the error is of kind `WouldBlock`: it is no
    /// failure, and the agent asks again soon.
    async fn folder(&self, code: &CodeRef) -> Result<PathBuf, RoleError> {
        if !is_hash(&code.sha256) {
            return Err(RoleError::Failed(format!(
                "'{}' is no hash of an archive",
                code.sha256
            )));
        }
        let target = self.folder.join(&code.sha256);
        if tokio::fs::try_exists(&target).await.unwrap_or(false) {
            return Ok(target);
        }
        let mut fetching = self.start(code);
        let done = match tokio::time::timeout(PATIENCE, fetching.wait_for(Option::is_some)).await {
            Ok(Ok(done)) => done.clone(),
            Ok(Err(_)) => Some(Err("fetching it was broken off".to_owned())),
            Err(_) => None,
        };
        match done {
            Some(result) => {
                self.forget(&code.sha256);
                result
                    .map(|()| target)
                    .map_err(|reason| RoleError::Failed(format!("code {}: {reason}", code.id)))
            }
            None => {
                let have = tokio::fs::metadata(self.folder.join(PARTIAL).join(&code.sha256)).await;
                let have = have.map_or(0, |found| found.len());
                Err(RoleError::Io {
                    what: format!("fetching code {} ({have} of {} bytes)", code.id, code.size),
                    source: ErrorKind::WouldBlock.into(),
                })
            }
        }
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

async fn fetch(
    folder: &Path,
    mut director: watch::Receiver<Option<Client>>,
    code: &CodeRef,
    unpacker: Unpacker,
) -> Result<(), String> {
    let words = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let client = director
        .wait_for(Option::is_some)
        .await
        .map_err(|_| "the agent ends")?
        .clone();
    let client = client.ok_or("the agent ends")?;
    let partial = folder.join(PARTIAL);
    tokio::fs::create_dir_all(&partial)
        .await
        .map_err(words("the code folder cannot be made"))?;
    let partial = partial.join(&code.sha256);
    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&partial)
        .await
        .map_err(words("it cannot be stored"))?;
    let have = file
        .metadata()
        .await
        .map_err(words("it cannot be stored"))?
        .len();
    if have < code.size {
        client
            .download(&format!("{PATH_BLOBS}/{}", code.sha256), &mut file, have)
            .await
            .map_err(|error| crate::party::chained(&error))?;
    }
    drop(file);
    reached(KillPoint::CodeFetched);
    let (folder, hash) = (folder.to_owned(), code.sha256.clone());
    tokio::task::spawn_blocking(move || install(&folder, &partial, &hash, unpacker))
        .await
        .map_err(|error| error.to_string())?
}

/// Checks a fetched archive and puts its unpacked folder in place, whole.
fn install(folder: &Path, partial: &Path, hash: &str, unpacker: Unpacker) -> Result<(), String> {
    let remove = || {
        let _ = std::fs::remove_file(partial);
    };
    let found = hash_of(partial).map_err(|error| format!("it cannot be read back: {error}"))?;
    if found != hash {
        remove();
        return Err("what was fetched has another hash; it is fetched anew".to_owned());
    }
    let draft = folder.join(format!(".draft-{hash}"));
    match std::fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.to_string()),
        _ => {}
    }
    let unpacked = std::fs::File::open(partial)
        .map_err(|error| format!("it cannot be read back: {error}"))
        .and_then(|file| unpacker.unpack(file, &draft));
    if let Err(error) = unpacked {
        let _ = std::fs::remove_dir_all(&draft);
        return Err(error);
    }
    reached(KillPoint::CodeUnpacked);
    let target = folder.join(hash);
    if let Err(error) = std::fs::rename(&draft, &target) {
        let _ = std::fs::remove_dir_all(&draft);
        // Another role of this node may have had it fetched meanwhile: the same content.
        if !target.is_dir() {
            return Err(error.to_string());
        }
    }
    remove();
    Ok(())
}

fn hash_of(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
    }
}

/// For callers that hold the store behind the trait too.
pub(crate) type SharedCode = Arc<DirectorCode>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetched_archive_is_checked_and_put_in_place_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(2);
        header.set_mode(0o600);
        builder
            .append_data(&mut header, "index", &b"hi"[..])
            .unwrap();
        let bytes = builder.into_inner().unwrap();
        let hash = hex::encode(Sha256::digest(&bytes));
        let partial = folder.path().join("p");

        std::fs::write(&partial, &bytes[..100]).unwrap();
        assert!(install(folder.path(), &partial, &hash, Unpacker::Here).is_err());
        assert!(!partial.exists() && !folder.path().join(&hash).exists());

        std::fs::write(&partial, &bytes).unwrap();
        install(folder.path(), &partial, &hash, Unpacker::Here).unwrap();
        assert_eq!(
            std::fs::read(folder.path().join(&hash).join("index")).unwrap(),
            b"hi"
        );
        assert!(!partial.exists());
    }

    #[tokio::test]
    async fn code_in_use_and_two_more_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..5).map(|n| format!("{n:064x}")).collect();
        for name in &names {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let store = DirectorCode::new(
            folder.path().to_owned(),
            watch::channel(None).1,
            Unpacker::Here,
        );
        store.prune(&[names[0].clone()].into()).unwrap();
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3);
        assert!(folder.path().join(&names[0]).exists());
    }
}
