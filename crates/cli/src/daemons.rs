//! The daemons that this same binary is. Those that must not have a second thread are dispatched
//! before any runtime starts. What each daemon does lives in its own crate.

use crate::nutshell::process::keep_log_bounded;
use crate::nutshell::settings::{Place, Settings};
use conpaas_cloud::{Cloud, LocalCloud};
use conpaas_director::Director;
use conpaas_edge::Listeners;
use conpaas_pki::ApiCertificate;
use conpaas_services::registry::Registry;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::future::Future;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a Director may take to finish requests in flight.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long a certificate of the edge's own making is valid: it is looked at when the edge starts.
const OWN_CERTIFICATE: Duration = Duration::from_secs(800 * 24 * 3600);

/// Runs what the first arguments name, if that is no command for people.
pub fn dispatch(arguments: &[OsString]) -> Option<ExitCode> {
    let rest = || arguments.get(2..).unwrap_or_default().to_vec();
    let option = arguments.get(2).and_then(|word| word.to_str());
    match arguments.get(1)?.to_str()? {
        "init" => Some(code(conpaas_init::main())),
        "machine-supervisor" => Some(code(conpaas_cloud::supervisor_main(rest()))),
        "machine-helper" => Some(code(conpaas_cloud::helper_main(rest()))),
        "unpack-code" => Some(code(conpaas_agent::unpack_main(&rest()))),
        "agent" => Some(daemon(
            Workers::One,
            conpaas_agent::run(conpaas_agent::AgentConfig::default(), Registry::standard()),
        )),
        "manager" => Some(daemon(
            Workers::One,
            conpaas_manager::run(
                conpaas_manager::ManagerConfig::default(),
                Registry::standard(),
            ),
        )),
        // `conpaas director status` is for people.
        "director" if option == Some("--state") => {
            Some(daemon(Workers::Some, director(state(arguments))))
        }
        "nutshell-keeper" if option == Some("--state") => Some(keeper(arguments)),
        "edge" if option == Some("--state") => Some(daemon(
            Workers::Some,
            edge(state(arguments), listeners(arguments)),
        )),
        _ => None,
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn state(arguments: &[OsString]) -> Option<PathBuf> {
    if arguments.iter().any(|word| word == "--detach") {
        // Fails only for the leader of a process group, which is detached already.
        let _ = nix::unistd::setsid();
    }
    arguments.get(3).map(PathBuf::from)
}

/// Sockets that whoever started this process left open for it.
fn listeners(arguments: &[OsString]) -> Vec<RawFd> {
    arguments
        .windows(2)
        .filter(|words| words[0] == "--listener")
        .filter_map(|words| words[1].to_str()?.parse().ok())
        .collect()
}

/// Director and edge are started by it, and started again when they end.
fn keeper(arguments: &[OsString]) -> ExitCode {
    let state = state(arguments);
    start_logging();
    let work = match state {
        Some(state) => crate::nutshell::keeper::run(Place::new(state), &listeners(arguments)),
        None => Err("say where the state is: --state FOLDER".into()),
    };
    ended(work)
}

/// How many threads run a daemon's tasks.
enum Workers {
    One,
    Some,
}

/// Gives freed memory back to the computer: a daemon that once took a large upload in should not
/// stay large, and the C library's own guesses keep such sizes for itself.
fn keep_small() {
    // SAFETY: called before any other thread runs; sets numbers of the allocator only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 * 1024);
    }
}

fn daemon<E>(workers: Workers, work: impl Future<Output = Result<(), E>>) -> ExitCode
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    keep_small();
    start_logging();
    let built = match workers {
        Workers::One => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build(),
        Workers::Some => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build(),
    };
    let outcome = match built {
        Ok(runtime) => runtime.block_on(work).map_err(Into::into),
        Err(error) => Err(error.into()),
    };
    ended(outcome)
}

fn ended(outcome: Result<(), AnyError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut causes = Vec::new();
            let mut cause = error.source();
            while let Some(error) = cause {
                causes.push(error.to_string());
                cause = error.source();
            }
            tracing::error!(causes = causes.join(": "), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// JSON lines; `CONPAAS_LOG` says which (for instance `debug`, or `info,conpaas_edge=debug`).
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CONPAAS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Only one subscriber can be set, and a second one would say the same.
    let _ = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stdout)
        .try_init();
}

type AnyError = Box<dyn Error + Send + Sync>;

fn settings(state: Option<PathBuf>) -> Result<(Place, Settings), AnyError> {
    let place = Place::new(state.ok_or("say where the state is: --state FOLDER")?);
    let settings = Settings::load(&place).map_err(|error| error.what)?;
    Ok((place, settings))
}

async fn director(state: Option<PathBuf>) -> Result<(), AnyError> {
    let (place, settings) = settings(state)?;
    tokio::spawn(keep_log_bounded(place.log("director")));
    for (daemon, seen) in crate::nutshell::keeper::seen(&place) {
        if let Some(how) = seen.last_end {
            tracing::warn!(daemon, times = seen.restarts, "restarted after {how}");
        }
    }
    let local = LocalCloud::open(settings.local(&place))?;
    let cloud: Arc<dyn Cloud> = Arc::new(local);
    let clouds = BTreeMap::from([(cloud.name().to_owned(), cloud)]);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let director = Director::start(
        settings.director(&place),
        clouds,
        Arc::new(Registry::standard()),
    )
    .await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if tokio::time::timeout(STOP_LIMIT, director.stop())
        .await
        .is_err()
    {
        // What is cut off is taken up again by the next start.
        tracing::warn!("the Director ends although some of its work has not");
    }
    Ok(())
}

async fn edge(state: Option<PathBuf>, listeners: Vec<RawFd>) -> Result<(), AnyError> {
    let (place, settings) = settings(state)?;
    tokio::spawn(keep_log_bounded(place.log("edge")));
    let mut listeners = listeners.into_iter().map(|descriptor| {
        // SAFETY: the keeper left it open for this process, and nobody else here has it.
        TcpListener::from(unsafe { OwnedFd::from_raw_fd(descriptor) })
    });
    let listeners = Listeners {
        http: listeners.next(),
        https: listeners.next(),
    };
    let config = settings.edge(&place);
    if config.https.is_some() && settings.certificate.is_none() {
        own_certificate(&place, &settings)?;
    }
    let ready = || {
        let pid = std::process::id().to_string();
        if let Err(error) = crate::contexts::write_private(&place.edge_ready(), pid.as_bytes()) {
            tracing::error!(error = error.what, "cannot say that this edge serves");
        }
    };
    conpaas_edge::run(config, listeners, ready).await?;
    Ok(())
}

/// Makes a certificate for the base domain, for those who bring none, or renews it.
fn own_certificate(place: &Place, settings: &Settings) -> Result<(), AnyError> {
    let base = &settings.base_domain;
    let names = [base.clone(), format!("*.{base}")];
    ApiCertificate::load_or_create(
        &place.edge_certificate(),
        &names,
        OWN_CERTIFICATE,
        std::time::SystemTime::now(),
    )?;
    Ok(())
}
