//! `conpaas metrics`: what was measured, over time, with what happened meanwhile.

use crate::commands::service::{all_services, all_types};
use crate::commands::time;
use crate::exit::{CliError, Outcome};
use crate::plot::{self, Plot};
use crate::session::Session;
use crate::target::Target;
use crate::values;
use clap::Args;
use conpaas_client::{AppMetricsQuery, Client, ClientError, ListEventsQuery, ServiceMetricsQuery};
use conpaas_model::api::{MetricPoint, MetricSeries, Metrics};
use conpaas_model::metrics::names;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

/// Width of a plot where nobody says how wide the terminal is.
const WIDTH: usize = 80;
/// Events that are told below a plot.
const MOST_EVENTS: usize = 30;

/// Show what was measured of an application, a service or a node
#[derive(Args)]
#[command(
    after_help = "Examples:\n  conpaas metrics shop/web --since 1h\n  conpaas metrics shop/web/web-3 --since 10m --json\n  conpaas metrics shop/web --name requests --role proxy --by release\n  conpaas metrics --prometheus\n\nThe last day is kept in steps of 10 seconds, a month in steps of 5 minutes.\nUnder a plot, letters mark what happened; the list below says what it was."
)]
pub struct MetricsArgs {
    /// APP, APP/SERVICE or APP/SERVICE/NODE
    #[arg(required_unless_present = "prometheus")]
    target: Option<Target>,
    /// How far to look back, for instance 1h
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "1h")]
    since: Duration,
    /// Length of a step, for instance 1m (default: what gives about a hundred)
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    step: Option<Duration>,
    /// Only this metric, or this family of metrics, for instance requests
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only of one role
    #[arg(long)]
    role: Option<String>,
    /// Tell apart by node, release, or both (node,release)
    #[arg(long, value_name = "WHAT")]
    by: Option<String>,
    /// Everything of all your services as it is now, in the format that Prometheus reads
    #[arg(long, conflicts_with_all = ["target", "name", "role", "by", "step"])]
    prometheus: bool,
}

pub async fn run(session: &Session, args: MetricsArgs) -> Outcome {
    let client = session.client()?;
    let Some(target) = &args.target else {
        let text = client.owner_metrics().await?.text().await?;
        return session
            .printer
            .either(&text, |printer| printer.raw(text.as_bytes()));
    };
    let metrics = ask(&client, target, &args).await?;
    let events = events(&client, target, &metrics).await?;
    let mut value = serde_json::to_value(&metrics)
        .map_err(|error| CliError::failed("the answer cannot be shown").because(&error))?;
    value["events"] = events.clone().into();
    let plots = match &args.name {
        Some(_) => metrics.series.iter().map(of_series).collect(),
        None => usual(&client, target, &metrics).await?,
    };
    session
        .printer
        .either(&value, |_| draw(session, &metrics, plots, &events))
}

/// A moment so long ago, as the API takes it.
pub fn ago(time: Duration) -> Option<String> {
    let at = SystemTime::now().checked_sub(time)?;
    Some(jiff::Timestamp::try_from(at).ok()?.to_string())
}

async fn ask(client: &Client, target: &Target, args: &MetricsArgs) -> Result<Metrics, ClientError> {
    let since = ago(args.since);
    let step = args
        .step
        .map(|step| u32::try_from(step.as_secs()).unwrap_or(u32::MAX));
    let (role, name, by) = (args.role.clone(), args.name.clone(), args.by.clone());
    match &target.service {
        None => {
            let query = AppMetricsQuery {
                since,
                step,
                role,
                name,
                by,
                ..Default::default()
            };
            client.app_metrics(&target.app, &query).await
        }
        Some(service) => {
            let query = ServiceMetricsQuery {
                since,
                step,
                role,
                name,
                by,
                node: target.node.clone(),
                ..Default::default()
            };
            client.service_metrics(&target.app, service, &query).await
        }
    }
}

/// What happened to the application in this time, the newest.
async fn events(
    client: &Client,
    target: &Target,
    metrics: &Metrics,
) -> Result<Vec<serde_json::Value>, CliError> {
    let begin = seconds(&metrics.since).unwrap_or(0.0);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let query = ListEventsQuery {
            after,
            limit: Some(1000),
            ..Default::default()
        };
        let page = client.list_events(&target.app, &query).await?;
        let last = page.items.last().map(|event| event.sequence);
        for event in page.items {
            let value = serde_json::to_value(&event)
                .map_err(|error| CliError::failed("an event cannot be shown").because(&error))?;
            let of_other = |service: &String| {
                value["service"]
                    .as_str()
                    .is_some_and(|name| name != service)
            };
            if target.service.as_ref().is_some_and(of_other) {
                continue;
            }
            if value["at"]
                .as_str()
                .and_then(seconds)
                .is_some_and(|at| at >= begin)
            {
                found.push(value);
            }
        }
        if page.next.is_none() || last.is_none() {
            break;
        }
        after = last;
    }
    let surplus = found.len().saturating_sub(MOST_EVENTS);
    found.drain(..surplus);
    Ok(found)
}

/// Seconds since 1970 of a moment of the API.
fn seconds(text: &str) -> Option<f64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(at.as_millisecond() as f64 / 1000.0)
}

/// What is plotted: a title, and values by the beginning of their step.
struct Curve {
    title: String,
    values: BTreeMap<String, f64>,
}

fn curve(title: String, points: &[MetricPoint], of: impl Fn(&MetricPoint) -> Option<f64>) -> Curve {
    let values = points
        .iter()
        .filter_map(|point| Some((point.at.clone(), of(point)?)));
    Curve {
        title,
        values: values.collect(),
    }
}

/// A series as it is, with what tells it apart.
fn of_series(series: &MetricSeries) -> Curve {
    let mut title = series
        .node
        .clone()
        .unwrap_or_else(|| series.service.clone());
    for part in [
        series.role.clone(),
        series.release.map(|release| release.to_string()),
    ] {
        title.extend(part.map(|part| format!(" {part}")));
    }
    let title = |what: &str| format!("{title}: {}{what}", series.name.replace('_', " "));
    match series.kind.as_str() {
        "counter" => curve(title(" per second"), &series.points, |point| point.rate),
        "histogram" => curve(title(", 90% within (ms)"), &series.points, |point| {
            point.p90
        }),
        _ => curve(title(""), &series.points, |point| point.mean),
    }
}

/// What one usually looks at: requests and latency of the role that people reach, and the nodes.
async fn usual(
    client: &Client,
    target: &Target,
    metrics: &Metrics,
) -> Result<Vec<Curve>, ClientError> {
    let exposed = exposed_roles(client, &target.app).await?;
    let services: BTreeSet<&String> = metrics
        .series
        .iter()
        .map(|series| &series.service)
        .collect();
    let mut curves = Vec::new();
    for service in services {
        let of = |role: Option<&String>, family: &str| {
            let mut found = metrics.series.iter().filter(|series| {
                series.service == *service
                    && series.role.as_ref() == role
                    && series.name.split('.').next() == Some(family)
            });
            let first = found.next()?;
            Some(std::iter::once(first).chain(found).collect::<Vec<_>>())
        };
        let role = exposed.get(service);
        if let Some(requests) = role.and_then(|role| of(Some(role), names::REQUESTS)) {
            let title = format!("{service}: requests per second");
            curves.push(added(title, &requests, |point| point.rate));
            let failed = requests
                .into_iter()
                .filter(|series| series.name == names::REQUESTS_5XX)
                .collect::<Vec<_>>();
            if failed
                .iter()
                .any(|series| series.total.count.unwrap_or(0) > 0)
            {
                let title = format!("{service}: failed requests per second");
                curves.push(added(title, &failed, |point| point.rate));
            }
        }
        if let Some(latency) = role.and_then(|role| of(Some(role), names::LATENCY))
            && let [latency] = latency[..]
        {
            let title = format!("{service}: 90% of answers within (ms)");
            curves.push(curve(title, &latency.points, |point| point.p90));
        }
        if let Some(cpu) = of(None, names::CPU_MILLIS) {
            let title = format!("{service}: CPU of all nodes (% of a core)");
            curves.push(added(title, &cpu, |point| {
                point.rate.map(|rate| rate / 10.0)
            }));
        }
        if let Some(memory) = of(None, names::MEMORY_BYTES) {
            let title = format!("{service}: memory of all nodes (MiB)");
            curves.push(added(title, &memory, |point| {
                point.mean.map(|bytes| bytes / f64::from(1 << 20))
            }));
        }
    }
    Ok(curves)
}

/// Several series as one.
fn added(
    title: String,
    series: &[&MetricSeries],
    of: impl Fn(&MetricPoint) -> Option<f64>,
) -> Curve {
    let mut values = BTreeMap::new();
    for point in series.iter().flat_map(|series| &series.points) {
        if let Some(value) = of(point) {
            *values.entry(point.at.clone()).or_insert(0.0) += value;
        }
    }
    Curve { title, values }
}

/// The role that people reach, by service.
pub async fn exposed_roles(
    client: &Client,
    app: &str,
) -> Result<BTreeMap<String, String>, ClientError> {
    let types = all_types(client).await?;
    let services = all_services(client, app).await?;
    let role = |service_type: &str| {
        let found = types.iter().find(|one| one.name == service_type)?;
        let exposed = found.roles.iter().find(|role| role.exposed)?;
        Some(exposed.name.clone())
    };
    Ok(services
        .into_iter()
        .filter_map(|service| Some((service.name.to_string(), role(&service.service_type)?)))
        .collect())
}

fn width() -> usize {
    let told = std::env::var("COLUMNS").ok();
    told.and_then(|text| text.parse().ok())
        .unwrap_or(WIDTH)
        .clamp(40, 400)
}

fn draw(session: &Session, metrics: &Metrics, curves: Vec<Curve>, events: &[serde_json::Value]) {
    let printer = &session.printer;
    if curves.is_empty() {
        printer.note("nothing was measured in this time");
    }
    let (from, until) = (
        seconds(&metrics.since).unwrap_or(0.0),
        seconds(&metrics.until).unwrap_or(0.0),
    );
    let length = (until - from).max(1.0);
    let step = f64::from(metrics.step_seconds.max(1));
    let steps = (length / step).ceil().max(1.0) as usize;
    let places: Vec<f64> = events
        .iter()
        .map(|event| event["at"].as_str().and_then(seconds).unwrap_or(from))
        .map(|at| (at - from) / length)
        .collect();
    for Curve { title, values } in curves {
        let mut columns = vec![None; steps];
        for (at, value) in values {
            let at = seconds(&at).map(|at| ((at - from) / step).max(0.0) as usize);
            if let Some(column) = at.and_then(|at| columns.get_mut(at)) {
                *column = Some(value);
            }
        }
        let plot = Plot {
            title: &title,
            values: &columns,
            from: &time(&metrics.since),
            until: &time(&metrics.until),
        };
        for line in plot::lines(&plot, &places, width()) {
            printer.line(&line);
        }
        printer.line("");
    }
    for (index, event) in events.iter().enumerate() {
        let word = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let mut text = format!("{}  {}  ", plot::mark(index), time(&word("at")));
        if !word("service").is_empty() {
            text.push_str(&format!("{}: ", word("service")));
        }
        text.push_str(&word("kind").replace('_', " "));
        if !word("reason").is_empty() {
            text.push_str(&format!(": {}", word("reason")));
        }
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        printer.line(&text);
    }
}
