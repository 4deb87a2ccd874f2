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
        after_help = "Examples:\n  conpaas audit list\n  conpaas audit list --limit 500 --json"
    )]
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
}

pub async fn run(session: &Session, AuditCommand::List { limit }: AuditCommand) -> Outcome {
    let client = session.client()?;
    let rows = all(Some(limit), async |cursor| {
        client
            .list_audit(&ListAuditQuery {
                cursor,
                ..Default::default()
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
