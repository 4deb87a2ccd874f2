//! `conpaas top`: who does how much right now.

use crate::commands::metrics::{ago, exposed_roles};
use crate::exit::Outcome;
use crate::plot::short;
use crate::printer::Table;
use crate::session::{Session, all};
use crate::target::Target;
use crate::values;
use clap::Args;
use conpaas_client::{AppMetricsQuery, Client, ClientError, ListAppsQuery, ServiceMetricsQuery};
use conpaas_model::api::{MetricPoint, MetricSeries};
use conpaas_model::metrics::names;
use serde::Serialize;
use std::io::IsTerminal;
use std::time::Duration;

/// The time that is looked at: a few steps, so that one that is late does not show as none.
const WINDOW: Duration = Duration::from_secs(30);

/// Show what nodes and roles do right now
#[derive(Args)]
#[command(
    after_help = "Examples:\n  conpaas top\n  conpaas top shop/web\n  conpaas top shop --once\n  conpaas top shop/web --json\n\nOn a terminal the table is live until Ctrl-C; elsewhere, and with --json, it is printed once.\nFigures are those of the last half minute."
)]
pub struct TopArgs {
    /// APP, APP/SERVICE or APP/SERVICE/NODE (default: all your applications)
    target: Option<Target>,
    /// Print once, on a terminal too
    #[arg(long)]
    once: bool,
    /// How often a live table is drawn anew
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "2s")]
    every: Duration,
}

/// Everything of one look.
#[derive(Debug, Default, Serialize)]
struct Top {
    roles: Vec<RoleLine>,
    nodes: Vec<NodeLine>,
}

#[derive(Debug, Default, Serialize)]
struct RoleLine {
    application: String,
    service: String,
    role: String,
    /// People reach the service by this role.
    exposed: bool,
    requests_per_second: Option<f64>,
    failed_per_second: Option<f64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    in_flight: Option<f64>,
    queue: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
struct NodeLine {
    application: String,
    service: String,
    node: String,
    /// Of one core.
    cpu_percent: Option<f64>,
    memory_mib: Option<f64>,
    disk_mib: Option<f64>,
    in_bytes_per_second: Option<f64>,
    out_bytes_per_second: Option<f64>,
}

pub async fn run(session: &Session, args: TopArgs) -> Outcome {
    let client = session.client()?;
    let is_live = !args.once && !session.printer.is_json() && std::io::stdout().is_terminal();
    if !is_live {
        let top = look(&client, args.target.as_ref()).await?;
        return session.printer.either(&top, |_| show(session, &top));
    }
    loop {
        match look(&client, args.target.as_ref()).await {
            Ok(top) => {
                // Home, and clear what is below.
                session.printer.raw(b"\x1b[H\x1b[2J");
                show(session, &top);
            }
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

async fn look(client: &Client, target: Option<&Target>) -> Result<Top, ClientError> {
    let mut top = Top::default();
    if let Some(target) = target {
        look_at(client, target, &mut top).await?;
        return Ok(top);
    }
    let page = async |cursor| {
        let query = ListAppsQuery {
            cursor,
            ..Default::default()
        };
        client.list_apps(&query).await
    };
    for app in all(None, page).await? {
        let target = Target {
            app: app.name.to_string(),
            service: None,
            node: None,
        };
        match look_at(client, &target, &mut top).await {
            // It was deleted between the two questions.
            Err(ClientError::Answered { status: 404, .. }) => {}
            other => other?,
        }
    }
    Ok(top)
}

async fn ask(
    client: &Client,
    target: &Target,
    by: Option<&str>,
) -> Result<Vec<MetricSeries>, ClientError> {
    let (since, step, by) = (ago(WINDOW), Some(10), by.map(str::to_owned));
    let found = match &target.service {
        None => {
            let query = AppMetricsQuery {
                since,
                step,
                by,
                ..Default::default()
            };
            client.app_metrics(&target.app, &query).await?
        }
        Some(service) => {
            let query = ServiceMetricsQuery {
                since,
                step,
                by,
                node: target.node.clone(),
                ..Default::default()
            };
            client.service_metrics(&target.app, service, &query).await?
        }
    };
    Ok(found.series)
}

async fn look_at(client: &Client, target: &Target, top: &mut Top) -> Result<(), ClientError> {
    let exposed = exposed_roles(client, &target.app).await?;
    let series = ask(client, target, None).await?;
    let roles: std::collections::BTreeSet<(&String, &String)> = series
        .iter()
        .filter_map(|one| Some((&one.service, one.role.as_ref()?)))
        .collect();
    for (service, role) in roles {
        let of = |name: &str, figure: fn(&MetricPoint) -> Option<f64>| {
            let values = series
                .iter()
                .filter(|one| one.service == *service && one.role.as_ref() == Some(role))
                .filter(|one| one.name == name || one.name.split('.').next() == Some(name))
                .filter_map(|one| figure(&one.total));
            values.reduce(|one, two| one + two)
        };
        top.roles.push(RoleLine {
            application: target.app.clone(),
            service: service.clone(),
            role: role.clone(),
            exposed: exposed.get(service) == Some(role),
            requests_per_second: of(names::REQUESTS, |point| point.rate),
            failed_per_second: of(names::REQUESTS_5XX, |point| point.rate),
            p50_ms: of(names::LATENCY, |point| point.p50),
            p99_ms: of(names::LATENCY, |point| point.p99),
            in_flight: of(names::IN_FLIGHT, |point| point.mean),
            queue: of(names::QUEUE, |point| point.mean),
        });
    }
    let by_node = ask(client, target, Some("node")).await?;
    let own = by_node.iter().filter(|one| one.role.is_none());
    let mut nodes: Vec<(&String, &String, Option<_>)> = own
        .filter_map(|one| Some((&one.service, one.node.as_ref()?, one.number)))
        .collect();
    nodes.sort_by_key(|(service, _, number)| ((*service).clone(), *number));
    nodes.dedup();
    const MIB: f64 = 1_048_576.0;
    for (service, node, _) in nodes {
        let of = |name: &str, figure: fn(&MetricPoint) -> Option<f64>| {
            let found = by_node.iter().find(|one| {
                one.role.is_none() && one.node.as_ref() == Some(node) && one.name == name
            });
            found.and_then(|one| figure(&one.total))
        };
        top.nodes.push(NodeLine {
            application: target.app.clone(),
            service: service.clone(),
            node: node.clone(),
            // Thousandths of a second, each second.
            cpu_percent: of(names::CPU_MILLIS, |point| point.rate).map(|rate| rate / 10.0),
            memory_mib: of(names::MEMORY_BYTES, |point| point.mean).map(|bytes| bytes / MIB),
            disk_mib: of(names::DISK_BYTES, |point| point.mean).map(|bytes| bytes / MIB),
            in_bytes_per_second: of(names::NETWORK_IN_BYTES, |point| point.rate),
            out_bytes_per_second: of(names::NETWORK_OUT_BYTES, |point| point.rate),
        });
    }
    Ok(())
}

fn show(session: &Session, top: &Top) {
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
    let mut table = Table::new([
        "SERVICE",
        "ROLE",
        "REQ/S",
        "5XX/S",
        "P50 MS",
        "P99 MS",
        "IN FLIGHT",
        "QUEUE",
    ]);
    for line in &top.roles {
        table.row([
            format!("{}/{}", line.application, line.service),
            line.role.clone(),
            figure(line.requests_per_second),
            figure(line.failed_per_second),
            figure(line.p50_ms),
            figure(line.p99_ms),
            figure(line.in_flight),
            figure(line.queue),
        ]);
    }
    table.print(&session.printer);
    session.printer.line("");
    let mut table = Table::new([
        "NODE",
        "SERVICE",
        "CPU %",
        "MEMORY MIB",
        "DISK MIB",
        "IN B/S",
        "OUT B/S",
    ]);
    for line in &top.nodes {
        table.row([
            line.node.clone(),
            format!("{}/{}", line.application, line.service),
            figure(line.cpu_percent),
            figure(line.memory_mib),
            figure(line.disk_mib),
            figure(line.in_bytes_per_second),
            figure(line.out_bytes_per_second),
        ]);
    }
    table.print(&session.printer);
}
