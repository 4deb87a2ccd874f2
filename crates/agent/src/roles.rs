//! One task per role: brings it to its level, looks at it every second, stops it in the end.
//! A role that hangs holds up only itself.

use crate::logs::Flusher;
use crate::measures::Measures;
use conpaas_core::agent::{Event, RestartPacer, taint, unobservable};
use conpaas_core::role_agent::{NodeContext, RoleAgent, RoleError};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::level::{LevelVersion, RoleLevel};
use conpaas_model::status::RoleStatus;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

/// How often a role is looked at when nothing changes.
const LOOK: Duration = Duration::from_secs(1);
/// The same while something it waits for comes in.
const LOOK_SOON: Duration = Duration::from_millis(200);
const APPLY_DEADLINE: Duration = Duration::from_secs(120);
const OBSERVE_DEADLINE: Duration = Duration::from_secs(10);
const MEASURE_DEADLINE: Duration = Duration::from_secs(2);
const STOP_DEADLINE: Duration = Duration::from_secs(600);
const COMMAND_DEADLINE: Duration = Duration::from_secs(25);
/// How much of a log's end goes into a reason.
const TAIL_LINES: usize = 5;
const TAIL_BYTES: u64 = 1024;

/// What a role's task should see to.
#[derive(Clone, Debug)]
pub enum Order {
    Run {
        version: LevelVersion,
        level: RoleLevel,
    },
    Stop,
}

/// A command for a role, and whom to answer.
pub struct Job {
    pub name: String,
    pub arguments: serde_json::Value,
    pub answer: oneshot::Sender<Result<serde_json::Value, String>>,
}

/// A running task.
pub struct RoleTask {
    orders: watch::Sender<Order>,
    jobs: mpsc::Sender<Job>,
    task: tokio::task::JoinHandle<()>,
}

impl RoleTask {
    /// Starts the task of a role; what it finds goes to `events`.
    pub fn start(
        role: String,
        agent: Box<dyn RoleAgent>,
        node: NodeContext,
        order: Order,
        events: mpsc::Sender<Event>,
        flusher: Flusher,
        measures: Measures,
    ) -> Self {
        let (orders, orders_in) = watch::channel(order);
        let (jobs, jobs_in) = mpsc::channel(16);
        let worker = Worker {
            role,
            agent,
            node,
            events,
            flusher,
            measures,
            pacer: pacer(),
        };
        Self {
            orders,
            jobs,
            task: tokio::spawn(worker.run(orders_in, jobs_in)),
        }
    }

    /// Gives another order, which takes effect at once.
    pub fn order(&self, order: Order) {
        self.orders.send_replace(order);
    }

    /// Hands a command over; the job comes back when the role has too many.
    pub fn command(&self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job) => job,
        })
    }
}

impl Drop for RoleTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn pacer() -> RestartPacer {
    RestartPacer::new(
        Duration::from_secs(1),
        Duration::from_secs(10),
        Duration::from_secs(3600),
    )
}

struct Worker {
    role: String,
    agent: Box<dyn RoleAgent>,
    node: NodeContext,
    events: mpsc::Sender<Event>,
    flusher: Flusher,
    measures: Measures,
    /// Paces `apply` while it fails.
    pacer: RestartPacer,
}

impl Worker {
    async fn run(mut self, mut orders: watch::Receiver<Order>, mut jobs: mpsc::Receiver<Job>) {
        let born = Instant::now();
        let mut trouble: Option<String> = None;
        loop {
            let fresh = orders.has_changed().unwrap_or(false);
            let order = orders.borrow_and_update().clone();
            let pause = match order {
                Order::Run { version, level } => {
                    if fresh {
                        self.pacer = pacer();
                    }
                    self.turn(version, &level, &mut trouble, born.elapsed())
                        .await
                }
                Order::Stop => {
                    if self.stop().await {
                        self.measures.ended(&self.role);
                        // The machine may go as soon as the role has.
                        self.flusher.flush().await;
                        let role = self.role.clone();
                        // The shell starts a new task if the role is wanted again by now.
                        let _ = self.events.send(Event::Stopped { role }).await;
                        return;
                    }
                    LOOK
                }
            };
            tokio::select! {
                changed = orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    orders.mark_changed();
                }
                () = tokio::time::sleep(pause) => {}
                Some(job) = jobs.recv() => self.command(job).await,
            }
        }
    }

    /// Applies (unless it failed just now) and observes; how long to pause then.
    async fn turn(
        &mut self,
        version: LevelVersion,
        level: &RoleLevel,
        trouble: &mut Option<String>,
        now: Duration,
    ) -> Duration {
        let mut pause = LOOK;
        let mut waits_for = None;
        if self.pacer.wait(now).is_none() {
            self.pacer.started(now);
            match timeout(APPLY_DEADLINE, self.agent.apply(&self.node, level)).await {
                Ok(Ok(())) => {
                    reached(KillPoint::RoleApplied);
                    *trouble = None;
                    self.pacer = pacer();
                    self.tell(Event::Applied {
                        role: self.role.clone(),
                        version,
                    })
                    .await;
                }
                Ok(Err(error)) if is_not_yet(&error) => {
                    // Something is on its way: no failure, and asked for again soon.
                    *trouble = None;
                    waits_for = Some(error.to_string());
                    pause = LOOK_SOON;
                }
                Ok(Err(error)) => {
                    self.pacer.failed(now);
                    let reason = self.reason(&error);
                    if trouble.as_ref() != Some(&reason) {
                        tracing::warn!(
                            role = self.role,
                            reason,
                            "a role cannot be brought to its level"
                        );
                    }
                    *trouble = Some(reason);
                }
                Err(_) => {
                    self.pacer.failed(now);
                    *trouble = Some(format!("no progress within {} s", APPLY_DEADLINE.as_secs()));
                }
            }
        }
        let mut status = self.observe(level).await;
        if let Some(reason) = trouble {
            taint(&mut status, level, reason);
        }
        if let Some(what) = waits_for {
            status.facts.insert("waits_for".to_owned(), what.into());
        }
        self.tell(Event::Observed {
            role: self.role.clone(),
            version,
            status,
        })
        .await;
        self.measure(level).await;
        pause
    }

    /// What cannot be measured now is left as it was: totals stand, whatever becomes of a daemon.
    async fn measure(&mut self, level: &RoleLevel) {
        match timeout(MEASURE_DEADLINE, self.agent.metrics(&self.node, level)).await {
            Ok(Ok(readings)) => self.measures.of_role(&self.role, readings),
            Ok(Err(error)) => {
                tracing::debug!(
                    role = self.role,
                    error = crate::party::chained(&error),
                    "a role cannot be measured"
                );
            }
            Err(_) => tracing::debug!(role = self.role, "a role takes too long to be measured"),
        }
    }

    async fn observe(&mut self, level: &RoleLevel) -> RoleStatus {
        match timeout(OBSERVE_DEADLINE, self.agent.observe(&self.node, level)).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => unobservable(level, &self.reason(&error)),
            Err(_) => {
                let seconds = OBSERVE_DEADLINE.as_secs();
                unobservable(level, &format!("gives no answer within {seconds} s"))
            }
        }
    }

    async fn stop(&mut self) -> bool {
        match timeout(STOP_DEADLINE, self.agent.stop(&self.node)).await {
            Ok(Ok(gone)) => {
                reached(KillPoint::RoleStopped);
                gone
            }
            Ok(Err(error)) => {
                let reason = self.reason(&error);
                tracing::warn!(role = self.role, reason, "a role cannot be stopped yet");
                false
            }
            Err(_) => false,
        }
    }

    async fn command(&mut self, job: Job) {
        let done = timeout(
            COMMAND_DEADLINE,
            self.agent.command(&self.node, &job.name, &job.arguments),
        )
        .await;
        let answer = match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(crate::party::chained(&error)),
            Err(_) => Err(format!("command '{}' took too long", job.name)),
        };
        // Whoever asked may have gone.
        let _ = job.answer.send(answer);
    }

    async fn tell(&mut self, event: Event) {
        // The shell is gone only when all is ending.
        let _ = self.events.send(event).await;
    }

    /// The error in words, with the last lines of the role's newest log.
    fn reason(&self, error: &RoleError) -> String {
        let mut reason = crate::party::chained(error);
        if let Some(tail) = log_tail(&self.node.log_folder, &self.role) {
            reason.push_str("; its log ends with: ");
            reason.push_str(&tail);
        }
        reason
    }
}

/// Whether an error only says that something is still on its way.
fn is_not_yet(error: &RoleError) -> bool {
    matches!(error, RoleError::Io { source, .. } if source.kind() == ErrorKind::WouldBlock)
}

/// The end of the log that the role wrote to last.
fn log_tail(folder: &Path, role: &str) -> Option<String> {
    let prefix = format!("{role}-");
    let newest = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".log")
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .max()?
        .1;
    let mut file = std::fs::File::open(newest).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join(" | ");
    (!tail.is_empty()).then_some(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_ends_with_the_last_lines_of_the_roles_log() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(log_tail(folder.path(), "web"), None);
        std::fs::write(folder.path().join("other-x.log"), "no").unwrap();
        std::fs::write(folder.path().join("web-x.log"), "1\n2\n3\n4\n5\n\n6\n").unwrap();
        assert_eq!(log_tail(folder.path(), "web").unwrap(), "2 | 3 | 4 | 5 | 6");
    }
}
