//! The system services of an application: whose nodes host which manager, and whether they are
//! needed now.

use crate::error::DirectorError;
use crate::scale::default_roles;
use crate::shared::Shared;
use crate::state::{Hosted, system_wish};
use crate::store::apps::AppRow;
use crate::store::events::{self, NewEvent};
use crate::store::services::{self, ReleaseRow, ServiceRow};
use crate::store::{machines, new_id, now, random_suffix};
use conpaas_model::event::EventKind;
use conpaas_model::ids::{Generation, Name, NodeNumber, ReleaseNumber, ServiceId};
use conpaas_model::spec::RunWish;
use rusqlite::Connection;

/// Names of system services start so; people's may not.
pub const SYSTEM: &str = "system";

/// Makes the system services an application needs, and wishes each of them running, stopped or
/// deleted as its services are. Tells whether anything changed.
pub fn settle_systems(
    tx: &Connection,
    shared: &Shared,
    app: &AppRow,
) -> Result<bool, DirectorError> {
    let Some(system_type) = shared.system_type() else {
        return Ok(false);
    };
    let mut changed = false;
    let rows = services::of_app(tx, &app.id)?;
    let (systems, people): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.internal);
    let common = systems
        .iter()
        .find(|row| !row.own_manager && row.run != RunWish::Deleted);
    let mut common = common.map(|row| row.id.clone());
    let needs_common = app.run == RunWish::Running || people.iter().any(|row| !row.own_manager);
    if common.is_none() && needs_common && app.run != RunWish::Deleted {
        common = Some(make(tx, shared, app, system_type.name(), false)?);
        changed = true;
    }
    for row in people.iter().filter(|row| row.manager.is_none()) {
        let manager = match (row.own_manager, &common) {
            (true, _) => Some(make(tx, shared, app, system_type.name(), true)?),
            (false, common) => common.clone(),
        };
        if manager.is_some() {
            services::update_wish(
                tx,
                &ServiceRow {
                    manager,
                    ..row.clone()
                },
            )?;
            changed = true;
        }
    }
    let rows = services::of_app(tx, &app.id)?;
    for system in rows
        .iter()
        .filter(|row| row.internal && row.run != RunWish::Deleted)
    {
        let mut hosted = Vec::new();
        for row in rows
            .iter()
            .filter(|row| row.manager.as_ref() == Some(&system.id))
        {
            let nodes = machines::count_of_service(tx, &row.id)?;
            hosted.push(Hosted {
                run: row.run,
                nodes,
            });
        }
        let base = match (system.own_manager, app.run) {
            (true, _) if hosted.is_empty() => RunWish::Deleted,
            (true, RunWish::Running) => RunWish::Stopped,
            (_, run) => run,
        };
        let wish = system_wish(base, &hosted);
        if wish != system.run {
            let mut next = system.clone();
            next.set_run(wish);
            next.generation = next.generation.next();
            services::update_wish(tx, &next)?;
            let event = NewEvent {
                service: Some(&next.name),
                actor: "system",
                reason: None,
                what: EventKind::ManagersWished { wish },
            };
            events::append(tx, &app.id, &event)?;
            changed = true;
        }
    }
    Ok(changed)
}

fn make(
    tx: &Connection,
    shared: &Shared,
    app: &AppRow,
    type_name: &str,
    own: bool,
) -> Result<ServiceId, DirectorError> {
    let service_type = shared.service_type(type_name)?;
    let text = if own {
        let suffix = random_suffix();
        format!("{SYSTEM}-{}", suffix.get(..6).unwrap_or(&suffix))
    } else {
        SYSTEM.to_owned()
    };
    let name: Name = text
        .parse()
        .map_err(|error| DirectorError::internal("a name could not be made", error))?;
    let row = ServiceRow {
        own_manager: own,
        internal: true,
        description: "hosts managers".to_owned(),
        ..new_row(shared, app, service_type, name)?
    };
    insert(tx, shared, &row, "system", None)?;
    Ok(row.id)
}

/// A service that was just added: stopped, with its type's defaults.
pub fn new_row(
    shared: &Shared,
    app: &AppRow,
    service_type: &dyn conpaas_core::service_type::ServiceType,
    name: Name,
) -> Result<ServiceRow, DirectorError> {
    let at = now();
    let config = &shared.config;
    Ok(ServiceRow {
        id: new_id(ServiceId::from_suffix)?,
        app: app.id.clone(),
        name,
        service_type: service_type.name().to_owned(),
        description: String::new(),
        labels: Default::default(),
        own_manager: false,
        internal: false,
        manager: None,
        run: RunWish::Stopped,
        run_since: at,
        ever_started: false,
        served: false,
        generation: Generation(1),
        reached: Generation(0),
        roles: default_roles(
            service_type,
            &config.default_cloud,
            &config.default_instance_type,
        ),
        active: ReleaseNumber(1),
        drain_seconds: u32::try_from(config.drain.as_secs()).unwrap_or(u32::MAX),
        next_node: NodeNumber(1),
        next_release: ReleaseNumber(2),
        preview: None,
        status: None,
        status_epoch: Default::default(),
        exposure: None,
        shown_state: conpaas_model::status::ServiceState::Init,
        created_at: at,
    })
}

/// Inserts a service with its first release: no code, and the settings given (the defaults when
/// absent).
pub fn insert(
    tx: &Connection,
    shared: &Shared,
    row: &ServiceRow,
    actor: &str,
    settings: Option<conpaas_model::spec::Settings>,
) -> Result<(), DirectorError> {
    let service_type = shared.service_type(&row.service_type)?;
    let settings =
        settings.unwrap_or_else(|| crate::settings::defaults(&service_type.settings_schema()));
    services::insert(tx, row)?;
    services::insert_release(
        tx,
        &ReleaseRow {
            service: row.id.clone(),
            number: row.active,
            code: None,
            settings,
            environment: Default::default(),
            reason: "created".to_owned(),
            actor: actor.to_owned(),
            created_at: row.created_at,
            held: false,
        },
    )
}

impl ServiceRow {
    /// Wishes the service running, stopped or deleted from now on.
    pub fn set_run(&mut self, run: RunWish) {
        if self.run != run {
            self.run_since = now();
            self.served = false;
        }
        self.run = run;
        self.ever_started |= run == RunWish::Running;
    }
}
