//! `conpaas director`: the Director itself.

use crate::commands::time;
use crate::exit::Outcome;
use crate::printer::print_pairs;
use crate::session::Session;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum DirectorCommand {
    /// Show its version, since when it runs, and where applications are reached
    #[command(
        after_help = "Examples:\n  conpaas director status\n  conpaas director status --json"
    )]
    Status,
}

pub async fn run(session: &Session, DirectorCommand::Status: DirectorCommand) -> Outcome {
    let client = session.client()?;
    let info = client.director_info().await?;
    session.printer.either(&info, |printer| {
        print_pairs(
            printer,
            &[
                ("url", client.url().to_owned()),
                ("version", info.version.clone()),
                ("installation", info.installation.clone()),
                ("running since", time(&info.started_at)),
                ("applications at", info.base_domain.clone()),
                ("edge", info.edge.clone().unwrap_or_default()),
                ("clouds", info.clouds.join(" ")),
            ],
        );
        if info.version != conpaas_model::VERSION {
            printer.note(&format!(
                "this program is version {}",
                conpaas_model::VERSION
            ));
        }
    })
}
