//! The keeper: a small process that starts Director and edge and starts them again when they end
//! by themselves, holds the edge's listening socket so that no connection is refused meanwhile,
//! and puts newer programs in their places. It decides nothing else: what runs is what its record
//! says, and whoever wants it otherwise signals it (SIGTERM: end everything; SIGHUP: become the
//! program that `run/program` names).

use super::process::{self, Identity, same_program};
use super::settings::{Place, Settings};
use super::{DIRECTOR, EDGE, KEEPER};
use crate::contexts::{remove_if_there, write_private};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::error::Error;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// How often daemons that are no children of the keeper are looked at.
const TICK: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who lived so long had no trouble with starting.
const SETTLED: Duration = Duration::from_secs(60);
/// How long daemons may take to finish what is in flight.
const GRACE: Duration = Duration::from_secs(40);
/// How long a new edge may take until it serves.
const READY_LIMIT: Duration = Duration::from_secs(20);

type AnyError = Box<dyn Error + Send + Sync>;

/// What the keeper has seen of a daemon, in `run/kept.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How often it ended by itself and was started again.
    pub restarts: u32,
    /// How it ended the last time: `signal 9`, `exit code 1`.
    pub last_end: Option<String>,
}

/// Of all daemons.
pub type Kept = BTreeMap<String, Seen>;

/// What the keeper has seen so far; nothing where there was none.
pub fn seen(place: &Place) -> Kept {
    std::fs::read(place.kept())
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// How long to wait before a daemon is started again that ended so often in a row.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(LONGEST_PAUSE)
}

/// How a process ended, in words.
fn in_words(status: WaitStatus) -> Option<(Pid, String)> {
    match status {
        WaitStatus::Exited(pid, code) => Some((pid, format!("exit code {code}"))),
        WaitStatus::Signaled(pid, signal, _) => Some((pid, format!("signal {}", signal as i32))),
        _ => None,
    }
}

/// A daemon in the keeper's care.
struct Daemon {
    name: &'static str,
    process: Option<Identity>,
    started: Instant,
    /// Ends in a row, soon after the start.
    failures: u32,
    /// When it is to be started (again).
    due: Option<Instant>,
}

struct Keeper {
    place: Place,
    daemons: [Daemon; 2],
    /// Old edges that finish what they have.
    leaving: Vec<Identity>,
    /// The edge's sockets, in the order of its addresses.
    listeners: Vec<TcpListener>,
    kept: Kept,
}

/// The program `conpaas nutshell-keeper --state FOLDER`; returns when all has ended.
pub fn run(place: Place, listeners: &[RawFd]) -> Result<(), AnyError> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ] {
        signals.add(signal);
    }
    // They wait until asked for; children get the usual ones back.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None)?;
    let take = |descriptor: &RawFd| {
        // SAFETY: the keeper that became this program left it open for this purpose, and nobody
        // else has it.
        TcpListener::from(unsafe { OwnedFd::from_raw_fd(*descriptor) })
    };
    let listeners: Vec<TcpListener> = listeners.iter().map(take).collect();
    for listener in &listeners {
        inheritable(listener.as_raw_fd(), false)?;
    }
    let daemon = |name| Daemon {
        name,
        process: process::running(&place, name),
        started: Instant::now(),
        failures: 0,
        due: None,
    };
    let mut keeper = Keeper {
        daemons: [daemon(DIRECTOR), daemon(EDGE)],
        leaving: Vec::new(),
        listeners,
        kept: seen(&place),
        place,
    };
    keeper.replace_older()?;
    loop {
        keeper.start_due()?;
        match wait_for_signal(&signals, keeper.patience()) {
            Some(Signal::SIGTERM | Signal::SIGINT) => return keeper.end(),
            Some(Signal::SIGHUP) => keeper.become_newer(),
            _ => {}
        }
        keeper.collect();
    }
}

impl Keeper {
    /// Until when nothing has to be done.
    fn patience(&self) -> Duration {
        let due = self.daemons.iter().filter_map(|daemon| daemon.due).min();
        due.map_or(TICK, |due| {
            due.saturating_duration_since(Instant::now()).min(TICK)
        })
    }

    fn start_due(&mut self) -> Result<(), AnyError> {
        for at in 0..self.daemons.len() {
            let daemon = &self.daemons[at];
            let now = Instant::now();
            if daemon.process.is_some() || daemon.due.is_some_and(|due| due > now) {
                continue;
            }
            let name = daemon.name;
            match self.spawn(name) {
                Ok(identity) => {
                    tracing::info!(daemon = name, pid = identity.pid, "started");
                    let daemon = &mut self.daemons[at];
                    daemon.process = Some(identity);
                    daemon.started = now;
                    daemon.due = None;
                }
                Err(error) if self.kept.contains_key(name) || self.daemons[at].failures > 0 => {
                    tracing::error!(daemon = name, %error, "cannot be started");
                    let daemon = &mut self.daemons[at];
                    daemon.due = Some(now + pause(daemon.failures));
                    daemon.failures += 1;
                }
                // Whoever started the keeper waits for an answer.
                Err(error) => {
                    self.end()?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn spawn(&mut self, name: &'static str) -> Result<Identity, AnyError> {
        let mut inherited = Vec::new();
        if name == EDGE {
            let settings = Settings::load(&self.place).map_err(|error| error.what)?;
            let addresses = settings.edge_addresses();
            for address in addresses.iter().skip(self.listeners.len()) {
                let listener = TcpListener::bind(address)
                    .map_err(|error| format!("cannot listen on {address}: {error}"))?;
                self.listeners.push(listener);
            }
            inherited = self.listeners.iter().map(AsRawFd::as_raw_fd).collect();
        }
        let arguments = named(&inherited);
        process::start(&self.place, name, &arguments, &inherited)
            .map(|(_, identity)| identity)
            .map_err(|error| error.what.into())
    }

    /// Learns who ended, and when to start whom again.
    fn collect(&mut self) {
        let mut ends = BTreeMap::new();
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            match in_words(status) {
                Some((pid, how)) => drop(ends.insert(pid.as_raw(), how)),
                None => break,
            }
        }
        self.leaving.retain(Identity::is_alive);
        let mut changed = false;
        for daemon in &mut self.daemons {
            let Some(process) = daemon.process.clone().filter(|found| !found.is_alive()) else {
                continue;
            };
            let how = ends
                .remove(&process.pid)
                .unwrap_or_else(|| "an end that nobody saw".to_owned());
            if daemon.started.elapsed() > SETTLED {
                daemon.failures = 0;
            }
            let pause = pause(daemon.failures);
            tracing::warn!(
                daemon = daemon.name,
                after = how,
                pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "ended by itself and will be restarted"
            );
            daemon.failures += 1;
            daemon.process = None;
            daemon.due = Some(Instant::now() + pause);
            let seen = self.kept.entry(daemon.name.to_owned()).or_default();
            seen.restarts += 1;
            seen.last_end = Some(how);
            changed = true;
        }
        if changed {
            self.note();
        }
    }

    fn note(&self) {
        let written = serde_json::to_vec(&self.kept)
            .map_err(|error| error.to_string())
            .and_then(|text| write_private(&self.place.kept(), &text).map_err(|error| error.what));
        if let Err(error) = written {
            tracing::warn!(error, "what was seen cannot be noted");
        }
    }

    /// Puts this program in the place of another version that runs: the Director by ending it
    /// first, since two must not share a store; the edge by a new one beside it on the same
    /// socket.
    fn replace_older(&mut self) -> Result<(), AnyError> {
        for at in 0..self.daemons.len() {
            let daemon = &self.daemons[at];
            let Some(old) = daemon.process.clone() else {
                continue;
            };
            if same_program(old.pid) {
                continue;
            }
            let name = daemon.name;
            tracing::info!(
                daemon = name,
                pid = old.pid,
                "another program takes its place"
            );
            if name == EDGE && !self.listeners.is_empty() {
                let new = self.spawn(EDGE)?;
                if !self.is_ready(&new) {
                    // The old one goes on; nobody noticed.
                    process::record(&self.place, EDGE, &old).map_err(|error| error.what)?;
                    tracing::error!("the new edge does not serve; the old one stays");
                    new.signal(Signal::SIGKILL);
                    continue;
                }
                old.signal(Signal::SIGUSR1);
                self.leaving.push(old);
                self.daemons[at].process = Some(new);
                self.daemons[at].started = Instant::now();
            } else {
                finish(&[old], GRACE);
                self.daemons[at].process = None;
            }
        }
        Ok(())
    }

    fn is_ready(&self, edge: &Identity) -> bool {
        let began = Instant::now();
        while began.elapsed() < READY_LIMIT && edge.is_alive() {
            let ready = std::fs::read_to_string(self.place.edge_ready()).unwrap_or_default();
            if ready.trim() == edge.pid.to_string() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Becomes the program that `run/program` names; stays what it is when that fails.
    fn become_newer(&self) {
        let path = match std::fs::read_to_string(self.place.program()) {
            Ok(path) => path.trim().to_owned(),
            Err(error) => {
                tracing::error!(%error, "no program is named to take over");
                return;
            }
        };
        let mut command = Command::new(&path);
        command
            .arg0("conpaas")
            .args([KEEPER, "--state"])
            .arg(self.place.state());
        let descriptors: Vec<RawFd> = self.listeners.iter().map(AsRawFd::as_raw_fd).collect();
        for descriptor in &descriptors {
            if let Err(error) = inheritable(*descriptor, true) {
                tracing::error!(%error, "the edge's socket cannot be handed over");
                return;
            }
        }
        command.args(named(&descriptors));
        tracing::info!(program = path, "another program takes over");
        let error = command.exec();
        tracing::error!(%error, program = path, "cannot become another program");
        for descriptor in descriptors {
            if let Err(error) = inheritable(descriptor, false) {
                tracing::warn!(%error, "children may inherit the edge's socket");
            }
        }
    }

    /// Ends everything in the keeper's care.
    fn end(&mut self) -> Result<(), AnyError> {
        let mut all = std::mem::take(&mut self.leaving);
        all.extend(
            self.daemons
                .iter()
                .filter_map(|daemon| daemon.process.clone()),
        );
        self.listeners.clear();
        finish(&all, GRACE);
        for daemon in &self.daemons {
            remove_if_there(&self.place.record(daemon.name)).map_err(|error| error.what)?;
        }
        remove_if_there(&self.place.kept()).map_err(|error| error.what)?;
        remove_if_there(&self.place.edge_ready()).map_err(|error| error.what)?;
        tracing::info!("ended");
        Ok(())
    }
}

/// How a program is told which sockets were left open for it.
fn named(descriptors: &[RawFd]) -> Vec<String> {
    let word = |descriptor: &RawFd| ["--listener".to_owned(), descriptor.to_string()];
    descriptors.iter().flat_map(word).collect()
}

/// Asks processes to end, waits, and after `grace` asks no more.
fn finish(processes: &[Identity], grace: Duration) {
    let began = Instant::now();
    for process in processes {
        process.signal(Signal::SIGTERM);
    }
    let mut killed = false;
    while processes.iter().any(Identity::is_alive) {
        // Children that ended are to be collected.
        while waitpid(None, Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != WaitStatus::StillAlive)
        {}
        if began.elapsed() > grace && !killed {
            for process in processes {
                process.signal(Signal::SIGKILL);
            }
            killed = true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The next of these signals, or nothing after a while.
fn wait_for_signal(signals: &SigSet, patience: Duration) -> Option<Signal> {
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(patience.as_secs()).unwrap_or(1),
        tv_nsec: libc::c_long::from(patience.subsec_nanos()),
    };
    // SAFETY: both pointers live across the call; nothing is written back.
    let signal =
        unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const limit) };
    Signal::try_from(signal).ok()
}

/// Whether programs that this process starts keep a descriptor.
pub fn inheritable(descriptor: RawFd, yes: bool) -> std::io::Result<()> {
    let flags = if yes { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: changes a flag of an open descriptor; touches no memory.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, flags) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_again_and_again_is_started_less_and_less_often() {
        let pauses: Vec<u64> = (0..10).map(|n| pause(n).as_millis() as u64).collect();
        assert_eq!(
            pauses,
            [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]
        );
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn ends_are_told_in_words() {
        let pid = Pid::from_raw(7);
        let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
        assert_eq!(in_words(killed), Some((pid, "signal 9".to_owned())));
        let left = WaitStatus::Exited(pid, 1);
        assert_eq!(in_words(left), Some((pid, "exit code 1".to_owned())));
        assert_eq!(in_words(WaitStatus::StillAlive), None);
    }
}
