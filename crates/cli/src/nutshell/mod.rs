//! The nutshell: ConPaaS on this very computer. Starts and ends the Director, the edge and the
//! `local` cloud's machines; what they do is theirs.

pub mod backup;
mod bundle;
mod checks;
mod end;
mod image;
pub mod keeper;
pub mod process;
mod redact;
pub mod settings;
mod status;
mod up;

use crate::exit::{CliError, Exit, Outcome};
use crate::session::Session;
use clap::{Args, Subcommand};
use conpaas_model::egress::Egress;
use settings::Place;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the context of a nutshell is called.
const CONTEXT: &str = "nutshell";
const DIRECTOR: &str = "director";
const EDGE: &str = "edge";
/// Starts the other two, and starts them again.
const KEEPER: &str = "nutshell-keeper";
/// How long another `conpaas nutshell` on the same state folder is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// Which nutshell.
#[derive(Args, Clone, Debug)]
pub struct Where {
    /// Where everything is kept
    #[arg(
        long,
        value_name = "FOLDER",
        env = "CONPAAS_STATE",
        hide_env_values = true
    )]
    state: Option<PathBuf>,
}

/// Settings that stay, in `nutshell.toml` of the state folder.
#[derive(Args, Clone, Debug, Default)]
pub struct Change {
    /// Port of the API (0: any free one, which is then kept)
    #[arg(long, value_name = "PORT")]
    api_port: Option<u16>,
    /// Port where applications are reached (0: any free one, which is then kept)
    #[arg(long, value_name = "PORT")]
    edge_port: Option<u16>,
    /// Port where applications are reached over HTTPS (0: any free one, which is then kept)
    #[arg(long, value_name = "PORT")]
    https_port: Option<u16>,
    /// Send people who come without TLS on to HTTPS
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true")]
    https_only: Option<bool>,
    /// Certificates for HTTPS, as a PEM file (by default one of this computer's own making)
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The certificate's key, as a PEM file
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Applications are NAME-OWNER.DOMAIN
    #[arg(long, value_name = "DOMAIN")]
    base_domain: Option<String>,
    /// Address that API and edge listen on (0.0.0.0: all)
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// As much of a way out as applications may have: none, or director (through this computer)
    #[arg(long, value_name = "POLICY")]
    egress: Option<Egress>,
}

#[derive(Subcommand)]
pub enum NutshellCommand {
    /// Start ConPaaS here; what runs already goes on
    #[command(
        after_help = "Examples:\n  conpaas nutshell up\n  conpaas nutshell up --api-port 7443 --edge-port 80 --bind 0.0.0.0 --base-domain apps.example.org\n  conpaas nutshell up --https-port 443 --certificate fullchain.pem --key privkey.pem\n\nThe machine image comes from CONPAAS_IMAGE, or is the newest one in the cache folder."
    )]
    Up {
        #[command(flatten)]
        place: Where,
        #[command(flatten)]
        change: Change,
    },
    /// Show what runs, and where to log in
    #[command(
        after_help = "Examples:\n  conpaas nutshell status\n  conpaas nutshell status --json"
    )]
    Status {
        #[command(flatten)]
        place: Where,
    },
    /// End everything that runs; what was made stays and comes back with the next `up`
    #[command(
        after_help = "Examples:\n  conpaas nutshell down\n  conpaas nutshell down --director"
    )]
    Down {
        #[command(flatten)]
        place: Where,
        /// End the Director only, until the next `up`: machines and edge go on
        #[arg(long)]
        director: bool,
    },
    /// End everything and remove all that was ever made
    #[command(
        after_help = "Examples:\n  conpaas nutshell destroy\n  conpaas nutshell destroy --yes"
    )]
    Destroy {
        #[command(flatten)]
        place: Where,
        /// Do not ask for the name
        #[arg(long, short)]
        yes: bool,
    },
    /// Write status, settings, checks and logs into one archive, without anything secret
    #[command(
        after_help = "Examples:\n  conpaas nutshell support-bundle\n  conpaas nutshell support-bundle --output /tmp/support.tar.gz"
    )]
    SupportBundle {
        #[command(flatten)]
        place: Where,
        /// The archive to write (by default conpaas-support.tar.gz in this folder)
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Look whether this computer can run it, and say what to do where it cannot
    #[command(
        after_help = "Examples:\n  conpaas nutshell doctor\n  conpaas nutshell doctor --json"
    )]
    Doctor {
        #[command(flatten)]
        place: Where,
    },
}

pub async fn run(session: &Session, command: NutshellCommand) -> Outcome {
    match command {
        NutshellCommand::Up { place, change } => {
            up::run(session, &Place::find(place.state)?, change).await
        }
        NutshellCommand::Status { place } => status::run(session, &Place::find(place.state)?).await,
        NutshellCommand::Down { place, director } => {
            end::down(session, &Place::find(place.state)?, director).await
        }
        NutshellCommand::Destroy { place, yes } => {
            end::destroy(session, &Place::find(place.state)?, yes).await
        }
        NutshellCommand::SupportBundle { place, output } => {
            bundle::run(session, &Place::find(place.state)?, output).await
        }
        NutshellCommand::Doctor { place } => checks::doctor(session, &Place::find(place.state)?),
    }
}

/// Makes a folder that only its owner can enter; one that is there becomes such.
fn make_private(folder: &Path) -> std::io::Result<()> {
    const MODE: u32 = 0o700;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(folder)?;
    if std::fs::metadata(folder)?.permissions().mode() & 0o777 != MODE {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(MODE))?;
    }
    Ok(())
}

/// Keeps others from changing this nutshell for as long as the file is held.
async fn lock(session: &Session, place: &Place) -> Result<File, CliError> {
    let path = place.lock();
    let failed = |error: std::io::Error| {
        CliError::failed(format!(
            "the state folder {} cannot be used",
            place.state().display()
        ))
        .because(&error)
        .hint("take a folder of your own: --state FOLDER")
    };
    make_private(&place.run()).map_err(failed)?;
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let began = Instant::now();
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
            Err(std::fs::TryLockError::WouldBlock) => {}
        }
        if began.elapsed() > LOCK_PATIENCE {
            return Err(CliError::new(
                Exit::Conflict,
                format!(
                    "another conpaas nutshell is at work on {}",
                    place.state().display()
                ),
            )
            .hint("wait for it, or take another folder: --state FOLDER"));
        }
        if !told {
            session
                .printer
                .note("another conpaas nutshell is at work on this state folder, waiting for it");
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_folders_are_closed_also_when_they_were_open() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
        for path in [&new, &old] {
            make_private(path).unwrap();
            assert_eq!(mode(path), 0o700);
        }
    }
}
