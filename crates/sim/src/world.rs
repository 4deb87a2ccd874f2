//! The world: one clock, one queue of events, and everybody in it. What each of them does with an
//! event lives in their own module; here is only who gets it.

use crate::bugs::Bug;
use crate::cloud::SimCloud;
use crate::director::{Call, Director};
use crate::edge::Edge;
use crate::host::{Host, HostId};
use crate::net::{Link, Message, Net, Server};
use crate::rng::Rng;
use crate::schedule::{Ms, Schedule};
use crate::stats::Stats;
use crate::truth::Truth;
use crate::types;
use conpaas_cloud::Resources;
use conpaas_core::broker::{CallResult, Listed};
use conpaas_core::service_type::ServiceType;
use conpaas_model::ids::{
    ApplicationId, IdError, InstallationId, MachineId, PrincipalId, ServiceId,
};
use conpaas_model::protocol::Located;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// How often cores are asked what time has brought.
pub const TICK: Ms = 500;
/// How often everything is reported, changed or not.
pub const BEAT: Ms = 2_000;
/// How often a role is looked at when nothing changes.
pub const LOOK: Ms = 1_000;
/// How often clouds are listed.
pub const LIST_EVERY: Ms = 1_500;
/// A stream over which nothing comes for so long is broken.
pub const HEARTBEAT: Ms = 1_500;
/// Seconds that a role that is let go may finish requests in flight.
pub const DRAIN_SECONDS: u32 = 4;

/// Who can die, be cut off or be slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Director,
    Edge,
    Host(HostId),
    /// A manager's process, apart from its machine.
    Manager(HostId),
}

/// What happens next to somebody.
#[derive(Debug)]
pub enum Event {
    Disturb(usize),
    DirectorStarts,
    DirectorWakes,
    DirectorTicks,
    CallArrives {
        life: u64,
        call: Call,
    },
    CallAnswered {
        life: u64,
        machine: MachineId,
        cloud: usize,
        result: CallResult,
    },
    OrphanAnswered {
        life: u64,
        cloud: usize,
        id: String,
        gone: bool,
    },
    ListArrives {
        life: u64,
        cloud: usize,
        asked: u64,
    },
    ListAnswered {
        life: u64,
        cloud: usize,
        asked: u64,
        listed: Result<Vec<Listed>, String>,
    },
    AgentStarts {
        host: HostId,
    },
    /// The agent goes on finding its manager: enrols, asks where it is, opens the stream.
    AgentTries {
        host: HostId,
        life: u64,
    },
    EnrolAnswered {
        host: HostId,
        life: u64,
        granted: bool,
    },
    LocateAnswered {
        host: HostId,
        life: u64,
        located: Option<Located>,
    },
    AgentBeats {
        host: HostId,
        life: u64,
        beat: u64,
    },
    RoleWorks {
        host: HostId,
        life: u64,
        role: String,
        order: u64,
    },
    ManagerTries {
        host: HostId,
        life: u64,
    },
    ManagerTicks {
        host: HostId,
        life: u64,
    },
    Deliver {
        link: u64,
        up: bool,
        message: Box<Message>,
    },
    /// One end notices that a stream is over.
    LinkEnds {
        link: u64,
        server: bool,
    },
    EdgeStarts,
    EdgeLooks,
    Checks,
}

impl Event {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Disturb(_) => "disturbance",
            Self::DirectorStarts => "director starts",
            Self::DirectorWakes => "director wakes",
            Self::DirectorTicks => "director ticks",
            Self::CallArrives { .. } => "cloud is called",
            Self::CallAnswered { .. } | Self::OrphanAnswered { .. } => "cloud answers",
            Self::ListArrives { .. } => "cloud is listed",
            Self::ListAnswered { .. } => "list comes",
            Self::AgentStarts { .. } => "agent starts",
            Self::AgentTries { .. } => "agent calls",
            Self::EnrolAnswered { .. } => "agent enrols",
            Self::LocateAnswered { .. } => "manager is located",
            Self::AgentBeats { .. } => "agent reports in full",
            Self::RoleWorks { .. } => "role works",
            Self::ManagerTries { .. } => "manager calls",
            Self::ManagerTicks { .. } => "manager ticks",
            Self::Deliver { message, .. } => message.kind(),
            Self::LinkEnds { .. } => "stream ends",
            Self::EdgeStarts => "edge starts",
            Self::EdgeLooks => "edge looks",
            Self::Checks => "check",
        }
    }
}

struct Timed {
    at: Ms,
    order: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub invariant: &'static str,
    pub text: String,
    pub at: Ms,
}

/// Names that never change.
pub struct Names {
    pub installation: InstallationId,
    pub application: ApplicationId,
    pub owner: PrincipalId,
    pub web: ServiceId,
    pub system: ServiceId,
}

/// Everybody, and the time.
pub struct World {
    pub now: Ms,
    order: u64,
    queue: BinaryHeap<Reverse<Timed>>,
    pub rng: Rng,
    pub schedule: Schedule,
    pub service_type: &'static dyn ServiceType,
    pub names: Names,
    pub clouds: Vec<SimCloud>,
    pub hosts: BTreeMap<HostId, Host>,
    pub director: Director,
    pub edge: Edge,
    pub net: Net,
    /// Who dies after how many more places where it could.
    pub doomed: BTreeMap<Party, (u32, Ms)>,
    pub lives: u64,
    pub truth: Truth,
    pub stats: Stats,
    pub bug: Option<Bug>,
    pub broken: Option<Broken>,
    /// Faults have stopped; since when.
    pub calm: Option<Ms>,
    pub finished: bool,
    /// Lines for people who watch step by step.
    pub log: Option<Vec<String>>,
}

impl World {
    /// A world in which somebody has just started an application.
    ///
    /// # Errors
    /// Never, as long as the fixed names are valid.
    pub fn new(schedule: Schedule, bug: Option<Bug>) -> Result<Self, IdError> {
        let names = Names {
            installation: InstallationId::from_suffix("sim")?,
            application: ApplicationId::from_suffix("shop")?,
            owner: PrincipalId::from_suffix("ada")?,
            web: ServiceId::from_suffix("web")?,
            system: ServiceId::from_suffix("system")?,
        };
        let total = Resources {
            vcpus: 64.0,
            memory_mib: 65_536,
            disk_mib: 0,
        };
        let service_type = types::by_name(&schedule.service_type);
        let director = Director::new(&names, service_type, schedule.quota);
        let mut world = Self {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            rng: Rng::new(schedule.seed.rotate_left(17) ^ 0xc0de),
            service_type,
            names,
            clouds: (0..2)
                .map(|n| SimCloud::new(&format!("c{n}"), total))
                .collect(),
            hosts: BTreeMap::new(),
            director,
            edge: Edge::default(),
            net: Net::default(),
            doomed: BTreeMap::new(),
            lives: 0,
            truth: Truth::default(),
            stats: Stats::default(),
            bug,
            broken: None,
            calm: None,
            finished: false,
            log: None,
            schedule,
        };
        for index in 0..world.schedule.disturbances.len() {
            let at = world.schedule.disturbances[index].at;
            world.at(at, Event::Disturb(index));
        }
        world.at(0, Event::DirectorStarts);
        world.at(0, Event::EdgeStarts);
        world.at(1_000, Event::Checks);
        world.start_application();
        Ok(world)
    }

    /// Calls that some Director made and that have not reached their cloud yet.
    pub fn calls_on_their_way(&self) -> usize {
        let queue = self.queue.iter();
        queue
            .filter(|Reverse(timed)| matches!(timed.event, Event::CallArrives { .. }))
            .count()
    }

    /// Puts an event into the queue.
    pub fn at(&mut self, at: Ms, event: Event) {
        self.order += 1;
        let at = at.max(self.now);
        self.queue.push(Reverse(Timed {
            at,
            order: self.order,
            event,
        }));
    }

    /// The same, so many milliseconds from now.
    pub fn after(&mut self, delay: Ms, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The same, at some time between two bounds from now.
    pub fn soon(&mut self, low: Ms, high: Ms, event: Event) {
        let delay = self.rng.between(low, high);
        self.after(delay, event);
    }

    /// A number that names a life of a process.
    pub fn life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    /// Notes that an invariant does not hold; the first counts.
    pub fn broke(&mut self, invariant: &'static str, text: String) {
        let at = self.now;
        self.broken.get_or_insert(Broken {
            invariant,
            text,
            at,
        });
    }

    /// A line for people who watch.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(text());
        }
    }

    /// A place where somebody could die; true when this one does, now.
    pub fn dies(&mut self, who: Party) -> bool {
        let Some((points, down)) = self.doomed.get_mut(&who) else {
            return false;
        };
        *points = points.saturating_sub(1);
        if *points > 0 {
            return false;
        }
        let down = *down;
        self.doomed.remove(&who);
        self.crash(who, down);
        true
    }

    /// Whether a planted bug is in.
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Takes the next event; false when the story is over.
    pub fn step(&mut self) -> bool {
        if self.finished || self.broken.is_some() {
            return false;
        }
        let Some(Reverse(Timed { at, event, .. })) = self.queue.pop() else {
            self.broke("the world goes on", "nothing happens any more".to_owned());
            return false;
        };
        self.now = at;
        if let Some(until) = self.frozen_until(&event) {
            self.at(until, event);
            return true;
        }
        self.stats.event(event.kind());
        if self.log.is_some() {
            let text = describe(&event);
            self.say(|| text);
        }
        self.handle(event);
        true
    }

    /// When an event is for a machine that stands still: when it goes on.
    fn frozen_until(&self, event: &Event) -> Option<Ms> {
        let host = match event {
            Event::AgentTries { host, .. }
            | Event::AgentStarts { host }
            | Event::EnrolAnswered { host, .. }
            | Event::LocateAnswered { host, .. }
            | Event::AgentBeats { host, .. }
            | Event::RoleWorks { host, .. }
            | Event::ManagerTries { host, .. }
            | Event::ManagerTicks { host, .. } => *host,
            Event::Deliver { link, up, .. } => self.end_of(*link, *up)?,
            Event::LinkEnds { link, server } => self.end_of(*link, *server)?,
            _ => return None,
        };
        let until = self.hosts.get(&host)?.frozen_until;
        (until > self.now).then_some(until)
    }

    /// The machine at one end of a stream.
    fn end_of(&self, link: u64, server: bool) -> Option<HostId> {
        let Link {
            host,
            server: other,
            ..
        } = self.net.links.get(&link)?;
        match (server, other) {
            (false, _) => Some(*host),
            (true, Server::Manager(other)) => Some(*other),
            (true, Server::Director) => None,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Disturb(index) => self.disturb(index),
            Event::DirectorStarts => self.director_starts(),
            Event::DirectorWakes => self.director_wakes(),
            Event::DirectorTicks => self.director_ticks(),
            Event::CallArrives { life, call } => self.call_arrives(life, call),
            Event::CallAnswered {
                life,
                machine,
                cloud,
                result,
            } => {
                self.call_answered(life, machine, cloud, result);
            }
            Event::OrphanAnswered {
                life,
                cloud,
                id,
                gone,
            } => {
                self.orphan_answered(life, cloud, &id, gone);
            }
            Event::ListArrives { life, cloud, asked } => self.list_arrives(life, cloud, asked),
            Event::ListAnswered {
                life,
                cloud,
                asked,
                listed,
            } => {
                self.list_answered(life, cloud, asked, listed);
            }
            Event::AgentStarts { host } => self.agent_starts(host),
            Event::AgentTries { host, life } => self.agent_tries(host, life),
            Event::EnrolAnswered {
                host,
                life,
                granted,
            } => {
                self.enrol_answered(host, life, granted);
            }
            Event::LocateAnswered {
                host,
                life,
                located,
            } => self.located(host, life, located),
            Event::AgentBeats { host, life, beat } => self.agent_beats(host, life, beat),
            Event::RoleWorks {
                host,
                life,
                role,
                order,
            } => {
                self.role_works(host, life, &role, order);
            }
            Event::ManagerTries { host, life } => self.manager_tries(host, life),
            Event::ManagerTicks { host, life } => self.manager_ticks(host, life),
            Event::Deliver { link, up, message } => self.deliver(link, up, *message),
            Event::LinkEnds { link, server } => self.link_ends(link, server),
            Event::EdgeStarts => self.edge_starts(),
            Event::EdgeLooks => self.edge_looks(),
            Event::Checks => self.checks(),
        }
    }
}

fn describe(event: &Event) -> String {
    match event {
        Event::Deliver { link, up, message } => {
            let way = if *up { "up" } else { "down" };
            format!("stream {link} {way}: {}", message.describe())
        }
        other => {
            let mut text = format!("{other:?}");
            if text.len() > 240 {
                let cut = (0..=240)
                    .rev()
                    .find(|at| text.is_char_boundary(*at))
                    .unwrap_or(0);
                text.truncate(cut);
                text.push('…');
            }
            text
        }
    }
}
