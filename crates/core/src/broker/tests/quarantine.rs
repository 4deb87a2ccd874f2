//! What becomes of machines that a restored store does not know: left alone until a person says
//! otherwise, while what the store itself asked for is cleared away as ever. The rules of machines
//! that it knows are tested beside this.

use super::*;

fn strangers(quarantined: &[(&str, bool, u64)]) -> Strangers {
    Strangers {
        restored: true,
        remembered: BTreeSet::new(),
        quarantined: quarantined
            .iter()
            .map(|(id, condemned, settled)| {
                let found = Quarantined {
                    condemned: *condemned,
                    settled: *settled,
                };
                (("c".to_owned(), format!("i-{id}")), found)
            })
            .collect(),
    }
}

fn decided(
    machines: &[MachineRow],
    clouds: &BTreeMap<String, CloudView>,
    strangers: &Strangers,
) -> Vec<Action> {
    let nodes: Vec<NodeRow> = machines.iter().map(|m| node(m.node.number.0)).collect();
    decide(&View {
        nodes: &nodes,
        machines,
        clouds,
        quotas: &BTreeMap::new(),
        busy: &BTreeSet::new(),
        strangers,
        now: 100,
        settings: &SETTINGS,
    })
}

fn quarantine(id: &str) -> Action {
    Action::Quarantine {
        cloud: "c".into(),
        cloud_id: format!("i-{id}"),
    }
}

fn orphan(id: &str) -> Action {
    Action::DestroyOrphan {
        cloud: "c".into(),
        cloud_id: format!("i-{id}"),
        token: format!("t-{id}"),
    }
}

fn ended(id: &str) -> Action {
    Action::EndQuarantine {
        cloud: "c".into(),
        cloud_id: format!("i-{id}"),
    }
}

#[test]
fn a_restored_store_puts_what_it_never_asked_for_aside_and_nothing_else() {
    let there = list(&[listed("a"), listed("b"), listed("b")]);
    // A store that was never restored asked for all that there is: what it does not know is a stray.
    let never = Strangers::default();
    assert_eq!(decided(&[], &there, &never), [orphan("a"), orphan("b")]);
    let restored = strangers(&[]);
    let both = [quarantine("a"), quarantine("b")];
    assert_eq!(decided(&[], &there, &restored), both);
    // What it knows is its own, as ever.
    let up = MachineRow {
        enrolled: true,
        ..machine("a", 1, MachineStage::Up)
    };
    let own = std::slice::from_ref(&up);
    assert_eq!(decided(own, &there, &restored), [quarantine("b")]);
    // Nothing is decided by a cloud that does not answer.
    assert_eq!(decided(&[], &unlistable(), &restored), []);
}

#[test]
fn what_a_restored_store_asked_for_itself_is_a_stray_when_nobody_wants_it() {
    // The fruit of a call whose machine was given up: its record is gone, but it was there.
    let gone = Strangers {
        remembered: BTreeSet::from(["t-a".to_owned()]),
        ..strangers(&[])
    };
    assert_eq!(decided(&[], &list(&[listed("a")]), &gone), [orphan("a")]);
    // The twin of a machine that it has.
    let up = MachineRow {
        enrolled: true,
        ..machine("a", 1, MachineStage::Up)
    };
    let twin = Listed {
        id: "i-twin".into(),
        ..listed("a")
    };
    let actions = decided(&[up], &list(&[listed("a"), twin]), &strangers(&[]));
    let destroyed = Action::DestroyOrphan {
        cloud: "c".into(),
        cloud_id: "i-twin".into(),
        token: "t-a".into(),
    };
    assert_eq!(actions, [destroyed]);
    // One whose answer was lost is found by its token, not put aside.
    let creating = machine("b", 1, MachineStage::Creating);
    let adopted = Action::Adopt {
        machine: id("b"),
        cloud_id: "i-b".into(),
    };
    let actions = decided(&[creating], &list(&[listed("b")]), &strangers(&[]));
    assert_eq!(actions, [adopted]);
}

#[test]
fn quarantine_ends_by_a_persons_word_or_when_the_machine_is_gone() {
    let there = list(&[listed("a"), listed("b")]);
    let held = strangers(&[("a", false, 0), ("b", false, 0)]);
    assert_eq!(decided(&[], &there, &held), []);
    // One that died is kept as well: it may be looked at.
    let dead = Listed {
        died: Some("killed".into()),
        ..listed("a")
    };
    assert_eq!(decided(&[], &list(&[dead, listed("b")]), &held), []);
    let one = strangers(&[("a", true, 0), ("b", false, 0)]);
    assert_eq!(decided(&[], &there, &one), [orphan("a")]);
    // The list is from before the call that destroyed it: not known to be gone.
    let called = strangers(&[("a", true, 10), ("b", false, 0)]);
    assert_eq!(decided(&[], &list(&[listed("b")]), &called), []);
    assert_eq!(decided(&[], &unlistable(), &called), []);
    let later = strangers(&[("a", true, 9), ("b", false, 0)]);
    assert_eq!(decided(&[], &list(&[listed("b")]), &later), [ended("a")]);
    // One that vanished by itself is forgotten, too.
    assert_eq!(decided(&[], &list(&[listed("a")]), &held), [ended("b")]);
}
