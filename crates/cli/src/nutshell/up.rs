//! `conpaas nutshell up`: from nothing, or from whatever runs already, to everything running.

use super::process::Identity;
use super::settings::{Place, Settings};
use super::{
    CONTEXT, Change, DIRECTOR, EDGE, KEEPER, checks, image, keeper, lock, make_private, process,
    status,
};
use crate::contexts::{Context, ContextStore, Contexts};
use crate::exit::{CliError, Exit, Outcome};
use crate::session::Session;
use conpaas_client::{Client, Endpoint};
use conpaas_model::api::Login;
use nix::sys::signal::Signal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

pub async fn run(session: &Session, place: &Place, change: Change) -> Outcome {
    let made = !place.state().exists();
    let outcome = bring_up(session, place, change).await;
    if outcome.is_err() && made && !place.settings().exists() {
        // Nothing was started, so nothing is worth keeping.
        let config = Settings::default().local(place);
        let _ = tokio::task::spawn_blocking(move || conpaas_cloud::remove_state(&config)).await;
        let _ = std::fs::remove_dir_all(place.state());
    }
    outcome
}

async fn bring_up(session: &Session, place: &Place, change: Change) -> Outcome {
    make_state(place)?;
    let _lock = lock(session, place).await?;
    for folder in [place.edge(), place.logs()] {
        make_private(&folder).map_err(|error| {
            CliError::failed(format!("{} cannot be made private", folder.display())).because(&error)
        })?;
    }
    let before = Settings::load(place)?;
    let mut settings = changed(before.clone(), &change);
    let runs = |daemon| process::running(place, daemon).is_some();
    let (director_runs, edge_runs) = (runs(DIRECTOR), runs(EDGE));
    if (director_runs || edge_runs || runs(KEEPER)) && settings != before {
        return Err(CliError::new(
            Exit::Conflict,
            "the nutshell runs with other settings already",
        )
        .hint("end it first, nothing is lost: conpaas nutshell down"));
    }
    if !(director_runs && edge_runs || runs(KEEPER)) {
        settings.api = some_port(settings.api)?;
        settings.edge = some_port(settings.edge)?;
        settings.https = settings.https.map(some_port).transpose()?;
        if let Some(error) = checks::refuse(&checks::all(place, &settings)?) {
            return Err(error);
        }
    }
    if !director_runs && !runs(KEEPER) {
        let bar = session.printer.spinner();
        bar.set_message("preparing the machine image");
        let (of, with) = (place.clone(), settings.clone());
        let prepared = tokio::task::spawn_blocking(move || image::prepare(&of, &with)).await;
        bar.finish_and_clear();
        settings.image = Some(prepared.map_err(|error| {
            CliError::failed("preparing the machine image broke off").because(&error)
        })??);
    }
    settings.save(place)?;

    let bar = session.printer.spinner();
    let older = [KEEPER, DIRECTOR, EDGE]
        .iter()
        .filter_map(|daemon| process::running(place, daemon))
        .any(|found| !process::same_program(found.pid));
    if older {
        session
            .printer
            .note("another version runs; this one takes its place, machines go on");
    }
    bar.set_message("starting");
    let started = start(place, &settings).await;
    bar.finish_and_clear();
    let fingerprint = started?;
    if let Err(error) = log_in(session, place, &settings, &fingerprint).await {
        // Everything runs; only this person's own configuration is not as it should be.
        session
            .printer
            .warn(&format!("nobody could be logged in: {}", error.what));
        if let Some(hint) = error.hint {
            session.printer.note(&format!("hint: {hint}"));
        }
    }
    status::show(session, &status::collect(session, place, &settings).await?)
}

/// The state folder, which machines' ids must be able to pass through.
pub(super) fn make_state(place: &Place) -> Outcome {
    if place.state().is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(place.state())
        .map_err(|error| {
            CliError::failed(format!(
                "the state folder {} cannot be made",
                place.state().display()
            ))
            .because(&error)
            .hint("take a folder of your own: --state FOLDER")
        })
}

fn changed(mut settings: Settings, change: &Change) -> Settings {
    let edit = |address: &mut SocketAddr, port: Option<u16>, ip: Option<IpAddr>| {
        if let Some(port) = port {
            address.set_port(port);
        }
        if let Some(ip) = ip {
            address.set_ip(ip);
        }
    };
    edit(&mut settings.api, change.api_port, change.bind);
    edit(&mut settings.edge, change.edge_port, change.bind);
    if let Some(port) = change.https_port {
        settings.https = Some(SocketAddr::new(settings.edge.ip(), port));
    }
    if let (Some(https), Some(ip)) = (&mut settings.https, change.bind) {
        https.set_ip(ip);
    }
    if let Some(only) = change.https_only {
        settings.https_only = only;
    }
    if let (Some(certificate), Some(key)) = (&change.certificate, &change.key) {
        settings.certificate = Some(absolute(certificate));
        settings.key = Some(absolute(key));
    }
    if let Some(domain) = &change.base_domain {
        settings.base_domain = domain.trim_matches('.').to_ascii_lowercase();
    }
    if let Some(egress) = change.egress {
        settings.egress = egress;
    }
    settings
}

/// A path as daemons need it, whose working folder is another.
fn absolute(path: &std::path::Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Port 0 becomes a free one, which is kept from then on: addresses must not change by themselves.
fn some_port(address: SocketAddr) -> Result<SocketAddr, CliError> {
    if address.port() != 0 {
        return Ok(address);
    }
    TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .map_err(|error| {
            CliError::failed(format!("there is no free port at {}", address.ip())).because(&error)
        })
}

/// Starts what does not run, and waits until it answers. Gives the Director's fingerprint.
async fn start(place: &Place, settings: &Settings) -> Result<String, CliError> {
    let mut keeper = None;
    match process::running(place, KEEPER) {
        Some(running) if !process::same_program(running.pid) => {
            let own = format!("/proc/{}/exe", std::process::id());
            crate::contexts::write_private(&place.program(), own.as_bytes())?;
            running.signal(Signal::SIGHUP);
            // This program is what it becomes, so that has to happen while this program runs.
            wait(place, KEEPER, &mut keeper, async || {
                this_program(place, KEEPER).map(drop)
            })
            .await?;
        }
        Some(_) => {}
        None => keeper = Some(process::start(place, KEEPER, &[], &[])?.0),
    }
    let outcome = answers(place, settings, &mut keeper).await;
    if outcome.is_err() && keeper.is_some() {
        // What did not come up is not to be tried for ever behind people's backs.
        process::stop(place, &[KEEPER], START_LIMIT).await?;
    }
    outcome
}

/// Waits until Director and edge run this very program and answer.
async fn answers(
    place: &Place,
    settings: &Settings,
    keeper: &mut Option<Child>,
) -> Result<String, CliError> {
    let fingerprint = wait(place, DIRECTOR, keeper, async || {
        this_program(place, DIRECTOR)?;
        director_answers(settings).await
    })
    .await?;
    let address = reachable(settings.edge);
    wait(place, EDGE, keeper, async || {
        let running = this_program(place, EDGE)?;
        let ready = std::fs::read_to_string(place.edge_ready()).unwrap_or_default();
        if ready.trim() != running.pid.to_string() {
            return Err("it does not serve yet".to_owned());
        }
        tokio::net::TcpStream::connect(address)
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    })
    .await?;
    Ok(fingerprint)
}

/// The daemon, if it runs and is no other version.
fn this_program(place: &Place, daemon: &str) -> Result<Identity, String> {
    match process::running(place, daemon) {
        Some(running) if process::same_program(running.pid) => Ok(running),
        Some(_) => Err("another version still runs".to_owned()),
        None => Err("it does not run".to_owned()),
    }
}

fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

async fn director_answers(settings: &Settings) -> Result<String, String> {
    let (client, seen) =
        Client::first_contact(&settings.api_url()).map_err(|error| error.to_string())?;
    client.version().await.map_err(|error| error.to_string())?;
    seen.get()
        .ok_or_else(|| "it shows no fingerprint".to_owned())
}

/// Asks until there is an answer, the daemon ended, or time is up.
async fn wait<T>(
    place: &Place,
    daemon: &str,
    child: &mut Option<Child>,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, CliError> {
    let began = Instant::now();
    let ends = |place: &Place| {
        keeper::seen(place)
            .get(daemon)
            .map_or(0, |seen| seen.restarts)
    };
    // An end from before, of which the keeper has yet to learn, is none of this start.
    let unseen = child.is_none() && process::running(place, daemon).is_none();
    let before = ends(place) + u32::from(unseen);
    loop {
        if ends(place) > before {
            return Err(process::ended_early(place, daemon));
        }
        if let Some(child) = child
            && matches!(child.try_wait(), Ok(Some(_)))
        {
            crate::contexts::remove_if_there(&place.record(KEEPER))?;
            return Err(process::ended_early(place, KEEPER));
        }
        let why = match tokio::time::timeout(Duration::from_secs(5), ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(why)) => why,
            Err(_) => "it does not answer in time".to_owned(),
        };
        if began.elapsed() > START_LIMIT {
            let log = place.log(daemon);
            let mut error = CliError::failed(format!(
                "the {daemon} did not answer within {} seconds",
                START_LIMIT.as_secs()
            ));
            error.causes.push(why);
            error.causes.extend(process::last_lines(&log, 5));
            return Err(error.hint(format!(
                "its whole log: {}; end it with: conpaas nutshell down",
                log.display()
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes the context of the nutshell, logged in as its first operator.
async fn log_in(
    session: &Session,
    place: &Place,
    settings: &Settings,
    fingerprint: &str,
) -> Outcome {
    let url = settings.api_url();
    let store = session.store()?;
    let contexts = store.load()?;
    let name = context_name(&contexts, place, &url);
    if contexts.with_token_file(&place.token()).is_none() && name != CONTEXT {
        session.printer.note(&format!(
            "the context of this nutshell is called '{name}', since another one has the name '{CONTEXT}'"
        ));
    }
    let known = contexts.contexts.get(&name).cloned();
    let known = known.filter(|known| known.url == url && known.fingerprint == fingerprint);
    // After `down` the token is here, while no context points to it.
    let known = known.unwrap_or_else(|| Context {
        url: url.clone(),
        fingerprint: fingerprint.to_owned(),
        token_file: place.token(),
    });
    if let Some(token) = known.token()? {
        let endpoint = Endpoint {
            url: url.clone(),
            fingerprint: Some(fingerprint.to_owned()),
            token: Some(token.clone()),
        };
        let client = Client::new(&endpoint)?;
        if client.whoami().await.is_ok() {
            remember(&store, &name, place, &url, fingerprint, &token)?;
            return note_installation(place, &client).await;
        }
    }
    let path = place.admin_password();
    let password = std::fs::read_to_string(&path).map_err(|error| {
        CliError::failed(format!("{} cannot be read", path.display()))
            .because(&error)
            .hint(format!("log in yourself: conpaas login {url}"))
    })?;
    let mut endpoint = Endpoint {
        url: url.clone(),
        fingerprint: Some(fingerprint.to_owned()),
        token: None,
    };
    let admin = status::ADMIN
        .parse()
        .map_err(|error: conpaas_model::ids::IdError| CliError::failed(error.to_string()))?;
    let login = Login {
        name: admin,
        password: password.trim().to_owned(),
        label: Some("conpaas nutshell up".to_owned()),
        lifetime_seconds: None,
    };
    let token = Client::new(&endpoint)?
        .login(&login)
        .await
        .map_err(|error| {
            CliError::from(error).hint(format!(
                "if its password was changed, log in yourself: conpaas login {url} --user {}",
                status::ADMIN
            ))
        })?;
    remember(&store, &name, place, &url, fingerprint, &token.secret)?;
    endpoint.token = Some(token.secret);
    note_installation(place, &Client::new(&endpoint)?).await
}

/// The context of this nutshell: the one that has its token, or one of its own name.
fn context_name(contexts: &Contexts, place: &Place, url: &str) -> String {
    if let Some(name) = contexts.with_token_file(&place.token()) {
        return name.to_owned();
    }
    // A nutshell whose folder is gone has left its name behind.
    let ours = |known: &Context| {
        known.url == url
            || known
                .token_file
                .parent()
                .is_some_and(|folder| !folder.exists())
    };
    match contexts.contexts.get(CONTEXT) {
        Some(known) if !ours(known) => contexts.free_name(CONTEXT),
        _ => CONTEXT.to_owned(),
    }
}

/// The token stays in the state folder, so that nothing of the nutshell outlives `down` elsewhere.
fn remember(
    store: &ContextStore,
    name: &str,
    place: &Place,
    url: &str,
    fingerprint: &str,
    token: &str,
) -> Outcome {
    let before = store.load()?.contexts.get(name).cloned();
    store.remember(name, url, fingerprint, token, Some(place.token()))?;
    match before.filter(|before| before.token_file != place.token()) {
        Some(before) => crate::contexts::remove_if_there(&before.token_file),
        None => Ok(()),
    }
}

/// Whose machines are ours has to be known also while the Director is down.
async fn note_installation(place: &Place, client: &Client) -> Outcome {
    let info = client.director_info().await?;
    crate::contexts::write_private(&place.installation(), info.installation.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_nutshell_takes_no_other_ones_name() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| Place::new(folder.path().join(name));
        let context = |place: &Place, url: &str| Context {
            url: url.to_owned(),
            fingerprint: String::new(),
            token_file: place.token(),
        };
        let (one, two, gone) = (place("one"), place("two"), place("gone"));
        std::fs::create_dir_all(one.run()).unwrap();
        let mut contexts = Contexts::default();
        assert_eq!(context_name(&contexts, &one, "https://a"), "nutshell");
        let known = context(&one, "https://a");
        contexts.contexts.insert("nutshell".into(), known);
        assert_eq!(context_name(&contexts, &two, "https://b"), "nutshell-2");
        let known = context(&two, "https://b");
        contexts.contexts.insert("nutshell-2".into(), known);
        assert_eq!(context_name(&contexts, &two, "https://c"), "nutshell-2");
        assert_eq!(context_name(&contexts, &one, "https://a"), "nutshell");
        let known = context(&gone, "https://g");
        contexts.contexts.insert("nutshell".into(), known);
        assert_eq!(context_name(&contexts, &one, "https://a"), "nutshell");
    }
}
