//! Who may call what: every operation of the OpenAPI document is tried by every kind of party over
//! the real listeners of a real Director, and the outcomes are compared with `expected.txt`, which
//! people review. That every change is written down before it happens is proved beside it.

// Helpers of tests count as no tests for the lints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod calls;
mod parties;
mod world;

use conpaas_director::access::{self, Access};
use http::Method;
use std::collections::BTreeMap;
use std::fmt::Write;
use world::World;

/// The columns of the table, in this order.
const PARTIES: [&str; 8] = [
    "nobody", "stranger", "owner", "operator", "expired", "revoked", "agent", "manager",
];

/// Operation, method and path template, by operation.
fn operations() -> BTreeMap<String, (Method, String)> {
    let document = conpaas_director::openapi();
    conpaas_director::api::operations_of(&document)
        .into_iter()
        .map(|((method, path), id)| (id, (method, path)))
        .collect()
}

/// The lines of the reviewed table.
fn expected() -> BTreeMap<String, Vec<String>> {
    let mut lines = BTreeMap::new();
    for line in include_str!("expected.txt").lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        let Some(operation) = words.next().filter(|word| !word.starts_with('#')) else {
            continue;
        };
        let twice = lines.insert(operation, words.collect());
        assert!(twice.is_none(), "stands there twice: {line}");
    }
    lines
}

fn line(operation: &str, cells: &[String]) -> String {
    let mut text = format!("{operation:<22}");
    for cell in cells {
        let _ = write!(text, " {cell:<8}");
    }
    text.trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_every_party_as_the_reviewed_table_says() {
    let (operations, mut expected) = (operations(), expected());
    let world = World::start().await;
    let mut wrong = Vec::new();
    let mut counts = BTreeMap::<String, usize>::new();
    println!("{}", line("#", &PARTIES.map(str::to_owned)));
    for (id, (method, path)) in &operations {
        let found = world.row(id, method, path).await;
        let shown = line(id, &found);
        println!("{shown}");
        for cell in &found {
            *counts.entry(cell.clone()).or_default() += 1;
        }
        match expected.remove(id) {
            None => wrong.push(format!("no line for  {shown}")),
            Some(cells) if cells != found => {
                wrong.push(format!(
                    "expected     {}\n  but found    {shown}",
                    line(id, &cells)
                ));
            }
            Some(_) => {}
        }
    }
    wrong.extend(
        expected
            .keys()
            .map(|id| format!("a line of no operation: {id}")),
    );
    let tried = operations.len() * PARTIES.len();
    println!(
        "{} operations, {} parties, {tried} outcomes: {counts:?}",
        operations.len(),
        PARTIES.len()
    );
    world.stop().await;
    assert!(
        wrong.is_empty(),
        "review crates/director/tests/authorization/expected.txt:\n  {}",
        wrong.join("\n  ")
    );
}

/// The reviewed table and the gate's own table say the same of those who are not let in.
#[test]
fn the_reviewed_table_lets_in_whom_the_gate_lets_in() {
    for (id, cells) in expected() {
        let access = access::of(&id).unwrap_or_else(|| panic!("{id} is no operation"));
        assert_eq!(cells.len(), PARTIES.len(), "{id}");
        let cell = |party: &str| {
            let at = PARTIES.iter().position(|name| *name == party).unwrap();
            cells[at].as_str()
        };
        let closed = access != Access::Public;
        for party in ["nobody", "expired", "revoked"] {
            assert_eq!(cell(party) == "401", closed, "{id}, {party}");
        }
        for party in ["agent", "manager"] {
            let (people, machines) = cell(party).split_once('/').unwrap();
            assert_eq!(people == "401", closed, "{id}: a certificate is no login");
            assert_eq!(machines, "404", "{id}: machines' listener has no such call");
        }
        match access {
            Access::Operator => {
                assert_eq!((cell("stranger"), cell("owner")), ("403", "403"), "{id}");
            }
            Access::Owner => assert_eq!(cell("stranger"), "404", "{id}"),
            Access::Public | Access::LoggedIn => {}
        }
        let good = |cell: &str| !matches!(cell, "401" | "403");
        assert!(good(cell("operator")), "{id}");
    }
}

/// With an audit that cannot be written nothing changes: the row stands before the action.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_down_does_not_happen() {
    let world = World::start().await;
    let mut prepared = Vec::new();
    for (id, (method, path)) in operations() {
        if method != Method::GET {
            prepared.push((world.prepare(&id).await, id, method, path));
        }
    }
    world.break_audit().await;
    let before = world.records().await;
    let mut tried = 0;
    for (fixture, id, method, path) in &prepared {
        for token in [&fixture.owner.secret, &fixture.operator.secret] {
            let status = world.call(id, method, path, fixture, token).await.status;
            let refused = access::of(id) == Some(Access::Operator) && status == 403;
            assert!(status == 500 || refused, "{id}: {status}");
            tried += 1;
        }
    }
    assert_eq!(world.records().await, before);
    println!(
        "{tried} changes by {} operations did not happen",
        prepared.len()
    );
    world.stop().await;
}
