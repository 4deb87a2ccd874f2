//! `conpaas completion`: completions for shells.

use crate::exit::Outcome;
use crate::session::Session;
use clap::Args;
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Args)]
#[command(
    after_help = "Examples:\n  conpaas completion bash > /etc/bash_completion.d/conpaas\n  source <(conpaas completion zsh)"
)]
pub struct CompletionArgs {
    /// Whose completions
    shell: Shell,
}

pub fn run(session: &Session, args: CompletionArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut crate::cli::parser(),
        "conpaas",
        &mut script,
    );
    let text = String::from_utf8_lossy(&script).into_owned();
    session
        .printer
        .either(&text, |printer| printer.raw(text.as_bytes()))
}
