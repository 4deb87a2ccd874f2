//! The way to the manager: found at the Director, kept open, looked for again when it fails or
//! when another one was made. Meanwhile the node goes on with what it has.

use crate::measures::Measures;
use crate::party::{Party, Secured, chained};
use crate::{DialTo, files};
use conpaas_core::metrics::Changes;
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::ids::Epoch;
use conpaas_model::protocol::{
    Context, FromAgent, Located, ManagerAddress, PATH_AGENT_STREAM, PATH_LOCATE, ToAgent,
};
use conpaas_model::status::AgentReport;
use conpaas_pki::{Identity, PartyKind};
use conpaas_wire::{Backoff, Client, ClientSettings, FramedStream, StreamSettings, WireError};
use http::HeaderMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

/// How often it is asked, while all is well, whether the manager is still the one.
const RECHECK: Duration = Duration::from_secs(15);
/// How often what is measured is told.
const MEASURES: Duration = Duration::from_secs(1);
/// A stream that lasted this long was well.
const WELL: Duration = Duration::from_secs(5);

/// Calls the Director of the node's installation.
pub fn director_client(context: &Context, secured: &Arc<Secured>, dial: &DialTo) -> Client {
    let installation = context.installation.clone();
    client_to(context.director, secured, dial, move |peer| {
        peer.is_director() && peer.installation == installation
    })
}

fn client_to(
    address: SocketAddr,
    secured: &Arc<Secured>,
    dial: &DialTo,
    expect: impl Fn(&Identity) -> bool + Send + Sync + 'static,
) -> Client {
    let dial = dial.clone();
    // An agent makes few calls; idle connections would only cost memory on both sides.
    let settings = ClientSettings {
        connect_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_secs(10),
        max_idle: 1,
        ..ClientSettings::default()
    };
    Client::new(
        move || dial(address),
        secured.client_tls(),
        expect,
        settings,
    )
}

/// Everything the way to the manager needs.
pub struct Link {
    pub context: Context,
    pub party: Arc<Party>,
    pub secured: Arc<Secured>,
    pub director: Client,
    pub dial: DialTo,
    /// Where the last known manager is remembered.
    pub located_file: PathBuf,
    pub down: mpsc::Sender<ToAgent>,
    pub reports: watch::Receiver<Option<Arc<AgentReport>>>,
    pub replies: mpsc::Receiver<FromAgent>,
    pub measures: Measures,
}

enum End {
    /// Another manager may have been made.
    Relocate,
    /// The agent ends.
    Over,
}

impl Link {
    /// Keeps the way open for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::for_parties();
        let mut told = String::new();
        let mut renewed = self.party.trust();
        loop {
            renewed.mark_unchanged();
            let begun = Instant::now();
            match self.once().await {
                Ok(End::Over) => return,
                Ok(End::Relocate) => told.clear(),
                Err(error) => {
                    let text = chained(&error);
                    if text != told {
                        tracing::warn!(error = text, "no way to the manager");
                        told = text;
                    }
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

    async fn once(&mut self) -> Result<End, WireError> {
        let located = self.locate().await?;
        let (at, client) = match &located.manager {
            ManagerAddress::Nowhere => {
                tracing::debug!("there is no manager at the moment");
                return Ok(End::Relocate);
            }
            ManagerAddress::Director => (self.context.director, self.director.clone()),
            ManagerAddress::At { machine, address } => {
                let expected = Identity::new(
                    self.context.installation.clone(),
                    PartyKind::Manager {
                        application: self.context.application.clone(),
                        node: machine.clone(),
                    },
                );
                let expect = move |peer: &Identity| *peer == expected;
                (
                    *address,
                    client_to(*address, &self.secured, &self.dial, expect),
                )
            }
        };
        let settings = StreamSettings::default();
        let stream = client
            .open_stream::<ToAgent, FromAgent>(PATH_AGENT_STREAM, HeaderMap::new(), &settings)
            .await?;
        tracing::info!(%at, epoch = located.epoch.0, "connected to the manager");
        self.converse(stream, located).await
    }

    /// Asks the Director; while it is away, the last known manager will do.
    async fn locate(&self) -> Result<Located, WireError> {
        match self.director.get_json::<Located>(PATH_LOCATE).await {
            Ok(located) => {
                self.party.notice(&located.trust);
                if located.manager != ManagerAddress::Nowhere
                    && files::load::<Located>(&self.located_file).as_ref() != Some(&located)
                    && let Err(error) = files::save(&self.located_file, &located)
                {
                    tracing::warn!(
                        error = chained(&error),
                        "the manager's address cannot be kept"
                    );
                }
                Ok(located)
            }
            Err(error) if error.is_transient() => {
                match files::load::<Located>(&self.located_file) {
                    Some(located) => {
                        tracing::debug!(
                            error = chained(&error),
                            "the Director is away; trying the last manager"
                        );
                        Ok(located)
                    }
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn converse(
        &mut self,
        stream: FramedStream<ToAgent, FromAgent>,
        located: Located,
    ) -> Result<End, WireError> {
        let (sender, mut receiver) = stream.split();
        // Answers to an earlier manager mean nothing to this one.
        while self.replies.try_recv().is_ok() {}
        self.reports.mark_changed();
        let recheck = async {
            loop {
                tokio::time::sleep(RECHECK).await;
                let Ok(now) = self.director.get_json::<Located>(PATH_LOCATE).await else {
                    continue;
                };
                self.party.notice(&now.trust);
                let another = (now.epoch, &now.manager) != (located.epoch, &located.manager);
                if another && now.manager != ManagerAddress::Nowhere {
                    return;
                }
            }
        };
        tokio::pin!(recheck);
        // Another manager, or this one after a while, may know nothing: all is told first.
        let mut changes = Changes::default();
        let mut clock = tokio::time::interval(MEASURES);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = receiver.recv() => match received? {
                    Some(message) => {
                        if self.down.send(message).await.is_err() {
                            return Ok(End::Over);
                        }
                    }
                    None => return Err(WireError::Closed),
                },
                changed = self.reports.changed() => {
                    if changed.is_err() {
                        return Ok(End::Over);
                    }
                    let report = self.reports.borrow_and_update().clone();
                    if let Some(report) = report {
                        sender.send(&FromAgent::Report(Box::new((*report).clone()))).await?;
                        reached(KillPoint::ReportToManager);
                    }
                }
                _ = clock.tick() => {
                    let news = changes.of(&self.measures.all());
                    if !news.is_empty() {
                        sender.send(&FromAgent::Metrics(news)).await?;
                    }
                }
                reply = self.replies.recv() => {
                    let Some(reply) = reply else { return Ok(End::Over) };
                    sender.send(&reply).await?;
                    if is_superseded(&reply) {
                        tracing::info!("this manager was superseded; looking for the new one");
                        return Ok(End::Relocate);
                    }
                }
                () = &mut recheck => {
                    tracing::info!("the manager is another now");
                    return Ok(End::Relocate);
                }
            }
        }
    }
}

/// Whether a refusal shows that its sender is of an epoch gone by.
fn is_superseded(reply: &FromAgent) -> bool {
    let older = |refused: Epoch, seen: Epoch| refused < seen;
    matches!(reply, FromAgent::Refused { refused, seen } if older(refused.epoch, seen.epoch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpaas_core::manager::Patience;

    /// A node that comes back by itself must not be given up meanwhile: the certificate first,
    /// then the stream, each after the longest wait and a try that hangs for a while.
    #[test]
    fn a_node_is_back_before_it_is_given_up() {
        let waits = Backoff::for_parties().cap() * 2;
        let tries = Duration::from_secs(3);
        assert!(waits + tries < Patience::default().silence);
    }
}
