//! Environment and secrets of a service: each change makes a release. Names and sizes are checked
//! by the model's rules, and by what the service's type can pass on.

use super::releases::{Audience, Content};
use super::{Accepted, Change};
use crate::error::DirectorError;
use crate::store::apps::AppRow;
use crate::store::now;
use crate::store::secrets::{self, SecretRow};
use crate::store::services::{self, ServiceRow};
use crate::vault::Label;
use conpaas_core::service_type::ServiceType;
use conpaas_model::environment::{EnvironmentError, check_name, check_value};
use std::collections::{BTreeMap, BTreeSet};

/// A rule of the model that was not kept, as people are told.
fn refused(error: EnvironmentError) -> DirectorError {
    let message = error.to_string();
    match error {
        EnvironmentError::Name { .. } | EnvironmentError::Reserved { .. } => {
            DirectorError::invalid("bad_name", message)
        }
        EnvironmentError::TooLong { .. } | EnvironmentError::TooLarge { .. } => {
            DirectorError::too_large(message)
        }
        EnvironmentError::Nul { .. } => DirectorError::invalid("invalid_value", message),
        EnvironmentError::TooMany { .. } | EnvironmentError::TooManySecrets { .. } => {
            DirectorError::quota("too_many", message)
        }
        EnvironmentError::IsSecret { .. } | EnvironmentError::IsVariable { .. } => {
            DirectorError::conflict("name_taken", message)
        }
    }
}

impl Change<'_> {
    /// The service's type, if it has anybody to give an environment to.
    fn takes_environment(
        &self,
        row: &ServiceRow,
    ) -> Result<&'static dyn ServiceType, DirectorError> {
        let service_type = self.shared.service_type(&row.service_type)?;
        if service_type.takes_environment().is_empty() {
            return Err(DirectorError::invalid(
                "no_environment",
                format!(
                    "a {} service runs no code of yours, so it has neither environment nor secrets",
                    service_type.name()
                ),
            )
            .hint("see which types do: conpaas service types TYPE"));
        }
        Ok(service_type)
    }

    pub fn set_environment(
        &self,
        app: AppRow,
        row: &ServiceRow,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Accepted {
        self.living_service(&app, row)?;
        let service_type = self.takes_environment(row)?;
        let active = self.active(row)?;
        let environment = active
            .environment
            .with_variables(changes)
            .map_err(refused)?;
        for (name, value) in changes {
            if let Some(value) = value {
                service_type
                    .check_environment(name, value)
                    .map_err(|why| DirectorError::invalid("invalid_value", why))?;
            } else if active.environment.secrets.contains_key(name) {
                return Err(DirectorError::conflict(
                    "name_taken",
                    format!("{name} is a secret, not a variable"),
                )
                .hint(format!(
                    "unset it: conpaas secret unset {}/{} {name}",
                    app.name, row.name
                )));
            }
        }
        if environment == active.environment {
            return self.one(app, "env", row, None);
        }
        let names: Vec<&str> = changes.keys().map(String::as_str).collect();
        let reason = format!("environment changed: {}", names.join(", "));
        let content = Content {
            environment,
            ..active
        };
        self.release(app, "env", row, (content, Audience::Everybody), reason)
    }

    pub fn set_secret(&self, app: AppRow, row: &ServiceRow, name: &str, value: &str) -> Accepted {
        self.living_service(&app, row)?;
        let service_type = self.takes_environment(row)?;
        check_name(name).map_err(refused)?;
        check_value(name, value).map_err(refused)?;
        service_type
            .check_environment(name, value)
            .map_err(|why| DirectorError::invalid("invalid_value", why))?;
        let active = self.active(row)?;
        if let Some(version) = active.environment.secrets.get(name) {
            let label = Label {
                service: &row.id,
                name,
                version: *version,
            };
            let present = secrets::get(self.tx, &row.id, name, *version)?;
            // One that cannot be opened any more is another value in any case.
            let same = present.is_some_and(|present| {
                let opened = self.shared.vault.open(&label, &present.sealed);
                opened.is_ok_and(|present| present == value)
            });
            if same {
                return self.one(app, "secret", row, None);
            }
        }
        let version = secrets::next_version(self.tx, &row.id, name)?;
        let environment = active
            .environment
            .with_secret(name, version)
            .map_err(refused)?;
        let label = Label {
            service: &row.id,
            name,
            version,
        };
        let sealed = self.shared.vault.seal(&label, value);
        let sealed =
            sealed.map_err(|error| DirectorError::internal("a secret cannot be sealed", error))?;
        secrets::insert(
            self.tx,
            &SecretRow {
                service: row.id.clone(),
                name: name.to_owned(),
                version,
                sealed,
                created_at: now(),
                actor: self.actor.to_owned(),
            },
        )?;
        let reason = format!("secret set: {name} {version}");
        let content = Content {
            environment,
            ..active
        };
        let accepted = self.release(app, "secret", row, (content, Audience::Everybody), reason)?;
        self.forget_secrets(row)?;
        Ok(accepted)
    }

    pub fn unset_secret(&self, app: AppRow, row: &ServiceRow, name: &str) -> Accepted {
        self.living_service(&app, row)?;
        let active = self.active(row)?;
        if !active.environment.secrets.contains_key(name) {
            return Err(
                DirectorError::not_found(format!("there is no secret '{name}'")).hint(format!(
                    "list them: conpaas secret list {}/{}",
                    app.name, row.name
                )),
            );
        }
        let content = Content {
            environment: active.environment.without_secret(name),
            ..active
        };
        let reason = format!("secret unset: {name}");
        self.release(app, "secret", row, (content, Audience::Everybody), reason)
    }

    /// Forgets old versions, but none that a node may still ask for.
    fn forget_secrets(&self, row: &ServiceRow) -> Result<(), DirectorError> {
        let Some(row) = services::get(self.tx, &row.id)? else {
            return Ok(());
        };
        let in_use: BTreeSet<_> = services::carried(self.tx, &row)?
            .into_iter()
            .flat_map(|release| release.environment.secrets)
            .collect();
        secrets::forget_oldest(self.tx, &row.id, &in_use)
    }
}
