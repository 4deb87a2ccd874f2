//! Nodes of services and applications.

use super::apps::{Here, accept};
use super::services::fresh;
use super::take::{Segments, whole};
use super::views;
use crate::auth::Principal;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::apps::AppRow;
use crate::store::machines::{self, NodeRow};
use crate::store::services::{self, ServiceRow};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{Accepted, Node, Page};
use http::StatusCode;

async fn show(shared: &Shared, rows: Vec<NodeRow>, services: &[ServiceRow]) -> Vec<Node> {
    let mut nodes = Vec::new();
    for row in rows {
        let machine = row.machine.clone();
        let service = services.iter().find(|service| service.id == row.service);
        let mut node = views::node(row, service);
        if let Some(machine) = machine {
            node.limits = shared.machines.limits(&machine).await;
        }
        nodes.push(node);
    }
    nodes
}

/// All nodes of an application, managers' included.
#[utoipa::path(get, path = "/v1/apps/{app}/nodes", operation_id = "list_app_nodes",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "Nodes.", body = Page<Node>)))]
pub(super) async fn list_app_nodes(
    State(shared): Here,
    Extension(app): Extension<AppRow>,
) -> Result<Json<Page<Node>>, DirectorError> {
    let (rows, services) = shared
        .store
        .read(move |tx| {
            Ok((
                machines::nodes_of_app(tx, &app.id)?,
                services::of_app(tx, &app.id)?,
            ))
        })
        .await?;
    Ok(Json(whole(show(&shared, rows, &services).await)))
}

async fn nodes_of(shared: &Shared, row: ServiceRow) -> Result<Vec<Node>, DirectorError> {
    let id = row.id.clone();
    let rows = shared
        .store
        .read(move |tx| machines::nodes_of_service(tx, &id))
        .await?;
    Ok(show(shared, rows, &[row]).await)
}

/// The nodes of a service.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/nodes", operation_id = "list_nodes",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Nodes.", body = Page<Node>)))]
pub(super) async fn list_nodes(
    State(shared): Here,
    Extension(row): Extension<ServiceRow>,
) -> Result<Json<Page<Node>>, DirectorError> {
    Ok(Json(whole(nodes_of(&shared, row).await?)))
}

async fn find(
    shared: &Shared,
    app: &AppRow,
    row: ServiceRow,
    text: &str,
) -> Result<Node, DirectorError> {
    let service = row.name.clone();
    let mut nodes = nodes_of(shared, row).await?.into_iter();
    let found = nodes.find(|node| node.number.0.to_string() == text || node.name == text);
    found.ok_or_else(|| {
        DirectorError::not_found(format!("no node '{text}' in '{}/{service}'", app.name)).hint(
            format!("list them: conpaas node list {}/{service}", app.name),
        )
    })
}

/// One node.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/nodes/{node}", operation_id = "show_node",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("node" = String, Path, description = "Number or name.")),
    responses((status = 200, description = "The node.", body = Node)))]
pub(super) async fn show_node(
    State(shared): Here,
    Extension(app): Extension<AppRow>,
    Extension(row): Extension<ServiceRow>,
    Segments(params): Segments,
) -> Result<Json<Node>, DirectorError> {
    let text = params.get("node").map(String::as_str).unwrap_or_default();
    Ok(Json(find(&shared, &app, row, text).await?))
}

/// Let a node go; another comes in its stead.
#[utoipa::path(post, path = "/v1/apps/{app}/services/{service}/nodes/{node}/replace", operation_id = "replace_node",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id."),
        ("node" = String, Path, description = "Number or name.")),
    responses((status = 202, description = "What to follow.", body = Accepted)))]
pub(super) async fn replace_node(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Extension(app): Extension<AppRow>,
    Extension(row): Extension<ServiceRow>,
    Segments(params): Segments,
) -> Result<(StatusCode, Json<Accepted>), DirectorError> {
    let text = params.get("node").map(String::as_str).unwrap_or_default();
    let number = find(&shared, &app, row.clone(), text).await?.number;
    accept(&shared, &principal, false, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.replace_node(app, &row, number)
    })
    .await
}
