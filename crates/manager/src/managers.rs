//! [`ServiceManagers`]: the handle to the managers of one or many services. Behind it one task
//! (the desk) owns all their cores; each agent's stream has a task of its own, so that a slow
//! agent holds up nobody.

use crate::desk::{Admission, Count, Desk, Message};
use crate::seat;
use conpaas_model::ids::{Epoch, ServiceId};
use conpaas_model::metrics::NodeMetrics;
use conpaas_model::protocol::{ManagerLevel, ManagerReport};
use conpaas_pki::PartyKind;
use conpaas_services::registry::Registry;
use conpaas_wire::{Body, Peer, StreamSettings, accept_stream, error_response};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// A level of an epoch that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the level is of epoch {}, but {} was seen already", .refused.0, .seen.0)]
pub struct StaleLevel {
    pub refused: Epoch,
    pub seen: Epoch,
}

/// Why a command was not even tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("this manager has no service {0}")]
    UnknownService(ServiceId),
    #[error("service type '{service_type}' has no command '{name}'; it has: {}", list(.known))]
    UnknownCommand {
        service_type: String,
        name: String,
        known: Vec<String>,
    },
    #[error("no node {} is ready to take the command", if role.is_empty() { String::new() } else { format!("with role '{role}'") })]
    NoReadyNode { role: String },
    #[error("the manager is going down")]
    Over,
}

fn list(known: &[String]) -> String {
    if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    }
}

/// The managers of some services. Clones are the same managers.
#[derive(Clone)]
pub struct ServiceManagers {
    desk: mpsc::Sender<Message>,
    reports: watch::Receiver<Option<Arc<ManagerReport>>>,
    streams: StreamSettings,
    shutdown: CancellationToken,
}

impl ServiceManagers {
    /// Starts with no service; [`Self::level`] brings them. Ends with `shutdown`.
    pub fn start(registry: Registry, shutdown: CancellationToken) -> Self {
        let (desk, messages) = mpsc::channel(1024);
        let (reports, reports_seen) = watch::channel(None);
        tokio::spawn(Desk::new(registry, reports).run(messages, shutdown.clone()));
        Self {
            desk,
            reports: reports_seen,
            streams: StreamSettings::default(),
            shutdown,
        }
    }

    /// The Director is within reach, for the first time or again.
    pub async fn reached(&self) {
        // At the end nobody listens any more.
        let _ = self.desk.send(Message::Reached).await;
    }

    /// Takes in what the Director wants, whole: services that are not mentioned are managed no
    /// more. A level of an older epoch is refused.
    pub async fn level(&self, level: ManagerLevel) -> Result<(), StaleLevel> {
        let (answer, answered) = oneshot::channel();
        // At the end nobody is there to refuse anything.
        let _ = self
            .desk
            .send(Message::Level {
                level: Box::new(level),
                answer,
            })
            .await;
        answered.await.unwrap_or(Ok(()))
    }

    /// The whole report as it is now; changes whenever any service's does. Services are named
    /// in it once their core has said something.
    pub fn reports(&self) -> watch::Receiver<Option<Arc<ManagerReport>>> {
        self.reports.clone()
    }

    /// Answers the request of an agent for its stream. Only agents that a level names for one of
    /// its nodes, with a certificate for the service's application, come in.
    pub async fn accept_agent(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
    ) -> Response<Body> {
        let refuse = |status, code, text: String| {
            tracing::warn!(address = %peer.address, identity = ?peer.identity, code, "an agent was refused");
            error_response(status, code, text, None)
        };
        let Some(PartyKind::Agent { application, node }) =
            peer.identity.as_ref().map(|peer| &peer.kind)
        else {
            return refuse(
                StatusCode::FORBIDDEN,
                "agents_only",
                "only agents may open this stream".into(),
            );
        };
        let (answer, answered) = oneshot::channel();
        let asked = Message::Admit {
            machine: node.clone(),
            application: application.clone(),
            answer,
        };
        let _ = self.desk.send(asked).await;
        match answered.await {
            Ok(Admission::Welcome) => {}
            Ok(Admission::NotReady) => {
                let text = "this manager does not know its services yet".to_owned();
                return error_response(StatusCode::SERVICE_UNAVAILABLE, "not_ready", text, None);
            }
            Ok(Admission::Stranger) => {
                let text = format!("machine {node} belongs to no service of this manager");
                return refuse(StatusCode::FORBIDDEN, "unknown_machine", text);
            }
            Err(_) => {
                let text = "the manager is going down".to_owned();
                return error_response(StatusCode::SERVICE_UNAVAILABLE, "going_down", text, None);
            }
        }
        match accept_stream(&mut request, &self.streams) {
            Ok((response, accepting)) => {
                let (desk, machine, shutdown) =
                    (self.desk.clone(), node.clone(), self.shutdown.clone());
                tokio::spawn(async move {
                    match accepting.established().await {
                        Ok(stream) => seat::run(stream, machine, desk, shutdown).await,
                        Err(error) => {
                            tracing::debug!(%machine, %error, "an agent's stream did not open")
                        }
                    }
                });
                response
            }
            Err(problem) => problem.into(),
        }
    }

    /// Runs a command of the service's type on every ready node of the command's role and
    /// gathers the answers by node name. A node that fails, or does not answer within the
    /// deadline, is in the answer with `{"error": "..."}`.
    pub async fn command(
        &self,
        service: &ServiceId,
        name: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, CommandError> {
        let (answer, answered) = oneshot::channel();
        let asked = Message::Command {
            service: service.clone(),
            name: name.to_owned(),
            arguments,
            answer,
        };
        self.desk
            .send(asked)
            .await
            .map_err(|_| CommandError::Over)?;
        let waiting = answered.await.map_err(|_| CommandError::Over)??;
        let until = tokio::time::Instant::now() + deadline;
        let mut answers = Map::new();
        for (node, result) in waiting {
            let result = match tokio::time::timeout_at(until, result).await {
                Ok(Ok(Ok(value))) => value,
                Ok(Ok(Err(reason))) => json!({ "error": reason }),
                Ok(Err(_)) => json!({ "error": "the node's agent was lost meanwhile" }),
                Err(_) => json!({ "error": format!("no answer within {} s", deadline.as_secs()) }),
            };
            answers.insert(node, result);
        }
        Ok(Value::Object(answers))
    }

    /// What was measured of nodes since it was last asked for; all totals for a `whole` answer.
    pub async fn metrics(&self, whole: bool) -> Vec<NodeMetrics> {
        let (answer, answered) = oneshot::channel();
        // At the end there is nothing to tell.
        let _ = self.desk.send(Message::Metrics { whole, answer }).await;
        answered.await.unwrap_or_default()
    }

    pub(crate) async fn count(&self) -> Option<Count> {
        let (answer, answered) = oneshot::channel();
        self.desk.send(Message::Count { answer }).await.ok()?;
        answered.await.ok()
    }
}
