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

/// Whom a new release is shown to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everybody, as soon as it is ready. One that was held until then is held no more: it was made
    /// of something older.
    Everybody,
    /// Those at the preview address, until it is promoted.
    Preview,
}

impl Audience {
    pub fn preview(held: bool) -> Self {
        if held { Self::Preview } else { Self::Everybody }
    }
}

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

    /// What a change starts from: what its audience sees, or soon will.
    fn base(&self, row: &ServiceRow, audience: Audience) -> Result<Content, DirectorError> {
        match (audience, row.preview) {
            (Audience::Preview, Some(preview)) => self.active(&ServiceRow {
                active: preview,
                ..row.clone()
            }),
            _ => self.active(row),
        }
    }

    /// Makes a release and wishes it active, or held.
    pub(super) fn release(
        &self,
        app: AppRow,
        kind: &'static str,
        row: &ServiceRow,
        (content, audience): (Content, Audience),
        reason: String,
    ) -> Accepted {
        let service_type = self.shared.service_type(&row.service_type)?;
        if audience == Audience::Preview && !service_type.previews() {
            return Err(DirectorError::invalid(
                "takes_no_preview",
                format!("a {} service has no preview address", service_type.name()),
            ));
        }
        let serving = row.status.as_ref().and_then(|status| status.serving);
        let beside = serving.into_iter().chain([row.active]);
        let number = number_beside(row.next_release, beside);
        let release = ReleaseRow {
            service: row.id.clone(),
            number,
            code: content.code,
            settings: content.settings,
            environment: content.environment,
            reason,
            actor: self.actor.to_owned(),
            created_at: now(),
            held: audience == Audience::Preview,
        };
        services::insert_release(self.tx, &release)?;
        let (active, preview) = match audience {
            Audience::Everybody => (number, None),
            Audience::Preview => (row.active, Some(number)),
        };
        let after = ServiceRow {
            active,
            preview,
            next_release: number.next(),
            ..row.clone()
        };
        let kind = match audience {
            Audience::Everybody => kind,
            Audience::Preview => "preview",
        };
        self.one(app, kind, row, Some(after))
    }

    /// Leads everybody to the release that is held.
    pub fn promote(&self, app: AppRow, row: &ServiceRow) -> Accepted {
        self.living_service(&app, row)?;
        let Some(held) = row.preview else {
            let target = format!("{}/{}", app.name, row.name);
            return Err(DirectorError::conflict(
                "nothing_held",
                format!("no release of {target} is held for a preview"),
            )
            .hint(format!(
                "hold one: conpaas code activate {target} CODE --preview"
            )));
        };
        services::promoted(self.tx, &row.id, held)?;
        let after = ServiceRow {
            active: held,
            preview: None,
            ..row.clone()
        };
        self.one(app, "promote", row, Some(after))
    }

    /// Holds no release any more; without one nothing changes.
    pub fn discard_preview(&self, app: AppRow, row: &ServiceRow) -> Accepted {
        self.living_service(&app, row)?;
        let after = row.preview.map(|_| ServiceRow {
            preview: None,
            ..row.clone()
        });
        self.one(app, "discard", row, after)
    }

    pub fn set_settings(
        &self,
        app: AppRow,
        row: &ServiceRow,
        change: &Settings,
        audience: Audience,
    ) -> Accepted {
        self.living_service(&app, row)?;
        let service_type = self.shared.service_type(&row.service_type)?;
        let active = self.base(row, audience)?;
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
        self.release(app, "set", row, (content, audience), reason)
    }

    pub fn activate_code(
        &self,
        app: AppRow,
        row: &ServiceRow,
        code: &str,
        audience: Audience,
    ) -> Accepted {
        self.living_service(&app, row)?;
        let found = codes::get(self.tx, &row.id, code)?.filter(|found| found.deleted_at.is_none());
        let found = found.ok_or_else(|| {
            DirectorError::not_found(format!("no code version '{code}'")).hint(format!(
                "list them: conpaas code list {}/{}",
                app.name, row.name
            ))
        })?;
        let active = self.base(row, audience)?;
        if active.code.as_ref() == Some(&found.id) {
            return self.one(app, "activate", row, None);
        }
        let reason = format!("code activated: {}", found.filename);
        let content = Content {
            code: Some(found.id),
            ..active
        };
        self.release(app, "activate", row, (content, audience), reason)
    }

    /// Takes an older release's code, settings, environment and secrets as a new release.
    pub fn rollback(
        &self,
        app: AppRow,
        row: &ServiceRow,
        to: Option<ReleaseNumber>,
        audience: Audience,
    ) -> Accepted {
        self.living_service(&app, row)?;
        let active = self.base(row, audience)?;
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
        self.release(app, "rollback", row, (found, audience), reason)
    }
}
