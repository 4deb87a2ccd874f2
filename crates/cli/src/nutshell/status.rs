//! `conpaas nutshell status`: what runs here, and where to go.

use super::settings::{Place, Settings};
use super::{DIRECTOR, EDGE, KEEPER, keeper, process};
use crate::contexts::Context;
use crate::exit::{CliError, Outcome};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all};
use conpaas_client::{Client, Endpoint, ListAppsQuery, ListCloudsQuery};
use conpaas_model::api::{App, CloudInfo};
use serde::Serialize;
use std::path::PathBuf;

/// The first operator's name.
pub const ADMIN: &str = "admin";

/// A daemon as it is found.
#[derive(Serialize)]
pub struct Daemon {
    pub running: bool,
    pub pid: Option<i32>,
    /// How often it ended by itself and was started again.
    pub restarts: u32,
    /// How it ended the last time, for instance `signal 9`.
    pub last_end: Option<String>,
    pub log: PathBuf,
}

/// Everything worth knowing about a nutshell.
#[derive(Serialize)]
pub struct Status {
    /// `up`, `down`, or `partly` when only one daemon runs or the Director does not answer.
    pub state: &'static str,
    /// `root` or `user`: with whose rights machines are made.
    pub mode: &'static str,
    pub state_folder: PathBuf,
    pub url: String,
    pub user: &'static str,
    /// Absent where no Director has made one yet.
    pub password_file: Option<PathBuf>,
    /// What people compare when they log in from elsewhere.
    pub fingerprint: Option<String>,
    /// What the person who asks calls this nutshell.
    pub context: Option<String>,
    pub version: Option<String>,
    /// Whether the Director answers.
    pub answers: bool,
    pub director: Daemon,
    pub edge: Daemon,
    /// Starts Director and edge, and starts them again when they end.
    pub keeper: Daemon,
    pub edge_address: String,
    /// Where the edge listens for HTTPS, if it does.
    pub https_address: Option<String>,
    pub base_domain: String,
    pub clouds: Vec<CloudInfo>,
    /// What machines of this computer cannot do, and why.
    pub missing: Vec<String>,
    pub applications: Vec<Application>,
}

#[derive(Serialize)]
pub struct Application {
    pub name: String,
    pub owner: String,
    pub state: String,
    pub urls: Vec<String>,
}

pub async fn run(session: &Session, place: &Place) -> Outcome {
    let settings = Settings::load(place)?;
    let status = collect(session, place, &settings).await?;
    show(session, &status)
}

pub async fn collect(
    session: &Session,
    place: &Place,
    settings: &Settings,
) -> Result<Status, CliError> {
    let seen = keeper::seen(place);
    let daemon = |name: &str| {
        let found = process::running(place, name);
        Daemon {
            running: found.is_some(),
            pid: found.map(|identity| identity.pid),
            restarts: seen.get(name).map_or(0, |seen| seen.restarts),
            last_end: seen.get(name).and_then(|seen| seen.last_end.clone()),
            log: place.log(name),
        }
    };
    let (director, edge, keeper) = (daemon(DIRECTOR), daemon(EDGE), daemon(KEEPER));
    let url = settings.api_url();
    let mut version = None;
    let mut fingerprint = None;
    let mut clouds = Vec::new();
    let mut applications = Vec::new();
    if director.running {
        if let Ok((client, seen)) = Client::first_contact(&url) {
            version = client.version().await.ok().map(|info| info.version);
            fingerprint = seen.get();
        }
        if let Some(client) = own_client(session, place) {
            // Without a valid login the rest is worth showing all the same.
            let found = all(None, async |cursor| {
                let query = ListCloudsQuery {
                    cursor,
                    ..Default::default()
                };
                client.list_clouds(&query).await
            });
            clouds = found.await.unwrap_or_default();
            let apps = all(None, async |cursor| {
                client
                    .list_apps(&ListAppsQuery {
                        owner: Some("*".to_owned()),
                        cursor,
                        ..Default::default()
                    })
                    .await
            });
            applications = apps
                .await
                .unwrap_or_default()
                .into_iter()
                .map(application)
                .collect();
        }
    }
    let answers = director.running && version.is_some();
    let state = if answers && edge.running && keeper.running {
        "up"
    } else if director.running || edge.running || keeper.running {
        "partly"
    } else {
        "down"
    };
    Ok(Status {
        state,
        mode: if nix::unistd::geteuid().is_root() {
            "root"
        } else {
            "user"
        },
        state_folder: place.state().to_owned(),
        url,
        user: ADMIN,
        password_file: Some(place.admin_password()).filter(|file| file.exists()),
        fingerprint,
        context: own_context(session, place).map(|(name, _)| name),
        answers: version.is_some(),
        version,
        director,
        edge,
        keeper,
        edge_address: settings.edge.to_string(),
        https_address: settings.https.map(|address| address.to_string()),
        base_domain: settings.base_domain.clone(),
        missing: missing(place, settings),
        clouds,
        applications,
    })
}

/// What the cloud's driver cannot do here, in its own words; it is asked on this side, so that the
/// answer is there while the Director is down, too.
fn missing(place: &Place, settings: &Settings) -> Vec<String> {
    conpaas_cloud::doctor(&settings.local(place))
        .into_iter()
        .filter(|check| check.name != "machine image")
        .filter(|check| !check.ok || check.name == "limits" && check.detail.starts_with("none"))
        .map(|check| {
            let cure = if check.cure.is_empty() {
                String::new()
            } else {
                format!("; {}", check.cure)
            };
            format!("{}: {}{cure}", check.name, check.detail)
        })
        .collect()
}

fn application(app: App) -> Application {
    Application {
        name: app.name.to_string(),
        owner: app.owner.to_string(),
        state: app.state.to_string(),
        urls: app.urls,
    }
}

/// The nutshell's context of the person who asks.
pub fn own_context(session: &Session, place: &Place) -> Option<(String, Context)> {
    let contexts = session.store().ok()?.load().ok()?;
    let name = contexts.with_token_file(&place.token())?.to_owned();
    let context = contexts.contexts.get(&name)?.clone();
    Some((name, context))
}

/// A client by the nutshell's own context, if somebody is logged in there.
fn own_client(session: &Session, place: &Place) -> Option<Client> {
    let (_, context) = own_context(session, place)?;
    let token = context.token().ok().flatten()?;
    Client::new(&Endpoint {
        url: context.url,
        fingerprint: Some(context.fingerprint),
        token: Some(token),
    })
    .ok()
}

fn restarts(daemon: &Daemon) -> String {
    match &daemon.last_end {
        Some(how) => format!(
            ", restarted {} time{}, last after {how}",
            daemon.restarts,
            if daemon.restarts == 1 { "" } else { "s" }
        ),
        None => String::new(),
    }
}

pub fn show(session: &Session, status: &Status) -> Outcome {
    session.printer.either(status, |printer| {
        let daemon = |daemon: &Daemon| match daemon.pid {
            Some(pid) => format!("runs (process {pid}){}", restarts(daemon)),
            None => "does not run".to_owned(),
        };
        let director = if status.director.running && !status.answers {
            format!(
                "{}, but does not answer; see {}",
                daemon(&status.director),
                status.director.log.display()
            )
        } else {
            daemon(&status.director)
        };
        let mut pairs = vec![
            ("nutshell", status.state.to_owned()),
            ("director", director),
            ("edge", daemon(&status.edge)),
            ("keeper", daemon(&status.keeper)),
            ("api", status.url.clone()),
            (
                "log in as",
                status.password_file.as_ref().map_or_else(
                    || "nobody yet: the Director never ran".to_owned(),
                    |file| format!("{}, password in {}", status.user, file.display()),
                ),
            ),
            (
                "fingerprint",
                status.fingerprint.clone().unwrap_or_default(),
            ),
            ("context", status.context.clone().unwrap_or_default()),
            (
                "applications at",
                format!(
                    "NAME-OWNER.{}, port of {}{}",
                    status.base_domain,
                    status.edge_address,
                    status
                        .https_address
                        .as_ref()
                        .map(|address| format!(", https at {address}"))
                        .unwrap_or_default()
                ),
            ),
            ("mode", status.mode.to_owned()),
            ("state folder", status.state_folder.display().to_string()),
        ];
        for cloud in &status.clouds {
            let free = format!(
                "free: {} vCPUs, {} MiB of memory",
                crate::commands::number(cloud.free_vcpus),
                cloud.free_memory_mib
            );
            pairs.push((
                "cloud",
                format!(
                    "{}: {} machines, {free}, limits: {}",
                    cloud.name, cloud.machines, cloud.limits
                ),
            ));
        }
        for missing in &status.missing {
            pairs.push(("missing", missing.clone()));
        }
        print_pairs(printer, &pairs);
        if !status.applications.is_empty() {
            printer.line("");
            let mut table = Table::new(["APPLICATION", "OWNER", "STATE", "URL"]);
            for app in &status.applications {
                table.row([
                    app.name.clone(),
                    app.owner.clone(),
                    app.state.clone(),
                    app.urls.join(" "),
                ]);
            }
            table.print(printer);
        }
        if status.state != "up" {
            printer.note("start it: conpaas nutshell up");
        }
    })
}
