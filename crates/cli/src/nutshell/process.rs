//! Daemons of a nutshell as processes: started apart from any terminal, known by process id and
//! start time, so that a process id that was given to somebody else is never touched.

use super::settings::Place;
use crate::contexts::{remove_if_there, write_private};
use crate::exit::CliError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A log that has grown beyond this is put aside; one that was put aside is kept.
const LOG_BYTES: u64 = 64 << 20;
/// How often a daemon looks at the size of its log.
const LOG_LOOK: Duration = Duration::from_secs(30);

/// A process that cannot be mistaken for another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// In clock ticks since the computer started.
    started: u64,
    /// Which start of the computer.
    boot: String,
}

impl Identity {
    /// The process that has this id now.
    fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, the numbers come after it.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        // A process that ended and waits to be collected runs no more.
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        let started = fields.nth(18)?.parse().ok()?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()?
            .trim()
            .to_owned();
        Some(Self { pid, started, boot })
    }

    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end right now, which is what was wanted.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// The running daemon of that name, if there is one.
pub fn running(place: &Place, daemon: &str) -> Option<Identity> {
    let text = std::fs::read(place.record(daemon)).ok()?;
    serde_json::from_slice::<Identity>(&text)
        .ok()
        .filter(Identity::is_alive)
}

/// This very program, also when the file it was started from has been replaced.
const PROGRAM: &str = "/proc/self/exe";

/// Whether a process runs this very program: the same file, or another one with the same bytes.
pub fn same_program(pid: i32) -> bool {
    let (own, other) = (PathBuf::from(PROGRAM), format!("/proc/{pid}/exe").into());
    same_content(&own, &other).unwrap_or(false)
}

fn same_content(one: &PathBuf, other: &PathBuf) -> std::io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (a, b) = (one.metadata()?, other.metadata()?);
    if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
        return Ok(true);
    }
    if a.len() != b.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..read])?;
        if left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

/// Starts a daemon of this program apart from the terminal, and records it. It keeps one
/// descriptor of this process if there is one to inherit.
pub fn start(
    place: &Place,
    daemon: &str,
    arguments: &[String],
    inherited: &[RawFd],
) -> Result<(Child, Identity), CliError> {
    let log = open_log(&place.log(daemon))?;
    let failed = |error: std::io::Error| {
        CliError::failed(format!("the {daemon} cannot be started")).because(&error)
    };
    let errors = log.try_clone().map_err(failed)?;
    let mut command = Command::new(PROGRAM);
    let inherited = inherited.to_vec();
    // SAFETY: runs in the child alone, calls only what may be called after a fork, and touches no
    // memory of others.
    unsafe {
        command.pre_exec(move || {
            // What the keeper blocks for itself is not meant for daemons.
            let none = nix::sys::signal::SigSet::empty();
            let how = nix::sys::signal::SigmaskHow::SIG_SETMASK;
            nix::sys::signal::sigprocmask(how, Some(&none), None)?;
            inherited
                .iter()
                .try_for_each(|descriptor| super::keeper::inheritable(*descriptor, true))
        });
    }
    let child = command
        .arg0("conpaas")
        .args([daemon, "--state"])
        .arg(place.state())
        .arg("--detach")
        .args(arguments)
        .current_dir("/")
        // What is meant for this client alone stays with it.
        .env_remove("CONPAAS_TOKEN")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(failed)?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let Some(identity) = Identity::of(pid) else {
        return Err(ended_early(place, daemon));
    };
    record(place, daemon, &identity)?;
    Ok((child, identity))
}

/// Writes down who a daemon is.
pub fn record(place: &Place, daemon: &str, identity: &Identity) -> Result<(), CliError> {
    let text = serde_json::to_vec(identity).map_err(|error| {
        CliError::failed(format!("the {daemon} cannot be recorded")).because(&error)
    })?;
    write_private(&place.record(daemon), &text)
}

/// The error of a daemon that ended while it should have started, with the end of its log.
pub fn ended_early(place: &Place, daemon: &str) -> CliError {
    let log = place.log(daemon);
    let mut error = CliError::failed(format!("the {daemon} ended while it started"));
    error.causes = last_lines(&log, 5);
    error.hint(format!("its whole log: {}", log.display()))
}

fn open_log(path: &Path) -> Result<File, CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed(format!("{} cannot be written", path.display())).because(&error)
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES) {
        put_aside(path).map_err(failed)?;
    }
    append_to(path).map_err(failed)
}

fn put_aside(path: &Path) -> std::io::Result<()> {
    std::fs::rename(path, path.with_extension("log.1"))
}

fn append_to(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Keeps the log of this very daemon bounded, for as long as it runs.
pub async fn keep_log_bounded(path: PathBuf) {
    loop {
        tokio::time::sleep(LOG_LOOK).await;
        let descriptors = [libc::STDOUT_FILENO, libc::STDERR_FILENO];
        if let Err(error) = turn_log(&path, LOG_BYTES, &descriptors) {
            tracing::warn!(%error, "the log cannot be put aside");
        }
    }
}

/// Puts a log aside that has grown beyond `most` bytes, and lets those of `descriptors` that
/// write to it go on in a new one. They must belong to this process for good.
fn turn_log(path: &Path, most: u64, descriptors: &[RawFd]) -> std::io::Result<()> {
    let Ok(log) = std::fs::metadata(path) else {
        return Ok(());
    };
    let writes_there = |descriptor: &&RawFd| {
        std::fs::metadata(format!("/proc/self/fd/{descriptor}"))
            .is_ok_and(|open| (open.dev(), open.ino()) == (log.dev(), log.ino()))
    };
    let descriptors: Vec<&RawFd> = descriptors.iter().filter(writes_there).collect();
    // A daemon whose output goes elsewhere, to a terminal say, is not the one to turn it.
    if log.len() <= most || descriptors.is_empty() {
        return Ok(());
    }
    put_aside(path)?;
    let new = append_to(path)?;
    for descriptor in descriptors {
        // SAFETY: both are open, and the target stays what it is, a place to write to.
        if unsafe { libc::dup2(new.as_raw_fd(), *descriptor) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The end of a log, for people: the message of JSON lines, others as they are.
pub fn last_lines(path: &Path, most: usize) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(16 << 10)..]).into_owned();
    let lines: Vec<String> = text
        .lines()
        .map(readable)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(most)..].to_vec()
}

fn readable(line: &str) -> String {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else {
        return line.trim().to_owned();
    };
    let fields = &value["fields"];
    let Some(message) = fields["message"].as_str() else {
        return line.trim().to_owned();
    };
    let level = value["level"].as_str().unwrap_or_default();
    let more: Vec<&str> = ["causes", "error"]
        .iter()
        .filter_map(|key| fields[key].as_str())
        .filter(|text| !text.is_empty())
        .collect();
    format!(
        "{level} {message}{}{}",
        if more.is_empty() { "" } else { ": " },
        more.join(": ")
    )
}

/// Ends daemons: asks first, and after `grace` no more. Forgets them.
pub async fn stop(
    place: &Place,
    daemons: &[&str],
    grace: Duration,
) -> Result<Vec<String>, CliError> {
    let found: Vec<(String, Identity)> = daemons
        .iter()
        .filter_map(|daemon| {
            running(place, daemon).map(|identity| ((*daemon).to_owned(), identity))
        })
        .collect();
    found.iter().for_each(|(_, identity)| {
        identity.signal(Signal::SIGTERM);
        // One that was halted hears nothing else.
        identity.signal(Signal::SIGCONT);
    });
    let began = Instant::now();
    let mut killed = false;
    while found.iter().any(|(_, identity)| identity.is_alive()) {
        if began.elapsed() > grace && !killed {
            found
                .iter()
                .for_each(|(_, identity)| identity.signal(Signal::SIGKILL));
            killed = true;
        }
        if began.elapsed() > grace + Duration::from_secs(10) {
            let left: Vec<String> = found
                .iter()
                .filter(|(_, i)| i.is_alive())
                .map(|(name, i)| format!("{name} ({})", i.pid))
                .collect();
            return Err(CliError::failed(format!(
                "{} cannot be ended",
                left.join(" and ")
            )));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    for daemon in daemons {
        remove_if_there(&place.record(daemon))?;
    }
    Ok(found.into_iter().map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_with_the_same_id_is_not_ours() {
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        assert!(
            !Identity {
                started: own.started + 1,
                ..own.clone()
            }
            .is_alive()
        );
        assert!(
            !Identity {
                boot: "another".into(),
                ..own
            }
            .is_alive()
        );
    }

    #[test]
    fn programs_are_told_apart_by_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (a, b, c, d) = (
            file("a", "xy"),
            file("b", "xy"),
            file("c", "xz"),
            file("d", "x"),
        );
        let same = |one, other| same_content(one, other).unwrap();
        assert!(same(&a, &a) && same(&a, &b));
        assert!(!same(&a, &c) && !same(&a, &d));
        assert!(same_program(i32::try_from(std::process::id()).unwrap()));
        assert!(!same_program(1));
    }

    #[test]
    fn a_log_that_has_grown_is_put_aside_while_it_is_written() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = append_to(&path).unwrap();
        let elsewhere = File::open("/dev/null").unwrap();
        let descriptors = [log.as_raw_fd(), elsewhere.as_raw_fd()];
        log.write_all(b"first").unwrap();
        turn_log(&path, 5, &descriptors).unwrap();
        log.write_all(b" second").unwrap();
        turn_log(&path, 5, &descriptors[1..]).unwrap();
        assert!(!folder.path().join("x.log.1").exists());
        turn_log(&path, 5, &descriptors).unwrap();
        log.write_all(b"third").unwrap();
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            (text("x.log.1"), text("x.log")),
            ("first second".into(), "third".into())
        );
        assert_eq!(elsewhere.metadata().unwrap().len(), 0);
    }

    #[test]
    fn logs_are_read_by_people() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let json = r#"{"level":"ERROR","fields":{"message":"no luck","causes":"a: b"}}"#;
        std::fs::write(&path, format!("first\n\n{json}\n")).unwrap();
        assert_eq!(last_lines(&path, 1), ["ERROR no luck: a: b"]);
        assert_eq!(last_lines(&path, 9), ["first", "ERROR no luck: a: b"]);
        assert!(last_lines(Path::new("/nowhere"), 3).is_empty());
    }
}
