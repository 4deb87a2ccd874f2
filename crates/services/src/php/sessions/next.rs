//! What a copy of the session store does next, from what it is and who leads. Pure; the manager
//! decides who leads, and what is done here is done by the role's agent half.

use conpaas_model::ids::{NodeNumber, Term};
use conpaas_model::level::{Lead, LeadStage};
use std::net::SocketAddrV4;
use std::time::Duration;

/// How long the next leader waits for the last one to hand over, and the last one for the next
/// to be in reach.
pub const HAND_OVER: Duration = Duration::from_secs(4);

/// A store as it says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub part: Part,
    /// The term whose data it holds.
    pub term: Option<Term>,
    /// How far its data are.
    pub ahead: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// It takes writes; these copies are in touch with it.
    Master { copies: Vec<SocketAddrV4> },
    Copy {
        of: SocketAddrV4,
        /// In touch with it, and not amid a first copy.
        up: bool,
    },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Stay,
    /// Begin the term, with nothing or with what is there.
    Begin {
        empty: bool,
    },
    HandOver(SocketAddrV4),
    Follow(SocketAddrV4),
    /// Look again soon.
    Wait,
}

/// The next step of the store on node `me`. `higher` is one of the others that holds data of a
/// higher term; `waited` is how long this term is known here.
pub fn next(
    view: &View,
    lead: &Lead,
    me: NodeNumber,
    higher: Option<SocketAddrV4>,
    waited: Duration,
) -> Step {
    let follow = |whom: SocketAddrV4| match &view.part {
        Part::Copy { of, .. } if *of == whom => Step::Stay,
        _ => Step::Follow(whom),
    };
    if let Some(higher) = higher {
        // Another leads already: this level is an old one.
        return follow(higher);
    }
    if view.term > Some(lead.term) {
        return Step::Stay;
    }
    if lead.leader.node == me {
        return begin(view, lead, waited);
    }
    let leader = SocketAddrV4::new(lead.leader.address, lead.leader.port);
    match &view.part {
        Part::Master { copies } if lead.from == Some(me) && copies.contains(&leader) => {
            Step::HandOver(leader)
        }
        Part::Master { .. } if lead.from == Some(me) && waited < HAND_OVER => Step::Wait,
        // A leader of old holds an older term. This one was handed the work by a leader that knows
        // more than this level: the level that says so is on its way.
        Part::Master { .. } if view.term == Some(lead.term) => Step::Wait,
        _ => follow(leader),
    }
}

fn begin(view: &View, lead: &Lead, waited: Duration) -> Step {
    // It has begun. If it is a master no more, or its data are gone, the manager must know, and
    // decide again: it never begins twice.
    if view.term == Some(lead.term) || lead.stage != LeadStage::Beginning {
        return Step::Stay;
    }
    let Some(after) = lead.after else {
        return Step::Begin { empty: true };
    };
    // One that has copied a newer term meanwhile holds all the more.
    if view.term < Some(after) {
        return Step::Stay;
    }
    match &view.part {
        Part::Copy { up: true, .. } if lead.from.is_some() && waited < HAND_OVER => Step::Wait,
        _ => Step::Begin { empty: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_model::level::Provider;
    use std::net::Ipv4Addr;

    fn at(node: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, node), 6379)
    }

    fn lead(term: u64, node: u8, after: Option<u64>, from: Option<u64>, stage: LeadStage) -> Lead {
        Lead {
            term: Term(term),
            leader: Provider {
                role: "sessions".into(),
                node: NodeNumber(node.into()),
                release: None,
                address: *at(node).ip(),
                port: 6379,
                capacity: 0,
            },
            after: after.map(Term),
            from: from.map(NodeNumber),
            stage,
            others: Vec::new(),
            users: Default::default(),
        }
    }

    fn master(term: Option<u64>, copies: &[u8]) -> View {
        View {
            part: Part::Master {
                copies: copies.iter().map(|n| at(*n)).collect(),
            },
            term: term.map(Term),
            ahead: 0,
        }
    }

    fn copy(term: Option<u64>, of: u8, up: bool) -> View {
        View {
            part: Part::Copy { of: at(of), up },
            term: term.map(Term),
            ahead: 0,
        }
    }

    const NOW: Duration = Duration::ZERO;
    const LATER: Duration = Duration::from_secs(5);
    use LeadStage::{Beginning, Open};

    #[test]
    fn a_leader_begins_once_it_holds_what_it_must() {
        let one = NodeNumber(1);
        let first = lead(1, 1, None, None, Beginning);
        let begin = |empty| Step::Begin { empty };
        assert_eq!(
            next(&master(None, &[]), &first, one, None, NOW),
            begin(true)
        );
        assert_eq!(
            next(&master(Some(1), &[]), &first, one, None, NOW),
            Step::Stay
        );
        let planned = lead(5, 1, Some(4), Some(2), Beginning);
        assert_eq!(
            next(&copy(Some(4), 2, true), &planned, one, None, NOW),
            Step::Wait
        );
        assert_eq!(
            next(&copy(Some(4), 2, true), &planned, one, None, LATER),
            begin(false)
        );
        assert_eq!(
            next(&master(Some(4), &[2]), &planned, one, None, NOW),
            begin(false)
        );
        let sudden = lead(5, 1, Some(4), None, Beginning);
        assert_eq!(
            next(&copy(Some(4), 2, false), &sudden, one, None, NOW),
            begin(false)
        );
        // Of another term, or of none: never.
        for held in [None, Some(3)] {
            assert_eq!(
                next(&copy(held, 2, false), &sudden, one, None, LATER),
                Step::Stay
            );
        }
        // What it had is gone: it does not go on as if nothing were.
        let open = lead(5, 1, Some(4), None, Open);
        assert_eq!(
            next(&master(None, &[]), &open, one, None, LATER),
            Step::Stay
        );
    }

    #[test]
    fn one_that_does_not_lead_hands_over_or_follows() {
        let two = NodeNumber(2);
        let planned = lead(5, 1, Some(4), Some(2), Beginning);
        let step = |view: &View, waited| next(view, &planned, two, None, waited);
        assert_eq!(step(&master(Some(4), &[1]), NOW), Step::HandOver(at(1)));
        assert_eq!(step(&master(Some(4), &[]), NOW), Step::Wait);
        assert_eq!(step(&master(Some(4), &[]), LATER), Step::Follow(at(1)));
        assert_eq!(step(&copy(Some(4), 1, true), NOW), Step::Stay);
        assert_eq!(step(&copy(Some(4), 3, true), NOW), Step::Follow(at(1)));
        let sudden = lead(5, 1, Some(4), None, Beginning);
        let back = next(&master(Some(4), &[1]), &sudden, two, None, NOW);
        assert_eq!(back, Step::Follow(at(1)));
    }

    #[test]
    fn one_that_was_handed_the_work_keeps_it_until_its_level_comes() {
        let old = lead(4, 1, Some(3), None, Open);
        let handed = next(&master(Some(4), &[1]), &old, NodeNumber(2), None, LATER);
        assert_eq!(handed, Step::Wait);
    }

    #[test]
    fn whoever_sees_a_higher_term_follows_it_whatever_an_old_level_says() {
        let one = NodeNumber(1);
        let old = lead(4, 1, Some(3), None, Open);
        let deposed = next(&master(Some(4), &[]), &old, one, Some(at(2)), LATER);
        assert_eq!(deposed, Step::Follow(at(2)));
        let follows = copy(Some(4), 2, true);
        assert_eq!(next(&follows, &old, one, Some(at(2)), LATER), Step::Stay);
        assert_eq!(next(&follows, &old, one, None, LATER), Step::Stay);
        // It has that term's data by now, and the other is out of sight.
        let copied = copy(Some(5), 2, false);
        assert_eq!(next(&copied, &old, one, None, LATER), Step::Stay);
    }
}
