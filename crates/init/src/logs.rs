//! Logs of role processes: init reads their output from pipes and appends it, so that a log can
//! be set aside when it is full without the process taking part.

use nix::fcntl::OFlag;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes taken from one pipe before the others have their turn.
const TURN: usize = 256 * 1024;

/// The output of one process, on its way to a log.
struct Pipe {
    read_end: OwnedFd,
    log: PathBuf,
}

struct LogFile {
    file: File,
    size: u64,
}

/// All pipes and the logs they lead to.
pub struct Logs {
    limit: u64,
    pipes: Vec<Pipe>,
    files: HashMap<PathBuf, LogFile>,
}

impl Logs {
    /// Logs that are set aside when they would grow beyond `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            pipes: Vec::new(),
            files: HashMap::new(),
        }
    }

    /// Opens a way into a log; what is answered goes to the process. `owner` may reopen it by
    /// way of /dev/stderr.
    pub fn open(&mut self, log: &Path, owner: Option<(u32, u32)>) -> std::io::Result<OwnedFd> {
        self.file(log)?;
        let (read_end, write_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        nix::fcntl::fcntl(&read_end, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        if let Some((uid, gid)) = owner {
            let file = File::from(write_end.try_clone()?);
            // A process that never reopens its output does without.
            let _ = std::os::unix::fs::fchown(&file, Some(uid), Some(gid));
        }
        self.pipes.push(Pipe {
            read_end,
            log: log.to_owned(),
        });
        Ok(write_end)
    }

    /// The pipes to wait on, in an order that holds until [`Self::drain`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pipes.iter().map(|pipe| pipe.read_end.as_fd())
    }

    /// Takes what is in the pipes; those that were closed by all their writers go.
    pub fn drain(&mut self) {
        let mut buffer = vec![0u8; 64 * 1024];
        let mut index = 0;
        while index < self.pipes.len() {
            let mut taken = 0;
            let closed = loop {
                match nix::unistd::read(&self.pipes[index].read_end, &mut buffer) {
                    Ok(0) => break true,
                    Ok(count) => {
                        taken += count;
                        let log = self.pipes[index].log.clone();
                        self.append(&log, &buffer[..count]);
                        if taken >= TURN {
                            break false;
                        }
                    }
                    Err(nix::Error::EINTR) => {}
                    Err(nix::Error::EAGAIN) => break false,
                    Err(_) => break true,
                }
            };
            if closed {
                let gone = self.pipes.swap_remove(index);
                if !self.pipes.iter().any(|pipe| pipe.log == gone.log) {
                    self.files.remove(&gone.log);
                }
            } else {
                index += 1;
            }
        }
    }

    fn file(&mut self, log: &Path) -> std::io::Result<&mut LogFile> {
        if !self.files.contains_key(log) {
            let opened = open_log(log)?;
            self.files.insert(log.to_owned(), opened);
        }
        self.files
            .get_mut(log)
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Appends as well as it can: a full disk must not stop init or the process.
    fn append(&mut self, log: &Path, bytes: &[u8]) {
        let limit = self.limit;
        let Ok(file) = self.file(log) else { return };
        if file.size > 0 && file.size + bytes.len() as u64 > limit {
            let mut aside = log.as_os_str().to_owned();
            aside.push(".1");
            if std::fs::rename(log, aside).is_ok()
                && let Ok(fresh) = open_log(log)
            {
                *file = fresh;
            }
        }
        if file.file.write_all(bytes).is_ok() {
            file.size += bytes.len() as u64;
        }
    }
}

fn open_log(log: &Path) -> std::io::Result<LogFile> {
    if let Some(folder) = log.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(log)?;
    let size = file.metadata()?.len();
    Ok(LogFile { file, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_set_aside_and_one_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("deep/a.log");
        let mut logs = Logs::new(10);
        let way = logs.open(&log, None).unwrap();
        for text in ["first-----", "second----", "third-----"] {
            nix::unistd::write(&way, text.as_bytes()).unwrap();
            logs.drain();
        }
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "third-----");
        assert_eq!(
            std::fs::read_to_string(folder.path().join("deep/a.log.1")).unwrap(),
            "second----"
        );
        drop(way);
        logs.drain();
        assert_eq!(logs.fds().count(), 0);
        assert!(logs.files.is_empty());
    }
}
