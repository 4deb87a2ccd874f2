//! Signals as bytes in a pipe, so that the loop waits for them like for anything else.

use crate::InitError;
use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The pipe's writing end; a handler can reach nothing but a global.
static WRITE_END: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write(2) may be called in a handler; errno is put back for whom was interrupted.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(
            WRITE_END.load(Ordering::Relaxed),
            std::ptr::from_ref(&byte).cast(),
            1,
        );
        *libc::__errno_location() = errno;
    }
}

/// Signals that have arrived.
pub struct Signals {
    read_end: OwnedFd,
    _write_end: OwnedFd,
}

impl Signals {
    /// Starts catching SIGCHLD, SIGTERM, SIGINT, and ignores SIGPIPE and SIGHUP.
    pub fn catch() -> Result<Self, InitError> {
        let io = |what| {
            move |errno: nix::Error| InitError::Io {
                what,
                source: errno.into(),
            }
        };
        let (read_end, write_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(io("make a pipe for signals"))?;
        WRITE_END.store(write_end.as_raw_fd(), Ordering::Relaxed);
        let set = |signal, handler| {
            let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: the handler calls nothing but write(2).
            unsafe { sigaction(signal, &action) }.map_err(io("catch signals"))
        };
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            set(signal, SigHandler::Handler(on_signal))?;
        }
        for signal in [Signal::SIGPIPE, Signal::SIGHUP] {
            set(signal, SigHandler::SigIgn)?;
        }
        Ok(Self {
            read_end,
            _write_end: write_end,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.read_end.as_fd()
    }

    /// Takes what has arrived: whether to end.
    pub fn take(&self) -> bool {
        let mut bytes = [0u8; 64];
        let mut end = false;
        while let Ok(count) = nix::unistd::read(&self.read_end, &mut bytes) {
            if count == 0 {
                break;
            }
            end |= bytes[..count]
                .iter()
                .any(|byte| [libc::SIGTERM, libc::SIGINT].contains(&i32::from(*byte)));
        }
        end
    }
}
