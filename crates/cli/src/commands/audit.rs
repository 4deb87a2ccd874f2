//! `conpaas audit`: who changed what.

use crate::commands::time;
use crate::exit::Outcome;
use crate::printer::Table;
use crate::session::{Session, all};
use clap::Subcommand;
use conpaas_client::ListAuditQuery;

#[derive(Subcommand)]
pub enum AuditCommand {
    /// List changes, newest first (for operators)
    #[command(
        after_help = "Examples:\n  conpaas audit list\n  conpaas audit list --limit 500 --json\n  conpaas audit list --actor ada --action delete_app"
    )]
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
        /// Only what this user did
        #[arg(long, value_name = "USER")]
        actor: Option<String>,
        /// Only this operation of the API, for instance delete_app
        #[arg(long, value_name = "ACTION")]
        action: Option<String>,
    },
}

pub async fn run(session: &Session, command: AuditCommand) -> Outcome {
    let AuditCommand::List {
        limit,
        actor,
        action,
    } = command;
    let client = session.client()?;
    let rows = all(Some(limit), async |cursor| {
        client
            .list_audit(&ListAuditQuery {
                cursor,
                limit: None,
                actor: actor.clone(),
                action: action.clone(),
            })
            .await
    })
    .await?;
    session.printer.either(&rows, |printer| {
        let mut table = Table::new(["AT", "WHO", "WHAT", "TARGET", "STATUS"]);
        for row in &rows {
            let status = row
                .status
                .map_or_else(|| "unfinished".to_owned(), |status| status.to_string());
            table.row([
                time(&row.at),
                row.actor.clone(),
                row.action.clone(),
                row.target.clone(),
                status,
            ]);
        }
        table.print(printer);
    })
}
