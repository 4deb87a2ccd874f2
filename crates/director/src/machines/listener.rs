//! What machines may ask of the Director: enrolment, where their manager is, blobs, streams.
//! Every call checks the kind of party, the installation, the application, and that the machine
//! was not removed.

use super::records::{self, Machine};
use super::shared::{Shared, full};
use super::{enrol, intake, managers, secrets, trust};
use crate::error::DirectorError;
use crate::store::{codes, services};
use conpaas_core::broker::NodeKey;
use conpaas_model::ids::{ApplicationId, MachineId};
use conpaas_model::protocol::{
    FromManager, Located, PATH_AGENT_STREAM, PATH_BLOBS, PATH_ENROL, PATH_ENROL_MANAGER,
    PATH_LOCATE, PATH_LOGS, PATH_MANAGER_STREAM, PATH_SECRETS, PATH_TRUST, ToManager,
};
use conpaas_model::status::NodeState;
use conpaas_pki::PartyKind;
use conpaas_wire::{
    Body, Peer, Problem, StreamSettings, accept_stream, error_response, json_response,
};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;

/// Kinds of parties that a machine can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Agent,
    Manager,
}

/// A party that may call: its certificate is ours and its machine was not removed.
#[derive(Clone, Debug)]
pub struct Caller {
    pub machine: Machine,
    pub kind: Kind,
}

/// An answer that ends a call early.
pub type Refused = Box<Response<Body>>;

/// Refuses with a code and words.
pub fn refuse(status: StatusCode, code: &str, message: impl Into<String>) -> Refused {
    Box::new(error_response(status, code, message, None))
}

/// What the wire refuses by itself.
pub fn problem(problem: Problem) -> Refused {
    Box::new(problem.into())
}

/// Turns an error of the Director's own into an answer that tells machines nothing of it.
pub fn internal(error: &DirectorError) -> Refused {
    tracing::error!(error = full(error), "a machine's call failed");
    refuse(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the Director could not do this now; try again",
    )
}

/// Answers one call of a machine.
pub async fn handle(
    shared: Arc<Shared>,
    network: Option<ApplicationId>,
    request: Request<Incoming>,
    peer: Peer,
) -> Response<Body> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let outcome = match (&method, path.as_str()) {
        (&Method::POST, PATH_ENROL) => {
            enrol::agent(&shared, network.as_ref(), request, &peer).await
        }
        (&Method::POST, PATH_ENROL_MANAGER) => {
            match caller(&shared, network.as_ref(), &peer, &[Kind::Agent]).await {
                Ok(caller) => enrol::manager(&shared, &caller, request).await,
                Err(refused) => Err(refused),
            }
        }
        (&Method::GET, PATH_LOCATE) => {
            match caller(&shared, network.as_ref(), &peer, &[Kind::Agent]).await {
                Ok(caller) => locate(&shared, &caller).await,
                Err(refused) => Err(refused),
            }
        }
        (&Method::GET, PATH_MANAGER_STREAM) => {
            match caller(&shared, network.as_ref(), &peer, &[Kind::Manager]).await {
                Ok(caller) => manager_stream(&shared, caller, request).await,
                Err(refused) => Err(refused),
            }
        }
        (&Method::GET, PATH_AGENT_STREAM) => {
            match caller(&shared, network.as_ref(), &peer, &[Kind::Agent]).await {
                Ok(caller) => agent_stream(&shared, &caller, request, &peer).await,
                Err(refused) => Err(refused),
            }
        }
        (&Method::POST, PATH_TRUST) => {
            let both = [Kind::Agent, Kind::Manager];
            match caller(&shared, network.as_ref(), &peer, &both).await {
                Ok(caller) => trust::report(&shared, &caller, request, &peer).await,
                Err(refused) => Err(refused),
            }
        }
        (&Method::POST, path) if path.starts_with(PATH_LOGS) => {
            match caller(&shared, network.as_ref(), &peer, &[Kind::Agent]).await {
                Ok(caller) => intake::log(&shared, &caller, request).await,
                Err(refused) => Err(refused),
            }
        }
        (&Method::GET, path) if path.starts_with(PATH_SECRETS) => {
            match caller(&shared, network.as_ref(), &peer, &[Kind::Agent]).await {
                Ok(caller) => secrets::value(&shared, &caller, path).await,
                Err(refused) => Err(refused),
            }
        }
        (&Method::GET, path) if path.starts_with(PATH_BLOBS) => {
            match caller(
                &shared,
                network.as_ref(),
                &peer,
                &[Kind::Agent, Kind::Manager],
            )
            .await
            {
                Ok(caller) => blob(&shared, &caller, path, &request).await,
                Err(refused) => Err(refused),
            }
        }
        _ => Err(refuse(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is no such call for machines",
        )),
    };
    outcome.unwrap_or_else(|refused| *refused)
}

/// Who calls, if it may.
async fn caller(
    shared: &Arc<Shared>,
    network: Option<&ApplicationId>,
    peer: &Peer,
    kinds: &[Kind],
) -> Result<Caller, Refused> {
    let Some(identity) = &peer.identity else {
        return Err(refuse(
            StatusCode::UNAUTHORIZED,
            "no_certificate",
            "this call needs a certificate",
        ));
    };
    let (kind, application, node) = match &identity.kind {
        PartyKind::Agent { application, node } => (Kind::Agent, application, node),
        PartyKind::Manager { application, node } => (Kind::Manager, application, node),
        PartyKind::Director | PartyKind::Edge => {
            return Err(refuse(
                StatusCode::FORBIDDEN,
                "wrong_party",
                "this call is for machines",
            ));
        }
    };
    if identity.installation != shared.installation || !kinds.contains(&kind) {
        return Err(refuse(
            StatusCode::FORBIDDEN,
            "wrong_party",
            "this call is for another kind of party",
        ));
    }
    if network.is_some_and(|network| network != application) {
        return Err(refuse(
            StatusCode::FORBIDDEN,
            "wrong_application",
            "this is another application's network",
        ));
    }
    let machine = machine(shared, node).await?;
    match machine {
        Some(machine) if machine.application == *application && !machine.is_removed() => {
            Ok(Caller { machine, kind })
        }
        _ => Err(refuse(
            StatusCode::FORBIDDEN,
            "node_removed",
            "the node was removed",
        )),
    }
}

async fn machine(shared: &Arc<Shared>, id: &MachineId) -> Result<Option<Machine>, Refused> {
    let id = id.clone();
    shared
        .store
        .read(move |tx| records::machine(tx, &id))
        .await
        .map_err(|error| internal(&error))
}

async fn locate(shared: &Arc<Shared>, caller: &Caller) -> Result<Response<Body>, Refused> {
    let (service, trust) = (caller.machine.service.clone(), shared.trust_digest());
    let located: Option<Located> = shared
        .store
        .read(move |tx| {
            let Some(row) = services::get(tx, &service)? else {
                return Ok(None);
            };
            managers::locate(tx, &row, trust).map(Some)
        })
        .await
        .map_err(|error| internal(&error))?;
    match located {
        Some(located) => Ok(json_response(StatusCode::OK, &located)),
        None => Err(refuse(
            StatusCode::NOT_FOUND,
            "no_service",
            "the node's service is gone",
        )),
    }
}

async fn blob(
    shared: &Arc<Shared>,
    caller: &Caller,
    path: &str,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let missing = || {
        refuse(
            StatusCode::NOT_FOUND,
            "no_blob",
            "there is no such blob for this application",
        )
    };
    let hash = path
        .strip_prefix(PATH_BLOBS)
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or_default()
        .to_owned();
    if hash.len() != 64
        || !hash
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Err(missing());
    }
    let (application, wanted) = (caller.machine.application.clone(), hash.clone());
    let known = shared
        .store
        .read(move |tx| codes::blob_of_app(tx, &application, &wanted))
        .await
        .map_err(|error| internal(&error))?;
    if !known {
        return Err(missing());
    }
    let broken = |error: std::io::Error| {
        tracing::error!(%error, %hash, "a blob that a record names cannot be read");
        refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "blob_unreadable",
            "the blob cannot be read",
        )
    };
    let file = tokio::fs::File::open(shared.config.blobs.join(&hash))
        .await
        .map_err(broken)?;
    conpaas_wire::file_response(request.headers(), file)
        .await
        .map_err(broken)
}

/// Whether the machine's node is one of a system service's that is up and wanted.
pub async fn system_node(shared: &Arc<Shared>, machine: &Machine) -> Result<(), Refused> {
    let key = NodeKey {
        service: machine.service.clone(),
        number: machine.node,
    };
    let fit = shared
        .store
        .read(move |tx| {
            let internal = services::get(tx, &key.service)?.is_some_and(|row| row.internal);
            // One that has enrolled a moment ago may not be recorded as up yet.
            let node = records::node(tx, &key)?;
            Ok(internal
                && node.is_some_and(|node| {
                    node.wanted && matches!(node.state, NodeState::Up | NodeState::Booting)
                }))
        })
        .await
        .map_err(|error| internal(&error))?;
    if fit {
        Ok(())
    } else {
        Err(refuse(
            StatusCode::FORBIDDEN,
            "no_system_node",
            "this node is not one for managers",
        ))
    }
}

async fn manager_stream(
    shared: &Arc<Shared>,
    caller: Caller,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    system_node(shared, &caller.machine).await?;
    managers::check_epoch(shared, &caller.machine).await?;
    let (response, accepting) =
        accept_stream::<FromManager, ToManager, _>(&mut request, &StreamSettings::default())
            .map_err(problem)?;
    let task = shared.clone();
    shared.tasks.spawn(async move {
        match accepting.established().await {
            Ok(stream) => managers::serve(&task, caller.machine, stream).await,
            Err(error) => tracing::debug!(
                error = full(&error),
                "a manager's stream did not come to be"
            ),
        }
    });
    Ok(response)
}

async fn agent_stream(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: Request<Incoming>,
    peer: &Peer,
) -> Result<Response<Body>, Refused> {
    system_node(shared, &caller.machine).await?;
    Ok(shared.managers.accept_agent(request, peer).await)
}
