//! `conpaas code`: code versions of a service.

use crate::commands::service::held;
use crate::commands::time;
use crate::exit::{CliError, Exit, Outcome};
use crate::follow::{Wait, finish};
use crate::printer::{Printer, Table};
use crate::session::{Session, all};
use crate::target::ServiceTarget;
use crate::upload::upload;
use crate::values::size;
use clap::Subcommand;
use conpaas_client::{ActivateCodeQuery, Client, ListCodeQuery, ListReleasesQuery};
use conpaas_model::api::{Code, ReleaseInfo};
use conpaas_model::ids::CodeId;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum CodeCommand {
    /// Upload an archive, or a folder, which is packed
    #[command(
        after_help = "Examples:\n  conpaas code upload shop/web site.tar.gz --activate\n  conpaas code upload shop/web ./site --description 'new colours'\n  conpaas code upload shop/web ./site --preview"
    )]
    Upload {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// A tar (plain, gz, bz2, xz, zst), a zip, or a folder
        #[arg(value_name = "FILE|FOLDER")]
        source: PathBuf,
        /// What it is, for people
        #[arg(long)]
        description: Option<String>,
        /// Lead people to it when it is healthy
        #[arg(long)]
        activate: bool,
        /// Hold it: it is shown at the preview address alone, until it is promoted
        #[arg(long, conflicts_with = "activate")]
        preview: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// List them; the active one is marked
    #[command(after_help = "Examples:\n  conpaas code list shop/web")]
    List {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
    },
    /// Lead people to a code version when it is healthy
    #[command(
        after_help = "Examples:\n  conpaas code activate shop/web code-1a2b\n  conpaas code activate shop/web code-1a2b --preview"
    )]
    Activate {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Its id (see `conpaas code list`)
        code: CodeId,
        /// Hold the release: it is shown at the preview address alone, until it is promoted
        #[arg(long)]
        preview: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Activate the code version that was active before; settings stay
    #[command(after_help = "Examples:\n  conpaas code rollback shop/web")]
    Rollback {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Fetch the archive as it was uploaded
    #[command(
        after_help = "Examples:\n  conpaas code download shop/web code-1a2b\n  conpaas code download shop/web code-1a2b --output - | tar tz"
    )]
    Download {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Its id (see `conpaas code list`)
        code: String,
        /// Where to put it (- for standard output); by default under its own name
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Delete one that is not active
    #[command(after_help = "Examples:\n  conpaas code delete shop/web code-1a2b --yes")]
    Delete {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Its id (see `conpaas code list`)
        code: String,
        /// Do not ask for the id
        #[arg(long, short)]
        yes: bool,
    },
}

pub async fn run(session: &Session, command: CodeCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        CodeCommand::Upload {
            target,
            source,
            description,
            activate,
            preview,
            wait,
        } => {
            let code = upload(session, &client, &target, &source, description).await?;
            if !activate && !preview {
                return printer.either(&code, |p| {
                    p.line(code.id.as_str());
                    p.note(&format!(
                        "activate it: conpaas code activate {target} {}",
                        code.id
                    ));
                });
            }
            if !printer.is_json() {
                printer.line(code.id.as_str());
            }
            release(session, &client, &target, &code.id, preview, &wait).await
        }
        CodeCommand::List { target } => {
            let codes = list(&client, &target).await?;
            printer.either(&codes, |printer| {
                let mut table =
                    Table::new(["", "CODE", "FILE", "SIZE", "UPLOADED", "BY", "DESCRIPTION"]);
                for code in &codes {
                    table.row([
                        if code.active { "*" } else { "" }.to_owned(),
                        code.id.to_string(),
                        code.filename.clone(),
                        size(code.size),
                        time(&code.created_at),
                        code.actor.clone(),
                        code.description.clone(),
                    ]);
                }
                table.print(printer);
            })
        }
        CodeCommand::Activate {
            target,
            code,
            preview,
            wait,
        } => release(session, &client, &target, &code, preview, &wait).await,
        CodeCommand::Rollback { target, wait } => {
            let releases = all(None, async |cursor| {
                let query = ListReleasesQuery {
                    cursor,
                    ..Default::default()
                };
                client
                    .list_releases(&target.app, &target.service, &query)
                    .await
            })
            .await?;
            let Some(code) = code_before(&releases) else {
                return Err(CliError::new(
                    Exit::Conflict,
                    format!("{target} has had no other code version before"),
                )
                .hint(format!("see its history: conpaas service history {target}")));
            };
            release(session, &client, &target, code, false, &wait).await
        }
        CodeCommand::Download {
            target,
            code,
            output,
            force,
        } => download(session, &client, &target, &code, output, force).await,
        CodeCommand::Delete { target, code, yes } => {
            session.confirm(
                yes,
                &format!("{code} of {target} is about to be deleted"),
                &code,
            )?;
            client
                .delete_code(&target.app, &target.service, &code)
                .await?;
            printer.either(&serde_json::json!({"deleted": code}), |p| {
                p.note(&format!("deleted {code}"))
            })
        }
    }
}

/// Leads people to a code version, or those at the preview address.
async fn release(
    session: &Session,
    client: &Client,
    target: &ServiceTarget,
    code: &CodeId,
    preview: bool,
    wait: &Wait,
) -> Outcome {
    let query = ActivateCodeQuery {
        preview: preview.then_some(true),
    };
    let accepted = client
        .activate_code(&target.app, &target.service, code.as_str(), &query)
        .await?;
    finish(session, client, accepted, wait).await?;
    if preview && !wait.no_wait {
        held(session, client, target).await?;
    }
    Ok(())
}

async fn list(client: &Client, target: &ServiceTarget) -> Result<Vec<Code>, CliError> {
    let found = all(None, async |cursor| {
        let query = ListCodeQuery {
            cursor,
            ..Default::default()
        };
        client.list_code(&target.app, &target.service, &query).await
    });
    Ok(found.await?)
}

/// The code of the newest release before the active one that has another code.
fn code_before(releases: &[ReleaseInfo]) -> Option<&CodeId> {
    let active = releases.iter().find(|release| release.active)?;
    releases
        .iter()
        .filter(|release| {
            release.number < active.number
                && !release.never_active
                && release.code.is_some()
                && release.code != active.code
        })
        .max_by_key(|release| release.number)?
        .code
        .as_ref()
}

async fn download(
    session: &Session,
    client: &Client,
    target: &ServiceTarget,
    code: &str,
    output: Option<PathBuf>,
    force: bool,
) -> Outcome {
    let printer = &session.printer;
    if output.as_deref() == Some(Path::new("-")) {
        let mut from = client
            .download_code(&target.app, &target.service, code)
            .await?;
        let mut digest = Sha256::new();
        while let Some(piece) = from.next().await? {
            digest.update(&piece);
            printer.raw(&piece);
        }
        return whole(&from, digest);
    }
    let path = match output {
        Some(path) => path,
        None => {
            let known = list(client, target)
                .await?
                .into_iter()
                .find(|known| known.id.as_str() == code);
            // The name came from whoever uploaded it: it must not lead elsewhere.
            let name =
                known.and_then(|known| Path::new(&known.filename).file_name().map(PathBuf::from));
            name.unwrap_or_else(|| PathBuf::from(code))
        }
    };
    if path.exists() && !force {
        return Err(
            CliError::usage(format!("{} is there already", path.display()))
                .hint("replace it with --force, or name another file with --output"),
        );
    }
    let failed = |error: std::io::Error| {
        CliError::failed(format!("{} cannot be written", path.display())).because(&error)
    };
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut from = client
        .download_code(&target.app, &target.service, code)
        .await?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let bar = printer.bytes_bar(from.length);
    let bytes = fetch(&mut from, &mut file, &bar, &failed).await;
    bar.finish_and_clear();
    let bytes = bytes?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    shown(printer, &path, bytes)
}

async fn fetch(
    from: &mut conpaas_client::Download,
    file: &mut tempfile::NamedTempFile,
    bar: &indicatif::ProgressBar,
    failed: &impl Fn(std::io::Error) -> CliError,
) -> Result<u64, CliError> {
    let (mut bytes, mut digest) = (0, Sha256::new());
    while let Some(piece) = from.next().await? {
        digest.update(&piece);
        file.write_all(&piece).map_err(failed)?;
        bytes += piece.len() as u64;
        bar.set_position(bytes);
    }
    if let Some(length) = from.length.filter(|length| *length != bytes) {
        return Err(
            CliError::failed(format!("only {bytes} of {length} bytes came")).hint("try again"),
        );
    }
    file.flush().map_err(failed)?;
    whole(from, digest)?;
    Ok(bytes)
}

/// Whether what came is what the Director has.
fn whole(from: &conpaas_client::Download, digest: Sha256) -> Outcome {
    let came = hex::encode(digest.finalize());
    match &from.tag {
        Some(tag) if *tag != came => Err(CliError::failed(format!(
            "what came is damaged: its SHA-256 is {came}, not {tag}"
        ))
        .hint("try again")),
        _ => Ok(()),
    }
}

fn shown(printer: &Printer, path: &Path, bytes: u64) -> Outcome {
    printer.either(&serde_json::json!({"file": path, "size": bytes}), |p| {
        p.line(&path.display().to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolling_back_takes_the_code_before() {
        let release = |number: u64, code: Option<&str>, active: bool| -> ReleaseInfo {
            serde_json::from_value(serde_json::json!({
                "number": number, "code": code, "settings": {}, "active": active,
                "created_at": "", "actor": "ada", "reason": "",
            }))
            .unwrap()
        };
        let of = |releases: &[ReleaseInfo]| code_before(releases).map(ToString::to_string);
        let a = || release(1, Some("code-a"), false);
        let b = |active| release(2, Some("code-b"), active);
        assert_eq!(of(&[a(), b(true)]), Some("code-a".into()));
        assert_eq!(
            of(&[release(3, Some("code-b"), true), b(false), a()]),
            Some("code-a".into())
        );
        assert_eq!(
            of(&[release(0, None, false), release(1, Some("code-a"), true)]),
            None
        );
        assert_eq!(of(&[]), None);
    }
}
