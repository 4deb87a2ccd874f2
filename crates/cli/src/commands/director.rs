//! `conpaas director`: the Directors this person knows, and the chosen one itself.

use crate::commands::quarantine::{self, QuarantineCommand};
use crate::commands::time;
use crate::exit::{CliError, Exit, Outcome};
use crate::follow::Wait;
#[cfg(feature = "daemons")]
use crate::nutshell::{Where, backup};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all};
use clap::Subcommand;
use conpaas_client::{Client, ClientError, Endpoint, ListRootsQuery};
use conpaas_model::api::{DirectorInfo, RootInfo, RootState};
use serde::Serialize;
#[cfg(feature = "daemons")]
use std::path::PathBuf;
use std::time::Duration;

/// How long one that does not answer is waited for in a list of many.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Subcommand)]
pub enum DirectorCommand {
    /// List the Directors you know, and whether they answer
    #[command(after_help = "Examples:\n  conpaas director list\n  conpaas director list --json")]
    List,
    /// Show its version, since when it runs, and where applications are reached
    #[command(
        after_help = "Examples:\n  conpaas director show\n  conpaas director show --context work"
    )]
    Show,
    /// Look whether it answers, is the one that was pinned, and takes your login
    #[command(after_help = "Examples:\n  conpaas director check\n  conpaas director check --json")]
    Check,
    /// What it measures of itself, in the format that Prometheus reads (operators)
    #[command(
        after_help = "Examples:\n  conpaas director metrics\n  conpaas director metrics | grep store_write"
    )]
    Metrics,
    /// The same as `show`
    #[command(
        after_help = "Examples:\n  conpaas director status\n  conpaas director status --json"
    )]
    Status,
    /// The roots by which machines, managers and the Director trust each other (for operators)
    #[command(
        subcommand,
        after_help = "Examples:\n  conpaas director roots list\n  conpaas director roots add"
    )]
    Roots(RootsCommand),
    /// Machines that a restored backup does not know (for operators)
    #[command(
        subcommand,
        after_help = "Examples:\n  conpaas director quarantine list\n  conpaas director quarantine destroy --all"
    )]
    Quarantine(QuarantineCommand),
    /// Write everything the Director of this computer keeps into one archive, keys included
    #[cfg(feature = "daemons")]
    #[command(
        after_help = "Examples:\n  conpaas director backup\n  conpaas director backup /backups/monday.tar.gz --force\n  conpaas director backup - | age -r KEY > backup.age\n\nThe Director may run meanwhile. Keys are in the archive: keep it where nobody else reads it."
    )]
    Backup {
        #[command(flatten)]
        place: Where,
        /// The archive to write; `-` for standard output (by default one named by the time, here)
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Overwrite a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Put a backup in the place of what the Director of this computer keeps
    #[cfg(feature = "daemons")]
    #[command(
        after_help = "Examples:\n  conpaas nutshell down --director && conpaas director restore monday.tar.gz && conpaas nutshell up\n  conpaas director restore monday.tar.gz --state /srv/conpaas --yes\n\nWhat was there is kept beside it. Machines that the backup does not know are left alone: conpaas director quarantine list"
    )]
    Restore {
        #[command(flatten)]
        place: Where,
        /// The archive
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Do not ask for the name
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub enum RootsCommand {
    /// List the roots that everybody trusts, and for whom a change of them waits
    #[command(
        after_help = "Examples:\n  conpaas director roots list\n  conpaas director roots list --json"
    )]
    List,
    /// Make a new root; it signs as soon as everybody trusts it, and everybody gets a certificate of it
    #[command(
        after_help = "Examples:\n  conpaas director roots add\n  conpaas director roots add --timeout 5m\n  conpaas director roots add --no-wait"
    )]
    Add {
        #[command(flatten)]
        wait: Wait,
    },
    /// Trust a root no more; refused while anybody has a certificate of it
    #[command(
        after_help = "Examples:\n  conpaas director roots retire 4f0c2a91b7\n  conpaas director roots retire 4f0c2a91b7 --json"
    )]
    Retire {
        /// Its fingerprint, or the beginning of it (see `list`)
        root: String,
    },
}

/// A Director of the person's list.
#[derive(Serialize)]
struct Known {
    context: String,
    url: String,
    version: Option<String>,
    /// Why it does not answer.
    trouble: Option<String>,
}

/// What a check found.
#[derive(Serialize)]
struct Checked {
    check: &'static str,
    ok: bool,
    detail: String,
}

pub async fn run(session: &Session, command: DirectorCommand) -> Outcome {
    match command {
        DirectorCommand::List => list(session).await,
        DirectorCommand::Show | DirectorCommand::Status => show(session).await,
        DirectorCommand::Check => check(session).await,
        DirectorCommand::Metrics => {
            let text = session.client()?.director_metrics().await?.text().await?;
            session
                .printer
                .either(&text, |printer| printer.raw(text.as_bytes()))
        }
        DirectorCommand::Roots(command) => roots(session, command).await,
        DirectorCommand::Quarantine(command) => quarantine::run(session, command).await,
        #[cfg(feature = "daemons")]
        DirectorCommand::Backup { place, file, force } => {
            backup::take(session, place, file, force).await
        }
        #[cfg(feature = "daemons")]
        DirectorCommand::Restore { place, file, yes } => {
            backup::restore(session, place, &file, yes).await
        }
    }
}

async fn list(session: &Session) -> Outcome {
    let contexts = session.store()?.load()?.contexts;
    let mut found = Vec::new();
    for (name, context) in contexts {
        let endpoint = Endpoint {
            url: context.url.clone(),
            fingerprint: Some(context.fingerprint),
            token: None,
        };
        let asked = async { Client::new(&endpoint)?.version().await };
        let (version, trouble) = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(info)) => (Some(info.version), None),
            Ok(Err(error)) => (None, Some(error.to_string())),
            Err(_) => (None, Some("it does not answer in time".to_owned())),
        };
        found.push(Known {
            context: name,
            url: context.url,
            version,
            trouble,
        });
    }
    session.printer.either(&found, |printer| {
        let mut table = Table::new(["CONTEXT", "URL", "VERSION", "TROUBLE"]);
        for known in &found {
            table.row([
                known.context.clone(),
                known.url.clone(),
                known.version.clone().unwrap_or_default(),
                known.trouble.clone().unwrap_or_default(),
            ]);
        }
        table.print(printer);
    })
}

async fn show(session: &Session) -> Outcome {
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
        if let Some(at) = &info.restored_at {
            print_pairs(
                printer,
                &[("restored", format!("{} (incarnation {})", time(at), info.incarnation))],
            );
        }
        if info.quarantined > 0 {
            printer.note(&format!(
                "{} machines that the restored backup does not know are in quarantine: conpaas director quarantine list",
                info.quarantined
            ));
        }
        if info.version != conpaas_model::VERSION {
            printer.note(&format!(
                "this program is version {}",
                conpaas_model::VERSION
            ));
        }
    })
}

async fn roots(session: &Session, command: RootsCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        RootsCommand::List => {
            let roots = all_roots(&client).await?;
            printer.either(&roots, |printer| {
                let mut table = Table::new([
                    "ROOT",
                    "STATE",
                    "TRUSTED BY",
                    "CERTIFICATES",
                    "EXPIRES",
                    "WAITS FOR",
                ]);
                for root in &roots {
                    table.row([
                        short(&root.fingerprint).to_owned(),
                        word(root.state).to_owned(),
                        format!("{} of {}", root.trusted_by, root.parties),
                        root.certificates.to_string(),
                        time(&root.expires_at),
                        waits_for(root),
                    ]);
                }
                table.print(printer);
            })
        }
        RootsCommand::Add { wait } => {
            let made = client.add_root().await?;
            let done = if wait.no_wait {
                made
            } else {
                until_it_signs(session, &client, made, wait.timeout).await?
            };
            printer.either(&done, |printer| {
                printer.line(short(&done.fingerprint));
                printer.note(match done.state {
                    RootState::Signs => "it signs now; retire the other one when nobody has a certificate of it: conpaas director roots list",
                    _ => "it signs as soon as everybody trusts it: conpaas director roots list",
                });
            })
        }
        RootsCommand::Retire { root } => {
            client.retire_root(&root).await?;
            printer.either(&serde_json::json!({"retired": root}), |printer| {
                printer.note(&format!("{root} is trusted no more"));
            })
        }
    }
}

async fn all_roots(client: &Client) -> Result<Vec<RootInfo>, ClientError> {
    all(None, async |cursor| {
        client
            .list_roots(&ListRootsQuery {
                cursor,
                ..Default::default()
            })
            .await
    })
    .await
}

/// Looks on until everybody trusts a new root, so that it signs.
async fn until_it_signs(
    session: &Session,
    client: &Client,
    made: RootInfo,
    limit: Option<Duration>,
) -> Result<RootInfo, CliError> {
    let begun = std::time::Instant::now();
    let mut told = String::new();
    loop {
        let roots = all_roots(client).await?;
        let found = roots
            .into_iter()
            .find(|root| root.fingerprint == made.fingerprint)
            .ok_or_else(|| CliError::new(Exit::Conflict, "somebody retired it again"))?;
        if found.state == RootState::Signs {
            return Ok(found);
        }
        let waits = waits_for(&found);
        if waits != told {
            session.printer.note(&format!("waits for {waits}"));
            told = waits;
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            return Err(CliError::new(
                Exit::Detached,
                "not everybody trusts it yet; it signs as soon as they do",
            )
            .hint("see for whom it waits: conpaas director roots list"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// As much of a fingerprint as tells roots apart.
fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

fn word(state: RootState) -> &'static str {
    match state {
        RootState::Signs => "signs",
        RootState::Next => "next",
        RootState::Former => "former",
    }
}

fn waits_for(root: &RootInfo) -> String {
    const SHOWN: usize = 3;
    let names = &root.waits_for;
    let mut text = names
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// The checks of answers to the two questions asked, and the first error among them.
fn judged(
    info: Result<DirectorInfo, ClientError>,
    login: Result<String, ClientError>,
) -> (Vec<Checked>, Option<CliError>) {
    let mut checks = Vec::new();
    let mut error: Option<CliError> = None;
    let mut note = |check, result: Result<String, ClientError>| match result {
        Ok(detail) => checks.push(Checked {
            check,
            ok: true,
            detail,
        }),
        Err(why) => {
            checks.push(Checked {
                check,
                ok: false,
                detail: why.to_string(),
            });
            error.get_or_insert(why.into());
        }
    };
    let version = info.as_ref().map(|info| info.version.clone()).ok();
    note(
        "answers, and is the pinned one",
        info.map(|info| info.installation),
    );
    note("takes the login", login.map(|name| format!("of {name}")));
    if let Some(version) = version {
        let same = version == conpaas_model::VERSION;
        let detail = format!("{version}, this program is {}", conpaas_model::VERSION);
        checks.push(Checked {
            check: "version",
            ok: same,
            detail,
        });
        if !same && error.is_none() {
            error = Some(
                CliError::new(
                    Exit::Failed,
                    "the Director has another version than this program",
                )
                .hint("use the program of its version, or upgrade it: conpaas nutshell up"),
            );
        }
    }
    (checks, error)
}

async fn check(session: &Session) -> Outcome {
    let client = session.client()?;
    let info = client.director_info().await;
    let login = client.whoami().await.map(|user| user.name.to_string());
    let (checks, error) = judged(info, login);
    session.printer.either(&checks, |printer| {
        let mut table = Table::new(["", "CHECK", "FOUND"]);
        for check in &checks {
            let mark = if check.ok { "ok" } else { "NO" };
            table.row([
                mark.to_owned(),
                check.check.to_owned(),
                check.detail.clone(),
            ]);
        }
        table.print(printer);
    })?;
    error.map_or(Ok(()), Err)
}
