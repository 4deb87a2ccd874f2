//! Places where a step has been recorded, asked, answered or observed, and where a process may be
//! made to die as if killed: the list that the kill matrix goes through. What the steps do lives
//! with those who take them; here is only the list, and how a process is told where to die.
//!
//! Unset (as always but when faults are looked for) a point costs one load of a static.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Names a file with a point and how often it is to be reached (`director.intent-recorded 1`).
/// The process that reaches it so often removes the file and kills itself.
pub const VARIABLE: &str = "CONPAAS_KILL_POINT";

/// Whose step a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    Director,
    Manager,
    Agent,
    Edge,
}

macro_rules! points {
    ($($(#[doc = $text:literal])+ $point:ident = $party:ident $name:literal;)+) => {
        /// A place where a process may be made to die.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum KillPoint {
            $($(#[doc = $text])+ $point,)+
        }

        impl KillPoint {
            /// All of them, each once.
            pub const ALL: &'static [Self] = &[$(Self::$point,)+];

            /// Its name in settings and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)+ }
            }

            /// Whose step it is.
            pub const fn party(self) -> Party {
                match self { $(Self::$point => Party::$party,)+ }
            }
        }
    };
}

points! {
    /// A wish and its operation are written, but not committed.
    OperationWritten = Director "director.operation-written";
    /// A release is written, but not committed.
    ReleaseWritten = Director "director.release-written";
    /// A change is committed, and whoever asked has no answer yet.
    ChangeCommitted = Director "director.change-committed";
    /// The bytes of a code version are stored, and no row names them yet.
    CodeStored = Director "director.code-stored";
    /// What a manager reported is committed.
    ReportTaken = Director "director.report-taken";
    /// The wish for a machine is committed; no cloud was asked.
    IntentRecorded = Director "director.intent-recorded";
    /// That a cloud is about to be asked is committed.
    CreateRecorded = Director "director.create-recorded";
    /// A cloud made a machine; nothing of its answer is recorded.
    CreateAnswered = Director "director.create-answered";
    /// A cloud's answer is committed.
    AnswerTaken = Director "director.answer-taken";
    /// An agent's key is committed; it has no certificate yet.
    AgentEnrolled = Director "director.agent-enrolled";
    /// A manager's certificate is about to be answered.
    ManagerEnrolled = Director "director.manager-enrolled";
    /// That a machine is up is committed.
    MachineUp = Director "director.machine-up";
    /// A manager was sent its level.
    LevelToManager = Director "director.level-sent";
    /// The edge's routes lie beside the file they are to replace.
    RoutesPrepared = Director "director.routes-prepared";
    /// The edge's routes are replaced.
    RoutesWritten = Director "director.routes-written";
    /// That a machine is about to be destroyed is committed.
    DestroyRecorded = Director "director.destroy-recorded";
    /// A cloud destroyed a machine; nothing of its answer is recorded.
    DestroyAnswered = Director "director.destroy-answered";
    /// That a machine is gone is committed.
    MachineGone = Director "director.machine-gone";
    /// That a node is over is committed.
    NodeEnded = Director "director.node-ended";

    /// A manager has its certificate on disk.
    ManagerSecured = Manager "manager.secured";
    /// A manager took its level in.
    LevelTaken = Manager "manager.level-taken";
    /// A manager gave a node's level to the stream of its agent.
    LevelToAgent = Manager "manager.level-sent";
    /// A manager took an agent's report in.
    ReportHeard = Manager "manager.report-heard";
    /// A manager reported to the Director.
    ReportToDirector = Manager "manager.report-sent";

    /// An agent has its certificate on disk.
    AgentSecured = Agent "agent.secured";
    /// An agent was given a level that it has not kept yet.
    LevelOffered = Agent "agent.level-offered";
    /// An agent keeps a level that it has not begun to carry out.
    LevelKept = Agent "agent.level-kept";
    /// Code lies on the node as an archive.
    CodeFetched = Agent "agent.code-fetched";
    /// Code is unpacked beside the place it is used from.
    CodeUnpacked = Agent "agent.code-unpacked";
    /// A role was brought to its level, and nobody was told.
    RoleApplied = Agent "agent.role-applied";
    /// A role was stopped, and nobody was told.
    RoleStopped = Agent "agent.role-stopped";
    /// An agent reported to its manager.
    ReportToManager = Agent "agent.report-sent";

    /// The edge read routes that are not in force yet.
    RoutesRead = Edge "edge.routes-read";
    /// Routes are in force, but the edge keeps no copy yet.
    RoutesInForce = Edge "edge.routes-in-force";
    /// The edge answered which routes are in force.
    RoutesAnswered = Edge "edge.routes-answered";
}

impl fmt::Display for KillPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no point has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPoint(pub String);

impl fmt::Display for UnknownPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no kill point '{}'", self.0)
    }
}

impl std::error::Error for UnknownPoint {}

impl FromStr for KillPoint {
    type Err = UnknownPoint;

    fn from_str(text: &str) -> Result<Self, UnknownPoint> {
        let found = Self::ALL.iter().find(|point| point.name() == text);
        found.copied().ok_or_else(|| UnknownPoint(text.to_owned()))
    }
}

/// What is done at each point in place of dying: for processes that are tasks of one program.
pub type Trap = Arc<dyn Fn(KillPoint) + Send + Sync>;

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
static TRAP: RwLock<Option<Trap>> = RwLock::new(None);
static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

struct Armed {
    file: PathBuf,
    point: KillPoint,
    left: AtomicU64,
}

/// Says that a step is done. Does not return where the process is to die.
#[inline]
pub fn reached(point: KillPoint) {
    if STATE.load(Ordering::Relaxed) != OFF {
        look(point);
    }
}

/// Has every point of this process go to a trap instead.
pub fn set_trap(trap: Trap) {
    *TRAP.write().unwrap_or_else(PoisonError::into_inner) = Some(trap);
    STATE.store(ON, Ordering::Release);
}

#[cold]
fn look(point: KillPoint) {
    let trap = TRAP.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(trap) = trap {
        trap(point);
        return;
    }
    let armed = ARMED.get_or_init(|| armed(std::env::var_os(VARIABLE)));
    let Some(armed) = armed else {
        // A trap that was set meanwhile stays.
        let _ = STATE.compare_exchange(UNKNOWN, OFF, Ordering::AcqRel, Ordering::Relaxed);
        return;
    };
    if armed.point == point && armed.left.fetch_sub(1, Ordering::AcqRel) == 1 {
        // Gone before the process is: whoever starts it again starts it without.
        if std::fs::remove_file(&armed.file).is_ok() {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// What the variable asks for; nothing when it is unset or its file is not there or not valid.
fn armed(variable: Option<OsString>) -> Option<Armed> {
    let file = PathBuf::from(variable.filter(|value| !value.is_empty())?);
    let (point, count) = parse(&std::fs::read_to_string(&file).ok()?)?;
    Some(Armed {
        file,
        point,
        left: AtomicU64::new(count),
    })
}

fn parse(text: &str) -> Option<(KillPoint, u64)> {
    let mut words = text.split_whitespace();
    let point = words.next()?.parse().ok()?;
    let count = words.next().map_or(Some(1), |word| word.parse().ok())?;
    (count > 0).then_some((point, count))
}

/// Writes the file that [`VARIABLE`] names.
///
/// # Errors
/// When it cannot be written.
pub fn write(file: &Path, point: KillPoint, count: u64) -> std::io::Result<()> {
    std::fs::write(file, format!("{point} {count}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_lead_back_to_their_points() {
        let names: BTreeSet<&str> = KillPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), KillPoint::ALL.len());
        for point in KillPoint::ALL {
            assert_eq!(point.name().parse(), Ok(*point));
            let party = format!("{:?}.", point.party()).to_lowercase();
            assert!(point.name().starts_with(&party), "{point}");
        }
    }

    #[test]
    fn what_is_unset_or_not_valid_arms_nothing() {
        assert!(armed(None).is_none());
        assert!(armed(Some("".into())).is_none());
        assert!(armed(Some("/nowhere/at/all".into())).is_none());
        for text in [
            "",
            "no.such-point 1",
            "agent.level-kept 0",
            "agent.level-kept x",
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
        assert_eq!(parse("agent.level-kept"), Some((KillPoint::LevelKept, 1)));
        assert_eq!(
            parse("agent.level-kept 3\n"),
            Some((KillPoint::LevelKept, 3))
        );
        reached(KillPoint::LevelKept);
        assert_eq!(STATE.load(Ordering::Relaxed), OFF, "looked at once");
    }
}
