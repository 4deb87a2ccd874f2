//! A schedule: what people wish and what goes wrong, and when. Made from a seed, or read from a
//! file; whatever else happens in a simulated world follows from it.

use crate::rng::Rng;
use crate::types;
use serde::{Deserialize, Serialize};

/// Simulated milliseconds since the world began.
pub type Ms = u64;

/// One world's story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Where all small chances (delays, durations) come from.
    pub seed: u64,
    pub service_type: String,
    /// Most nodes the owner may have.
    pub quota: u32,
    /// What happens, in order of time.
    pub disturbances: Vec<Disturbance>,
    /// Once all is well, delete the application and see that nothing is left.
    pub teardown: bool,
    /// What it broke when it was found; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// Something that happens at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disturbance {
    pub at: Ms,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Wish(Wish),
    Fault(Fault),
}

/// What a person asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    Scale {
        role: u64,
        count: u32,
    },
    /// Other code: a new release.
    Activate,
    /// Other settings: a new release, too.
    Settings,
    Rollback,
    Stop,
    Start,
    Replace {
        pick: u64,
    },
    /// Ends the newest operation that runs, and wishes what was before it.
    Cancel,
    Delete,
}

/// Who can die, be cut off or be slow. A number picks one of those that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Director,
    /// The machine of the manager that is in office.
    Manager,
    Node(u64),
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The process dies at the so-manieth place from now on where it could, and is started again.
    Dies {
        who: Side,
        points: u32,
        down: Ms,
    },
    ManagerProcessDies {
        points: u32,
    },
    EdgeDies {
        down: Ms,
    },
    MachineDies {
        who: Side,
    },
    RoleDies {
        pick: u64,
    },
    /// Everything on the machine stands still, and goes on later.
    Freezes {
        who: Side,
        lasts: Ms,
    },
    Partition {
        from: Side,
        to: Side,
        lasts: Ms,
    },
    Slow {
        who: Side,
        lasts: Ms,
        delay: Ms,
    },
    /// The next messages are lost, and the streams that carried them break.
    Lose {
        messages: u32,
    },
    Repeat {
        messages: u32,
    },
    Reorder {
        messages: u32,
    },
    /// Calls to a cloud fail without effect.
    CloudFails {
        cloud: u64,
        calls: u32,
    },
    CloudSlow {
        cloud: u64,
        calls: u32,
        delay: Ms,
    },
    /// The cloud does as it was asked, but its answer never comes.
    AnswersLost {
        cloud: u64,
        calls: u32,
    },
    CreatesTwice {
        cloud: u64,
        calls: u32,
    },
    NoCapacity {
        cloud: u64,
        lasts: Ms,
    },
    /// Lists leave a machine out that is there.
    ListHides {
        cloud: u64,
        lists: u32,
    },
    /// Lists leave the manager's machine out, and the cloud is slow to destroy it: it lives on
    /// beside the one in its stead.
    TakenForDead {
        lists: u32,
        lasts: Ms,
    },
    /// Lists hold a machine that never was.
    ListInvents {
        cloud: u64,
        lists: u32,
    },
    ListFails {
        cloud: u64,
        lists: u32,
    },
    /// Machines of this cloud never finish their boot.
    BootsHang {
        cloud: u64,
        machines: u32,
    },
    /// The Director's wall clock jumps by so many milliseconds.
    ClockJumps {
        by: i64,
    },
    DiskFull {
        who: Side,
        lasts: Ms,
    },
    /// Somebody else enrols with the token of a machine.
    TokenStolen {
        pick: u64,
    },
}

impl Wish {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Scale { .. } => "scale",
            Self::Activate => "activate",
            Self::Settings => "settings",
            Self::Rollback => "rollback",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Replace { .. } => "replace",
            Self::Cancel => "cancel",
            Self::Delete => "delete",
        }
    }
}

impl Fault {
    /// The kind, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dies {
                who: Side::Director,
                ..
            } => "director dies",
            Self::Dies { .. } => "agent dies",
            Self::ManagerProcessDies { .. } => "manager dies",
            Self::EdgeDies { .. } => "edge dies",
            Self::MachineDies { .. } => "machine dies",
            Self::RoleDies { .. } => "role dies",
            Self::Freezes { .. } => "machine freezes",
            Self::Partition { .. } => "partition",
            Self::Slow { .. } => "slow network",
            Self::Lose { .. } => "messages lost",
            Self::Repeat { .. } => "messages repeated",
            Self::Reorder { .. } => "messages reordered",
            Self::CloudFails { .. } => "cloud fails",
            Self::CloudSlow { .. } => "cloud answers late",
            Self::AnswersLost { .. } => "cloud loses answers",
            Self::CreatesTwice { .. } => "cloud creates twice",
            Self::NoCapacity { .. } => "cloud refuses capacity",
            Self::ListHides { .. } => "list hides",
            Self::TakenForDead { .. } => "a manager is taken for dead",
            Self::ListInvents { .. } => "list invents",
            Self::ListFails { .. } => "list fails",
            Self::BootsHang { .. } => "boot hangs",
            Self::ClockJumps { .. } => "clock jumps",
            Self::DiskFull { .. } => "disk full",
            Self::TokenStolen { .. } => "token stolen",
        }
    }
}

/// When the first disturbance may come, and when the last.
const FROM: Ms = 1_500;
const UNTIL: Ms = 24_000;

impl Schedule {
    /// The schedule of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let index = rng.below(types::NAMES.len() as u64) as usize;
        let service_type = types::NAMES[index].to_owned();
        let quota = [8, 12, 30][rng.below(3) as usize];
        let (wishes, faults) = (rng.between(2, 6), rng.between(3, 8));
        let mut disturbances = Vec::new();
        for _ in 0..wishes {
            let what = What::Wish(wish(&mut rng));
            disturbances.push(Disturbance {
                at: rng.between(FROM, UNTIL),
                what,
            });
        }
        for _ in 0..faults {
            let what = What::Fault(fault(&mut rng));
            disturbances.push(Disturbance {
                at: rng.between(FROM / 3, UNTIL),
                what,
            });
        }
        if rng.chance(6) {
            let what = What::Wish(Wish::Delete);
            disturbances.push(Disturbance { at: UNTIL, what });
        }
        disturbances.sort_by_key(|d| d.at);
        Self {
            seed,
            service_type,
            quota,
            disturbances,
            teardown: rng.chance(25),
            found: None,
        }
    }

    /// Faults in it.
    pub fn faults(&self) -> usize {
        self.disturbances
            .iter()
            .filter(|d| matches!(d.what, What::Fault(_)))
            .count()
    }
}

fn wish(rng: &mut Rng) -> Wish {
    match rng.below(20) {
        0..=7 => Wish::Scale {
            role: rng.below(8),
            count: rng.between(1, 4) as u32,
        },
        8..=10 => Wish::Activate,
        11..=12 => Wish::Settings,
        13 => Wish::Rollback,
        14 => Wish::Stop,
        15 => Wish::Start,
        16..=17 => Wish::Replace { pick: rng.draw() },
        _ => Wish::Cancel,
    }
}

fn side(rng: &mut Rng) -> Side {
    match rng.below(6) {
        0 => Side::Director,
        1..=2 => Side::Manager,
        _ => Side::Node(rng.below(1 << 16)),
    }
}

fn machine(rng: &mut Rng) -> Side {
    match rng.below(4) {
        0 => Side::Manager,
        _ => Side::Node(rng.below(1 << 16)),
    }
}

fn fault(rng: &mut Rng) -> Fault {
    let cloud = rng.below(2);
    let few = rng.between(1, 4) as u32;
    let lasts = rng.between(300, 9_000);
    match rng.below(32) {
        0..=2 => Fault::Dies {
            who: Side::Director,
            points: rng.between(1, 12) as u32,
            down: rng.between(200, 5_000),
        },
        3..=4 => Fault::Dies {
            who: Side::Node(rng.below(1 << 16)),
            points: rng.between(1, 6) as u32,
            down: rng.between(100, 2_000),
        },
        5..=6 => Fault::ManagerProcessDies {
            points: rng.between(1, 12) as u32,
        },
        7 => Fault::EdgeDies {
            down: rng.between(100, 3_000),
        },
        8..=9 => Fault::MachineDies { who: machine(rng) },
        10 => Fault::RoleDies {
            pick: rng.draw() >> 16,
        },
        11 => Fault::Freezes {
            who: machine(rng),
            lasts,
        },
        12..=13 => Fault::Partition {
            from: side(rng),
            to: side(rng),
            lasts,
        },
        14 => Fault::Slow {
            who: side(rng),
            lasts,
            delay: rng.between(100, 2_500),
        },
        15 => Fault::Lose { messages: few },
        16 => Fault::Repeat { messages: few * 3 },
        17 => Fault::Reorder { messages: few * 3 },
        18 => Fault::CloudFails { cloud, calls: few },
        19 => Fault::CloudSlow {
            cloud,
            calls: few,
            delay: rng.between(500, 9_000),
        },
        20 => Fault::AnswersLost { cloud, calls: few },
        21 => Fault::CreatesTwice { cloud, calls: few },
        22 => Fault::NoCapacity { cloud, lasts },
        23 => Fault::ListHides { cloud, lists: few },
        24 => Fault::ListInvents { cloud, lists: few },
        25 => Fault::ListFails { cloud, lists: few },
        26 => Fault::BootsHang {
            cloud,
            machines: few.min(2),
        },
        27 => {
            let by = rng.between(500, 600_000) as i64;
            Fault::ClockJumps {
                by: if rng.chance(50) { by } else { -by },
            }
        }
        28 => Fault::DiskFull {
            who: side(rng),
            lasts,
        },
        29 => Fault::TokenStolen {
            pick: rng.draw() >> 16,
        },
        _ => Fault::TakenForDead { lists: few, lasts },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_follows_from_its_seed_and_survives_its_file() {
        for seed in 0..200 {
            let schedule = Schedule::of_seed(seed);
            assert!(schedule.faults() >= 3);
            let text = serde_json::to_string(&schedule).unwrap();
            let read: Schedule = serde_json::from_str(&text).unwrap();
            assert_eq!(read, Schedule::of_seed(seed));
        }
    }
}
