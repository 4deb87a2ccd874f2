//! Taking a backup while the Director runs or not: one consistent copy of the store, then all that
//! it names, into one archive that appears whole or not at all.

use super::{BLOBS, BackupError, FILES, FOLDERS, FORMAT, MANIFEST, Manifest, Member, STORE};
use crate::incarnation::Incarnation;
use crate::store::{self, codes, housekeeping, migrations, show_time};
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where drafts lie while a backup is taken; leftovers of one that was killed are removed.
const DRAFTS: &str = ".backup-";
/// How often key files are read until two readings agree: a change of roots writes several.
const READINGS: usize = 50;

/// Where a backup goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A file, which must not be there yet unless it may be overwritten.
    File { path: PathBuf, overwrite: bool },
    /// Standard output; what comes out is whole only if no error is told.
    Output,
}

/// A backup that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub manifest: Manifest,
    /// Bytes of the archive; of none when it went to standard output.
    pub size: Option<u64>,
}

/// Takes a backup of a Director's folder. `actor` is who does it, for the audit.
///
/// # Errors
/// When there is no store, the target is there already, or anything cannot be read or written.
pub fn take(folder: &Path, target: &Target, actor: &str) -> Result<Taken, BackupError> {
    let path = folder.join(STORE);
    if !path.is_file() {
        return Err(BackupError::NoStore {
            folder: folder.to_owned(),
        });
    }
    if let Target::File {
        path,
        overwrite: false,
    } = target
        && path.exists()
    {
        return Err(BackupError::Exists { path: path.clone() });
    }
    let _alone = alone(folder)?;
    let draft = draft_folder(folder)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let live = Connection::open_with_flags(&path, flags).map_err(BackupError::store("opened"))?;
    live.busy_timeout(Duration::from_secs(30))
        .map_err(BackupError::store("opened"))?;
    let schema = schema(&live)?;
    if schema > migrations::KNOWN {
        return Err(BackupError::NewerSchema {
            program: "a newer version".to_owned(),
            found: schema,
            known: migrations::KNOWN,
        });
    }
    // Who takes everything away is written down first, and is in the backup itself.
    let shown = match target {
        Target::File { path, .. } => path.display().to_string(),
        Target::Output => "standard output".to_owned(),
    };
    let written = BackupError::store("written");
    let row =
        housekeeping::begin_audit(&live, store::now(), actor, None, "backup_director", &shown)
            .map_err(&written)?;
    let outcome = archive(folder, &live, draft.path(), target, schema);
    let status = if outcome.is_ok() { 200 } else { 500 };
    let ended = housekeeping::end_audit(&live, row, status).map_err(&written);
    let taken = outcome?;
    ended?;
    Ok(taken)
}

/// The schema of a store.
pub(super) fn schema(store: &Connection) -> Result<i64, BackupError> {
    store
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(BackupError::store("read"))
}

/// Keeps a second backup of this folder waiting.
fn alone(folder: &Path) -> Result<Flock<File>, BackupError> {
    let path = folder.join("backup.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(BackupError::file("write", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| BackupError::Busy {
        folder: folder.to_owned(),
    })
}

fn draft_folder(folder: &Path) -> Result<tempfile::TempDir, BackupError> {
    let entries = std::fs::read_dir(folder).map_err(BackupError::file("read", folder))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(DRAFTS) {
            let path = entry.path();
            std::fs::remove_dir_all(&path).map_err(BackupError::file("remove", &path))?;
        }
    }
    tempfile::Builder::new()
        .prefix(DRAFTS)
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir_in(folder)
        .map_err(BackupError::file("write", folder))
}

fn archive(
    folder: &Path,
    live: &Connection,
    draft: &Path,
    target: &Target,
    schema: i64,
) -> Result<Taken, BackupError> {
    let copy = draft.join(STORE);
    migrations::copy(live, &copy).map_err(|error| {
        let cause = std::error::Error::source(&error);
        let cause = cause.and_then(|cause| cause.downcast_ref::<rusqlite::Error>());
        match cause.and_then(rusqlite::Error::sqlite_error_code) {
            Some(rusqlite::ErrorCode::DiskFull) => BackupError::DiskFull {
                path: folder.to_owned(),
                source: io::ErrorKind::StorageFull.into(),
            },
            _ => BackupError::store("copied")(error),
        }
    })?;
    // Keys after the store: they only ever open more than it names.
    let small = small_files(folder)?;
    let read = BackupError::store("read");
    let copied = Connection::open_with_flags(&copy, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(BackupError::store("read"))?;
    let (size, sha256) = digest(&copy)?;
    let mut members = vec![Member {
        name: STORE.to_owned(),
        size,
        sha256,
    }];
    members.extend(small.iter().map(|(name, bytes)| Member {
        name: name.clone(),
        size: bytes.len() as u64,
        sha256: hex::encode(Sha256::digest(bytes)),
    }));
    let needed = codes::blobs(&copied).map_err(BackupError::store("read"))?;
    let kept = codes::kept_blobs(&copied).map_err(BackupError::store("read"))?;
    for hash in needed {
        match std::fs::metadata(folder.join(BLOBS).join(&hash)) {
            Ok(meta) => members.push(Member {
                name: format!("{BLOBS}/{hash}"),
                size: meta.len(),
                sha256: hash,
            }),
            // Of a deleted version, whose time came just now.
            Err(_) if !kept.contains(&hash) => {}
            Err(_) => return Err(BackupError::Blob { hash }),
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        program: conpaas_model::VERSION.to_owned(),
        schema,
        installation: store::meta(&copied, "installation")
            .map_err(&read)?
            .unwrap_or_default(),
        incarnation: Incarnation::of(&copied).map_err(&read)?.0,
        taken_at: show_time(store::now()),
        members,
    };
    let size = match target {
        Target::Output => {
            pack(folder, draft, &small, &manifest, io::stdout().lock())
                .map_err(in_pack(Path::new("standard output")))?;
            None
        }
        Target::File { path, overwrite } => {
            Some(to_file(folder, draft, &small, &manifest, path, *overwrite)?)
        }
    };
    Ok(Taken { manifest, size })
}

/// What packing failed on: a blob that is not what its name says, or the archive's own file.
enum PackError {
    Blob(String),
    Write(io::Error),
}

impl From<io::Error> for PackError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

fn in_pack(path: &Path) -> impl FnOnce(PackError) -> BackupError {
    let path = path.to_owned();
    move |error| match error {
        PackError::Blob(hash) => BackupError::Blob { hash },
        PackError::Write(error) => BackupError::file("write", path)(error),
    }
}

fn to_file(
    folder: &Path,
    draft: &Path,
    small: &BTreeMap<String, Vec<u8>>,
    manifest: &Manifest,
    path: &Path,
    overwrite: bool,
) -> Result<u64, BackupError> {
    let beside = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".conpaas-backup-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(&beside)
        .map_err(BackupError::file("write", path))?;
    pack(folder, draft, small, manifest, file.as_file_mut()).map_err(in_pack(path))?;
    let sync = || -> io::Result<u64> {
        file.as_file().sync_all()?;
        Ok(file.as_file().metadata()?.len())
    };
    let size = sync().map_err(BackupError::file("write", path))?;
    let kept = if overwrite {
        file.persist(path).map_err(|error| error.error)
    } else {
        file.persist_noclobber(path).map_err(|error| error.error)
    };
    kept.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists {
            path: path.to_owned(),
        },
        _ => BackupError::file("write", path)(error),
    })?;
    File::open(&beside)
        .and_then(|folder| folder.sync_all())
        .map_err(BackupError::file("write", path))?;
    Ok(size)
}

fn pack(
    folder: &Path,
    draft: &Path,
    small: &BTreeMap<String, Vec<u8>>,
    manifest: &Manifest,
    to: impl Write,
) -> Result<(), PackError> {
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::fast()));
    let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other)?;
    append(&mut archive, MANIFEST, text.len() as u64, text.as_slice())?;
    for member in &manifest.members {
        if let Some(bytes) = small.get(&member.name) {
            append(&mut archive, &member.name, member.size, bytes.as_slice())?;
            continue;
        }
        let base = if member.name == STORE { draft } else { folder };
        let mut read = Hashing {
            inner: File::open(base.join(&member.name))?.take(member.size),
            hash: Sha256::new(),
        };
        append(&mut archive, &member.name, member.size, &mut read)?;
        if hex::encode(read.hash.finalize()) != member.sha256 {
            return Err(PackError::Blob(member.sha256.clone()));
        }
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(size);
    archive.append_data(&mut header, name, content)
}

/// Hashes what passes.
pub(super) struct Hashing<R> {
    pub inner: R,
    pub hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

fn digest(path: &Path) -> Result<(u64, String), BackupError> {
    let mut hashing = Hashing {
        inner: File::open(path).map_err(BackupError::file("read", path))?,
        hash: Sha256::new(),
    };
    let size = io::copy(&mut hashing, &mut io::sink()).map_err(BackupError::file("read", path))?;
    Ok((size, hex::encode(hashing.hash.finalize())))
}

/// Keys, certificates and the first password, as they stand together.
fn small_files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, BackupError> {
    let mut last = read_small(folder)?;
    for _ in 0..READINGS {
        let again = read_small(folder)?;
        if again == last {
            break;
        }
        last = again;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(last)
}

fn read_small(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, BackupError> {
    let mut found = BTreeMap::new();
    let mut paths: Vec<PathBuf> = FILES.iter().map(|name| folder.join(name)).collect();
    for name in FOLDERS {
        let inside = folder.join(name);
        match std::fs::read_dir(&inside) {
            Ok(entries) => paths.extend(entries.flatten().map(|entry| entry.path())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(BackupError::file("read", inside)(error)),
        }
    }
    for path in paths {
        // Drafts of files that are replaced as a whole come and go.
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        if path.file_name().is_none_or(hidden) || !path.is_file() {
            continue;
        }
        match std::fs::read(&path) {
            Ok(bytes) => {
                let name = path.strip_prefix(folder).unwrap_or(&path);
                found.insert(name.to_string_lossy().into_owned(), bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(BackupError::file("read", path)(error)),
        }
    }
    Ok(found)
}
