//! `conpaas logs`: what daemons wrote.

use crate::exit::Outcome;
use crate::session::Session;
use crate::target::Target;
use clap::Args;
use conpaas_client::{Client, ClientError, ReadLogsQuery};
use conpaas_model::api::LogLine;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often to look for new lines.
const LOOK: Duration = Duration::from_secs(1);
/// Lines of each log that are looked at; more within one look are not seen.
const WINDOW: u32 = 1000;

/// Show the logs of an application, a service or a node
#[derive(Args)]
#[command(
    after_help = "Examples:\n  conpaas logs shop/web\n  conpaas logs shop/web --role backend -n 100\n  conpaas logs shop/web/web-3 --follow"
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
    /// Only of one role
    #[arg(long)]
    role: Option<String>,
}

pub async fn run(session: &Session, args: LogsArgs) -> Outcome {
    let client = session.client()?;
    let first = read(&client, &args, args.lines).await?;
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
    let mut seen = by_log(read(&client, &args, WINDOW).await?);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let now = match read(&client, &args, WINDOW).await {
            Ok(lines) => by_log(lines),
            Err(error) if error.is_transient() => continue,
            Err(error) => return Err(error.into()),
        };
        for (log, lines) in &now {
            let old = seen.get(log).map(Vec::as_slice).unwrap_or_default();
            for line in fresh(old, lines) {
                let (service, node, source) = log.clone();
                print(
                    &service,
                    &LogLine {
                        node,
                        source,
                        line: line.clone(),
                    },
                )?;
            }
        }
        // A node that does not answer once has not lost its lines.
        seen.extend(now);
    }
}

type Log = (String, String, String);

async fn read(
    client: &Client,
    args: &LogsArgs,
    lines: u32,
) -> Result<Vec<(String, LogLine)>, ClientError> {
    let services = match &args.target.service {
        Some(service) => vec![service.clone()],
        None => {
            let services = client.list_services(&args.target.app).await?.items;
            services
                .into_iter()
                .map(|service| service.name.to_string())
                .collect()
        }
    };
    let mut found = Vec::new();
    for service in services {
        let query = ReadLogsQuery {
            node: args.target.node.clone(),
            role: args.role.clone(),
            lines: Some(lines),
        };
        let lines = client
            .read_logs(&args.target.app, &service, &query)
            .await?
            .items;
        found.extend(lines.into_iter().map(|line| (service.clone(), line)));
    }
    Ok(found)
}

fn value(service: &str, line: &LogLine) -> serde_json::Value {
    serde_json::json!({"service": service, "node": line.node, "source": line.source, "line": line.line})
}

fn by_log(lines: Vec<(String, LogLine)>) -> BTreeMap<Log, Vec<String>> {
    let mut logs: BTreeMap<Log, Vec<String>> = BTreeMap::new();
    for (service, line) in lines {
        logs.entry((service, line.node, line.source))
            .or_default()
            .push(line.line);
    }
    logs
}

/// The lines at the end of `new` that were written after those of `old`: `new` goes on where the
/// longest end of `old` that it starts with stops.
fn fresh<'a>(old: &[String], new: &'a [String]) -> &'a [String] {
    let longest = old.len().min(new.len());
    for overlap in (1..=longest).rev() {
        if old[old.len() - overlap..] == new[..overlap] {
            return &new[overlap..];
        }
    }
    new
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_lines_are_shown() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(fresh(&lines("a b c"), &lines("b c d e")), lines("d e"));
        assert_eq!(fresh(&lines("a b c"), &lines("a b c d")), lines("d"));
        assert!(fresh(&lines("a a"), &lines("a a")).is_empty());
        assert_eq!(fresh(&lines("a b"), &lines("x y")), lines("x y"));
        assert_eq!(fresh(&[], &lines("x")), lines("x"));
    }
}
