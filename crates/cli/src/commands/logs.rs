//! `conpaas logs`: what daemons wrote.

use crate::commands::service::all_services;
use crate::exit::Outcome;
use crate::session::Session;
use crate::target::Target;
use crate::values;
use clap::Args;
use conpaas_client::{Client, ClientError, ReadLogsQuery};
use conpaas_model::api::LogLine;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// How often to look for new lines.
const LOOK: Duration = Duration::from_secs(1);
/// Lines of each log in one look while following.
const WINDOW: u32 = 10_000;

/// Show the logs of an application, a service or a node
#[derive(Args)]
#[command(
    after_help = "Examples:\n  conpaas logs shop/web\n  conpaas logs shop/web --role backend -n 100\n  conpaas logs shop/web/web-3 --follow\n  conpaas logs shop/web --since 1h --status 5xx\n  conpaas logs shop --grep 'GET /basket'\n\nLogs stay readable when their node has gone or the service is stopped."
)]
pub struct LogsArgs {
    /// APP, APP/SERVICE or APP/SERVICE/NODE
    target: Target,
    /// Go on with what is written from now on
    #[arg(long, short)]
    follow: bool,
    /// How many of the newest lines of each log
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    lines: u32,
    /// Only lines of so long ago at most, for instance 1h
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    since: Option<Duration>,
    /// Only lines that match this regular expression
    #[arg(long, value_name = "REGEX")]
    grep: Option<String>,
    /// Only requests that were answered so: 404, 5xx, several by comma
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only of one role
    #[arg(long)]
    role: Option<String>,
}

/// Where to go on reading, by service.
type Cursors = BTreeMap<String, String>;

pub async fn run(session: &Session, args: LogsArgs) -> Outcome {
    let client = session.client()?;
    let mut cursors = Cursors::new();
    let first = read(&client, &args, args.lines, &mut cursors).await?;
    if !args.follow {
        let values: Vec<serde_json::Value> = first
            .iter()
            .map(|(service, line)| value(service, line))
            .collect();
        return session.printer.either(&values, |_| {
            first
                .iter()
                .for_each(|(service, line)| show(session, &args, service, line))
        });
    }
    let print = |service: &str, line: &LogLine| {
        session.printer.either(&value(service, line), |_| {
            show(session, &args, service, line)
        })
    };
    for (service, line) in &first {
        print(service, line)?;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let lines = match read(&client, &args, WINDOW, &mut cursors).await {
            Ok(lines) => lines,
            Err(error) if error.is_transient() => continue,
            Err(error) => return Err(error.into()),
        };
        for (service, line) in &lines {
            print(service, line)?;
        }
    }
}

/// Lines after the cursors, in the order of their arrival.
async fn read(
    client: &Client,
    args: &LogsArgs,
    lines: u32,
    cursors: &mut Cursors,
) -> Result<Vec<(String, LogLine)>, ClientError> {
    let services = match &args.target.service {
        Some(service) => vec![service.clone()],
        None => {
            let services = all_services(client, &args.target.app).await?;
            services
                .into_iter()
                .map(|service| service.name.to_string())
                .collect()
        }
    };
    let since = args
        .since
        .and_then(|ago| SystemTime::now().checked_sub(ago))
        .and_then(|at| jiff::Timestamp::try_from(at).ok())
        .map(|at| at.to_string());
    let mut found = Vec::new();
    for service in services {
        let query = ReadLogsQuery {
            node: args.target.node.clone(),
            role: args.role.clone(),
            lines: Some(lines),
            since: since.clone(),
            grep: args.grep.clone(),
            status: args.status.clone(),
            cursor: cursors.get(&service).cloned(),
        };
        let page = client.read_logs(&args.target.app, &service, &query).await?;
        found.extend(page.items.into_iter().map(|line| (service.clone(), line)));
        if let Some(next) = page.next {
            cursors.insert(service, next);
        }
    }
    found.sort_by(|(_, one), (_, two)| one.at.cmp(&two.at));
    Ok(found)
}

fn value(service: &str, line: &LogLine) -> serde_json::Value {
    serde_json::json!({"at": line.at, "service": service, "node": line.node, "source": line.source, "line": line.line})
}

fn show(session: &Session, args: &LogsArgs, service: &str, line: &LogLine) {
    // A log is shown as it is, except for what could take over the terminal.
    let text: String = line
        .line
        .chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect();
    let service = if args.target.service.is_none() {
        format!("{service} ")
    } else {
        String::new()
    };
    session
        .printer
        .line(&format!("{service}{} {}: {text}", line.node, line.source));
}
