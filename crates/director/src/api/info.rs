//! The Director itself: version, health, what it offers, its audit rows.

use super::take::{PageQuery, Params, page, whole};
use crate::auth::Principal;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::{housekeeping, show_time};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_core::service_type::{CommandKind, ServiceType};
use conpaas_model::api::{
    AuditRow, CloudInfo, CommandInfo, DirectorInfo, Page, RoleInfo, ServiceTypeInfo,
};
use conpaas_model::instance::InstanceType;
use std::sync::Arc;

type Here = State<Arc<Shared>>;

fn about(shared: &Shared) -> DirectorInfo {
    DirectorInfo {
        version: conpaas_model::VERSION.to_owned(),
        installation: shared.installation.to_string(),
        started_at: show_time(shared.started_at),
        base_domain: shared.config.base_domain.clone(),
        edge: shared.config.edge.clone(),
        clouds: shared.clouds.clone(),
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

/// Whether the Director can serve.
#[utoipa::path(get, path = "/v1/healthz", operation_id = "healthz",
    responses((status = 204, description = "It can.")))]
pub(super) async fn healthz(State(shared): Here) -> Result<http::StatusCode, DirectorError> {
    shared
        .store
        .read(|tx| Ok(tx.query_row("SELECT 1", [], |_| Ok(()))?))
        .await?;
    Ok(http::StatusCode::NO_CONTENT)
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
pub(super) async fn director_info(State(shared): Here) -> Json<DirectorInfo> {
    Json(about(&shared))
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
    }
}

/// Types of services one can add.
#[utoipa::path(get, path = "/v1/service-types", operation_id = "list_service_types",
    responses((status = 200, description = "Types.", body = Page<ServiceTypeInfo>)))]
pub(super) async fn list_service_types(State(shared): Here) -> Json<Page<ServiceTypeInfo>> {
    let offered = shared
        .registry
        .all()
        .filter(|entry| !entry.service_type.internal());
    Json(whole(
        offered.map(|entry| describe(entry.service_type)).collect(),
    ))
}

/// Sizes of machines.
#[utoipa::path(get, path = "/v1/instance-types", operation_id = "list_instance_types",
    responses((status = 200, description = "Sizes with their prices.", body = Page<InstanceType>)))]
pub(super) async fn list_instance_types(State(shared): Here) -> Json<Page<InstanceType>> {
    Json(whole(shared.config.instance_types.clone()))
}

/// Where machines come from. How many there are is for operators.
#[utoipa::path(get, path = "/v1/clouds", operation_id = "list_clouds",
    responses((status = 200, description = "Clouds.", body = Page<CloudInfo>)))]
pub(super) async fn list_clouds(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
) -> Json<Page<CloudInfo>> {
    let mut clouds = shared.machines.capacity().await;
    if !principal.is_operator() {
        clouds.iter_mut().for_each(|cloud| cloud.machines = 0);
    }
    Json(whole(clouds))
}

/// Who changed what, newest first.
#[utoipa::path(get, path = "/v1/audit", operation_id = "list_audit", params(PageQuery),
    responses((status = 200, description = "Audit rows.", body = Page<AuditRow>)))]
pub(super) async fn list_audit(
    State(shared): Here,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<AuditRow>>, DirectorError> {
    let (before, limit) = (query.number_position(u64::MAX)?, query.limit());
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let rows = housekeeping::list_audit(tx, before, limit as u64 + 1)?;
        page(rows, limit, |row| row.id.to_string(), Ok)
    };
    Ok(Json(shared.store.read(look).await?))
}
