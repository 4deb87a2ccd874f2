//! Following an operation to its end: live by server-sent events, by asking again while the
//! Director restarts. Stopping to look never stops the work.

use crate::exit::{CliError, Exit};
use crate::session::Session;
use crate::values;
use clap::Args;
use conpaas_client::{Client, ClientError};
use conpaas_model::api::{Accepted, Operation, Outcome};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A stream that says nothing for so long is taken to be dead.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a Director that restarts is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_millis(500);

/// How long to look on.
#[derive(Args, Clone, Debug)]
pub struct Wait {
    /// Start it and print the operation's id, without following it
    #[arg(long)]
    pub no_wait: bool,
    /// Look on no longer than this (for instance 5m); the work goes on
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub timeout: Option<Duration>,
}

/// Follows what a change started, and says how it ended.
pub async fn finish(
    session: &Session,
    client: &Client,
    accepted: Accepted,
    wait: &Wait,
) -> Result<(), CliError> {
    let printer = &session.printer;
    let Accepted {
        operation,
        warnings,
    } = accepted;
    let Some(operation) = operation else {
        if printer.is_json() {
            return printer.value(&Accepted {
                operation,
                warnings,
            });
        }
        printer.note("nothing had to be done");
        return Ok(());
    };
    for warning in &warnings {
        printer.warn(warning);
    }
    if wait.no_wait {
        return printer.either(&operation, |p| p.line(operation.id.as_str()));
    }
    let operation = follow(session, client, operation, wait.timeout, false).await?;
    if printer.is_json() {
        printer.value(&operation)?;
    }
    verdict(session, &operation)
}

/// Turns how an operation ended into how the command ends.
pub fn verdict(session: &Session, operation: &Operation) -> Result<(), CliError> {
    let name = describe(operation);
    let failed = |exit, how: &str| {
        let mut error = CliError::new(exit, format!("{name} {how}"));
        error.causes.extend(operation.reason.clone());
        error.hint(format!(
            "see its steps: conpaas operation show {}",
            operation.id
        ))
    };
    match operation.outcome {
        Outcome::Done => {
            session.printer.note(&format!("{name}: done"));
            Ok(())
        }
        Outcome::Running => Err(detached(operation, "has not ended yet")),
        Outcome::Failed => Err(failed(Exit::Failed, "failed")),
        Outcome::Cancelled => Err(failed(Exit::Failed, "was cancelled")),
        Outcome::Superseded => Err(failed(Exit::Conflict, "was replaced by a later change")),
    }
}

/// `scale of shop/web`.
pub fn describe(operation: &Operation) -> String {
    match &operation.service {
        Some(service) => format!(
            "{} of {}/{service}",
            operation.kind.replace('_', " "),
            operation.application
        ),
        None => format!(
            "{} of {}",
            operation.kind.replace('_', " "),
            operation.application
        ),
    }
}

fn detached(operation: &Operation, why: &str) -> CliError {
    CliError::new(
        Exit::Detached,
        format!("{} {why}; the work goes on", describe(operation)),
    )
    .hint(format!(
        "follow it with: conpaas operation watch {}",
        operation.id
    ))
}

/// Follows an operation until it has ended. With `each` and JSON, every change is printed.
///
/// # Errors
/// Ends detached on Ctrl-C, when `limit` is over, or when the Director stays away.
pub async fn follow(
    session: &Session,
    client: &Client,
    mut operation: Operation,
    limit: Option<Duration>,
    each: bool,
) -> Result<Operation, CliError> {
    // From before the first word on: whoever reads it may want to stop looking at once.
    let person = tokio::signal::ctrl_c();
    tokio::pin!(person);
    let _ = futures::poll!(&mut person);
    let mut view = View::new(session, each);
    view.show(&operation)?;
    if operation.outcome != Outcome::Running {
        return Ok(operation);
    }
    let id = operation.id.clone();
    let out_of_time = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(out_of_time);
    let watch = watch(client, id.as_str(), |newer| {
        view.show(&newer)?;
        operation = newer;
        Ok(())
    });
    let stopped = tokio::select! {
        watched = watch => watched.err(),
        () = &mut out_of_time => Some(Stopped::Time),
        _ = &mut person => Some(Stopped::Person),
    };
    view.end();
    match stopped {
        None => Ok(operation),
        Some(Stopped::Time) => Err(detached(
            &operation,
            "takes longer than you wanted to look on",
        )),
        Some(Stopped::Person) => Err(detached(&operation, "is no longer followed")),
        Some(Stopped::Away(error)) => {
            let mut detached = detached(&operation, "cannot be followed, the Director stays away");
            detached.causes.push(error.to_string());
            Err(detached)
        }
        Some(Stopped::Error(error)) => Err(error),
    }
}

enum Stopped {
    Time,
    Person,
    Away(ClientError),
    Error(CliError),
}

/// Gives each new state of an operation to `seen` until the final one.
async fn watch(
    client: &Client,
    id: &str,
    mut seen: impl FnMut(Operation) -> Result<(), CliError>,
) -> Result<(), Stopped> {
    let mut away_since: Option<Instant> = None;
    loop {
        let broke: Option<ClientError> = match client.stream_operation(id, None).await {
            Ok(mut events) => loop {
                match timeout(SILENCE, events.next()).await {
                    Ok(Ok(Some((_, operation)))) => {
                        away_since = None;
                        let ended = operation.outcome != Outcome::Running;
                        seen(operation).map_err(Stopped::Error)?;
                        if ended {
                            return Ok(());
                        }
                    }
                    Ok(Err(error)) => break Some(error),
                    Ok(Ok(None)) | Err(_) => break None,
                }
            },
            Err(error) => Some(error),
        };
        if let Some(error) = broke {
            if !error.is_transient() {
                return Err(Stopped::Error(error.into()));
            }
            if away_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return Err(Stopped::Away(error));
            }
        }
        sleep(RETRY).await;
        // The stream may have ended just before the last change was told.
        match client.show_operation(id).await {
            Ok(operation) => {
                away_since = None;
                let ended = operation.outcome != Outcome::Running;
                seen(operation).map_err(Stopped::Error)?;
                if ended {
                    return Ok(());
                }
            }
            Err(error) if error.is_transient() => {
                if away_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err(Stopped::Away(error));
                }
            }
            Err(error) => return Err(Stopped::Error(error.into())),
        }
    }
}

/// Shows what is new in each state.
struct View<'a> {
    session: &'a Session,
    each: bool,
    bar: indicatif::ProgressBar,
    told: HashSet<String>,
}

impl<'a> View<'a> {
    fn new(session: &'a Session, each: bool) -> Self {
        let each = each && session.printer.is_json();
        Self {
            session,
            each,
            bar: session.printer.spinner(),
            told: HashSet::new(),
        }
    }

    fn show(&mut self, operation: &Operation) -> Result<(), CliError> {
        if self.each {
            return self.session.printer.value(operation);
        }
        for line in news(operation, &mut self.told) {
            self.bar.suspend(|| self.session.printer.note(&line));
        }
        let now = operation.waiting.first().map(|w| w.text.clone());
        let now = now.or_else(|| {
            operation
                .steps
                .iter()
                .find(|step| !step.done)
                .map(|step| step.text.clone())
        });
        self.bar
            .set_message(now.unwrap_or_else(|| describe(operation)));
        Ok(())
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Lines that were not told yet: each step once when it is due and once when it is done, each
/// reason for waiting once.
fn news(operation: &Operation, told: &mut HashSet<String>) -> Vec<String> {
    let mut lines = Vec::new();
    for step in &operation.steps {
        lines.push(if step.done {
            format!("done: {}", step.text)
        } else {
            format!("step: {}", step.text)
        });
    }
    for waiting in &operation.waiting {
        lines.push(format!("waiting: {}", waiting.text));
    }
    lines.retain(|line| told.insert(line.clone()));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_line_is_told_once() {
        let at = |steps: serde_json::Value| -> Operation {
            serde_json::from_value(json!({
                "id": "op-1", "kind": "scale", "application": "shop", "service": "web", "targets": {},
                "actor": "ada", "outcome": "running", "reason": null, "steps": steps,
                "waiting": [{"kind": "node_booting", "text": "web-2 boots"}],
                "created_at": "", "deadline": "", "ended_at": null, "cancellable": true,
            }))
            .unwrap()
        };
        let mut told = HashSet::new();
        let step = |done| json!([{"kind": "obtain_node", "text": "obtain a node", "done": done}]);
        assert_eq!(
            news(&at(step(false)), &mut told),
            ["step: obtain a node", "waiting: web-2 boots"]
        );
        assert!(news(&at(step(false)), &mut told).is_empty());
        assert_eq!(news(&at(step(true)), &mut told), ["done: obtain a node"]);
        assert_eq!(describe(&at(json!([]))), "scale of shop/web");
    }
}
