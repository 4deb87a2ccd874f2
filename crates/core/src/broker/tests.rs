//! Tables for single rules, and a simulated world (clouds that lose answers, lists that fail,
//! boots that come late, machines that die) in which whatever happens, nothing is doubled, nothing
//! leaks, and everything ends as wished.

mod quarantine;

use super::*;
use conpaas_model::ids::{MachineId, NodeNumber, PrincipalId};
use conpaas_model::status::NodeState;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Time counts in seconds here: shorter numbers.
const SETTINGS: BrokerSettings = BrokerSettings {
    first_pause: 1,
    longest_pause: 60,
    longest_boot: 300,
};

fn key(number: u64) -> NodeKey {
    NodeKey {
        service: "svc-a".parse().unwrap(),
        number: NodeNumber(number),
    }
}

fn node(number: u64) -> NodeRow {
    NodeRow {
        key: key(number),
        owner: "user-a".parse().unwrap(),
        cloud: "c".into(),
        instance_type: "small".into(),
        wanted: true,
        state: NodeState::Requested,
        trouble: None,
    }
}

fn machine(id: &str, number: u64, stage: MachineStage) -> MachineRow {
    MachineRow {
        id: format!("m-{id}").parse().unwrap(),
        node: key(number),
        cloud: "c".into(),
        token: format!("t-{id}"),
        cloud_id: (stage >= MachineStage::Booting).then(|| format!("i-{id}")),
        stage,
        enrolled: false,
        attempts: 0,
        retry_at: 0,
        boot_deadline: 160,
        last_error: None,
        settled: 0,
    }
}

fn listed(id: &str) -> Listed {
    Listed {
        id: format!("i-{id}"),
        token: format!("t-{id}"),
        died: None,
    }
}

fn list(machines: &[Listed]) -> BTreeMap<String, CloudView> {
    [(
        "c".to_owned(),
        CloudView::Listed {
            asked: 10,
            machines: machines.to_vec(),
        },
    )]
    .into()
}

fn unlistable() -> BTreeMap<String, CloudView> {
    [(
        "c".to_owned(),
        CloudView::Unlistable {
            reason: "no answer".into(),
        },
    )]
    .into()
}

fn run(
    nodes: &[NodeRow],
    machines: &[MachineRow],
    clouds: &BTreeMap<String, CloudView>,
    now: u64,
) -> Vec<Action> {
    decide(&View {
        nodes,
        machines,
        clouds,
        quotas: &BTreeMap::new(),
        busy: &BTreeSet::new(),
        strangers: &Strangers::default(),
        now,
        settings: &SETTINGS,
    })
}

fn id(id: &str) -> MachineId {
    format!("m-{id}").parse().unwrap()
}

#[test]
fn intent_comes_before_the_call() {
    let intent = Action::RecordIntent {
        node: key(1),
        attempts: 0,
        retry_at: 0,
        last_error: None,
    };
    assert_eq!(run(&[node(1)], &[], &list(&[]), 100), [intent]);
    let intended = machine("a", 1, MachineStage::Intended);
    assert_eq!(
        run(&[node(1)], std::slice::from_ref(&intended), &list(&[]), 100),
        [Action::Create { machine: id("a") }]
    );
    let waiting = MachineRow {
        retry_at: 101,
        ..intended
    };
    assert_eq!(run(&[node(1)], &[waiting], &list(&[]), 100), []);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_wait_for_longer_than_the_longest_pause() {
    for (retry_at, acts) in [(160, false), (161, true), (u64::MAX, true)] {
        let waiting = MachineRow {
            retry_at,
            ..machine("a", 1, MachineStage::Intended)
        };
        let actions = run(&[node(1)], &[waiting], &list(&[]), 100);
        assert_eq!(!actions.is_empty(), acts, "{retry_at}");
    }
}

#[test]
fn a_clock_that_is_set_back_gives_no_machine_for_ever_to_boot() {
    for (boot_deadline, acts) in [(100, true), (101, false), (700, false), (701, true)] {
        let booting = MachineRow {
            boot_deadline,
            cloud_id: Some("i-a".into()),
            ..machine("a", 1, MachineStage::Booting)
        };
        let there = list(&[listed("a")]);
        let actions = run(&[node(1)], &[booting], &there, 100);
        assert_eq!(!actions.is_empty(), acts, "{boot_deadline}");
    }
}

#[test]
fn a_lost_answer_is_found_by_its_token_and_only_the_first_of_two() {
    let creating = machine("a", 1, MachineStage::Creating);
    let twin = Listed {
        id: "i-b".into(),
        ..listed("a")
    };
    let adopt = Action::Adopt {
        machine: id("a"),
        cloud_id: "i-a".into(),
    };
    let both = list(&[twin.clone(), listed("a"), listed("a")]);
    assert_eq!(
        run(&[node(1)], std::slice::from_ref(&creating), &both, 100),
        [adopt]
    );
    // Once ours is known, the twin is an orphan, destroyed once although it is listed twice.
    let booting = MachineRow {
        cloud_id: Some("i-a".into()),
        stage: MachineStage::Booting,
        ..creating.clone()
    };
    let orphan = Action::DestroyOrphan {
        token: "t-a".into(),
        cloud: "c".into(),
        cloud_id: "i-b".into(),
    };
    assert_eq!(
        run(
            &[node(1)],
            &[booting],
            &list(&[listed("a"), twin.clone(), twin]),
            100
        ),
        [orphan]
    );
    // Not there: asked for again, with the same record.
    assert_eq!(
        run(&[node(1)], std::slice::from_ref(&creating), &list(&[]), 100),
        [Action::Create { machine: id("a") }]
    );
    // A list from before our call knows nothing.
    let settled = MachineRow {
        settled: 10,
        ..creating
    };
    assert_eq!(run(&[node(1)], &[settled], &list(&[]), 100), []);
}

#[test]
fn a_late_boot_is_destroyed_and_another_is_tried_with_growing_pauses() {
    let booting = machine("a", 1, MachineStage::Booting);
    assert_eq!(
        run(
            &[node(1)],
            std::slice::from_ref(&booting),
            &list(&[listed("a")]),
            159
        ),
        []
    );
    let actions = run(
        &[node(1)],
        std::slice::from_ref(&booting),
        &list(&[listed("a")]),
        160,
    );
    assert!(
        matches!(&actions[..], [Action::Destroy { cloud_id, reason: Some(_), .. }] if cloud_id == "i-a"),
        "{actions:?}"
    );
    let enrolled = MachineRow {
        enrolled: true,
        ..booting
    };
    assert_eq!(
        run(&[node(1)], &[enrolled], &unlistable(), 500),
        [Action::MarkUp { machine: id("a") }]
    );

    let destroying = MachineRow {
        attempts: 3,
        ..machine("a", 1, MachineStage::Destroying)
    };
    let actions = run(&[node(1)], &[destroying], &list(&[]), 200);
    assert!(
        matches!(
            &actions[..],
            [
                Action::MarkGone { .. },
                Action::RecordIntent {
                    attempts: 4,
                    retry_at: 208,
                    ..
                }
            ]
        ),
        "{actions:?}"
    );
    assert_eq!(SETTINGS.pause(99), 60);
}

#[test]
fn a_machine_that_was_up_and_died_makes_its_node_dead_for_good() {
    let up = MachineRow {
        enrolled: true,
        ..machine("a", 1, MachineStage::Up)
    };
    let dead = Listed {
        died: Some("killed".into()),
        ..listed("a")
    };
    for there in [vec![dead], vec![]] {
        let actions = run(&[node(1)], std::slice::from_ref(&up), &list(&there), 100);
        assert!(
            matches!(&actions[..], [Action::MarkDead { .. }]),
            "{actions:?}"
        );
    }
    let lost = NodeRow {
        state: NodeState::Dead,
        ..node(1)
    };
    let row = machine("a", 1, MachineStage::Dead);
    assert_eq!(
        run(
            std::slice::from_ref(&lost),
            std::slice::from_ref(&row),
            &list(&[listed("a")]),
            100
        ),
        []
    );
    assert_eq!(run(std::slice::from_ref(&lost), &[], &list(&[]), 100), []);
    let unwanted = NodeRow {
        wanted: false,
        ..lost
    };
    let actions = run(&[unwanted], &[row], &list(&[listed("a")]), 100);
    assert!(
        matches!(&actions[..], [Action::Destroy { .. }]),
        "{actions:?}"
    );
}

#[test]
fn gone_is_only_what_a_later_list_lacks() {
    let gone = NodeRow {
        wanted: false,
        ..node(1)
    };
    let row = MachineRow {
        settled: 10,
        ..machine("a", 1, MachineStage::Destroying)
    };
    assert_eq!(
        run(
            std::slice::from_ref(&gone),
            std::slice::from_ref(&row),
            &list(&[]),
            100
        ),
        []
    );
    let row = MachineRow { settled: 9, ..row };
    assert_eq!(
        run(
            std::slice::from_ref(&gone),
            std::slice::from_ref(&row),
            &list(&[]),
            100
        ),
        [Action::MarkGone {
            machine: id("a"),
            reason: None
        }]
    );
    let actions = run(
        std::slice::from_ref(&gone),
        std::slice::from_ref(&row),
        &list(&[listed("a")]),
        100,
    );
    assert!(
        matches!(&actions[..], [Action::Destroy { .. }]),
        "asked again: {actions:?}"
    );
    assert_eq!(
        run(&[gone], &[], &list(&[]), 100),
        [Action::EndNode { node: key(1) }]
    );
}

#[test]
fn an_unlistable_cloud_changes_nothing() {
    for stage in [
        MachineStage::Intended,
        MachineStage::Creating,
        MachineStage::Booting,
        MachineStage::Up,
        MachineStage::Dead,
        MachineStage::Destroying,
    ] {
        for wanted in [true, false] {
            let node = NodeRow { wanted, ..node(1) };
            let row = MachineRow {
                cloud_id: Some("i-a".into()),
                ..machine("a", 1, stage)
            };
            let actions = run(&[node], &[row], &unlistable(), 1000);
            assert!(
                actions.iter().all(|a| matches!(a, Action::Trouble { .. })),
                "{stage:?}: {actions:?}"
            );
        }
    }
}

#[test]
fn a_quota_that_is_used_up_is_said_with_its_numbers() {
    let nodes = [node(1), node(2), node(3)];
    let machines = [MachineRow {
        enrolled: true,
        ..machine("a", 1, MachineStage::Up)
    }];
    let quotas = [(nodes[0].owner.clone(), 2)].into();
    let clouds = list(&[listed("a")]);
    let view = View {
        nodes: &nodes,
        machines: &machines,
        clouds: &clouds,
        quotas: &quotas,
        busy: &BTreeSet::new(),
        strangers: &Strangers::default(),
        now: 1,
        settings: &SETTINGS,
    };
    let actions = decide(&view);
    assert!(
        matches!(&actions[..], [Action::RecordIntent { node, .. }, Action::Trouble { node: short, what: Some(what @ Hindrance::Quota { quota: 2, in_use: 2 }) }]
            if *node == key(2) && *short == key(3) && what.to_string().contains("quota of 2 nodes")),
        "{actions:?}"
    );
}

#[test]
fn answers_become_records() {
    let row = MachineRow {
        attempts: 1,
        ..machine("a", 1, MachineStage::Creating)
    };
    let settings = SETTINGS;
    let of = |result| answered(&row, result, 100, &settings);
    let later = |stage| {
        Some(Action::RetryLater {
            machine: id("a"),
            stage,
            attempts: 2,
            at: 102,
            reason: "x".into(),
            for_good: stage == MachineStage::Intended,
        })
    };
    assert_eq!(
        of(CallResult::Refused {
            reason: "x".into(),
            for_good: true,
        }),
        later(MachineStage::Intended)
    );
    assert_eq!(
        of(CallResult::Unclear { reason: "x".into() }),
        later(MachineStage::Creating)
    );
    assert_eq!(
        of(CallResult::NotDestroyed { reason: "x".into() }),
        later(MachineStage::Destroying)
    );
    assert_eq!(of(CallResult::Destroyed), None);
}

/// Records and a cloud, with everything that can go wrong decided by the test's input.
#[derive(Default)]
struct World {
    nodes: Vec<NodeRow>,
    machines: Vec<MachineRow>,
    there: Vec<Listed>,
    clock: u64,
    stamp: u64,
    made: u64,
    created_tokens: BTreeSet<String>,
}

/// What goes wrong in a round.
#[derive(Clone, Debug)]
enum Fault {
    Nothing,
    ListFails,
    CreateRefused,
    CreateAnswerLost,
    CreateLost,
    CreateMakesTwins,
    DestroyFails,
    MachineDies(usize),
    BootNever,
    Wish(u64, bool),
    TimePasses,
}

impl World {
    fn round(&mut self, fault: &Fault) -> usize {
        self.clock += if matches!(fault, Fault::TimePasses) {
            70
        } else {
            1
        };
        match fault {
            Fault::MachineDies(which) if !self.there.is_empty() => {
                let which = which % self.there.len();
                self.there[which].died = Some("killed".into());
            }
            Fault::Wish(number, true) if !self.nodes.iter().any(|n| n.key == key(*number)) => {
                self.nodes.push(node(*number));
            }
            Fault::Wish(number, false) => {
                self.nodes
                    .iter_mut()
                    .filter(|n| n.key == key(*number))
                    .for_each(|n| n.wanted = false);
            }
            _ => {}
        }
        if !matches!(fault, Fault::BootNever) {
            for row in self
                .machines
                .iter_mut()
                .filter(|m| m.stage == MachineStage::Booting)
            {
                let alive = self
                    .there
                    .iter()
                    .any(|l| Some(&l.id) == row.cloud_id.as_ref() && l.died.is_none());
                row.enrolled |= alive && self.clock < row.boot_deadline;
            }
        }
        self.stamp += 1;
        let clouds = if matches!(fault, Fault::ListFails) {
            unlistable()
        } else {
            [(
                "c".to_owned(),
                CloudView::Listed {
                    asked: self.stamp,
                    machines: self.there.clone(),
                },
            )]
            .into()
        };
        let actions = run(&self.nodes, &self.machines, &clouds, self.clock);
        let one_each: Vec<_> = actions.iter().filter_map(machine_of).collect();
        assert_eq!(
            one_each.len(),
            one_each.iter().collect::<BTreeSet<_>>().len(),
            "two at once: {actions:?}"
        );
        let count = actions.len();
        for action in actions {
            self.carry_out(action, fault);
        }
        self.check();
        count
    }

    fn row(&mut self, id: &MachineId) -> &mut MachineRow {
        self.machines.iter_mut().find(|m| m.id == *id).unwrap()
    }

    fn set_state(&mut self, machine: &MachineId, state: NodeState) {
        let key = self.row(machine).node.clone();
        self.nodes
            .iter_mut()
            .filter(|n| n.key == key)
            .for_each(|n| n.state = state);
    }

    fn carry_out(&mut self, action: Action, fault: &Fault) {
        match action {
            Action::RecordIntent {
                node,
                attempts,
                retry_at,
                last_error,
            } => {
                self.made += 1;
                let new = machine(
                    &format!("{}x{}", node.number.0, self.made),
                    node.number.0,
                    MachineStage::Intended,
                );
                self.machines.push(MachineRow {
                    attempts,
                    retry_at,
                    last_error,
                    ..new
                });
            }
            Action::Create { machine } => {
                let deadline = self.clock + 60;
                let row = self.row(&machine);
                row.stage = MachineStage::Creating;
                row.boot_deadline = deadline;
                let token = row.token.clone();
                let result = match fault {
                    Fault::CreateRefused => CallResult::Refused {
                        reason: "full".into(),
                        for_good: false,
                    },
                    Fault::CreateLost => CallResult::Unclear {
                        reason: "cut".into(),
                    },
                    _ => {
                        let id = token.replace("t-", "i-");
                        if !self.there.iter().any(|l| l.id == id) {
                            assert!(
                                self.created_tokens.insert(token.clone()),
                                "made twice: {token}"
                            );
                            self.there.push(Listed {
                                id: id.clone(),
                                token: token.clone(),
                                died: None,
                            });
                            if matches!(fault, Fault::CreateMakesTwins) {
                                self.there.push(Listed {
                                    id: format!("{id}-twin"),
                                    token,
                                    died: None,
                                });
                            }
                        }
                        match fault {
                            Fault::CreateAnswerLost => CallResult::Unclear {
                                reason: "cut".into(),
                            },
                            _ => CallResult::Created { cloud_id: id },
                        }
                    }
                };
                self.answer(&machine, result, fault);
            }
            Action::Adopt { machine, cloud_id } => {
                let row = self.row(&machine);
                row.cloud_id = Some(cloud_id);
                row.stage = MachineStage::Booting;
                self.set_state(&machine, NodeState::Booting);
            }
            Action::MarkUp { machine } => {
                self.row(&machine).stage = MachineStage::Up;
                self.set_state(&machine, NodeState::Up);
            }
            Action::MarkDead { machine, .. } => {
                self.row(&machine).stage = MachineStage::Dead;
                self.set_state(&machine, NodeState::Dead);
            }
            Action::Destroy {
                machine,
                cloud_id,
                reason,
                ..
            } => {
                let row = self.row(&machine);
                row.stage = MachineStage::Destroying;
                row.last_error = reason;
                row.cloud_id = Some(cloud_id.clone());
                let result = if matches!(fault, Fault::DestroyFails) {
                    CallResult::NotDestroyed {
                        reason: "cut".into(),
                    }
                } else {
                    self.there.retain(|l| l.id != cloud_id);
                    CallResult::Destroyed
                };
                self.answer(&machine, result, fault);
            }
            Action::MarkGone { machine, .. } => self.row(&machine).stage = MachineStage::Gone,
            Action::EndNode { node } => self.nodes.retain(|n| n.key != node),
            Action::DestroyOrphan { cloud_id, .. } => self.there.retain(|l| l.id != cloud_id),
            Action::Quarantine { .. } | Action::EndQuarantine { .. } => {
                panic!("this store was never restored")
            }
            Action::RetryLater {
                machine,
                stage,
                attempts,
                at,
                reason,
                ..
            } => {
                let row = self.row(&machine);
                (row.stage, row.attempts, row.retry_at, row.last_error) =
                    (stage, attempts, at, Some(reason));
            }
            Action::Trouble { node, what } => {
                let text = what.map(|what| what.to_string());
                self.nodes
                    .iter_mut()
                    .filter(|n| n.key == node)
                    .for_each(|n| n.trouble = text.clone());
            }
        }
    }

    fn answer(&mut self, machine: &MachineId, result: CallResult, fault: &Fault) {
        self.stamp += 1;
        let (stamp, clock) = (self.stamp, self.clock);
        let row = self.row(machine);
        row.settled = stamp;
        if let Some(action) = answered(&row.clone(), result, clock, &SETTINGS) {
            self.carry_out(action, fault);
        }
    }

    fn check(&self) {
        for node in &self.nodes {
            let live = |m: &&MachineRow| m.node == node.key && m.stage != MachineStage::Gone;
            assert!(
                self.machines.iter().filter(live).count() <= 1,
                "two machines for node {}",
                node.key.number
            );
        }
        for row in self.machines.iter().filter(|m| m.stage == MachineStage::Up) {
            assert!(row.enrolled);
        }
    }
}

fn machine_of(action: &Action) -> Option<MachineId> {
    match action {
        Action::Create { machine }
        | Action::Adopt { machine, .. }
        | Action::MarkUp { machine }
        | Action::MarkDead { machine, .. }
        | Action::Destroy { machine, .. }
        | Action::MarkGone { machine, .. }
        | Action::RetryLater { machine, .. } => Some(machine.clone()),
        _ => None,
    }
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::Nothing),
        1 => Just(Fault::ListFails),
        1 => Just(Fault::CreateRefused),
        1 => Just(Fault::CreateAnswerLost),
        1 => Just(Fault::CreateLost),
        1 => Just(Fault::CreateMakesTwins),
        1 => Just(Fault::DestroyFails),
        1 => any::<usize>().prop_map(Fault::MachineDies),
        1 => Just(Fault::BootNever),
        3 => (1..6u64, any::<bool>()).prop_map(|(number, present)| Fault::Wish(number, present)),
        1 => Just(Fault::TimePasses),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_ends_as_wished(faults in prop::collection::vec(faults(), 1..60)) {
        let mut world = World::default();
        for fault in &faults {
            world.round(fault);
        }
        // Left in peace it comes to rest ...
        let mut quiet = 0;
        for _ in 0..200 {
            quiet = if world.round(&Fault::Nothing) == 0 { quiet + 1 } else { 0 };
        }
        prop_assert!(quiet > 60, "it never comes to rest");
        // ... each wanted node up or dead, and the cloud holds exactly their machines.
        let mut wanted = BTreeSet::new();
        for node in &world.nodes {
            prop_assert!(node.wanted);
            prop_assert!(matches!(node.state, NodeState::Up | NodeState::Dead), "{node:?}");
            wanted.extend(world.machines.iter()
                .filter(|m| m.node == node.key && m.stage != MachineStage::Gone)
                .filter_map(|m| m.cloud_id.clone()));
        }
        let there: BTreeSet<_> = world.there.iter().map(|l| l.id.clone()).collect();
        prop_assert_eq!(there, wanted);
        // And when all are wished gone, nothing is left.
        for number in 1..6 {
            world.round(&Fault::Wish(number, false));
        }
        for _ in 0..100 {
            world.round(&Fault::Nothing);
        }
        prop_assert!(world.nodes.is_empty() && world.there.is_empty());
    }
}

#[test]
fn owners_are_kept_apart_by_quotas() {
    let other: PrincipalId = "user-b".parse().unwrap();
    let nodes = [
        node(1),
        NodeRow {
            owner: other.clone(),
            ..node(2)
        },
    ];
    let quotas = [(nodes[0].owner.clone(), 0), (other, 1)].into();
    let clouds = list(&[]);
    let view = View {
        nodes: &nodes,
        machines: &[],
        clouds: &clouds,
        quotas: &quotas,
        busy: &BTreeSet::new(),
        strangers: &Strangers::default(),
        now: 1,
        settings: &SETTINGS,
    };
    let actions = decide(&view);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::RecordIntent { node, .. } if *node == key(2)))
    );
    assert_eq!(actions.len(), 2);
}
