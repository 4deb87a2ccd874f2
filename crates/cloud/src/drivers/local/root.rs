//! The last steps of a machine's first process before it becomes init: its file systems, its
//! end of the cable, its name, and then the loss of every right it will not need. Runs in the
//! machine's fresh namespaces, in the machine's folder, as a child of the supervisor.

use super::enter::bound_namespace;
use super::harden;
use super::netlink::{Netlink, index_of, mac_of};
use super::step::{Step, StepError};
use super::supervisor::{Spec, note_line};
use conpaas_model::protocol::MACHINE_GROUP;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, execve, pivot_root, sethostname};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const READ_ONLY: [&str; 5] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
];
const HIDDEN_FILES: [&str; 7] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/kallsyms",
    "/proc/kmsg",
];
const HIDDEN_FOLDERS: [&str; 4] = [
    "/proc/acpi",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/kernel/debug",
];
/// What each account of a machine may have of what the kernel counts per user; a machine makes no
/// namespaces once it runs.
const MACHINE_LIMITS: [(&str, u32); 9] = [
    ("max_inotify_instances", 16),
    ("max_fanotify_groups", 4),
    ("max_user_namespaces", 0),
    ("max_pid_namespaces", 0),
    ("max_mnt_namespaces", 0),
    ("max_uts_namespaces", 0),
    ("max_ipc_namespaces", 0),
    ("max_net_namespaces", 0),
    ("max_cgroup_namespaces", 0),
];
/// The least size of a machine's file systems in memory, in bytes.
const LEAST_TMPFS: u64 = 8 << 20;
const PAGE: u64 = 4096;

/// Where a machine finds the one binary.
pub const PROGRAM: &str = "/usr/local/bin/conpaas";

const NONE: Option<&str> = None;

/// Turns this process into the machine's init; returns only on failure.
pub fn become_init(spec: &Spec, context: &[u8], console: &File) -> Result<Infallible, StepError> {
    // Seen from inside, the machine's control group is the root of all.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    network(spec)?;
    sethostname(&spec.hostname).step("set the host name")?;
    file_systems(spec)?;
    // While /proc/sys can still be written.
    // Shared memory of the older kind stays like a file; an older kernel keeps its number to itself.
    let pages = spec.allowance.memory_bytes / 8 / PAGE;
    let _ = fs::write("root/proc/sys/kernel/shmall", pages.to_string());
    for note in bound_namespace("root/proc", &MACHINE_LIMITS) {
        let _ = (&mut &*console).write_all(note_line(&note).as_bytes());
    }
    chdir("root").step("enter the machine's root")?;
    pivot_root(".", ".").step("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).step("let go of the host's files")?;
    chdir("/").step("enter the machine's root")?;
    mask()?;
    files(spec, context)?;
    stdio(console)?;
    // SAFETY: no pointers; a session of its own, so that no terminal's signals reach init.
    unsafe { libc::setsid() };
    harden::reset_signals();
    harden::apply()?;
    // Set last: a change of user or capabilities would clear it.
    // SAFETY: no pointers.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
        return Err(StepError::new(
            "tie init to its supervisor",
            io::Error::last_os_error(),
        ));
    }
    // A supervisor that died before the tie was made has left a console without a reader.
    let mut reader = [PollFd::new(console.as_fd(), PollFlags::empty())];
    if poll(&mut reader, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
        return Err(StepError::new("start init", "its supervisor is gone"));
    }
    let text = |s: &str| CString::new(s).step("pass init's arguments");
    let arguments = spec
        .init_argv
        .iter()
        .map(|s| text(s))
        .collect::<Result<Vec<_>, _>>()?;
    let environment = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LANG=C.UTF-8",
        "container=conpaas",
    ]
    .map(text)
    .into_iter()
    .collect::<Result<Vec<_>, _>>()?;
    let program = arguments
        .first()
        .ok_or_else(|| StepError::new("start init", "no program is given"))?;
    execve(program, &arguments, &environment)
        .step(format!("start init ({})", spec.init_argv.join(" ")))
}

fn network(spec: &Spec) -> Result<(), StepError> {
    quiet_network("the machine")?;
    let mut netlink = Netlink::open().step("open the machine's routing socket")?;
    let (lo, eth0) = (
        index_of("lo").step("find lo")?,
        index_of("eth0").step("find eth0")?,
    );
    netlink.up(lo).step("bring lo up")?;
    netlink
        .add_address(eth0, spec.address, spec.prefix)
        .step("give the machine its address")?;
    netlink.up(eth0).step("bring eth0 up")?;
    // Known beforehand: the first packets after a cable comes up are easily lost.
    netlink
        .add_neighbour(eth0, spec.gateway, mac_of(spec.gateway))
        .step("write down the gateway")?;
    // Always there, so that what may not get out is refused at once by the gateway.
    netlink
        .add_default_route(spec.gateway)
        .step("give the machine its way out")
}

/// No forwarding and no IPv6, said explicitly: a new namespace inherits the host's settings.
pub fn quiet_network(whose: &str) -> Result<(), StepError> {
    for (file, value) in [
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv6/conf/all/forwarding", "0"),
    ] {
        match fs::write(format!("/proc/sys/net/{file}"), value) {
            // A kernel without IPv6 has nothing to switch off.
            Err(e) if e.kind() == io::ErrorKind::NotFound && file.starts_with("ipv6") => {}
            other => other.step(format!("set {file} of {whose}"))?,
        }
    }
    Ok(())
}

/// In an application's network: what is bound for elsewhere is for whoever listens here, or refused
/// at once. Nobody is pinged in others' names.
pub fn take_what_leads_out() -> Result<(), StepError> {
    let file = "icmp_echo_ignore_all";
    fs::write(format!("/proc/sys/net/ipv4/{file}"), "1")
        .step(format!("set {file} of the application's network"))?;
    let mut netlink = Netlink::open().step("open the network's routing socket")?;
    netlink
        .take_all(index_of("lo").step("find lo")?)
        .step("take what leads out of the network")
}

/// Mounts everything the machine sees below `root`; relative paths, because the folders above
/// may be closed to the machine's root.
fn file_systems(spec: &Spec) -> Result<(), StepError> {
    let bound = tmpfs_bound(spec.allowance.memory_bytes);
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .step("make mounts private")?;
    // Volatile: a machine's own files end with it, so nothing is gained by waiting for the disk.
    mount(Some("overlay"), "root", Some("overlay"), MsFlags::empty(), Some("lowerdir=lower,upperdir=upper,workdir=work,userxattr,volatile"))
        .step_cure("lay the machine's files over the image", "The state folder must lie on a file system that can carry overlays (ext4, xfs, btrfs; not NFS, nor another overlay), with kernel 5.12 or newer")?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let closed = quiet | MsFlags::MS_NOEXEC;
    for folder in [
        "proc",
        "sys",
        "run",
        "dev",
        "tmp",
        "etc",
        "usr/local/bin",
        "root",
    ] {
        fs::create_dir_all(format!("root/{folder}"))
            .step(format!("make /{folder} of the machine"))?;
    }
    let _ = fs::set_permissions("root/tmp", fs::Permissions::from_mode(0o1777));
    mount(Some("proc"), "root/proc", Some("proc"), closed, NONE)
        .step_cure("mount /proc of the machine", "Inside a container, its own /proc must not be masked (docker: --security-opt systempaths=unconfined)")?;
    // Hidden parts of the host's own /sys forbid this mount; machines do without.
    let _ = mount(
        Some("sysfs"),
        "root/sys",
        Some("sysfs"),
        closed | MsFlags::MS_RDONLY,
        NONE,
    );
    mount(
        Some("tmpfs"),
        "root/run",
        Some("tmpfs"),
        quiet,
        Some(format!("mode=755,{bound}").as_str()),
    )
    .step("mount /run of the machine")?;
    mount(
        Some("tmpfs"),
        "root/dev",
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=755,size=64k,nr_inodes=64"),
    )
    .step("mount /dev of the machine")?;
    show_group(spec);
    for device in DEVICES {
        let inside = format!("root/dev/{device}");
        File::create(&inside).step("make a device's place")?;
        mount(
            Some(format!("/dev/{device}").as_str()),
            inside.as_str(),
            NONE,
            MsFlags::MS_BIND,
            NONE,
        )
        .step(format!("show /dev/{device} to the machine"))?;
    }
    for (folder, mode) in [("shm", 0o1777), ("pts", 0o755), ("mqueue", 0o1777)] {
        fs::DirBuilder::new()
            .mode(mode)
            .create(format!("root/dev/{folder}"))
            .step("make a folder in /dev")?;
    }
    mount(
        Some("shm"),
        "root/dev/shm",
        Some("tmpfs"),
        closed,
        Some(format!("mode=1777,{bound}").as_str()),
    )
    .step("mount /dev/shm of the machine")?;
    mount(
        Some("devpts"),
        "root/dev/pts",
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=620,gid=5"),
    )
    .step("mount /dev/pts of the machine")?;
    let _ = mount(
        Some("mqueue"),
        "root/dev/mqueue",
        Some("mqueue"),
        closed,
        NONE,
    );
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlink(target, format!("root/dev/{name}")).step("make a link in /dev")?;
    }
    // The upper layer gets an empty file once; the program itself is only shown over it.
    let program = format!("root{PROGRAM}");
    if !Path::new(&program).exists() {
        File::create(&program).step("make the program's place")?;
    }
    mount(
        Some("conpaas"),
        program.as_str(),
        NONE,
        MsFlags::MS_BIND,
        NONE,
    )
    .step("show the program to the machine")?;
    restrict(
        &program,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
    )
    .step("protect the program")
}

/// Shows the machine what its control group counts (the one with memory), to be read only. A host
/// that does not let us costs figures, no machine.
fn show_group(spec: &Spec) {
    let groups = spec
        .cgroups
        .groups(spec.installation.as_str(), spec.id.as_str());
    let place = format!("root{MACHINE_GROUP}");
    let Some(group) = groups.first().filter(|group| group.exists()) else {
        return;
    };
    if fs::create_dir_all(&place).is_err()
        || mount(Some(group), place.as_str(), NONE, MsFlags::MS_BIND, NONE).is_err()
    {
        return;
    }
    let closed = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    if restrict(&place, closed).is_err() {
        let _ = umount2(place.as_str(), MntFlags::MNT_DETACH);
    }
}

/// Bounds of a file system in memory: its files are nobody's processes, so when memory runs out
/// nothing would ever free them.
fn tmpfs_bound(memory_bytes: u64) -> String {
    let size = (memory_bytes / 8).max(LEAST_TMPFS);
    format!("size={size},nr_inodes={}", size / PAGE)
}

/// Adds restrictions to a mount and all below it, keeping those it has.
fn restrict(path: &str, attributes: u64) -> io::Result<()> {
    let path = CString::new(path)?;
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: both pointers live across the call and the size is that of the structure.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes parts of the kernel's files read-only and hides others.
fn mask() -> Result<(), StepError> {
    let closed = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    for path in READ_ONLY {
        if Path::new(path).exists() {
            mount(
                Some(path),
                path,
                NONE,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                NONE,
            )
            .step(format!("protect {path}"))?;
            restrict(path, closed).step(format!("protect {path}"))?;
        }
    }
    for path in HIDDEN_FILES {
        if Path::new(path).exists() {
            mount(Some("/dev/null"), path, NONE, MsFlags::MS_BIND, NONE)
                .step(format!("hide {path}"))?;
        }
    }
    for path in HIDDEN_FOLDERS {
        if Path::new(path).is_dir() {
            mount(
                Some("tmpfs"),
                path,
                Some("tmpfs"),
                MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                Some("size=4k"),
            )
            .step(format!("hide {path}"))?;
        }
    }
    Ok(())
}

/// Writes what makes this machine itself and no other.
fn files(spec: &Spec, context: &[u8]) -> Result<(), StepError> {
    let put = |path: &str, text: &str, mode: u32| -> Result<(), StepError> {
        // A link of the image (to a resolver's file, say) is replaced, not followed.
        let _ = fs::remove_file(path);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .step(format!("write {path} of the machine"))?;
        file.write_all(text.as_bytes())
            .step(format!("write {path} of the machine"))
    };
    let name = &spec.hostname;
    put("/etc/hostname", &format!("{name}\n"), 0o644)?;
    put(
        "/etc/hosts",
        &format!("127.0.0.1 localhost\n{} {name}\n", spec.address),
        0o644,
    )?;
    // The agent answers for the application's own names, the gateway for the world's where it may
    // be reached; where nobody is, the kernel refuses at once.
    put(
        "/etc/resolv.conf",
        &format!(
            "nameserver 127.0.0.53\nnameserver {}\noptions timeout:3 attempts:2\n",
            spec.gateway
        ),
        0o644,
    )?;
    let folder = Path::new("/etc/conpaas");
    if !folder.is_dir() {
        fs::DirBuilder::new()
            .mode(0o755)
            .create(folder)
            .step("make /etc/conpaas of the machine")?;
    }
    let path = "/etc/conpaas/context.json";
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .step(format!("write {path}"))?;
    file.write_all(context).step(format!("write {path}"))
}

/// Nothing in, everything out to the console; no other descriptor survives.
fn stdio(console: &File) -> Result<(), StepError> {
    let null = File::open("/dev/null").step("open /dev/null")?;
    for (from, to) in [
        (null.as_raw_fd(), 0),
        (console.as_raw_fd(), 1),
        (console.as_raw_fd(), 2),
    ] {
        // SAFETY: both descriptors are open; 0 to 2 belong to this process as the standard ones.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(StepError::new(
                "connect the console",
                io::Error::last_os_error(),
            ));
        }
    }
    // SAFETY: only marks descriptors to be closed by exec.
    if unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    } < 0
    {
        return Err(StepError::new(
            "close descriptors",
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_memory_take_an_eighth_of_it() {
        assert_eq!(tmpfs_bound(256 << 20), "size=33554432,nr_inodes=8192");
        assert_eq!(tmpfs_bound(16 << 20), "size=8388608,nr_inodes=2048");
    }
}
