//! Who is connected: managers by the system service they belong to, all open streams by machine,
//! and the commands that await an answer.

use conpaas_model::ids::{Epoch, MachineId, ServiceId};
use conpaas_model::protocol::ToManager;
use conpaas_wire::{StreamHandle, StreamSender};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// A command's answer, or why there is none.
pub type CommandResult = Result<Value, String>;

struct Link {
    connection: u64,
    epoch: Epoch,
    sender: StreamSender<ToManager>,
    handle: StreamHandle,
}

/// See the module.
#[derive(Default)]
pub struct Hub {
    managers: Mutex<BTreeMap<ServiceId, Link>>,
    streams: Mutex<BTreeMap<u64, (MachineId, StreamHandle)>>,
    pending: Mutex<BTreeMap<u64, oneshot::Sender<CommandResult>>>,
    numbers: AtomicU64,
    /// Reports of managers that were outranked.
    pub refused_reports: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that panics runs while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A number that was not given before in this life.
    pub fn number(&self) -> u64 {
        self.numbers
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1)
    }

    /// Takes a stream in; the number is to be given back with [`Hub::close`].
    pub fn open(&self, machine: &MachineId, handle: StreamHandle) -> u64 {
        let connection = self.number();
        lock(&self.streams).insert(connection, (machine.clone(), handle));
        connection
    }

    /// Forgets a stream that ended.
    pub fn close(&self, connection: u64) {
        lock(&self.streams).remove(&connection);
        let mut managers = lock(&self.managers);
        managers.retain(|_, link| link.connection != connection);
    }

    /// Closes the streams of machines that may not call any more.
    pub fn close_others(&self, live: &BTreeSet<MachineId>) {
        for (machine, handle) in lock(&self.streams).values() {
            if !live.contains(machine) {
                handle.close();
            }
        }
    }

    /// Makes a stream the one of a system service's manager; an earlier one is closed.
    pub fn install(
        &self,
        system: &ServiceId,
        connection: u64,
        epoch: Epoch,
        sender: StreamSender<ToManager>,
        handle: StreamHandle,
    ) {
        let link = Link {
            connection,
            epoch,
            sender,
            handle,
        };
        if let Some(earlier) = lock(&self.managers).insert(system.clone(), link) {
            earlier.handle.close();
        }
    }

    /// The connected manager of a system service.
    pub fn manager(&self, system: &ServiceId) -> Option<(Epoch, StreamSender<ToManager>)> {
        let managers = lock(&self.managers);
        managers
            .get(system)
            .filter(|link| !link.handle.is_closed())
            .map(|link| (link.epoch, link.sender.clone()))
    }

    /// Expects the answer to a command.
    pub fn register(&self) -> (u64, oneshot::Receiver<CommandResult>) {
        let id = self.number();
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).insert(id, sender);
        (id, receiver)
    }

    /// Hands an answer to whoever expects it.
    pub fn answer(&self, id: u64, result: CommandResult) {
        if let Some(sender) = lock(&self.pending).remove(&id) {
            // Who gave up waiting does not mind.
            let _ = sender.send(result);
        }
    }

    /// Gives up on an answer.
    pub fn forget(&self, id: u64) {
        lock(&self.pending).remove(&id);
    }
}
