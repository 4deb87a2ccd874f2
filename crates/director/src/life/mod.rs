//! The life of applications and services: every change of a wish, as one transaction that writes
//! a new generation and the operation that observes it. Who may ask is decided before; carrying
//! wishes out is the machine side's and the managers' business.

mod domains;
mod draft;
mod environment;
mod releases;
mod settle;
mod systems;
mod trash;
mod upgrade;

pub use draft::nodes_wanted;
pub use releases::Audience;
pub use settle::settle;
pub use trash::empty_trash;

use crate::error::DirectorError;
use crate::hosts::{LABEL_MAX, label};
use crate::scale::scaled;
use crate::shared::Shared;
use crate::store::apps::{self, AppRow};
use crate::store::events::{self, NewEvent};
use crate::store::operations::{self as rows, OperationRow};
use crate::store::services::{self, ServiceRow};
use crate::store::users::{self, UserRow};
use crate::store::{machines, new_id, now};
use crate::{operations, settings};
use conpaas_model::api::{AppCreate, AppUpdate, CloudInfo, Outcome, Rename, Scale, ServiceCreate};
use conpaas_model::egress::Egress;
use conpaas_model::event::EventKind;
use conpaas_model::ids::{ApplicationId, Generation, Name, NodeNumber};
use conpaas_model::spec::{RunWish, Settings};
use conpaas_model::status::ServiceState;
use draft::Draft;
use rusqlite::Connection;

/// Who changes what, with what the clouds have free.
pub struct Change<'a> {
    pub tx: &'a Connection,
    pub shared: &'a Shared,
    /// The acting user's name.
    pub actor: &'a str,
    pub clouds: &'a [CloudInfo],
}

type Accepted = Result<Option<OperationRow>, DirectorError>;

fn name_taken(what: &str, name: &Name) -> DirectorError {
    DirectorError::conflict(
        "name_taken",
        format!("there is already {what} named '{name}'"),
    )
    .hint("choose another name")
}

fn check_text(what: &str, text: &str) -> Result<(), DirectorError> {
    if text.chars().count() > 1000 {
        return Err(DirectorError::invalid(
            "too_long",
            format!("a {what} may have at most 1000 characters"),
        ));
    }
    Ok(())
}

fn check_labels(labels: &conpaas_model::api::Labels) -> Result<(), DirectorError> {
    let long = |text: &String| text.is_empty() || text.len() > 100;
    if labels.len() > 50 || labels.keys().any(long) || labels.values().any(|v| v.len() > 500) {
        return Err(DirectorError::invalid(
            "bad_labels",
            "at most 50 labels, with keys of 1 to 100 and values of at most 500 bytes",
        ));
    }
    Ok(())
}

fn check_host(name: &Name, owner: &Name) -> Result<(), DirectorError> {
    let label = label(name, owner);
    if label.len() > LABEL_MAX {
        return Err(DirectorError::invalid(
            "name_too_long",
            format!(
                "'{label}' has {} characters, and a host name's part may have {LABEL_MAX}: choose a shorter name",
                label.len()
            ),
        ));
    }
    Ok(())
}

impl Change<'_> {
    fn event(
        &self,
        app: &ApplicationId,
        service: Option<&Name>,
        what: EventKind,
    ) -> Result<(), DirectorError> {
        events::append(
            self.tx,
            app,
            &NewEvent {
                service,
                actor: self.actor,
                reason: None,
                what,
            },
        )
    }

    fn living(&self, app: &AppRow) -> Result<(), DirectorError> {
        if app.run == RunWish::Deleted {
            return Err(DirectorError::conflict(
                "being_deleted",
                format!("the application '{}' is being deleted", app.name),
            ));
        }
        if app.trashed_at.is_some() {
            return Err(DirectorError::conflict(
                "in_trash",
                format!("the application '{}' is in the trash", app.name),
            )
            .hint(format!("bring it back: conpaas app restore {}", app.id)));
        }
        Ok(())
    }

    fn living_service(&self, app: &AppRow, row: &ServiceRow) -> Result<(), DirectorError> {
        self.living(app)?;
        if row.run == RunWish::Deleted {
            return Err(DirectorError::conflict(
                "being_deleted",
                format!("the service '{}/{}' is being deleted", app.name, row.name),
            ));
        }
        if row.internal {
            return Err(DirectorError::conflict(
                "system_service",
                format!(
                    "'{}/{}' hosts managers: it follows its application",
                    app.name, row.name
                ),
            ));
        }
        Ok(())
    }

    /// The application's services that people have and that are not being deleted.
    fn people(&self, app: &AppRow) -> Result<Vec<ServiceRow>, DirectorError> {
        let rows = services::of_app(self.tx, &app.id)?;
        Ok(rows
            .into_iter()
            .filter(|row| !row.internal && row.run != RunWish::Deleted)
            .collect())
    }

    pub fn create_app(&self, owner: &UserRow, wish: AppCreate) -> Result<AppRow, DirectorError> {
        check_text("description", &wish.description)?;
        check_labels(&wish.labels)?;
        check_host(&wish.name, &owner.name)?;
        let taken = apps::by_name(self.tx, owner.name.as_str(), wish.name.as_str())?;
        if taken.is_some_and(|row| row.run != RunWish::Deleted) {
            return Err(name_taken("an application", &wish.name));
        }
        let row = AppRow {
            id: new_id(ApplicationId::from_suffix)?,
            owner: owner.id.clone(),
            owner_name: owner.name.clone(),
            name: wish.name,
            description: wish.description,
            labels: wish.labels,
            egress: match wish.egress {
                Some(egress) => self.allowed_egress(egress)?,
                None => Egress::default(),
            },
            run: RunWish::Stopped,
            ever_started: false,
            generation: Generation(1),
            created_at: now(),
            trashed_at: None,
        };
        apps::insert(self.tx, &row)?;
        let name = row.name.clone();
        self.event(&row.id, None, EventKind::ApplicationCreated { name })?;
        Ok(row)
    }

    /// A wish for a way out, if this installation allows it.
    fn allowed_egress(&self, wish: Egress) -> Result<Egress, DirectorError> {
        if wish > self.shared.config.egress {
            return Err(DirectorError::conflict(
                "egress_not_allowed",
                "this installation lets no application out of its network",
            )
            .hint("its operator can: set egress = \"director\" in nutshell.toml"));
        }
        Ok(wish)
    }

    fn change_egress(&self, row: &AppRow, wish: Egress) -> Result<Egress, DirectorError> {
        let egress = self.allowed_egress(wish)?;
        if egress != row.egress {
            self.event(&row.id, None, EventKind::EgressChanged { egress })?;
        }
        Ok(egress)
    }

    pub fn update_app(&self, mut row: AppRow, wish: AppUpdate) -> Result<AppRow, DirectorError> {
        self.living(&row)?;
        if let Some(egress) = wish.egress {
            row.egress = self.change_egress(&row, egress)?;
        }
        if let Some(name) = wish.name.filter(|name| *name != row.name) {
            check_host(&name, &row.owner_name)?;
            let taken = apps::by_name(self.tx, row.owner_name.as_str(), name.as_str())?;
            if taken.is_some_and(|found| found.run != RunWish::Deleted) {
                return Err(name_taken("an application", &name));
            }
            let what = EventKind::ApplicationRenamed {
                from: row.name,
                to: name.clone(),
            };
            self.event(&row.id, None, what)?;
            row.name = name;
        }
        if let Some(description) = wish.description {
            check_text("description", &description)?;
            row.description = description;
        }
        if let Some(labels) = wish.labels {
            check_labels(&labels)?;
            row.labels = labels;
        }
        row.generation = row.generation.next();
        apps::update(self.tx, &row)?;
        Ok(row)
    }

    pub fn start_app(&self, app: AppRow) -> Accepted {
        self.living(&app)?;
        let people = self.people(&app)?;
        let mut draft = Draft::new(self.tx, self.shared, self.actor, "start", app, None)?;
        draft.set_app_run(RunWish::Running)?;
        for row in people {
            let broken = operations::shown(self.tx, &row)?.state == ServiceState::Error;
            if row.run != RunWish::Running || broken {
                let mut after = row.clone();
                after.set_run(RunWish::Running);
                draft.change(&row, after)?;
            }
        }
        draft.commit(self.clouds)
    }

    pub fn stop_app(&self, app: AppRow) -> Accepted {
        self.living(&app)?;
        self.leave_app(app, operations::STOP, RunWish::Stopped)
    }

    /// Ends an application and everything in it for good; its name is free at once.
    pub fn destroy_app(&self, app: AppRow) -> Accepted {
        self.leave_app(app, operations::DELETE, RunWish::Deleted)
    }

    fn leave_app(&self, app: AppRow, kind: &'static str, run: RunWish) -> Accepted {
        let people = self.people(&app)?;
        let mut draft = Draft::new(self.tx, self.shared, self.actor, kind, app, None)?;
        draft.set_app_run(run)?;
        for row in people.into_iter().filter(|row| row.run != run) {
            let mut after = row.clone();
            after.set_run(run);
            draft.change(&row, after)?;
        }
        draft.commit(self.clouds)
    }

    pub fn create_service(
        &self,
        app: AppRow,
        wish: ServiceCreate,
    ) -> Result<ServiceRow, DirectorError> {
        self.living(&app)?;
        check_text("description", &wish.description)?;
        check_labels(&wish.labels)?;
        let service_type = self.shared.service_type(&wish.service_type)?;
        if service_type.internal() {
            return Err(DirectorError::invalid(
                "unknown_service_type",
                format!("'{}' is the system's own service type", wish.service_type),
            ));
        }
        let name = match wish.name {
            Some(name) => name,
            None => service_type.name().parse().map_err(|error| {
                DirectorError::internal("a service type's name is no service's name", error)
            })?,
        };
        if name.as_str() == systems::SYSTEM || name.as_str().starts_with("system-") {
            return Err(DirectorError::invalid(
                "name_reserved",
                format!("'{name}' is kept for the system; choose another name"),
            ));
        }
        let taken = services::find(self.tx, &app.id, name.as_str())?;
        if taken.is_some_and(|row| row.run != RunWish::Deleted) {
            return Err(name_taken("a service", &name).hint("give it another: --name NAME"));
        }
        if wish.start && app.run != RunWish::Running {
            return Err(DirectorError::conflict(
                "app_not_running",
                format!(
                    "the application {} is not running, so its services cannot start",
                    app.name
                ),
            )
            .hint(format!(
                "add it without starting it, then: conpaas app start {}",
                app.name
            )));
        }
        let settings = settings::changed(service_type, &Settings::new(), &wish.settings)?;
        let row = ServiceRow {
            description: wish.description,
            labels: wish.labels,
            own_manager: wish.own_manager,
            ..systems::new_row(self.shared, &app, service_type, name)?
        };
        systems::insert(self.tx, self.shared, &row, self.actor, Some(settings))?;
        let what = EventKind::ServiceAdded {
            service_type: row.service_type.clone(),
        };
        self.event(&app.id, Some(&row.name), what)?;
        if wish.start && app.run == RunWish::Running {
            self.start_service(app, &row)?;
        } else {
            settle(self.tx, self.shared, &app.id)?;
        }
        Ok(services::get(self.tx, &row.id)?.unwrap_or(row))
    }

    pub fn rename_service(
        &self,
        app: &AppRow,
        mut row: ServiceRow,
        wish: Rename,
    ) -> Result<ServiceRow, DirectorError> {
        self.living_service(app, &row)?;
        if let Some(name) = wish.name.filter(|name| *name != row.name) {
            if name.as_str() == systems::SYSTEM || name.as_str().starts_with("system-") {
                return Err(DirectorError::invalid(
                    "name_reserved",
                    format!("'{name}' is kept for the system; choose another name"),
                ));
            }
            let taken = services::find(self.tx, &app.id, name.as_str())?;
            if taken.is_some_and(|found| found.run != RunWish::Deleted) {
                return Err(name_taken("a service", &name));
            }
            let what = EventKind::ServiceRenamed {
                from: row.name,
                to: name.clone(),
            };
            self.event(&app.id, Some(&name), what)?;
            row.name = name;
        }
        if let Some(description) = wish.description {
            check_text("description", &description)?;
            row.description = description;
        }
        if let Some(labels) = wish.labels {
            check_labels(&labels)?;
            row.labels = labels;
        }
        services::update_wish(self.tx, &row)?;
        Ok(row)
    }

    /// One service's new wish, if it is another than now.
    fn one(
        &self,
        app: AppRow,
        kind: &'static str,
        row: &ServiceRow,
        after: Option<ServiceRow>,
    ) -> Accepted {
        let mut draft = Draft::new(self.tx, self.shared, self.actor, kind, app, Some(row))?;
        if let Some(after) = after {
            draft.change(row, after)?;
        }
        draft.commit(self.clouds)
    }

    pub fn start_service(&self, app: AppRow, row: &ServiceRow) -> Accepted {
        self.living_service(&app, row)?;
        let broken = operations::shown(self.tx, row)?.state == ServiceState::Error;
        let mut after = row.clone();
        after.set_run(RunWish::Running);
        let changes = row.run != RunWish::Running || broken;
        self.one(app, "start", row, changes.then_some(after))
    }

    pub fn stop_service(&self, app: AppRow, row: &ServiceRow) -> Accepted {
        self.living_service(&app, row)?;
        let mut after = row.clone();
        after.set_run(RunWish::Stopped);
        self.one(
            app,
            "stop",
            row,
            (row.run != RunWish::Stopped).then_some(after),
        )
    }

    pub fn delete_service(&self, app: AppRow, row: &ServiceRow) -> Accepted {
        if row.run == RunWish::Deleted {
            return self.one(app, operations::DELETE, row, None);
        }
        self.living_service(&app, row)?;
        let mut after = row.clone();
        after.set_run(RunWish::Deleted);
        self.one(app, operations::DELETE, row, Some(after))
    }

    pub fn scale_service(&self, app: AppRow, row: &ServiceRow, wish: &Scale) -> Accepted {
        self.living_service(&app, row)?;
        let service_type = self.shared.service_type(&row.service_type)?;
        let owner = users::find(self.tx, app.owner.as_str())?;
        let roles = scaled(
            service_type,
            &row.roles,
            &self.shared.config.instance_types,
            owner.map_or(0, |owner| owner.node_quota),
            wish,
        )?;
        let changes = roles != row.roles;
        self.one(
            app,
            "scale",
            row,
            changes.then_some(ServiceRow {
                roles,
                ..row.clone()
            }),
        )
    }

    /// Another node takes a node's place, and then it is let go.
    pub fn replace_node(&self, app: AppRow, row: &ServiceRow, node: NodeNumber) -> Accepted {
        self.living(&app)?;
        self.event(&app.id, Some(&row.name), EventKind::NodeReplaced { node })?;
        let mut draft = Draft::new(self.tx, self.shared, self.actor, "replace", app, Some(row))?;
        draft.change(row, row.clone())?;
        draft.retire(&row.id, node)?;
        draft.commit(self.clouds)
    }

    /// Ends an operation and wishes what was wanted before it.
    pub fn cancel(&self, app: AppRow, operation: &OperationRow) -> Accepted {
        if operation.outcome != Outcome::Running {
            return Err(DirectorError::conflict(
                "already_ended",
                format!("the operation {} has ended already", operation.id),
            ));
        }
        if operation.kind == operations::DELETE {
            return Err(DirectorError::conflict(
                "not_cancellable",
                "a deletion cannot be cancelled",
            ));
        }
        let app = self.out_of_trash(app, None)?;
        let reason = format!("cancelled by {}", self.actor);
        operations::end(self.tx, operation, Outcome::Cancelled, Some(&reason))?;
        let subject = match &operation.service {
            Some(id) => services::get(self.tx, id)?,
            None => None,
        };
        let mut draft = Draft::new(
            self.tx,
            self.shared,
            self.actor,
            "cancel",
            app,
            subject.as_ref(),
        )?;
        if let Some(run) = operation.previous.app {
            draft.set_app_run(run)?;
        }
        for previous in &operation.previous.services {
            let Some(row) = services::get(self.tx, &previous.service)? else {
                continue;
            };
            if row.run == RunWish::Deleted {
                continue;
            }
            let mut after = row.clone();
            let mut targets = operation.targets.iter();
            let ours = targets.find(|target| target.service == row.id);
            // A newer wish stands, but for nodes that this one wanted replaced.
            if ours.is_none_or(|target| target.generation == row.generation) {
                after.roles = previous.roles.clone();
                after.active = previous.active;
                after.preview = previous.preview;
                after.set_run(previous.run);
            } else if previous.retire.is_empty() {
                continue;
            }
            draft.change(&row, after)?;
            machines::keep(self.tx, &row.id, &previous.retire)?;
        }
        draft.commit(self.clouds)?;
        rows::get(self.tx, operation.id.as_str())
    }
}
