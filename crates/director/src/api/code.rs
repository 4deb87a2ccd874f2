//! Code versions: upload, list, download, activate, delete.

use super::apps::{Here, accept, change};
use super::services::fresh;
use super::take::{Caller, PageQuery, Params, Segments, page};
use super::views;
use crate::blobs;
use crate::error::DirectorError;
use crate::life::Audience;
use crate::shared::Shared;
use crate::store::apps::AppRow;
use crate::store::codes::{self, CodeRow};
use crate::store::events::{self, NewEvent};
use crate::store::services::{self, ServiceRow};
use crate::store::{new_id, now};
use crate::uploads;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use conpaas_model::api::{Accepted, Code, Page};
use conpaas_model::event::EventKind;
use conpaas_model::ids::CodeId;
use http::{StatusCode, header};
use serde::Deserialize;
use std::collections::BTreeMap;
use tokio_util::io::ReaderStream;
use utoipa::IntoParams;

type App = Extension<AppRow>;
type Row = Extension<ServiceRow>;

/// Code versions, newest first.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/code", operation_id = "list_code",
    params(PageQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Code versions.", body = Page<Code>)))]
pub(super) async fn list_code(
    State(shared): Here,
    Extension(row): Row,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<Code>>, DirectorError> {
    let ((at, id), limit) = (query.time_position()?, query.limit());
    let look = move |tx: &rusqlite::Transaction<'_>| {
        let rows = codes::list(tx, &row.id, (at, &id), limit as u64 + 1)?;
        page(
            rows,
            limit,
            |row| format!("{} {}", row.created_at, row.id),
            |row| views::code(tx, row),
        )
    };
    Ok(Json(shared.store.read(look).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadQuery {
    /// The archive's file name, for people.
    filename: Option<String>,
    description: Option<String>,
    /// Activate it at once.
    #[serde(default)]
    #[param(required = false)]
    activate: bool,
    /// Take the archive that was sent by `append_upload` under this SHA-256; the body is empty.
    upload: Option<String>,
}

/// Refuses services whose type runs no code of people's.
pub(super) fn takes_code(shared: &Shared, row: &ServiceRow) -> Result<(), DirectorError> {
    let service_type = shared.service_type(&row.service_type)?;
    if service_type.takes_code() {
        return Ok(());
    }
    Err(DirectorError::invalid(
        "takes_no_code",
        format!("a {} service takes no code", service_type.name()),
    ))
}

/// Refuses an archive that has no room in its owner's quota anyhow, which spares the work; the count
/// that decides is made when its record is written. Gives the bytes in use now.
pub(super) async fn within_quota(
    shared: &Shared,
    app: &AppRow,
    size: u64,
) -> Result<u64, DirectorError> {
    let (owner, quota) = (app.owner.clone(), shared.config.code_quota);
    let look = move |tx: &rusqlite::Transaction<'_>| codes::bytes_of_owner(tx, &owner);
    let used = shared.store.read(look).await?;
    if size > quota {
        return Err(over_quota(used.saturating_add(size), quota));
    }
    Ok(used)
}

/// What of a file name may be shown and sent back.
fn tame(filename: &str) -> String {
    let last = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    let tame: String = last
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+'))
        .take(100)
        .collect();
    if tame.trim_matches('.').is_empty() {
        "archive".to_owned()
    } else {
        tame
    }
}

/// Upload an archive (tar, tar.gz, tar.bz2, tar.xz, tar.zst or zip).
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/code", operation_id = "upload_code",
    params(UploadQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    request_body(content_type = "application/octet-stream", description = "The archive's bytes."),
    responses((status = 201, description = "The code version.", body = Code)))]
pub(super) async fn upload_code(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Params(query): Params<UploadQuery>,
    received: Option<Extension<blobs::Received>>,
    body: Body,
) -> Result<(StatusCode, Json<Code>), DirectorError> {
    takes_code(&shared, &row)?;
    let description = query.description.unwrap_or_default();
    if description.chars().count() > 1000 {
        return Err(DirectorError::invalid(
            "too_long",
            "a description has at most 1000 characters",
        ));
    }
    let received = received.and_then(|Extension(received)| received.take());
    let upload = match (&query.upload, received) {
        (Some(sha256), _) => uploads::finish(&shared, &row.id, sha256).await?,
        (None, Some(upload)) => upload,
        (None, None) => blobs::receive(&shared, body.into_data_stream()).await?,
    };
    let quota = shared.config.code_quota;
    let used = within_quota(&shared, &app, upload.size).await?;
    let (original_size, original_sha256) = (upload.size, upload.sha256.clone());
    let guard = shared.blobs.read().await;
    let found = blobs::accept(&shared, upload).await?;
    let code = CodeRow {
        id: new_id(CodeId::from_suffix)?,
        service: row.id.clone(),
        filename: tame(query.filename.as_deref().unwrap_or_default()),
        description,
        size: found.size,
        files: found.files,
        sha256: found.sha256,
        original_size,
        original_sha256,
        created_at: now(),
        actor: caller.principal.user.name.to_string(),
        deleted_at: None,
    };
    let activate = query.activate;
    let kept = change(&shared, &caller, Vec::new(), move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        codes::insert(change.tx, &code)?;
        let bytes = codes::bytes_of_owner(change.tx, &app.owner)?;
        if bytes > quota && bytes > used {
            return Err(over_quota(bytes, quota));
        }
        let event = NewEvent {
            service: Some(&row.name),
            actor: change.actor,
            reason: None,
            what: EventKind::CodeUploaded {
                code: code.id.clone(),
                filename: code.filename.clone(),
                files: code.files,
            },
        };
        events::append(change.tx, &app.id, &event)?;
        if activate {
            change.activate_code(app, &row, code.id.as_str(), Audience::Everybody)?;
        }
        views::code(change.tx, code)
    })
    .await;
    drop(guard);
    if kept.is_err() {
        // What no record names must not fill the disk until the next cleaning.
        blobs::collect(&shared).await?;
    }
    Ok((StatusCode::CREATED, Json(kept?)))
}

pub(super) fn over_quota(bytes: u64, quota: u64) -> DirectorError {
    DirectorError::quota(
        "code_quota_exceeded",
        format!(
            "with this, the owner's code versions would take {} KiB, and the quota is {} KiB",
            bytes.div_ceil(1024),
            quota / 1024
        ),
    )
    .hint("delete those that are not needed: conpaas code list, conpaas code delete")
}

fn wanted(params: &BTreeMap<String, String>) -> String {
    params.get("code").cloned().unwrap_or_default()
}

fn find(tx: &rusqlite::Connection, row: &ServiceRow, id: &str) -> Result<CodeRow, DirectorError> {
    let found = codes::get(tx, &row.id, id)?.filter(|found| found.deleted_at.is_none());
    found.ok_or_else(|| DirectorError::not_found(format!("no code version '{id}'")))
}

/// Download an archive, byte for byte as it was uploaded.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/code/{code}/archive", operation_id = "download_code",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("code" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The archive's bytes.", content_type = "application/octet-stream")))]
pub(super) async fn download_code(
    State(shared): Here,
    Extension(row): Row,
    Segments(params): Segments,
) -> Result<Response, DirectorError> {
    let code = shared
        .store
        .read(move |tx| find(tx, &row, &wanted(&params)))
        .await?;
    let path = blobs::path(&shared, &code.original_sha256);
    let file = tokio::fs::File::open(path)
        .await
        .map_err(|error| DirectorError::internal("an archive could not be read", error))?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, code.original_size.to_string()),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{}\"", code.filename),
        ),
        (header::ETAG, format!("\"{}\"", code.original_sha256)),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}

/// Delete a code version that is neither active nor held for a preview.
#[utoipa::path(delete, path = "/v1/apps/{app}/services/{service}/code/{code}", operation_id = "delete_code",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("code" = String, Path, description = "Its id.")),
    responses((status = 204, description = "Deleted.")))]
pub(super) async fn delete_code(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Segments(params): Segments,
) -> Result<StatusCode, DirectorError> {
    change(&shared, &caller, Vec::new(), move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        let code = find(change.tx, &row, &wanted(&params))?;
        let held = "discard the preview first: conpaas service discard";
        let active = "activate another one first: conpaas code activate";
        for (number, word, hint) in [
            (Some(row.active), "active", active),
            (row.preview, "held", held),
        ] {
            let Some(number) = number else { continue };
            let release = services::get_release(change.tx, &row.id, number)?;
            if release.is_none_or(|release| release.code.as_ref() != Some(&code.id)) {
                continue;
            }
            return Err(DirectorError::conflict(
                "code_active",
                format!(
                    "'{}' is the code version of {}/{} that is {word}",
                    code.id, app.name, row.name
                ),
            )
            .hint(hint));
        }
        codes::mark_deleted(change.tx, &code.id, now())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ActivateQuery {
    /// Hold the release and show it at the preview address alone, until it is promoted.
    #[serde(default)]
    #[param(required = false)]
    preview: bool,
}

/// Lead people to a code version: makes a release.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/code/{code}/activate", operation_id = "activate_code",
    params(ActivateQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("code" = String, Path, description = "Its id.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn activate_code(
    State(shared): Here,
    caller: Caller,
    Extension(app): App,
    Extension(row): Row,
    Segments(params): Segments,
    Params(query): Params<ActivateQuery>,
) -> Result<(StatusCode, Json<Accepted>), DirectorError> {
    accept(&shared, &caller, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.activate_code(
            app,
            &row,
            &wanted(&params),
            Audience::preview(query.preview),
        )
    })
    .await
}

#[cfg(test)]
mod tests {
    #[test]
    fn file_names_are_tamed() {
        assert_eq!(super::tame("../../x y\"\r\n.tar.gz"), "xy.tar.gz");
        assert_eq!(super::tame("C:\\d\\site.zip"), "site.zip");
        assert_eq!(super::tame(".."), "archive");
    }
}
