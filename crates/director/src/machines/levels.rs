//! What a manager should know, read from the store in one look.

use super::records;
use super::shared::Shared;
use crate::error::DirectorError;
use crate::store::changes::Touched;
use crate::store::{apps, services};
use conpaas_model::ids::{ApplicationId, Epoch, Generation, ServiceId};
use conpaas_model::protocol::{ManagerLevel, ServiceLevel};
use conpaas_model::status::{EdgeStatus, NodeRecord, NodeState};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The level of the manager on a system service's node.
pub async fn of_manager(
    shared: &Arc<Shared>,
    system: &ServiceId,
    application: &ApplicationId,
    epoch: Epoch,
) -> Result<ManagerLevel, DirectorError> {
    let edge = shared.edge.borrow().clone();
    let (system, id) = (system.clone(), application.clone());
    let levels = shared
        .store
        .read(move |tx| {
            let rows = services::of_app(tx, &id)?;
            let mine = rows
                .iter()
                .filter(|row| row.manager.as_ref() == Some(&system));
            mine.map(|row| service_level(tx, row, &edge))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    Ok(ManagerLevel {
        generation: Generation(0),
        application: application.clone(),
        epoch,
        instance_types: shared.instance_types(),
        services: levels,
        trust: shared.trust_digest(),
    })
}

/// The levels of the system services, which the Director manages itself, of applications that were
/// touched.
pub async fn of_system(
    shared: &Arc<Shared>,
    touched: Touched,
) -> Result<BTreeMap<ApplicationId, Vec<ServiceLevel>>, DirectorError> {
    shared
        .store
        .read(move |tx| {
            let (mut levels, rows) = match touched {
                Touched::Everything => (BTreeMap::new(), services::every(tx)?),
                Touched::Applications(these) => {
                    let rows = these.iter().map(|app| services::of_app(tx, app));
                    let rows = rows.collect::<Result<Vec<_>, _>>()?.concat();
                    // Those that have none any more are told of, too.
                    (
                        these.into_iter().map(|app| (app, Vec::new())).collect(),
                        rows,
                    )
                }
            };
            for row in rows.iter().filter(|row| row.internal) {
                let level = service_level(tx, row, &BTreeMap::new())?;
                let of_app: &mut Vec<_> = levels.entry(row.app.clone()).or_default();
                of_app.push(level);
            }
            Ok(levels)
        })
        .await
}

fn service_level(
    tx: &Connection,
    row: &services::ServiceRow,
    edge: &BTreeMap<ServiceId, EdgeStatus>,
) -> Result<ServiceLevel, DirectorError> {
    let app = apps::get(tx, &row.app)?
        .ok_or_else(|| DirectorError::not_found("the application is gone"))?;
    let nodes = records::nodes_of(tx, &row.id)?
        .into_iter()
        .map(|node| NodeRecord {
            number: node.key.number,
            state: if node.wanted {
                node.state
            } else {
                NodeState::Releasing
            },
            cloud: node.cloud,
            instance_type: node.instance_type,
            address: node.address,
            trouble: node.trouble,
            refused: node.refused,
            told: node.told,
        })
        .collect();
    let machines = records::machines_of(tx, &row.id)?
        .into_iter()
        .map(|machine| (machine.id, machine.node))
        .collect();
    Ok(ServiceLevel {
        spec: services::spec(tx, row, &app.name)?,
        nodes,
        machines,
        next_node: row.next_node,
        edge: edge.get(&row.id).cloned().unwrap_or_default(),
        shown: Some(services::told_releases(tx, &row.id)?.served).filter(|shown| shown.0 > 0),
    })
}
