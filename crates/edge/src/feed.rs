//! Reads the Director's routes and answers what was taken. Both are whole files, replaced by
//! renaming; the edge keeps a copy of what is in force, so that an older file is refused after a
//! restart too.

use crate::dial::Dial;
use crate::egress::Egress;
use crate::table::{Offer, Table};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::edge::{APPLIED_FILE, Applied, ROUTES_FILE, Routes};
use jiff::Timestamp;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const IN_FORCE_FILE: &str = "in-force.json";
/// How often the Director's file is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// The shortest time between two answers.
const ANSWER: Duration = Duration::from_millis(10);

/// What tells one state of a file from another.
type Stamp = (u64, i64, i64, u64);

/// The feeding of one edge.
pub struct Feed {
    folder: PathBuf,
    table: Arc<Table>,
    dial: Arc<dyn Dial>,
    egress: Egress,
    listening: SocketAddr,
    seen: Option<Stamp>,
    answering: Arc<AtomicBool>,
}

impl Feed {
    /// Loads what was in force before and what the Director wrote meanwhile, and answers.
    ///
    /// # Errors
    /// When the answer cannot be written: then the folder is of no use.
    pub fn start(
        folder: PathBuf,
        table: Arc<Table>,
        dial: Arc<dyn Dial>,
        egress: Egress,
        listening: SocketAddr,
    ) -> io::Result<Self> {
        let mut feed = Self {
            folder,
            table,
            dial,
            egress,
            listening,
            seen: None,
            answering: Arc::new(AtomicBool::new(true)),
        };
        let copy = feed.folder.join(IN_FORCE_FILE);
        match std::fs::read(&copy) {
            Ok(text) => match serde_json::from_slice::<Routes>(&text) {
                Ok(routes) => {
                    feed.egress.set(&routes.outlets);
                    feed.table.offer(routes);
                }
                Err(error) => tracing::warn!(%error, "the copy of the routes in force is damaged"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        feed.look();
        feed.answer()?;
        Ok(feed)
    }

    /// Whether the Director is answered; another edge may have taken that over.
    pub fn answering(&self) -> Arc<AtomicBool> {
        self.answering.clone()
    }

    /// Follows the Director's file and the draining for ever.
    pub async fn follow(mut self) {
        let changed = self.table.changed.clone();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut unanswered = false;
        let mut told = false;
        loop {
            tokio::select! {
                _ = look.tick() => self.look(),
                () = changed.notified() => unanswered = true,
            }
            if unanswered {
                match self.answer() {
                    Ok(()) => (unanswered, told) = (false, false),
                    Err(error) if !told => {
                        told = true;
                        tracing::error!(%error, "cannot write {APPLIED_FILE}; trying on");
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(ANSWER).await;
            }
        }
    }

    /// Takes the Director's file if it is another one than at the last look.
    fn look(&mut self) {
        let path = self.folder.join(ROUTES_FILE);
        let stamp = match std::fs::metadata(&path) {
            Ok(meta) => (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()),
            Err(_) => return,
        };
        if self.seen == Some(stamp) {
            return;
        }
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(%error, "cannot read {ROUTES_FILE}");
                return;
            }
        };
        self.seen = Some(stamp);
        let routes: Routes = match serde_json::from_slice(&text) {
            Ok(routes) => routes,
            Err(error) => {
                tracing::error!(%error, "{ROUTES_FILE} is not valid; the routes in force stay");
                return;
            }
        };
        let (offered, outlets) = (routes.generation, routes.outlets.clone());
        reached(KillPoint::RoutesRead);
        match self.table.offer(routes) {
            Offer::Applied => {
                tracing::info!(generation = %offered, "routes taken");
                self.egress.set(&outlets);
                reached(KillPoint::RoutesInForce);
                self.dial.forget_others(&self.table.networks());
                if self.answering.load(Ordering::Relaxed)
                    && let Err(error) = replace(&self.folder, IN_FORCE_FILE, &text)
                {
                    tracing::warn!(%error, "cannot keep a copy of the routes in force");
                }
            }
            Offer::Same => {}
            Offer::Stale { in_force } => {
                tracing::warn!(%offered, %in_force, "older routes refused");
            }
        }
    }

    fn answer(&self) -> io::Result<()> {
        if !self.answering.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (generation, draining) = self.table.status();
        let applied = Applied {
            generation,
            at: Timestamp::now().to_string(),
            listening: self.listening,
            draining,
        };
        replace(&self.folder, APPLIED_FILE, &serde_json::to_vec(&applied)?)?;
        reached(KillPoint::RoutesAnswered);
        Ok(())
    }
}

/// Replaces a file as a whole. Survives a crash of the process; a crash of the computer may lose
/// the newest state, which is then read from the Director's file again.
fn replace(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let beside = folder.join(format!(".{name}.new"));
    std::fs::write(&beside, content)?;
    std::fs::rename(beside, folder.join(name))
}
