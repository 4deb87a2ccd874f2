//! Where auxiliary roles are: on machines that are there for other roles anyway. They stay where
//! they are while that node stays; what is missing goes to nodes whose agents obey now, those
//! that nobody wants replaced first, of them those with the fewest auxiliary roles.

use super::layout::Shape;
use super::{Input, Node};
use crate::service_type::AuxiliaryDeclaration;
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::spec::Release;
use std::collections::{BTreeMap, BTreeSet};

/// Adds the auxiliary roles to the shapes of those nodes that should have them.
pub(super) fn place(input: &Input<'_>, target: &mut BTreeMap<NodeNumber, Shape>) {
    let declared = input.service_type.auxiliary();
    if declared.is_empty() {
        return;
    }
    let releases = releases(input);
    let mut load: BTreeMap<NodeNumber, usize> = BTreeMap::new();
    for auxiliary in declared {
        if !releases.iter().any(|release| (auxiliary.wanted)(release)) {
            continue;
        }
        for host in hosts(input, target, auxiliary, &load) {
            *load.entry(host).or_default() += 1;
            if let Some(shape) = target.get_mut(&host) {
                shape.roles.insert(auxiliary.role.to_owned());
            }
        }
    }
}

/// The releases that matter: the active one, one that is held, and those that nodes still run or lead to.
fn releases<'a>(input: &'a Input<'_>) -> Vec<&'a Release> {
    let mut numbers: BTreeSet<ReleaseNumber> = BTreeSet::from([input.spec.active]);
    numbers.extend(input.spec.preview);
    for node in input.nodes.values().filter(|n| n.may_run()) {
        for level in node.level.roles.values() {
            numbers.extend(level.serve);
            numbers.extend(level.releases.keys());
        }
    }
    numbers
        .into_iter()
        .filter_map(|number| input.spec.release(number))
        .collect()
}

fn hosts(
    input: &Input<'_>,
    target: &BTreeMap<NodeNumber, Shape>,
    auxiliary: &AuxiliaryDeclaration,
    load: &BTreeMap<NodeNumber, usize>,
) -> Vec<NodeNumber> {
    let mut candidates: Vec<(bool, bool, bool, usize, NodeNumber)> = target
        .iter()
        .filter(|(_, shape)| auxiliary.beside.iter().any(|b| shape.roles.contains(*b)))
        .map(|(number, _)| {
            let node = input.nodes.get(number);
            let has =
                node.is_some_and(|n| n.may_run() && n.level.roles.contains_key(auxiliary.role));
            let obeys = node.is_some_and(Node::live);
            let to_retire = input.spec.retire.contains(number);
            let load = load.get(number).copied().unwrap_or(0);
            (!has, !obeys, to_retire, load, *number)
        })
        .collect();
    candidates.sort_unstable();
    candidates
        .into_iter()
        .take(auxiliary.copies as usize)
        .map(|(.., number)| number)
        .collect()
}
