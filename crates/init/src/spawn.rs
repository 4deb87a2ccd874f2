//! Starting processes, and finding the last of those that one has left behind.

use crate::users::User;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Every process of a kept one carries this variable, its daemonised descendants too.
const MARK: &str = "CONPAAS_PROCESS";
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
    pub mark: &'a str,
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
    command.env(MARK, start.mark);
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

/// Kills processes that carry a mark but left their group. How many were found.
pub fn kill_marked(mark: &str) -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0;
    };
    let own = std::process::id() as i32;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && carries(*pid, mark))
        .collect::<Vec<_>>();
    pids.into_iter()
        .filter(|pid| kill_if_marked(*pid, mark))
        .count()
}

fn carries(pid: i32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|text| {
        text.split(|byte| *byte == 0)
            .any(|entry| entry == wanted.as_bytes())
    })
}

/// Holds the process by a descriptor before looking again, so that no other one is hit.
fn kill_if_marked(pid: i32, mark: &str) -> bool {
    // SAFETY: pidfd_open(2) gives a descriptor that nobody else owns.
    let held = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as libc::c_int;
        if fd < 0 {
            return false;
        }
        OwnedFd::from_raw_fd(fd)
    };
    if !carries(pid, mark) {
        return false;
    }
    // SAFETY: a plain system call on a descriptor that is held.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            held.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        ) == 0
    }
}
