//! Values of secrets for agents: only for one whose node has a role that takes an environment, of
//! a release that names that very version. To all others there is no such secret.

use super::listener::{Caller, Refused, internal, refuse};
use super::records::Machine;
use super::shared::{Shared, full};
use crate::error::DirectorError;
use crate::store::secrets::{self, SecretRow};
use crate::store::services;
use crate::vault::{Label, VaultError};
use conpaas_model::ids::SecretVersion;
use conpaas_model::protocol::{PATH_SECRETS, SecretValue};
use conpaas_services::registry::Registry;
use conpaas_wire::{Body, json_response};
use http::{Response, StatusCode};
use rusqlite::Connection;
use std::sync::Arc;

/// `GET PATH_SECRETS/NAME/VERSION`.
pub async fn value(
    shared: &Arc<Shared>,
    caller: &Caller,
    path: &str,
) -> Result<Response<Body>, Refused> {
    let missing = || {
        refuse(
            StatusCode::NOT_FOUND,
            "no_secret",
            "there is no such secret for this node",
        )
    };
    let asked = path
        .strip_prefix(PATH_SECRETS)
        .and_then(|rest| rest.strip_prefix('/'))
        .and_then(|rest| rest.split_once('/'))
        .and_then(|(name, version)| Some((name.to_owned(), SecretVersion(version.parse().ok()?))));
    let Some((name, version)) = asked else {
        return Err(missing());
    };
    let (machine, registry) = (caller.machine.clone(), shared.registry.clone());
    let found = shared
        .store
        .read(move |tx| find(tx, &registry, &machine, &name, version))
        .await
        .map_err(|error| internal(&error))?;
    let Some(row) = found else {
        return Err(missing());
    };
    let label = Label {
        service: &row.service,
        name: &row.name,
        version: row.version,
    };
    match shared.config.vault.open(&label, &row.sealed) {
        Ok(value) => Ok(json_response(StatusCode::OK, &SecretValue { value })),
        Err(error) => {
            tracing::error!(
                service = %row.service, name = row.name, version = %row.version,
                error = full(&error), "a secret cannot be opened"
            );
            let message = match error {
                VaultError::OtherKey => "the key that it was sealed with is lost; set it again",
                _ => "its record is damaged; set it again",
            };
            Err(refuse(StatusCode::GONE, "secret_unreadable", message))
        }
    }
}

/// The secret, if the machine's node may have it now.
fn find(
    tx: &Connection,
    registry: &Registry,
    machine: &Machine,
    name: &str,
    version: SecretVersion,
) -> Result<Option<SecretRow>, DirectorError> {
    let Some(row) = services::get(tx, &machine.service)? else {
        return Ok(None);
    };
    let Some(entry) = registry.get(&row.service_type) else {
        return Ok(None);
    };
    let takers = entry.service_type.takes_environment();
    let nodes = row.status.iter().flat_map(|status| &status.nodes);
    let releases = nodes
        .filter(|node| node.number == machine.node)
        .flat_map(|node| &node.roles)
        .filter(|role| takers.contains(&role.role.as_str()))
        .filter_map(|role| role.release);
    for number in releases {
        let release = services::get_release(tx, &row.id, number)?;
        if release.is_some_and(|found| found.environment.secrets.get(name) == Some(&version)) {
            return secrets::get(tx, &row.id, name, version);
        }
    }
    Ok(None)
}
