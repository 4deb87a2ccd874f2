//! Nodes of services and applications.

use super::apps::{Here, accept};
use super::services::fresh;
use super::take::{Caller, PageQuery, Params, Segments, page_of};
use super::views;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::apps::AppRow;
use crate::store::machines::{self, NodeRow};
use crate::store::services::{self, ServiceRow};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{Accepted, Node, Page};
use conpaas_model::status::NodeState;
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NodesQuery {
    /// `next` of the page before.
    cursor: Option<String>,
    /// Most items on a page (default 100, at most 1000).
    limit: Option<u32>,
    /// Only in this state, for instance `up`.
    state: Option<NodeState>,
    /// Only with this role.
    role: Option<String>,
}

/// One page of nodes; clouds tell only of those on it.
async fn list(
    shared: &Shared,
    rows: Vec<NodeRow>,
    services: &[ServiceRow],
    query: NodesQuery,
) -> Result<Page<Node>, DirectorError> {
    let wanted = |row: &NodeRow| {
        let service = services.iter().find(|service| service.id == row.service);
        let has = |role: &String| {
            let status = service.and_then(|service| service.status.as_ref());
            status
                .into_iter()
                .flat_map(|status| &status.nodes)
                .any(|node| {
                    node.number == row.number && node.roles.iter().any(|found| found.role == *role)
                })
        };
        query.state.is_none_or(|state| state == row.state) && query.role.as_ref().is_none_or(has)
    };
    let rows: Vec<NodeRow> = rows.into_iter().filter(wanted).collect();
    let paging = PageQuery {
        cursor: query.cursor.clone(),
        limit: query.limit,
    };
    let place = |row: &NodeRow| format!("{} {:020}", row.service_name, row.number.0);
    let Page { items, next } = page_of(rows, &paging, place)?;
    Ok(Page {
        items: show(shared, items, services).await,
        next,
    })
}

async fn show(shared: &Shared, rows: Vec<NodeRow>, services: &[ServiceRow]) -> Vec<Node> {
    let mut nodes = Vec::new();
    for row in rows {
        let machine = row.machine.clone();
        let service = services.iter().find(|service| service.id == row.service);
        let mut node = views::node(row, service);
        if let Some(machine) = machine
            && let Some(facts) = shared.machines.facts(&machine).await
        {
            node.limits = Some(facts.limits);
            (node.image, node.outdated) = (facts.image, Some(facts.outdated));
        }
        nodes.push(node);
    }
    nodes
}

/// All nodes of an application, managers' included.
#[utoipa::path(get, path = "/v1/apps/{app}/nodes", operation_id = "list_app_nodes",
    params(NodesQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "Nodes.", body = Page<Node>)))]
pub(super) async fn list_app_nodes(
    State(shared): Here,
    Extension(app): Extension<AppRow>,
    Params(query): Params<NodesQuery>,
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
    Ok(Json(list(&shared, rows, &services, query).await?))
}

async fn rows_of(shared: &Shared, row: &ServiceRow) -> Result<Vec<NodeRow>, DirectorError> {
    let id = row.id.clone();
    shared
        .store
        .read(move |tx| machines::nodes_of_service(tx, &id))
        .await
}

/// The nodes of a service.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/nodes", operation_id = "list_nodes",
    params(NodesQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Nodes.", body = Page<Node>)))]
pub(super) async fn list_nodes(
    State(shared): Here,
    Extension(row): Extension<ServiceRow>,
    Params(query): Params<NodesQuery>,
) -> Result<Json<Page<Node>>, DirectorError> {
    let rows = rows_of(&shared, &row).await?;
    Ok(Json(list(&shared, rows, &[row], query).await?))
}

async fn find(
    shared: &Shared,
    app: &AppRow,
    row: ServiceRow,
    text: &str,
) -> Result<Node, DirectorError> {
    let service = row.name.clone();
    let named = |node: &NodeRow| {
        let number = node.number.0.to_string();
        number == text || format!("{}-{number}", node.service_name) == text
    };
    let mut rows = rows_of(shared, &row).await?;
    rows.retain(named);
    let found = show(shared, rows, &[row]).await.into_iter().next();
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
    caller: Caller,
    Extension(app): Extension<AppRow>,
    Extension(row): Extension<ServiceRow>,
    Segments(params): Segments,
) -> Result<(StatusCode, Json<Accepted>), DirectorError> {
    let text = params.get("node").map(String::as_str).unwrap_or_default();
    let number = find(&shared, &app, row.clone(), text).await?.number;
    accept(&shared, &caller, true, move |change| {
        let (app, row) = fresh(change, &app, &row)?;
        change.replace_node(app, &row, number)
    })
    .await
}
