//! Making and entering namespaces from a single-threaded process, with an *assistant*: a child
//! forked beforehand that keeps the caller's own rights outside, writes the id maps and puts the
//! machine into its control groups. Callers must have exactly one thread.

use super::cgroup::{Allowance, Cgroups};
use super::channel;
use super::idmap::IdMap;
use super::process::{Pidfd, ProcessIdentity};
use super::step::{Step, StepError};
use crate::types::Limits;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

const NO_NAMESPACES: &str = "The kernel must allow user namespaces: check /proc/sys/user/max_user_namespaces (more than 0), \
kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0 where these exist; inside a container, give it the right to unshare and mount";

#[derive(Serialize, Deserialize)]
enum Request {
    Map {
        pid: i32,
    },
    Limit {
        cgroups: Cgroups,
        installation: String,
        machine: String,
        pid: i32,
        allow: Allowance,
    },
}

/// The helper that stayed outside.
pub struct Assistant {
    channel: OwnedFd,
    pid: Pid,
}

impl Assistant {
    /// Forks it off; call before entering anything.
    pub fn start(map: IdMap) -> Result<Self, StepError> {
        let (ours, theirs) = channel::pair().step("make a socket pair")?;
        // SAFETY: the process has one thread, so the child may go on running ordinary code.
        match unsafe { fork() }.step("fork")? {
            ForkResult::Child => {
                drop(ours);
                serve(&theirs, &map);
                // SAFETY: ends this process without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => Ok(Self {
                channel: ours,
                pid: child,
            }),
        }
    }

    fn ask<T: for<'a> Deserialize<'a>>(&self, request: &Request) -> Result<T, StepError> {
        let bytes = serde_json::to_vec(request).step("encode a request")?;
        channel::send(self.channel.as_fd(), &bytes, &[]).step("ask the assistant")?;
        let (answer, _) = channel::receive(self.channel.as_fd()).step("hear the assistant")?;
        serde_json::from_slice::<Result<T, StepError>>(&answer).step("understand the assistant")?
    }

    /// Writes the application's namespace's maps for a process.
    pub fn map(&self, pid: i32) -> Result<(), StepError> {
        self.ask(&Request::Map { pid })
    }

    /// Puts a machine's first process into limited groups and makes it the last to die when
    /// memory runs out. Beside the limits: why it could not be protected so.
    pub fn limit(
        &self,
        cgroups: &Cgroups,
        installation: &str,
        machine: &str,
        pid: i32,
        allow: Allowance,
    ) -> Result<(Limits, Option<String>), StepError> {
        self.ask(&Request::Limit {
            cgroups: cgroups.clone(),
            installation: installation.to_owned(),
            machine: machine.to_owned(),
            pid,
            allow,
        })
    }

    /// Lets the assistant go.
    pub fn dismiss(self) {
        drop(self.channel);
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}

fn serve(channel: &OwnedFd, map: &IdMap) {
    while let Ok((message, _)) = channel::receive(channel.as_fd()) {
        if message.is_empty() {
            return;
        }
        let answer = match serde_json::from_slice(&message) {
            Ok(Request::Map { pid }) => serde_json::to_vec(&map.write_outer(pid)),
            Ok(Request::Limit {
                cgroups,
                installation,
                machine,
                pid,
                allow,
            }) => {
                let unprotected = protect_from_oom(pid);
                serde_json::to_vec(
                    &cgroups
                        .limit(&installation, &machine, pid, allow)
                        .step("limit the machine")
                        .map(|limits| (limits, unprotected)),
                )
            }
            Err(e) => serde_json::to_vec(&Err::<(), StepError>(StepError::new(
                "understand a request",
                e,
            ))),
        };
        let Ok(answer) = answer else { return };
        if channel::send(channel.as_fd(), &answer, &[]).is_err() {
            return;
        }
    }
}

/// Makes a machine's init one of the last to die when memory runs out; what stood in the way.
/// Written by the privileged, the newer file also sets how low the process and its descendants
/// may go by themselves: so it only says 0, and the older file, which leaves that alone, the rest.
fn protect_from_oom(pid: i32) -> Option<String> {
    for (file, value) in [("oom_score_adj", "0"), ("oom_adj", "-16")] {
        if let Err(e) = fs::write(format!("/proc/{pid}/{file}"), value) {
            return Some(format!(
                "the machine's init is not protected when memory runs out ({file}: {e})"
            ));
        }
    }
    None
}

/// Sets limits of the user namespace this process is in, in the files of `proc`. What is counted
/// in a namespace is counted for whoever made it as well, so these bound what its processes take
/// away from others outside. Returns the limits that this kernel does not let be set, and why.
pub fn bound_namespace(proc: &str, limits: &[(&str, u32)]) -> Vec<String> {
    limits
        .iter()
        .filter_map(|(name, most)| {
            fs::write(format!("{proc}/sys/user/{name}"), most.to_string())
                .err()
                .map(|e| format!("the namespace's limit {name} is not set: {e}"))
        })
        .collect()
}

/// Becomes root of the user namespace this process is in, and nobody's group members.
pub fn become_root() -> Result<(), StepError> {
    setgroups(&[]).step("drop supplementary groups")?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).step("become group 0 of the namespace")?;
    setresuid(uid, uid, uid).step("become user 0 of the namespace")?;
    // The change of user hid /proc/self from whoever started us; helpers look through it.
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    Ok(())
}

/// Makes a new user namespace with our map (plus the namespaces in `more`) and becomes its root.
pub fn make_user_namespace(
    assistant: &Assistant,
    map: &IdMap,
    more: CloneFlags,
) -> Result<(), StepError> {
    if !map.by_tools {
        own_by(map.root_uid())?;
    }
    unshare(CloneFlags::CLONE_NEWUSER | more).step_cure("make namespaces", NO_NAMESPACES)?;
    assistant.map(std::process::id() as i32)?;
    become_root()
}

/// Makes `uid` the maker of the namespace that comes next, all rights kept: the kernel counts a
/// namespace's watches and the like against its maker, who should not be the host's root.
fn own_by(uid: u32) -> Result<(), StepError> {
    const SECBIT_NO_SETUID_FIXUP: libc::c_int = 1 << 2;
    // SAFETY: no pointers.
    if unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) } < 0 {
        // Without the right to keep rights, root stays the maker.
        return Ok(());
    }
    nix::unistd::seteuid(Uid::from_raw(uid)).step("become the namespace's maker")
}

/// Enters the user and network namespaces a supervisor sits in and becomes root there.
/// `false` when the supervisor is gone.
pub fn join_network(supervisor: &ProcessIdentity) -> Result<bool, StepError> {
    let Some(pidfd) = supervisor.open().step("watch a supervisor")? else {
        return Ok(false);
    };
    match setns(&pidfd, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET) {
        Ok(()) => {}
        Err(nix::errno::Errno::ESRCH) => return Ok(false),
        Err(e) => return Err(StepError::new("enter the application's network", e)),
    }
    become_root()?;
    Ok(true)
}

/// Enters a machine through its first process; the caller's next child is inside wholly.
/// `false` when the machine is gone.
pub fn join_machine(init: &ProcessIdentity) -> Result<bool, StepError> {
    let Some(pidfd): Option<Pidfd> = init.open().step("watch the machine's init")? else {
        return Ok(false);
    };
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    // A machine has a view of control groups of its own where the kernel knows such a thing.
    let entered = match setns(&pidfd, all | CloneFlags::CLONE_NEWCGROUP) {
        Err(nix::errno::Errno::EPERM | nix::errno::Errno::EINVAL) => setns(&pidfd, all),
        other => other,
    };
    match entered {
        Ok(()) => {}
        Err(nix::errno::Errno::ESRCH) => return Ok(false),
        Err(e) => return Err(StepError::new("enter the machine", e)),
    }
    become_root()?;
    Ok(true)
}
