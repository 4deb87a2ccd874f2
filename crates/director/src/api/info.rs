//! The Director itself: version, health, what it offers, its audit rows.

use super::take::{PageQuery, Params, page, page_of};
use crate::auth::Principal;
use crate::error::DirectorError;
use crate::incarnation::{self, Incarnation};
use crate::own;
use crate::shared::Shared;
use crate::store::{housekeeping, quarantine, show_time};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_core::service_type::{CommandKind, ServiceType};
use conpaas_model::api::{
    AuditRow, CloudInfo, CommandInfo, DirectorInfo, Page, RoleInfo, ServiceTypeInfo,
};
use conpaas_model::instance::InstanceType;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

type Here = State<Arc<Shared>>;

fn about(shared: &Shared) -> DirectorInfo {
    DirectorInfo {
        version: conpaas_model::VERSION.to_owned(),
        installation: shared.installation.to_string(),
        started_at: show_time(shared.started_at),
        base_domain: shared.config.base_domain.clone(),
        edge: shared.config.edge.clone(),
        clouds: shared.clouds.clone(),
        incarnation: 0,
        restored_at: None,
        quarantined: 0,
    }
}

/// Which version answers. Says no more to the public.
#[utoipa::path(get, path = "/v1/version", operation_id = "version",
    responses((status = 200, description = "Version and installation.", body = DirectorInfo)))]
pub(super) async fn version(State(shared): Here) -> Json<DirectorInfo> {
    Json(DirectorInfo {
        started_at: String::new(),
        base_domain: String::new(),
        edge: None,
        clouds: Vec::new(),
        ..about(&shared)
    })
}

/// Whether the Director can serve: its store takes a write. The same as `/v1/healthz`, where
/// others' tools look for it.
#[utoipa::path(get, path = "/healthz", operation_id = "health",
    responses((status = 204, description = "It can.")))]
pub(super) async fn health(State(shared): Here) -> Result<http::StatusCode, DirectorError> {
    own::prove_store(&shared).await?;
    Ok(http::StatusCode::NO_CONTENT)
}

/// Whether the Director can serve: its store takes a write.
#[utoipa::path(get, path = "/v1/healthz", operation_id = "healthz",
    responses((status = 204, description = "It can.")))]
pub(super) async fn healthz(shared: Here) -> Result<http::StatusCode, DirectorError> {
    health(shared).await
}

/// The description of this API.
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "openapi_document",
    responses((status = 200, description = "An OpenAPI document.", body = Object)))]
pub(super) async fn openapi_document() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

/// The Director and its installation.
#[utoipa::path(get, path = "/v1/director", operation_id = "director_info",
    responses((status = 200, description = "All it says of itself.", body = DirectorInfo)))]
pub(super) async fn director_info(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
) -> Result<Json<DirectorInfo>, DirectorError> {
    let look = |tx: &rusqlite::Transaction<'_>| {
        let life = (Incarnation::of(tx)?, incarnation::restored_at(tx)?);
        Ok((life, quarantine::count(tx)?))
    };
    let ((incarnation, restored_at), quarantined) = shared.store.read(look).await?;
    Ok(Json(DirectorInfo {
        incarnation: incarnation.0,
        restored_at: restored_at.map(show_time),
        quarantined: if principal.is_operator() {
            quarantined
        } else {
            0
        },
        ..about(&shared)
    }))
}

fn describe(service_type: &dyn ServiceType) -> ServiceTypeInfo {
    ServiceTypeInfo {
        name: service_type.name().to_owned(),
        title: service_type.title().to_owned(),
        roles: service_type
            .roles()
            .iter()
            .map(|role| RoleInfo {
                name: role.name.to_owned(),
                title: role.title.to_owned(),
                uses: role.uses.iter().map(|used| (*used).to_owned()).collect(),
                min: role.min,
                max: role.max,
                default_count: role.default_count,
                exposed: role.exposed,
            })
            .collect(),
        commands: service_type
            .commands()
            .iter()
            .map(|command| CommandInfo {
                name: command.name.to_owned(),
                title: command.title.to_owned(),
                kind: match command.kind {
                    CommandKind::Query => "query".to_owned(),
                    CommandKind::Change => "change".to_owned(),
                },
                arguments: (command.arguments)(),
            })
            .collect(),
        settings_schema: service_type.settings_schema(),
        takes_code: service_type.takes_code(),
        takes_environment: !service_type.takes_environment().is_empty(),
    }
}

/// Types of services one can add.
#[utoipa::path(get, path = "/v1/service-types", operation_id = "list_service_types", params(PageQuery),
    responses((status = 200, description = "Types.", body = Page<ServiceTypeInfo>)))]
pub(super) async fn list_service_types(
    State(shared): Here,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<ServiceTypeInfo>>, DirectorError> {
    let offered = shared
        .registry
        .all()
        .filter(|entry| !entry.service_type.internal());
    let types = offered.map(|entry| describe(entry.service_type)).collect();
    Ok(Json(page_of(types, &query, |found: &ServiceTypeInfo| {
        found.name.clone()
    })?))
}

/// Sizes of machines.
#[utoipa::path(get, path = "/v1/instance-types", operation_id = "list_instance_types", params(PageQuery),
    responses((status = 200, description = "Sizes with their prices.", body = Page<InstanceType>)))]
pub(super) async fn list_instance_types(
    State(shared): Here,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<InstanceType>>, DirectorError> {
    // In the order in which the operator wrote them down: from small to large.
    let types = shared.config.instance_types.iter().enumerate().collect();
    let Page { items, next } = page_of(types, &query, |(place, _)| format!("{place:06}"))?;
    let items = items.into_iter().map(|(_, found)| found.clone()).collect();
    Ok(Json(Page { items, next }))
}

/// Where machines come from. How many there are is for operators.
#[utoipa::path(get, path = "/v1/clouds", operation_id = "list_clouds", params(PageQuery),
    responses((status = 200, description = "Clouds.", body = Page<CloudInfo>)))]
pub(super) async fn list_clouds(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<CloudInfo>>, DirectorError> {
    let mut clouds = shared.machines.capacity().await;
    if !principal.is_operator() {
        clouds.iter_mut().for_each(|cloud| cloud.machines = 0);
    }
    Ok(Json(page_of(clouds, &query, |cloud| cloud.name.clone())?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    limit: Option<u32>,
    /// Only what this user did.
    actor: Option<String>,
    /// Only this operation of the API, for instance `delete_app`.
    action: Option<String>,
}

/// Who changed what, newest first.
#[utoipa::path(get, path = "/v1/audit", operation_id = "list_audit", params(AuditQuery),
    responses((status = 200, description = "Audit rows.", body = Page<AuditRow>)))]
pub(super) async fn list_audit(
    State(shared): Here,
    Params(query): Params<AuditQuery>,
) -> Result<Json<Page<AuditRow>>, DirectorError> {
    let paging = PageQuery {
        cursor: query.cursor,
        limit: query.limit,
    };
    let (before, limit) = (paging.number_position(u64::MAX)?, paging.limit());
    let (actor, action) = (query.actor, query.action);
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let rows = housekeeping::list_audit(
            tx,
            (actor.as_deref(), action.as_deref()),
            before,
            limit as u64 + 1,
        )?;
        page(rows, limit, |row| row.id.to_string(), Ok)
    };
    Ok(Json(shared.store.read(look).await?))
}
