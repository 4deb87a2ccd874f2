//! Host names of a service beside the one it has by its own name: claimed, and given up again. They
//! lead where the service's own name leads; no generation changes.

use super::Change;
use crate::error::DirectorError;
use crate::hosts;
use crate::store::apps::{self, AppRow};
use crate::store::domains::{self, DomainRow};
use crate::store::now;
use crate::store::services::{self, ServiceRow};
use conpaas_model::event::EventKind;
use conpaas_model::ids::ServiceId;
use conpaas_model::spec::RunWish;

/// How many names a service may claim.
const MOST: usize = 20;

impl Change<'_> {
    /// Claims a host name. One that the service has already is given as it is.
    pub fn add_domain(
        &self,
        app: &AppRow,
        row: &ServiceRow,
        name: &str,
    ) -> Result<DomainRow, DirectorError> {
        self.living_service(app, row)?;
        let service_type = self.shared.service_type(&row.service_type)?;
        if !service_type.roles().iter().any(|role| role.exposed) {
            return Err(DirectorError::invalid(
                "not_exposed",
                format!(
                    "people are not led to a {} service, so it has no host names",
                    service_type.name()
                ),
            ));
        }
        let name = hosts::claimable(name, &self.shared.config.base_domain)
            .map_err(|reason| DirectorError::invalid("bad_domain", reason))?;
        if let Some(found) = domains::get(self.tx, &name)? {
            if found.service == row.id {
                return Ok(found);
            }
            // Like the name of its application, it is free while that rests in the trash.
            if !self.is_gone(&found.service)? {
                return Err(DirectorError::conflict(
                    "domain_taken",
                    format!("the host name '{name}' is another service's already"),
                )
                .hint("choose another, or have it removed there: conpaas domain remove"));
            }
            domains::delete(self.tx, &name)?;
        }
        if domains::of_service(self.tx, &row.id)?.len() >= MOST {
            return Err(DirectorError::quota(
                "too_many_domains",
                format!("a service may have {MOST} host names beside its own"),
            )
            .hint("remove one that is not needed: conpaas domain list, conpaas domain remove"));
        }
        let domain = DomainRow {
            name: name.clone(),
            service: row.id.clone(),
            created_at: now(),
            actor: self.actor.to_owned(),
        };
        domains::insert(self.tx, &domain)?;
        self.event(
            &app.id,
            Some(&row.name),
            EventKind::DomainAdded { domain: name },
        )?;
        Ok(domain)
    }

    /// Whether a service is deleted, or in the trash with its application.
    fn is_gone(&self, service: &ServiceId) -> Result<bool, DirectorError> {
        let Some(row) = services::get(self.tx, service)? else {
            return Ok(true);
        };
        let app = apps::get(self.tx, &row.app)?;
        Ok(row.run == RunWish::Deleted || app.is_none_or(|app| app.trashed_at.is_some()))
    }

    /// Gives a host name up; from then on anybody may claim it.
    pub fn remove_domain(
        &self,
        app: &AppRow,
        row: &ServiceRow,
        name: &str,
    ) -> Result<(), DirectorError> {
        let name = hosts::whole(name, &self.shared.config.base_domain);
        let found = domains::get(self.tx, &name)?.filter(|found| found.service == row.id);
        if found.is_none() {
            return Err(DirectorError::not_found(format!(
                "{}/{} has not claimed the host name '{name}'",
                app.name, row.name
            ))
            .hint(format!(
                "see those it has: conpaas domain list {}/{}",
                app.name, row.name
            )));
        }
        domains::delete(self.tx, &name)?;
        let what = EventKind::DomainRemoved { domain: name };
        self.event(&app.id, Some(&row.name), what)
    }
}
