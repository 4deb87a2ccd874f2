//! `login`, `logout`, `whoami`.

use crate::commands::{time, word};
use crate::contexts::check_name;
use crate::exit::{CliError, Exit, Outcome};
use crate::printer::print_pairs;
use crate::session::{Session, can_ask, read_line, secret};
use crate::values;
use clap::Args;
use conpaas_client::{Client, Endpoint};
use conpaas_model::api::Login;
use conpaas_model::ids::Name;
use std::path::PathBuf;

/// Log in to a Director
///
/// At the first contact the Director's fingerprint is shown; compare it with what the operator
/// told you. From then on only that Director is talked to.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    conpaas login https://paas.example.org:8443\n  \
    conpaas login https://paas.example.org:8443 --user ada --password-file secret.txt --fingerprint 3f0a..\n  \
    conpaas login                    again, to the Director of the current context")]
pub struct LoginArgs {
    /// The Director's address, https://HOST:PORT; by default that of the context
    url: Option<String>,
    /// Who you are; asked for when absent
    #[arg(long, short)]
    user: Option<Name>,
    /// Read the password from a file (- for standard input)
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The fingerprint that the Director must have
    #[arg(long, value_name = "HEX", value_parser = values::fingerprint)]
    fingerprint: Option<String>,
    /// Trust the fingerprint that the Director shows now, although another one was pinned
    #[arg(long)]
    repin: bool,
    /// Trust the fingerprint at the first contact without asking
    #[arg(long, short)]
    yes: bool,
    /// What to call the context; by default the Director's host
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Log out: revoke the token and forget it
#[derive(Args)]
#[command(after_help = "Examples:\n  conpaas logout\n  conpaas logout --context work")]
pub struct LogoutArgs {}

/// Show who you are to the Director
#[derive(Args)]
#[command(after_help = "Examples:\n  conpaas whoami\n  conpaas whoami --json")]
pub struct WhoamiArgs {}

pub async fn login(session: &Session, args: LoginArgs) -> Outcome {
    let (url, known_name) = match &args.url {
        Some(url) => (url.trim_end_matches('/').to_owned(), None),
        None => {
            let (name, context) = session.context()?;
            (context.url, Some(name))
        }
    };
    let name = match args.name.clone().or(session.context.clone()).or(known_name) {
        Some(name) => name,
        None => name_of(&url),
    };
    check_name(&name).map_err(CliError::usage)?;
    let pinned = if args.repin {
        None
    } else {
        session.pinned(&url)?
    };
    let fingerprint = match args.fingerprint.clone().or(pinned) {
        Some(fingerprint) => fingerprint,
        None => first_contact(session, &url, args.yes).await?,
    };
    let client = Client::new(&Endpoint {
        url: url.clone(),
        fingerprint: Some(fingerprint.clone()),
        token: None,
    })?;
    // Whether anybody is there is worth knowing before a password is typed.
    client.version().await?;
    let user = match args.user {
        Some(user) => user,
        None if can_ask() => {
            session.printer.ask("User: ");
            read_line()?
                .parse()
                .map_err(|error: conpaas_model::ids::IdError| CliError::usage(error.to_string()))?
        }
        None => {
            return Err(CliError::usage(
                "who you are is not said, and there is no terminal to ask at",
            )
            .hint("add --user NAME --password-file FILE"));
        }
    };
    let password = secret(args.password_file.as_deref(), "Password: ")?;
    let token = client
        .login(&Login {
            name: user,
            password,
            label: label(),
            lifetime_seconds: None,
        })
        .await?;
    session
        .store()?
        .remember(&name, &url, &fingerprint, &token.secret, None)?;
    let shown = serde_json::json!({
        "context": name, "url": url, "fingerprint": fingerprint, "user": token.user, "expires_at": token.expires_at,
    });
    if session.printer.is_json() {
        return session.printer.value(&shown);
    }
    session.printer.note(&format!(
        "logged in to {url} as {} until {} UTC; the context is called '{name}'",
        token.user.name,
        time(&token.expires_at)
    ));
    Ok(())
}

/// What the token is called in the list of tokens.
fn label() -> Option<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(format!("conpaas on {}", host.trim()))
}

fn name_of(url: &str) -> String {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    let name: String = host
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    name.trim_matches(['-', '.']).to_owned()
}

/// Shows the fingerprint of whoever answers, and asks whether that is the Director.
async fn first_contact(session: &Session, url: &str, yes: bool) -> Result<String, CliError> {
    let (client, seen) = Client::first_contact(url)?;
    client.version().await?;
    let Some(fingerprint) = seen.get() else {
        return Err(
            CliError::failed(format!("the Director at {url} shows no fingerprint"))
                .hint("its address should start with https://"),
        );
    };
    if yes {
        session
            .printer
            .note(&format!("the fingerprint of {url} is {fingerprint}"));
        return Ok(fingerprint);
    }
    if !can_ask() {
        return Err(CliError::usage(format!(
            "the Director at {url} is new to you; its fingerprint is {fingerprint}"
        ))
        .hint(format!(
            "compare it with what the operator told you, then add --fingerprint {fingerprint}"
        )));
    }
    session.printer.ask(&format!(
        "The Director at {url} is new to you. Its fingerprint is\n  {fingerprint}\n\
         Compare it with what the operator told you. Is it the same (yes/no)? "
    ));
    if read_line()? == "yes" {
        Ok(fingerprint)
    } else {
        Err(CliError::new(
            Exit::Failed,
            "the fingerprint was not trusted, so nothing was sent",
        ))
    }
}

pub async fn logout(session: &Session) -> Outcome {
    let (name, context) = session.context()?;
    let Some(token) = context.token()? else {
        return session.printer.either(
            &serde_json::json!({"context": name, "revoked": false}),
            |p| {
                p.note(&format!("nobody was logged in to '{name}'"));
            },
        );
    };
    let endpoint = Endpoint {
        url: context.url,
        fingerprint: Some(context.fingerprint),
        token: Some(token),
    };
    let revoked = match Client::new(&endpoint)?.logout().await {
        Ok(()) => true,
        // A token that the Director does not know any more needs no revoking.
        Err(error) if error.status() == Some(401) => true,
        Err(error) => {
            session.printer.warn(&format!(
                "the token could not be revoked and stays valid until it expires: {error}"
            ));
            false
        }
    };
    crate::contexts::remove_if_there(&context.token_file)?;
    session.printer.either(
        &serde_json::json!({"context": name, "revoked": revoked}),
        |p| {
            p.note(&format!("logged out of '{name}'"));
        },
    )
}

pub async fn whoami(session: &Session) -> Outcome {
    let user = session.client()?.whoami().await?;
    session.printer.either(&user, |printer| {
        print_pairs(
            printer,
            &[
                ("name", user.name.to_string()),
                ("id", user.id.to_string()),
                ("rank", word(&user.rank)),
                ("nodes", format!("{} of {}", user.nodes, user.node_quota)),
            ],
        );
    })
}
