//! Releases of a service: new settings, other code, a way back. Each is a change that makes a
//! whole new release out of the active one; what environment and secrets add is in `environment`.

use super::{Accepted, Change};
use crate::error::DirectorError;
use crate::settings;
use crate::store::apps::AppRow;
use crate::store::services::{self, ReleaseRow, ServiceRow};
use crate::store::{codes, now, secrets};
use conpaas_core::service_type::number_beside;
use conpaas_model::environment::Environment;
use conpaas_model::ids::{CodeId, ReleaseNumber};
use conpaas_model::spec::Settings;

/// What a release consists of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Content {
    pub(super) code: Option<CodeId>,
    pub(super) settings: Settings,
    pub(super) environment: Environment,
}

impl From<ReleaseRow> for Content {
    fn from(row: ReleaseRow) -> Self {
        Self {
            code: row.code,
            settings: row.settings,
            environment: row.environment,
        }
    }
}

impl Change<'_> {
    /// What the active release consists of.
    pub(super) fn active(&self, row: &ServiceRow) -> Result<Content, DirectorError> {
        services::get_release(self.tx, &row.id, row.active)?
            .map(Content::from)
            .ok_or_else(|| {
                DirectorError::internal("a service lacks its active release", row.id.to_string())
            })
    }

    /// Makes a release and wishes it active.
    pub(super) fn release(
        &self,
        app: AppRow,
        kind: &'static str,
        row: &ServiceRow,
        content: Content,
        reason: String,
    ) -> Accepted {
        let serving = row.status.as_ref().and_then(|status| status.serving);
        let number = number_beside(row.next_release, serving);
        let release = ReleaseRow {
            service: row.id.clone(),
            number,
            code: content.code,
            settings: content.settings,
            environment: content.environment,
            reason,
            actor: self.actor.to_owned(),
            created_at: now(),
        };
        services::insert_release(self.tx, &release)?;
        let after = ServiceRow {
            active: number,
            next_release: number.next(),
            ..row.clone()
        };
        self.one(app, kind, row, Some(after))
    }

    pub fn set_settings(&self, app: AppRow, row: &ServiceRow, change: &Settings) -> Accepted {
        self.living_service(&app, row)?;
        let service_type = self.shared.service_type(&row.service_type)?;
        let active = self.active(row)?;
        let merged = settings::changed(service_type, &active.settings, change)?;
        if merged == active.settings {
            return self.one(app, "set", row, None);
        }
        let names: Vec<&str> = change.keys().map(String::as_str).collect();
        let reason = format!("settings changed: {}", names.join(", "));
        let content = Content {
            settings: merged,
            ..active
        };
        self.release(app, "set", row, content, reason)
    }

    pub fn activate_code(&self, app: AppRow, row: &ServiceRow, code: &str) -> Accepted {
        self.living_service(&app, row)?;
        let found = codes::get(self.tx, &row.id, code)?.filter(|found| found.deleted_at.is_none());
        let found = found.ok_or_else(|| {
            DirectorError::not_found(format!("no code version '{code}'")).hint(format!(
                "list them: conpaas code list {}/{}",
                app.name, row.name
            ))
        })?;
        let active = self.active(row)?;
        if active.code.as_ref() == Some(&found.id) {
            return self.one(app, "activate", row, None);
        }
        let reason = format!("code activated: {}", found.filename);
        let content = Content {
            code: Some(found.id),
            ..active
        };
        self.release(app, "activate", row, content, reason)
    }

    /// Takes an older release's code, settings, environment and secrets as a new release.
    pub fn rollback(&self, app: AppRow, row: &ServiceRow, to: Option<ReleaseNumber>) -> Accepted {
        self.living_service(&app, row)?;
        let active = self.active(row)?;
        let found = match to {
            Some(number) => services::get_release(self.tx, &row.id, number)?,
            None => services::release_before(self.tx, &row.id, row.active)?,
        };
        let found = found.ok_or_else(|| {
            match to {
                Some(number) => DirectorError::not_found(format!("no release {number}")),
                None => {
                    DirectorError::conflict("nothing_before", "there is no release before this one")
                }
            }
            .hint(format!(
                "list them: conpaas service releases {}/{}",
                app.name, row.name
            ))
        })?;
        let number = found.number;
        let found = Content::from(found);
        if let Some(code) = &found.code {
            let kept = codes::get(self.tx, &row.id, code.as_str())?;
            if kept.is_none_or(|kept| kept.deleted_at.is_some()) {
                return Err(DirectorError::conflict(
                    "code_deleted",
                    format!("the code version of release {number} was deleted"),
                )
                .hint("choose another release, or upload that code again"));
            }
        }
        for (name, version) in &found.environment.secrets {
            if secrets::get(self.tx, &row.id, name, *version)?.is_none() {
                return Err(DirectorError::conflict(
                    "secret_forgotten",
                    format!(
                        "release {number} has {version} of the secret {name}, which is kept no more: \
                         only the newest versions are"
                    ),
                )
                .hint("choose a newer release, or set the secret again"));
            }
        }
        if found == active {
            return self.one(app, "rollback", row, None);
        }
        let reason = format!("rolled back to {number}");
        self.release(app, "rollback", row, found, reason)
    }
}
