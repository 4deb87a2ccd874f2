//! Whether this computer can run a nutshell: what machines need, ports, disk, image; each with
//! what to do about it.

use super::settings::{Place, Settings};
use super::{DIRECTOR, EDGE, KEEPER, image, process};
use crate::exit::{CliError, Exit, Outcome};
use crate::printer::Table;
use crate::session::Session;
use conpaas_cloud::Check;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

/// Less free disk than this is not enough to begin with, in MiB.
const DISK_MIB: u64 = 3 * 1024;
/// The name of the check that the cloud makes of the unpacked image.
const IMAGE_CHECK: &str = "machine image";

pub fn doctor(session: &Session, place: &Place) -> Outcome {
    let settings = Settings::load(place)?;
    let checks = all(place, &settings)?;
    session.printer.either(&checks, |printer| {
        let mut table = Table::new(["", "CHECK", "FOUND"]);
        for check in &checks {
            let mark = if check.ok { "ok" } else { "NO" };
            table.row([mark.to_owned(), check.name.clone(), check.detail.clone()]);
        }
        table.print(printer);
    })?;
    match refuse(&checks) {
        Some(error) => Err(error),
        None => {
            session.printer.note("this computer can run ConPaaS");
            Ok(())
        }
    }
}

/// All checks; those of what runs already are left out.
pub fn all(place: &Place, settings: &Settings) -> Result<Vec<Check>, CliError> {
    let mut settings = settings.clone();
    let tarball = image::find()?;
    if let Some(tarball) = &tarball {
        settings.image = Some(image::unpacked(place, tarball));
    }
    let is_unpacked = settings.image.as_deref().is_some_and(Path::is_dir);
    let mut checks = conpaas_cloud::doctor(&settings.local(place));
    if !is_unpacked {
        checks.retain(|check| check.name != IMAGE_CHECK);
        checks.push(match &tarball {
            Some(tarball) => check(
                IMAGE_CHECK,
                Ok(format!("{}, not unpacked yet", tarball.path.display())),
            ),
            None => check(
                IMAGE_CHECK,
                Err((
                    "there is none".to_owned(),
                    "make it: make image (or images/build), or set CONPAAS_IMAGE".to_owned(),
                )),
            ),
        });
    }
    checks.push(check("disk", disk(place.state())));
    checks.extend(ports(place, &settings));
    Ok(checks)
}

fn check(name: &str, result: Result<String, (String, String)>) -> Check {
    let (ok, detail, cure) = match result {
        Ok(detail) => (true, detail, String::new()),
        Err((detail, cure)) => (false, detail, cure),
    };
    Check {
        name: name.to_owned(),
        ok,
        detail,
        cure,
    }
}

/// The error for checks that failed, with every cure.
pub fn refuse(checks: &[Check]) -> Option<CliError> {
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.ok).collect();
    let exit = if failed.iter().all(|check| check.name.starts_with("port ")) {
        Exit::Conflict
    } else {
        Exit::Failed
    };
    let mut error = CliError::new(exit, "this computer cannot run ConPaaS yet");
    error.causes = failed
        .iter()
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    let cures: Vec<&str> = failed
        .iter()
        .map(|check| check.cure.as_str())
        .filter(|cure| !cure.is_empty())
        .collect();
    let hint = if cures.is_empty() {
        "look again with: conpaas nutshell doctor".to_owned()
    } else {
        cures.join("\n      ")
    };
    if failed.is_empty() {
        None
    } else {
        Some(error.hint(hint))
    }
}

fn disk(state: &Path) -> Result<String, (String, String)> {
    let existing = state
        .ancestors()
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(existing) {
        Ok(found) => {
            let free = found
                .blocks_available()
                .saturating_mul(found.fragment_size())
                >> 20;
            if free >= DISK_MIB {
                Ok(format!("{free} MiB free at {}", existing.display()))
            } else {
                let cure = "make room, or take a folder on another disk: --state FOLDER".to_owned();
                Err((
                    format!(
                        "only {free} MiB free at {}, and {DISK_MIB} are needed",
                        existing.display()
                    ),
                    cure,
                ))
            }
        }
        Err(error) => Err((
            format!("{} cannot be looked at: {error}", existing.display()),
            String::new(),
        )),
    }
}

/// Whether the ports of what does not run yet are free.
fn ports(place: &Place, settings: &Settings) -> Vec<Check> {
    let mut checks = Vec::new();
    let listens = [
        (DIRECTOR, settings.api, "--api-port"),
        (EDGE, settings.edge, "--edge-port"),
    ];
    let https = settings
        .https
        .map(|address| (EDGE, address, "--https-port"));
    for (daemon, address, option) in listens.into_iter().chain(https) {
        // The keeper holds the edge's port also while the edge is started again.
        if process::running(place, daemon).is_some() || process::running(place, KEEPER).is_some() {
            continue;
        }
        let name = format!("port {}", address.port());
        checks.push(check(&name, free(address).map(|()| format!("free for the {daemon}")).map_err(|error| {
            let cure = match error.kind() {
                std::io::ErrorKind::AddrInUse => format!(
                    "see who has port {}: ss -ltnp; or take another one: conpaas nutshell up {option} PORT",
                    address.port()
                ),
                std::io::ErrorKind::PermissionDenied => {
                    format!("take a port from 1024 on: conpaas nutshell up {option} PORT")
                }
                _ => "take an address that this computer has: conpaas nutshell up --bind ADDRESS".to_owned(),
            };
            (format!("the {daemon} cannot listen on {address}: {error}"), cure)
        })));
    }
    if settings.api.port() != 0 && settings.api.port() == settings.edge.port() {
        let cure = "take another one: conpaas nutshell up --edge-port PORT".to_owned();
        checks.push(check(
            "port for both",
            Err(("director and edge cannot share a port".to_owned(), cure)),
        ));
    }
    checks
}

fn free(address: SocketAddr) -> std::io::Result<()> {
    TcpListener::bind(address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cure_is_told() {
        let fine = check("a", Ok("good".into()));
        assert!(refuse(std::slice::from_ref(&fine)).is_none());
        let error = refuse(&[
            fine,
            check("port 1", Err(("taken".into(), "take 2".into()))),
            check("port 3", Err(("taken".into(), "take 4".into()))),
        ])
        .unwrap();
        assert_eq!(error.exit, Exit::Conflict);
        assert_eq!(error.causes, ["port 1: taken", "port 3: taken"]);
        assert_eq!(error.hint.unwrap(), "take 2\n      take 4");
    }

    #[test]
    fn a_taken_port_is_seen() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            api: held.local_addr().unwrap(),
            edge: "127.0.0.1:0".parse().unwrap(),
            ..Settings::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let checks = ports(&Place::new(folder.path().to_owned()), &settings);
        assert!(!checks[0].ok && checks[0].cure.contains("--api-port"));
        assert!(checks[1].ok);
    }
}
