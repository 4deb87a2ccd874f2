//! An application's nodes made anew from what machines are made of now: a newer image or program.
//! Which are wanted replaced is written here; in what order, and how many side by side, is the
//! planner's.

use super::draft::Draft;
use super::{Accepted, Change};
use crate::store::apps::AppRow;
use crate::store::{machines, operations, services};
use conpaas_model::ids::MachineId;
use conpaas_model::spec::RunWish;
use conpaas_model::status::NodeState;
use std::collections::BTreeSet;

const UPGRADE: &str = "upgrade";

impl Change<'_> {
    /// Wants the application's nodes replaced whose machines are among these, managers' included;
    /// absent: all that are there. An upgrade that is under way goes on; one that failed is followed
    /// anew.
    pub fn upgrade_app(&self, app: AppRow, outdated: Option<&BTreeSet<MachineId>>) -> Accepted {
        self.living(&app)?;
        let nodes = machines::nodes_of_app(self.tx, &app.id)?;
        let rows = services::of_app(self.tx, &app.id)?;
        let running = operations::running(self.tx, Some(&app.id))?;
        let under_way = running.iter().any(|one| one.kind == UPGRADE);
        let mut draft = Draft::new(self.tx, self.shared, self.actor, UPGRADE, app, None)?;
        for row in rows.iter().filter(|row| row.run == RunWish::Running) {
            let on_their_way = machines::to_retire(self.tx, &row.id)?;
            let old = nodes.iter().filter(|node| {
                let machine = node.machine.as_ref();
                node.service == row.id
                    && matches!(node.state, NodeState::Booting | NodeState::Up)
                    && machine.is_some_and(|one| outdated.is_none_or(|old| old.contains(one)))
                    && !(under_way && on_their_way.contains(&node.number))
            });
            let old: Vec<_> = old.map(|node| node.number).collect();
            if old.is_empty() {
                continue;
            }
            draft.change(row, row.clone())?;
            for number in old {
                draft.retire(&row.id, number)?;
            }
        }
        draft.commit(self.clouds)
    }
}
