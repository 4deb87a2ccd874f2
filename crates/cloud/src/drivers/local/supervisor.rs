//! A machine's supervisor: a small single-threaded program of its own session that makes the
//! machine, reports how that went, and then only holds the network, keeps the console and waits
//! to write down how the machine ended. It outlives whoever started it.

use super::cgroup::{Allowance, Cgroups};
use super::console::Console;
use super::enter::{Assistant, bound_namespace, join_network, make_user_namespace};
use super::idmap::IdMap;
use super::netlink::{Netlink, index_of, mac_of};
use super::process::{Pidfd, ProcessIdentity};
use super::records::{Layout, StateRecord, VERSION, write};
use super::root;
use super::step::{Step, StepError};
use crate::types::{CloudMachineId, Exit};
use conpaas_model::ids::{ApplicationId, InstallationId};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, fork, pipe2, setsid};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The bridge of every application's network.
pub const BRIDGE: &str = "br0";

/// What all machines of an application may have together of what the kernel counts per user.
const APPLICATION_LIMITS: [(&str, u32); 4] = [
    ("max_inotify_instances", 32),
    ("max_inotify_watches", 8192),
    ("max_fanotify_groups", 8),
    ("max_fanotify_marks", 1024),
];

/// What a supervisor is told, on its standard input, before the contextualization.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    pub version: u32,
    pub state_dir: PathBuf,
    pub image: PathBuf,
    pub id: CloudMachineId,
    pub installation: InstallationId,
    pub application: ApplicationId,
    pub hostname: String,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub prefix: u8,
    pub init_argv: Vec<String>,
    pub map: IdMap,
    pub cgroups: Cgroups,
    pub allowance: Allowance,
}

impl Spec {
    /// The bytes a supervisor reads: length of this as JSON, this, then the contextualization.
    pub fn encode(&self, context: &[u8]) -> serde_json::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let mut bytes = (json.len() as u32).to_le_bytes().to_vec();
        bytes.extend(json);
        bytes.extend(context);
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<(Self, Vec<u8>), StepError> {
        let short = || StepError::new("read what machine to make", "the description is cut short");
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let (json, context) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or_else(short)?;
        Ok((
            serde_json::from_slice(json).step("read what machine to make")?,
            context.to_vec(),
        ))
    }
}

/// How the making of a machine went, on the supervisor's standard output.
pub type Report = Result<StateRecord, StepError>;

/// The program `machine-supervisor`. Detaches at once; the report follows on standard output.
pub fn main() -> i32 {
    let mut bytes = Vec::new();
    if io::stdin().lock().read_to_end(&mut bytes).is_err() {
        return 2;
    }
    // SAFETY: this process has one thread.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => return 0,
        Ok(ForkResult::Child) => {}
        Err(_) => return 2,
    }
    let Ok(mut report) = detach() else { return 2 };
    let result = Spec::decode(&bytes).and_then(|(spec, context)| {
        let mut supervisor = Supervisor::new(spec)?;
        let init = supervisor.make(&context)?;
        Ok((supervisor, init))
    });
    let (told, running) = match result {
        Ok((supervisor, init)) => (
            Report::Ok(supervisor.state.clone()),
            Some((supervisor, init)),
        ),
        Err(e) => (Report::Err(e), None),
    };
    // Nobody may be listening any more; the record says the same.
    let _ = serde_json::to_vec(&told).map(|bytes| report.write_all(&bytes));
    drop(report);
    drop(bytes);
    match running {
        Some((supervisor, init)) => supervisor.wait(init),
        None => 1,
    }
}

/// A session of its own, nothing on the standard descriptors; returns the former standard output.
fn detach() -> io::Result<File> {
    let _ = setsid();
    chdir("/")?;
    // Whatever else was left open by whoever started us must not live as long as the machine.
    // SAFETY: nothing of ours is open yet beyond the standard descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0) };
    let report = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for to in 0..3 {
        // SAFETY: `null` is open, 0 to 2 are this process's standard descriptors.
        if unsafe { libc::dup2(null.as_raw_fd(), to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(report)
}

struct Init {
    pid: Pid,
    watch: Pidfd,
    console: File,
}

struct Supervisor {
    spec: Spec,
    folder: PathBuf,
    state: StateRecord,
    /// What this host does not let us do for the machine; told on its console.
    notes: Vec<String>,
}

impl Supervisor {
    fn new(spec: Spec) -> Result<Self, StepError> {
        let folder = Layout(spec.state_dir.clone()).machine(&spec.id);
        let supervisor = ProcessIdentity::of(std::process::id() as i32).step("read /proc")?;
        let state = StateRecord {
            version: VERSION,
            supervisor,
            network_instance: None,
            init: None,
            limits: None,
            exit: None,
        };
        let this = Self {
            spec,
            folder,
            state,
            notes: Vec::new(),
        };
        this.record()?;
        Ok(this)
    }

    fn record(&self) -> Result<(), StepError> {
        let bytes = serde_json::to_vec(&self.state).step("encode the machine's state")?;
        write(&self.folder.join("state.json"), &bytes).step("write down the machine's state")
    }

    fn make(&mut self, context: &[u8]) -> Result<Init, StepError> {
        raise_open_files();
        let assistant = Assistant::start(self.spec.map.clone())?;
        self.enter_network(&assistant)?;
        self.prepare_folders()?;
        let init = self.start_init(&assistant, context)?;
        assistant.dismiss();
        Ok(init)
    }

    /// Joins the application's network, or makes it when no supervisor holds it.
    fn enter_network(&mut self, assistant: &Assistant) -> Result<(), StepError> {
        let layout = Layout(self.spec.state_dir.clone());
        let network = self.spec.application.clone();
        // Held until our own record makes us findable, so that a network is made once.
        let lock = layout
            .lock_network(&network)
            .step("lock the application's network")?;
        let mut instance = None;
        for (holder, name) in layout
            .holders(&network)
            .step("read the machines' records")?
        {
            if join_network(&holder)? {
                instance = Some(name);
                break;
            }
        }
        if instance.is_none() {
            make_user_namespace(assistant, &self.spec.map, CloneFlags::CLONE_NEWNET)?;
            self.notes
                .extend(bound_namespace("/proc", &APPLICATION_LIMITS));
            root::quiet_network("the application's network")?;
            let mut netlink = Netlink::open().step("open the network's routing socket")?;
            netlink
                .up(index_of("lo").step("find lo")?)
                .step("bring lo up")?;
            netlink
                .add_bridge(BRIDGE, mac_of(self.spec.gateway))
                .step("make the network's bridge")?;
            let bridge = index_of(BRIDGE).step("find the bridge")?;
            netlink
                .add_address(bridge, self.spec.gateway, self.spec.prefix)
                .step("give the bridge its address")?;
            let me = &self.state.supervisor;
            let boot = me.boot_id.get(..8).unwrap_or_default();
            let name = format!("{boot}-{}-{}", me.pid, me.start_time);
            write(&layout.instance(&network), name.as_bytes())
                .step("write down the network's name")?;
            instance = Some(name);
        }
        // Also where an earlier version made the network.
        root::take_what_leads_out()?;
        self.state.network_instance = instance;
        self.record()?;
        drop(lock);
        Ok(())
    }

    /// A mount namespace of our own with the image beside the machine's layers, and us in it.
    fn prepare_folders(&self) -> Result<(), StepError> {
        unshare(CloneFlags::CLONE_NEWNS).step("make a mount namespace")?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .step("keep our mounts to ourselves")?;
        chdir(&self.folder).step_cure(
            format!("enter {}", self.folder.display()),
            "Every folder above the state folder must be yours or open to all for passing (x)",
        )?;
        for folder in ["upper", "work", "root", "lower"] {
            fs::DirBuilder::new()
                .mode(0o755)
                .create(folder)
                .step(format!("make the machine's folder {folder}"))?;
        }
        mount(
            Some(&self.spec.image),
            "lower",
            none,
            MsFlags::MS_BIND,
            none,
        )
        .step_cure(
            "show the image to the machine",
            "The image folder must be there and reachable; unpack it again if not",
        )
    }

    fn start_init(&mut self, assistant: &Assistant, context: &[u8]) -> Result<Init, StepError> {
        let cloexec = nix::fcntl::OFlag::O_CLOEXEC;
        let (go_reader, go_writer) = pipe2(cloexec).step("make a pipe")?;
        let (status_reader, status_writer) = pipe2(cloexec).step("make a pipe")?;
        let (console_reader, console_writer) = pipe2(cloexec).step("make a pipe")?;
        let flags = libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWNET
            | libc::SIGCHLD;
        // SAFETY: without CLONE_VM this is a fork; this process has one thread. The order of the
        // remaining arguments does not matter, as all are null.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) };
        if pid < 0 {
            return Err(StepError {
                cure: Some("Raise /proc/sys/user/max_user_namespaces and its siblings, or destroy machines".into()),
                ..StepError::new("make the machine's namespaces", io::Error::last_os_error())
            });
        }
        if pid == 0 {
            drop((go_writer, status_reader, console_reader));
            let result = child(
                &self.spec,
                context,
                File::from(go_reader),
                &File::from(console_writer),
            );
            let Err(error) = result;
            let _ =
                serde_json::to_vec(&error).map(|bytes| File::from(status_writer).write_all(&bytes));
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(1) }
        }
        let pid = Pid::from_raw(pid as i32);
        drop((go_reader, status_writer, console_writer));
        let started = self.attach(assistant, pid).and_then(|()| {
            File::from(go_writer).write_all(b"g").step("let init go")?;
            let mut failure = Vec::new();
            File::from(status_reader)
                .read_to_end(&mut failure)
                .step("hear from init")?;
            match serde_json::from_slice::<StepError>(&failure) {
                Ok(error) => Err(error),
                Err(_) if failure.is_empty() => Ok(()),
                Err(e) => Err(StepError::new("understand init", e)),
            }
        });
        let finished = started.and_then(|()| {
            self.state.init = Some(ProcessIdentity::of(pid.as_raw()).step("find init")?);
            self.record()?;
            Ok(Init {
                pid,
                watch: Pidfd::open(pid.as_raw()).step("watch init")?,
                console: File::from(console_reader),
            })
        });
        if finished.is_err() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
        }
        finished
    }

    /// Everything a new machine needs from outside before it may run.
    fn attach(&mut self, assistant: &Assistant, pid: Pid) -> Result<(), StepError> {
        let spec = &self.spec;
        spec.map.write_nested(pid.as_raw())?;
        let (limits, unprotected) = assistant.limit(
            &spec.cgroups,
            spec.installation.as_str(),
            spec.id.as_str(),
            pid.as_raw(),
            spec.allowance,
        )?;
        self.state.limits = Some(limits);
        self.notes.extend(unprotected);
        let mut netlink = Netlink::open().step("open the network's routing socket")?;
        let bridge = index_of(BRIDGE).step("find the bridge")?;
        let mac = mac_of(spec.address);
        // The kernel numbers the cable: an old one of the same machine may still be on its way out.
        netlink
            .add_cable("v%d", bridge, "eth0", mac, pid.as_raw())
            .step("plug the machine in")?;
        netlink
            .add_neighbour(bridge, spec.address, mac)
            .step("write the machine down as a neighbour")
    }

    /// Keeps the console and waits for the end; returns this program's exit code.
    fn wait(mut self, init: Init) -> i32 {
        let mut console = Console::open(&self.folder).ok();
        if let Some(console) = &mut console {
            for note in &self.notes {
                let _ = console.append(note_line(note).as_bytes());
            }
        }
        let mut source = Some(init.console);
        let mut buffer = vec![0u8; 16 * 1024];
        if let Some(pipe) = &source {
            nonblocking(pipe);
        }
        loop {
            let mut fds = vec![PollFd::new(init.watch.as_fd(), PollFlags::POLLIN)];
            if let Some(pipe) = &source {
                fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => break,
                Ok(_) => {}
            }
            let ended = fds.first().and_then(PollFd::any).unwrap_or(false);
            drop(fds);
            while let Some(pipe) = &mut source {
                match pipe.read(&mut buffer) {
                    Ok(0) => source = None,
                    Ok(n) => {
                        if let Some(console) = &mut console {
                            // A full disk costs lines, never the machine.
                            let _ = console.append(&buffer[..n]);
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => source = None,
                }
            }
            if ended {
                break;
            }
        }
        self.state.exit = Some(match waitpid(init.pid, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => Exit::Code { code },
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal {
                signal: signal as i32,
            },
            _ => Exit::SupervisorGone,
        });
        i32::from(self.record().is_err())
    }
}

fn child(
    spec: &Spec,
    context: &[u8],
    mut go: File,
    console: &File,
) -> Result<std::convert::Infallible, StepError> {
    let mut byte = [0u8; 1];
    // An end instead of the byte means that the supervisor gave up or died.
    go.read_exact(&mut byte).step("wait for the supervisor")?;
    super::enter::become_root()?;
    root::become_init(spec, context, console)
}

/// A note as a line of the console.
pub fn note_line(note: &str) -> String {
    let line = serde_json::json!({ "level": "WARN", "target": "supervisor", "message": note });
    format!("{line}\n")
}

fn nonblocking(file: &File) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let _ = fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
}

/// Proxies and databases need more open files than a login's soft limit.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Copies the program that machines and helpers run into the state folder, named by its content,
/// so that a rebuilt one does not change under them. Returns the copy.
pub fn keep_program(layout: &Layout, program: &Path) -> io::Result<PathBuf> {
    let place = |hash: &str| layout.bin().join(&hash[..24]).join("conpaas");
    let kept = place(&copy_hashed(&mut File::open(program)?, &mut io::sink())?);
    if kept.exists() {
        return Ok(kept);
    }
    let folders = |folder: &Path| {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(folder)
    };
    folders(&layout.bin())?;
    let temporary = layout
        .bin()
        .join(format!(".conpaas.{}", std::process::id()));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&temporary)?;
    // Its name is what was copied: the program may have been rebuilt since it was looked at.
    let kept = place(&copy_hashed(&mut File::open(program)?, &mut file)?);
    drop(file);
    folders(kept.parent().unwrap_or(Path::new("/")))?;
    fs::rename(&temporary, &kept)?;
    Ok(kept)
}

/// Copies piece by piece, as a program is far larger than what its daemons need; gives the SHA-256.
fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> io::Result<String> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    let mut piece = vec![0; 256 * 1024];
    loop {
        let read = from.read(&mut piece)?;
        let Some(read) = piece.get(..read).filter(|read| !read.is_empty()) else {
            return Ok(hex::encode(hash.finalize()));
        };
        hash.update(read);
        to.write_all(read)?;
    }
}

/// Takes a descriptor that our parent left on standard input.
pub fn take_stdin() -> std::os::fd::OwnedFd {
    // SAFETY: descriptor 0 is ours alone; helpers read nothing else from it.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(0) }
}
