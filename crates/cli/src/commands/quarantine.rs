//! `conpaas director quarantine`: machines that a restored backup does not know.

use crate::commands::time;
use crate::exit::Outcome;
use crate::printer::Table;
use crate::session::{Session, all};
use clap::Subcommand;
use conpaas_client::{Client, ClientError, ListQuarantineQuery};
use conpaas_model::api::QuarantinedMachine;

#[derive(Subcommand)]
pub enum QuarantineCommand {
    /// List the machines that were made after the backup that was restored
    #[command(
        after_help = "Examples:\n  conpaas director quarantine list\n  conpaas director quarantine list --json"
    )]
    List,
    /// Destroy machines in quarantine; what they serve and hold is lost
    #[command(
        after_help = "Examples:\n  conpaas director quarantine destroy m-abcdefghijkm\n  conpaas director quarantine destroy --all --yes"
    )]
    Destroy {
        /// Names of the machines, or their clouds' names for them (see `list`)
        #[arg(value_name = "MACHINE", required_unless_present = "all")]
        machines: Vec<String>,
        /// All that are in quarantine now
        #[arg(long, conflicts_with = "machines")]
        all: bool,
        /// Do not ask for the name
        #[arg(long, short)]
        yes: bool,
    },
}

pub async fn run(session: &Session, command: QuarantineCommand) -> Outcome {
    let client = session.client()?;
    match command {
        QuarantineCommand::List => {
            let found = listed(&client).await?;
            session.printer.either(&found, |printer| {
                let mut table = Table::new([
                    "MACHINE",
                    "APPLICATION",
                    "NODE",
                    "CLOUD",
                    "TYPE",
                    "MADE",
                    "STATE",
                ]);
                for machine in &found {
                    let name = machine.application_name.as_ref();
                    table.row([
                        machine.machine.to_string(),
                        name.map_or_else(|| machine.application.to_string(), ToString::to_string),
                        machine.hostname.clone(),
                        machine.cloud.clone(),
                        machine.instance_type.clone(),
                        time(&machine.created_at),
                        if machine.condemned { "going" } else { "kept" }.to_owned(),
                    ]);
                }
                table.print(printer);
                if found.iter().any(|machine| !machine.condemned) {
                    printer.note("when nothing on them is needed any more: conpaas director quarantine destroy --all");
                }
            })
        }
        QuarantineCommand::Destroy {
            mut machines,
            all,
            yes,
        } => {
            if all {
                let found = listed(&client).await?.into_iter();
                machines = found.map(|machine| machine.cloud_id).collect();
            }
            if !machines.is_empty() {
                let what = format!(
                    "{} machines in quarantine are about to be destroyed, with all that is on them",
                    machines.len()
                );
                session.confirm(yes, &what, "quarantine")?;
            }
            for machine in &machines {
                client.destroy_quarantined(machine).await?;
            }
            session
                .printer
                .either(&serde_json::json!({"condemned": machines}), |printer| {
                    printer.note(&format!("{} machines will be destroyed", machines.len()));
                })
        }
    }
}

async fn listed(client: &Client) -> Result<Vec<QuarantinedMachine>, ClientError> {
    all(None, async |cursor| {
        client
            .list_quarantine(&ListQuarantineQuery {
                cursor,
                ..Default::default()
            })
            .await
    })
    .await
}
