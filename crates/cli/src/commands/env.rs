//! `conpaas env`: variables that code of a service reads from its environment.

use crate::exit::{CliError, Outcome};
use crate::follow::{Wait, finish};
use crate::printer::Table;
use crate::session::{Session, all};
use crate::target::ServiceTarget;
use crate::values;
use clap::Subcommand;
use conpaas_client::ListEnvQuery;
use conpaas_model::api::EnvironmentChange;
use std::collections::BTreeMap;

#[derive(Subcommand)]
pub enum EnvCommand {
    /// Set variables: makes a release, and the service goes on meanwhile
    #[command(
        after_help = "Examples:\n  conpaas env set shop/web LOG_LEVEL=debug DB_HOST=db.internal\n\nWhat nobody else may see goes by: conpaas secret set"
    )]
    Set {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// NAME=VALUE; names are capital letters, digits and '_'
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = values::pair)]
        variables: Vec<(String, String)>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the variables
    #[command(
        after_help = "Examples:\n  conpaas env list shop/web\n  conpaas env list shop/web --json"
    )]
    List {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
    },
    /// Unset variables: makes a release without them
    #[command(after_help = "Examples:\n  conpaas env unset shop/web LOG_LEVEL")]
    Unset {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
}

pub async fn run(session: &Session, command: EnvCommand) -> Outcome {
    let client = session.client()?;
    match command {
        EnvCommand::Set {
            target,
            variables,
            wait,
        } => {
            let mut changes = BTreeMap::new();
            for (name, value) in variables {
                if changes.insert(name.clone(), Some(value)).is_some() {
                    return Err(CliError::usage(format!("{name} is given twice")));
                }
            }
            let body = EnvironmentChange { variables: changes };
            let accepted = client.set_env(&target.app, &target.service, &body).await?;
            finish(session, &client, accepted, &wait).await
        }
        EnvCommand::List { target } => {
            let variables = all(None, async |cursor| {
                let query = ListEnvQuery {
                    cursor,
                    ..Default::default()
                };
                client.list_env(&target.app, &target.service, &query).await
            })
            .await?;
            session.printer.either(&variables, |printer| {
                let mut table = Table::new(["NAME", "VALUE"]);
                for variable in &variables {
                    table.row([variable.name.clone(), one_line(&variable.value)]);
                }
                table.print(printer);
            })
        }
        EnvCommand::Unset {
            target,
            names,
            wait,
        } => {
            let body = EnvironmentChange {
                variables: names.into_iter().map(|name| (name, None)).collect(),
            };
            let accepted = client.set_env(&target.app, &target.service, &body).await?;
            finish(session, &client, accepted, &wait).await
        }
    }
}

/// A value on one line of a table; `--json` has it as it is.
fn one_line(value: &str) -> String {
    value
        .chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_on_its_line() {
        assert_eq!(one_line("a\nb\tc \u{fc} \\"), "a\\nb\\tc \u{fc} \\");
    }
}
