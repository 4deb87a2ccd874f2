//! Host names that services have claimed.

use super::apps::{Here, change};
use super::services::{App, Row, fresh};
use super::take::{Caller, PageQuery, Params, Payload, Segments, page_of};
use crate::error::DirectorError;
use crate::store::domains::{self, DomainRow};
use crate::store::show_time;
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{Domain, DomainAdd, Page};
use http::StatusCode;

fn shown(row: DomainRow) -> Domain {
    Domain {
        name: row.name,
        created_at: show_time(row.created_at),
        actor: row.actor,
    }
}

/// Host names that lead to a service beside its own, by name.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/domains", operation_id = "list_domains",
    params(PageQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Host names.", body = Page<Domain>)))]
pub(super) async fn list_domains(
    State(shared): Here,
    Extension(row): Row,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<Domain>>, DirectorError> {
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let found = domains::of_service(tx, &row.id)?;
        let all = found.into_iter().map(shown).collect();
        page_of(all, &query, |domain: &Domain| domain.name.clone())
    };
    Ok(Json(shared.store.read(look).await?))
}

/// Claim a host name: whoever asks the edge for it is led to this service.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/domains", operation_id = "add_domain",
    request_body = DomainAdd,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 201, description = "The host name.", body = Domain)))]
pub(super) async fn add_domain(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Payload(wish): Payload<DomainAdd>,
) -> Result<(StatusCode, Json<Domain>), DirectorError> {
    let domain = change(&shared, &caller, Vec::new(), move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.add_domain(&app, &row, &wish.name)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(shown(domain))))
}

/// Give a host name up.
#[utoipa::path(delete, path = "/v1/apps/{app}/services/{service}/domains/{domain}", operation_id = "remove_domain",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("domain" = String, Path, description = "The host name.")),
    responses((status = 204, description = "Given up.")))]
pub(super) async fn remove_domain(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Segments(params): Segments,
) -> Result<StatusCode, DirectorError> {
    let name = params.get("domain").cloned().unwrap_or_default();
    change(&shared, &caller, Vec::new(), move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.remove_domain(&app, &row, &name)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
