//! `conpaas app`: applications.

use crate::commands::service::{table_of, urls};
use crate::commands::{number, time};
use crate::exit::{CliError, Exit, Outcome};
use crate::follow::{Wait, finish};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all};
use crate::target::AppTarget;
use crate::values;
use crate::words::sentence;
use clap::Subcommand;
use conpaas_client::{Client, DeleteAppQuery, ListAppsQuery, ListEventsQuery};
use conpaas_model::api::{App, AppCreate, AppUpdate, AppUpgrade, Event, Restore};
use conpaas_model::egress::Egress;
use conpaas_model::ids::Name;
use std::time::Duration;

#[derive(Subcommand)]
pub enum AppCommand {
    /// Make an application
    #[command(
        after_help = "Examples:\n  conpaas app create shop\n  conpaas app create shop --description 'our shop' --label team=web"
    )]
    Create {
        /// Its name: small letters, digits and '-'
        name: Name,
        /// What it is, for people
        #[arg(long, default_value = "")]
        description: String,
        /// A label (may be given several times)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::pair)]
        labels: Vec<(String, String)>,
        /// Its way out: none, or director (through the Director's machine)
        #[arg(long, value_name = "POLICY")]
        egress: Option<Egress>,
    },
    /// List applications
    #[command(
        after_help = "Examples:\n  conpaas app list\n  conpaas app list --label team=web --json\n  conpaas app list --trash"
    )]
    List {
        /// Those of another owner, or of everybody with '*' (for operators)
        #[arg(long)]
        owner: Option<String>,
        /// Only those with this label
        #[arg(long, value_name = "KEY=VALUE")]
        label: Option<String>,
        /// Those in the trash, which `app restore` brings back
        #[arg(long)]
        trash: bool,
        /// At most so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Show an application with its services
    #[command(
        after_help = "Examples:\n  conpaas app show shop\n  conpaas app show ada:shop --json"
    )]
    Show {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
    },
    /// Start all its services
    #[command(
        after_help = "Examples:\n  conpaas app start shop\n  conpaas app start shop --timeout 5m"
    )]
    Start {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop all its services; configuration, code and history stay
    #[command(after_help = "Examples:\n  conpaas app stop shop\n  conpaas app stop shop --no-wait")]
    Stop {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give it another name, description or labels
    #[command(
        after_help = "Examples:\n  conpaas app rename shop store\n  conpaas app rename shop --description 'the old shop'"
    )]
    Rename {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// The new name
        new_name: Option<Name>,
        /// What it is, for people
        #[arg(long)]
        description: Option<String>,
        /// All its labels from now on (may be given several times)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::pair)]
        labels: Vec<(String, String)>,
    },
    /// Set how it gets out of its network
    #[command(
        after_help = "Examples:\n  conpaas app set shop egress=none        # nothing gets out, names are not known\n  conpaas app set shop egress=director    # through the Director's machine, where the installation allows it"
    )]
    Set {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// What to set
        #[arg(value_name = "KEY=VALUE", value_parser = values::pair, required = true)]
        settings: Vec<(String, String)>,
    },
    /// Delete it: stopped at once and put into the trash, from which `app restore` brings it back
    #[command(
        after_help = "Examples:\n  conpaas app delete shop\n  conpaas app delete shop --yes\n  conpaas app delete shop --now    # for good, with all its services, code and history"
    )]
    Delete {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// For good, rather than into the trash
        #[arg(long)]
        now: bool,
        /// Do not ask for the name
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Replace nodes that are made of an older image or program; nobody notices
    #[command(
        after_help = "Examples:\n  conpaas app upgrade shop\n  conpaas app upgrade shop --all\n\nA few nodes at a time: another comes, takes over, and only then the old one goes. See which are\noutdated: conpaas node list shop"
    )]
    Upgrade {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// All nodes, also those that are up to date
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Bring it back from the trash, stopped, with its code, settings and history
    #[command(
        after_help = "Examples:\n  conpaas app restore shop\n  conpaas app restore shop --name old-shop"
    )]
    Restore {
        /// APP or OWNER:APP, by the name it had or by id
        app: AppTarget,
        /// Another name, for when its own is taken meanwhile
        #[arg(long)]
        name: Option<Name>,
    },
    /// Show what happened in it
    #[command(
        after_help = "Examples:\n  conpaas app events shop\n  conpaas app events shop --follow --json"
    )]
    Events {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// Go on with what happens from now on
        #[arg(long, short)]
        follow: bool,
        /// How many of the newest
        #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
        lines: usize,
    },
    /// Print its addresses, and open the first one in a browser
    #[command(after_help = "Examples:\n  conpaas app open shop\n  conpaas app open shop --print")]
    Open {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// Only print them
        #[arg(long)]
        print: bool,
    },
}

pub async fn run(session: &Session, command: AppCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        AppCommand::Create {
            name,
            description,
            labels,
            egress,
        } => {
            let labels = labels.into_iter().collect();
            let app = client
                .create_app(&AppCreate {
                    name,
                    description,
                    labels,
                    egress,
                })
                .await?;
            printer.either(&app, |p| {
                p.line(app.name.as_str());
                p.note(&format!("next, add a service: conpaas service add {} TYPE (types: conpaas service types)", app.name));
            })
        }
        AppCommand::List {
            owner,
            label,
            trash,
            limit,
        } => {
            let query = ListAppsQuery {
                owner,
                label,
                trash: Some(trash),
                ..Default::default()
            };
            list(session, &client, query, limit).await
        }
        AppCommand::Show { app } => show(session, &client, &app.app).await,
        AppCommand::Start { app, wait } => {
            let accepted = client.start_app(&app.app).await?;
            finish(session, &client, accepted, &wait).await?;
            if !printer.is_json() && !wait.no_wait {
                urls(session, &client.show_app(&app.app).await?.urls);
            }
            Ok(())
        }
        AppCommand::Stop { app, wait } => {
            let accepted = client.stop_app(&app.app).await?;
            finish(session, &client, accepted, &wait).await
        }
        AppCommand::Upgrade { app, all, wait } => {
            let wish = AppUpgrade { all };
            let accepted = client.upgrade_app(&app.app, &wish).await?;
            finish(session, &client, accepted, &wait).await
        }
        AppCommand::Rename {
            app,
            new_name,
            description,
            labels,
        } => {
            let labels = if labels.is_empty() {
                None
            } else {
                Some(labels.into_iter().collect())
            };
            if new_name.is_none() && description.is_none() && labels.is_none() {
                return Err(CliError::usage("nothing is to be changed")
                    .hint(format!("conpaas app rename {} NEW-NAME", app.app)));
            }
            let app = client
                .update_app(
                    &app.app,
                    &AppUpdate {
                        name: new_name,
                        description,
                        labels,
                        egress: None,
                    },
                )
                .await?;
            printer.either(&app, |p| p.line(app.name.as_str()))
        }
        AppCommand::Set { app, settings } => {
            let app = client.update_app(&app.app, &update_of(settings)?).await?;
            printer.either(&app, |p| p.line(&format!("egress={}", app.egress)))
        }
        AppCommand::Delete {
            app,
            now,
            yes,
            wait,
        } => {
            let found = client.show_app(&app.app).await?;
            let how = if now { "destroyed" } else { "deleted" };
            let what = format!(
                "{} is about to be {how} with its {} services, their code and history",
                found.name,
                found.services.len()
            );
            session.confirm(yes, &what, found.name.as_str())?;
            let query = DeleteAppQuery { now: Some(now) };
            let accepted = client.delete_app(&app.app, &query).await?;
            finish(session, &client, accepted, &wait).await?;
            // Where there is no trash it is gone by now.
            let rests = client.show_app(found.id.as_str()).await.ok();
            if let Some(moment) = rests.and_then(|app| app.destroyed_at) {
                printer.note(&format!(
                    "it can be brought back until {}: conpaas app restore {}",
                    time(&moment),
                    found.id
                ));
            }
            Ok(())
        }
        AppCommand::Restore { app, name } => {
            let app = client.restore_app(&app.app, &Restore { name }).await?;
            printer.either(&app, |p| {
                p.line(app.name.as_str());
                p.note(&format!("start it: conpaas app start {}", app.name));
            })
        }
        AppCommand::Events { app, follow, lines } => {
            events(session, &client, &app.app, follow, lines).await
        }
        AppCommand::Open { app, print } => open(session, &client, &app.app, print).await,
    }
}

/// The settings as a change.
fn update_of(settings: Vec<(String, String)>) -> Result<AppUpdate, CliError> {
    let mut update = AppUpdate::default();
    for (key, value) in settings {
        match key.as_str() {
            "egress" => {
                let egress = value.parse::<Egress>();
                update.egress = Some(egress.map_err(|error| CliError::usage(error.to_string()))?);
            }
            _ => {
                return Err(
                    CliError::usage(format!("an application has no setting '{key}'"))
                        .hint("it has: egress (none or director)"),
                );
            }
        }
    }
    Ok(update)
}

async fn list(
    session: &Session,
    client: &Client,
    query: ListAppsQuery,
    limit: Option<usize>,
) -> Outcome {
    let apps = all(limit, async |cursor| {
        client
            .list_apps(&ListAppsQuery {
                cursor,
                ..query.clone()
            })
            .await
    })
    .await?;
    session.printer.either(&apps, |printer| {
        let mut table = Table::new(["NAME", "OWNER", "STATE", "SERVICES", "CREDITS/H", "URL"]);
        for app in &apps {
            let services: Vec<&str> = app
                .services
                .iter()
                .map(|service| service.name.as_str())
                .collect();
            table.row([
                app.name.to_string(),
                app.owner.to_string(),
                app.state.to_string(),
                services.join(","),
                number(app.credits_per_hour),
                app.urls.first().cloned().unwrap_or_default(),
            ]);
        }
        table.print(printer);
        if apps.is_empty() {
            printer.note("no applications yet; make one: conpaas app create NAME");
        }
    })
}

async fn show(session: &Session, client: &Client, app: &str) -> Outcome {
    let app: App = client.show_app(app).await?;
    session.printer.either(&app, |printer| {
        let labels: Vec<String> = app
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        print_pairs(
            printer,
            &[
                ("name", app.name.to_string()),
                ("id", app.id.to_string()),
                ("owner", app.owner.to_string()),
                ("description", app.description.clone()),
                ("labels", labels.join(" ")),
                ("state", app.state.to_string()),
                ("reason", app.reason.clone().unwrap_or_default()),
                ("egress", app.egress.to_string()),
                ("urls", app.urls.join(" ")),
                ("credits an hour", number(app.credits_per_hour)),
                ("created", time(&app.created_at)),
            ],
        );
        if !app.services.is_empty() {
            printer.line("");
            table_of(&app.services).print(printer);
        }
    })
}

async fn events(
    session: &Session,
    client: &Client,
    app: &str,
    follow: bool,
    lines: usize,
) -> Outcome {
    // Events come oldest first: the newest are at the end of the last page.
    let mut after = None;
    let mut known: Vec<Event> = Vec::new();
    loop {
        let page = client
            .list_events(
                app,
                &ListEventsQuery {
                    after,
                    ..Default::default()
                },
            )
            .await?;
        let last = page.items.last().map(|event| event.sequence);
        known.extend(page.items);
        known.drain(..known.len().saturating_sub(lines));
        if page.next.is_none() || last.is_none() {
            after = last.or(after);
            break;
        }
        after = last;
    }
    if !follow {
        return session.printer.either(&known, |_| {
            known
                .iter()
                .for_each(|event| session.printer.line(&line_of(event)))
        });
    }
    let print = |event: &Event| session.printer.either(event, |p| p.line(&line_of(event)));
    known.iter().try_for_each(print)?;
    let mut last = after.unwrap_or(0);
    loop {
        let broke = match client.stream_events(app, Some(&last.to_string())).await {
            Ok(mut stream) => loop {
                let next = tokio::select! {
                    next = stream.next() => next,
                    _ = tokio::signal::ctrl_c() => return Ok(()),
                };
                match next {
                    Ok(Some((_, event))) if event.sequence > last => {
                        last = event.sequence;
                        print(&event)?;
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            },
            Err(error) => Some(error),
        };
        if let Some(error) = broke
            && !error.is_transient()
        {
            return Err(error.into());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// An event as a line: when, and what in words.
fn line_of(event: &Event) -> String {
    format!("{}  {}", time(&event.at), sentence(event))
}

async fn open(session: &Session, client: &Client, app: &str, print: bool) -> Outcome {
    let app = client.show_app(app).await?;
    let Some(first) = app.urls.first() else {
        return Err(CliError::new(
            Exit::NotFound,
            format!("{} has no address in a browser", app.name),
        )
        .hint(format!(
            "add a service that is reached from outside: conpaas service add {} TYPE",
            app.name
        )));
    };
    session
        .printer
        .either(&app.urls, |_| urls(session, &app.urls))?;
    let desktop =
        std::env::var_os("DISPLAY").is_some() || std::env::var_os("WAYLAND_DISPLAY").is_some();
    if print || session.printer.is_json() || (cfg!(target_os = "linux") && !desktop) {
        return Ok(());
    }
    let opener = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let quiet = std::process::Stdio::null;
    let started = std::process::Command::new(opener)
        .arg(first)
        .stdin(quiet())
        .stdout(quiet())
        .stderr(quiet())
        .spawn();
    if let Err(error) = started {
        session
            .printer
            .warn(&format!("no browser could be opened ({opener}: {error})"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_with_their_time() {
        let event: Event = serde_json::from_value(serde_json::json!({
            "sequence": 3, "at": "2026-01-02T03:04:05.123Z", "kind": "node_up", "service": "web",
            "actor": "ada", "reason": null, "facts": {"node": 2},
        }))
        .unwrap();
        assert_eq!(
            line_of(&event),
            "2026-01-02 03:04:05  web: node 2 is up (by ada)"
        );
    }
}
