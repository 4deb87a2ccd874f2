//! `conpaas domain`: host names that lead to a service beside its own.

use crate::commands::time;
use crate::exit::Outcome;
use crate::printer::Table;
use crate::session::{Session, all};
use crate::target::ServiceTarget;
use clap::Subcommand;
use conpaas_client::ListDomainsQuery;
use conpaas_model::api::DomainAdd;

#[derive(Subcommand)]
pub enum DomainCommand {
    /// Claim a host name for a service
    #[command(
        after_help = "Examples:\n  conpaas domain add shop/web www.example.org\n  conpaas domain add shop/web shop             a plain name under the installation's own domain\n\nThat the name's DNS record points at this installation is your part."
    )]
    Add {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// A whole host name, or one word for a name under the installation's domain
        name: String,
    },
    /// List the host names that a service has claimed
    #[command(after_help = "Examples:\n  conpaas domain list shop/web")]
    List {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
    },
    /// Give a host name up; then anybody may claim it
    #[command(after_help = "Examples:\n  conpaas domain remove shop/web www.example.org")]
    Remove {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// The host name
        name: String,
    },
}

pub async fn run(session: &Session, command: DomainCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        DomainCommand::Add { target, name } => {
            let domain = client
                .add_domain(&target.app, &target.service, &DomainAdd { name })
                .await?;
            printer.either(&domain, |p| p.line(&domain.name))
        }
        DomainCommand::List { target } => {
            let domains = all(None, async |cursor| {
                let query = ListDomainsQuery {
                    cursor,
                    ..Default::default()
                };
                client
                    .list_domains(&target.app, &target.service, &query)
                    .await
            })
            .await?;
            printer.either(&domains, |printer| {
                let mut table = Table::new(["NAME", "CLAIMED", "BY"]);
                for domain in &domains {
                    table.row([
                        domain.name.clone(),
                        time(&domain.created_at),
                        domain.actor.clone(),
                    ]);
                }
                table.print(printer);
            })
        }
        DomainCommand::Remove { target, name } => {
            client
                .remove_domain(&target.app, &target.service, &name)
                .await?;
            printer.either(&serde_json::json!({"removed": name}), |p| {
                p.note(&format!("removed {name}"))
            })
        }
    }
}
