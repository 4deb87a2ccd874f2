//! The broker's shell: lists the clouds, asks the pure broker what to do, records it, and makes
//! the calls. A machine is never in two calls at once; what the Director may not live to record
//! is found again by the lists.

mod aside;
mod calls;
mod listing;
mod look;
mod record;

pub use calls::list;
pub use record::tell;

use super::pace::Pace;
use super::records;
use super::shared::{Shared, full};
use crate::error::DirectorError;
use crate::store;
use crate::store::changes::Touched;
use calls::{LIST_DEADLINE, create, destroy, listed};
use conpaas_cloud::MachineState;
use conpaas_core::broker::{BrokerSettings, CallResult, CloudView, answered};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::ids::{ApplicationId, MachineId, ServiceId};
use listing::Listing;
use record::{machine_of, node_of, record, recorded, tell_stray};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// Calls to clouds that may be under way at once.
const CALLS_AT_ONCE: usize = 8;

/// A call to make once its intent is recorded.
enum Call {
    Create {
        birth: Box<records::Birth>,
    },
    Destroy {
        machine: MachineId,
        cloud: String,
        cloud_id: String,
    },
    Orphan {
        cloud: String,
        cloud_id: String,
        token: String,
    },
}

/// How something that was started ended.
enum Done {
    Listed {
        cloud: String,
        asked: u64,
        result: Result<Vec<conpaas_cloud::Machine>, String>,
    },
    Called {
        machine: MachineId,
        cloud: String,
        result: CallResult,
        network: Option<Network>,
    },
    Orphan {
        cloud: String,
        cloud_id: String,
        token: String,
        gone: bool,
    },
}

/// What each cloud listed last, whole.
type Lists = BTreeMap<String, Vec<conpaas_cloud::Machine>>;

/// The network a new machine sits in.
struct Network {
    application: ApplicationId,
    instance: Option<String>,
}

/// The shell's state.
pub struct Broker {
    shared: Arc<Shared>,
    settings: BrokerSettings,
    /// Rises with every list begun and every call ended.
    stamp: u64,
    settled: Arc<BTreeMap<MachineId, u64>>,
    busy: Arc<BTreeSet<MachineId>>,
    orphans: BTreeSet<String>,
    views: Arc<BTreeMap<String, CloudView>>,
    lists: Arc<Lists>,
    /// When calls about machines without a record ended.
    strays: Arc<aside::Settled>,
    listing: Listing,
    slots: Arc<Semaphore>,
    sender: mpsc::UnboundedSender<Done>,
    receiver: mpsc::UnboundedReceiver<Done>,
}

impl Broker {
    pub fn new(shared: Arc<Shared>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let now = Instant::now();
        let boots = shared.clouds.values().map(|cloud| cloud.boot_deadline());
        let longest = shared.config.boot_deadline.or(boots.max());
        let mut settings = shared.config.broker.clone();
        if let Some(longest) = longest {
            settings.longest_boot = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        }
        Self {
            settings,
            listing: Listing::new(shared.clouds.keys().cloned(), shared.config.list_every, now),
            shared,
            stamp: 0,
            settled: Arc::default(),
            busy: Arc::default(),
            orphans: BTreeSet::new(),
            views: Arc::default(),
            lists: Arc::default(),
            strays: Arc::default(),
            slots: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            sender,
            receiver,
        }
    }

    /// Works until the Director ends.
    pub async fn run(mut self) {
        let shared = self.shared.clone();
        let mut changed = shared.store.changed();
        let mut tick = interval(shared.config.list_every.min(Duration::from_secs(2)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace::default();
        loop {
            tokio::select! {
                () = shared.shutdown.cancelled() => break,
                Some(done) = self.receiver.recv() => {
                    self.take(done).await;
                    while let Ok(more) = self.receiver.try_recv() {
                        self.take(more).await;
                    }
                }
                _ = changed.changed() => {}
                () = shared.wake.notified() => {}
                () = until(self.listing.next()) => {}
                _ = tick.tick() => {}
            }
            // A round looks at all records: what comes meanwhile is for one round together.
            pace.wait().await;
            while let Ok(more) = self.receiver.try_recv() {
                self.take(more).await;
            }
            changed.mark_unchanged();
            self.list_due();
            let begun = Instant::now();
            // Before each cloud has had its say once, nothing is known to be an orphan or gone.
            if shared
                .clouds
                .keys()
                .all(|name| self.views.contains_key(name))
            {
                self.rounds().await;
            }
            pace.took(begun.elapsed());
        }
    }

    fn list_due(&mut self) {
        self.listing.doubted(&self.shared.doubts.take());
        for name in self.listing.begin(Instant::now()) {
            let Some(cloud) = self.shared.clouds.get(&name).cloned() else {
                continue;
            };
            self.stamp += 1;
            let (asked, sender, installation) = (
                self.stamp,
                self.sender.clone(),
                self.shared.installation.clone(),
            );
            self.shared.tasks.spawn(async move {
                let result = list(cloud.as_ref(), &installation).await;
                // The receiver is gone only when the Director ends.
                let _ = sender.send(Done::Listed {
                    cloud: name,
                    asked,
                    result,
                });
            });
        }
    }

    async fn take(&mut self, done: Done) {
        match done {
            Done::Listed {
                cloud,
                asked,
                result,
            } => {
                self.listing.ended(&cloud, result.is_ok(), Instant::now());
                let view = match result {
                    Ok(machines) => {
                        self.shared.note_listed(&cloud, &machines);
                        Arc::make_mut(&mut self.lists).insert(cloud.clone(), machines.clone());
                        let mut networks = BTreeMap::new();
                        for machine in machines.iter().filter(|m| m.state == MachineState::Running)
                        {
                            networks.insert(
                                machine.application.clone(),
                                machine.network_instance.clone(),
                            );
                        }
                        self.shared
                            .listeners
                            .observe(&self.shared, &cloud, &networks, asked);
                        CloudView::Listed {
                            asked,
                            machines: machines.into_iter().map(listed).collect(),
                        }
                    }
                    Err(reason) => {
                        tracing::warn!(%cloud, %reason, "the cloud does not list its machines");
                        CloudView::Unlistable { reason }
                    }
                };
                Arc::make_mut(&mut self.views).insert(cloud, view);
            }
            Done::Called {
                machine,
                cloud,
                result,
                network,
            } => {
                self.stamp += 1;
                if let Some(Network {
                    application,
                    instance: Some(instance),
                }) = network
                {
                    self.shared.listeners.ensure(
                        &self.shared,
                        &cloud,
                        &application,
                        Some(instance),
                        self.stamp,
                    );
                }
                Arc::make_mut(&mut self.settled).insert(machine.clone(), self.stamp);
                if result == CallResult::Destroyed {
                    self.listing.at_once(&cloud);
                }
                let (settings, id, now) = (self.settings.clone(), machine.clone(), store::now());
                let deadlines = self.boot_deadlines(now);
                let vault = self.shared.config.vault.clone();
                let lists = self.lists.clone();
                let recorded = self
                    .shared
                    .store
                    .transaction_finding(move |tx| {
                        let Some(row) = records::broker_machine(tx, &id)? else {
                            return Ok(((), Touched::default()));
                        };
                        let touched = touched_by(tx, [&row.node.service])?;
                        if let Some(action) =
                            answered(&row, result, records::unsigned(now), &settings)
                        {
                            let deadline = deadlines.of(&row);
                            record(tx, &vault, &action, Some(&row), None, now, deadline, &lists)?;
                        }
                        Ok(((), touched))
                    })
                    .await;
                if recorded.is_ok() {
                    reached(KillPoint::AnswerTaken);
                }
                if let Err(error) = recorded {
                    // The next list tells what came of the call.
                    tracing::error!(%machine, error = full(&error), "an answer of a cloud could not be recorded");
                }
                Arc::make_mut(&mut self.busy).remove(&machine);
            }
            Done::Orphan {
                cloud,
                cloud_id,
                token,
                gone,
            } => {
                self.orphans.remove(&cloud_id);
                self.stamp += 1;
                if self.shared.incarnation.is_restored() {
                    let key = (cloud.clone(), cloud_id.clone());
                    Arc::make_mut(&mut self.strays).insert(key, self.stamp);
                    if gone {
                        self.listing.at_once(&cloud);
                    }
                }
                if gone {
                    let cloud = cloud.clone();
                    let told = self.shared.store.transaction(move |tx| {
                        let found = records::machine_of_wish(tx, &cloud, &token)?;
                        found.map_or(Ok(()), |machine| tell_stray(tx, machine))
                    });
                    if let Err(error) = told.await {
                        tracing::error!(error = full(&error), "a stray machine cannot be told of");
                    }
                }
                if gone
                    && let Some(CloudView::Listed { machines, .. }) =
                        Arc::make_mut(&mut self.views).get_mut(&cloud)
                {
                    machines.retain(|machine| machine.id != cloud_id);
                }
            }
        }
    }

    /// Decides and records until there is nothing to do; starts the calls.
    async fn rounds(&mut self) {
        // Recording an intent makes the call possible at once; more than a few rounds never help.
        for _ in 0..4 {
            let now = store::now();
            let nothing = {
                let look = self.snapshot(now);
                self.shared
                    .store
                    .read(move |tx| Ok(look.actions(tx)?.0.is_empty()))
                    .await
            };
            match nothing {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(error = full(&error), "the broker cannot read its records");
                    return;
                }
            }
            let (look, deadlines) = (self.snapshot(now), self.boot_deadlines(now));
            let vault = self.shared.config.vault.clone();
            let lists = self.lists.clone();
            let calls = self
                .shared
                .store
                .transaction_finding(move |tx| {
                    // Looked at again where nobody else writes, so that an agent that enrols at
                    // the last moment is not overlooked.
                    let (actions, machines, nodes) = look.actions(tx)?;
                    let mut calls = Vec::new();
                    for action in &actions {
                        let row =
                            machine_of(action).and_then(|id| machines.iter().find(|m| m.id == *id));
                        let node = row.and_then(|row| nodes.iter().find(|n| n.key == row.node));
                        let deadline = row.map_or(now, |row| deadlines.of(row));
                        calls.extend(record(
                            tx, &vault, action, row, node, now, deadline, &lists,
                        )?);
                    }
                    let points: Vec<KillPoint> = actions.iter().filter_map(recorded).collect();
                    let service = |action| {
                        let of_machine = machine_of(action)
                            .and_then(|id| machines.iter().find(|row| row.id == *id));
                        let node = of_machine.map(|row| &row.node).or(node_of(action));
                        node.map(|node| &node.service)
                    };
                    let touched = match actions.iter().map(service).collect::<Option<Vec<_>>>() {
                        Some(services) => touched_by(tx, services)?,
                        // Some are of what no record knows.
                        None => Touched::Everything,
                    };
                    Ok(((calls, points), touched))
                })
                .await;
            match calls {
                Ok((calls, points)) => {
                    points.into_iter().for_each(reached);
                    let progress = calls
                        .iter()
                        .any(|call| !matches!(call, Call::Orphan { .. }))
                        || calls.is_empty();
                    for call in calls {
                        self.start(call);
                    }
                    if !progress {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(error = full(&error), "the broker cannot write its records");
                    return;
                }
            }
        }
    }

    fn start(&mut self, call: Call) {
        let (sender, slots, shared) =
            (self.sender.clone(), self.slots.clone(), self.shared.clone());
        match call {
            Call::Create { birth } => {
                Arc::make_mut(&mut self.busy).insert(birth.machine.clone());
                self.shared.tasks.spawn(async move {
                    let _slot = slots.acquire_owned().await;
                    let (result, network) = create(&shared, &birth).await;
                    let _ = sender.send(Done::Called {
                        machine: birth.machine,
                        cloud: birth.cloud,
                        result,
                        network,
                    });
                });
            }
            Call::Destroy {
                machine,
                cloud,
                cloud_id,
            } => {
                Arc::make_mut(&mut self.busy).insert(machine.clone());
                self.shared.tasks.spawn(async move {
                    let _slot = slots.acquire_owned().await;
                    let result = match destroy(&shared, &cloud, &cloud_id).await {
                        Ok(()) => CallResult::Destroyed,
                        Err(reason) => CallResult::NotDestroyed { reason },
                    };
                    let _ = sender.send(Done::Called {
                        machine,
                        cloud,
                        result,
                        network: None,
                    });
                });
            }
            Call::Orphan {
                cloud,
                cloud_id,
                token,
            } => {
                if !self.orphans.insert(cloud_id.clone()) {
                    return;
                }
                tracing::warn!(%cloud, machine = %cloud_id, "a machine of ours that no record wants is destroyed");
                self.shared.tasks.spawn(async move {
                    let _slot = slots.acquire_owned().await;
                    let gone = match destroy(&shared, &cloud, &cloud_id).await {
                        Ok(()) => true,
                        Err(reason) => {
                            tracing::warn!(%cloud, machine = %cloud_id, %reason, "it could not be destroyed");
                            false
                        }
                    };
                    let done = Done::Orphan {
                        cloud,
                        cloud_id,
                        token,
                        gone,
                    };
                    let _ = sender.send(done);
                });
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What is touched by a change of some services' nodes.
fn touched_by<'a>(
    tx: &rusqlite::Connection,
    services: impl IntoIterator<Item = &'a ServiceId>,
) -> Result<Touched, DirectorError> {
    let mut touched = Touched::default();
    for service in services.into_iter().collect::<BTreeSet<_>>() {
        let row = crate::store::services::get(tx, service)?;
        touched.add(&Touched::one(row.map(|row| row.app)));
    }
    Ok(touched)
}
