//! Sends what daemons of this node wrote to the Director, where it outlives the machine. Which
//! logs there are is the roles' business: every file `ROLE-NAME.log` in the log folder is one,
//! with `ROLE-NAME.log.1` set aside before it.

use bytes::Bytes;
use conpaas_model::protocol::{LogPosition, MAX_LOG_PIECE, PATH_LOGS};
use conpaas_wire::{Client, WireError, full};
use http::Method;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How often logs are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a role that has ended is kept waiting for its last lines to be sent.
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);
/// Pieces of one log in one look; more waits for the next, so that no log holds up another.
const PIECES: usize = 4;
/// What may wait to be sent of one log; a daemon that writes faster loses lines, and is told so.
const MOST_BEHIND: u64 = 8 << 20;

/// Asks for everything that is written to be sent now.
#[derive(Clone)]
pub struct Flusher(mpsc::Sender<oneshot::Sender<()>>);

impl Flusher {
    /// Waits until what is written by now was sent, or for a few seconds.
    pub async fn flush(&self) {
        let (done, sent) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // Without a Director the lines stay here, and so does the machine.
            let _ = tokio::time::timeout(FLUSH_DEADLINE, sent).await;
        }
    }
}

/// Sends logs until everything that could ask it to flush is gone.
pub fn start(
    folder: PathBuf,
    director: watch::Receiver<Option<Client>>,
) -> (Flusher, impl Future<Output = ()> + Send + 'static) {
    let (ask, asked) = mpsc::channel(16);
    (Flusher(ask), run(folder, director, asked))
}

async fn run(
    folder: PathBuf,
    director: watch::Receiver<Option<Client>>,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut sources = BTreeMap::new();
    let mut clock = tokio::time::interval(LOOK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (last, done) = tokio::select! {
            done = asked.recv() => match done {
                Some(done) => (true, Some(done)),
                None => return,
            },
            _ = clock.tick() => (false, None),
        };
        let client = director.borrow().clone();
        if let Some(client) = client
            && let Err(error) = send_all(&folder, &client, &mut sources, last).await
        {
            tracing::debug!(
                error = crate::party::chained(&error),
                "logs wait to be sent"
            );
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }
}

/// How far each log was sent; a log that is not there has not been asked about.
type Sources = BTreeMap<String, LogPosition>;

async fn send_all(
    folder: &Path,
    client: &Client,
    sources: &mut Sources,
    last: bool,
) -> Result<(), WireError> {
    for source in names(folder) {
        let known = match sources.get(&source) {
            Some(known) => known.clone(),
            // An earlier agent of this machine may have sent some.
            None => send(client, &source, &LogPosition::default(), Bytes::new()).await?,
        };
        let mut known = known;
        for _ in 0..PIECES {
            let (path, at) = (folder.join(format!("{source}.log")), known.clone());
            let piece = tokio::task::spawn_blocking(move || next_piece(&path, &at, last))
                .await
                .map_err(io::Error::other)
                .and_then(|piece| piece);
            match piece {
                Ok(Some((from, bytes))) => {
                    let end = from.offset + bytes.len() as u64;
                    let taken = send(client, &source, &from, bytes).await?;
                    known = from;
                    known.offset = if taken.file == known.file {
                        taken.offset
                    } else {
                        end
                    };
                    sources.insert(source.clone(), known.clone());
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, source, "a log cannot be read");
                    break;
                }
            }
        }
        sources.entry(source).or_insert(known);
    }
    Ok(())
}

async fn send(
    client: &Client,
    source: &str,
    at: &LogPosition,
    bytes: Bytes,
) -> Result<LogPosition, WireError> {
    let file = if at.file.is_empty() { "0" } else { &at.file };
    let path = format!("{PATH_LOGS}/{source}?file={file}&offset={}", at.offset);
    client.upload(Method::POST, &path, full(bytes)).await
}

/// The logs of a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".log")?.to_owned()))
        .collect();
    found.sort();
    found
}

/// A log with a name for its file: number and birth, as numbers are used again.
fn open(path: &Path) -> io::Result<Option<(File, String)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    // Not every file system knows when a file was born.
    let born = found.created().ok();
    let born = born.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let born = born.map_or(0, |since| since.as_micros());
    Ok(Some((file, format!("{}{born:016}", found.ino()))))
}

/// What to send next of a log, and where it lies; `None` when all was sent. Lines are sent whole,
/// unless it is for the `last` time.
fn next_piece(
    log: &Path,
    known: &LogPosition,
    last: bool,
) -> io::Result<Option<(LogPosition, Bytes)>> {
    let mut aside = log.as_os_str().to_owned();
    aside.push(".1");
    let (before, current) = (open(Path::new(&aside))?, open(log)?);
    let is_known = |opened: &Option<(File, String)>| {
        opened.as_ref().is_some_and(|(_, name)| *name == known.file)
    };
    // What was set aside was sent long ago if the current file is known. If neither is, it was
    // set aside more than once between two looks, and what is there is sent.
    let before = before.filter(|_| !is_known(&current));
    for (opened, ended) in [(before, true), (current, false)] {
        let Some((mut file, name)) = opened else {
            continue;
        };
        let found = file.metadata()?;
        let offset = if name == known.file { known.offset } else { 0 };
        // Written anew in place: nothing of it was sent.
        let offset = if offset > found.len() { 0 } else { offset };
        let behind = found.len() - offset;
        if behind > MOST_BEHIND {
            let skip = behind - MOST_BEHIND / 2;
            let said =
                format!("[{skip} bytes of this log were not kept: it was written too fast]\n");
            // Said in place of the skipped bytes' end, so that offsets stay those of the file.
            let from = LogPosition {
                file: name,
                offset: offset + skip - said.len() as u64,
            };
            return Ok(Some((from, said.into())));
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(MAX_LOG_PIECE as u64)
            .read_to_end(&mut bytes)?;
        if !(last || ended) && bytes.len() < MAX_LOG_PIECE {
            let whole = bytes
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            bytes.truncate(whole);
        }
        if !bytes.is_empty() {
            let from = LogPosition { file: name, offset };
            return Ok(Some((from, bytes.into())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Reads a log to its end as the Director would get it.
    fn all(log: &Path, known: &mut LogPosition, last: bool) -> String {
        let mut text = String::new();
        while let Some((from, bytes)) = next_piece(log, known, last).unwrap() {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
            known.file = from.file;
            known.offset = from.offset + bytes.len() as u64;
        }
        text
    }

    #[test]
    fn lines_are_sent_whole_and_once_over_files_that_are_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("web-access.log");
        let mut known = LogPosition::default();
        assert!(next_piece(&log, &known, false).unwrap().is_none());
        std::fs::write(&log, "one\ntw").unwrap();
        assert_eq!(names(folder.path()), ["web-access"]);
        assert_eq!(all(&log, &mut known, false), "one\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        file.write_all(b"o\nthree\n").unwrap();
        std::fs::rename(&log, folder.path().join("web-access.log.1")).unwrap();
        std::fs::write(&log, "four\nfi").unwrap();
        assert_eq!(all(&log, &mut known, false), "two\nthree\nfour\n");
        assert_eq!(all(&log, &mut known, true), "fi");
        assert_eq!(all(&log, &mut known, true), "");
        // Set aside twice between two looks: what is left is sent.
        let aside = folder.path().join("web-access.log.1");
        std::fs::remove_file(&aside).unwrap();
        std::fs::remove_file(&log).unwrap();
        std::fs::write(&aside, "seven\n").unwrap();
        std::fs::write(&log, "eight\n").unwrap();
        assert_eq!(all(&log, &mut known, false), "seven\neight\n");
    }

    #[test]
    fn one_that_is_written_too_fast_is_cut_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("web-access.log");
        std::fs::write(&log, vec![b'x'; 9 << 20]).unwrap();
        let mut known = LogPosition::default();
        let text = all(&log, &mut known, true);
        assert!(
            text.starts_with(&format!("[{} bytes", 5 << 20)),
            "{}",
            &text[..60]
        );
        let told = text.find('\n').unwrap() + 1;
        assert_eq!(text.len() - told, 4 << 20);
        assert_eq!(known.offset, 9 << 20);
    }
}
