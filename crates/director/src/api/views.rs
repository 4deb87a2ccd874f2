//! Records as the API shows them.

use crate::error::DirectorError;
use crate::hosts;
use crate::operations as outcomes;
use crate::shared::Shared;
use crate::state::{Part, app_state, app_verbs, service_verbs};
use crate::store::apps::AppRow;
use crate::store::codes::CodeRow;
use crate::store::domains;
use crate::store::machines::{self, NodeRow};
use crate::store::operations::{self, OperationRow};
use crate::store::services::{self, ReleaseRow, ServiceRow};
use crate::store::users::{TokenRow, UserRow};
use crate::store::{millis, show_time};
use conpaas_model::api::{
    Accepted, App, Code, Node, Operation, Outcome, ReleaseInfo, Service, Token, User,
};
use conpaas_model::spec::{RoleWish, RunWish, Settings};
use conpaas_model::status::{NodeState, ServiceState};
use rusqlite::Connection;

pub(super) fn user(tx: &Connection, row: UserRow) -> Result<User, DirectorError> {
    let nodes = machines::count_of_owner(tx, &row.id)?;
    Ok(User {
        id: row.id,
        name: row.name,
        rank: row.rank,
        node_quota: row.node_quota,
        nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
        created_at: show_time(row.created_at),
    })
}

pub(super) fn token(row: TokenRow) -> Token {
    Token {
        id: row.id,
        label: row.label,
        created_at: show_time(row.created_at),
        expires_at: show_time(row.expires_at),
        last_used_at: row.last_used_at.map(show_time),
    }
}

/// Whether the edge leads people to a service of this row's type.
fn exposed(shared: &Shared, row: &ServiceRow) -> bool {
    let found = shared.registry.get(&row.service_type);
    found.is_some_and(|entry| entry.service_type.roles().iter().any(|role| role.exposed))
}

/// The exposed service that has the application's own host name: the oldest one.
fn first_exposed(shared: &Shared, rows: &[ServiceRow]) -> Option<conpaas_model::ids::ServiceId> {
    let mut living = rows.iter().filter(|row| row.run != RunWish::Deleted);
    living
        .find(|row| exposed(shared, row))
        .map(|row| row.id.clone())
}

pub(super) fn service(
    tx: &Connection,
    shared: &Shared,
    app: &AppRow,
    row: ServiceRow,
) -> Result<Service, DirectorError> {
    let siblings = services::of_app(tx, &app.id)?;
    let shown = outcomes::shown(tx, &row)?;
    let (port, https) = (shared.config.edge_port, shared.config.edge_https_port);
    let (base, owner) = (&shared.config.base_domain, &app.owner_name);
    let url = exposed(shared, &row).then(|| {
        let first = first_exposed(shared, &siblings).as_ref() == Some(&row.id);
        let host = hosts::host(&app.name, owner, &row.name, first, base);
        hosts::url(&host, port, https)
    });
    let preview_url = row.preview.map(|_| {
        let host = hosts::preview_host(&app.name, owner, &row.name, base);
        hosts::url(&host, port, https)
    });
    let domains = domains::of_service(tx, &row.id)?;
    let settings = active_settings(tx, &row)?;
    let warnings = warnings(shared, &row, &settings);
    let operation = operations::newest_of(tx, &row.app, &row.id)?
        .filter(|found| found.outcome == Outcome::Running)
        .map(|found| found.id);
    let allowed = if row.internal {
        Vec::new()
    } else {
        service_verbs(shown.state, row.run)
    };
    let status = row.status.unwrap_or_default();
    // A stopped service's last words tell nothing any more.
    let current = row.run == RunWish::Running || shown.state == ServiceState::Epilogue;
    Ok(Service {
        id: row.id,
        name: row.name,
        application: app.name.clone(),
        service_type: row.service_type,
        description: row.description,
        labels: row.labels,
        state: shown.state,
        reason: shown.reason,
        roles: row.roles,
        generation: row.generation,
        reached: row.reached,
        active_release: row.active,
        serving_release: status.serving.filter(|_| current),
        preview_release: row.preview,
        settings,
        url,
        domains: domains.into_iter().map(|domain| domain.name).collect(),
        preview_url,
        warnings,
        waiting: if current { status.waiting } else { Vec::new() },
        operation,
        nodes: if current { status.nodes } else { Vec::new() },
        own_manager: row.own_manager,
        created_at: show_time(row.created_at),
        allowed,
    })
}

/// The services of an application that people have.
pub(super) fn services_of(
    tx: &Connection,
    shared: &Shared,
    app: &AppRow,
) -> Result<Vec<Service>, DirectorError> {
    let rows = services::of_app(tx, &app.id)?;
    rows.into_iter()
        .filter(|row| !row.internal)
        .map(|row| service(tx, shared, app, row))
        .collect()
}

pub(super) fn app(tx: &Connection, shared: &Shared, row: AppRow) -> Result<App, DirectorError> {
    let rows = services::of_app(tx, &row.id)?;
    let mut parts = Vec::new();
    for service in &rows {
        parts.push(Part {
            name: service.name.to_string(),
            internal: service.internal,
            shown: outcomes::shown(tx, service)?,
        });
    }
    let shown = app_state(row.run, row.ever_started, &parts);
    let people = || rows.iter().filter(|service| !service.internal);
    let all_running = people().all(|service| service.run == RunWish::Running);
    let services = services_of(tx, shared, &row)?;
    let credits = machines::nodes_of_app(tx, &row.id)?
        .iter()
        .filter(|node| matches!(node.state, NodeState::Booting | NodeState::Up))
        .filter_map(|node| shared.config.instance_type(&node.instance_type))
        .map(|size| size.credits_per_hour)
        .sum();
    Ok(App {
        allowed: match row.trashed_at {
            Some(_) if row.run != RunWish::Deleted => {
                ["restore", "delete"].map(str::to_owned).to_vec()
            }
            _ => app_verbs(row.run, &shown, all_running),
        },
        trashed_at: row.trashed_at.map(show_time),
        destroyed_at: row.trashed_at.map(|at| {
            let rest = millis(shared.config.trash);
            show_time(at.saturating_add(rest))
        }),
        state: shown.state,
        reason: shown.reason,
        urls: services
            .iter()
            .filter_map(|service| service.url.clone())
            .collect(),
        services,
        credits_per_hour: credits,
        created_at: show_time(row.created_at),
        generation: row.generation,
        id: row.id,
        name: row.name,
        owner: row.owner_name,
        description: row.description,
        labels: row.labels,
        egress: row.egress.within(shared.config.egress),
    })
}

pub(super) fn operation(tx: &Connection, row: OperationRow) -> Result<Operation, DirectorError> {
    let running = row.outcome == Outcome::Running;
    let mut waiting = Vec::new();
    if running {
        for target in &row.targets {
            let status = services::get(tx, &target.service)?.and_then(|row| row.status);
            if let Some(status) = status.filter(|found| found.generation >= target.generation) {
                waiting.extend(status.waiting);
            }
        }
    }
    Ok(Operation {
        id: row.id,
        application: row.app_name,
        service: row.service_name,
        targets: row
            .targets
            .into_iter()
            .map(|target| (target.name.to_string(), target.generation))
            .collect(),
        actor: row.actor,
        outcome: row.outcome,
        reason: row.reason,
        steps: row.steps,
        waiting,
        created_at: show_time(row.created_at),
        deadline: show_time(row.deadline),
        ended_at: row.ended_at.map(show_time),
        cancellable: running && row.kind != outcomes::DELETE,
        kind: row.kind,
    })
}

pub(super) fn accepted(
    tx: &Connection,
    shared: &Shared,
    row: Option<OperationRow>,
) -> Result<Accepted, DirectorError> {
    let mut surprises = Vec::new();
    if let Some(row) = &row
        && let Some(id) = &row.service
        && let Some(service) = services::get(tx, id)?
    {
        surprises = warnings(shared, &service, &active_settings(tx, &service)?);
        surprises.extend(held_no_more(row, &service));
    }
    Ok(Accepted {
        operation: row.map(|row| operation(tx, row)).transpose()?,
        warnings: surprises,
    })
}

/// What a change did to the release that was held, when it was about something else.
fn held_no_more(row: &OperationRow, service: &ServiceRow) -> Option<String> {
    let before = row
        .previous
        .services
        .iter()
        .find(|p| p.service == service.id)?;
    let held = before.preview?;
    let gone = service.preview.is_none() && service.active != held && row.kind != "discard";
    gone.then(|| {
        format!(
            "release {held} is held for a preview no more: it was made of what was active before; \
             hold it again with: conpaas service rollback {}/{} {held} --preview",
            row.app_name, service.name
        )
    })
}

fn active_settings(tx: &Connection, row: &ServiceRow) -> Result<Settings, DirectorError> {
    let release = services::get_release(tx, &row.id, row.active)?;
    Ok(release.map(|release| release.settings).unwrap_or_default())
}

fn warnings(shared: &Shared, row: &ServiceRow, settings: &Settings) -> Vec<String> {
    let Some(entry) = shared.registry.get(&row.service_type) else {
        return Vec::new();
    };
    let wanted = |wish: &RoleWish| wish.pools.iter().map(|pool| pool.count).sum();
    let counts = row
        .roles
        .iter()
        .map(|(role, wish)| (role.clone(), wanted(wish)));
    entry.service_type.warnings(settings, &counts.collect())
}

pub(super) fn release(row: ReleaseRow, service: &ServiceRow) -> ReleaseInfo {
    ReleaseInfo {
        active: row.number == service.active,
        preview: Some(row.number) == service.preview,
        never_active: row.held,
        number: row.number,
        code: row.code,
        settings: row.settings,
        environment: row.environment,
        created_at: show_time(row.created_at),
        actor: row.actor,
        reason: row.reason,
    }
}

pub(super) fn code(tx: &Connection, row: CodeRow) -> Result<Code, DirectorError> {
    let service = services::get(tx, &row.service)?;
    let active = match service {
        Some(service) => services::get_release(tx, &service.id, service.active)?
            .is_some_and(|release| release.code.as_ref() == Some(&row.id)),
        None => false,
    };
    Ok(Code {
        id: row.id,
        filename: row.filename,
        description: row.description,
        size: row.original_size,
        files: row.files,
        sha256: row.original_sha256,
        active,
        created_at: show_time(row.created_at),
        actor: row.actor,
    })
}

/// A node; what its cloud tells of it is asked of the machine side by the caller.
pub(super) fn node(row: NodeRow, service: Option<&ServiceRow>) -> Node {
    let status = service.and_then(|service| service.status.as_ref());
    let summary = status.and_then(|status| {
        status
            .nodes
            .iter()
            .find(|summary| summary.number == row.number)
            .cloned()
    });
    Node {
        name: format!("{}-{}", row.service_name, row.number),
        number: row.number,
        service: row.service_name,
        state: row.state,
        trouble: row.trouble,
        cloud: row.cloud,
        instance_type: row.instance_type,
        address: row.address,
        machine: row.machine.map(|machine| machine.to_string()),
        manager: row.internal,
        summary,
        limits: None,
        image: None,
        outdated: None,
        created_at: show_time(row.created_at),
    }
}

/// The entity tag of something with a generation; texts that change without one are hashed in.
pub(super) fn etag(
    generation: &str,
    texts: &impl serde::Serialize,
) -> Result<String, DirectorError> {
    let hash = crate::auth::sha256_hex(serde_json::to_vec(texts)?);
    Ok(format!(
        "\"{generation}-{}\"",
        hash.get(..8).unwrap_or(&hash)
    ))
}
