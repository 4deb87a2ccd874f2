//! `conpaas secret`: what code of a service reads from its environment and nobody else may see.
//! A value is typed, or comes from a file or standard input: never from the command line, which
//! other users of this computer can read.

use crate::commands::time;
use crate::exit::{CliError, Outcome};
use crate::follow::{Wait, finish};
use crate::printer::Table;
use crate::session::{Session, all, can_ask};
use crate::target::ServiceTarget;
use clap::Subcommand;
use conpaas_client::ListSecretsQuery;
use conpaas_model::api::SecretChange;
use conpaas_model::environment::MAX_VALUE;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum SecretCommand {
    /// Set one to a new value, which is typed or comes from a file: makes a release
    #[command(
        after_help = "Examples:\n  conpaas secret set shop/web DB_PASSWORD\n  conpaas secret set shop/web TLS_KEY --from-file key.pem\n  pwgen 32 1 | conpaas secret set shop/web API_KEY --from-file -\n\nCode finds it in its environment. Its value is never shown again, here or in the API."
    )]
    Set {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Its name: capital letters, digits and '_'
        name: String,
        /// Take the value from a file (- for standard input), without the newline at its end
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        /// Take every byte of the file, also a newline at its end
        #[arg(long, requires = "from_file")]
        exact: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the secrets: names, versions, since when and by whom; never values
    #[command(after_help = "Examples:\n  conpaas secret list shop/web")]
    List {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
    },
    /// Unset one: makes a release without it
    #[command(
        after_help = "Examples:\n  conpaas secret unset shop/web DB_PASSWORD\n\nGoing back to an earlier release brings it back: a value that leaked has to be changed where it opens something."
    )]
    Unset {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Its name
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
}

pub async fn run(session: &Session, command: SecretCommand) -> Outcome {
    let client = session.client()?;
    match command {
        SecretCommand::Set {
            target,
            name,
            from_file,
            exact,
            wait,
        } => {
            let value = match &from_file {
                Some(path) => from(path, exact)?,
                None => ask(&name)?,
            };
            let accepted = client
                .set_secret(&target.app, &target.service, &name, &SecretChange { value })
                .await?;
            finish(session, &client, accepted, &wait).await
        }
        SecretCommand::List { target } => {
            let secrets = all(None, async |cursor| {
                let query = ListSecretsQuery {
                    cursor,
                    ..Default::default()
                };
                client
                    .list_secrets(&target.app, &target.service, &query)
                    .await
            })
            .await?;
            session.printer.either(&secrets, |printer| {
                let mut table = Table::new(["NAME", "VERSION", "SET", "BY", ""]);
                for secret in &secrets {
                    let lost = if secret.readable {
                        ""
                    } else {
                        "its key is lost: set it again"
                    };
                    table.row([
                        secret.name.clone(),
                        secret.version.to_string(),
                        time(&secret.created_at),
                        secret.actor.clone(),
                        lost.to_owned(),
                    ]);
                }
                table.print(printer);
            })
        }
        SecretCommand::Unset { target, name, wait } => {
            let accepted = client
                .unset_secret(&target.app, &target.service, &name)
                .await?;
            finish(session, &client, accepted, &wait).await
        }
    }
}

fn ask(name: &str) -> Result<String, CliError> {
    if !can_ask() {
        return Err(
            CliError::usage("a value is needed, and there is no terminal to ask at")
                .hint("add --from-file FILE (or - for standard input)"),
        );
    }
    let value = rpassword::prompt_password(format!("Value of {name}: "))
        .map_err(|error| CliError::failed("the value cannot be read").because(&error))?;
    if value.is_empty() {
        return Err(CliError::usage("the value is empty")
            .hint("an empty one has to be meant: --from-file /dev/null"));
    }
    Ok(value)
}

fn from(path: &Path, exact: bool) -> Result<String, CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed(format!("{} cannot be read", path.display())).because(&error)
    };
    // A little more than can be taken, so that the Director says what is too long.
    let most = MAX_VALUE as u64 + 2;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    }
    .map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| {
        CliError::usage(format!(
            "{} holds bytes that are no text in UTF-8, and only text can be in an environment",
            path.display()
        ))
        .hint("encode it: base64 FILE | conpaas secret set TARGET NAME --from-file -")
    })?;
    Ok(if exact { text } else { without_end(text) })
}

/// The text without the newline that editors and `echo` put at its end.
fn without_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_goes_unless_every_byte_is_wanted() {
        for (text, left) in [
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            ("a", "a"),
            ("", ""),
        ] {
            assert_eq!(without_end(text.to_owned()), left);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "x\n").unwrap();
        assert_eq!(from(&path, false).unwrap(), "x");
        assert_eq!(from(&path, true).unwrap(), "x\n");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(from(&path, true).is_err());
    }
}
