//! Dialling into an application's network from the Director's computer, for whoever leads people
//! or managers there. For networks that are namespaces, a small helper inside hands out
//! unconnected sockets; a socket stays in the network it was made in, so the caller connects it.

use crate::drivers::local::{MOST_FDS, helper_command, receive, send};
use crate::types::NetworkAccess;
use conpaas_model::ids::ApplicationId;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;

/// Sockets asked for at a time.
const BATCH: u8 = MOST_FDS as u8;

/// Connects to machines of one network. Cheap to share; its helper ends with it.
pub struct Dialer {
    access: NetworkAccess,
    helper: Mutex<Option<Helper>>,
}

/// The helper process inside one incarnation of the network.
struct Helper {
    instance: String,
    channel: AsyncFd<OwnedFd>,
    ready: Vec<OwnedFd>,
    /// Killed and reaped when dropped.
    _process: tokio::process::Child,
}

impl Dialer {
    pub fn new(access: NetworkAccess) -> Self {
        Self {
            access,
            helper: Mutex::new(None),
        }
    }

    /// Opens a connection to `address` as seen inside the network. Sets no time limit.
    ///
    /// # Errors
    /// `NotConnected` when no machine of the network runs; else what connecting says.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let NetworkAccess::Local {
            state_dir,
            network,
            program,
        } = &self.access
        else {
            return TcpStream::connect(address).await;
        };
        let socket = self.socket(state_dir, network, program).await?;
        TcpSocket::from_std_stream(std::net::TcpStream::from(socket))
            .connect(address)
            .await
    }

    async fn socket(
        &self,
        state_dir: &Path,
        network: &ApplicationId,
        program: &Path,
    ) -> io::Result<OwnedFd> {
        let mut slot = self.helper.lock().await;
        // Read each time: a network that lost all its machines is another one when it is back.
        let instance = current_instance(state_dir, network)?;
        if let Some(helper) = slot.as_mut().filter(|h| h.instance == instance)
            && let Ok(socket) = helper.take().await
        {
            return Ok(socket);
        }
        *slot = None;
        let mut helper = Helper::start(state_dir, network, program).await?;
        let socket = helper.take().await?;
        *slot = Some(helper);
        Ok(socket)
    }
}

fn gone(network: &ApplicationId) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        format!("the network of {network} has no running machine"),
    )
}

fn current_instance(state_dir: &Path, network: &ApplicationId) -> io::Result<String> {
    let path: PathBuf = crate::drivers::local::instance_file(state_dir, network);
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(gone(network)),
        other => other,
    }
}

impl Helper {
    async fn start(state_dir: &Path, network: &ApplicationId, program: &Path) -> io::Result<Self> {
        let (ours, theirs) = crate::drivers::local::pair()?;
        let mut command = helper_command(program, "sockets");
        command
            .arg(state_dir)
            .arg(network.as_str())
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        nix::fcntl::fcntl(
            &ours,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )?;
        // SAFETY: the socket owns its descriptor and is neither closed nor replaced while registered.
        let channel = unsafe { AsyncFd::register(ours) }?;
        // The first message names the incarnation that was entered, and is empty if there is none.
        let (name, _) = channel
            .async_io(Interest::READABLE, |fd| receive(fd.as_fd()))
            .await?;
        let instance = String::from_utf8(name).unwrap_or_default();
        if instance.is_empty() {
            return Err(gone(network));
        }
        Ok(Self {
            instance,
            channel,
            ready: Vec::new(),
            _process: process,
        })
    }

    async fn take(&mut self) -> io::Result<OwnedFd> {
        if let Some(socket) = self.ready.pop() {
            return Ok(socket);
        }
        self.channel
            .async_io(Interest::WRITABLE, |fd| send(fd.as_fd(), &[BATCH], &[]))
            .await?;
        let (_, sockets) = self
            .channel
            .async_io(Interest::READABLE, |fd| receive(fd.as_fd()))
            .await?;
        self.ready = sockets;
        self.ready.pop().ok_or_else(|| {
            io::Error::new(io::ErrorKind::BrokenPipe, "the helper of the network ended")
        })
    }
}
