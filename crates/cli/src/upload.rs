//! Sending an archive to the Director: what is small at once, what is large so that it goes on where
//! it broke off. What becomes of it there is the commands' business.

use crate::exit::{CliError, Outcome};
use crate::pack;
use crate::session::Session;
use crate::target::ServiceTarget;
use crate::values::size;
use bytes::Bytes;
use conpaas_client::{AppendUploadQuery, Client, ClientError, Upload, UploadCodeQuery};
use conpaas_model::api::Code;
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How much is read from the disk at once.
const PIECE: usize = 256 * 1024;
/// Up to this many bytes, sending all of it again is no matter.
const AT_ONCE: u64 = 8 << 20;
/// How long an upload that does not get on is tried again.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_secs(1);

/// Uploads an archive, or a folder, which is packed.
pub async fn upload(
    session: &Session,
    client: &Client,
    target: &ServiceTarget,
    source: &Path,
    description: Option<String>,
) -> Result<Code, CliError> {
    let unreadable = |error: io::Error| {
        CliError::usage(format!("{} cannot be read", source.display())).because(&error)
    };
    let metadata = std::fs::metadata(source).map_err(unreadable)?;
    // `.` and `..` have no name of their own.
    let whole = std::fs::canonicalize(source).map_err(unreadable)?;
    let name = whole.file_name().map_or_else(
        || "code".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let (file, filename) = if metadata.is_dir() {
        (pack::folder(source)?, format!("{name}.tar.gz"))
    } else {
        (File::open(source).map_err(unreadable)?, name)
    };
    let length = file.metadata().map_err(unreadable)?.len();
    let mut query = UploadCodeQuery {
        filename: Some(filename),
        description,
        ..Default::default()
    };
    let bar = session.printer.bytes_bar(Some(length));
    let large = length > AT_ONCE;
    let sent = async {
        let (app, service) = (&target.app, &target.service);
        if !large {
            let content = pieces(&file, 0, &bar, length).map_err(unreadable)?;
            return Ok(client.upload_code(app, service, &query, content).await?);
        }
        let sha256 = hash(&file).map_err(unreadable)?;
        let archive = Archive {
            file: &file,
            sha256: &sha256,
            length,
        };
        query.upload = Some(sha256.clone());
        send(session, client, target, &archive, &bar).await?;
        match client.upload_code(app, service, &query, nothing()).await {
            // All of it is there, and it is not what was sent: a disk or a file has changed under it.
            Err(ClientError::Answered { body, .. }) if body.code == "upload_incomplete" => {
                let note = "what came of an earlier attempt is damaged; sending it anew";
                session.printer.note(note);
                client.discard_upload(app, service, &sha256).await?;
                send(session, client, target, &archive, &bar).await?;
                Ok(client.upload_code(app, service, &query, nothing()).await?)
            }
            other => Ok(other?),
        }
    };
    let outcome = tokio::select! {
        outcome = sent => outcome,
        _ = tokio::signal::ctrl_c() => {
            let error = CliError::failed("the upload was broken off; nothing was registered");
            Err(if large { error.hint("the same command goes on from there") } else { error })
        }
    };
    bar.finish_and_clear();
    outcome
}

/// The body of a call whose content came before.
fn nothing() -> Upload {
    Upload::stream(futures::stream::empty(), Some(0))
}

/// A large archive on its way.
struct Archive<'a> {
    file: &'a File,
    sha256: &'a str,
    length: u64,
}

fn hash(mut file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece)?;
        match piece.get(..read) {
            Some(read) if !read.is_empty() => hash.update(read),
            _ => break,
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// The file's bytes from `offset` on, counted by the bar.
fn pieces(file: &File, offset: u64, bar: &ProgressBar, length: u64) -> io::Result<Upload> {
    bar.set_position(offset);
    let file = Arc::new(file.try_clone()?);
    let bar = bar.clone();
    let pieces = futures::stream::try_unfold(offset, move |at| {
        let (bar, file) = (bar.clone(), file.clone());
        async move {
            // At a place of its own: a read that an attempt before this left behind moves nothing.
            let read = move || {
                let mut piece = vec![0; PIECE];
                let read = file.read_at(&mut piece, at)?;
                piece.truncate(read);
                Ok::<_, io::Error>(piece)
            };
            let piece = tokio::task::spawn_blocking(read)
                .await
                .map_err(io::Error::other)??;
            let read = piece.len() as u64;
            bar.inc(read);
            Ok((read > 0).then(|| (Bytes::from(piece), at + read)))
        }
    });
    Ok(Upload::stream(pieces, Some(length.saturating_sub(offset))))
}

/// Whether an upload may well go on in a moment: the Director restarts, a connection broke off, or
/// what broke off has not been noticed there yet.
fn passes(error: &ClientError) -> bool {
    match error {
        ClientError::NotRunning { .. }
        | ClientError::Unreachable { .. }
        | ClientError::BrokeOff { .. } => true,
        ClientError::Answered { status, body } => {
            *status == 503 && body.code != "disk_full"
                || ["upload_busy", "offset_moved", "upload_cut_off"].contains(&&*body.code)
        }
        _ => false,
    }
}

/// Sends what the Director does not have yet, however often the connection breaks off.
async fn send(
    session: &Session,
    client: &Client,
    target: &ServiceTarget,
    archive: &Archive<'_>,
    bar: &ProgressBar,
) -> Outcome {
    // Where it stood when it last failed, and since when it has not got any further.
    let (mut stands, mut stuck): (Option<u64>, Option<Instant>) = (None, None);
    loop {
        let found = client
            .show_upload(&target.app, &target.service, archive.sha256)
            .await;
        let outcome = match found {
            Ok(progress) if progress.offset >= archive.length => return Ok(()),
            Ok(progress) => {
                let offset = progress.offset;
                if offset > 0 && stands != Some(offset) {
                    let (there, all) = (size(offset), size(archive.length));
                    session
                        .printer
                        .note(&format!("{there} of {all} are there; going on"));
                }
                if stands.replace(offset) != Some(offset) {
                    stuck = None;
                }
                rest(client, target, archive, offset, bar).await?
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => {}
            Err(error) => {
                let since = *stuck.get_or_insert_with(Instant::now);
                if !passes(&error) || since.elapsed() >= PATIENCE {
                    return Err(error.into());
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// One attempt at all that is missing from `offset` on.
async fn rest(
    client: &Client,
    target: &ServiceTarget,
    archive: &Archive<'_>,
    offset: u64,
    bar: &ProgressBar,
) -> Result<Result<(), ClientError>, CliError> {
    let unreadable =
        |error: io::Error| CliError::failed("the archive cannot be read").because(&error);
    let content = pieces(archive.file, offset, bar, archive.length).map_err(unreadable)?;
    let query = AppendUploadQuery {
        size: Some(archive.length),
        offset: Some(offset),
    };
    let sent = client
        .append_upload(
            &target.app,
            &target.service,
            archive.sha256,
            &query,
            content,
        )
        .await;
    Ok(sent.map(drop))
}
