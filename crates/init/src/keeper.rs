//! The loop: keeps the table of processes, reaps, starts, stops, restarts the agent.

use crate::logs::Logs;
use crate::protocol::{self, AGENT, Call, Ends, Exit, Outcome, Spec, Status};
use crate::server::Server;
use crate::signals::Signals;
use crate::spawn::{self, Start};
use crate::{InitError, Settings, say, users};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Ended processes whose exit code is kept.
const KEPT_ENDED: usize = 64;
/// Names of processes whose ends are counted; those that ended longest ago are forgotten.
const COUNTED: usize = 256;
/// An agent that ran this long was well; its next end starts with the shortest pause again.
const AGENT_WELL: Duration = Duration::from_secs(30);

struct Entry {
    spec: Spec,
    digest: String,
    pid: i32,
    running: bool,
    exit: Option<i32>,
    /// Orders ends, to drop the oldest.
    ended: u64,
    stopping: Option<Stopping>,
}

struct Stopping {
    kill_at: Instant,
    killed: bool,
    /// Connections that wait for the end.
    waiting: Vec<u64>,
}

impl Entry {
    fn status(&self) -> Status {
        Status {
            name: self.spec.name.clone(),
            pid: self.pid,
            running: self.running,
            exit: self.exit,
            digest: self.digest.clone(),
        }
    }
}

enum Agent {
    Running { pid: i32, since: Instant },
    Pausing { until: Instant },
}

/// Everything init holds.
pub struct Keeper {
    settings: Settings,
    signals: Signals,
    server: Server,
    logs: Logs,
    table: BTreeMap<String, Entry>,
    ends: u64,
    /// By name: ends that nobody had asked for, and which of all ends the last one was.
    unasked: BTreeMap<String, (Ends, u64)>,
    agent: Agent,
    agent_pause: Duration,
    /// Set once everything should end: when to stop waiting.
    ending: Option<Instant>,
}

impl Keeper {
    pub fn new(settings: Settings) -> Result<Self, InitError> {
        spawn::protect_self();
        // A machine's maker has set this already; setting it again does no harm.
        let _ = nix::sys::prctl::set_no_new_privs();
        if std::process::id() != 1 {
            let _ = nix::sys::prctl::set_child_subreaper(true);
        }
        let signals = Signals::catch()?;
        let server = Server::bind(&settings.socket, settings.allowed_uid)?;
        Ok(Self {
            logs: Logs::new(settings.log_limit),
            agent_pause: settings.agent_backoff,
            settings,
            signals,
            server,
            table: BTreeMap::new(),
            ends: 0,
            unasked: BTreeMap::new(),
            agent: Agent::Pausing {
                until: Instant::now(),
            },
            ending: None,
        })
    }

    /// Turns until SIGTERM, and then until everything has ended or the grace is over.
    pub fn run(mut self) -> Result<(), InitError> {
        loop {
            let now = Instant::now();
            self.keep_agent(now);
            self.press_stops(now);
            if self
                .ending
                .is_some_and(|deadline| now >= deadline || !self.anything_runs())
            {
                break;
            }
            self.wait(now)?;
            if self.signals.take() && self.ending.is_none() {
                self.begin_end();
            }
            self.reap();
            self.logs.drain();
            self.server.accept();
            self.serve();
            self.server.sweep();
        }
        for entry in self.table.values().filter(|entry| entry.running) {
            spawn::kill_group(entry.pid, libc::SIGKILL);
        }
        if let Agent::Running { pid, .. } = self.agent {
            spawn::kill_group(pid, libc::SIGKILL);
        }
        spawn::kill_strays(&[]);
        self.reap();
        self.logs.drain();
        let _ = std::fs::remove_file(&self.settings.socket);
        Ok(())
    }

    /// Waits until something can be done.
    fn wait(&self, now: Instant) -> Result<(), InitError> {
        let mut fds = vec![
            PollFd::new(self.signals.fd(), PollFlags::POLLIN),
            PollFd::new(self.server.fd(), PollFlags::POLLIN),
        ];
        for connection in &self.server.connections {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, connection.wants_to_write());
            fds.push(PollFd::new(connection.fd(), flags));
        }
        fds.extend(self.logs.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let timeout = match self.next_timer() {
            // One millisecond more, as what is left of it would be rounded down to none.
            Some(at) => PollTimeout::try_from(at.saturating_duration_since(now).as_millis() + 1)
                .unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR | nix::Error::EAGAIN) => Ok(()),
            Err(errno) => Err(InitError::Io {
                what: "wait for events",
                source: errno.into(),
            }),
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let stops = self
            .table
            .values()
            .filter_map(|entry| entry.stopping.as_ref());
        let stops = stops
            .filter(|stopping| !stopping.killed)
            .map(|stopping| stopping.kill_at);
        let agent = match self.agent {
            Agent::Pausing { until } if self.has_agent() && self.ending.is_none() => Some(until),
            _ => None,
        };
        stops.chain(agent).chain(self.ending).min()
    }

    fn has_agent(&self) -> bool {
        !self.settings.agent.is_empty()
    }

    fn anything_runs(&self) -> bool {
        matches!(self.agent, Agent::Running { .. })
            || self.table.values().any(|entry| entry.running)
    }

    fn keep_agent(&mut self, now: Instant) {
        let Agent::Pausing { until } = self.agent else {
            return;
        };
        if now < until || !self.has_agent() || self.ending.is_some() {
            return;
        }
        let started = spawn::spawn(Start {
            argv: &self.settings.agent,
            env: &[],
            inherit_env: true,
            working_directory: Path::new("/"),
            user: None,
            oom_score_adj: spawn::OOM_AGENT,
            output: None,
        });
        self.agent = match started {
            Ok(pid) => Agent::Running { pid, since: now },
            Err(error) => {
                say("ERROR", &format!("the agent cannot be started: {error}"));
                self.pause_agent(now)
            }
        };
    }

    fn pause_agent(&mut self, now: Instant) -> Agent {
        let until = now + self.agent_pause;
        self.agent_pause = (self.agent_pause * 2).min(self.settings.agent_backoff_cap);
        Agent::Pausing { until }
    }

    /// SIGKILL for what did not end within its grace.
    fn press_stops(&mut self, now: Instant) {
        for entry in self.table.values_mut().filter(|entry| entry.running) {
            if let Some(stopping) = &mut entry.stopping
                && !stopping.killed
                && now >= stopping.kill_at
            {
                stopping.killed = true;
                spawn::kill_group(entry.pid, libc::SIGKILL);
            }
        }
    }

    fn begin_end(&mut self) {
        say("INFO", "everything ends");
        self.ending = Some(Instant::now() + self.settings.shutdown_grace);
        if let Agent::Running { pid, .. } = self.agent {
            let _ = spawn::kill_child(pid, libc::SIGTERM);
        }
        for entry in self.table.values().filter(|entry| entry.running) {
            let _ = spawn::kill_child(entry.pid, entry.spec.stop_signal);
        }
    }

    /// Takes note of whatever has ended. A kept process is looked at before it is reaped: until
    /// then its group's id cannot belong to anybody else.
    fn reap(&mut self) {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            let (pid, exit) = match waitid(Id::All, peek) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Err(nix::Error::EINTR) => continue,
                _ => return,
            };
            self.ended(pid.as_raw(), exit);
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }

    /// Counts an end that nobody had asked for.
    fn count(&mut self, name: &str, last: Exit) {
        if self.ending.is_some() {
            return;
        }
        let known = self.unasked.get(name).map_or(0, |(ends, _)| ends.count);
        let ends = Ends {
            name: name.to_owned(),
            count: known + 1,
            last,
        };
        self.unasked.insert(name.to_owned(), (ends, self.ends));
        if self.unasked.len() > COUNTED {
            let oldest = self.unasked.iter().min_by_key(|(_, (_, at))| *at);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.unasked.remove(&name);
            }
        }
    }

    fn ended(&mut self, pid: i32, exit: Exit) {
        let now = Instant::now();
        let code = exit.code();
        self.ends += 1;
        if let Agent::Running { pid: agent, since } = self.agent
            && agent == pid
        {
            say("WARN", &format!("the agent ended with code {code}"));
            spawn::kill_group(pid, libc::SIGKILL);
            if now.duration_since(since) >= AGENT_WELL {
                self.agent_pause = self.settings.agent_backoff;
            }
            self.agent = self.pause_agent(now);
            self.count(AGENT, exit);
            self.kill_left_behind("the agent");
            return;
        }
        let Some(entry) = self
            .table
            .values_mut()
            .find(|entry| entry.running && entry.pid == pid)
        else {
            return;
        };
        // What it left behind would hold its ports and files against its successor.
        spawn::kill_group(pid, libc::SIGKILL);
        entry.running = false;
        entry.exit = Some(code);
        entry.ended = self.ends;
        let name = entry.spec.name.clone();
        self.kill_left_behind(&name);
        let Some(entry) = self.table.get_mut(&name) else {
            return;
        };
        if let Some(stopping) = entry.stopping.take() {
            self.table.remove(&name);
            for id in stopping.waiting {
                self.server.answer(id, Outcome::Done {});
            }
        } else {
            say("INFO", &format!("process '{name}' ended with code {code}"));
            self.count(&name, exit);
            self.drop_oldest_ends();
        }
    }

    /// Kills what a process that just ended had started and that outlived it.
    fn kill_left_behind(&self, whose: &str) {
        let agent = match self.agent {
            Agent::Running { pid, .. } => Some(pid),
            Agent::Pausing { .. } => None,
        };
        let running = self.table.values().filter(|entry| entry.running);
        let kept: Vec<i32> = running.map(|entry| entry.pid).chain(agent).collect();
        match spawn::kill_strays(&kept) {
            0 => {}
            count => say(
                "INFO",
                &format!("killed {count} processes that {whose} left behind"),
            ),
        }
    }

    fn drop_oldest_ends(&mut self) {
        let mut ended: Vec<(u64, String)> = self
            .table
            .values()
            .filter(|entry| !entry.running)
            .map(|entry| (entry.ended, entry.spec.name.clone()))
            .collect();
        ended.sort();
        let surplus = ended.len().saturating_sub(KEPT_ENDED);
        for (_, name) in ended.drain(..surplus) {
            self.table.remove(&name);
        }
    }

    fn serve(&mut self) {
        for index in 0..self.server.connections.len() {
            self.server.connections[index].fill();
            self.server.connections[index].flush();
            while let Some(line) = self.server.connections[index].next_line() {
                let connection = &mut self.server.connections[index];
                connection.busy = true;
                let id = connection.id;
                let outcome = match protocol::parse(&line) {
                    Ok(call) => self.call(call, id),
                    Err(outcome) => Some(outcome),
                };
                if let Some(outcome) = outcome {
                    self.server.connections[index].answer(outcome);
                }
            }
        }
    }

    /// Carries a request out; nothing is answered yet if it takes a while.
    fn call(&mut self, call: Call, connection: u64) -> Option<Outcome> {
        match call {
            Call::Ensure { spec } => Some(self.ensure(spec)),
            Call::List => Some(Outcome::Processes(
                self.table.values().map(Entry::status).collect(),
            )),
            Call::Ends => Some(Outcome::Ends(
                self.unasked
                    .values()
                    .map(|(ends, _)| ends.clone())
                    .collect(),
            )),
            Call::Signal { name, signal } => Some(match self.table.get(&name) {
                Some(entry) if entry.running => match spawn::kill_child(entry.pid, signal) {
                    Ok(()) => Outcome::Done {},
                    Err(error) => Outcome::error("signal", error.to_string()),
                },
                _ => Outcome::Done {},
            }),
            Call::Stop { name, grace_ms } => self.stop(&name, grace_ms, connection),
            Call::Forget { name } => Some(match self.table.get(&name) {
                Some(entry) if entry.running => {
                    Outcome::error("running", format!("process '{name}' runs; stop it first"))
                }
                _ => {
                    self.table.remove(&name);
                    Outcome::Done {}
                }
            }),
        }
    }

    fn stop(&mut self, name: &str, grace_ms: u64, connection: u64) -> Option<Outcome> {
        // A day is as good as for ever here, and cannot overflow the clock.
        let grace = Duration::from_millis(grace_ms).min(Duration::from_secs(86_400));
        let Some(entry) = self.table.get_mut(name) else {
            return Some(Outcome::Done {});
        };
        if !entry.running {
            self.table.remove(name);
            return Some(Outcome::Done {});
        }
        let kill_at = Instant::now() + grace;
        match &mut entry.stopping {
            Some(stopping) => {
                stopping.kill_at = stopping.kill_at.min(kill_at);
                stopping.waiting.push(connection);
            }
            None => {
                entry.stopping = Some(Stopping {
                    kill_at,
                    killed: false,
                    waiting: vec![connection],
                });
                if let Err(error) = spawn::kill_child(entry.pid, entry.spec.stop_signal) {
                    say(
                        "WARN",
                        &format!("process '{name}' cannot be asked to stop: {error}"),
                    );
                }
            }
        }
        None
    }

    fn ensure(&mut self, spec: Spec) -> Outcome {
        if self.ending.is_some() {
            return Outcome::error("ending", "the machine is going down");
        }
        let (name, digest) = (spec.name.clone(), spec.digest());
        if name.is_empty() || name.contains('\0') || spec.argv.is_empty() {
            return Outcome::error("malformed", "a process needs a name and a program");
        }
        let mut exit = None;
        if let Some(entry) = self.table.get(&name) {
            if entry.stopping.is_some() {
                return Outcome::error("stopping", format!("process '{name}' is being stopped"));
            }
            if entry.running {
                return if entry.digest == digest {
                    Outcome::Process(entry.status())
                } else {
                    Outcome::error(
                        "other_spec",
                        format!("process '{name}' runs with another specification; stop it first"),
                    )
                };
            }
            exit = entry.exit;
        }
        match self.start(&spec) {
            Ok(pid) => {
                let entry = Entry {
                    spec,
                    digest,
                    pid,
                    running: true,
                    exit,
                    ended: 0,
                    stopping: None,
                };
                let status = entry.status();
                self.table.insert(name, entry);
                Outcome::Process(status)
            }
            Err(message) => Outcome::error("start", message),
        }
    }

    fn start(&mut self, spec: &Spec) -> Result<i32, String> {
        let user = match &spec.user {
            None => None,
            Some(name) => match users::lookup(&self.settings.etc, name) {
                Ok(Some(user)) => Some(user),
                Ok(None) => return Err(format!("there is no user '{name}' on this machine")),
                Err(error) => return Err(format!("the list of users cannot be read: {error}")),
            },
        };
        let owner = user.as_ref().map(|user| (user.uid, user.gid));
        let output = self
            .logs
            .open(&spec.log, owner)
            .map_err(|error| format!("log {} cannot be opened: {error}", spec.log.display()))?;
        spawn::spawn(Start {
            argv: &spec.argv,
            env: &spec.env,
            inherit_env: false,
            working_directory: &spec.working_directory,
            user: user.as_ref(),
            oom_score_adj: spawn::OOM_ROLE,
            output: Some(output),
        })
        .map_err(|error| format!("'{}' cannot be started: {error}", spec.argv.join(" ")))
    }
}
