//! What the broker's shell looks at when it lets the pure broker decide: its records in the store,
//! what the clouds said, and the limits that hold now. What is done about it is not done here.

use super::record::record;
use super::{Broker, LIST_DEADLINE, aside};
use crate::error::DirectorError;
use crate::machines::records;
use crate::machines::shared::full;
use crate::store::{self, Millis};
use conpaas_cloud::Cloud;
use conpaas_core::broker::{Action, BrokerSettings, CloudView, MachineRow, NodeRow, View, decide};
use conpaas_model::ids::MachineId;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

impl Broker {
    /// Lets every cloud list its machines once, and puts those aside that a restored store does
    /// not know. One that does not answer in time has its say later.
    pub async fn look_first(&mut self) {
        self.list_due();
        while self.views.len() < self.shared.clouds.len() {
            match timeout(LIST_DEADLINE + Duration::from_secs(1), self.receiver.recv()).await {
                Ok(Some(done)) => self.take(done).await,
                Ok(None) | Err(_) => break,
            }
        }
        let (now, mut look) = (store::now(), self.snapshot(store::now()));
        look.only_aside = true;
        let (vault, lists) = (self.shared.config.vault.clone(), self.lists.clone());
        let put = self.shared.store.transaction(move |tx| {
            for action in look.actions(tx)?.0 {
                record(tx, &vault, &action, None, None, now, now, &lists)?;
            }
            Ok(())
        });
        if let Err(error) = put.await {
            tracing::error!(
                error = full(&error),
                "machines that the backup does not know could not be written down yet"
            );
        }
    }

    /// Until when machines that are asked for now must have enrolled, by their clouds.
    pub(super) fn boot_deadlines(&self, now: Millis) -> Deadlines {
        let settled = self.shared.config.boot_deadline;
        let of = |cloud: &dyn Cloud| {
            let limit = settled.unwrap_or_else(|| cloud.boot_deadline());
            now.saturating_add(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX))
        };
        let clouds = self.shared.clouds.iter();
        Deadlines {
            now,
            by_cloud: clouds
                .map(|(name, cloud)| (name.clone(), of(cloud.as_ref())))
                .collect(),
        }
    }

    pub(super) fn snapshot(&self, now: Millis) -> Snapshot {
        Snapshot {
            views: self.views.clone(),
            settled: self.settled.clone(),
            busy: self.busy.clone(),
            settings: self.settings.clone(),
            orphans: self.orphans.clone(),
            restored: self.shared.incarnation.is_restored(),
            strays: self.strays.clone(),
            only_aside: false,
            now: records::unsigned(now),
        }
    }
}

/// What one decision is made over.
pub(super) struct Snapshot {
    views: Arc<BTreeMap<String, CloudView>>,
    settled: Arc<BTreeMap<MachineId, u64>>,
    busy: Arc<BTreeSet<MachineId>>,
    settings: BrokerSettings,
    orphans: BTreeSet<String>,
    restored: bool,
    strays: Arc<aside::Settled>,
    /// Nothing else is decided yet than who is put aside.
    only_aside: bool,
    now: u64,
}

impl Snapshot {
    #[allow(clippy::type_complexity)]
    pub(super) fn actions(
        &self,
        tx: &Connection,
    ) -> Result<(Vec<Action>, Vec<MachineRow>, Vec<NodeRow>), DirectorError> {
        let nodes = records::broker_nodes(tx)?;
        let machines = records::broker_machines(tx, &self.settled)?;
        let quotas = records::quotas(tx)?;
        let strangers = aside::strangers(tx, self.restored, &self.views, &self.strays)?;
        let mut actions = decide(&View {
            nodes: &nodes,
            machines: &machines,
            clouds: &self.views,
            quotas: &quotas,
            busy: &self.busy,
            strangers: &strangers,
            now: self.now,
            settings: &self.settings,
        });
        actions.retain(|action| match action {
            Action::Quarantine { .. } => true,
            Action::DestroyOrphan { cloud_id, .. } => {
                !self.only_aside && !self.orphans.contains(cloud_id)
            }
            _ => !self.only_aside,
        });
        Ok((actions, machines, nodes))
    }
}

/// When machines that are asked for now must have enrolled.
pub(super) struct Deadlines {
    now: Millis,
    by_cloud: BTreeMap<String, Millis>,
}

impl Deadlines {
    pub(super) fn of(&self, machine: &MachineRow) -> Millis {
        // A cloud that is configured no more is asked for nothing.
        self.by_cloud
            .get(&machine.cloud)
            .copied()
            .unwrap_or(self.now)
    }
}
