//! What comes from nodes to be kept: the lines that their daemons wrote, which agents send beside
//! their streams, and what was measured of them, which managers tell. Where it is kept is the
//! business of `logs` and `metrics`.

use super::listener::{Caller, Refused, problem, refuse};
use super::shared::{Shared, full};
use crate::logs::{Position, Source};
use crate::store::now;
use conpaas_model::ids::ApplicationId;
use conpaas_model::metrics::NodeMetrics;
use conpaas_model::protocol::{LogPosition, MAX_LOG_PIECE, PATH_LOGS};
use conpaas_wire::{Body, json_response, read_bytes};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;

/// `POST PATH_LOGS/SOURCE?file=F&offset=N`: a piece of a node's log.
pub async fn log(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let bad = |message: &'static str| refuse(StatusCode::BAD_REQUEST, "bad_request", message);
    let uri = request.uri().clone();
    let source = uri
        .path()
        .strip_prefix(PATH_LOGS)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|source| is_source(source))
        .ok_or_else(|| bad("a log is named ROLE-NAME"))?
        .to_owned();
    let (mut file, mut offset) = (None, None);
    for (name, value) in uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
    {
        match name {
            "file" => file = Some(value).filter(|file| file.bytes().all(|b| b.is_ascii_digit())),
            "offset" => offset = value.parse::<u64>().ok(),
            _ => {}
        }
    }
    let (Some(file), Some(offset)) = (file, offset) else {
        return Err(bad("a piece of a log says its file and offset"));
    };
    // Two machines may have files of the same number.
    let machine = caller.machine.clone();
    let position = Position {
        file: format!("{}:{file}", machine.id),
        offset,
    };
    let bytes = read_bytes(request, MAX_LOG_PIECE).await.map_err(problem)?;
    let logs = shared.config.logs.clone();
    let prefix = format!("{}:", machine.id);
    let taken = tokio::task::spawn_blocking(move || {
        let source = Source {
            application: machine.application.as_str(),
            service: machine.service.as_str(),
            node: machine.node.0,
            name: &source,
        };
        logs.append(&source, &position, &bytes)
    })
    .await
    .map_err(std::io::Error::other)
    .and_then(|taken| taken);
    match taken {
        Ok(known) => {
            let file = known.file.strip_prefix(&prefix).unwrap_or_default();
            let position = LogPosition {
                file: file.to_owned(),
                offset: if file.is_empty() { 0 } else { known.offset },
            };
            Ok(json_response(StatusCode::OK, &position))
        }
        Err(error) => {
            tracing::error!(error = full(&error), "a piece of a log is not kept");
            Err(refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "log_not_kept",
                "the log cannot be kept now; send it again later",
            ))
        }
    }
}

/// Takes in what was measured of an application's nodes.
pub async fn metrics(shared: &Arc<Shared>, application: &ApplicationId, told: Vec<NodeMetrics>) {
    if told.is_empty() {
        return;
    }
    let (metrics, application) = (shared.config.metrics.clone(), application.clone());
    let now = now() / 1000;
    let taken =
        tokio::task::spawn_blocking(move || metrics.take(application.as_str(), told, now)).await;
    // What was not written is written with the next step.
    if let Ok(Err(error)) = taken {
        tracing::error!(error = full(&error), "metrics wait to be written");
    }
}

fn is_source(source: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (1..=64).contains(&source.len()) && source.bytes().all(fits) && !source.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::is_source;

    #[test]
    fn a_source_names_no_way_out() {
        assert!(is_source("web-access") && is_source("backend-pool-9003.slow"));
        for bad in ["", "..", ".x", "a/b", "a%2fb", "A", &"x".repeat(65)] {
            assert!(!is_source(bad), "{bad}");
        }
    }
}
