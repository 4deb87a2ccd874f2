//! Calls about what daemons wrote.

use super::apps::Here;
use super::services::{App, Row};
use super::take::Params;
use crate::error::DirectorError;
use crate::logs::{LogStore, Wanted};
use crate::store::machines;
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{LogLine, Page};
use regex::RegexBuilder;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// A compiled expression may take so many bytes.
const EXPRESSION_LIMIT: usize = 256 << 10;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Only of this node (its number or name).
    node: Option<String>,
    /// Only of this role.
    role: Option<String>,
    /// Most lines of each log, the newest (default 100, at most 10000; 0: only where they end now).
    lines: Option<u32>,
    /// Only lines that arrived after this moment (RFC 3339).
    since: Option<String>,
    /// Only lines that match this regular expression.
    grep: Option<String>,
    /// Only requests that were answered so: `404`, `5xx`, several by comma.
    status: Option<String>,
    /// `next` of an earlier answer: only lines that arrived after it.
    cursor: Option<String>,
}

fn micros(text: &str) -> Option<u64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_microsecond()).ok()
}

fn shown(at: u64) -> String {
    i64::try_from(at)
        .ok()
        .and_then(|at| jiff::Timestamp::from_microsecond(at).ok())
        .map(|at| format!("{at:.6}"))
        .unwrap_or_default()
}

fn wanted(query: &LogsQuery) -> Result<Wanted, DirectorError> {
    let since = match &query.since {
        None => 0,
        Some(text) => micros(text).ok_or_else(|| {
            DirectorError::invalid("invalid_since", format!("'{text}' is no moment in time"))
                .hint("write it as 2030-01-31T12:00:00Z")
        })?,
    };
    let cursor = match &query.cursor {
        None => 0,
        Some(text) => text.parse().map_err(|_| {
            DirectorError::invalid("invalid_cursor", "this cursor is none of ours")
                .hint("pass 'next' of an earlier answer as it was")
        })?,
    };
    let matching = match &query.grep {
        None => None,
        Some(text) => Some(
            RegexBuilder::new(text)
                .size_limit(EXPRESSION_LIMIT)
                .build()
                .map_err(|error| {
                    DirectorError::invalid("invalid_grep", error.to_string())
                        .hint("put a backslash before signs that stand for themselves")
                })?,
        ),
    };
    let statuses = query.status.as_ref().map(|text| {
        text.parse().map_err(|error: String| {
            DirectorError::invalid("invalid_status", error)
                .hint("write 404 or 5xx, several by comma")
        })
    });
    Ok(Wanted {
        node: None,
        role: query.role.clone(),
        lines: query.lines.unwrap_or(100).min(10_000) as usize,
        after: since.max(cursor),
        matching,
        statuses: statuses.transpose()?,
    })
}

/// The lines of the daemons' logs, oldest first. They stay when the node has gone.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/logs", operation_id = "read_logs",
    params(LogsQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Lines as they arrived; `next` is where to go on reading, and always there.", body = Page<LogLine>)))]
pub(super) async fn read_logs(
    State(shared): Here,
    Extension(app): App,
    Extension(row): Row,
    Params(query): Params<LogsQuery>,
) -> Result<Json<Page<LogLine>>, DirectorError> {
    let mut wanted = wanted(&query)?;
    if let Some(role) = &query.role {
        let service_type = shared.service_type(&row.service_type)?;
        if service_type.role(role).is_none() {
            let names: Vec<&str> = service_type.roles().iter().map(|role| role.name).collect();
            return Err(DirectorError::invalid(
                "unknown_role",
                format!("there is no role '{role}'; there are: {}", names.join(", ")),
            ));
        }
    }
    let (application, service) = (app.id.to_string(), row.id.to_string());
    if let Some(name) = &query.node {
        let id = row.id.clone();
        let living = shared
            .store
            .read(move |tx| machines::nodes_of_service(tx, &id))
            .await?;
        let missing = || {
            DirectorError::not_found(format!("no node '{name}' in {}/{}", app.name, row.name)).hint(
                format!("list them: conpaas node list {}/{}", app.name, row.name),
            )
        };
        let number: u64 = name
            .strip_prefix(&format!("{}-", row.name))
            .unwrap_or(name)
            .parse()
            .map_err(|_| missing())?;
        let (logs, application, service) =
            (shared.logs.clone(), application.clone(), service.clone());
        let logged = reading(logs, move |logs| logs.nodes(&application, &service)).await?;
        if !logged.contains(&number) && living.iter().all(|node| node.number.0 != number) {
            return Err(missing());
        }
        wanted.node = Some(number);
    }
    let found = reading(shared.logs.clone(), move |logs| {
        logs.read(&application, &service, &wanted)
    })
    .await?;
    let items = found
        .lines
        .into_iter()
        .map(|line| LogLine {
            at: shown(line.at),
            node: format!("{}-{}", row.name, line.node),
            source: line.source,
            line: line.text,
        })
        .collect();
    Ok(Json(Page {
        items,
        next: Some(found.up_to.to_string()),
    }))
}

async fn reading<T: Send + 'static>(
    logs: Arc<LogStore>,
    work: impl FnOnce(&LogStore) -> std::io::Result<T> + Send + 'static,
) -> Result<T, DirectorError> {
    tokio::task::spawn_blocking(move || work(&logs))
        .await
        .map_err(std::io::Error::other)
        .and_then(|done| done)
        .map_err(|error| DirectorError::internal("the logs could not be read", error))
}
