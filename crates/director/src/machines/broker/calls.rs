//! Calls to clouds: how an answer is read, and which failures are for good.

use super::Network;
use crate::machines::shared::{Shared, full};
use crate::machines::{births, records};
use conpaas_cloud::{Cloud, CloudError, CloudMachineId, MachineState};
use conpaas_core::broker::{CallResult, Listed};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::ids::InstallationId;
use std::time::Duration;
use tokio::time::timeout;

pub(super) fn listed(machine: conpaas_cloud::Machine) -> Listed {
    let died = match machine.state {
        MachineState::Dead { exit } => Some(exit.to_string()),
        MachineState::Pending | MachineState::Running => None,
    };
    Listed {
        id: machine.id.0,
        token: machine.token,
        died,
    }
}

pub(super) async fn create(
    shared: &Shared,
    birth: &records::Birth,
) -> (CallResult, Option<Network>) {
    let Some(cloud) = shared.clouds.get(&birth.cloud) else {
        return (
            CallResult::Refused {
                reason: format!("there is no cloud '{}'", birth.cloud),
                for_good: true,
            },
            None,
        );
    };
    let request = match births::request(shared, cloud.as_ref(), birth) {
        Ok(request) => request,
        Err(reason) => {
            let for_good = true;
            return (CallResult::Refused { reason, for_good }, None);
        }
    };
    match cloud.create(request).await {
        Ok(machine) => {
            reached(KillPoint::CreateAnswered);
            shared.note_made(&birth.cloud, &machine);
            let network = Network {
                application: birth.application.clone(),
                instance: machine.network_instance,
            };
            (
                CallResult::Created {
                    cloud_id: machine.id.0,
                },
                Some(network),
            )
        }
        Err(error) => {
            let reason = full(&error);
            tracing::warn!(cloud = %birth.cloud, machine = %birth.machine, %reason, "no machine came");
            let result = match error {
                // There may be room again later.
                CloudError::NoCapacity { .. } => CallResult::Refused {
                    reason,
                    for_good: false,
                },
                CloudError::UnknownInstanceType { .. }
                | CloudError::Invalid { .. }
                | CloudError::Unfit { .. }
                | CloudError::Image { .. } => CallResult::Refused {
                    reason,
                    for_good: true,
                },
                _ => CallResult::Unclear { reason },
            };
            (result, None)
        }
    }
}

/// How long a cloud may take to list its machines.
pub(super) const LIST_DEADLINE: Duration = Duration::from_secs(30);

/// All machines of this installation as their cloud lists them, or why it does not.
pub async fn list(
    cloud: &dyn Cloud,
    installation: &InstallationId,
) -> Result<Vec<conpaas_cloud::Machine>, String> {
    match timeout(LIST_DEADLINE, cloud.list(installation)).await {
        Ok(Ok(machines)) => Ok(machines),
        Ok(Err(error)) => Err(full(&error)),
        Err(_) => Err(format!(
            "it did not list its machines within {} s",
            LIST_DEADLINE.as_secs()
        )),
    }
}

pub(super) async fn destroy(shared: &Shared, cloud: &str, cloud_id: &str) -> Result<(), String> {
    let cloud = shared
        .clouds
        .get(cloud)
        .ok_or_else(|| format!("there is no cloud '{cloud}'"))?;
    match cloud.destroy(&CloudMachineId(cloud_id.to_owned())).await {
        Ok(()) | Err(CloudError::NotFound { .. }) => {
            reached(KillPoint::DestroyAnswered);
            Ok(())
        }
        Err(error) => Err(full(&error)),
    }
}
