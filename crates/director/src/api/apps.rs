//! Applications and their events.

use super::take::{Caller, IfMatch, PageQuery, Params, Payload, labels_match, page};
use super::views;
use crate::auth::Principal;
use crate::error::DirectorError;
use crate::life::Change;
use crate::shared::Shared;
use crate::store::apps::{self, AppRow, Which};
use crate::store::changes::Touched;
use crate::store::operations::OperationRow;
use crate::store::{events, machines, users};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::api::{
    Accepted, App, AppCreate, AppUpdate, AppUpgrade, CloudInfo, Event, Page, Restore,
};
use http::{HeaderName, StatusCode, header};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

pub(super) type Here = State<Arc<Shared>>;
type Tagged<T> = ([(HeaderName, String); 1], Json<T>);

/// A change of wishes under way, with the state that the caller thinks of.
pub(super) struct Changing<'a> {
    change: Change<'a>,
    precondition: IfMatch,
}

impl<'a> std::ops::Deref for Changing<'a> {
    type Target = Change<'a>;
    fn deref(&self) -> &Change<'a> {
        &self.change
    }
}

impl Changing<'_> {
    /// Refuses to change what changed since the caller looked.
    pub(super) fn check(&self, etag: &str) -> Result<(), DirectorError> {
        self.precondition.check(etag)
    }
}

/// Runs a change of wishes in a transaction and wakes the machine side.
pub(super) async fn change<T, F>(
    shared: &Arc<Shared>,
    caller: &Caller,
    clouds: Vec<CloudInfo>,
    work: F,
) -> Result<T, DirectorError>
where
    F: FnOnce(&Changing<'_>) -> Result<T, DirectorError> + Send + 'static,
    T: Send + 'static,
{
    let (here, actor) = (shared.clone(), caller.principal.user.name.to_string());
    let precondition = caller.precondition.clone();
    let touched = Touched::one(caller.application.clone());
    let value = shared
        .store
        .transaction_of(touched, move |tx| {
            let change = Change {
                tx,
                shared: &here,
                actor: &actor,
                clouds: &clouds,
            };
            work(&Changing {
                change,
                precondition,
            })
        })
        .await?;
    reached(KillPoint::ChangeCommitted);
    shared.machines.wake();
    Ok(value)
}

/// Like [`change`], for what ends in an operation. `grows`: ask first what the clouds have free.
pub(super) async fn accept<F>(
    shared: &Arc<Shared>,
    caller: &Caller,
    grows: bool,
    work: F,
) -> Result<(StatusCode, Json<Accepted>), DirectorError>
where
    F: FnOnce(&Changing<'_>) -> Result<Option<OperationRow>, DirectorError> + Send + 'static,
{
    let clouds = if grows {
        shared.machines.capacity().await
    } else {
        Vec::new()
    };
    let here = shared.clone();
    let accepted = change(shared, caller, clouds, move |change| {
        let row = work(change)?;
        views::accepted(change.tx, &here, row)
    })
    .await?;
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

pub(super) fn app_etag(row: &AppRow) -> Result<String, DirectorError> {
    views::etag(
        &row.generation.to_string(),
        &(&row.name, &row.description, &row.labels, row.egress),
    )
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AppsQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    limit: Option<u32>,
    /// `key=value` or `key`, several by comma.
    label: Option<String>,
    /// Another owner's, for operators; `*` for everybody's.
    owner: Option<String>,
    /// Those in the trash instead.
    #[serde(default)]
    #[param(required = false)]
    trash: bool,
}

/// Applications.
#[utoipa::path(get, path = "/v1/apps", operation_id = "list_apps", params(AppsQuery),
    responses((status = 200, description = "Applications.", body = Page<App>)))]
pub(super) async fn list_apps(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Params(query): Params<AppsQuery>,
) -> Result<Json<Page<App>>, DirectorError> {
    let paging = PageQuery {
        cursor: query.cursor,
        limit: query.limit,
    };
    let (mut after, limit) = (paging.position()?.unwrap_or_default(), paging.limit());
    let here = shared.clone();
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let owner = match query.owner.as_deref() {
            Some("*") if principal.is_operator() => None,
            Some(name) if principal.is_operator() => match users::find(tx, name)? {
                Some(user) => Some(user.id),
                None => return Err(DirectorError::not_found(format!("no user '{name}'"))),
            },
            // Others' applications do not exist for users.
            Some(name) if name != principal.user.name.as_str() && name != "*" => {
                return Ok(Page {
                    items: Vec::new(),
                    next: None,
                });
            }
            _ => Some(principal.user.id.clone()),
        };
        // Labels are matched here, so pages are filled from as many rows as it takes.
        let mut found: Vec<AppRow> = Vec::new();
        while found.len() <= limit {
            let which = if query.trash {
                Which::Trashed
            } else {
                Which::Present
            };
            let rows = apps::list(tx, owner.as_ref(), which, &after, limit as u64 + 1)?;
            let Some(last) = rows.last() else { break };
            after = last.id.to_string();
            let fits = |row: &AppRow| labels_match(query.label.as_deref(), &row.labels);
            found.extend(rows.into_iter().filter(fits));
        }
        page(
            found,
            limit,
            |row| row.id.to_string(),
            |row| views::app(tx, &here, row),
        )
    };
    Ok(Json(shared.store.read(look).await?))
}

/// Create an application.
#[utoipa::path(post, path = "/v1/apps", operation_id = "create_app", request_body = AppCreate,
    responses((status = 201, description = "The application.", body = App)))]
pub(super) async fn create_app(
    State(shared): Here,
    caller: Caller,
    Payload(wish): Payload<AppCreate>,
) -> Result<(StatusCode, Json<App>), DirectorError> {
    let owner = caller.principal.user.clone();
    let app = change(&shared, &caller, Vec::new(), move |change| {
        let row = change.create_app(&owner, wish)?;
        views::app(change.tx, change.shared, row)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(app)))
}

/// One application.
#[utoipa::path(get, path = "/v1/apps/{app}", operation_id = "show_app",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "The application.", body = App, headers(("ETag" = String, description = "For If-Match.")))))]
pub(super) async fn show_app(
    State(shared): Here,
    Extension(row): Extension<AppRow>,
) -> Result<Tagged<App>, DirectorError> {
    let tag = app_etag(&row)?;
    let here = shared.clone();
    let app = shared
        .store
        .read(move |tx| views::app(tx, &here, row))
        .await?;
    Ok(([(header::ETAG, tag)], Json(app)))
}

/// Rename or relabel an application, or change its way out.
#[utoipa::path(patch, path = "/v1/apps/{app}", operation_id = "update_app", request_body = AppUpdate,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "The application.", body = App)))]
pub(super) async fn update_app(
    State(shared): Here,
    caller: Caller,
    Extension(row): Extension<AppRow>,
    Payload(wish): Payload<AppUpdate>,
) -> Result<Json<App>, DirectorError> {
    let app = change(&shared, &caller, Vec::new(), move |change| {
        let row = fresh_app(change, &row)?;
        let row = change.update_app(row, wish)?;
        views::app(change.tx, change.shared, row)
    })
    .await?;
    Ok(Json(app))
}

/// An application as it is within the transaction that changes it, if it is still what the caller
/// thinks of.
pub(super) fn fresh_app(change: &Changing<'_>, row: &AppRow) -> Result<AppRow, DirectorError> {
    let row = present_app(change, row)?;
    change.check(&app_etag(&row)?)?;
    Ok(row)
}

/// An application as it is within the transaction that changes one of its services.
pub(super) fn present_app(change: &Change<'_>, row: &AppRow) -> Result<AppRow, DirectorError> {
    apps::get(change.tx, &row.id)?
        .ok_or_else(|| DirectorError::not_found(format!("no application '{}'", row.name)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// For good, rather than into the trash.
    #[serde(default)]
    #[param(required = false)]
    now: bool,
}

/// Stop an application and put it into the trash, or destroy it with everything in it.
#[utoipa::path(delete, path = "/v1/apps/{app}", operation_id = "delete_app",
    params(DeleteQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn delete_app(
    State(shared): Here,
    caller: Caller,
    Extension(row): Extension<AppRow>,
    Params(query): Params<DeleteQuery>,
) -> Result<(StatusCode, Json<Accepted>), DirectorError> {
    accept(&shared, &caller, false, move |change| {
        change.delete_app(fresh_app(change, &row)?, query.now)
    })
    .await
}

/// Bring an application back from the trash, stopped.
#[utoipa::path(post, path = "/v1/apps/{app}/restore", operation_id = "restore_app", request_body = Restore,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "The application.", body = App)))]
pub(super) async fn restore_app(
    State(shared): Here,
    caller: Caller,
    Extension(row): Extension<AppRow>,
    Payload(wish): Payload<Restore>,
) -> Result<Json<App>, DirectorError> {
    let app = change(&shared, &caller, Vec::new(), move |change| {
        let row = change.restore_app(fresh_app(change, &row)?, wish.name)?;
        views::app(change.tx, change.shared, row)
    })
    .await?;
    Ok(Json(app))
}

/// Start an application with all its services.
#[utoipa::path(post, path = "/v1/apps/{app}/start", operation_id = "start_app",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn start_app(
    State(shared): Here,
    caller: Caller,
    Extension(row): Extension<AppRow>,
) -> Result<(StatusCode, Json<Accepted>), DirectorError> {
    accept(&shared, &caller, true, move |change| {
        change.start_app(fresh_app(change, &row)?)
    })
    .await
}

/// Stop an application; configuration, code versions and history stay.
#[utoipa::path(post, path = "/v1/apps/{app}/stop", operation_id = "stop_app",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn stop_app(
    State(shared): Here,
    caller: Caller,
    Extension(row): Extension<AppRow>,
) -> Result<(StatusCode, Json<Accepted>), DirectorError> {
    accept(&shared, &caller, false, move |change| {
        change.stop_app(fresh_app(change, &row)?)
    })
    .await
}

/// Replace nodes that are made of an older image or program, a few at a time, without a request lost.
#[utoipa::path(post, path = "/v1/apps/{app}/upgrade", operation_id = "upgrade_app", request_body = AppUpgrade,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 202, description = "What to follow; nothing when no node is outdated.", body = Accepted)))]
pub(super) async fn upgrade_app(
    State(shared): Here,
    caller: Caller,
    Extension(row): Extension<AppRow>,
    Payload(wish): Payload<AppUpgrade>,
) -> Result<(StatusCode, Json<Accepted>), DirectorError> {
    let outdated = if wish.all {
        None
    } else {
        let app = row.id.clone();
        let nodes = shared
            .store
            .read(move |tx| machines::nodes_of_app(tx, &app))
            .await?;
        let clouds = nodes.into_iter().map(|node| node.cloud).collect();
        Some(shared.machines.outdated(&clouds).await?)
    };
    accept(&shared, &caller, true, move |change| {
        change.upgrade_app(fresh_app(change, &row)?, outdated.as_ref())
    })
    .await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Sequence number after which to begin.
    after: Option<u64>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    limit: Option<u32>,
}

/// What happened to an application, oldest first.
#[utoipa::path(get, path = "/v1/apps/{app}/events", operation_id = "list_events",
    params(EventsQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "Events.", body = Page<Event>)))]
pub(super) async fn list_events(
    State(shared): Here,
    Extension(row): Extension<AppRow>,
    Params(query): Params<EventsQuery>,
) -> Result<Json<Page<Event>>, DirectorError> {
    let paging = PageQuery {
        cursor: query.cursor,
        limit: query.limit,
    };
    let (after, limit) = (
        paging.number_position(query.after.unwrap_or(0))?,
        paging.limit(),
    );
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let rows = events::after(tx, &row.id, after, limit as u64 + 1)?;
        page(rows, limit, |row| row.sequence.to_string(), Ok)
    };
    Ok(Json(shared.store.read(look).await?))
}
