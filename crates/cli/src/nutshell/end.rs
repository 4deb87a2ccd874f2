//! `conpaas nutshell down` and `destroy`: nothing runs any more, and then nothing is left.

use super::settings::{Place, Settings};
use super::{CONTEXT, DIRECTOR, EDGE, KEEPER, lock, process};
use crate::contexts::Context;
use crate::exit::{CliError, Outcome};
use crate::session::Session;
use conpaas_cloud::{Cloud, CloudError, LocalCloud};
use conpaas_model::ids::InstallationId;
use std::path::Path;
use std::time::Duration;

/// How long daemons may take to finish what is in flight.
const GRACE: Duration = Duration::from_secs(40);

/// How long the keeper may take, which gives daemons their time.
const KEEPER_GRACE: Duration = Duration::from_secs(45);

/// What was ended.
#[derive(Debug, Default, serde::Serialize)]
struct Ended {
    daemons: Vec<String>,
    machines: usize,
}

pub async fn down(session: &Session, place: &Place, director_only: bool) -> Outcome {
    if !place.state().is_dir() {
        return say(session, &Ended::default());
    }
    let _lock = lock(session, place).await?;
    if director_only {
        return end_director(session, place).await;
    }
    let settings = Settings::load(place)?;
    let ended = end(session, place, &settings).await?;
    forget_context(session, place, &settings);
    say(session, &ended)
}

/// Ends the Director alone. Its keeper would start it again, so that goes first, without a word:
/// asked to end, it would take the edge along. The next `up` starts both.
async fn end_director(session: &Session, place: &Place) -> Outcome {
    if let Some(keeper) = process::running(place, KEEPER) {
        keeper.signal(nix::sys::signal::Signal::SIGKILL);
    }
    let keeper = process::stop(place, &[KEEPER], KEEPER_GRACE).await?;
    let ended = Ended {
        daemons: process::stop(place, &[DIRECTOR], GRACE).await?,
        machines: 0,
    };
    session.printer.either(&ended, |printer| {
        if ended.daemons.is_empty() && keeper.is_empty() {
            printer.note("no Director was running");
        } else {
            printer.note("ended the Director; machines and edge go on: conpaas nutshell up");
        }
    })
}

fn say(session: &Session, ended: &Ended) -> Outcome {
    session.printer.either(ended, |printer| {
        if ended.daemons.is_empty() && ended.machines == 0 {
            printer.note("nothing was running");
        } else {
            let daemons = if ended.daemons.is_empty() {
                "no daemon".to_owned()
            } else {
                ended.daemons.join(" and ")
            };
            printer.note(&format!(
                "ended {daemons} and {} machines; what was made stays",
                ended.machines
            ));
        }
    })
}

/// Ends daemons, then machines: a Director that still runs would make new ones.
async fn end(session: &Session, place: &Place, settings: &Settings) -> Result<Ended, CliError> {
    let bar = session.printer.spinner();
    bar.set_message("ending Director and edge");
    let running: Vec<String> = [DIRECTOR, EDGE]
        .iter()
        .filter(|daemon| process::running(place, daemon).is_some())
        .map(|daemon| (*daemon).to_owned())
        .collect();
    // The keeper first, since it would start the others again; it ends them itself, unless it was
    // killed before.
    let daemons = match process::stop(place, &[KEEPER], KEEPER_GRACE).await {
        Ok(_) => process::stop(place, &[DIRECTOR, EDGE], GRACE).await,
        Err(error) => Err(error),
    }
    .map(|_| running);
    let machines = match daemons {
        Ok(_) => {
            bar.set_message("ending machines");
            end_machines(place, settings).await
        }
        Err(_) => Ok(0),
    };
    bar.finish_and_clear();
    Ok(Ended {
        daemons: daemons?,
        machines: machines?,
    })
}

async fn end_machines(place: &Place, settings: &Settings) -> Result<usize, CliError> {
    let installation = match std::fs::read_to_string(place.installation()) {
        Ok(text) => text.trim().parse::<InstallationId>().map_err(|error| {
            CliError::failed(format!(
                "{} names no installation",
                place.installation().display()
            ))
            .because(&error)
        })?,
        // It is noted before anybody can ask for a machine.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => {
            return Err(CliError::failed(format!(
                "{} cannot be read",
                place.installation().display()
            ))
            .because(&error));
        }
    };
    if !place.cloud().is_dir() {
        return Ok(0);
    }
    let failed = |error: CloudError| {
        CliError::failed("machines of the nutshell may still run")
            .because(&error)
            .hint("try again: conpaas nutshell down; what is in the way says: conpaas nutshell doctor")
    };
    let config = settings.local(place);
    let cloud = tokio::task::spawn_blocking(move || LocalCloud::open(config))
        .await
        .map_err(|error| CliError::failed("ending machines broke off").because(&error))?
        .map_err(failed)?;
    let machines = cloud.list(&installation).await.map_err(failed)?;
    let gone =
        futures::future::join_all(machines.iter().map(|machine| cloud.destroy(&machine.id))).await;
    for outcome in gone {
        outcome.map_err(failed)?;
    }
    Ok(machines.len())
}

pub async fn destroy(session: &Session, place: &Place, yes: bool) -> Outcome {
    let state = place.state();
    if !state.is_dir() {
        return session
            .printer
            .either(&serde_json::json!({"destroyed": false}), |printer| {
                printer.note(&format!("there is no nutshell in {}", state.display()));
            });
    }
    let ours = place.settings().is_file() || place.run().is_dir();
    if !ours {
        return Err(CliError::usage(format!(
            "{} is no state folder of a nutshell, so it is left alone",
            state.display()
        )));
    }
    let what = format!(
        "everything in {} is about to be destroyed: all applications, code and history",
        state.display()
    );
    session.confirm(yes, &what, CONTEXT)?;
    let lock = lock(session, place).await?;
    let settings = Settings::load(place).unwrap_or_default();
    end(session, place, &settings).await?;
    let config = settings.local(place);
    tokio::task::spawn_blocking(move || conpaas_cloud::remove_state(&config))
        .await
        .map_err(|error| CliError::failed("removing images broke off").because(&error))?
        .map_err(|error| {
            CliError::failed("the machines' folder cannot be removed").because(&error)
        })?;
    forget_context(session, place, &settings);
    remove(state)?;
    drop(lock);
    session.printer.either(
        &serde_json::json!({"destroyed": true, "state_folder": state}),
        |printer| {
            printer.note(&format!("removed {}", state.display()));
        },
    )
}

/// A nutshell that does not run is no Director to talk to: nothing of it stays in the person's
/// configuration. Its token stays in the state folder, for the next `up`.
fn forget_context(session: &Session, place: &Place, settings: &Settings) {
    let Ok(store) = session.store() else { return };
    let Ok(contexts) = store.load() else { return };
    let known = contexts.with_token_file(&place.token()).map(str::to_owned);
    let ours = |context: &Context| context.url == settings.api_url();
    let outcome = match known {
        Some(name) => store.let_go(&name).map(drop),
        None if contexts.contexts.get(CONTEXT).is_some_and(ours) => store.forget(CONTEXT).map(drop),
        None => Ok(()),
    };
    if let Err(error) = outcome {
        session.printer.warn(&error.what);
    }
}

/// Removes the whole state folder; a folder that is a mount point is only emptied.
fn remove(state: &Path) -> Outcome {
    match std::fs::remove_dir_all(state) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error)
            if state
                .read_dir()
                .is_ok_and(|mut entries| entries.next().is_none()) =>
        {
            // Nothing is left in it; whoever made the folder may keep it.
            let _ = error;
            Ok(())
        }
        Err(error) => {
            Err(CliError::failed(format!("{} cannot be removed", state.display())).because(&error))
        }
        Ok(()) => Ok(()),
    }
}
