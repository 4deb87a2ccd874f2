//! The broker's shell: lists the clouds, asks the core what to do, records it, makes the calls.
//! The same steps in the same order as in the real Director; each call and each answer is an
//! event of its own, so that anything can come between.

use crate::bugs::Bug;
use crate::cloud::take;
use crate::director::Call;
use crate::store::Birth;
use crate::world::{Event, LIST_EVERY, Party, World};
use conpaas_cloud::MachineState;
use conpaas_core::broker::{
    Action, CloudView, Listed, MachineRow, MachineStage, Strangers, View, decide,
};
use conpaas_model::ids::MachineId;
use conpaas_model::status::NodeState;
use conpaas_pki::hash_token;
use std::collections::BTreeMap;

/// How long a machine may take until its agent has enrolled.
pub const BOOT_DEADLINE: u64 = 12_000;

impl World {
    fn cloud_index(&self, name: &str) -> Option<usize> {
        self.clouds.iter().position(|cloud| cloud.name() == name)
    }

    pub fn list_due(&mut self) {
        let now = self.now;
        let due: Vec<usize> = self
            .director
            .due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(cloud, _)| *cloud)
            .collect();
        for cloud in due {
            self.director.due.remove(&cloud);
            self.director.stamp += 1;
            let (life, asked) = (self.director.life, self.director.stamp);
            self.soon(1, 30, Event::ListArrives { life, cloud, asked });
        }
    }

    pub fn list_arrives(&mut self, life: u64, cloud: usize, asked: u64) {
        let Some(found) = self.clouds.get_mut(cloud) else {
            return;
        };
        let listed = if take(&mut found.troubles.fail_lists) {
            Err("it does not answer".to_owned())
        } else {
            let mut listed: Vec<Listed> = found
                .machines()
                .map(|machine| Listed {
                    id: machine.id.0.clone(),
                    token: machine.token.clone(),
                    died: match &machine.state {
                        MachineState::Dead { exit } => Some(exit.to_string()),
                        _ => None,
                    },
                })
                .collect();
            if !listed.is_empty() && take(&mut found.troubles.hide_in_lists) {
                let hidden = listed.remove(self.rng.below(listed.len() as u64) as usize);
                self.suspect_machine(&hidden.id);
            }
            let kept = self.clouds[cloud].troubles.kept.as_mut();
            if let Some(kept) = kept
                && take(&mut kept.lists)
            {
                let id = kept.id.clone();
                listed.retain(|machine| machine.id != id);
                self.suspect_machine(&id);
            }
            if take(&mut self.clouds[cloud].troubles.invent_in_lists) {
                let id = format!(
                    "{}-{}",
                    self.clouds[cloud].name(),
                    900_000 + self.rng.below(9)
                );
                listed.push(Listed {
                    token: format!("token-of-{id}"),
                    id,
                    died: None,
                });
            }
            Ok(listed)
        };
        self.soon(
            1,
            40,
            Event::ListAnswered {
                life,
                cloud,
                asked,
                listed,
            },
        );
    }

    pub fn list_answered(
        &mut self,
        life: u64,
        cloud: usize,
        asked: u64,
        listed: Result<Vec<Listed>, String>,
    ) {
        if !self.director.up || life != self.director.life {
            return;
        }
        self.director.due.insert(cloud, self.now + LIST_EVERY);
        let view = match listed {
            Ok(machines) => CloudView::Listed { asked, machines },
            Err(reason) => CloudView::Unlistable { reason },
        };
        let name = self.clouds[cloud].name().to_owned();
        self.director.views.insert(name, view);
        self.wake();
    }

    /// Decides and records until there is nothing to do; starts the calls.
    pub fn rounds(&mut self) {
        for _ in 0..4 {
            let actions = self.actions();
            if actions.is_empty() || !self.can_write() {
                return;
            }
            let mut calls = Vec::new();
            for action in &actions {
                calls.extend(self.record(action));
            }
            self.check_quota();
            self.wake();
            if self.dies(Party::Director) {
                return;
            }
            let progress = calls.is_empty()
                || calls
                    .iter()
                    .any(|call| !matches!(call, Call::Orphan { .. }));
            for call in calls {
                self.start_call(call);
                if self.dies(Party::Director) {
                    return;
                }
            }
            if !progress {
                return;
            }
        }
    }

    fn actions(&self) -> Vec<Action> {
        let director = &self.director;
        let mut quotas = BTreeMap::from([(self.names.owner.clone(), director.quota)]);
        if self.has(Bug::QuotaUnchecked) {
            quotas.clear();
        }
        let early: Vec<MachineRow>;
        let mut machines = director.store.machines.as_slice();
        if self.has(Bug::OldListsBelieved) {
            early = machines
                .iter()
                .map(|m| MachineRow {
                    settled: 0,
                    ..m.clone()
                })
                .collect();
            machines = &early;
        }
        let none = Default::default();
        let mut actions = decide(&View {
            nodes: &director.store.nodes,
            machines,
            clouds: &director.views,
            quotas: &quotas,
            busy: if self.has(Bug::OldListsBelieved) {
                &none
            } else {
                &director.busy
            },
            // Nothing is restored here, so whatever is not known is a stray.
            strangers: &Strangers::default(),
            now: self.wall(),
            settings: &director.settings,
        });
        actions.retain(|action| match action {
            Action::DestroyOrphan { cloud_id, .. } => {
                !director.orphans.contains(cloud_id) && !self.has(Bug::OrphansKept)
            }
            _ => true,
        });
        actions
    }

    /// Writes what an action says; gives the call that it asks for.
    pub fn record(&mut self, action: &Action) -> Option<Call> {
        let deadline = self.wall() + BOOT_DEADLINE;
        let kept_late = self.has(Bug::IntentAfterEffect);
        match action {
            Action::RecordIntent {
                node,
                attempts,
                retry_at,
                last_error,
            } => {
                let number = self.director.store.next_machine;
                self.director.store.next_machine += 1;
                let id = MachineId::from_suffix(&number.to_string()).ok()?;
                let row = self.director.store.node(node)?.clone();
                self.director.store.machines.push(MachineRow {
                    id: id.clone(),
                    node: node.clone(),
                    cloud: row.cloud,
                    token: id.to_string(),
                    cloud_id: None,
                    stage: MachineStage::Intended,
                    enrolled: false,
                    attempts: *attempts,
                    retry_at: *retry_at,
                    boot_deadline: 0,
                    last_error: last_error.clone(),
                    settled: 0,
                });
                self.director
                    .store
                    .births
                    .insert(id.clone(), Birth::default());
                self.director
                    .store
                    .set_node(node, NodeState::Requested, last_error.as_ref());
                if !kept_late {
                    self.truth.intended.insert(id.to_string());
                }
            }
            Action::Create { machine } => {
                let fresh = format!("s{}-{machine}", self.rng.below(1 << 40));
                let store = &mut self.director.store;
                let row = store.machine(machine)?;
                (row.stage, row.boot_deadline) = (MachineStage::Creating, deadline);
                let cloud = row.cloud.clone();
                let birth = store.births.get_mut(machine)?;
                // A machine of whichever call may enrol, so the secret stays.
                let secret = birth.secret.get_or_insert(fresh).clone();
                birth.token_hash = hash_token(&secret);
                birth.expires = birth.expires.max(deadline);
                let cloud = self.cloud_index(&cloud)?;
                return Some(Call::Create {
                    machine: machine.clone(),
                    cloud,
                    secret,
                });
            }
            Action::Adopt { machine, cloud_id } => {
                let row = self.director.store.machine(machine)?;
                if matches!(row.stage, MachineStage::Intended | MachineStage::Creating) {
                    row.stage = MachineStage::Booting;
                    row.cloud_id = Some(cloud_id.clone());
                    row.boot_deadline = row.boot_deadline.max(deadline);
                    let birth = self.director.store.births.get_mut(machine)?;
                    birth.expires = birth.expires.max(deadline);
                }
                let row = self.director.store.machine(machine)?.clone();
                self.truth.intended.insert(row.token.clone());
                let error = row.last_error.as_ref();
                self.director
                    .store
                    .set_node(&row.node, NodeState::Booting, error);
            }
            Action::MarkUp { machine } => {
                self.director
                    .store
                    .set_stage(machine, MachineStage::Up, None);
                let key = self.director.store.machine(machine)?.node.clone();
                self.director.store.set_node(&key, NodeState::Up, None);
            }
            Action::MarkDead { machine, signal } => {
                let reason = &signal.to_string();
                self.condemn(machine);
                self.truth.declared_dead.insert(machine.clone());
                self.director
                    .store
                    .set_stage(machine, MachineStage::Dead, Some(reason));
                let key = self.director.store.machine(machine)?.node.clone();
                self.director
                    .store
                    .set_node(&key, NodeState::Dead, Some(reason));
                if let Some(status) = self
                    .service(&key.service)
                    .and_then(|service| service.status.as_mut())
                {
                    status.reached = false;
                }
            }
            Action::Destroy {
                machine,
                cloud_id,
                reason,
                ..
            } => {
                self.destroy_asked(cloud_id);
                let store = &mut self.director.store;
                if self.bug == Some(Bug::DestroyForgotten) {
                    store.set_stage(machine, MachineStage::Gone, None);
                    return None;
                }
                store.set_stage(machine, MachineStage::Destroying, reason.as_ref());
                let row = store.machine(machine)?;
                row.cloud_id = Some(cloud_id.clone());
                let (key, cloud) = (row.node.clone(), row.cloud.clone());
                if store
                    .node(&key)
                    .is_some_and(|n| n.wanted && n.state != NodeState::Dead)
                {
                    store.set_node(&key, NodeState::Requested, reason.as_ref());
                }
                let cloud = self.cloud_index(&cloud)?;
                return Some(Call::Destroy {
                    machine: machine.clone(),
                    cloud,
                    id: cloud_id.clone(),
                });
            }
            Action::MarkGone { machine, reason } => {
                self.director
                    .store
                    .set_stage(machine, MachineStage::Gone, reason.as_ref());
            }
            Action::EndNode { node } => {
                self.director.store.nodes.retain(|row| row.key != *node);
                self.director.store.places.remove(node);
            }
            Action::Quarantine { .. } | Action::EndQuarantine { .. } => {}
            Action::DestroyOrphan {
                cloud, cloud_id, ..
            } => {
                let cloud = self.cloud_index(cloud)?;
                return Some(Call::Orphan {
                    cloud,
                    id: cloud_id.clone(),
                });
            }
            Action::RetryLater {
                machine,
                stage,
                attempts,
                at,
                reason,
                ..
            } => {
                let row = self.director.store.machine(machine)?;
                if matches!(
                    row.stage,
                    MachineStage::Intended | MachineStage::Creating | MachineStage::Destroying
                ) {
                    (row.stage, row.attempts, row.retry_at) = (*stage, *attempts, *at);
                    row.last_error = Some(reason.clone());
                    let key = row.node.clone();
                    if *stage != MachineStage::Destroying
                        && let Some(node) = self.director.store.node(&key)
                    {
                        node.trouble = Some(reason.clone());
                    }
                }
            }
            Action::Trouble { node, what } => {
                let text = what.as_ref().map(ToString::to_string);
                self.director.store.node(node)?.trouble = text;
            }
        }
        None
    }
}
