//! The trash: a deleted application stops at once and gives its name and machines back, but rests
//! with its code, settings and history for a while (`DirectorConfig::trash`), so that it can be
//! brought back. Destroying for good is `Change::destroy_app`.

use super::{Accepted, Change, check_host, name_taken};
use crate::error::DirectorError;
use crate::operations;
use crate::shared::Shared;
use crate::store::apps::{self, AppRow};
use crate::store::{millis, now};
use conpaas_model::event::EventKind;
use conpaas_model::ids::Name;
use conpaas_model::spec::RunWish;
use rusqlite::Connection;

/// Who empties the trash.
const SYSTEM: &str = "system";

impl Change<'_> {
    /// Deletes an application: into the trash, or for good where there is none, where it already
    /// lies in it, or where that is asked for.
    pub fn delete_app(&self, app: AppRow, at_once: bool) -> Accepted {
        if self.shared.config.trash.is_zero() || at_once || app.run == RunWish::Deleted {
            return self.destroy_app(app);
        }
        if app.trashed_at.is_some() {
            return Err(DirectorError::conflict(
                "in_trash",
                format!("the application '{}' is in the trash already", app.name),
            )
            .hint(format!(
                "destroy it for good: conpaas app delete {} --now",
                app.id
            )));
        }
        let app = AppRow {
            trashed_at: Some(now()),
            generation: app.generation.next(),
            ..app
        };
        apps::update(self.tx, &app)?;
        self.event(
            &app.id,
            None,
            EventKind::ApplicationTrashed {
                name: app.name.clone(),
            },
        )?;
        self.leave_app(app, operations::TRASH, RunWish::Stopped)
    }

    /// Brings an application back from the trash, stopped, perhaps under another name.
    pub fn restore_app(&self, app: AppRow, name: Option<Name>) -> Result<AppRow, DirectorError> {
        if app.trashed_at.is_none() || app.run == RunWish::Deleted {
            return Err(DirectorError::conflict(
                "not_in_trash",
                format!("the application '{}' is not in the trash", app.name),
            )
            .hint("see what is: conpaas app list --trash"));
        }
        self.out_of_trash(app, name)
    }

    /// The application outside of the trash; as it is, if it is not in it.
    pub(super) fn out_of_trash(
        &self,
        mut app: AppRow,
        name: Option<Name>,
    ) -> Result<AppRow, DirectorError> {
        if app.trashed_at.is_none() {
            return Ok(app);
        }
        if let Some(name) = name {
            app.name = name;
        }
        check_host(&app.name, &app.owner_name)?;
        let taken = apps::by_name(self.tx, app.owner_name.as_str(), app.name.as_str())?;
        if taken.is_some_and(|found| found.run != RunWish::Deleted) {
            let hint = format!("conpaas app restore {} --name ANOTHER-NAME", app.id);
            return Err(name_taken("an application", &app.name).hint(hint));
        }
        app.trashed_at = None;
        app.generation = app.generation.next();
        apps::update(self.tx, &app)?;
        self.event(
            &app.id,
            None,
            EventKind::ApplicationRestored {
                name: app.name.clone(),
            },
        )?;
        Ok(app)
    }
}

/// Destroys what has rested in the trash for long enough; tells whether there was anything.
pub fn empty_trash(tx: &Connection, shared: &Shared) -> Result<bool, DirectorError> {
    let rest = millis(shared.config.trash);
    let due = apps::trashed_before(tx, now().saturating_sub(rest))?;
    let any = !due.is_empty();
    let change = Change {
        tx,
        shared,
        actor: SYSTEM,
        clouds: &[],
    };
    for app in due {
        change.destroy_app(app)?;
    }
    Ok(any)
}
