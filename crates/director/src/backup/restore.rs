//! Putting a backup in the place of a Director's folder: everything is unpacked and checked beside
//! it first, then the two change names at one instant. The former folder is kept.

use super::outrank::{Former, former_releases, outrank};
use super::write::{Hashing, schema};
use super::{BackupError, FORMAT, MANIFEST, Manifest, Member, STORE};
use crate::director::lock;
use crate::error::StartError;
use crate::incarnation::Incarnation;
use crate::store::{self, housekeeping, migrations};
use flate2::read::GzDecoder;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// Most bytes of a manifest: it names each blob once.
const MANIFEST_MOST: u64 = 256 << 20;

/// A backup that was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    pub manifest: Manifest,
    /// The life of the store that begins.
    pub incarnation: u64,
    /// Where the former folder is kept, if there was one.
    pub former: Option<PathBuf>,
}

/// Puts what is in an archive in the place of a Director's folder. `actor` is who does it.
///
/// # Errors
/// When a Director runs there, or the archive is not whole, damaged, of another installation or
/// newer than this program. Then nothing has changed.
pub fn restore(archive: &Path, folder: &Path, actor: &str) -> Result<Restored, BackupError> {
    let there = folder.is_dir();
    // Held until the end, so that no Director starts meanwhile.
    let held = there.then(|| lock(folder)).transpose();
    let _held = held.map_err(|source| match source {
        StartError::StateInUse { .. } => BackupError::Running {
            folder: folder.to_owned(),
        },
        source => BackupError::Folder {
            folder: folder.to_owned(),
            source: Box::new(source),
        },
    })?;
    let replaced = match there && folder.join(STORE).is_file() {
        true => replaced(&folder.join(STORE)),
        false => Replaced::default(),
    };
    let beside = folder.parent().unwrap_or(Path::new("/"));
    // The name it has once it is the former one, so that it is never called what it is not for
    // longer than it takes to unpack.
    let now = store::now();
    let kept = beside.join(format!(
        "{}.before-restore-{}",
        folder.file_name().unwrap_or_default().to_string_lossy(),
        store::show_time(now).replace([':', '.'], "-")
    ));
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&kept)
        .map_err(BackupError::file("write", &kept))?;
    let unpacked = prepare(archive, &kept, folder, &replaced, now, actor);
    let (manifest, incarnation) = match unpacked {
        Ok(found) => found,
        Err(error) => {
            // Ours, and nothing but what was just unpacked.
            let _ = std::fs::remove_dir_all(&kept);
            return Err(error);
        }
    };
    let flags = match there {
        true => RenameFlags::RENAME_EXCHANGE,
        false => RenameFlags::RENAME_NOREPLACE,
    };
    if let Err(error) = renameat2(AT_FDCWD, &kept, AT_FDCWD, folder, flags) {
        let _ = std::fs::remove_dir_all(&kept);
        return Err(BackupError::file("replace", folder)(error.into()));
    }
    File::open(beside)
        .and_then(|folder| folder.sync_all())
        .map_err(BackupError::file("write", beside))?;
    Ok(Restored {
        manifest,
        incarnation: incarnation.0,
        former: there.then_some(kept),
    })
}

/// Unpacks and checks everything, and makes the store outrank the world.
fn prepare(
    archive: &Path,
    to: &Path,
    folder: &Path,
    replaced: &Replaced,
    now: store::Millis,
    actor: &str,
) -> Result<(Manifest, Incarnation), BackupError> {
    let manifest = unpack(archive, to)?;
    let here = replaced.installation.as_ref();
    if let Some(here) = here.filter(|here| **here != manifest.installation) {
        return Err(BackupError::OtherInstallation {
            found: manifest.installation,
            here: here.clone(),
            folder: folder.to_owned(),
        });
    }
    let damaged = |why: String| BackupError::Damaged {
        path: archive.to_owned(),
        why,
    };
    let path = to.join(STORE);
    let mut store = Connection::open(&path).map_err(BackupError::store("opened"))?;
    let sound: String = store
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| damaged(format!("its store cannot be read ({error})")))?;
    if sound != "ok" {
        return Err(damaged(format!("its store is not sound ({sound})")));
    }
    let found = schema(&store)?;
    if found > migrations::KNOWN {
        return Err(BackupError::NewerSchema {
            program: manifest.program,
            found,
            known: migrations::KNOWN,
        });
    }
    let write = BackupError::store("brought up to date");
    migrations::migrate(&mut store, None).map_err(BackupError::store("brought up to date"))?;
    let incarnation =
        Incarnation::after(Incarnation(manifest.incarnation), replaced.incarnation, now);
    let change = store
        .transaction()
        .map_err(BackupError::store("brought up to date"))?;
    let told = format!("{} of {}", archive.display(), manifest.taken_at);
    let row = housekeeping::begin_audit(&change, now, actor, None, "restore_director", &told);
    let row = row.map_err(&write)?;
    outrank(&change, incarnation, &replaced.releases, now).map_err(&write)?;
    housekeeping::end_audit(&change, row, 200).map_err(&write)?;
    change
        .commit()
        .map_err(BackupError::store("brought up to date"))?;
    store
        .close()
        .map_err(|(_, error)| BackupError::store("brought up to date")(error))?;
    File::open(&path)
        .and_then(|file| file.sync_all())
        .and_then(|()| File::open(to)?.sync_all())
        .map_err(BackupError::file("write", &path))?;
    Ok((manifest, incarnation))
}

/// What is known of the store whose place is taken.
#[derive(Default)]
struct Replaced {
    incarnation: Option<Incarnation>,
    installation: Option<String>,
    releases: Former,
}

/// Reads it; a store that cannot be read is no reason not to restore.
fn replaced(path: &Path) -> Replaced {
    // Not read-only: what its last Director wrote may still lie beside it.
    let Ok(store) = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE) else {
        return Replaced::default();
    };
    Replaced {
        incarnation: Incarnation::of(&store).ok(),
        installation: store::meta(&store, "installation").ok().flatten(),
        releases: former_releases(&store).ok(),
    }
}

/// Unpacks an archive into an empty folder, as its manifest says and not otherwise.
fn unpack(archive: &Path, to: &Path) -> Result<Manifest, BackupError> {
    let file = File::open(archive).map_err(BackupError::file("read", archive))?;
    let strange = |why: String| BackupError::NotABackup {
        path: archive.to_owned(),
        why,
    };
    let damaged = |why: String| BackupError::Damaged {
        path: archive.to_owned(),
        why,
    };
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("its end is missing".to_owned()),
        _ => damaged(error.to_string()),
    };
    let mut unpacked = tar::Archive::new(GzDecoder::new(io::BufReader::new(file)));
    let mut entries = unpacked
        .entries()
        .map_err(|error| strange(error.to_string()))?;
    let first = match entries.next() {
        Some(Ok(entry)) => entry,
        Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged("its end is missing".to_owned()));
        }
        Some(Err(error)) => return Err(strange(error.to_string())),
        None => return Err(strange("it is empty".to_owned())),
    };
    if first.path().map_err(broken)?.as_os_str() != MANIFEST {
        return Err(strange(format!("it does not begin with {MANIFEST}")));
    }
    let mut text = Vec::new();
    first
        .take(MANIFEST_MOST)
        .read_to_end(&mut text)
        .map_err(broken)?;
    let manifest = read_manifest(&text).map_err(|error| match error {
        Unreadable::Newer { program, found } => BackupError::NewerFormat { program, found },
        Unreadable::Strange(why) => strange(why),
    })?;
    if manifest.schema > migrations::KNOWN {
        return Err(BackupError::NewerSchema {
            program: manifest.program,
            found: manifest.schema,
            known: migrations::KNOWN,
        });
    }
    let mut missing: BTreeMap<&str, &Member> = manifest
        .members
        .iter()
        .map(|member| (member.name.as_str(), member))
        .collect();
    if !missing.contains_key(STORE) {
        return Err(strange("it holds no store".to_owned()));
    }
    for entry in entries {
        let entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.to_string_lossy().into_owned();
        let Some(member) = missing.remove(name.as_str()) else {
            return Err(damaged(format!(
                "it holds '{name}', which it does not name"
            )));
        };
        let path = inside(to, &name)
            .ok_or_else(|| damaged(format!("'{name}' would lie outside the folder")))?;
        let mut hashing = Hashing {
            inner: entry,
            hash: Sha256::new(),
        };
        let size = write(&path, &mut hashing).map_err(|error| match error {
            WriteError::Read(error) => broken(error),
            WriteError::Write(error) => BackupError::file("write", &path)(error),
        })?;
        if size != member.size || hex::encode(hashing.hash.finalize()) != member.sha256 {
            return Err(damaged(format!("'{name}' is not what was packed")));
        }
    }
    if let Some(name) = missing.keys().next() {
        return Err(damaged(format!("'{name}' is missing")));
    }
    // Some of it may lie behind the last member: the checksum of the whole.
    io::copy(&mut unpacked.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(manifest)
}

enum Unreadable {
    Newer { program: String, found: u32 },
    Strange(String),
}

fn read_manifest(text: &[u8]) -> Result<Manifest, Unreadable> {
    let value: serde_json::Value = serde_json::from_slice(text)
        .map_err(|error| Unreadable::Strange(format!("{MANIFEST} cannot be read: {error}")))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    let format = format.and_then(|format| u32::try_from(format).ok());
    match format {
        Some(found) if found > FORMAT => Err(Unreadable::Newer {
            program: value
                .get("program")
                .and_then(serde_json::Value::as_str)
                .unwrap_or("of a later time")
                .to_owned(),
            found,
        }),
        _ => serde_json::from_value(value)
            .map_err(|error| Unreadable::Strange(format!("{MANIFEST} cannot be read: {error}"))),
    }
}

/// Where a member lies; nothing for one that would lie elsewhere.
fn inside(to: &Path, name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let parts: Vec<_> = path.components().collect();
    let plain = parts
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    (plain && (1..=2).contains(&parts.len())).then(|| to.join(path))
}

enum WriteError {
    Read(io::Error),
    Write(io::Error),
}

fn write(path: &Path, from: &mut impl Read) -> Result<u64, WriteError> {
    use std::io::Write;
    if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(folder)
            .map_err(WriteError::Write)?;
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(WriteError::Write)?;
    let (mut size, mut buffer) = (0, vec![0; 128 << 10]);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(WriteError::Read(error)),
        };
        let part = buffer.get(..count).unwrap_or_default();
        file.write_all(part).map_err(WriteError::Write)?;
        size += count as u64;
    }
    file.sync_all().map_err(WriteError::Write)?;
    Ok(size)
}
