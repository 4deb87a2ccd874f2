//! Who leads a role that has one leader: decided from what is observed, as a level, never as a
//! recipe. Pure; what it must know of the past it reads from the leads in levels. How a leader
//! begins and hands over is the agent half's.
//!
//! Only one whose copy is whole is chosen, terms only grow, and nobody is led to a leader before
//! it says itself that it has begun. A leader that goes on purpose is closed first (its users let
//! go and wait), then hands over, then the next one opens.

use crate::service_type::Standing;
use conpaas_model::ids::{NodeNumber, Term};
use conpaas_model::level::{Lead, LeadStage, Provider};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// An instance of the role, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub provider: Provider,
    pub standing: Standing,
    /// It should serve in the end, and serves now (any other is to go).
    pub serves: bool,
    /// Its node's agent obeys now.
    pub live: bool,
    /// Something may run there, as far as anybody knows.
    pub may_run: bool,
    /// It cannot run.
    pub failed: bool,
}

impl Member {
    fn may_lead(&self) -> bool {
        self.serves && self.live && !self.failed
    }
}

/// What is known of a role's leader and of those who may follow it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The lead with the highest term in any level.
    pub known: Option<&'a Lead>,
    pub members: &'a [Member],
    /// The machine of the known leader does not exist any more: that is certain, not suspected.
    pub gone: bool,
    /// No user is led to the known leader any more.
    pub let_go: bool,
}

/// Who leads from now on, and why that is not yet as it should be.
pub fn decide(view: &View<'_>) -> (Option<Lead>, Option<String>) {
    let Some(known) = view.known else {
        // Nobody has ever led.
        return match first(view.members) {
            Some(member) => (Some(elect(view, member, Term(1), None, None)), None),
            None => (None, None),
        };
    };
    let node = known.leader.node;
    let member = view.members.iter().find(|m| m.provider.node == node);
    let works = member.is_some_and(|m| m.standing.leads == Some(known.term));
    let begun = known.stage != LeadStage::Beginning || works;
    let mut same = Lead {
        stage: match begun {
            true => LeadStage::Open,
            false => LeadStage::Beginning,
        },
        others: others(view.members, node),
        ..known.clone()
    };
    // It says that the data of its term are not there any more.
    let lost = begun
        && member.is_some_and(|m| {
            m.live && m.standing.told && m.standing.holds.is_none_or(|held| held < known.term)
        });
    // One to whom everything is being handed over begins first, whatever is wanted meanwhile.
    let receives = !begun && known.from.is_some();
    if member.is_some_and(|m| m.may_run && !m.failed && (m.serves || receives)) && !lost {
        return (Some(same), None);
    }

    // It goes, or has gone: one that holds all its data comes next.
    let holds = |m: &&Member| {
        m.may_lead()
            && m.provider.node != node
            && m.standing.holds.is_some_and(|held| {
                held == known.term || !begun && known.after.is_none_or(|after| held == after)
            })
    };
    let best = |bar: u64| {
        view.members
            .iter()
            .filter(holds)
            .filter(|m| m.standing.ahead >= bar)
            .max_by_key(|m| {
                let standing = &m.standing;
                (standing.holds, standing.ahead, Reverse(m.provider.node))
            })
    };
    // Above all that anybody holds, too, whatever levels say.
    let held = view.members.iter().filter_map(|m| m.standing.holds).max();
    let term = known.term.max(held.unwrap_or_default()).next();
    let follow = |next: &Member, from| elect(view, next, term, next.standing.holds, from);
    if works && member.is_some_and(|m| m.live) {
        let Some(next) = best(0) else {
            let reason = nobody(view.members, node);
            return (Some(same), reason);
        };
        if !view.let_go {
            same.stage = LeadStage::Closing;
            let reason = format!("its users let go of the leader on node {node}");
            return (Some(same), Some(reason));
        }
        return (Some(follow(next, Some(node))), None);
    }
    // It cannot hand over. One that lags behind it is chosen only when nothing else is left.
    let bar = member.map_or(0, |m| m.standing.ahead);
    let next = best(if begun { bar } else { 0 }).or_else(|| best(0).filter(|_| view.gone));
    if let Some(next) = next {
        return (Some(follow(next, None)), None);
    }
    let nothing_to_lose = view.gone || lost || !begun && known.after.is_none();
    let nothing_left = |m: &Member| !holds(&m) && (m.standing.told || m.failed || !m.may_run);
    let empty = nothing_to_lose && view.members.iter().all(nothing_left);
    match first(view.members).filter(|_| empty) {
        Some(member) => (Some(elect(view, member, term, None, None)), None),
        None => (Some(same), nobody(view.members, node)),
    }
}

/// What is left of a lead when nobody should have the role any more and nobody has it: whoever has
/// it next begins with nothing, in a term of its own.
pub fn over(known: &Lead) -> Lead {
    if known.stage == LeadStage::Beginning && known.after.is_none() {
        return known.clone();
    }
    Lead {
        term: known.term.next(),
        after: None,
        from: None,
        stage: LeadStage::Beginning,
        others: Vec::new(),
        ..known.clone()
    }
}

/// The one that begins where nobody holds anything.
fn first(members: &[Member]) -> Option<&Member> {
    members
        .iter()
        .filter(|m| m.may_lead())
        .min_by_key(|m| m.provider.node)
}

fn elect(
    view: &View<'_>,
    member: &Member,
    term: Term,
    after: Option<Term>,
    from: Option<NodeNumber>,
) -> Lead {
    Lead {
        term,
        leader: member.provider.clone(),
        after,
        from,
        stage: LeadStage::Beginning,
        others: others(view.members, member.provider.node),
        users: BTreeSet::new(),
    }
}

fn others(members: &[Member], leader: NodeNumber) -> Vec<Provider> {
    let mut others: Vec<Provider> = members
        .iter()
        .filter(|m| m.may_run && m.provider.node != leader)
        .map(|m| m.provider.clone())
        .collect();
    others.sort();
    others
}

/// Why nobody follows a leader that goes; nothing when nobody is there to follow it.
fn nobody(members: &[Member], leader: NodeNumber) -> Option<String> {
    members
        .iter()
        .any(|m| m.serves && m.provider.node != leader)
        .then(|| format!("nobody has a whole copy of what the leader on node {leader} holds"))
}

#[cfg(test)]
mod tests;
