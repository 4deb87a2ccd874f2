//! Uploads that go on where they broke off: archives whose SHA-256 is known beforehand, received
//! piece by piece into a file of their own until all of it is there. What becomes of a whole one is
//! `blobs`' business.

use crate::blobs::{Upload, failed, room};
use crate::error::DirectorError;
use crate::shared::Shared;
use bytes::Bytes;
use conpaas_model::ids::ServiceId;
use futures::{Stream, StreamExt};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

/// How many unfinished uploads a service may have.
const MOST: usize = 4;
/// How many bytes may come in between two looks at the disk.
const LOOK_EVERY: u64 = 16 << 20;
/// How much of a whole upload is read at once.
const PIECE: usize = 1 << 20;

/// Where what is there of an upload is kept.
struct Place {
    folder: PathBuf,
    file: PathBuf,
}

fn place(shared: &Shared, service: &ServiceId, sha256: &str) -> Result<Place, DirectorError> {
    let good = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    // The name of a file: what is no hash must not get any further.
    if sha256.len() != 64 || !sha256.bytes().all(good) {
        return Err(DirectorError::invalid(
            "bad_hash",
            "an upload is named by the SHA-256 of its content: 64 hexadecimal digits in lower case",
        ));
    }
    let folder = shared.config.parts().join(service.as_str());
    let file = folder.join(sha256);
    Ok(Place { folder, file })
}

/// How many bytes of an upload are there.
pub fn offset(shared: &Shared, service: &ServiceId, sha256: &str) -> Result<u64, DirectorError> {
    length(&place(shared, service, sha256)?.file)
}

fn length(path: &Path) -> Result<u64, DirectorError> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(failed(error)),
    }
}

fn busy() -> DirectorError {
    DirectorError::conflict(
        "upload_busy",
        "somebody is sending this very upload right now",
    )
    .hint("try again in a moment")
    .retry_after(1)
}

/// Opens an upload for one at a time.
fn open(place: &Place) -> Result<Flock<File>, DirectorError> {
    std::fs::create_dir_all(&place.folder).map_err(failed)?;
    if !place.file.exists() {
        make_room(&place.folder)?;
    }
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(&place.file)
        .map_err(failed)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    let lock = lock.map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => busy(),
        error => failed(error),
    })?;
    // Taken, or forgotten, between the two: what was opened is somebody else's now.
    let ours = lock.metadata().map_err(failed)?.ino();
    match std::fs::metadata(&place.file) {
        Ok(found) if found.ino() == ours => Ok(lock),
        _ => Err(busy()),
    }
}

/// Forgets the oldest uploads that nobody is sending, until there is room for another.
fn make_room(folder: &Path) -> Result<(), DirectorError> {
    let mut parts = parts(folder)?;
    parts.sort_by_key(|(_, found)| found.modified().ok());
    let mut surplus = (parts.len() + 1).saturating_sub(MOST);
    for (path, _) in parts {
        if surplus > 0 && forget_one(&path)? {
            surplus -= 1;
        }
    }
    if surplus == 0 {
        return Ok(());
    }
    Err(DirectorError::quota(
        "too_many_uploads",
        format!("{MOST} other archives are on their way to this service right now"),
    )
    .hint("wait for one of them to end"))
}

/// What is there in a folder, with its metadata; what goes meanwhile is left out.
fn parts(folder: &Path) -> Result<Vec<(PathBuf, Metadata)>, DirectorError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let entries = entries.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let with_metadata = |entry: std::fs::DirEntry| Some((entry.path(), entry.metadata().ok()?));
    Ok(entries.into_iter().filter_map(with_metadata).collect())
}

/// Removes an upload unless somebody is sending it; says whether it is gone.
fn forget_one(path: &Path) -> Result<bool, DirectorError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(failed(error)),
    };
    let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        return Ok(false);
    };
    std::fs::remove_file(path).map_err(failed)?;
    Ok(true)
}

/// Bytes that unfinished uploads to these services take, but for one.
pub fn bytes_beside(
    shared: &Shared,
    services: &[ServiceId],
    (service, sha256): (&ServiceId, &str),
) -> Result<u64, DirectorError> {
    let mut bytes = 0u64;
    for id in services {
        for (path, found) in parts(&shared.config.parts().join(id.as_str()))? {
            let is_this = id == service && path.ends_with(sha256);
            bytes = bytes.saturating_add(if is_this { 0 } else { found.len() });
        }
    }
    Ok(bytes)
}

/// Adds what comes in at `offset`, where the upload stands, and gives where it stands then. What
/// came in before it breaks off stays.
pub async fn append<S, E>(
    shared: &Shared,
    service: &ServiceId,
    (sha256, size): (&str, u64),
    offset: u64,
    content: S,
) -> Result<u64, DirectorError>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: std::fmt::Display,
{
    let max = shared.config.max_upload;
    if size > max {
        return Err(DirectorError::too_large(format!(
            "an archive may have at most {} MiB",
            max >> 20
        )));
    }
    room(&shared.config)?;
    let place = place(shared, service, sha256)?;
    let lock = open(&place)?;
    let stands = length(&place.file)?;
    if stands != offset {
        return Err(DirectorError::conflict(
            "offset_moved",
            format!("{stands} bytes of this upload are there, not {offset}"),
        )
        .hint("ask how much is there, and go on from it"));
    }
    let mut out = tokio::fs::File::from_std(lock.try_clone().map_err(failed)?);
    let (mut at, mut looked) = (offset, offset);
    let mut content = std::pin::pin!(content);
    let outcome = loop {
        let chunk = match content.next().await {
            None => break Ok(()),
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => {
                let text = format!("the upload broke off: {error}");
                break Err(DirectorError::invalid("upload_cut_off", text)
                    .hint("ask how much is there, and go on from it"));
            }
        };
        let after = at.saturating_add(chunk.len() as u64);
        if after > size {
            break Err(DirectorError::invalid(
                "upload_too_long",
                format!("more came than the {size} bytes that were announced"),
            ));
        }
        if after - looked >= LOOK_EVERY {
            if let Err(error) = room(&shared.config) {
                break Err(error);
            }
            looked = after;
        }
        if let Err(error) = out.write_all(&chunk).await {
            break Err(failed(error));
        }
        at = after;
    };
    out.flush().await.map_err(failed)?;
    out.sync_data().await.map_err(failed)?;
    drop(lock);
    outcome.map(|()| at)
}

/// Takes a whole upload. One that is not whole, or not what was announced, stays as it is.
pub async fn finish(
    shared: &Shared,
    service: &ServiceId,
    sha256: &str,
) -> Result<Upload, DirectorError> {
    let place = place(shared, service, sha256)?;
    let (wanted, uploads) = (sha256.to_owned(), shared.config.uploads());
    if !place.file.exists() {
        return Err(
            DirectorError::not_found(format!("nothing of the upload {wanted} is there"))
                .hint("send it first"),
        );
    }
    let work = move || {
        let mut lock = open(&place)?;
        lock.seek(SeekFrom::Start(0)).map_err(failed)?;
        let (mut hash, mut size) = (Sha256::new(), 0u64);
        let mut piece = vec![0; PIECE];
        loop {
            let read = lock.read(&mut piece).map_err(failed)?;
            let Some(read) = piece.get(..read).filter(|read| !read.is_empty()) else {
                break;
            };
            hash.update(read);
            size += read.len() as u64;
        }
        let found = hex::encode(hash.finalize());
        if found != wanted {
            return Err(DirectorError::invalid(
                "upload_incomplete",
                format!("the {size} bytes that are there are not the whole upload {wanted}, or not its own"),
            )
            .hint("go on from where it stands; if nothing is missing, discard it and send it anew"));
        }
        // From here on it is a file of ours that goes when nobody keeps it. Nobody can open it for
        // writing any more, and whoever waits for the lock finds that it is another.
        let (_, path) = NamedTempFile::new_in(uploads).map_err(failed)?.into_parts();
        std::fs::rename(&place.file, &path).map_err(failed)?;
        let file = lock.unlock().map_err(|(_, error)| failed(error))?;
        Ok(Upload::new(
            NamedTempFile::from_parts(file, path),
            size,
            found,
        ))
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Forgets what is there of an upload.
pub fn discard(shared: &Shared, service: &ServiceId, sha256: &str) -> Result<(), DirectorError> {
    let place = place(shared, service, sha256)?;
    if !place.file.exists() {
        return Ok(());
    }
    let _lock = open(&place)?;
    std::fs::remove_file(&place.file).map_err(failed)
}

/// Forgets uploads that nobody has gone on with for so long.
pub fn forget(shared: &Shared, age: Duration) -> Result<(), DirectorError> {
    let folder = shared.config.parts();
    let services = match std::fs::read_dir(&folder) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let old = |since: SystemTime| since.elapsed().is_ok_and(|past| past >= age);
    for service in services {
        let service = service.map_err(failed)?.path();
        for (path, found) in parts(&service)? {
            if found.modified().is_ok_and(old) && forget_one(&path)? {
                tracing::info!(upload = %path.display(), "an unfinished upload went");
            }
        }
        // Only when it is empty.
        let _ = std::fs::remove_dir(&service);
    }
    Ok(())
}
