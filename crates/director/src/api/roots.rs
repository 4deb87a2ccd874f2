//! The roots that machines, managers and the Director trust each other by.

use super::take::{PageQuery, Params, Segments, page_of};
use crate::error::DirectorError;
use crate::shared::Shared;
use axum::Json;
use axum::extract::State;
use conpaas_model::api::{Page, RootInfo, RootState};
use http::StatusCode;
use std::sync::Arc;

type Here = State<Arc<Shared>>;

/// Roots that everybody trusts, and how far a change of them is.
#[utoipa::path(get, path = "/v1/director/roots", operation_id = "list_roots", params(PageQuery),
    responses((status = 200, description = "The one that signs first.", body = Page<RootInfo>)))]
pub(super) async fn list_roots(
    State(shared): Here,
    Params(query): Params<PageQuery>,
) -> Result<Json<Page<RootInfo>>, DirectorError> {
    let place = |root: &RootInfo| {
        let rank = match root.state {
            RootState::Signs => 0,
            RootState::Next => 1,
            RootState::Former => 2,
        };
        format!("{rank} {}", root.fingerprint)
    };
    let roots = shared.machines.roots().await?;
    Ok(Json(page_of(roots, &query, place)?))
}

/// Make a root that signs as soon as everybody trusts it.
#[utoipa::path(post, path = "/v1/director/roots", operation_id = "add_root",
    responses((status = 201, description = "The root.", body = RootInfo)))]
pub(super) async fn add_root(
    State(shared): Here,
) -> Result<(StatusCode, Json<RootInfo>), DirectorError> {
    Ok((StatusCode::CREATED, Json(shared.machines.add_root().await?)))
}

/// Trust a root no more. Refused while anybody needs it.
#[utoipa::path(delete, path = "/v1/director/roots/{root}", operation_id = "retire_root",
    params(("root" = String, Path, description = "Its fingerprint, or the beginning of it.")),
    responses((status = 204, description = "It is trusted no more.")))]
pub(super) async fn retire_root(
    State(shared): Here,
    Segments(params): Segments,
) -> Result<StatusCode, DirectorError> {
    let root = params.get("root").map(String::as_str).unwrap_or_default();
    shared.machines.retire_root(root).await?;
    Ok(StatusCode::NO_CONTENT)
}
