//! Machines that a restored store does not know: what they are, and that they are to go.

use super::take::{PageQuery, Params, Segments, page_of};
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::{apps, quarantine, show_time};
use axum::Json;
use axum::extract::State;
use conpaas_model::api::{Page, QuarantinedMachine};
use http::StatusCode;
use std::sync::Arc;

type Here = State<Arc<Shared>>;

/// Machines in quarantine, oldest first: made after the backup that was restored, and left alone.
#[utoipa::path(get, path = "/v1/director/quarantine", operation_id = "list_quarantine", params(PageQuery),
    responses((status = 200, description = "Machines.", body = Page<QuarantinedMachine>)))]
pub(super) async fn list_quarantine(
    State(shared): Here,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<QuarantinedMachine>>, DirectorError> {
    let found = shared
        .store
        .read(|tx| {
            let rows = quarantine::every(tx)?.into_iter();
            rows.map(|row| {
                let known = apps::get(tx, &row.app)?;
                Ok(QuarantinedMachine {
                    machine: row.machine,
                    cloud: row.cloud,
                    cloud_id: row.cloud_id,
                    application: row.app,
                    application_name: known.map(|app| app.name),
                    hostname: row.hostname,
                    instance_type: row.instance_type,
                    address: row.address.to_string(),
                    created_at: show_time(row.created_at),
                    since: show_time(row.since),
                    condemned: row.condemned,
                })
            })
            .collect::<Result<Vec<_>, DirectorError>>()
        })
        .await?;
    let place = |found: &QuarantinedMachine| {
        format!("{} {} {}", found.created_at, found.cloud, found.cloud_id)
    };
    Ok(Json(page_of(found, &query, place)?))
}

/// Say that a machine in quarantine is to be destroyed. It is listed until its cloud says that it
/// is gone.
#[utoipa::path(delete, path = "/v1/director/quarantine/{machine}", operation_id = "destroy_quarantined",
    params(("machine" = String, Path, description = "Its name, or the cloud's name for it.")),
    responses((status = 202, description = "It will be destroyed.")))]
pub(super) async fn destroy_quarantined(
    State(shared): Here,
    Segments(params): Segments,
) -> Result<StatusCode, DirectorError> {
    let id = params.get("machine").cloned().unwrap_or_default();
    let asked = id.clone();
    let condemned = shared
        .store
        .transaction(move |tx| quarantine::condemn(tx, &asked));
    if condemned.await? == 0 {
        return Err(
            DirectorError::not_found(format!("no machine '{id}' is in quarantine"))
                .hint("list them: conpaas director quarantine list"),
        );
    }
    shared.machines.wake();
    Ok(StatusCode::ACCEPTED)
}
