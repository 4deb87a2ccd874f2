//! Starting processes, and ending all of those that one has left behind.
//!
//! Every process that init starts adopts its own orphans (it is a "subreaper" of the kernel), so
//! whatever it starts stays below it, also what daemonises, under whichever account and with
//! whichever environment. Only when it ends do they fall to init: a child of init that init did
//! not start is left over from a process that has ended, and can be killed.

use crate::users::User;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long what was left behind is killed and waited for at most.
const STRAYS_PATIENCE: Duration = Duration::from_millis(500);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Role processes die first when memory runs out, then the agent; init last.
pub const OOM_ROLE: i32 = 500;
pub const OOM_AGENT: i32 = 0;
pub const OOM_INIT: i32 = -1000;

/// What to start.
pub struct Start<'a> {
    pub argv: &'a [String],
    pub env: &'a [(String, String)],
    /// Start from init's own environment instead of an empty one.
    pub inherit_env: bool,
    pub working_directory: &'a std::path::Path,
    pub user: Option<&'a User>,
    pub oom_score_adj: i32,
    /// Where output goes; init's own when absent.
    pub output: Option<OwnedFd>,
}

/// Starts a process in a session of its own; its id.
pub fn spawn(start: Start<'_>) -> io::Result<i32> {
    let program = start
        .argv
        .first()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut command = Command::new(program);
    command
        .args(&start.argv[1..])
        .current_dir(start.working_directory)
        .stdin(Stdio::null());
    if !start.inherit_env {
        command.env_clear();
    }
    command.env("PATH", PATH);
    if let Some(user) = start.user {
        command
            .env("HOME", &user.home)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name);
    }
    command.envs(start.env.iter().map(|(key, value)| (key, value)));
    if let Some(output) = start.output {
        command
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output));
    }
    let identity = start
        .user
        .map(|user| (user.uid, user.gid, user.groups.clone()));
    let score = format!("{}\0", start.oom_score_adj);
    // SAFETY: between fork and exec only system calls are made, on memory prepared before.
    unsafe {
        command.pre_exec(move || {
            check(libc::setsid())?;
            check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))?;
            write_oom_score(score.as_bytes());
            if let Some((uid, gid, groups)) = &identity {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setresgid(*gid, *gid, *gid))?;
                check(libc::setresuid(*uid, *uid, *uid))?;
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Writes the own score; `text` ends in a zero byte. A kernel that refuses is obeyed.
fn write_oom_score(text: &[u8]) {
    // SAFETY: open, write and close on constant memory; also right between fork and exec.
    unsafe {
        let fd = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if fd >= 0 {
            libc::write(fd, text.as_ptr().cast(), text.len().saturating_sub(1));
            libc::close(fd);
        }
    }
}

/// Makes init itself the last to be killed when memory runs out, as far as it may.
pub fn protect_self() {
    write_oom_score(format!("{OOM_INIT}\0").as_bytes());
}

/// Kills the process group of a child that init has not reaped yet.
pub fn kill_group(leader: i32, signal: i32) {
    // SAFETY: a plain system call; the id cannot have been reused before the leader is reaped.
    unsafe {
        libc::kill(-leader, signal);
    }
}

/// Signals a child that init has not reaped yet.
pub fn kill_child(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: as above.
    match check(unsafe { libc::kill(pid, signal) }) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Kills this process's children that are not among `kept`, and theirs in turn as these fall to
/// it; how many there were. Only children are signalled: their ids belong to nobody else until
/// they are reaped. Waits a little for the dead to let go of their ports and files.
pub fn kill_strays(kept: &[i32]) -> usize {
    let mut killed = std::collections::BTreeSet::new();
    let deadline = Instant::now() + STRAYS_PATIENCE;
    loop {
        let strays = living_children()
            .into_iter()
            .filter(|pid| !kept.contains(pid))
            .collect::<Vec<_>>();
        if strays.is_empty() || Instant::now() >= deadline {
            return killed.len();
        }
        for pid in strays {
            let _ = kill_child(pid, libc::SIGKILL);
            killed.insert(pid);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// This process's children that have not ended.
fn living_children() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id().to_string();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
            let stat = String::from_utf8_lossy(&stat);
            // The name in parentheses may hold anything.
            let mut fields = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest)
                .split_whitespace();
            !matches!(fields.next(), Some("Z" | "X")) && fields.next() == Some(own.as_str())
        })
        .collect()
}
