use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

fn provider(node: u64) -> Provider {
    Provider {
        role: "store".into(),
        node: NodeNumber(node),
        release: None,
        address: Ipv4Addr::LOCALHOST,
        port: 1,
        capacity: 0,
    }
}

fn member(node: u64, leads: Option<u64>, holds: Option<u64>, ahead: u64) -> Member {
    Member {
        provider: provider(node),
        standing: Standing {
            told: true,
            leads: leads.map(Term),
            holds: holds.map(Term),
            ahead,
        },
        serves: true,
        live: true,
        may_run: true,
        failed: false,
    }
}

fn dead(member: Member) -> Member {
    Member {
        serves: false,
        live: false,
        may_run: false,
        ..member
    }
}

fn leaves(member: Member) -> Member {
    Member {
        serves: false,
        ..member
    }
}

fn lead(term: u64, node: u64, after: Option<u64>, stage: LeadStage) -> Lead {
    Lead {
        term: Term(term),
        leader: provider(node),
        after: after.map(Term),
        from: None,
        stage,
        others: Vec::new(),
        users: Default::default(),
    }
}

/// Term, leader, what it must hold, who hands over, stage.
type Word = (u64, u64, Option<u64>, Option<u64>, LeadStage);

fn word(known: Option<&Lead>, members: &[Member], gone: bool, let_go: bool) -> Option<Word> {
    let view = View {
        known,
        members,
        gone,
        let_go,
    };
    decide(&view).0.map(|l| {
        let after = l.after.map(|t| t.0);
        (
            l.term.0,
            l.leader.node.0,
            after,
            l.from.map(|n| n.0),
            l.stage,
        )
    })
}

use LeadStage::{Beginning, Closing, Open};

#[test]
fn the_first_leader_begins_with_nothing_and_opens_by_its_own_word() {
    let new = [member(2, None, None, 0), member(1, None, None, 0)];
    assert_eq!(
        word(None, &new, true, true),
        Some((1, 1, None, None, Beginning))
    );
    assert_eq!(word(None, &[], true, true), None);
    let known = lead(1, 1, None, Beginning);
    let begun = [member(1, Some(1), Some(1), 5), member(2, None, None, 0)];
    for _ in 0..2 {
        assert_eq!(
            word(Some(&known), &begun, false, false),
            Some((1, 1, None, None, Open))
        );
    }
    // It restarts: nobody is led elsewhere for that.
    let known = lead(1, 1, None, Open);
    let mut restarts = [member(1, None, None, 5), member(2, None, Some(1), 5)];
    restarts[0].standing.told = false;
    assert_eq!(
        word(Some(&known), &restarts, false, false),
        Some((1, 1, None, None, Open))
    );
}

#[test]
fn one_that_died_is_followed_only_by_one_that_has_all_it_had() {
    let known = lead(3, 1, Some(2), Open);
    let was = dead(member(1, Some(3), Some(3), 100));
    let with = |other: Member, gone| word(Some(&known), &[was.clone(), other], gone, true);
    let next = Some((4, 2, Some(3), None, Beginning));
    let same = Some((3, 1, Some(2), None, Open));
    assert_eq!(with(member(2, None, Some(3), 100), false), next);
    // It lags: only when the other's machine is certainly gone.
    assert_eq!(with(member(2, None, Some(3), 99), false), same);
    assert_eq!(with(member(2, None, Some(3), 99), true), next);
    // It was never in step: not while the other may come back, and then with nothing.
    assert_eq!(with(member(2, None, Some(2), 500), false), same);
    assert_eq!(with(member(2, None, None, 0), false), same);
    let empty = Some((4, 2, None, None, Beginning));
    assert_eq!(with(member(2, None, None, 0), true), empty);
    // One that has not said what it holds may hold everything.
    let mut silent = member(2, None, None, 0);
    silent.standing.told = false;
    assert_eq!(with(silent, true), same);
}

#[test]
fn one_that_lost_its_data_does_not_go_on_as_if_nothing_were() {
    let known = lead(3, 1, None, Open);
    let lost = member(1, None, None, 0);
    let both = [lost.clone(), member(2, None, Some(3), 90)];
    let next = Some((4, 2, Some(3), None, Beginning));
    assert_eq!(word(Some(&known), &both, false, true), next);
    let again = Some((4, 1, None, None, Beginning));
    assert_eq!(word(Some(&known), &[lost], false, true), again);
}

#[test]
fn one_that_goes_is_closed_first_and_then_hands_over() {
    let known = lead(3, 1, None, Open);
    let goes = leaves(member(1, Some(3), Some(3), 100));
    let both = [goes.clone(), member(2, None, Some(3), 90)];
    let closing = Some((3, 1, None, None, Closing));
    assert_eq!(word(Some(&known), &both, false, false), closing);
    let known = lead(3, 1, None, Closing);
    let next = Some((4, 2, Some(3), Some(1), Beginning));
    assert_eq!(word(Some(&known), &both, false, true), next);
    // The one that was to follow is lost meanwhile: people are led there again.
    let open = Some((3, 1, None, None, Open));
    let alone = [goes.clone(), dead(member(2, None, Some(3), 90))];
    assert_eq!(word(Some(&known), &alone, false, true), open);
    assert_eq!(word(Some(&known), &[goes], false, true), open);
}

#[test]
fn an_elected_one_that_dies_before_it_began_is_followed_by_one_with_the_same_data() {
    let known = lead(4, 2, Some(3), Beginning);
    let rest = [
        leaves(member(1, None, Some(3), 100)),
        dead(member(2, None, Some(3), 90)),
        member(3, None, Some(3), 80),
        member(5, None, Some(3), 90),
    ];
    assert_eq!(
        word(Some(&known), &rest, true, true),
        Some((5, 5, Some(3), None, Beginning))
    );
}

/// One store as the agent half keeps it.
#[derive(Clone, Debug, Default)]
struct Store {
    leads: Option<Term>,
    holds: Option<Term>,
    /// The last write it has.
    data: u64,
    dead: bool,
    wanted: bool,
}

/// A service's stores, its users' endpoints, and a manager that knows only what it was told.
struct World {
    stores: BTreeMap<u64, Store>,
    /// By node: what its agent last said.
    said: BTreeMap<u64, Store>,
    /// By user: the lead its endpoint obeys, and the one it was last sent.
    users: Vec<(Option<Lead>, Option<Lead>)>,
    sent: BTreeMap<u64, Lead>,
    newest: Option<Lead>,
    leaders: BTreeMap<Term, NodeNumber>,
    written: u64,
    acknowledged: u64,
    faults: bool,
    removed: BTreeSet<u64>,
}

impl World {
    fn new() -> Self {
        let wanted = || Store {
            wanted: true,
            ..Store::default()
        };
        Self {
            stores: (1..=2).map(|n| (n, wanted())).collect(),
            said: BTreeMap::new(),
            users: vec![(None, None); 2],
            sent: BTreeMap::new(),
            newest: None,
            leaders: BTreeMap::new(),
            written: 0,
            acknowledged: 0,
            faults: false,
            removed: BTreeSet::new(),
        }
    }

    fn manage(&mut self) {
        let from_users = self.users.iter().flat_map(|(_, sent)| sent);
        let known = self.sent.values().chain(from_users);
        let known = known
            .max_by_key(|l| (l.term, l.stage != Beginning))
            .cloned();
        let members: Vec<Member> = self
            .stores
            .iter()
            .map(|(number, store)| {
                let said = self.said.get(number);
                let standing = said.map(|s| Standing {
                    told: true,
                    leads: s.leads,
                    holds: s.holds,
                    ahead: s.data,
                });
                Member {
                    provider: provider(*number),
                    standing: standing.unwrap_or_default(),
                    serves: store.wanted && !store.dead,
                    live: !store.dead,
                    may_run: !store.dead,
                    failed: false,
                }
            })
            .collect();
        let leader = known.as_ref().map(|l| l.leader.node.0);
        let view = View {
            known: known.as_ref(),
            members: &members,
            gone: leader.is_none_or(|n| self.stores.get(&n).is_none_or(|s| s.dead)),
            let_go: self.users.iter().all(|(obeyed, sent)| {
                obeyed == sent && sent.as_ref().is_none_or(|l| l.stage != Open)
            }),
        };
        let (Some(lead), _) = decide(&view) else {
            return;
        };
        if let Some(newest) = &self.newest {
            assert!(lead.term >= newest.term, "a term fell");
            assert!(lead.term > newest.term || lead.leader.node == newest.leader.node);
            if lead.term > newest.term
                && let Some(after) = lead.after
            {
                let chosen = &self.said[&lead.leader.node.0];
                assert_eq!(chosen.holds, Some(after), "without a whole copy");
            }
        }
        let one = *self.leaders.entry(lead.term).or_insert(lead.leader.node);
        assert_eq!(one, lead.leader.node, "two leaders in one term");
        for number in self.stores.keys() {
            self.sent.insert(*number, lead.clone());
        }
        for (_, sent) in &mut self.users {
            *sent = Some(lead.clone());
        }
        self.newest = Some(lead);
    }

    /// An agent half takes one step.
    fn step(&mut self, number: u64) {
        let Some(store) = self.stores.get(&number).filter(|s| !s.dead).cloned() else {
            return;
        };
        let Some(lead) = self.sent.get(&number).cloned() else {
            return;
        };
        let leader = self.stores.get(&lead.leader.node.0).cloned();
        let leader = leader.filter(|s| !s.dead);
        let mut new = store.clone();
        if lead.leader.node.0 == number {
            let from = lead.from.and_then(|n| self.stores.get(&n.0));
            let waits = from.is_some_and(|f| !f.dead && f.leads.is_some());
            let fits = store.holds >= lead.after;
            if store.leads != Some(lead.term) && lead.stage == Beginning && fits && !waits {
                new.data = if lead.after.is_none() { 0 } else { store.data };
                (new.leads, new.holds) = (Some(lead.term), Some(lead.term));
            }
        } else {
            if store.leads.is_some() && lead.from == Some(NodeNumber(number)) {
                // It hands over all it has.
                if let Some(next) = self.stores.get_mut(&lead.leader.node.0) {
                    next.data = next.data.max(store.data);
                }
            }
            new.leads = None;
            if let Some(leader) = leader.filter(|l| l.leads == Some(lead.term)) {
                (new.holds, new.data) = (Some(lead.term), leader.data);
            }
        }
        self.stores.insert(number, new);
    }

    /// A user writes where its endpoint leads.
    fn write(&mut self, user: usize) {
        let (Some(lead), _) = &self.users[user] else {
            return;
        };
        let node = lead.leader.node.0;
        if lead.stage != Open {
            return;
        }
        if let Some(store) = self.stores.get_mut(&node)
            && !store.dead
            && store.leads == Some(lead.term)
        {
            self.written += 1;
            store.data = self.written;
            self.acknowledged = self.written;
        }
    }

    fn check(&self) {
        let open: BTreeSet<(Term, NodeNumber)> = self
            .users
            .iter()
            .flat_map(|(obeyed, _)| obeyed)
            .filter(|l| l.stage == Open)
            .map(|l| (l.term, l.leader.node))
            .collect();
        let alive = |node: &NodeNumber| self.stores.get(&node.0).is_some_and(|s| !s.dead);
        let open = open
            .iter()
            .filter(|(term, node)| alive(node) && self.stores[&node.0].leads == Some(*term));
        assert!(open.count() <= 1, "two leaders that work");
        if !self.faults {
            let has = self.stores.values().map(|s| s.data).max();
            assert!(has >= Some(self.acknowledged), "a write was lost");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_two_leaders_only_whole_copies_and_terms_only_grow(
        actions in prop::collection::vec((0..10u8, any::<u8>()), 1..250),
        faults: bool,
    ) {
        let mut world = World::new();
        let mut next = 3;
        for (action, pick) in actions {
            let numbers: Vec<u64> = world.stores.keys().copied().collect();
            let number = numbers[usize::from(pick) % numbers.len()];
            let user = usize::from(pick) % world.users.len();
            match action {
                0..=2 => world.step(number),
                3..=4 => {
                    if !world.stores[&number].dead {
                        let store = world.stores[&number].clone();
                        world.said.insert(number, store);
                    }
                }
                5 => world.users[user].0 = world.users[user].1.clone(),
                6 => world.write(user),
                7 | 8 => world.manage(),
                // Now and then a store is to go and another comes, or one dies.
                _ if pick % 3 == 0 => {
                    if let Some(store) = world.stores.get_mut(&number) {
                        store.wanted = false;
                    }
                    world.stores.insert(next, Store { wanted: true, ..Store::default() });
                    next += 1;
                }
                _ if pick % 3 == 1 && faults => {
                    world.faults = true;
                    if let Some(store) = world.stores.get_mut(&number) {
                        (store.dead, store.leads) = (true, None);
                    }
                }
                _ => {
                    // One that leads nobody, nor hands over, and is not wanted goes.
                    let store = &world.stores[&number];
                    let led = world.newest.as_ref().is_none_or(|newest| {
                        newest.stage == Beginning || newest.leader.node.0 == number
                    });
                    if !store.wanted && store.leads.is_none() && !led {
                        world.stores.remove(&number);
                        world.sent.remove(&number);
                        world.said.remove(&number);
                        world.removed.insert(number);
                    }
                }
            }
            world.check();
        }
        // Quiet times: somebody leads, users are led there, and all wanted ones have a copy.
        for _ in 0..12 {
            world.manage();
            for number in world.stores.keys().copied().collect::<Vec<_>>() {
                world.step(number);
                if !world.stores[&number].dead {
                    let store = world.stores[&number].clone();
                    world.said.insert(number, store);
                }
            }
            for user in &mut world.users {
                user.0 = user.1.clone();
            }
            world.check();
        }
        let wanted = |s: &&Store| s.wanted && !s.dead;
        if world.stores.values().any(|s| wanted(&s)) {
            let newest = world.newest.clone().unwrap();
            prop_assert_eq!(newest.stage, Open);
            let leader = &world.stores[&newest.leader.node.0];
            prop_assert!(wanted(&leader) && leader.leads == Some(newest.term));
            for store in world.stores.values().filter(wanted) {
                prop_assert_eq!(store.holds, Some(newest.term));
            }
        }
    }
}
