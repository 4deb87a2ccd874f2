//! Managers' streams: the whole level goes down at each change, reports and answers come up. The
//! epoch of a manager is the store's incarnation and the number of its node; whoever opens a stream
//! with a higher one takes the post, and nobody with a lower one gets it back.

use super::intake;
use super::levels;
use super::listener::{Refused, internal, refuse};
use super::records::{self, Machine};
use super::reports::{self, Origin};
use super::shared::{Shared, full};
use crate::error::DirectorError;
use crate::incarnation::Incarnation;
use crate::store::{self, services};
use conpaas_core::broker::NodeKey;
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::ids::{ApplicationId, Epoch, Generation, NodeNumber, ServiceId};
use conpaas_model::protocol::{
    FromManager, Located, MANAGER_PORT, ManagerAddress, ManagerLevel, ManagerReport, ToManager,
};
use conpaas_model::spec::RunWish;
use conpaas_model::status::NodeState;
use conpaas_wire::FramedStream;
use http::StatusCode;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// After what time records that could not be read are read again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// How long a command may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

fn epoch_key(system: &ServiceId) -> String {
    format!("manager-epoch/{system}")
}

/// The node of the highest manager that took the post of a system service's manager; zero when
/// none did.
pub fn post(tx: &Connection, system: &ServiceId) -> Result<NodeNumber, DirectorError> {
    let text = store::meta(tx, &epoch_key(system))?;
    Ok(NodeNumber(
        text.and_then(|text| text.parse().ok()).unwrap_or(0),
    ))
}

/// The epoch of who has the post.
pub fn epoch(tx: &Connection, system: &ServiceId) -> Result<Epoch, DirectorError> {
    Ok(Incarnation::of(tx)?.epoch(post(tx, system)?))
}

/// Forgets the epochs of system services that are gone.
pub fn forget_epochs(tx: &Connection) -> Result<(), DirectorError> {
    tx.execute(
        "DELETE FROM meta WHERE key LIKE 'manager-epoch/%'
             AND substr(key, length('manager-epoch/') + 1) NOT IN (SELECT id FROM services)",
        [],
    )?;
    Ok(())
}

/// Where the manager of a service is now.
pub fn locate(
    tx: &Connection,
    row: &services::ServiceRow,
    trust: String,
) -> Result<Located, DirectorError> {
    if row.internal {
        return Ok(Located {
            epoch: Incarnation::of(tx)?.director_epoch(),
            manager: ManagerAddress::Director,
            trust,
        });
    }
    let Some(system) = &row.manager else {
        return Ok(Located {
            epoch: Epoch(0),
            manager: ManagerAddress::Nowhere,
            trust,
        });
    };
    let epoch = epoch(tx, system)?;
    let key = NodeKey {
        service: system.clone(),
        number: post(tx, system)?,
    };
    let node = records::node(tx, &key)?.filter(|node| node.wanted && node.state == NodeState::Up);
    let machine = records::machines_of(tx, system)?
        .into_iter()
        .rfind(|machine| machine.node == key.number);
    let manager = match (node, machine) {
        (Some(node), Some(machine)) => ManagerAddress::At {
            machine: machine.id,
            address: SocketAddr::from((node.address, MANAGER_PORT)),
        },
        _ => ManagerAddress::Nowhere,
    };
    Ok(Located {
        epoch,
        manager,
        trust,
    })
}

/// Refuses a manager whose post was taken by a newer one.
pub async fn check_epoch(shared: &Arc<Shared>, machine: &Machine) -> Result<(), Refused> {
    let system = machine.service.clone();
    let current = shared
        .store
        .read(move |tx| post(tx, &system))
        .await
        .map_err(|error| internal(&error))?;
    if machine.node < current {
        return Err(refuse(
            StatusCode::CONFLICT,
            "outranked",
            format!("a newer manager (node {current}) has taken the post"),
        ));
    }
    Ok(())
}

/// Records that a manager takes the post; false when a newer one has it.
async fn take_post(
    shared: &Arc<Shared>,
    application: &ApplicationId,
    system: &ServiceId,
    own: NodeNumber,
) -> Result<bool, DirectorError> {
    let system = system.clone();
    shared
        .store
        .transaction_of(application.clone(), move |tx| {
            let current = post(tx, &system)?;
            if own > current {
                store::set_meta(tx, &epoch_key(&system), &own.0.to_string())?;
            }
            Ok(own >= current)
        })
        .await
}

/// Serves a manager's stream to its end.
pub async fn serve(
    shared: &Arc<Shared>,
    machine: Machine,
    stream: FramedStream<FromManager, ToManager>,
) {
    let (system, own) = (
        machine.service.clone(),
        shared.incarnation.epoch(machine.node),
    );
    let handle = stream.handle();
    match take_post(shared, &machine.application, &system, machine.node).await {
        Ok(true) => {}
        Ok(false) => return handle.close(),
        Err(error) => {
            tracing::error!(
                error = full(&error),
                "a manager's post could not be recorded"
            );
            return handle.close();
        }
    }
    let connection = shared.hub.open(&machine.id, handle.clone());
    let (sender, mut receiver) = stream.split();
    shared
        .hub
        .install(&system, connection, own, sender.clone(), handle.clone());
    tracing::info!(machine = %machine.id, epoch = %own, "a manager is connected");

    let mut changed = shared.store.changed_of(&machine.application);
    let mut edge = shared.edge.subscribe();
    let mut sent: Option<ManagerLevel> = None;
    let mut filter = reports::Filter::default();
    let (mut due, mut failed) = (true, false);
    loop {
        if due {
            (due, failed) = (false, false);
            match levels::of_manager(shared, &system, &machine.application, own).await {
                Ok(mut level) => {
                    let same = sent.as_ref().is_some_and(|sent| {
                        level.generation = sent.generation;
                        *sent == level
                    });
                    if !same {
                        level.generation = Generation(shared.hub.number());
                        let message = ToManager::Level(Box::new(level.clone()));
                        if let Err(error) = sender.send(&message).await {
                            tracing::debug!(error = full(&error), "a manager takes no levels");
                            break;
                        }
                        reached(KillPoint::LevelToManager);
                        sent = Some(level);
                    }
                }
                Err(error) => {
                    failed = true;
                    tracing::error!(error = full(&error), "a manager's level could not be read");
                }
            }
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            message = receiver.recv() => match message {
                Ok(Some(FromManager::Report(report))) => {
                    if !take_report(shared, &system, own, *report, &mut filter).await {
                        break;
                    }
                }
                Ok(Some(FromManager::CommandResult { id, result })) => shared.hub.answer(id, result),
                Ok(Some(FromManager::Metrics(mut told))) => {
                    // Only of services that are this manager's.
                    let mine = sent.iter().flat_map(|level| &level.services);
                    let mine: BTreeSet<_> = mine.map(|one| &one.spec.service).collect();
                    told.retain(|node| mine.contains(&node.service));
                    intake::metrics(shared, &machine.application, told).await;
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::info!(machine = %machine.id, error = full(&error), "a manager's stream broke");
                    break;
                }
            },
            _ = changed.changed() => due = true,
            // Nothing else may change for long.
            () = tokio::time::sleep(READ_AGAIN), if failed => due = true,
            // It tells of all services; most news are others'.
            _ = edge.changed() => {
                let present = edge.borrow_and_update();
                let mut mine = sent.iter().flat_map(|level| &level.services);
                due |= mine.any(|one| {
                    present.get(&one.spec.service).is_some_and(|edge| *edge != one.edge)
                });
            }
        }
    }
    shared.hub.close(connection);
    handle.close();
}

/// Applies a report; false when its sender has lost the post.
async fn take_report(
    shared: &Arc<Shared>,
    system: &ServiceId,
    own: Epoch,
    report: ManagerReport,
    filter: &mut reports::Filter,
) -> bool {
    if report.epoch != own {
        shared.hub.refused_reports.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%own, said = %report.epoch, "a manager's report of another epoch was refused");
        return true;
    }
    let Some(pass) = filter.pass(&report) else {
        return true;
    };
    let origin = Origin::Manager {
        system: system.clone(),
        epoch: own,
    };
    match reports::take(shared, origin, report.services, pass).await {
        Ok(true) => true,
        Ok(false) => {
            shared.hub.refused_reports.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%own, "a report of a manager that was outranked was refused");
            false
        }
        Err(error) => {
            // Reports are whole: the next one says it again.
            filter.reset();
            tracing::error!(
                error = full(&error),
                "a manager's report could not be recorded"
            );
            true
        }
    }
}

/// Sends a command of a service's type to its manager and awaits the answer.
///
/// # Errors
/// `Unavailable` when there is no manager or no answer in time, `Conflict` when the service is
/// not running, `Invalid` with the manager's own words when it refuses.
pub async fn command(
    shared: &Arc<Shared>,
    service: &ServiceId,
    name: &str,
    arguments: serde_json::Value,
) -> Result<serde_json::Value, DirectorError> {
    let id = service.clone();
    let found = shared
        .store
        .read(move |tx| {
            let Some(row) = services::get(tx, &id)? else {
                return Ok(None);
            };
            let app = store::apps::get(tx, &row.app)?
                .map_or_else(String::new, |app| app.name.to_string());
            Ok(Some((format!("{app}/{}", row.name), row)))
        })
        .await?;
    let Some((display, row)) = found else {
        return Err(DirectorError::not_found("there is no such service"));
    };
    if row.run != RunWish::Running {
        return Err(
            DirectorError::conflict("not_running", format!("{display} is not running"))
                .hint(format!("start it: conpaas service start {display}")),
        );
    }
    let link = row
        .manager
        .as_ref()
        .and_then(|system| shared.hub.manager(system));
    let Some((_, sender)) = link else {
        return Err(DirectorError::unavailable(
            "no_manager",
            format!("the manager of {display} is not connected now"),
        )
        .hint(format!(
            "a new one is made by itself; try again soon, or see: conpaas service show {display}"
        )));
    };
    let (id, answer) = shared.hub.register();
    let message = ToManager::Command {
        id,
        service: service.clone(),
        name: name.to_owned(),
        arguments,
    };
    let outcome = tokio::time::timeout(COMMAND_DEADLINE, async {
        sender.send(&message).await.map_err(|error| full(&error))?;
        let handle = sender.handle();
        tokio::select! {
            // The sender is dropped only together with the hub.
            answer = answer => answer.map_err(|_| "the Director ends".to_owned()),
            () = handle.closed() => Err("its stream broke off".to_owned()),
        }
    })
    .await;
    shared.hub.forget(id);
    let unavailable = |why: String| {
        DirectorError::unavailable(
            "no_answer",
            format!("the manager of {display} gave no answer: {why}"),
        )
        .hint("try again; if it lasts, see: conpaas logs")
    };
    match outcome {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(why))) => Err(DirectorError::invalid("command_failed", why)),
        Ok(Err(why)) => Err(unavailable(why)),
        Err(_) => Err(unavailable(format!(
            "none came within {} s",
            COMMAND_DEADLINE.as_secs()
        ))),
    }
}
