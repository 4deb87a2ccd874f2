//! `conpaas image`: what the machine image has to hold. Needs no Director.

use crate::exit::Outcome;
use crate::session::Session;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum ImageCommand {
    /// List the Debian packages that the service types need in the image
    #[command(after_help = "Examples:\n  conpaas image packages\n  conpaas image packages --json")]
    Packages,
}

pub fn run(session: &Session, ImageCommand::Packages: ImageCommand) -> Outcome {
    let packages = conpaas_services::registry::Registry::standard().packages();
    session.printer.either(&packages, |printer| {
        packages.iter().for_each(|package| printer.line(package))
    })
}
