//! `conpaas operation`: changes under way, and those that ended.

use crate::commands::{time, word};
use crate::exit::{CliError, Outcome};
use crate::follow::{Wait, describe, follow, verdict};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all};
use crate::target::Target;
use crate::values;
use clap::Subcommand;
use conpaas_client::ListOperationsQuery;
use conpaas_model::api::Operation;
use std::time::Duration;

#[derive(Subcommand)]
pub enum OperationCommand {
    /// List them, newest first
    #[command(
        after_help = "Examples:\n  conpaas operation list\n  conpaas operation list shop/web --outcome running"
    )]
    List {
        /// Only of APP or APP/SERVICE
        target: Option<Target>,
        /// Only those that are running, done, failed, cancelled or superseded
        #[arg(long)]
        outcome: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show one with its steps
    #[command(after_help = "Examples:\n  conpaas operation show op-1a2b")]
    Show {
        /// Its id (see `conpaas operation list`)
        operation: String,
    },
    /// Follow one to its end
    #[command(
        after_help = "Examples:\n  conpaas operation watch op-1a2b\n  conpaas operation watch op-1a2b --timeout 5m --json"
    )]
    Watch {
        /// Its id (see `conpaas operation list`)
        operation: String,
        /// Look on no longer than this (for instance 5m); the work goes on
        #[arg(long, value_name = "DURATION", value_parser = values::duration)]
        timeout: Option<Duration>,
    },
    /// Go back to what was wanted before it
    #[command(after_help = "Examples:\n  conpaas operation cancel op-1a2b")]
    Cancel {
        /// Its id (see `conpaas operation list`)
        operation: String,
        #[command(flatten)]
        wait: Wait,
    },
}

pub async fn run(session: &Session, command: OperationCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        OperationCommand::List {
            target,
            outcome,
            limit,
        } => {
            if target.as_ref().is_some_and(|target| target.node.is_some()) {
                return Err(CliError::usage(
                    "an application or a service is meant here: APP or APP/SERVICE",
                ));
            }
            let (app, service) =
                target.map_or((None, None), |target| (Some(target.app), target.service));
            let outcome = match outcome {
                Some(text) => Some(
                    serde_json::from_value(serde_json::Value::String(text.clone())).map_err(
                        |_| {
                            CliError::usage(format!("'{text}' is no outcome"))
                                .hint("choose running, done, failed, cancelled or superseded")
                        },
                    )?,
                ),
                None => None,
            };
            let query = ListOperationsQuery {
                app,
                service,
                outcome,
                ..Default::default()
            };
            let operations = all(Some(limit), async |cursor| {
                client
                    .list_operations(&ListOperationsQuery {
                        cursor,
                        ..query.clone()
                    })
                    .await
            })
            .await?;
            printer.either(&operations, |printer| {
                let mut table =
                    Table::new(["OPERATION", "WHAT", "OUTCOME", "BY", "STARTED", "REASON"]);
                for operation in &operations {
                    table.row([
                        operation.id.to_string(),
                        describe(operation),
                        word(&operation.outcome),
                        operation.actor.clone(),
                        time(&operation.created_at),
                        operation.reason.clone().unwrap_or_default(),
                    ]);
                }
                table.print(printer);
            })
        }
        OperationCommand::Show { operation } => {
            let operation = client.show_operation(&operation).await?;
            printer.either(&operation, |_| show(session, &operation))
        }
        OperationCommand::Watch { operation, timeout } => {
            let operation = client.show_operation(&operation).await?;
            let operation = follow(session, &client, operation, timeout, true).await?;
            verdict(session, &operation)
        }
        OperationCommand::Cancel { operation, wait } => {
            let operation = client.cancel_operation(&operation).await?;
            // The wish is back to what it was; what it takes to get there may be an operation still.
            let operation = if wait.no_wait {
                operation
            } else {
                follow(session, &client, operation, wait.timeout, false).await?
            };
            printer.either(&operation, |p| {
                p.note(&format!(
                    "{}: {}",
                    describe(&operation),
                    word(&operation.outcome)
                ))
            })
        }
    }
}

fn show(session: &Session, operation: &Operation) {
    let printer = &session.printer;
    print_pairs(
        printer,
        &[
            ("operation", operation.id.to_string()),
            ("what", describe(operation)),
            ("outcome", word(&operation.outcome)),
            ("reason", operation.reason.clone().unwrap_or_default()),
            ("by", operation.actor.clone()),
            ("started", time(&operation.created_at)),
            (
                "ended",
                operation.ended_at.as_deref().map(time).unwrap_or_default(),
            ),
            ("deadline", time(&operation.deadline)),
        ],
    );
    for step in &operation.steps {
        printer.line(&format!(
            "  [{}] {}",
            if step.done { "x" } else { " " },
            step.text
        ));
    }
    for waiting in &operation.waiting {
        printer.line(&format!("  waiting: {}", waiting.text));
    }
    if operation.cancellable {
        printer.note(&format!(
            "undo it: conpaas operation cancel {}",
            operation.id
        ));
    }
}
