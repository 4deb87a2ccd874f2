//! Blobs: files in the state folder, named by the SHA-256 of their content. Records say which
//! ones are needed; what no record names is collected.

use crate::archive::{self, ArchiveError, Bounds, Normalised};
use crate::config::DirectorConfig;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::codes;
use bytes::Bytes;
use conpaas_kill_points::{KillPoint, reached};
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

/// An uploaded archive, not yet kept.
pub struct Upload {
    file: NamedTempFile,
    pub size: u64,
    pub sha256: String,
}

/// An upload that came in before its handler runs, to be taken once.
#[derive(Clone)]
pub struct Received(Arc<Mutex<Option<Upload>>>);

impl Upload {
    pub fn new(file: NamedTempFile, size: u64, sha256: String) -> Self {
        Self { file, size, sha256 }
    }
}

impl Received {
    pub fn new(upload: Upload) -> Self {
        Self(Arc::new(Mutex::new(Some(upload))))
    }

    pub fn take(&self) -> Option<Upload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How many bytes of an upload may come in between two looks at the disk.
const LOOK_EVERY: u64 = 16 << 20;

/// Bytes that uploads may still take of the state folder's disk; an error when there are none.
pub(crate) fn room(config: &DirectorConfig) -> Result<u64, DirectorError> {
    let disk = nix::sys::statvfs::statvfs(&config.state).map_err(failed)?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    match free.saturating_sub(config.disk_reserve) {
        0 => Err(no_room(free, config.disk_reserve)),
        room => Ok(room),
    }
}

fn no_room(free: u64, reserve: u64) -> DirectorError {
    DirectorError::unavailable(
        "disk_full",
        format!(
            "the Director's disk has no room for this: {} MiB are free, of which {} MiB are kept back",
            free >> 20,
            reserve >> 20
        ),
    )
    .hint("delete code versions that are not needed, or ask the operator for a larger disk")
}

pub(crate) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DirectorError {
    DirectorError::internal("the upload could not be kept", error)
}

/// Streams an upload to a temporary file; one that is cut off leaves nothing.
pub async fn receive<S, E>(shared: &Shared, content: S) -> Result<Upload, DirectorError>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: std::fmt::Display,
{
    let max = shared.config.max_upload;
    room(&shared.config)?;
    let file = NamedTempFile::new_in(shared.config.uploads()).map_err(failed)?;
    let mut out = tokio::fs::File::from_std(file.reopen().map_err(failed)?);
    let (mut hash, mut size, mut looked) = (Sha256::new(), 0u64, 0u64);
    let mut content = std::pin::pin!(content);
    while let Some(chunk) = content.next().await {
        let chunk = chunk.map_err(|error| {
            DirectorError::invalid("upload_cut_off", format!("the upload broke off: {error}"))
                .hint("send it again")
        })?;
        size = size.saturating_add(chunk.len() as u64);
        if size > max {
            return Err(DirectorError::too_large(format!(
                "an archive may have at most {} MiB",
                max >> 20
            )));
        }
        if size - looked >= LOOK_EVERY {
            room(&shared.config)?;
            looked = size;
        }
        hash.update(&chunk);
        out.write_all(&chunk).await.map_err(failed)?;
    }
    out.flush().await.map_err(failed)?;
    Ok(Upload::new(file, size, hex::encode(hash.finalize())))
}

fn refused(error: ArchiveError) -> DirectorError {
    match error {
        ArchiveError::Write(source) => failed(source),
        ArchiveError::TooLarge { .. } | ArchiveError::TooMany { .. } => {
            DirectorError::too_large(error.to_string())
        }
        error => DirectorError::invalid("bad_archive", error.to_string())
            .hint("pack the application's folder anew: tar czf app.tar.gz -C FOLDER ."),
    }
}

/// Moves a finished file to its name, durably; the same content twice is one file.
fn keep(file: NamedTempFile, blobs: &Path, sha256: &str) -> Result<(), DirectorError> {
    let target = blobs.join(sha256);
    if target.exists() {
        return Ok(());
    }
    file.as_file().sync_all().map_err(failed)?;
    file.persist(target).map_err(failed)?;
    std::fs::File::open(blobs)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    reached(KillPoint::CodeStored);
    Ok(())
}

/// Checks an upload and keeps both it and its normalised form. To be called, and followed by
/// the records that name them, under a reading guard of `Shared::blobs`.
pub async fn accept(shared: &Shared, upload: Upload) -> Result<Normalised, DirectorError> {
    let (blobs, uploads) = (shared.config.blobs(), shared.config.uploads());
    let (room, max, reserve) = (
        room(&shared.config)?,
        shared.config.max_unpacked,
        shared.config.disk_reserve,
    );
    let bounds = Bounds {
        unpacked: max.min(room),
        members: shared.config.max_members,
    };
    let work = move || {
        let mut plain = NamedTempFile::new_in(uploads).map_err(failed)?;
        let found = archive::normalise(upload.file.path(), plain.as_file_mut(), bounds);
        let found = found.map_err(|error| match error {
            ArchiveError::TooLarge { bytes } if bytes < max => {
                no_room(room.saturating_add(reserve), reserve)
            }
            error => refused(error),
        })?;
        keep(plain, &blobs, &found.sha256)?;
        keep(upload.file, &blobs, &upload.sha256)?;
        Ok(found)
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Where a blob's bytes are.
pub fn path(shared: &Shared, sha256: &str) -> PathBuf {
    shared.config.blobs().join(sha256)
}

/// Removes blobs that no record names.
pub async fn collect(shared: &Shared) -> Result<(), DirectorError> {
    let _alone = shared.blobs.write().await;
    let needed = shared.store.read(|tx| codes::blobs(tx)).await?;
    let broken = |error| DirectorError::internal("blobs could not be collected", error);
    let mut folder = tokio::fs::read_dir(shared.config.blobs())
        .await
        .map_err(broken)?;
    while let Some(entry) = folder.next_entry().await.map_err(broken)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !needed.contains(&name) {
            tracing::info!(blob = name, "a blob that nothing names goes");
            tokio::fs::remove_file(entry.path()).await.map_err(broken)?;
        }
    }
    Ok(())
}
