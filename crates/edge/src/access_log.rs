//! The access log: one line for each request, in a file that is put aside when it has grown.
//!
//! `TIME CLIENT HOST METHOD PATH?+N STATUS BYTES MS APP/SERVICE/NODE`. A query may hold secrets:
//! only its length `N` is kept. A status with `!` is of an answer that broke off. Lines are
//! written by a thread of their own; when it cannot keep up, lines are counted and left out
//! rather than requests held up.

use crate::upstream::Lease;
use jiff::Timestamp;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Instant;

const QUEUE: usize = 8192;

/// Takes lines from all connections.
#[derive(Clone)]
pub struct AccessLog {
    lines: SyncSender<String>,
    left_out: Arc<AtomicU64>,
}

/// Waits for the writer to have written everything.
pub struct Writer(std::thread::JoinHandle<()>);

impl Writer {
    /// Returns when every [`AccessLog`] is gone and its lines are in the file.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the access log's writer ended badly");
        }
    }
}

impl AccessLog {
    /// Opens the log and starts its writer.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not started.
    pub fn open(path: PathBuf, max_bytes: u64, keep: u32) -> io::Result<(Self, Writer)> {
        let file = RotatingFile::open(path, max_bytes, keep)?;
        let (lines, queue) = sync_channel(QUEUE);
        let left_out = Arc::new(AtomicU64::new(0));
        let counted = left_out.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(file, &queue, &counted))?;
        Ok((Self { lines, left_out }, Writer(thread)))
    }

    /// Adds a line to the file.
    pub fn line(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_all(mut file: RotatingFile, queue: &Receiver<String>, left_out: &AtomicU64) {
    let mut troubled = false;
    let mut note = |outcome: io::Result<()>| match outcome {
        Ok(()) => troubled = false,
        Err(error) if !troubled => {
            troubled = true;
            tracing::warn!(%error, "cannot write the access log");
        }
        Err(_) => {}
    };
    loop {
        let line = match queue.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                note(file.flush());
                match queue.recv() {
                    Ok(line) => line,
                    Err(_) => break,
                }
            }
        };
        note(file.write_line(&line));
        let missing = left_out.swap(0, Ordering::Relaxed);
        if missing > 0 {
            note(file.write_line(&format!("{} - {missing} lines left out", Timestamp::now())));
        }
    }
    note(file.flush());
}

struct RotatingFile {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    size: u64,
    out: BufWriter<File>,
}

impl RotatingFile {
    fn open(path: PathBuf, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path,
            max_bytes,
            keep,
            size,
            out: BufWriter::new(file),
        })
    }

    fn write_line(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.size > 0 && self.size + length > self.max_bytes {
            self.put_aside()?;
        }
        self.out.write_all(line.as_bytes())?;
        self.out.write_all(b"\n")?;
        self.size += length;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn put_aside(&mut self) -> io::Result<()> {
        self.out.flush()?;
        for number in (1..self.keep).rev() {
            match std::fs::rename(aside(&self.path, number), aside(&self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.keep > 0 {
            std::fs::rename(&self.path, aside(&self.path, 1))?;
        } else {
            std::fs::remove_file(&self.path)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        self.out = BufWriter::new(file);
        self.size = 0;
        Ok(())
    }
}

fn aside(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// One request's line in the making. Written when it is dropped; until then it also holds the
/// upstream's lease, so that "in flight" and "not yet logged" mean the same.
pub struct Record {
    log: AccessLog,
    started: Instant,
    client: IpAddr,
    host: String,
    method: http::Method,
    path: String,
    query_length: Option<usize>,
    status: u16,
    bytes: u64,
    broken: bool,
    route: Option<String>,
    lease: Option<Lease>,
}

impl Record {
    pub fn new(log: AccessLog, client: IpAddr, method: http::Method, uri: &http::Uri) -> Self {
        Self {
            log,
            started: Instant::now(),
            client: client.to_canonical(),
            host: "-".to_owned(),
            method,
            path: uri.path().to_owned(),
            query_length: uri.query().map(str::len),
            // The client went away before there was an answer.
            status: 499,
            bytes: 0,
            broken: false,
            route: None,
            lease: None,
        }
    }

    pub fn host(&mut self, host: &str) {
        host.clone_into(&mut self.host);
    }

    /// The request goes to this upstream; a lease on another one ends.
    pub fn goes_to(&mut self, app: &str, service: &str, lease: Lease) {
        self.route = Some(format!("{app}/{service}/{}", lease.upstream().node()));
        self.lease = Some(lease);
    }

    /// Nobody has the request now.
    pub fn let_go(&mut self) {
        self.lease = None;
    }

    pub fn status(&mut self, status: http::StatusCode) {
        self.status = status.as_u16();
    }

    pub fn add_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub fn broke_off(&mut self) {
        self.broken = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Bytes of a path that would break a line into words or lines cannot come through the
        // parser of request targets; a path of CONNECT or '*' is a word as well.
        let query = self
            .query_length
            .map_or(String::new(), |length| format!("?+{length}"));
        self.log.line(format!(
            "{:.3} {} {} {} {}{query} {}{} {} {} {}",
            Timestamp::now(),
            self.client,
            self.host,
            self.method,
            self.path,
            self.status,
            if self.broken { "!" } else { "" },
            self.bytes,
            self.started.elapsed().as_millis(),
            self.route.as_deref().unwrap_or("-"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_log_is_put_aside_and_only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let mut file = RotatingFile::open(path.clone(), 10, 2).unwrap();
        for line in ["one-1", "two-2", "three", "four-4"] {
            file.write_line(line).unwrap();
        }
        file.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four-4\n");
        assert_eq!(std::fs::read_to_string(aside(&path, 1)).unwrap(), "three\n");
        assert_eq!(std::fs::read_to_string(aside(&path, 2)).unwrap(), "two-2\n");
        assert!(!aside(&path, 3).exists());
        let again = RotatingFile::open(path, 10, 2).unwrap();
        assert_eq!(again.size, 7);
    }
}
