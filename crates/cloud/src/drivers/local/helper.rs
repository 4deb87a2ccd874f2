//! The helper: a single-threaded, mostly short-lived program that enters namespaces for others
//! (which a process with several threads cannot) and does what must be done inside.

use super::channel;
use super::enter::{Assistant, join_machine, join_network, make_user_namespace};
use super::harden;
use super::idmap::IdMap;
use super::process::{Pidfd, ProcessIdentity};
use super::records::Layout;
use super::step::{Step, StepError};
use crate::types::CloudMachineId;
use conpaas_model::ids::ApplicationId;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen as listen_on, setsockopt,
    socket, sockopt,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, fork};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Exit code when the helper itself fails, apart from the codes of what it runs.
const FAILED: i32 = 125;

/// Where names are asked for.
const NAMES_PORT: u16 = 53;

/// The program `machine-helper`.
pub fn main(args: Vec<OsString>) -> i32 {
    match dispatch(&args) {
        Ok(code) => code,
        Err(e) => {
            // One line that the driver understands and a person can read.
            let _ = writeln!(
                std::io::stderr(),
                "{}",
                serde_json::to_string(&e).unwrap_or(e.step)
            );
            FAILED
        }
    }
}

fn dispatch(args: &[OsString]) -> Result<i32, StepError> {
    let words: Vec<&str> = args
        .iter()
        .map(|a| a.to_str().unwrap_or_default())
        .collect();
    match (&words[..], args) {
        (["exec", _, id, ..], [_, state, _, argv @ ..]) => exec(
            &Layout(state.into()),
            &CloudMachineId((*id).to_owned()),
            argv,
        ),
        (["listen", _, network, address], [_, state, ..]) => {
            let address = address.parse().step("understand the address")?;
            listen(&Layout(state.into()), &application(network)?, address)
        }
        (["sockets", _, network], [_, state, ..]) => {
            sockets(&Layout(state.into()), &application(network)?)
        }
        (["outlet", _, network, ports @ ..], [_, state, ..]) => {
            outlet(&Layout(state.into()), &application(network)?, ports)
        }
        (["remove", map, ..], [_, _, trees @ ..]) => remove(&id_map(map)?, trees),
        (["unpack", map, _], [_, _, folder]) => unpack(&id_map(map)?, Path::new(folder)),
        (["probe", map, _], [_, _, folder]) => probe(&id_map(map)?, Path::new(folder)),
        _ => Err(StepError::new(
            "understand the arguments",
            "expected exec, listen, sockets, outlet, remove, unpack or probe and what they need",
        )),
    }
}

fn application(text: &str) -> Result<ApplicationId, StepError> {
    text.parse().step("understand the network's name")
}

fn id_map(text: &str) -> Result<IdMap, StepError> {
    serde_json::from_str(text).step("understand the id map")
}

/// Runs a program in a machine with the rights of the machine's own processes, and ends as it does.
fn exec(layout: &Layout, id: &CloudMachineId, argv: &[OsString]) -> Result<i32, StepError> {
    let gone = || StepError::new("enter the machine", format!("machine {id} is not running"));
    let (record, state) = layout
        .load(id)
        .step("read the machine's record")?
        .ok_or_else(gone)?;
    let init = state.and_then(|s| s.init).ok_or_else(gone)?;
    let [program, arguments @ ..] = argv else {
        return Err(StepError::new("run a program", "no program is given"));
    };
    let joined = record.cgroups.join(
        record.installation.as_str(),
        id.as_str(),
        std::process::id() as i32,
    );
    // An ordinary user's session may not move processes between groups; root always may.
    if nix::unistd::geteuid().is_root() {
        joined.step("put the program under the machine's limits")?;
    }
    if !join_machine(&init)? {
        return Err(gone());
    }
    // SAFETY: this process has one thread.
    match unsafe { fork() }.step("fork")? {
        ForkResult::Child => {
            // SAFETY: no pointers. The program ends with its helper.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let run = || -> Result<std::convert::Infallible, StepError> {
                let mut command = Command::new(program);
                command.args(arguments).env_clear().current_dir("/");
                command
                    .env(
                        "PATH",
                        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    )
                    .env("HOME", "/root")
                    .env("LANG", "C.UTF-8");
                command.envs(std::env::var_os("TERM").map(|term| ("TERM", term)));
                chdir("/").step("enter the machine's root")?;
                // SAFETY: only marks descriptors to be closed by exec.
                unsafe {
                    libc::syscall(
                        libc::SYS_close_range,
                        3u32,
                        u32::MAX,
                        libc::CLOSE_RANGE_CLOEXEC,
                    )
                };
                harden::reset_signals();
                harden::apply()?;
                Err(StepError::new(
                    format!("run {}", program.to_string_lossy()),
                    command.exec(),
                ))
            };
            let Err(e) = run();
            eprintln!("could not {}: {}", e.step, e.detail);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            // The terminal's signals are the program's business.
            // SAFETY: documented dispositions.
            unsafe {
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                libc::signal(libc::SIGQUIT, libc::SIG_IGN);
            }
            loop {
                match waitpid(child, None) {
                    Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                    Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(e) => return Err(StepError::new("wait for the program", e)),
                }
            }
        }
    }
}

/// Enters an application's network through any supervisor in it.
fn enter_network(
    layout: &Layout,
    network: &ApplicationId,
) -> Result<Option<(ProcessIdentity, String)>, StepError> {
    for (holder, instance) in layout.holders(network).step("read the machines' records")? {
        if join_network(&holder)? {
            return Ok(Some((holder, instance)));
        }
    }
    Ok(None)
}

/// Opens a listener in the network and hands it over on standard input (a socket).
fn listen(
    layout: &Layout,
    network: &ApplicationId,
    address: SocketAddrV4,
) -> Result<i32, StepError> {
    let channel = super::supervisor::take_stdin();
    if enter_network(layout, network)?.is_none() {
        channel::send(channel.as_fd(), b"gone", &[]).step("answer")?;
        return Ok(0);
    }
    let listener = TcpListener::bind(address)
        .step(format!("listen at {address} in the network of {network}"))?;
    channel::send(channel.as_fd(), b"listener", &[listener.into()])
        .step("hand over the listener")?;
    Ok(0)
}

/// Hands over, in one message that names the network, the sockets at which its machines knock
/// that want to get out: names by UDP and TCP, then each port at all addresses. Others may listen
/// beside them, so that one who takes over misses no knock.
fn outlet(layout: &Layout, network: &ApplicationId, ports: &[&str]) -> Result<i32, StepError> {
    let channel = super::supervisor::take_stdin();
    let Some((_, instance)) = enter_network(layout, network)? else {
        channel::send(channel.as_fd(), b"", &[]).step("answer")?;
        return Ok(0);
    };
    let names = SocketAddrV4::new(super::config::GATEWAY, NAMES_PORT);
    let mut made = vec![
        shared_socket(SockType::Datagram, names)?,
        shared_socket(SockType::Stream, names)?,
    ];
    for port in ports {
        let port = port.parse().step(format!("understand the port {port}"))?;
        let everywhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        made.push(shared_socket(SockType::Stream, everywhere)?);
    }
    channel::send(channel.as_fd(), instance.as_bytes(), &made).step("hand over the sockets")?;
    Ok(0)
}

/// A socket at an address that others may be bound to as well; one of streams listens.
fn shared_socket(kind: SockType, address: SocketAddrV4) -> Result<OwnedFd, StepError> {
    let make = || -> nix::Result<OwnedFd> {
        let socket = socket(
            AddressFamily::Inet,
            kind,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(address))?;
        if kind == SockType::Stream {
            listen_on(&socket, Backlog::new(1024)?)?;
        }
        Ok(socket)
    };
    make().step(format!("listen at {address} for what wants to get out"))
}

/// Hands out unconnected sockets of the network, as many as each request's byte says, until
/// nobody asks any more or the network is gone.
fn sockets(layout: &Layout, network: &ApplicationId) -> Result<i32, StepError> {
    let channel = super::supervisor::take_stdin();
    let Some((mut holder, instance)) = enter_network(layout, network)? else {
        channel::send(channel.as_fd(), b"", &[]).step("answer")?;
        return Ok(0);
    };
    channel::send(channel.as_fd(), instance.as_bytes(), &[]).step("answer")?;
    loop {
        let Some(watch): Option<Pidfd> = holder.open().step("watch the network")? else {
            // Our own presence would keep a network of no machines alive.
            let others = layout.holders(network).step("read the machines' records")?;
            match others.into_iter().find(|(_, name)| *name == instance) {
                Some((other, _)) => holder = other,
                None => return Ok(0),
            }
            continue;
        };
        let mut fds = [
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.step("wait for requests")?,
        };
        if fds[0].any() != Some(true) {
            continue;
        }
        let (request, _) = channel::receive(channel.as_fd()).step("hear a request")?;
        let Some(wanted) = request.first() else {
            return Ok(0);
        };
        let mut made = Vec::new();
        for _ in 0..(*wanted as usize).clamp(1, channel::MOST_FDS) {
            // SAFETY: no pointers; the result is a new descriptor or -1.
            let fd = unsafe {
                libc::socket(
                    libc::AF_INET,
                    libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    0,
                )
            };
            if fd < 0 {
                return Err(StepError::new(
                    "make a socket",
                    std::io::Error::last_os_error(),
                ));
            }
            // SAFETY: the kernel just gave us this descriptor.
            made.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        channel::send(channel.as_fd(), b"sockets", &made).step("hand over sockets")?;
    }
}

/// Enters a namespace of its own with the map, and perhaps more.
fn enter_alone(map: &IdMap, more: CloneFlags) -> Result<(), StepError> {
    let assistant = Assistant::start(map.clone())?;
    make_user_namespace(&assistant, map, more)?;
    assistant.dismiss();
    Ok(())
}

/// Removes trees that belong to mapped ids.
fn remove(map: &IdMap, trees: &[OsString]) -> Result<i32, StepError> {
    enter_alone(map, CloneFlags::empty())?;
    for tree in trees {
        match fs::remove_dir_all(tree) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(StepError::new(
                    format!("remove {}", Path::new(tree).display()),
                    e,
                ));
            }
            _ => {}
        }
    }
    Ok(0)
}

/// Becomes `tar`, unpacking standard input into a folder that then belongs to mapped root.
fn unpack(map: &IdMap, folder: &Path) -> Result<i32, StepError> {
    enter_alone(map, CloneFlags::empty())?;
    chdir(folder).step(format!("enter {}", folder.display()))?;
    std::os::unix::fs::chown(".", Some(0), Some(0)).step("give the image its owner")?;
    let error = Command::new("tar")
        .args([
            "--extract",
            "--file=-",
            "--preserve-permissions",
            "--numeric-owner",
            "--exclude=./dev/*",
            "--exclude=dev/*",
        ])
        .exec();
    Err(StepError {
        cure: Some("Install it (Debian: apt install tar)".into()),
        ..StepError::new("run tar", error)
    })
}

/// Tries in a folder everything that a machine needs of the kernel and the file system.
fn probe(map: &IdMap, folder: &Path) -> Result<i32, StepError> {
    enter_alone(
        map,
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .step("keep mounts to ourselves")?;
    chdir(folder).step_cure(
        format!("enter {}", folder.display()),
        "Every folder above the state folder must be yours or open to all for passing (x)",
    )?;
    for name in ["lower", "upper", "work", "root", "lower/gone"] {
        fs::create_dir(name).step(format!("make a folder in {}", folder.display()))?;
    }
    fs::write("lower/gone/file", "below").step("write a file")?;
    mount(Some("overlay"), "root", Some("overlay"), MsFlags::empty(), Some("lowerdir=lower,upperdir=upper,workdir=work,userxattr")).step_cure(
        format!("mount an overlay in {}", folder.display()),
        "Put the state folder on a file system that can carry overlays (ext4, xfs, btrfs; not NFS, nor another overlay), with kernel 5.12 or newer",
    )?;
    // Removing what lies below is what a file system without extended attributes cannot record.
    let tried = fs::write("root/new", "above").and_then(|()| fs::remove_dir_all("root/gone"));
    let _ = nix::mount::umount2("root", nix::mount::MntFlags::MNT_DETACH);
    tried.step_cure(
        "write and remove files in an overlay",
        "Put the state folder on a file system with extended attributes (ext4, xfs, btrfs)",
    )?;
    Ok(0)
}

/// The address a listener for machines gets.
pub fn listen_address(gateway: Ipv4Addr, port: u16) -> String {
    SocketAddrV4::new(gateway, port).to_string()
}
