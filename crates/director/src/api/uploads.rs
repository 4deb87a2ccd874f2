//! Uploads that go on where they broke off, until they become a code version.

use super::apps::Here;
use super::code::{over_quota, takes_code, within_quota};
use super::services::{App, Row};
use super::take::{Params, Segments};
use crate::error::DirectorError;
use crate::store::{apps, services};
use crate::uploads;
use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use conpaas_model::api::UploadProgress;
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

fn named(params: &Segments) -> String {
    params.0.get("sha256").cloned().unwrap_or_default()
}

/// How much of an upload is there.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/uploads/{sha256}", operation_id = "show_upload",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("sha256" = String, Path, description = "The SHA-256 of the archive, in hex.")),
    responses((status = 200, description = "Where it stands.", body = UploadProgress)))]
pub(super) async fn show_upload(
    State(shared): Here,
    Extension(row): Row,
    params: Segments,
) -> Result<Json<UploadProgress>, DirectorError> {
    let offset = uploads::offset(&shared, &row.id, &named(&params))?;
    Ok(Json(UploadProgress { offset }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AppendQuery {
    /// Bytes of the whole archive.
    size: u64,
    /// Where this piece begins: what `show_upload` answered.
    offset: u64,
}

/// Send an archive, or what is missing of it. What came in before it breaks off stays. When all of it
/// is there, `upload_code` with `upload` makes it a code version.
#[utoipa::path(patch, path = "/v1/apps/{app}/services/{service}/uploads/{sha256}", operation_id = "append_upload",
    params(AppendQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("sha256" = String, Path, description = "The SHA-256 of the archive, in hex.")),
    request_body(content_type = "application/octet-stream", description = "The bytes from `offset` on."),
    responses((status = 200, description = "Where it stands.", body = UploadProgress)))]
pub(super) async fn append_upload(
    State(shared): Here,
    Extension(app): App,
    Extension(row): Row,
    params: Segments,
    Params(query): Params<AppendQuery>,
    body: Body,
) -> Result<Json<UploadProgress>, DirectorError> {
    takes_code(&shared, &row)?;
    let upload = named(&params);
    // What is on its way counts as if it were there: nobody may fill the disk with halves.
    let owner = app.owner.clone();
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let mut ids = Vec::new();
        for app in apps::list(tx, Some(&owner), apps::Which::All, "", u64::from(u32::MAX))? {
            let rows = services::of_app(tx, &app.id)?;
            ids.extend(rows.into_iter().map(|row| row.id));
        }
        Ok(ids)
    };
    let ids = shared.store.read(look).await?;
    let halves = uploads::bytes_beside(&shared, &ids, (&row.id, &upload))?;
    let used = within_quota(&shared, &app, query.size).await?;
    let all = used.saturating_add(halves).saturating_add(query.size);
    if all > shared.config.code_quota {
        return Err(over_quota(all, shared.config.code_quota));
    }
    let content = body.into_data_stream();
    let what = (upload.as_str(), query.size);
    let offset = uploads::append(&shared, &row.id, what, query.offset, content).await?;
    Ok(Json(UploadProgress { offset }))
}

/// Forget what is there of an upload.
#[utoipa::path(delete, path = "/v1/apps/{app}/services/{service}/uploads/{sha256}", operation_id = "discard_upload",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("sha256" = String, Path, description = "The SHA-256 of the archive, in hex.")),
    responses((status = 204, description = "Nothing of it is there.")))]
pub(super) async fn discard_upload(
    State(shared): Here,
    Extension(row): Row,
    params: Segments,
) -> Result<StatusCode, DirectorError> {
    uploads::discard(&shared, &row.id, &named(&params))?;
    Ok(StatusCode::NO_CONTENT)
}
