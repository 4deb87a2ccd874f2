//! `conpaas service`: the parts of an application.

use crate::commands::{number, plain, time};
use crate::exit::{CliError, Exit, Outcome};
use crate::follow::{Wait, finish};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all};
use crate::target::{AppTarget, ServiceTarget};
use crate::values;
use clap::Subcommand;
use conpaas_client::{
    Client, ClientError, ListReleasesQuery, ListServiceTypesQuery, ListServicesQuery,
};
use conpaas_model::api::{
    Accepted, ReleaseInfo, Rename, Rollback, Scale, Service, ServiceCreate, ServiceTypeInfo,
    SettingsChange,
};
use conpaas_model::ids::{Name, ReleaseNumber};
use serde_json::Value;

#[derive(Subcommand)]
pub enum ServiceCommand {
    /// List the types a service can have
    #[command(
        after_help = "Examples:\n  conpaas service types\n  conpaas service types TYPE\n  conpaas service types --json"
    )]
    Types {
        /// Show one with its roles, settings and commands
        name: Option<String>,
    },
    /// Add a service to an application
    #[command(
        after_help = "Examples:\n  conpaas service add shop TYPE\n  conpaas service add shop TYPE --name web --set KEY=VALUE"
    )]
    Add {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// See `conpaas service types`
        #[arg(value_name = "TYPE")]
        service_type: String,
        /// Its name; by default that of its type
        #[arg(long)]
        name: Option<Name>,
        /// What it is, for people
        #[arg(long, default_value = "")]
        description: String,
        /// A label (may be given several times)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::pair)]
        labels: Vec<(String, String)>,
        /// A setting (may be given several times)
        #[arg(long = "set", value_name = "KEY=VALUE", value_parser = values::pair)]
        settings: Vec<(String, String)>,
        /// Give it a manager on a machine of its own
        #[arg(long)]
        own_manager: bool,
        /// Start it at once
        #[arg(long)]
        start: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the services of an application
    #[command(
        after_help = "Examples:\n  conpaas service list shop\n  conpaas service list shop --label tier=front --json"
    )]
    List {
        /// APP or OWNER:APP, by name or id
        app: AppTarget,
        /// Only with these labels: KEY=VALUE or KEY, several by comma
        #[arg(long, value_name = "LABELS")]
        label: Option<String>,
        /// Only of this service type
        #[arg(long = "type", value_name = "TYPE")]
        service_type: Option<String>,
    },
    /// Show a service with its roles, settings and nodes
    #[command(after_help = "Examples:\n  conpaas service show shop/web")]
    Show {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
    },
    /// Start it
    #[command(after_help = "Examples:\n  conpaas service start shop/web")]
    Start {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop it; configuration, code and history stay
    #[command(after_help = "Examples:\n  conpaas service stop shop/web")]
    Stop {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give it another name, description or labels
    #[command(after_help = "Examples:\n  conpaas service rename shop/web front")]
    Rename {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// The new name
        new_name: Option<Name>,
        /// What it is, for people
        #[arg(long)]
        description: Option<String>,
        /// All its labels from now on (may be given several times)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::pair)]
        labels: Vec<(String, String)>,
    },
    /// Delete it with its code and history
    #[command(
        after_help = "Examples:\n  conpaas service delete shop/web\n  conpaas service delete shop/web --yes"
    )]
    Delete {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Do not ask for the name
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Set how many nodes its roles have
    #[command(
        after_help = "Examples:\n  conpaas service scale shop/web backend=4 web=2\n  conpaas service scale shop/web backend=+1\n  conpaas service scale shop/web backend=2 --no-wait\n  conpaas service scale shop/web backend=4 --if-match g12"
    )]
    Scale {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// ROLE=N, ROLE=+N for so many more, or ROLE=N..M for what an automatic scaler may choose
        #[arg(required = true, value_name = "ROLE=N", value_parser = values::pair)]
        counts: Vec<(String, String)>,
        /// The instance type of nodes to come
        #[arg(long, value_name = "NAME")]
        instance_type: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Change settings; the service goes on meanwhile
    #[command(
        after_help = "Examples:\n  conpaas service set shop/web KEY=VALUE\n  conpaas service set shop/web --unset KEY"
    )]
    Set {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// Settings; values are JSON where the setting's type is not text
        #[arg(required_unless_present = "unset", value_name = "KEY=VALUE", value_parser = values::pair)]
        settings: Vec<(String, String)>,
        /// Put a setting back to its default (may be given several times)
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// Hold the release: it is shown at the preview address alone, until it is promoted
        #[arg(long)]
        preview: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show which releases were active, and why
    #[command(after_help = "Examples:\n  conpaas service history shop/web")]
    History {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
    },
    /// List releases with their code and what changed from one to the next
    #[command(
        after_help = "Examples:\n  conpaas service releases shop/web\n  conpaas service releases shop/web --json    with all settings of each"
    )]
    Releases {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
    },
    /// Take code, settings, environment and secrets of an earlier release
    #[command(
        after_help = "Examples:\n  conpaas service rollback shop/web\n  conpaas service rollback shop/web r3"
    )]
    Rollback {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        /// By default the one before the active one
        #[arg(value_parser = release)]
        release: Option<ReleaseNumber>,
        /// Hold the release: it is shown at the preview address alone, until it is promoted
        #[arg(long)]
        preview: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lead everybody to the release that is held for a preview
    #[command(after_help = "Examples:\n  conpaas service promote shop/web")]
    Promote {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        #[command(flatten)]
        wait: Wait,
    },
    /// Hold no release for a preview any more; it stays in the history
    #[command(after_help = "Examples:\n  conpaas service discard shop/web")]
    Discard {
        /// APP/SERVICE, by name or id
        target: ServiceTarget,
        #[command(flatten)]
        wait: Wait,
    },
}

fn release(text: &str) -> Result<ReleaseNumber, String> {
    let digits = text.strip_prefix('r').unwrap_or(text);
    digits
        .parse()
        .map(ReleaseNumber)
        .map_err(|_| "a release is a number such as r3".to_owned())
}

pub async fn run(session: &Session, command: ServiceCommand) -> Outcome {
    let client = session.client()?;
    let printer = &session.printer;
    match command {
        ServiceCommand::Types { name } => types(session, &client, name).await,
        ServiceCommand::Add {
            app,
            service_type,
            name,
            description,
            labels,
            settings,
            own_manager,
            start,
            wait,
        } => {
            let settings = match settings.is_empty() {
                true => Default::default(),
                false => values::settings(
                    &find_type(&client, &service_type).await?.settings_schema,
                    &settings,
                ),
            };
            let labels = labels.into_iter().collect();
            let body = ServiceCreate {
                service_type,
                name,
                description,
                labels,
                own_manager,
                start,
                settings,
            };
            let service = client.create_service(&app.app, &body).await?;
            let display = format!("{}/{}", app.app, service.name);
            if printer.is_json() && !start {
                return printer.value(&service);
            }
            if !printer.is_json() {
                printer.line(&display);
            }
            match (start, &service.operation) {
                (true, Some(operation)) => {
                    let operation = Some(client.show_operation(operation.as_str()).await?);
                    finish(
                        session,
                        &client,
                        Accepted {
                            operation,
                            warnings: service.warnings,
                        },
                        &wait,
                    )
                    .await
                }
                (true, None) if printer.is_json() => printer.value(&service),
                _ => {
                    printer.note(&format!("start it: conpaas service start {display}"));
                    Ok(())
                }
            }
        }
        ServiceCommand::List {
            app,
            label,
            service_type,
        } => {
            let query = ListServicesQuery {
                label,
                kind: service_type,
                ..Default::default()
            };
            let services = services_of(&client, &app.app, query).await?;
            printer.either(&services, |p| table_of(&services).print(p))
        }
        ServiceCommand::Show { target } => show(session, &client, &target).await,
        ServiceCommand::Start { target, wait } => {
            let accepted = client.start_service(&target.app, &target.service).await?;
            finish(session, &client, accepted, &wait).await?;
            if !printer.is_json() && !wait.no_wait {
                let service = client.show_service(&target.app, &target.service).await?;
                urls(session, service.url.as_slice());
            }
            Ok(())
        }
        ServiceCommand::Stop { target, wait } => {
            let accepted = client.stop_service(&target.app, &target.service).await?;
            finish(session, &client, accepted, &wait).await
        }
        ServiceCommand::Rename {
            target,
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
                    .hint(format!("conpaas service rename {target} NEW-NAME")));
            }
            let body = Rename {
                name: new_name,
                description,
                labels,
            };
            let service = client
                .update_service(&target.app, &target.service, &body)
                .await?;
            printer.either(&service, |p| {
                p.line(&format!("{}/{}", target.app, service.name))
            })
        }
        ServiceCommand::Delete { target, yes, wait } => {
            let found = client.show_service(&target.app, &target.service).await?;
            let what = format!("{target} is about to be deleted with its code and history");
            session.confirm(yes, &what, found.name.as_str())?;
            let accepted = client.delete_service(&target.app, &target.service).await?;
            finish(session, &client, accepted, &wait).await
        }
        ServiceCommand::Scale {
            target,
            counts,
            instance_type,
            wait,
        } => {
            let roles = values::counts(&counts).map_err(CliError::usage)?;
            let body = Scale {
                roles,
                instance_type,
                owner: None,
            };
            let accepted = client
                .scale_service(&target.app, &target.service, &body)
                .await?;
            finish(session, &client, accepted, &wait).await
        }
        ServiceCommand::Set {
            target,
            settings,
            unset,
            preview,
            wait,
        } => {
            let service = client.show_service(&target.app, &target.service).await?;
            let info = find_type(&client, &service.service_type).await?;
            let mut changes = values::settings(&info.settings_schema, &settings);
            for key in unset {
                if changes.insert(key.clone(), Value::Null).is_some() {
                    return Err(CliError::usage(format!(
                        "{key} is to be set and unset at once"
                    )));
                }
            }
            let body = SettingsChange {
                settings: changes,
                preview,
            };
            let accepted = client
                .set_settings(&target.app, &target.service, &body)
                .await?;
            finish(session, &client, accepted, &wait).await?;
            if preview && !wait.no_wait {
                held(session, &client, &target).await?;
            }
            Ok(())
        }
        ServiceCommand::History { target } => releases(session, &client, &target, false).await,
        ServiceCommand::Releases { target } => releases(session, &client, &target, true).await,
        ServiceCommand::Rollback {
            target,
            release,
            preview,
            wait,
        } => {
            let body = Rollback { release, preview };
            let accepted = client
                .rollback_service(&target.app, &target.service, &body)
                .await?;
            finish(session, &client, accepted, &wait).await?;
            if preview && !wait.no_wait {
                held(session, &client, &target).await?;
            }
            Ok(())
        }
        ServiceCommand::Promote { target, wait } => {
            let accepted = client.promote_service(&target.app, &target.service).await?;
            finish(session, &client, accepted, &wait).await
        }
        ServiceCommand::Discard { target, wait } => {
            let accepted = client.discard_preview(&target.app, &target.service).await?;
            finish(session, &client, accepted, &wait).await
        }
    }
}

/// All service types the Director offers.
pub async fn all_types(client: &Client) -> Result<Vec<ServiceTypeInfo>, ClientError> {
    all(None, async |cursor| {
        let query = ListServiceTypesQuery {
            cursor,
            ..Default::default()
        };
        client.list_service_types(&query).await
    })
    .await
}

/// All services of an application that match.
async fn services_of(
    client: &Client,
    app: &str,
    query: ListServicesQuery,
) -> Result<Vec<Service>, ClientError> {
    all(None, async |cursor| {
        let query = ListServicesQuery {
            cursor,
            ..query.clone()
        };
        client.list_services(app, &query).await
    })
    .await
}

/// All services of an application.
pub async fn all_services(client: &Client, app: &str) -> Result<Vec<Service>, ClientError> {
    services_of(client, app, ListServicesQuery::default()).await
}

async fn find_type(client: &Client, name: &str) -> Result<ServiceTypeInfo, CliError> {
    let types = all_types(client).await?;
    let near = values::nearest(name, types.iter().map(|t| t.name.as_str())).map(str::to_owned);
    types
        .into_iter()
        .find(|info| info.name == name)
        .ok_or_else(|| {
            CliError::new(Exit::NotFound, format!("there is no service type '{name}'")).hint(
                match near {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => "see those there are: conpaas service types".to_owned(),
                },
            )
        })
}

/// What a setting's number may be, in the words of its schema.
fn range_of(schema: &serde_json::Value) -> String {
    let bound = |key: &str| schema.get(key).map(plain);
    match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("at least {least}"),
        (None, Some(most)) => format!("at most {most}"),
        (None, None) => String::new(),
    }
}

async fn types(session: &Session, client: &Client, name: Option<String>) -> Outcome {
    let Some(name) = name else {
        let types = all_types(client).await?;
        return session.printer.either(&types, |printer| {
            let mut table = Table::new(["TYPE", "ROLES", "TITLE"]);
            for info in &types {
                let roles: Vec<&str> = info.roles.iter().map(|role| role.name.as_str()).collect();
                table.row([info.name.clone(), roles.join(","), info.title.clone()]);
            }
            table.print(printer);
        });
    };
    let info = find_type(client, &name).await?;
    session.printer.either(&info, |printer| {
        print_pairs(
            printer,
            &[
                ("type", info.name.clone()),
                ("title", info.title.clone()),
                (
                    "environment",
                    if info.takes_environment {
                        "variables and secrets"
                    } else {
                        "none"
                    }
                    .to_owned(),
                ),
            ],
        );
        printer.line("");
        let mut roles = Table::new(["ROLE", "COUNT", "USES", "TITLE"]);
        for role in &info.roles {
            let count = format!("{} ({} to {})", role.default_count, role.min, role.max);
            roles.row([
                role.name.clone(),
                count,
                role.uses.join(","),
                role.title.clone(),
            ]);
        }
        roles.print(printer);
        if let Some(properties) = info.settings_schema["properties"].as_object() {
            printer.line("");
            let mut settings =
                Table::new(["SETTING", "TYPE", "UNIT", "RANGE", "DEFAULT", "DESCRIPTION"]);
            for (key, schema) in properties {
                let kind = schema["enum"].as_array().map_or_else(
                    || plain(&schema["type"]),
                    |choices| choices.iter().map(plain).collect::<Vec<_>>().join("|"),
                );
                let default = schema.get("default").map(plain).unwrap_or_default();
                let text = schema["description"]
                    .as_str()
                    .or(schema["title"].as_str())
                    .unwrap_or_default();
                let range = range_of(schema);
                let unit = schema["unit"].as_str().unwrap_or_default().to_owned();
                settings.row([key.clone(), kind, unit, range, default, text.to_owned()]);
            }
            settings.print(printer);
        }
        if !info.commands.is_empty() {
            printer.line("");
            let mut commands = Table::new(["COMMAND", "TITLE"]);
            for command in &info.commands {
                commands.row([
                    format!("conpaas {} {} TARGET", info.name, command.name),
                    command.title.clone(),
                ]);
            }
            commands.print(printer);
        }
    })
}

/// Services, one a line.
pub fn table_of(services: &[Service]) -> Table {
    let mut table = Table::new(["NAME", "TYPE", "STATE", "ROLES", "RELEASE", "URL", "REASON"]);
    for service in services {
        let roles: Vec<String> = service
            .roles
            .iter()
            .map(|(role, wish)| format!("{role}={}", wish.count()))
            .collect();
        table.row([
            service.name.to_string(),
            service.service_type.clone(),
            service.state.to_string(),
            roles.join(" "),
            service.active_release.to_string(),
            service.url.clone().unwrap_or_default(),
            service.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// Addresses, one a line.
pub fn urls(session: &Session, urls: &[String]) {
    for url in urls {
        session.printer.line(url);
    }
}

/// Says where the release that is held is shown.
pub async fn held(session: &Session, client: &Client, target: &ServiceTarget) -> Outcome {
    if session.printer.is_json() {
        return Ok(());
    }
    let service = client.show_service(&target.app, &target.service).await?;
    if service.preview_release.is_none() {
        session
            .printer
            .note("nothing is held: it would be what is active");
        return Ok(());
    }
    urls(session, service.preview_url.as_slice());
    let promote = format!("lead everybody to it: conpaas service promote {target}");
    session.printer.note(&promote);
    Ok(())
}

async fn show(session: &Session, client: &Client, target: &ServiceTarget) -> Outcome {
    let service = client.show_service(&target.app, &target.service).await?;
    session.printer.either(&service, |printer| {
        let serving = service
            .serving_release
            .filter(|serving| *serving != service.active_release);
        let waiting: Vec<&str> = service
            .waiting
            .iter()
            .map(|waiting| waiting.text.as_str())
            .collect();
        print_pairs(
            printer,
            &[
                ("name", format!("{}/{}", service.application, service.name)),
                ("id", service.id.to_string()),
                ("type", service.service_type.clone()),
                ("description", service.description.clone()),
                ("state", service.state.to_string()),
                ("reason", service.reason.clone().unwrap_or_default()),
                ("url", service.url.clone().unwrap_or_default()),
                ("host names", service.domains.join(" ")),
                ("release", service.active_release.to_string()),
                (
                    "still serving",
                    serving
                        .map(|release| release.to_string())
                        .unwrap_or_default(),
                ),
                (
                    "held",
                    service
                        .preview_release
                        .map(|release| {
                            let url = service.preview_url.as_deref().unwrap_or_default();
                            format!("{release} at {url}")
                        })
                        .unwrap_or_default(),
                ),
                ("waiting", waiting.join("; ")),
                ("warning", service.warnings.join("; ")),
                (
                    "operation",
                    service
                        .operation
                        .as_ref()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                ),
                ("created", time(&service.created_at)),
            ],
        );
        printer.line("");
        let mut roles = Table::new(["ROLE", "WANTED", "INSTANCE TYPE", "CLOUD"]);
        for (role, wish) in &service.roles {
            for pool in &wish.pools {
                let bounds = wish.bounds.map(|bounds| format!(" of {bounds}"));
                roles.row([
                    role.clone(),
                    format!("{}{}", pool.count, bounds.unwrap_or_default()),
                    pool.instance_type.clone(),
                    pool.cloud.clone(),
                ]);
            }
        }
        roles.print(printer);
        if !service.nodes.is_empty() {
            printer.line("");
            let mut nodes = Table::new(["NODE", "STATE", "ROLES", "MEMORY"]);
            for node in &service.nodes {
                let memory = node
                    .health
                    .memory_used_mib
                    .map(|mib| format!("{mib} MiB"))
                    .unwrap_or_default();
                nodes.row([
                    node.number.to_string(),
                    node.state.clone(),
                    crate::commands::node::roles(node),
                    memory,
                ]);
            }
            nodes.print(printer);
        }
        if !service.settings.is_empty() {
            printer.line("");
            let mut settings = Table::new(["SETTING", "VALUE"]);
            for (key, value) in &service.settings {
                settings.row([
                    key.clone(),
                    value
                        .as_f64()
                        .filter(|_| value.is_f64())
                        .map_or_else(|| plain(value), number),
                ]);
            }
            settings.print(printer);
        }
    })
}

/// What differs from the release before: settings, variables, and versions of secrets.
fn changed(before: Option<&ReleaseInfo>, now: &ReleaseInfo) -> Vec<String> {
    let Some(before) = before else {
        return Vec::new();
    };
    fn differ<'a, T: PartialEq + 'a>(
        before: impl Fn(&str) -> Option<&'a T>,
        now: impl Iterator<Item = (&'a String, &'a T)>,
        show: impl Fn(&str, &T) -> String,
    ) -> Vec<String> {
        now.filter(|(key, value)| before(key) != Some(*value))
            .map(|(key, value)| show(key, value))
            .collect()
    }
    let (old, new) = (&before.environment, &now.environment);
    let mut all = differ(
        |key| before.settings.get(key),
        now.settings.iter(),
        |key, value| format!("{key}={}", plain(value)),
    );
    all.extend(differ(
        |key| old.variables.get(key),
        new.variables.iter(),
        |key, value| format!("{key}={}", value.escape_debug()),
    ));
    all.extend(differ(
        |key| old.secrets.get(key),
        new.secrets.iter(),
        |key, version| format!("secret {key} {version}"),
    ));
    let gone = |key: &String, is_there: bool| (!is_there).then(|| format!("{key} unset"));
    all.extend(
        before
            .settings
            .keys()
            .filter_map(|key| gone(key, now.settings.contains_key(key))),
    );
    all.extend(
        old.variables
            .keys()
            .filter_map(|key| gone(key, new.variables.contains_key(key))),
    );
    all.extend(
        old.secrets
            .keys()
            .filter_map(|key| gone(&format!("secret {key}"), new.secrets.contains_key(key))),
    );
    all
}

/// The first few, and how many more there are: a line stays a line.
fn short(words: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text: Vec<String> = words
        .iter()
        .take(SHOWN)
        .map(|word| match word.char_indices().nth(40) {
            Some((end, _)) => format!("{}..", &word[..end]),
            None => word.clone(),
        })
        .collect();
    if words.len() > SHOWN {
        text.push(format!("and {} more", words.len() - SHOWN));
    }
    text.join(" ")
}

async fn releases(
    session: &Session,
    client: &Client,
    target: &ServiceTarget,
    whole: bool,
) -> Outcome {
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
    session.printer.either(&releases, |printer| {
        let last = if whole { "CHANGED" } else { "WHY" };
        let mut table = Table::new(["", "RELEASE", "CODE", "MADE", "BY", last]);
        for release in &releases {
            let before = releases
                .iter()
                .filter(|other| other.number < release.number)
                .max_by_key(|other| other.number);
            let settings = changed(before, release);
            table.row([
                match (release.active, release.preview) {
                    (true, _) => "*",
                    (_, true) => "held",
                    _ => "",
                }
                .to_owned(),
                release.number.to_string(),
                release
                    .code
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                time(&release.created_at),
                release.actor.clone(),
                if whole {
                    short(&settings)
                } else {
                    release.reason.clone()
                },
            ]);
        }
        table.print(printer);
    })
}
