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
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::{NamedTempFile, TempPath};
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

/// Opens an upload for one at a time.
fn open(place: &Place) -> Result<Flock<File>, DirectorError> {
    std::fs::create_dir_all(&place.folder).map_err(failed)?;
    if !place.file.exists() {
        let there = std::fs::read_dir(&place.folder).map_err(failed)?.count();
        if there >= MOST {
            return Err(DirectorError::quota(
                "too_many_uploads",
                format!("this service has {MOST} unfinished uploads already"),
            )
            .hint("finish one of them, or wait: they are forgotten after a while"));
        }
    }
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(&place.file)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => DirectorError::conflict(
            "upload_busy",
            "somebody is sending this very upload right now",
        )
        .hint("try again in a moment")
        .retry_after(1),
        error => failed(error),
    })
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

/// Takes a whole upload. One whose content is not what was announced is forgotten.
pub async fn finish(
    shared: &Shared,
    service: &ServiceId,
    sha256: &str,
) -> Result<Upload, DirectorError> {
    let place = place(shared, service, sha256)?;
    let wanted = sha256.to_owned();
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
        // From here on it is a file that goes when nobody keeps it.
        let path = TempPath::try_from_path(place.file.clone()).map_err(failed)?;
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
    for service in services {
        let service = service.map_err(failed)?.path();
        for part in std::fs::read_dir(&service).map_err(failed)? {
            let part = part.map_err(failed)?;
            let since = part.metadata().and_then(|found| found.modified());
            let old = |since: SystemTime| since.elapsed().is_ok_and(|past| past >= age);
            if since.is_ok_and(old) {
                tracing::info!(upload = %part.path().display(), "an unfinished upload goes");
                std::fs::remove_file(part.path()).map_err(failed)?;
            }
        }
        // Only when it is empty.
        let _ = std::fs::remove_dir(&service);
    }
    Ok(())
}
