//! Operations: list, show, cancel.

use super::apps::{Here, change};
use super::gate::find_app;
use super::take::{Caller, PageQuery, Params, page};
use super::views;
use crate::auth::Principal;
use crate::error::DirectorError;
use crate::store::operations::{self, Filter, OperationRow};
use crate::store::{apps, services};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{Operation, Outcome, Page};
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OperationsQuery {
    /// Only of this application (NAME, OWNER:NAME or id).
    app: Option<String>,
    /// Only of this service of that application.
    service: Option<String>,
    /// Only with this outcome, for instance `running`.
    outcome: Option<Outcome>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    limit: Option<u32>,
}

/// Operations, newest first.
#[utoipa::path(get, path = "/v1/operations", operation_id = "list_operations", params(OperationsQuery),
    responses((status = 200, description = "Operations.", body = Page<Operation>)))]
pub(super) async fn list_operations(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Params(query): Params<OperationsQuery>,
) -> Result<Json<Page<Operation>>, DirectorError> {
    let paging = PageQuery {
        cursor: query.cursor,
        limit: query.limit,
    };
    let ((at, id), limit) = (paging.time_position()?, paging.limit());
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let mut filter = Filter {
            outcome: query.outcome.map(crate::store::as_word).unwrap_or_default(),
            ..Filter::default()
        };
        if !principal.is_operator() {
            filter.owner = principal.user.id.to_string();
        }
        if let Some(text) = &query.app {
            let app = find_app(tx, &principal, text)?;
            if let Some(text) = &query.service {
                let found = services::find(tx, &app.id, text)?;
                let found = found
                    .ok_or_else(|| DirectorError::not_found(format!("no service '{text}'")))?;
                filter.service = found.id.to_string();
            }
            filter.app = app.id.to_string();
        } else if query.service.is_some() {
            return Err(DirectorError::invalid(
                "invalid_query",
                "a service is looked for within an application: say which",
            ));
        }
        let rows = operations::list(tx, &filter, (at, &id), limit as u64 + 1)?;
        page(
            rows,
            limit,
            |row| format!("{} {}", row.created_at, row.id),
            |row| views::operation(tx, row),
        )
    };
    Ok(Json(shared.store.read(look).await?))
}

/// One operation.
#[utoipa::path(get, path = "/v1/operations/{operation}", operation_id = "show_operation",
    params(("operation" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The operation.", body = Operation)))]
pub(super) async fn show_operation(
    State(shared): Here,
    Extension(row): Extension<OperationRow>,
) -> Result<Json<Operation>, DirectorError> {
    Ok(Json(
        shared
            .store
            .read(move |tx| views::operation(tx, row))
            .await?,
    ))
}

/// End an operation and wish what was wanted before.
#[utoipa::path(post, path = "/v1/operations/{operation}/cancel", operation_id = "cancel_operation",
    params(("operation" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The operation.", body = Operation)))]
pub(super) async fn cancel_operation(
    State(shared): Here,
    caller: Caller,
    Extension(row): Extension<OperationRow>,
) -> Result<Json<Operation>, DirectorError> {
    let clouds = shared.machines.capacity().await;
    let operation = change(&shared, &caller, clouds, move |change| {
        let gone = || DirectorError::not_found(format!("no operation '{}'", row.id));
        let fresh = operations::get(change.tx, row.id.as_str())?.ok_or_else(gone)?;
        let app = apps::get(change.tx, &fresh.app)?
            .ok_or_else(|| DirectorError::conflict("already_ended", "its application is gone"))?;
        let ended = change.cancel(app, &fresh)?.ok_or_else(gone)?;
        views::operation(change.tx, ended)
    })
    .await?;
    Ok(Json(operation))
}
