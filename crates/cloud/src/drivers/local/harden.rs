//! What a machine's processes may not do: capabilities taken away for good, no new privileges,
//! and a list of system calls and socket families refused. The same for init and for whatever enters later.

use super::step::{Step, StepError};
use std::io;

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE, SYS_CHROOT.
const KEPT: [u32; 9] = [0, 1, 3, 4, 5, 6, 7, 10, 18];

/// Namespaces made by clone's flags; a machine makes none.
const NEW_NAMESPACES: u32 = 0x7E02_0080;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Calls that meet EPERM: mounts, namespaces, kernel keys and modules, and interfaces with a
/// history of holes that no service here needs.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_lookup_dcookie,
];

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | code | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    }
}

/// The filter program.
fn filter() -> Vec<libc::sock_filter> {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let answer = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let refuse = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let (number, architecture, first_argument) = (0, 4, 16);
    let mut program = vec![
        load(architecture),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(number),
        // The x32 numbers of the same architecture would slip past the list.
        jump(libc::BPF_JGE, 0x4000_0000, 0, 1),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        // clone3 hides its flags behind a pointer: "no such call" sends libraries to clone.
        jump(libc::BPF_JEQ, libc::SYS_clone3 as u32, 0, 1),
        answer(refuse(libc::ENOSYS)),
        jump(libc::BPF_JEQ, libc::SYS_clone as u32, 0, 4),
        load(first_argument),
        jump(libc::BPF_JSET, NEW_NAMESPACES, 0, 1),
        answer(refuse(libc::EPERM)),
        answer(libc::SECCOMP_RET_ALLOW),
        // Of socket families only those that networks and local services are made of: others have
        // no namespaces, or are there to be attacked.
        jump(libc::BPF_JEQ, libc::SYS_socket as u32, 1, 0),
        jump(libc::BPF_JEQ, libc::SYS_socketpair as u32, 0, 7),
        load(first_argument),
        jump(libc::BPF_JEQ, libc::AF_UNIX as u32, 4, 0),
        jump(libc::BPF_JEQ, libc::AF_INET as u32, 3, 0),
        jump(libc::BPF_JEQ, libc::AF_INET6 as u32, 2, 0),
        jump(libc::BPF_JEQ, libc::AF_NETLINK as u32, 1, 0),
        answer(refuse(libc::EAFNOSUPPORT)),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    for call in REFUSED {
        program.push(jump(libc::BPF_JEQ, *call as u32, 0, 1));
        program.push(answer(refuse(libc::EPERM)));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

fn ok(rc: i64) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Applies all of it to this process and whatever it becomes. There is no way back.
pub fn apply() -> Result<(), StepError> {
    // SAFETY (all calls below): arguments are numbers, or pointers to values that live across
    // the call and have the layout the kernel documents.
    unsafe {
        ok(libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        ) as i64)
        .step("clear ambient capabilities")?;
        for capability in 0..64u32 {
            if !KEPT.contains(&capability)
                && libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 1
            {
                ok(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) as i64)
                    .step("drop a capability")?;
            }
        }
        let kept = KEPT.iter().fold(0, |mask, c| mask | 1u32 << c);
        let header = CapHeader {
            version: 0x2008_0522,
            pid: 0,
        };
        let data = [
            CapData {
                effective: kept,
                permitted: kept,
                inheritable: 0,
            },
            CapData::default(),
        ];
        ok(libc::syscall(libc::SYS_capset, &header, data.as_ptr())).step("set capabilities")?;
        ok(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) as i64)
            .step("forbid new privileges")?;
        let mut program = filter();
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        ok(libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &filter,
            0,
            0,
        ) as i64)
        .step("filter system calls")?;
    }
    Ok(())
}

/// Puts signals back to what a fresh program expects; the Rust runtime ignores SIGPIPE.
pub fn reset_signals() {
    // SAFETY: sets documented default dispositions and an empty mask.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_lands_inside_the_program() {
        let program = filter();
        for (at, step) in program.iter().enumerate() {
            if step.code as u32 & 7 == libc::BPF_JMP {
                assert!(at + 1 + (step.jt.max(step.jf) as usize) < program.len());
            }
        }
    }

    #[test]
    fn all_kinds_of_namespaces_are_meant() {
        let kinds = libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | 0x80;
        assert_eq!(kinds as u32, NEW_NAMESPACES);
    }
}
