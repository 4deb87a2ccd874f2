//! Calls about what was measured: of an application or a service over time, and in the format of
//! others' tools.

use super::apps::Here;
use super::services::{App, Row};
use super::take::Params;
use crate::auth::Principal;
use crate::error::DirectorError;
use crate::metrics::{
    COARSE, Exposition, FINE, FINE_KEPT, Found, Label, MetricsError, MetricsStore, Wanted, expose,
    point,
};
use crate::own;
use crate::store::{apps, now, services, show_time};
use axum::extract::State;
use axum::{Extension, Json};
use conpaas_model::api::{MetricSeries, Metrics};
use conpaas_model::ids::{NodeNumber, ReleaseNumber};
use conpaas_model::metrics::is_name;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::IntoParams;

/// Steps that are chosen from when none is asked for.
const STEPS: [i64; 8] = [FINE, 30, 60, COARSE, 900, 3600, 6 * 3600, 24 * 3600];
/// Steps of an answer when they are chosen, and at most.
const USUAL_STEPS: i64 = 130;
const MOST_STEPS: i64 = 1500;
const HOUR: i64 = 3600;
/// The format's name and version.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct MetricsQuery {
    /// From this moment on (RFC 3339; default: an hour ago).
    since: Option<String>,
    /// Up to this moment (RFC 3339; default: now).
    until: Option<String>,
    /// Seconds of each step: a multiple of 10 for the last day, else of 300 (default: what gives
    /// about a hundred steps).
    step: Option<u32>,
    /// Only of this node (its number or name).
    node: Option<String>,
    /// Only of this role.
    role: Option<String>,
    /// Only this metric, or this family of metrics.
    name: Option<String>,
    /// What to tell apart beside services and roles: `node`, `release`, or both by comma.
    by: Option<String>,
}

fn moment(text: &Option<String>, otherwise: i64) -> Result<i64, DirectorError> {
    let Some(text) = text else {
        return Ok(otherwise);
    };
    let at: Result<jiff::Timestamp, _> = text.parse();
    at.map(jiff::Timestamp::as_second).map_err(|_| {
        DirectorError::invalid("invalid_moment", format!("'{text}' is no moment in time"))
            .hint("write it as 2030-01-31T12:00:00Z")
    })
}

/// The step for a time, as asked for or chosen.
fn step(asked: Option<u32>, from: i64, until: i64, now: i64) -> Result<i64, DirectorError> {
    let time = (until - from).max(1);
    let least = if from < now - FINE_KEPT { COARSE } else { FINE };
    let step = match asked.map(i64::from) {
        None => STEPS
            .into_iter()
            .find(|step| *step >= least && time / step <= USUAL_STEPS)
            .unwrap_or(24 * HOUR),
        // Only coarse steps are kept of what was longer ago.
        Some(step) if step % FINE == 0 => step.max(least),
        Some(step) => step,
    };
    let unit = if step < COARSE { FINE } else { COARSE };
    if step % unit != 0 {
        return Err(DirectorError::invalid(
            "invalid_step",
            format!(
                "a step is a multiple of {FINE} seconds, and from {COARSE} seconds on of {COARSE}; {step} is not"
            ),
        ));
    }
    if time / step > MOST_STEPS {
        return Err(DirectorError::invalid(
            "too_many_steps",
            format!(
                "that would be {} steps; at most {MOST_STEPS} are answered",
                time / step
            ),
        )
        .hint("ask for a shorter time, or for longer steps"));
    }
    Ok(step)
}

/// What a query wants of an application, without which service and node.
fn wanted(query: &MetricsQuery, application: &str, now: i64) -> Result<Wanted, DirectorError> {
    let until = moment(&query.until, now)?.min(now);
    let from = moment(&query.since, until - HOUR)?;
    if from > until {
        return Err(DirectorError::invalid(
            "invalid_since",
            "this time ends before it begins",
        ));
    }
    let step = step(query.step, from, until, now)?;
    if let Some(name) = query.name.as_ref().filter(|name| !is_name(name)) {
        return Err(DirectorError::invalid(
            "invalid_name",
            format!("'{name}' cannot be the name of a metric"),
        ));
    }
    let (mut by_node, mut by_release) = (false, false);
    for word in query.by.iter().flat_map(|by| by.split(',')) {
        match word {
            "node" => by_node = true,
            "release" => by_release = true,
            _ => {
                return Err(DirectorError::invalid(
                    "invalid_by",
                    format!("nothing can be told apart by '{word}'; it is node or release"),
                ));
            }
        }
    }
    Ok(Wanted {
        application: application.to_owned(),
        service: None,
        node: None,
        role: query.role.clone(),
        name: query.name.clone(),
        from: from - from.rem_euclid(step),
        until: until + 1,
        step,
        by_node,
        by_release,
    })
}

async fn reading<T: Send + 'static>(
    metrics: Arc<MetricsStore>,
    work: impl FnOnce(&MetricsStore) -> Result<T, MetricsError> + Send + 'static,
) -> Result<T, DirectorError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        DirectorError::internal("the metrics could not be read", error)
    };
    tokio::task::spawn_blocking(move || work(&metrics))
        .await
        .map_err(|error| failed(error.into()))?
        .map_err(|error| failed(error.into()))
}

/// The answer, with services by their names.
fn answer(found: Found, wanted: &Wanted, names: &BTreeMap<String, String>, now: i64) -> Metrics {
    let at = |seconds: i64| show_time(seconds.saturating_mul(1000));
    let end = wanted.until.min(now + 1);
    let mut series = Vec::new();
    for (group, (whole, steps)) in found {
        // A service that is being deleted may be gone already.
        let Some(service) = names.get(&group.service) else {
            continue;
        };
        let points = steps.iter().map(|(begin, cell)| {
            let seconds = wanted.step.min(end - begin);
            point(at(*begin), seconds, cell)
        });
        series.push(MetricSeries {
            service: service.clone(),
            node: group.node.map(|node| format!("{service}-{node}")),
            number: group.node.map(NodeNumber),
            role: group.role,
            release: group.release.map(ReleaseNumber),
            kind: whole.kind().to_owned(),
            name: group.name,
            points: points.collect(),
            total: point(at(wanted.from), end - wanted.from, &whole),
        });
    }
    Metrics {
        since: at(wanted.from),
        until: at(end),
        step_seconds: u32::try_from(wanted.step).unwrap_or(u32::MAX),
        series,
    }
}

fn node_number(service: &str, text: &str) -> Option<u64> {
    text.strip_prefix(&format!("{service}-"))
        .unwrap_or(text)
        .parse()
        .ok()
}

/// What was measured of an application's services, in steps of time; the last day in fine steps,
/// a month in coarse ones.
#[utoipa::path(get, path = "/v1/apps/{app}/metrics", operation_id = "app_metrics",
    params(MetricsQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id.")),
    responses((status = 200, description = "Series with a point for each step in which something was measured.", body = Metrics)))]
pub(super) async fn app_metrics(
    State(shared): Here,
    Extension(app): App,
    Params(query): Params<MetricsQuery>,
) -> Result<Json<Metrics>, DirectorError> {
    if query.node.is_some() {
        return Err(
            DirectorError::invalid("invalid_node", "a node is one of a service")
                .hint(format!("ask for the metrics of {}/SERVICE", app.name)),
        );
    }
    let now = now() / 1000;
    let wanted = wanted(&query, app.id.as_str(), now)?;
    let id = app.id.clone();
    let rows = shared
        .store
        .read(move |tx| services::of_app(tx, &id))
        .await?;
    let names = rows
        .into_iter()
        .map(|row| (row.id.to_string(), row.name.to_string()))
        .collect();
    let asked = wanted.clone();
    let found = reading(shared.metrics.clone(), move |metrics| metrics.read(&asked)).await?;
    Ok(Json(answer(found, &wanted, &names, now)))
}

/// What was measured of a service, in steps of time.
#[utoipa::path(get, path = "/v1/apps/{app}/services/{service}/metrics", operation_id = "service_metrics",
    params(MetricsQuery, ("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("service" = String, Path, description = "NAME or id.")),
    responses((status = 200, description = "Series with a point for each step in which something was measured.", body = Metrics)))]
pub(super) async fn service_metrics(
    State(shared): Here,
    Extension(app): App,
    Extension(row): Row,
    Params(query): Params<MetricsQuery>,
) -> Result<Json<Metrics>, DirectorError> {
    let now = now() / 1000;
    let mut wanted = wanted(&query, app.id.as_str(), now)?;
    wanted.service = Some(row.id.to_string());
    if let Some(text) = &query.node {
        let number = node_number(row.name.as_str(), text).ok_or_else(|| {
            DirectorError::not_found(format!("no node '{text}' in {}/{}", app.name, row.name)).hint(
                format!("list them: conpaas node list {}/{}", app.name, row.name),
            )
        })?;
        (wanted.node, wanted.by_node) = (Some(number), true);
    }
    let names = BTreeMap::from([(row.id.to_string(), row.name.to_string())]);
    let asked = wanted.clone();
    let found = reading(shared.metrics.clone(), move |metrics| metrics.read(&asked)).await?;
    Ok(Json(answer(found, &wanted, &names, now)))
}

type Text = ([(http::HeaderName, &'static str); 1], String);

/// What is measured now of all one's services, in the format of Prometheus.
#[utoipa::path(get, path = "/v1/metrics", operation_id = "owner_metrics",
    responses((status = 200, description = "Samples with labels for application, service, role, release, node, instance type and cloud.",
        body = String, content_type = "text/plain")))]
pub(super) async fn owner_metrics(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
) -> Result<Text, DirectorError> {
    let mine = shared
        .store
        .read(move |tx| {
            let mut names = BTreeMap::new();
            for app in apps::every(tx)? {
                if !principal.owns(&app.owner) {
                    continue;
                }
                let services = services::of_app(tx, &app.id)?.into_iter();
                let services: BTreeMap<String, String> = services
                    .map(|row| (row.id.to_string(), row.name.to_string()))
                    .collect();
                names.insert(app.id.to_string(), (app.name.to_string(), services));
            }
            Ok(names)
        })
        .await?;
    let text = reading(shared.metrics.clone(), move |metrics| {
        let living = metrics.living(&|app| mine.contains_key(app), now() / 1000);
        let mut all = Exposition::default();
        for (key, series) in living {
            let Some((app, services)) = mine.get(&key.application) else {
                continue;
            };
            let Some(service) = services.get(&key.service) else {
                continue;
            };
            let mut labels: Vec<Label<'_>> = vec![
                ("application", app.clone()),
                ("service", service.clone()),
                ("node", format!("{service}-{}", key.node)),
                ("cloud", series.cloud.clone()),
                ("instance_type", series.instance_type.clone()),
            ];
            labels.extend(key.source.role.map(|role| ("role", role)));
            let release = key.source.release.map(|release| release.0.to_string());
            labels.extend(release.map(|release| ("release", release)));
            expose(&mut all, &labels, &series.sums);
        }
        Ok(all.text())
    })
    .await?;
    Ok(([(CONTENT_TYPE, TEXT)], text))
}

/// What the Director measures of itself, in the format of Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "director_metrics",
    responses((status = 200, description = "Samples.", body = String, content_type = "text/plain")))]
pub(super) async fn director_metrics(State(shared): Here) -> Result<Text, DirectorError> {
    Ok(([(CONTENT_TYPE, TEXT)], own::exposed(&shared).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_fit_their_time() {
        let now = 1_000_000_000;
        let ago = |seconds: i64, asked| step(asked, now - seconds, now, now);
        assert_eq!(ago(60, None).unwrap(), FINE);
        assert_eq!(ago(HOUR, None).unwrap(), 30);
        assert_eq!(ago(24 * HOUR, None).unwrap(), 900);
        assert_eq!(ago(31 * 24 * HOUR, None).unwrap(), 24 * HOUR / 4);
        assert_eq!(ago(HOUR, Some(10)).unwrap(), 10);
        assert_eq!(ago(0, Some(1)).unwrap_or(0), 0, "no multiple of ten");
        // Only coarse steps are kept so long.
        assert_eq!(ago(30 * HOUR, Some(60)).unwrap(), COARSE);
        for bad in [15, 301, 700] {
            assert!(ago(HOUR, Some(bad)).is_err(), "{bad}");
        }
        assert!(ago(20 * HOUR, Some(10)).is_err(), "too many");
    }

    #[test]
    fn nodes_go_by_name_or_number() {
        assert_eq!(node_number("web", "web-3"), Some(3));
        assert_eq!(node_number("web", "3"), Some(3));
        assert_eq!(node_number("web", "other-3"), None);
    }
}
