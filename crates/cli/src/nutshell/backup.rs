//! `conpaas director backup` and `restore`: on the state folder of this computer, since keys never
//! travel over the API. What is in an archive is the Director's business.

use super::settings::Place;
use super::{Where, lock, make_private};
use crate::exit::{CliError, Exit, Outcome};
use crate::session::Session;
use conpaas_director::backup::{self, BackupError, Target};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// What a person types to have what is there replaced.
const NAME: &str = "restore";

fn refused(error: &BackupError) -> CliError {
    let exit = match error {
        BackupError::Exists { .. }
        | BackupError::Busy { .. }
        | BackupError::Running { .. }
        | BackupError::DiskFull { .. } => Exit::Conflict,
        BackupError::NoStore { .. } => Exit::NotFound,
        _ => Exit::Failed,
    };
    let mut refused = CliError::new(exit, error.to_string()).hint(error.hint());
    if let Some(cause) = std::error::Error::source(error) {
        refused = refused.because(cause);
    }
    refused
}

/// Who does it, for the audit: this computer's user.
fn actor() -> String {
    let id = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(id).ok().flatten();
    let name = user.map_or_else(|| id.to_string(), |user| user.name);
    format!("{name} on this computer")
}

pub async fn take(session: &Session, place: Where, file: Option<PathBuf>, force: bool) -> Outcome {
    let place = Place::find(place.state)?;
    let target = match file {
        Some(file) if file.as_os_str() == "-" => {
            if std::io::stdout().is_terminal() {
                return Err(CliError::usage("an archive is nothing for a terminal")
                    .hint("name a file, or lead it elsewhere: conpaas director backup - > FILE"));
            }
            Target::Output
        }
        file => Target::File {
            path: file.unwrap_or_else(named_by_time),
            overwrite: force,
        },
    };
    let (folder, to) = (place.director(), target.clone());
    let bar = session.printer.spinner();
    bar.set_message("taking a backup");
    let taken = tokio::task::spawn_blocking(move || backup::take(&folder, &to, &actor())).await;
    bar.finish_and_clear();
    let taken = taken
        .map_err(|error| CliError::failed("the backup broke off").because(&error))?
        .map_err(|error| refused(&error))?;
    let Target::File { path, .. } = target else {
        return Ok(());
    };
    let shown = path.display().to_string();
    let value = serde_json::json!({
        "file": shown,
        "size": taken.size,
        "members": taken.manifest.members.len(),
        "taken_at": taken.manifest.taken_at,
        "installation": taken.manifest.installation,
        "incarnation": taken.manifest.incarnation,
    });
    session.printer.either(&value, |printer| {
        printer.line(&shown);
        printer.note(
            "the keys of the installation are in it: whoever reads it can act as the Director",
        );
    })
}

fn named_by_time() -> PathBuf {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ");
    PathBuf::from(format!("conpaas-backup-{now}.tar.gz"))
}

pub async fn restore(session: &Session, place: Where, file: &Path, yes: bool) -> Outcome {
    let place = Place::find(place.state)?;
    if !file.is_file() {
        return Err(CliError::new(
            Exit::NotFound,
            format!("there is no file {}", file.display()),
        )
        .hint("name an archive that `conpaas director backup` wrote"));
    }
    let what = format!(
        "what the Director in {} keeps is about to be replaced by {}; what was changed since that backup is undone",
        place.state().display(),
        file.display()
    );
    session.confirm(yes, &what, NAME)?;
    super::up::make_state(&place)?;
    let _lock = lock(session, &place).await?;
    make_private(&place.logs()).map_err(|error| {
        CliError::failed(format!("{} cannot be used", place.logs().display())).because(&error)
    })?;
    let (archive, folder) = (file.to_owned(), place.director());
    let bar = session.printer.spinner();
    bar.set_message("unpacking and checking the backup");
    let done =
        tokio::task::spawn_blocking(move || backup::restore(&archive, &folder, &actor())).await;
    bar.finish_and_clear();
    let done = done
        .map_err(|error| CliError::failed("the restore broke off").because(&error))?
        .map_err(|error| refused(&error))?;
    let value = serde_json::json!({
        "installation": done.manifest.installation,
        "taken_at": done.manifest.taken_at,
        "incarnation": done.incarnation,
        "former": done.former,
    });
    session.printer.either(&value, |printer| {
        printer.note(&format!("the backup of {} is in place", done.manifest.taken_at));
        if let Some(former) = &done.former {
            printer.note(&format!("what was there is kept: {}", former.display()));
        }
        printer.note("tokens, passwords and roots are those of that time: revoke again what was revoked since");
        printer.note("start it: conpaas nutshell up");
    })
}
