//! `conpaas context`: the Directors this person knows.

use crate::contexts::{Context, check_name};
use crate::exit::{CliError, Exit, Outcome};
use crate::printer::Table;
use crate::session::Session;
use crate::values;
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum ContextCommand {
    /// List them; the current one is marked
    #[command(after_help = "Examples:\n  conpaas context list\n  conpaas context list --json")]
    List,
    /// Make one the current one
    #[command(after_help = "Examples:\n  conpaas context use work")]
    Use {
        /// Its name (see `conpaas context list`)
        name: String,
    },
    /// Add one by hand (`conpaas login` does it by itself)
    #[command(
        after_help = "Examples:\n  conpaas context add ci https://paas.example.org:8443 --fingerprint 3f0a.. --token-file /run/secrets/token"
    )]
    Add {
        /// What to call it
        name: String,
        /// The Director's address, https://HOST:PORT
        url: String,
        /// The fingerprint of its key
        #[arg(long, value_name = "HEX", value_parser = values::fingerprint)]
        fingerprint: String,
        /// A file that holds a token; by default one that `conpaas login` fills
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Forget one and its token
    #[command(after_help = "Examples:\n  conpaas context remove work")]
    Remove {
        /// Its name (see `conpaas context list`)
        name: String,
    },
}

fn unknown(name: &str) -> CliError {
    CliError::new(Exit::NotFound, format!("there is no context '{name}'"))
        .hint("see those there are: conpaas context list")
}

pub fn run(session: &Session, command: ContextCommand) -> Outcome {
    let store = session.store()?;
    let mut contexts = store.load()?;
    let printer = &session.printer;
    match command {
        ContextCommand::List => {
            let current = session.context.clone().or(contexts.current.clone());
            let is_current = |name: &String| current.as_ref() == Some(name);
            let rows: Vec<serde_json::Value> = contexts
                .contexts
                .iter()
                .map(|(name, context)| {
                    serde_json::json!({"name": name, "current": is_current(name), "url": context.url,
                        "fingerprint": context.fingerprint, "token_file": context.token_file})
                })
                .collect();
            printer.either(&rows, |printer| {
                let mut table = Table::new(["", "NAME", "URL", "FINGERPRINT"]);
                for (name, context) in &contexts.contexts {
                    let mark = if is_current(name) { "*" } else { "" };
                    table.row([
                        mark.to_owned(),
                        name.clone(),
                        context.url.clone(),
                        context.fingerprint.clone(),
                    ]);
                }
                table.print(printer);
            })
        }
        ContextCommand::Use { name } => {
            if !contexts.contexts.contains_key(&name) {
                return Err(unknown(&name));
            }
            contexts.current = Some(name.clone());
            store.save(&contexts)?;
            printer.either(&serde_json::json!({"current": name}), |p| {
                p.note(&format!("using '{name}'"))
            })
        }
        ContextCommand::Add {
            name,
            url,
            fingerprint,
            token_file,
        } => {
            check_name(&name).map_err(CliError::usage)?;
            if contexts.contexts.contains_key(&name) {
                return Err(CliError::new(
                    Exit::Conflict,
                    format!("there is a context '{name}' already"),
                )
                .hint(format!("conpaas context remove {name}")));
            }
            let endpoint = conpaas_client::Endpoint {
                url: url.clone(),
                fingerprint: Some(fingerprint.clone()),
                token: None,
            };
            // Making a client checks the address and the fingerprint; nobody is dialled.
            let client = conpaas_client::Client::new(&endpoint).map_err(|error| CliError {
                exit: Exit::Usage,
                ..error.into()
            })?;
            let token_file = match token_file {
                Some(path) => std::path::absolute(&path).map_err(|error| {
                    CliError::failed("the token file has no place").because(&error)
                })?,
                None => store.token_file(&name),
            };
            let context = Context {
                url: client.url().to_owned(),
                fingerprint,
                token_file,
            };
            printer.either(
                &serde_json::json!({"name": name, "url": context.url}),
                |p| {
                    p.note(&format!("added '{name}'"));
                },
            )?;
            contexts.contexts.insert(name.clone(), context);
            contexts.current.get_or_insert(name);
            store.save(&contexts)
        }
        ContextCommand::Remove { name } => {
            if !store.forget(&name)? {
                return Err(unknown(&name));
            }
            printer.either(&serde_json::json!({"removed": name}), |p| {
                p.note(&format!("forgot '{name}'"))
            })
        }
    }
}
