//! Environment and secrets of services. Values of secrets go in here and never come out again.

use super::apps::{Here, accept};
use super::services::{App, Row, etag, fresh};
use super::take::{Caller, PageQuery, Params, Payload, Segments, page_of};
use crate::error::DirectorError;
use crate::store::services::{self, ServiceRow};
use crate::store::{secrets, show_time};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{Accepted, EnvironmentChange, Page, SecretChange, SecretInfo, Variable};
use conpaas_model::environment::Environment;
use http::{HeaderName, StatusCode, header};
use rusqlite::Connection;

type Changed = Result<(StatusCode, Json<Accepted>), DirectorError>;
type Tagged<T> = ([(HeaderName, String); 1], Json<T>);

fn environment(tx: &Connection, row: &ServiceRow) -> Result<Environment, DirectorError> {
    Ok(services::get_release(tx, &row.id, row.active)?
        .map(|release| release.environment)
        .unwrap_or_default())
}

/// Variables of the environment, by name.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/env", operation_id = "list_env",
    params(PageQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Variables.", body = Page<Variable>, headers(("ETag" = String, description = "For If-Match.")))))]
pub(super) async fn list_env(
    State(shared): Here,
    Extension(row): Row,
    Params(query): Params<PageQuery>,
) -> Result<Tagged<Page<Variable>>, DirectorError> {
    let tag = etag(&row)?;
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let variables = environment(tx, &row)?.variables.into_iter();
        let all = variables.map(|(name, value)| Variable { name, value });
        page_of(all.collect(), &query, |variable| variable.name.clone())
    };
    let found = shared.store.read(look).await?;
    Ok(([(header::ETAG, tag)], Json(found)))
}

/// Set and unset variables: makes a release.
#[utoipa::path(patch, path = "/v1/apps/{app}/services/{service}/env", operation_id = "set_env",
    request_body = EnvironmentChange,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn set_env(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Payload(wish): Payload<EnvironmentChange>,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.set_environment(app, &row, &wish.variables)
    })
    .await
}

/// Secrets by name: which version there is, since when, by whom. Their values are not told.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/secrets", operation_id = "list_secrets",
    params(PageQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Secrets, without values.", body = Page<SecretInfo>, headers(("ETag" = String, description = "For If-Match.")))))]
pub(super) async fn list_secrets(
    State(shared): Here,
    Extension(row): Row,
    Params(query): Params<PageQuery>,
) -> Result<Tagged<Page<SecretInfo>>, DirectorError> {
    let tag = etag(&row)?;
    let vault = shared.vault.clone();
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let mut all = Vec::new();
        for (name, version) in environment(tx, &row)?.secrets {
            let found = secrets::get(tx, &row.id, &name, version)?;
            all.push(SecretInfo {
                readable: found
                    .as_ref()
                    .is_some_and(|found| vault.is_ours(&found.sealed)),
                created_at: found
                    .as_ref()
                    .map(|found| show_time(found.created_at))
                    .unwrap_or_default(),
                actor: found.map(|found| found.actor).unwrap_or_default(),
                name,
                version,
            });
        }
        page_of(all, &query, |secret| secret.name.clone())
    };
    let found = shared.store.read(look).await?;
    Ok(([(header::ETAG, tag)], Json(found)))
}

fn secret_of(params: &Segments) -> String {
    params.0.get("secret").cloned().unwrap_or_default()
}

/// Set a secret: its value becomes a new version, and a release names it.
#[utoipa::path(put, path = "/v1/apps/{app}/services/{service}/secrets/{secret}", operation_id = "set_secret",
    request_body = SecretChange,
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("secret" = String, Path, description = "Its name.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn set_secret(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    params: Segments,
    wish: Result<Payload<SecretChange>, DirectorError>,
) -> Changed {
    let value = match wish {
        Ok(Payload(wish)) => wish.value,
        Err(error @ DirectorError::TooLarge(_)) => return Err(error),
        // What is wrong with a body is told by quoting it, and this one is not to be quoted.
        Err(_) => {
            return Err(DirectorError::invalid(
                "invalid_body",
                "the body of this request is {\"value\": TEXT}",
            ));
        }
    };
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.set_secret(app, &row, &secret_of(&params), &value)
    })
    .await
}

/// Unset a secret: a release without it. Going back to an older release takes it back, too.
#[utoipa::path(delete, path = "/v1/apps/{app}/services/{service}/secrets/{secret}", operation_id = "unset_secret",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("secret" = String, Path, description = "Its name.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn unset_secret(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    params: Segments,
) -> Changed {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.unset_secret(app, &row, &secret_of(&params))
    })
    .await
}
