//! The manager process' stream to the Director. While the Director is away the managers work on
//! with what they know.

use crate::managers::ServiceManagers;
use conpaas_agent::{DialTo, Party, Secured};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::ids::{ApplicationId, Generation};
use conpaas_model::metrics::NodeMetrics;
use conpaas_model::protocol::{Context, FromManager, PATH_MANAGER_STREAM, ToManager};
use conpaas_wire::{Backoff, Client, ClientSettings, FramedStream, StreamSettings, WireError};
use http::HeaderMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

/// How often everything is reported, changed or not.
const FULL_REPORT: Duration = Duration::from_secs(2);
/// How often what was measured is told.
const MEASURES: Duration = Duration::from_secs(5);
/// Nodes whose measures are told in one message.
const NODES_AT_ONCE: usize = 16;
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// A stream that lasted this long was well.
const WELL: Duration = Duration::from_secs(5);

/// Calls the Director of the node's installation.
pub fn client(context: &Context, secured: &Arc<Secured>, dial: &DialTo) -> Client {
    let (dial, address) = (dial.clone(), context.director);
    let installation = context.installation.clone();
    let settings = ClientSettings {
        connect_timeout: Duration::from_secs(5),
        ..ClientSettings::default()
    };
    Client::new(
        move || dial(address),
        secured.client_tls(),
        move |peer| peer.is_director() && peer.installation == installation,
        settings,
    )
}

/// Messages of a bounded size.
fn parts(all: Vec<NodeMetrics>) -> impl Iterator<Item = Vec<NodeMetrics>> {
    let mut all = all.into_iter().peekable();
    std::iter::from_fn(move || {
        all.peek()?;
        Some(all.by_ref().take(NODES_AT_ONCE).collect())
    })
}

pub struct Link {
    pub client: Client,
    pub party: Arc<Party>,
    pub application: ApplicationId,
    pub managers: ServiceManagers,
    /// Whether the stream stands.
    pub connected: watch::Sender<bool>,
}

impl Link {
    /// Keeps the stream open for ever.
    pub async fn run(self) {
        let mut backoff = Backoff::for_parties();
        let mut told = String::new();
        let mut renewed = self.party.trust();
        loop {
            renewed.mark_unchanged();
            let begun = Instant::now();
            let settings = StreamSettings::default();
            let opened = self
                .client
                .open_stream(PATH_MANAGER_STREAM, HeaderMap::new(), &settings)
                .await;
            let ended = match opened {
                Ok(stream) => {
                    tracing::info!("connected to the Director");
                    told.clear();
                    self.connected.send_replace(true);
                    self.managers.reached().await;
                    let ended = self.converse(stream).await;
                    self.connected.send_replace(false);
                    ended
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                let text = error.to_string();
                if text != told {
                    tracing::warn!(error = text, "no stream to the Director");
                    told = text;
                }
            }
            if begun.elapsed() >= WELL {
                backoff.reset();
            }
            // What the old certificate could not may be done with a new one.
            tokio::select! {
                () = tokio::time::sleep(backoff.next(rand::random())) => {}
                _ = renewed.changed() => backoff.reset(),
            }
        }
    }

    async fn converse(
        &self,
        stream: FramedStream<ToManager, FromManager>,
    ) -> Result<(), WireError> {
        let (sender, mut receiver) = stream.split();
        let (results, mut results_in) = mpsc::channel(64);
        let mut reports = self.managers.reports();
        reports.mark_changed();
        let mut clock = tokio::time::interval(FULL_REPORT);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measures = tokio::time::interval(MEASURES);
        measures.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What an earlier stream told may have been lost with it.
        let mut whole = true;
        // Generations are counted anew by each life of the Director, so only within one stream.
        let mut newest: Option<Generation> = None;
        loop {
            tokio::select! {
                received = receiver.recv() => match received? {
                    Some(ToManager::Level(level)) => {
                        if level.application != self.application {
                            tracing::error!(application = %level.application, "a level for another application was ignored");
                        } else if newest.is_some_and(|newest| level.generation < newest) {
                            tracing::warn!(generation = level.generation.0, "an older level was ignored");
                        } else {
                            newest = Some(level.generation);
                            self.party.notice(&level.trust);
                            if let Err(error) = self.managers.level(*level).await {
                                tracing::warn!(%error, "a level was refused");
                            }
                        }
                    }
                    Some(ToManager::Command { id, service, name, arguments }) => {
                        let (managers, results) = (self.managers.clone(), results.clone());
                        tokio::spawn(async move {
                            let result = managers
                                .command(&service, &name, arguments, COMMAND_DEADLINE)
                                .await
                                .map_err(|error| error.to_string());
                            let _ = results.send(FromManager::CommandResult { id, result }).await;
                        });
                    }
                    None => return Err(WireError::Closed),
                },
                Some(result) = results_in.recv() => sender.send(&result).await?,
                changed = reports.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let report = reports.borrow_and_update().clone();
                    if let Some(report) = report {
                        sender.send(&FromManager::Report(Box::new((*report).clone()))).await?;
                        reached(KillPoint::ReportToDirector);
                    }
                }
                _ = clock.tick() => reports.mark_changed(),
                _ = measures.tick() => {
                    for some in parts(self.managers.metrics(whole).await) {
                        sender.send(&FromManager::Metrics(some)).await?;
                    }
                    whole = false;
                }
            }
        }
    }
}
