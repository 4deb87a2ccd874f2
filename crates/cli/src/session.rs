//! What every command has at hand: how to print, and the Director that was chosen.

use crate::contexts::{Context, ContextStore};
use crate::exit::{CliError, Exit};
use crate::printer::Printer;
use conpaas_client::{Client, ClientError, Endpoint};
use conpaas_model::api::Page;
use std::io::IsTerminal;

/// One run of the program.
pub struct Session {
    pub printer: Printer,
    /// The context that was named on the command line or in the environment.
    pub context: Option<String>,
    /// Changes are refused unless what they change still is this.
    pub if_match: Option<String>,
}

impl Session {
    pub fn store(&self) -> Result<ContextStore, CliError> {
        ContextStore::of_person()
    }

    /// The chosen context with its name.
    pub fn context(&self) -> Result<(String, Context), CliError> {
        let store = self.store()?;
        let contexts = store.load()?;
        let Some(name) = self.context.clone().or(contexts.current.clone()) else {
            return Err(CliError::new(Exit::NotAllowed, "no Director is chosen").hint(
                "start one here with `conpaas nutshell up`, or log in to one: conpaas login https://HOST:PORT",
            ));
        };
        match contexts.contexts.get(&name) {
            Some(context) => Ok((name, context.clone())),
            None => Err(
                CliError::new(Exit::NotFound, format!("there is no context '{name}'"))
                    .hint("see those there are: conpaas context list"),
            ),
        }
    }

    /// A client of the chosen Director: `CONPAAS_URL` with `CONPAAS_TOKEN` before any context,
    /// unless one was named.
    pub fn client(&self) -> Result<Client, CliError> {
        Ok(self.unguarded_client()?.if_match(self.if_match.clone()))
    }

    fn unguarded_client(&self) -> Result<Client, CliError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if self.context.is_none()
            && let Some(url) = variable("CONPAAS_URL")
        {
            let fingerprint = match variable("CONPAAS_FINGERPRINT") {
                Some(text) => Some(crate::values::fingerprint(&text).map_err(|why| {
                    let mut error = CliError::usage(format!(
                        "CONPAAS_FINGERPRINT is '{text}', which is no fingerprint"
                    ));
                    error.causes.push(why);
                    error.hint(format!(
                        "mend it, or unset it and pin the fingerprint once: conpaas login {url}"
                    ))
                })?),
                None => self.pinned(&url)?,
            };
            if fingerprint.is_none() && url.starts_with("https:") {
                return Err(CliError::usage(format!(
                    "the fingerprint of the Director at {url} is not known"
                ))
                .hint(format!(
                    "set CONPAAS_FINGERPRINT, or pin it once: conpaas login {url}"
                )));
            }
            return Ok(Client::new(&Endpoint {
                url,
                fingerprint,
                token: variable("CONPAAS_TOKEN"),
            })?);
        }
        let (name, context) = self.context()?;
        let Some(token) = context.token()? else {
            return Err(CliError::new(
                Exit::NotAllowed,
                format!("nobody is logged in to '{name}'"),
            )
            .hint(format!("conpaas login {}", context.url)));
        };
        Ok(Client::new(&Endpoint {
            url: context.url,
            fingerprint: Some(context.fingerprint),
            token: Some(token),
        })?)
    }

    /// The fingerprint that any context has pinned for this address.
    pub fn pinned(&self, url: &str) -> Result<Option<String>, CliError> {
        let same =
            |context: &&Context| context.url.trim_end_matches('/') == url.trim_end_matches('/');
        Ok(self
            .store()?
            .load()?
            .contexts
            .values()
            .find(same)
            .map(|context| context.fingerprint.clone()))
    }

    /// Makes sure that a person means it: they type `name`, or said `--yes`.
    pub fn confirm(&self, yes: bool, what: &str, name: &str) -> Result<(), CliError> {
        if yes {
            return Ok(());
        }
        if !can_ask() {
            return Err(CliError::usage(format!(
                "{what}; that has to be confirmed, and there is no terminal to ask at"
            ))
            .hint("add --yes"));
        }
        self.printer.ask(&format!("{what}. Type {name} to go on: "));
        if read_line()? == name {
            Ok(())
        } else {
            Err(CliError::failed(
                "that was not the name, so nothing was done",
            ))
        }
    }
}

/// Whether there is a person to ask.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// What a person types.
pub fn read_line() -> Result<String, CliError> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| CliError::failed("standard input cannot be read").because(&error))?;
    Ok(line.trim().to_owned())
}

/// A secret from a file (`-`: standard input), or typed by a person without being shown.
pub fn secret(file: Option<&std::path::Path>, prompt: &str) -> Result<String, CliError> {
    let text = match file {
        Some(path) if path == std::path::Path::new("-") => {
            std::io::read_to_string(std::io::stdin()).map_err(|error| {
                CliError::failed("standard input cannot be read").because(&error)
            })?
        }
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            CliError::failed(format!("{} cannot be read", path.display())).because(&error)
        })?,
        None if can_ask() => rpassword::prompt_password(prompt)
            .map_err(|error| CliError::failed("the password cannot be read").because(&error))?,
        None => {
            return Err(CliError::usage(
                "a password is needed, and there is no terminal to ask at",
            )
            .hint("add --password-file FILE (or - for standard input)"));
        }
    };
    let secret = text.trim_end_matches(['\r', '\n']).to_owned();
    if secret.is_empty() {
        Err(CliError::usage("the password is empty"))
    } else {
        Ok(secret)
    }
}

/// All items of a collection, page by page, at most `limit`.
pub async fn all<T>(
    limit: Option<usize>,
    mut page: impl AsyncFnMut(Option<String>) -> Result<Page<T>, ClientError>,
) -> Result<Vec<T>, ClientError> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut items = Vec::new();
    let mut cursor = None;
    loop {
        let Page { items: more, next } = page(cursor).await?;
        items.extend(more);
        if items.len() >= limit || next.is_none() {
            items.truncate(limit);
            return Ok(items);
        }
        cursor = next;
    }
}
