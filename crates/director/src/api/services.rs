//! Services: life cycle, counts, settings, releases, commands.

use super::apps::{Changing, Here, accept, change, fresh_app, present_app};
use super::take::{Caller, PageQuery, Params, Payload, Segments, labels_match, page, page_of};
use super::views;
use crate::error::DirectorError;
use crate::life::Audience;
use crate::settings;
use crate::store::apps::AppRow;
use crate::store::services::{self, ServiceRow};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{
    Accepted, CommandAnswer, CommandCall, Page, ReleaseInfo, Rename, Rollback, Scale, Service,
    ServiceCreate, SettingsChange,
};
use conpaas_model::spec::RunWish;
use http::{HeaderName, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

type Changed = Result<(StatusCode, Json<Accepted>), DirectorError>;
pub(super) type App = Extension<AppRow>;
pub(super) type Row = Extension<ServiceRow>;

pub(super) fn etag(row: &ServiceRow) -> Result<String, DirectorError> {
    views::etag(
        &row.generation.to_string(),
        &(&row.name, &row.description, &row.labels),
    )
}

/// A service and its application as they are within the transaction that changes the service, if
/// it is still what the caller thinks of.
pub(super) fn fresh(
    change: &Changing<'_>,
    app: &AppRow,
    row: &ServiceRow,
) -> Result<(AppRow, ServiceRow), DirectorError> {
    let app = present_app(change, app)?;
    let found = services::get(change.tx, &row.id)?;
    let found =
        found.ok_or_else(|| DirectorError::not_found(format!("no service '{}'", row.name)))?;
    change.check(&etag(&found)?)?;
    Ok((app, found))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ServicesQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    limit: Option<u32>,
    /// `key=value` or `key`, several by comma.
    label: Option<String>,
    /// Only of this service type.
    #[serde(rename = "type")]
    service_type: Option<String>,
}

/// The services of an application, by name.
#[utoipa::path(get, path = "/v1/apps/{app}/services", operation_id = "list_services",
    params(ServicesQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "Services.", body = Page<Service>)))]
pub(super) async fn list_services(
    State(shared): Here,
    Extension(app): App,
    Params(query): Params<ServicesQuery>,
) -> Result<Json<Page<Service>>, DirectorError> {
    let paging = PageQuery {
        cursor: query.cursor,
        limit: query.limit,
    };
    let here = shared.clone();
    let look = move |tx: &rusqlite::Transaction<'_>| views::services_of(tx, &here, &app);
    let mut found = shared.store.read(look).await?;
    found.retain(|service| {
        let wanted = query.service_type.as_ref();
        labels_match(query.label.as_deref(), &service.labels)
            && wanted.is_none_or(|wanted| *wanted == service.service_type)
    });
    Ok(Json(page_of(found, &paging, |service| {
        service.name.to_string()
    })?))
}

/// Add a service to an application.
#[utoipa::path(post, path = "/v1/apps/{app}/services", operation_id = "create_service",
    request_body = ServiceCreate,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 201, description = "The service.", body = Service)))]
pub(super) async fn create_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Payload(wish): Payload<ServiceCreate>,
) -> Result<(StatusCode, Json<Service>), DirectorError> {
    let clouds = if wish.start {
        shared.machines.capacity().await
    } else {
        Vec::new()
    };
    let service = change(&shared, &caller, clouds, move |change| {
        let app = fresh_app(change, &app)?;
        let row = change.create_service(app.clone(), wish)?;
        views::service(change.tx, change.shared, &app, row)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(service)))
}

/// One service.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}", operation_id = "show_service",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "The service.", body = Service, headers(("ETag" = String, description = "For If-Match.")))))]
pub(super) async fn show_service(
    State(shared): Here,
    Extension(app): App,
    Extension(row): Row,
) -> Result<([(HeaderName, String); 1], Json<Service>), DirectorError> {
    let tag = etag(&row)?;
    let here = shared.clone();
    let service = shared
        .store
        .read(move |tx| views::service(tx, &here, &app, row))
        .await?;
    Ok(([(header::ETAG, tag)], Json(service)))
}

/// Rename or relabel a service.
#[utoipa::path(patch, path = "/v1/apps/{app}/services/{service}", operation_id = "update_service",
    request_body = Rename,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "The service.", body = Service)))]
pub(super) async fn update_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Payload(wish): Payload<Rename>,
) -> Result<Json<Service>, DirectorError> {
    let service = change(&shared, &caller, Vec::new(), move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        let row = change.rename_service(&app, row, wish)?;
        views::service(change.tx, change.shared, &app, row)
    })
    .await?;
    Ok(Json(service))
}

/// Destroy a service with its code versions and history.
#[utoipa::path(delete, path = "/v1/apps/{app}/services/{service}", operation_id = "delete_service",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn delete_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.delete_service(app, &row)
    })
    .await
}

/// Start a service.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/start", operation_id = "start_service",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn start_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
) -> Changed {
    accept(&shared, &caller, true, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.start_service(app, &row)
    })
    .await
}

/// Stop a service; configuration, code versions and history stay.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/stop", operation_id = "stop_service",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn stop_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.stop_service(app, &row)
    })
    .await
}

/// Change how many nodes roles have.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/scale", operation_id = "scale_service",
    request_body = Scale,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn scale_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Payload(wish): Payload<Scale>,
) -> Changed {
    accept(&shared, &caller, true, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.scale_service(app, &row, &wish)
    })
    .await
}

/// Change settings: makes a release.
#[utoipa::path(patch, path = "/v1/apps/{app}/services/{service}/settings", operation_id = "set_settings",
    request_body = SettingsChange,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn set_settings(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Payload(wish): Payload<SettingsChange>,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.set_settings(app, &row, &wish.settings, Audience::preview(wish.preview))
    })
    .await
}

/// Releases, newest first.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/releases", operation_id = "list_releases",
    params(PageQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Releases.", body = Page<ReleaseInfo>)))]
pub(super) async fn list_releases(
    State(shared): Here,
    Extension(row): Row,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<ReleaseInfo>>, DirectorError> {
    let (before, limit) = (query.number_position(u64::MAX)?, query.limit());
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let rows = services::list_releases(tx, &row.id, before, limit as u64 + 1)?;
        page(
            rows,
            limit,
            |row| row.number.0.to_string(),
            |found| Ok(views::release(found, &row)),
        )
    };
    Ok(Json(shared.store.read(look).await?))
}

/// Take an older release's code, settings, environment and secrets again, as a new release.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/rollback", operation_id = "rollback_service",
    request_body = Rollback,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn rollback_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Payload(wish): Payload<Rollback>,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.rollback(app, &row, wish.release, Audience::preview(wish.preview))
    })
    .await
}

/// Lead everybody to the release that is held for a preview.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/promote", operation_id = "promote_service",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn promote_service(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.promote(app, &row)
    })
    .await
}

/// Hold no release for a preview any more.
#[utoipa::path(delete, path = "/v1/apps/{app}/services/{service}/preview", operation_id = "discard_preview",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn discard_preview(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.discard_preview(app, &row)
    })
    .await
}

fn must_run(app: &AppRow, row: &ServiceRow) -> Result<(), DirectorError> {
    if row.run == RunWish::Running {
        return Ok(());
    }
    Err(DirectorError::conflict(
        "not_running",
        format!("{}/{} is not running", app.name, row.name),
    )
    .hint(format!(
        "start it: conpaas service start {}/{}",
        app.name, row.name
    )))
}

/// Run a command of the service's type.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/commands/{command}", operation_id = "call_command",
    request_body = CommandCall,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("command" = String, Path, description = "As the service type declares it.")),
    responses((status = 200, description = "Answers by node name.", body = CommandAnswer)))]
pub(super) async fn call_command(
    State(shared): Here,
    Extension(app): App,
    Extension(row): Row,
    Segments(params): Segments,
    Payload(wish): Payload<CommandCall>,
) -> Result<Json<CommandAnswer>, DirectorError> {
    let service_type = shared.service_type(&row.service_type)?;
    let name = params
        .get("command")
        .map(String::as_str)
        .unwrap_or_default();
    let command = service_type
        .commands()
        .iter()
        .find(|command| command.name == name);
    let command = command.ok_or_else(|| {
        let names: Vec<&str> = service_type
            .commands()
            .iter()
            .map(|found| found.name)
            .collect();
        let there_are = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        DirectorError::not_found(format!(
            "a {} service has no command '{name}'; there are: {there_are}",
            service_type.name()
        ))
    })?;
    let arguments = match wish.arguments {
        Value::Null => json!({}),
        given => given,
    };
    settings::check("argument", &(command.arguments)(), &arguments)?;
    must_run(&app, &row)?;
    let result = shared
        .machines
        .command(&row.id, command.name, arguments)
        .await?;
    Ok(Json(CommandAnswer { result }))
}
