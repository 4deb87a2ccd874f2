//! The agent's loop: takes in what roles, manager and clock bring, asks the core, does what it
//! says. Whatever may take long runs in tasks of its own.

use crate::code::SharedCode;
use crate::endpoints::{Endpoints, serve_names};
use crate::enrol::AtDirector;
use crate::link::{Link, director_client};
use crate::measures::Measures;
use crate::party::{Party, chained};
use crate::processes::Paced;
use crate::roles::{Job, Order, RoleTask};
use crate::secrets::{DirectorSecrets, named};
use crate::{AgentParts, DirectorCode, ShellError, files, health, local, logs};
use conpaas_core::agent::{AgentCore, Effect, Event, unobservable};
use conpaas_core::endpoint::Loopback;
use conpaas_core::role_agent::{NodeContext, Processes};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::level::Level;
use conpaas_model::protocol::{Context, FromAgent, ToAgent};
use conpaas_model::status::AgentReport;
use conpaas_pki::{Identity, PartyKind, Roots};
use conpaas_services::registry::{Entry, Registry};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// How often everything is reported, changed or not.
const FULL_REPORT: Duration = Duration::from_secs(2);
/// How often init is asked which processes have ended.
const LOOK_FOR_ENDS: Duration = Duration::from_secs(1);
/// How long a command may take all in all.
const COMMAND_DEADLINE: Duration = Duration::from_secs(28);
/// Grace for processes whose role nobody knows any more.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Runs an agent until its shutdown.
pub async fn run(parts: AgentParts) -> Result<(), ShellError> {
    let AgentParts {
        context,
        processes,
        folders,
        dial,
        registry,
        local_net,
        unpacker,
        shutdown,
    } = parts;
    // Role processes pass through it to their code; keys and levels in it are files of mode 0600.
    make_folder(&folders.state, 0o711)?;
    // Role processes run as other users and reach their sockets, logs and code below these.
    make_folder(&folders.run, 0o755)?;
    make_folder(&folders.log, 0o755)?;
    let code_folder = folders.code();
    make_folder(&code_folder, 0o755)?;

    let secrets_folder = folders.secrets();
    make_folder(&secrets_folder, 0o700)?;

    let identity = Identity::new(
        context.installation.clone(),
        PartyKind::Agent {
            application: context.application.clone(),
            node: context.machine.clone(),
        },
    );
    let given = Roots::from_pem(&context.roots)?;
    let party = Party::load(
        &folders.state,
        "agent",
        &given,
        &identity,
        SystemTime::now(),
    )?;
    let (director, director_seen) = watch::channel(None);
    let code = Arc::new(DirectorCode::new(
        code_folder,
        director_seen.clone(),
        unpacker,
    ));

    let secrets = Arc::new(DirectorSecrets::new(secrets_folder, director_seen.clone()));

    let (down, from_manager) = mpsc::channel(16);
    let (reports, reports_seen) = watch::channel(None);
    let (replies, replies_out) = mpsc::channel(64);
    let (measures, mut tasks) = (Measures::default(), JoinSet::new());

    let enrol = Arc::new(AtDirector {
        context: context.clone(),
        dial: dial.clone(),
    });
    tasks.spawn(party.clone().keep(enrol, shutdown.clone()));
    tasks.spawn(crate::trust::tell(
        party.clone(),
        context.clone(),
        dial.clone(),
    ));
    let located_file = folders.state.join("located.json");
    tasks.spawn({
        let (context, dial, measures) = (context.clone(), dial.clone(), measures.clone());
        async move {
            let Some(secured) = party.secured().await else {
                return;
            };
            let client = director_client(&context, &secured, &dial);
            director.send_replace(Some(client.clone()));
            let link = Link {
                context,
                party,
                secured,
                director: client,
                dial,
                located_file,
                down,
                reports: reports_seen,
                measures,
                replies: replies_out,
            };
            link.run().await;
        }
    });
    let (flusher, sending) = logs::start(folders.log.clone(), director_seen.clone());
    tasks.spawn(sending);
    let socket = folders.agent_socket();
    let listener = local::listen(&socket).map_err(|source| ShellError::File {
        action: "listen at",
        path: socket.clone(),
        source,
    })?;
    tasks.spawn(local::serve(
        listener,
        context.machine.clone(),
        director_seen,
    ));

    let endpoints = local_net.map(|net| Endpoints::new(net.loopback));
    if let (Some(net), Some(endpoints)) = (local_net, &endpoints) {
        tasks.spawn(serve_names(net.resolver, endpoints.names()));
    }

    let (events, events_in) = mpsc::channel(256);
    let mut shell = Shell {
        core: AgentCore::new(
            context.service.clone(),
            context.node,
            hex::encode(rand::random::<[u8; 8]>()),
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
        processes: Arc::new(Paced::new(processes)),
        code,
        secrets,
        registry,
        level_file: folders.state.join("level.json"),
        run_folder: folders.run.join("roles"),
        log_folder: folders.log.clone(),
        flusher,
        context,
        loopback: local_net.unwrap_or_default().loopback,
        endpoints,
        roles: BTreeMap::new(),
        events,
        reports,
        replies,
        probe: health::Probe::of(local_net.is_some()),
        measures,
        pruned: None,
    };
    tasks.spawn(watch_ends(shell.processes.clone(), shell.events.clone()));
    shell.look();
    shell.resume().await;
    shell.turn(events_in, from_manager, shutdown).await;
    tasks.shutdown().await;
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// Tells which processes have ended unasked, whenever that has changed.
async fn watch_ends(processes: Arc<dyn Processes>, events: mpsc::Sender<Event>) {
    let mut clock = tokio::time::interval(LOOK_FOR_ENDS);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = Vec::new();
    loop {
        clock.tick().await;
        // An init that does not answer is told of by whoever needs it to run something.
        let Ok(ends) = processes.ends().await else {
            continue;
        };
        if ends != last {
            last.clone_from(&ends);
            if events.send(Event::Ended(ends)).await.is_err() {
                return;
            }
        }
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), ShellError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| ShellError::File {
            action: "make folder",
            path: path.to_owned(),
            source,
        })
}

struct Shell {
    core: AgentCore,
    processes: Arc<dyn Processes>,
    code: SharedCode,
    secrets: Arc<DirectorSecrets>,
    registry: Registry,
    context: Context,
    level_file: PathBuf,
    run_folder: PathBuf,
    log_folder: PathBuf,
    loopback: Loopback,
    endpoints: Option<Endpoints>,
    flusher: logs::Flusher,
    roles: BTreeMap<String, RoleTask>,
    events: mpsc::Sender<Event>,
    reports: watch::Sender<Option<Arc<AgentReport>>>,
    replies: mpsc::Sender<FromAgent>,
    probe: health::Probe,
    measures: Measures,
    /// The level that code was last pruned for.
    pruned: Option<conpaas_model::level::LevelVersion>,
}

impl Shell {
    /// Goes on where an earlier agent of this machine was: with its level and its processes.
    async fn resume(&mut self) {
        if let Some(level) = files::load::<Level>(&self.level_file) {
            self.secrets.want(named(&level));
            let effects = self.core.resume(level);
            self.carry_out(effects);
        }
        match self.processes.list().await {
            Ok(found) => {
                let roles: BTreeSet<String> = found
                    .iter()
                    .filter_map(|process| process.name.split_once('/'))
                    .map(|(role, _)| role.to_owned())
                    .collect();
                let effects = self.core.handle(Event::Found(roles));
                self.carry_out(effects);
            }
            Err(error) => tracing::warn!(error = chained(&error), "init does not say what runs"),
        }
        self.report();
    }

    async fn turn(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        mut from_manager: mpsc::Receiver<ToAgent>,
        shutdown: tokio_util::sync::CancellationToken,
    ) {
        let mut clock = tokio::time::interval(FULL_REPORT);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(health::LOOK);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(event) = events.recv() => self.role_event(event),
                Some(message) = from_manager.recv() => match message {
                    ToAgent::Level(level) => {
                        reached(KillPoint::LevelOffered);
                        let effects = self.core.handle(Event::Offered(level));
                        self.carry_out(effects);
                    }
                    ToAgent::Command { id, role, name, arguments } => {
                        self.command(id, &role, name, arguments);
                    }
                },
                _ = looks.tick() => self.look(),
                _ = clock.tick() => self.report(),
            }
        }
    }

    /// Looks at the node itself.
    fn look(&mut self) {
        self.probe.look();
        self.measures.of_node(self.probe.reading());
    }

    fn role_event(&mut self, event: Event) {
        let ended = match &event {
            Event::Stopped { role } => Some(role.clone()),
            _ => None,
        };
        if let Some(role) = &ended {
            self.roles.remove(role);
        }
        let effects = self.core.handle(event);
        self.carry_out(effects);
        // Its task has ended, but it is wanted again meanwhile.
        if let Some(role) = ended
            && let Some(level) = self.core.level()
            && let Some(wanted) = level.body.roles.get(&role)
        {
            let order = Order::Run {
                version: level.version,
                level: wanted.clone(),
            };
            self.order(role, order);
        }
        self.prune();
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Keep(level) => {
                    self.secrets.want(named(&level));
                    if let Err(error) = files::save(&self.level_file, &level) {
                        // Obeyed all the same: serving now matters more than a restart later.
                        tracing::error!(error = chained(&error), "the level cannot be kept");
                    }
                    reached(KillPoint::LevelKept);
                }
                Effect::Lead(wanted) => {
                    let agents = self.entry().map(|entry| entry.agents);
                    if let Some(endpoints) = &mut self.endpoints {
                        endpoints.lead(&wanted, agents);
                    }
                }
                Effect::Run {
                    role,
                    version,
                    level,
                } => self.order(role, Order::Run { version, level }),
                Effect::Stop { role } => self.order(role, Order::Stop),
                Effect::Refuse { refused, seen } => {
                    tracing::warn!(?refused, ?seen, "an older level was refused");
                    let _ = self.replies.try_send(FromAgent::Refused { refused, seen });
                }
                Effect::NotMine { service, node } => {
                    tracing::error!(%service, node = node.0, "a level for another node was ignored");
                }
                Effect::Report => self.report(),
            }
        }
    }

    /// The service type of the level, if this program knows it.
    fn entry(&self) -> Option<Entry> {
        self.registry.get(&self.core.level()?.service_type)
    }

    /// Gives a role's task an order; starts the task when there is none.
    fn order(&mut self, role: String, order: Order) {
        if let Some(task) = self.roles.get(&role) {
            task.order(order);
            return;
        }
        let agent = self
            .entry()
            .and_then(|entry| entry.agents.role_agent(&role));
        match (agent, order) {
            (Some(agent), order) => {
                let node = self.node_context();
                let task = RoleTask::start(
                    role.clone(),
                    agent,
                    node,
                    order,
                    self.events.clone(),
                    self.flusher.clone(),
                    self.measures.clone(),
                );
                self.roles.insert(role, task);
            }
            (None, Order::Run { version, level }) => {
                let service_type = self.core.level().map(|level| level.service_type.clone());
                let reason = format!(
                    "this agent (version {}) knows no role '{role}' of service type '{}'",
                    env!("CARGO_PKG_VERSION"),
                    service_type.unwrap_or_default()
                );
                let status = unobservable(&level, &reason);
                let effects = self.core.handle(Event::Observed {
                    role,
                    version,
                    status,
                });
                self.carry_out(effects);
            }
            (None, Order::Stop) => self.stop_orphans(role),
        }
    }

    /// Stops the processes of a role that nobody knows, by their names.
    fn stop_orphans(&self, role: String) {
        let (processes, events) = (self.processes.clone(), self.events.clone());
        tokio::spawn(async move {
            let prefix = format!("{role}/");
            for process in processes.list().await.unwrap_or_default() {
                if process.name.starts_with(&prefix)
                    && let Err(error) = processes.stop(&process.name, ORPHAN_GRACE).await
                {
                    tracing::warn!(
                        error = chained(&error),
                        name = process.name,
                        "cannot be stopped"
                    );
                }
            }
            let _ = events.send(Event::Stopped { role }).await;
        });
    }

    fn node_context(&self) -> NodeContext {
        NodeContext {
            node_name: self
                .core
                .level()
                .map(|level| level.node_name.clone())
                .unwrap_or_default(),
            service: self.context.service.to_string(),
            address: self.context.address,
            processes: self.processes.clone(),
            code: self.code.clone(),
            secrets: self.secrets.clone(),
            run_folder: self.run_folder.clone(),
            log_folder: self.log_folder.clone(),
            loopback: self.loopback,
        }
    }

    fn command(&self, id: u64, role: &str, name: String, arguments: serde_json::Value) {
        let (answer, answered) = oneshot::channel();
        let replies = self.replies.clone();
        let refusal = match self.roles.get(role) {
            None => Some(format!("role '{role}' does not run on this node")),
            Some(task) => task
                .command(Job {
                    name,
                    arguments,
                    answer,
                })
                .is_err()
                .then(|| format!("role '{role}' has too many commands under way")),
        };
        tokio::spawn(async move {
            let result = match refusal {
                Some(reason) => Err(reason),
                None => match tokio::time::timeout(COMMAND_DEADLINE, answered).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err("the role was stopped meanwhile".to_owned()),
                    Err(_) => Err("the role is busy and did not answer in time".to_owned()),
                },
            };
            let _ = replies.send(FromAgent::CommandResult { id, result }).await;
        });
    }

    fn report(&mut self) {
        let held = self
            .endpoints
            .as_ref()
            .map(Endpoints::held)
            .unwrap_or_default();
        let report = self.core.report(self.probe.health(), &held);
        self.reports.send_replace(Some(Arc::new(report)));
    }

    /// Removes code and secrets nobody needs, once a level has been carried out.
    fn prune(&mut self) {
        let Some(applied) = self.core.applied() else {
            return;
        };
        let Some(level) = self.core.level().filter(|level| level.version == applied) else {
            return;
        };
        if self.pruned == Some(applied) {
            return;
        }
        self.pruned = Some(applied);
        let keep: BTreeSet<String> = level
            .body
            .roles
            .values()
            .flat_map(|role| role.releases.values())
            .filter_map(|release| release.code.as_ref())
            .map(|code| code.sha256.clone())
            .collect();
        let (code, secrets) = (self.code.clone(), self.secrets.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = secrets.prune() {
                tracing::warn!(%error, "secrets that nobody needs cannot be removed");
            }
            if let Err(error) = code.prune(&keep) {
                tracing::warn!(%error, "unused code cannot be removed");
            }
        });
    }
}
