//! The planner, its linter and the manager core in a world of agents, machines and an edge that
//! take their time: named walks, and random ones by property.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod world;

use conpaas_core::plan::replaced_at_once;
use conpaas_model::ends::{EndsToTell, Exit, ProcessEnds};
use conpaas_model::environment::Environment;
use conpaas_model::event::{LeaveReason, RequestReason};
use conpaas_model::ids::{Epoch, Generation, NodeNumber, ReleaseNumber, SecretVersion};
use conpaas_model::level::{Duty, LeadStage};
use conpaas_model::spec::{Release, RunWish, Settings};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use world::World;
use world::types::{Chain, Kept, Site, Vault};

fn site() -> World {
    let mut world = World::new(&Site);
    world.settle();
    world
}

fn roles(world: &World) -> Vec<String> {
    let mut all: Vec<String> = world
        .agents
        .values()
        .map(|a| {
            let mut roles: Vec<&str> = a.running.keys().map(|i| i.role.as_str()).collect();
            roles.dedup();
            roles.join("+")
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_service_starts_on_one_machine_that_holds_all_roles() {
    let mut world = site();
    assert_eq!(roles(&world), ["file+front+page"]);
    world.assert_fixed_point();
}

#[test]
fn machines_specialise_and_pack_together_again() {
    let mut world = site();
    world.scale("page", 4);
    world.settle();
    assert_eq!(
        roles(&world),
        ["file+front", "page", "page", "page", "page"]
    );
    world.scale("file", 2);
    world.scale("front", 2);
    world.settle();
    assert_eq!(
        roles(&world),
        [
            "file", "file", "front", "front", "page", "page", "page", "page"
        ]
    );
    world.assert_fixed_point();
    world.scale("page", 1);
    world.scale("file", 1);
    world.scale("front", 1);
    world.settle();
    assert_eq!(roles(&world), ["file+front+page"]);
    world.assert_fixed_point();
}

#[test]
fn a_release_switch_leaves_only_the_new_one() {
    let mut world = site();
    world.scale("page", 3);
    world.settle();
    world.activate();
    world.settle();
    let releases: std::collections::BTreeSet<_> = world
        .agents
        .values()
        .flat_map(|a| a.running.keys().filter_map(|i| i.release))
        .collect();
    assert_eq!(releases.into_iter().map(|r| r.0).collect::<Vec<_>>(), [2]);
    world.assert_fixed_point();
}

/// A Director that came back from a backup asks for less, in a release that its managers have left
/// behind, and knows nothing of the one that runs, nor of most nodes, which are in quarantine. Its
/// word outranks what it said before; who uses what it does not know goes on until that is replaced.
#[test]
fn a_wish_from_a_backup_is_reached_and_nobody_is_left_without_what_they_use() {
    let cases = [(1, 2), (2, 4), (2, 3)].into_iter();
    for ((pages, later), remembers) in cases.flat_map(|c| [(c, true), (c, false)]) {
        let mut world = site();
        world.scale("page", pages);
        world.settle();
        let old = world.spec.clone();
        let known: Vec<NodeNumber> = world.records.keys().copied().collect();
        world.activate();
        world.settle();
        world.scale("page", later);
        world.settle();
        world.spec = old;
        world.spec.generation = Generation(70_000);
        world.epoch = Epoch(7 << 32 | world.epoch.0);
        world.records.retain(|number, _| known.contains(number));
        world.next_node = NodeNumber(70_000);
        if remembers {
            world.tell();
        } else {
            world.takeover();
        }
        for turn in 0..200 {
            world.turn();
            world.destroyed();
            for node in &world.led {
                let agent = &world.agents[node];
                let (table, _) = &agent.tables["front"];
                let pages = table.iter().filter(|used| used.role == "page");
                let there = pages.filter(|p| world.agents[&p.node].running.contains_key(p));
                assert!(there.count() > 0, "turn {turn}, {remembers}: {table:?}");
            }
        }
        world.settle();
        let ours = |number: &NodeNumber| known.contains(number) || number.0 >= 70_000;
        let agents = world.agents.iter().filter(|(number, _)| ours(number));
        let releases: std::collections::BTreeSet<_> = agents
            .clone()
            .flat_map(|(_, agent)| agent.running.keys().filter_map(|i| i.release))
            .collect();
        assert_eq!(releases, [ReleaseNumber(1)].into());
        for (_, agent) in agents {
            let used = agent.tables.values().flat_map(|(table, _)| table);
            assert!(used.map(|used| used.node).all(|node| ours(&node)));
            let level = agent.level.as_ref().map(|level| level.version.epoch);
            assert_eq!(level, Some(world.epoch));
        }
    }
}

#[test]
fn an_environment_goes_to_the_roles_that_take_it_and_to_no_other() {
    let mut world = site();
    world.scale("page", 2);
    let environment = Environment {
        variables: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
        secrets: BTreeMap::from([("S".to_owned(), SecretVersion(3))]),
    };
    world.change(|spec| {
        spec.releases.push(Release {
            number: ReleaseNumber(2),
            code: None,
            settings: Settings::new(),
            environment: environment.clone(),
        });
        spec.active = ReleaseNumber(2);
    });
    world.settle();
    let mut given = 0;
    for agent in world.agents.values() {
        for (role, level) in &agent.level.as_ref().unwrap().body.roles {
            for release in level.releases.values() {
                if role == "page" {
                    assert_eq!(release.environment, environment);
                    given += 1;
                } else {
                    assert!(release.environment.is_empty(), "{role}");
                }
            }
        }
    }
    assert_eq!(given, 2);
    world.assert_fixed_point();
}

/// Whoever led people to a release dies amid an activation: what serves it waits for the next.
#[test]
fn the_old_release_goes_on_when_nobody_leads_to_it_before_the_new_one_is_ready() {
    let mut world = site();
    world.scale("page", 2);
    world.settle();
    let runs = |world: &World, number: &NodeNumber, role: &str| {
        let agent = &world.agents[number];
        agent.running.keys().any(|i| i.role == role)
    };
    let up: Vec<NodeNumber> = world.records.keys().copied().collect();
    let front = up.iter().position(|n| runs(&world, n, "front")).unwrap();
    world.activate();
    world.kill(front);
    let pages: Vec<NodeNumber> = up
        .iter()
        .copied()
        .filter(|n| runs(&world, n, "page"))
        .collect();
    assert_eq!(pages.len(), 2);
    for number in pages {
        let level = world.agents[&number].level.as_ref().unwrap();
        let releases = &level.body.roles["page"].releases;
        assert_eq!(
            releases[&ReleaseNumber(1)].duty,
            Duty::Serve,
            "node {number}"
        );
    }
    world.settle();
    world.assert_fixed_point();
}

#[test]
fn many_releases_in_a_row_share_the_ring() {
    let mut world = site();
    for _ in 0..20 {
        world.activate();
        world.settle();
    }
    world.assert_fixed_point();
}

#[test]
fn stop_ends_with_no_node_and_start_brings_all_back() {
    let mut world = site();
    world.scale("page", 3);
    world.settle();
    world.change(|s| s.run = RunWish::Stopped);
    world.settle();
    assert!(world.records.is_empty());
    world.change(|s| s.run = RunWish::Running);
    world.settle();
    assert_eq!(roles(&world).len(), 4);
}

#[test]
fn a_dead_node_is_replaced_by_one_with_a_new_number() {
    let mut world = site();
    world.scale("page", 3);
    world.settle();
    let highest = world.next_node;
    world.kill(2);
    world.settle();
    assert_eq!(roles(&world), ["file+front", "page", "page", "page"]);
    assert!(world.records.contains_key(&highest));
    assert!(
        !world.records.contains_key(&NodeNumber(4)) || world.records.contains_key(&NodeNumber(5))
    );
}

#[test]
fn a_manager_without_memory_changes_nothing() {
    let mut world = site();
    world.scale("page", 3);
    world.settle();
    let before = roles(&world);
    let nodes: Vec<_> = world.records.keys().copied().collect();
    world.takeover();
    world.settle();
    assert_eq!(roles(&world), before);
    assert_eq!(world.records.keys().copied().collect::<Vec<_>>(), nodes);
}

#[test]
fn a_second_type_of_another_shape_walks_the_same_way() {
    let mut world = World::new(&Chain);
    world.settle();
    assert_eq!(roles(&world), ["asker", "helper"]);
    world.scale("helper", 3);
    world.settle();
    world.scale("helper", 1);
    world.settle();
    assert_eq!(roles(&world), ["asker", "helper"]);
    world.change(|s| s.run = RunWish::Stopped);
    world.settle();
    assert!(world.records.is_empty());
}

/// Nodes with an auxiliary role.
fn keepers(world: &World) -> Vec<NodeNumber> {
    let keeps = |agent: &world::Agent| agent.running.keys().any(|i| i.role == "keeper");
    let all = world.agents.iter().filter(|(_, agent)| keeps(agent));
    all.map(|(number, _)| *number).collect()
}

#[test]
fn an_auxiliary_role_lives_on_nodes_that_are_there_and_moves_only_when_they_go() {
    let mut world = World::new(&Kept);
    world.settle();
    assert_eq!(roles(&world), ["front+keeper+page"]);
    world.scale("page", 3);
    world.settle();
    assert_eq!(
        roles(&world),
        ["front", "keeper+page", "keeper+page", "page"]
    );
    let before = keepers(&world);
    world.scale("page", 4);
    world.settle();
    assert_eq!(keepers(&world), before);
    world.scale("page", 2);
    world.settle();
    assert_eq!(keepers(&world), before, "the others go first");
    world.kill(before[0].0 as usize);
    world.scale("page", 3);
    world.settle();
    assert_eq!(keepers(&world).len(), 2);
    world.scale("page", 1);
    world.settle();
    assert_eq!(roles(&world), ["front+keeper+page"]);
    world.assert_fixed_point();
    world.change(|s| s.run = RunWish::Stopped);
    world.settle();
    assert!(world.records.is_empty(), "it has no node of its own");
}

#[test]
fn a_leader_whose_node_goes_hands_over_to_a_whole_copy() {
    let mut world = World::new(&Kept);
    world.scale("page", 3);
    world.settle();
    let before = keepers(&world);
    for number in before {
        world.change(|spec| {
            spec.retire.insert(number);
        });
        world.settle();
        assert!(!keepers(&world).contains(&number));
        assert_eq!(keepers(&world).len(), 2);
        world.assert_fixed_point();
    }
    assert!(world.met["handed over"] >= 1);
    assert_eq!(world.met["new leader"], 1 + world.met["handed over"]);
}

#[test]
fn many_nodes_are_replaced_a_few_at_a_time() {
    let mut world = World::new(&Kept);
    world.scale("page", 11);
    world.settle();
    let before: BTreeSet<NodeNumber> = world.records.keys().copied().collect();
    world.change(|spec| spec.retire.extend(before.iter().copied()));
    let most = before.len() + replaced_at_once(before.len());
    for _ in 0..1000 {
        world.turn();
        world.destroyed();
        assert!(world.records.len() <= most, "{}", world.records.len());
        if before.iter().all(|old| !world.records.contains_key(old)) {
            break;
        }
    }
    world.settle();
    let after: BTreeSet<NodeNumber> = world.records.keys().copied().collect();
    assert_eq!(after.len(), before.len());
    assert!(after.is_disjoint(&before), "{before:?} {after:?}");
    world.assert_fixed_point();
}

#[test]
fn a_release_that_needs_no_auxiliary_role_lets_it_go_after_the_switch() {
    let mut world = World::new(&Kept);
    world.settle();
    for (off, there) in [(true, 0), (false, 1)] {
        world.change(|spec| {
            let mut next = spec.releases.last().unwrap().clone();
            next.number = next.number.next();
            next.settings.clear();
            if off {
                next.settings.insert("off".into(), true.into());
            }
            spec.active = next.number;
            spec.releases.push(next);
        });
        world.settle();
        assert_eq!(keepers(&world).len(), there);
        world.assert_fixed_point();
    }
}

#[test]
fn a_role_that_must_not_run_twice_is_replaced_only_after_destruction() {
    let mut world = World::new(&Vault);
    world.scale("store", 2);
    world.settle();
    assert_eq!(roles(&world), ["front", "store", "store"]);
    let stores = |world: &World| {
        let alive = |(number, _): &(&NodeNumber, &world::Agent)| !world.killed.contains(number);
        let runs = |agent: &world::Agent| agent.running.keys().any(|i| i.role == "store");
        let agents = world.agents.iter().filter(alive);
        agents.filter(|(_, agent)| runs(agent)).count()
    };
    let victim = world.agents.iter().find(|(_, agent)| {
        let mut running = agent.running.keys();
        running.any(|i| i.role == "store")
    });
    let victim = *victim.unwrap().0;
    let up = world.records.keys().position(|number| *number == victim);
    world.kill(up.unwrap());
    let known = world.records.len();
    for _ in 0..20 {
        world.turn();
        assert_eq!(stores(&world), 1);
        assert_eq!(world.records.len(), known, "no other node is asked for");
    }
    let status = world.report.as_ref().unwrap().status.clone();
    assert!(!status.reached);
    let waits = status.waiting.iter().find(|w| w.kind == "fencing");
    let waits = waits.expect("it says what it waits for");
    assert!(waits.text.contains(&format!("node {victim} ")), "{waits:?}");
    world.settle();
    assert_eq!(stores(&world), 2);
    let told = |reason: &RequestReason| *reason == RequestReason::Replacement { replaces: victim };
    // By then its record was gone: the new node is there because of the count.
    assert!(!world.report.unwrap().requested.values().any(told));
}

#[test]
fn others_are_replaced_on_suspicion_and_the_plan_says_for_whom() {
    let mut world = site();
    world.scale("page", 3);
    world.settle();
    world.kill(2);
    let victim = *world.killed.iter().next().unwrap();
    let report = world.report.clone().unwrap();
    let reasons: Vec<_> = report.requested.values().cloned().collect();
    assert_eq!(reasons, [RequestReason::Replacement { replaces: victim }]);
    assert_eq!(report.leaving[&victim], LeaveReason::Dead);
    world.settle();
}

#[test]
fn ends_of_processes_are_told_until_they_were_written_down() {
    let mut world = site();
    let ends = ProcessEnds {
        process: "front/x".into(),
        count: 2,
        last: Exit::Signal(9),
    };
    let number = *world.agents.keys().next().unwrap();
    world.ends.insert(number, vec![ends.clone()]);
    world.report_of(number);
    let told = |world: &World| world.report.clone().unwrap().ends;
    let wanted = [EndsToTell { node: number, ends }];
    assert_eq!(told(&world), wanted);
    // Another manager tells the same, and none does once it was written down.
    world.takeover();
    world.settle();
    assert_eq!(told(&world), wanted);
    let record = world.records.get_mut(&number).unwrap();
    record.told.insert("front/x".into(), 2);
    world.tell();
    assert!(told(&world).is_empty());
    world.takeover();
    world.settle();
    assert!(told(&world).is_empty());
}

static MET: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Debug)]
enum Action {
    Director,
    Destroyed,
    Boot(usize),
    Step(usize),
    Report(usize),
    Edge,
    Tick,
    Kill(usize),
    Scale(usize, u32),
    Activate,
    Switch,
    Stop,
    Start,
    Takeover,
    Retire(usize),
    Quota(usize),
    Preview,
    Promote,
    Discard,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => Just(Action::Director),
        3 => Just(Action::Destroyed),
        6 => any::<u8>().prop_map(|p| Action::Boot(p.into())),
        12 => any::<u8>().prop_map(|p| Action::Step(p.into())),
        10 => any::<u8>().prop_map(|p| Action::Report(p.into())),
        4 => Just(Action::Edge),
        3 => Just(Action::Tick),
        1 => any::<u8>().prop_map(|p| Action::Kill(p.into())),
        2 => (any::<u8>(), 1..5u32).prop_map(|(r, c)| Action::Scale(r.into(), c)),
        1 => Just(Action::Activate),
        1 => Just(Action::Switch),
        1 => Just(Action::Stop),
        1 => Just(Action::Start),
        1 => Just(Action::Takeover),
        1 => any::<u8>().prop_map(|p| Action::Retire(p.into())),
        1 => (1..12usize).prop_map(Action::Quota),
        1 => Just(Action::Preview),
        1 => Just(Action::Promote),
        1 => Just(Action::Discard),
    ]
}

/// A service that runs on several nodes already.
fn kept() -> World {
    let mut world = World::new(&Kept);
    world.scale("page", 3);
    world.settle();
    world
}

fn walk(mut world: World, actions: Vec<Action>) {
    let roles: Vec<String> = world.spec.roles.keys().cloned().collect();
    for action in actions {
        match action {
            Action::Director => world.director(),
            Action::Destroyed => world.destroyed(),
            Action::Boot(pick) => world.boot(pick),
            Action::Step(pick) => world.step(pick / 2, pick % 2 == 1),
            Action::Report(pick) => world.report_some(pick),
            Action::Edge => world.edge(),
            Action::Tick => {
                world.now += std::time::Duration::from_millis(500);
                world.feed(conpaas_core::manager::Event::Tick);
            }
            Action::Kill(pick) => world.kill(pick),
            Action::Scale(role, count) => world.scale(&roles[role % roles.len()], count),
            Action::Activate => world.activate(),
            Action::Switch => world.switch(),
            Action::Stop => world.change(|s| s.run = RunWish::Stopped),
            Action::Start => world.change(|s| s.run = RunWish::Running),
            Action::Takeover => world.takeover(),
            Action::Retire(pick) => world.retire(pick),
            Action::Quota(quota) => world.quota = quota,
            Action::Preview => world.preview(),
            Action::Promote => world.promote(),
            Action::Discard => world.discard(),
        }
        if world.agents.values().any(|a| {
            a.running
                .keys()
                .map(|i| &i.role)
                .collect::<std::collections::BTreeSet<_>>()
                .len()
                > 1
        }) {
            *world.met.entry("packed node").or_default() += 1;
        }
    }
    world.quota = 1000;
    world.settle();
    world.assert_fixed_point();
    let beside = |agent: &world::Agent| agent.running.keys().any(|i| i.role == "page");
    for number in keepers(&world) {
        let agent = &world.agents[&number];
        assert!(beside(agent), "a node of its own");
        let level = agent.level.as_ref().unwrap();
        let lead = &level.body.roles["keeper"].leads["keeper"];
        assert_eq!(lead.stage, LeadStage::Open);
        assert_eq!(agent.copy.unwrap().holds, Some(lead.term), "a whole copy");
    }
    let mut met = MET.lock().unwrap();
    for (what, count) in world.met {
        *met.entry(what).or_default() += count;
    }
}

#[test]
fn whatever_happens_no_request_of_ours_fails_it_ends_and_the_generators_met_what_they_should() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let found = runner.run(&prop::collection::vec(action(), 1..150), |actions| {
        walk(World::new(&Site), actions.clone());
        walk(World::new(&Kept), actions.clone());
        walk(World::new(&Vault), actions.clone());
        walk(kept(), actions.clone());
        walk(World::new(&Chain), actions);
        Ok(())
    });
    if let Err(error) = found {
        panic!("{error}");
    }
    let met = MET.lock().unwrap();
    println!("met: {met:?}");
    for what in [
        "dead node",
        "draining instance",
        "half-born node",
        "full quota",
        "packed node",
        "second wish in the middle of the first",
        "manager without memory",
        "new leader",
        "handed over",
        "a switch of auxiliary roles",
        "a release that is held",
        "a release that is promoted",
    ] {
        assert!(met.get(what).copied().unwrap_or(0) > 0, "never met: {what}");
    }
}

#[test]
fn a_dead_node_amid_a_scale_keeps_nobody_waiting() {
    walk(
        World::new(&Kept),
        vec![
            Action::Scale(0, 2),
            Action::Director,
            Action::Director,
            Action::Boot(0),
            Action::Director,
            Action::Director,
            Action::Boot(0),
            Action::Boot(0),
            Action::Director,
            Action::Boot(0),
            Action::Scale(187, 1),
            Action::Boot(0),
            Action::Boot(0),
            Action::Scale(254, 3),
            Action::Director,
            Action::Kill(27),
        ],
    );
}

#[test]
fn the_last_page_of_a_release_stays_while_people_are_led_to_it() {
    walk(
        kept(),
        vec![
            Action::Scale(1, 1),
            Action::Step(68),
            Action::Scale(0, 3),
            Action::Takeover,
            Action::Activate,
            Action::Start,
            Action::Scale(1, 2),
            Action::Retire(182),
        ],
    );
}

#[test]
fn a_leader_that_stopped_is_led_to_only_once_it_leads_again() {
    use Action::*;
    walk(
        World::new(&Kept),
        vec![
            Director,
            Boot(0),
            Boot(0),
            Step(0),
            Report(0),
            Step(0),
            Stop,
            Director,
            Report(0),
            Step(0),
            Start,
            Director,
        ],
    );
}

#[test]
fn what_was_ready_before_a_stop_is_not_thought_ready_after_it() {
    use Action::*;
    let actions = vec![
        Scale(0, 2),
        Director,
        Boot(0),
        Boot(0),
        Step(8),
        Takeover,
        Kill(15),
        Edge,
        Step(118),
        Stop,
        Report(36),
        Report(4),
        Step(6),
        Start,
        Report(16),
        Edge,
    ];
    walk(World::new(&Kept), actions.clone());
    walk(kept(), actions);
}

#[test]
fn an_auxiliary_role_that_comes_back_begins_with_nothing_in_a_new_term() {
    for pages in [1, 3] {
        let mut world = World::new(&Kept);
        world.scale("page", pages);
        world.settle();
        for _ in 0..2 {
            let before = keepers(&world).len();
            world.switch();
            world.settle();
            assert_eq!(keepers(&world), []);
            world.switch();
            world.settle();
            assert_eq!(keepers(&world).len(), before);
            world.assert_fixed_point();
        }
        for agent in world.agents.values() {
            let level = agent.level.as_ref().unwrap();
            for lead in level.body.roles.values().flat_map(|r| r.leads.values()) {
                assert_eq!((lead.term.0, lead.after), (3, None));
                assert_eq!(lead.stage, LeadStage::Open);
            }
        }
    }
}

#[test]
fn many_releases_while_none_can_start_are_passed_by() {
    use Action::*;
    let mut actions = vec![Director, Boot(0), Boot(0), Step(137), Step(187), Report(0)];
    actions.extend(std::iter::repeat_n(Activate, 9));
    for world in [World::new(&Site), World::new(&Kept), kept()] {
        walk(world, actions.clone());
    }
}

#[test]
fn a_node_that_goes_before_the_switch_leaves_the_new_release_what_it_needs() {
    use Action::*;
    walk(
        kept(),
        vec![
            Retire(1),
            Activate,
            Director,
            Boot(0),
            Boot(0),
            Step(228),
            Step(158),
            Kill(46),
            Report(24),
            Retire(104),
            Director,
            Director,
            Director,
        ],
    );
}

/// Held, a release runs everywhere and nobody is led to it; promoted, it is there at once.
#[test]
fn a_release_that_is_held_runs_beside_and_shows_only_at_its_promotion() {
    let mut world = site();
    world.scale("page", 2);
    world.settle();
    world.preview();
    world.settle();
    let releases = |world: &World, role: &str| {
        let running = world.agents.values().flat_map(|a| a.running.keys());
        let of_role = running.filter(|i| i.role == role);
        let mut all: Vec<u64> = of_role.filter_map(|i| i.release).map(|r| r.0).collect();
        all.sort_unstable();
        all
    };
    let led = |world: &World| -> BTreeSet<u64> {
        let tables = world.agents.values().flat_map(|a| a.tables.values());
        tables
            .filter_map(|(_, serving)| *serving)
            .map(|r| r.0)
            .collect()
    };
    assert_eq!(releases(&world, "page"), [1, 1, 2, 2]);
    assert_eq!(led(&world), [1].into());
    let previews = world.agents.values().filter_map(|agent| {
        let level = agent.level.as_ref()?.body.roles.get("front")?;
        Some((
            level.preview,
            level.releases.contains_key(&ReleaseNumber(2)),
        ))
    });
    assert!(
        previews
            .into_iter()
            .all(|found| found == (Some(ReleaseNumber(2)), true))
    );
    // Nodes come and go with both.
    world.scale("page", 3);
    world.settle();
    assert_eq!(releases(&world, "page"), [1, 1, 1, 2, 2, 2]);
    world.scale("page", 1);
    world.settle();
    assert_eq!(releases(&world, "page"), [1, 2]);
    world.promote();
    world.settle();
    assert_eq!(releases(&world, "page"), [2]);
    assert_eq!(led(&world), [2].into());
    world.assert_fixed_point();
    // What is discarded leaves nothing behind.
    world.preview();
    world.settle();
    assert_eq!(releases(&world, "page"), [2, 3]);
    world.discard();
    world.settle();
    assert_eq!(releases(&world, "page"), [2]);
    world.assert_fixed_point();
}

#[test]
fn nobody_is_led_to_a_load_balancer_that_knows_only_what_is_held() {
    use Action::*;
    walk(
        kept(),
        vec![
            Activate,
            Step(6),
            Activate,
            Activate,
            Quota(1),
            Retire(84),
            Step(6),
            Stop,
            Start,
            Activate,
            Start,
            Step(246),
            Step(104),
            Start,
            Step(144),
            Activate,
            Activate,
            Takeover,
            Scale(56, 2),
            Director,
            Edge,
            Preview,
            Step(152),
            Report(52),
            Director,
            Activate,
            Step(153),
            Preview,
            Report(166),
        ],
    );
}
