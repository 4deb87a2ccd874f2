//! Connections on init's socket: who may speak, lines in and lines out. What requests mean is
//! the keeper's business.

use crate::protocol::{Answer, MAX_LINE, Outcome, VERSION};
use crate::{InitError, say};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// Someone who makes requests.
pub struct Connection {
    pub id: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A request is under way; later ones wait, so that answers keep their order.
    pub busy: bool,
    closed: bool,
}

impl Connection {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what is there.
    pub fn fill(&mut self) {
        let mut buffer = [0u8; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break self.closed = true,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => break self.closed = true,
            }
            if self.input.len() > MAX_LINE {
                break self.closed = true;
            }
        }
    }

    /// The next whole line, unless a request is under way.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        if self.busy {
            return None;
        }
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.input.drain(..=end).collect();
        Some(line)
    }

    /// Answers the request under way.
    pub fn answer(&mut self, outcome: Outcome) {
        self.busy = false;
        // Answers are made of strings and numbers, so they always encode.
        if let Ok(mut text) = serde_json::to_vec(&Answer {
            v: VERSION,
            outcome,
        }) {
            text.push(b'\n');
            self.output.extend_from_slice(&text);
        }
        self.flush();
    }

    pub fn flush(&mut self) {
        while !self.output.is_empty() && !self.closed {
            match self.stream.write(&self.output) {
                Ok(0) => self.closed = true,
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.closed = true,
            }
        }
    }
}

/// The socket and everyone connected to it.
pub struct Server {
    listener: UnixListener,
    allowed_uid: u32,
    next_id: u64,
    pub connections: Vec<Connection>,
}

impl Server {
    /// Listens at a path that only the owner can reach; an old socket there is replaced.
    pub fn bind(path: &Path, allowed_uid: u32) -> Result<Self, InitError> {
        let io = |what| move |source| InitError::Io { what, source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io("make the socket's folder"))?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(InitError::Io {
                    what: "remove the old socket",
                    source: error,
                });
            }
            _ => {}
        }
        let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        nix::sys::stat::umask(mask);
        let listener = listener.map_err(io("listen on the socket"))?;
        listener
            .set_nonblocking(true)
            .map_err(io("listen on the socket"))?;
        Ok(Self {
            listener,
            allowed_uid,
            next_id: 0,
            connections: Vec::new(),
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes in whoever knocks and may enter.
    pub fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let uid = getsockopt(&stream, PeerCredentials).map(|peer| peer.uid());
            if uid != Ok(self.allowed_uid) {
                say("WARN", &format!("a connection of uid {uid:?} was refused"));
                continue;
            }
            if self.connections.len() >= MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
                say("WARN", "a connection was refused: there are too many");
                continue;
            }
            self.next_id += 1;
            self.connections.push(Connection {
                id: self.next_id,
                stream,
                input: Vec::new(),
                output: Vec::new(),
                busy: false,
                closed: false,
            });
        }
    }

    /// Answers a request that took a while, if who made it is still there.
    pub fn answer(&mut self, id: u64, outcome: Outcome) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.answer(outcome);
        }
    }

    /// Lets go of those who have gone.
    pub fn sweep(&mut self) {
        self.connections.retain(|connection| !connection.closed);
    }
}
