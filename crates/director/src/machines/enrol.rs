//! Enrolment and renewal of agents and managers: the decision is the pure one of `pki`; here are
//! the record it is made over and the signing.

use super::listener::{Caller, Refused, internal, problem, refuse, system_node};
use super::records;
use super::refusals::Told;
use super::shared::{Shared, full};
use super::trust;
use crate::error::DirectorError;
use crate::store::{self, Millis, events};
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::event::EventKind;
use conpaas_model::ids::ApplicationId;
use conpaas_model::protocol::{EnrolAnswer, EnrolRequest};
use conpaas_pki::{
    Decision, EnrolmentRequest, Identity, NodeRecord, PartyKind, Refusal, csr_key_fingerprint,
    decide,
};
use conpaas_wire::{Body, Peer, json_response, read_json};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A request is a few kilobytes; more is none.
const MAX_REQUEST: usize = 64 * 1024;

/// What came of an enrolment, over the records.
enum Outcome {
    Granted(Box<records::Machine>),
    Refused(Refusal),
    Unknown,
}

async fn request_of(
    request: Request<Incoming>,
) -> Result<(EnrolRequest, Vec<u8>, String), Refused> {
    let body: EnrolRequest = read_json(request, MAX_REQUEST).await.map_err(problem)?;
    let malformed = || {
        refuse(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "the certificate signing request cannot be read",
        )
    };
    let csr = CertificateSigningRequestDer::from_pem_slice(body.csr.as_bytes())
        .map_err(|_| malformed())?;
    let fingerprint = csr_key_fingerprint(&csr).map_err(|_| malformed())?;
    Ok((body, csr.to_vec(), fingerprint))
}

/// A machine's agent asks for its certificate, the first time or again.
pub async fn agent(
    shared: &Arc<Shared>,
    network: Option<&ApplicationId>,
    request: Request<Incoming>,
    peer: &Peer,
) -> Result<Response<Body>, Refused> {
    // Before anything is read: an attempt costs a signature's check and looks at the store.
    let (from, at) = (peer.address.ip(), store::now());
    if let Err(seconds) = shared.enrolments.check(network, from, at) {
        if let Some(count) = shared.refusals.note(Told::TooFast, at) {
            tracing::warn!(%from, count, "enrolments that came too fast were refused");
        }
        return Err(too_fast(seconds));
    }
    let answer = decide_and_answer(shared, network, request).await;
    let refused = |response: &Refused| response.status().is_client_error();
    if !answer.as_ref().is_err_and(refused) {
        shared.enrolments.succeeded(network, from);
    }
    answer
}

fn too_fast(seconds: u32) -> Refused {
    let mut refused = refuse(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_attempts",
        format!("too many enrolments from here were refused; try again in {seconds} s"),
    );
    refused
        .headers_mut()
        .insert(http::header::RETRY_AFTER, seconds.into());
    refused
}

async fn decide_and_answer(
    shared: &Arc<Shared>,
    network: Option<&ApplicationId>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let (body, csr, fingerprint) = request_of(request).await?;
    let (id, network, now) = (body.machine.clone(), network.cloned(), SystemTime::now());
    let outcome = shared
        .store
        .read({
            let (body, fingerprint) = (body.clone(), fingerprint.clone());
            let (id, network) = (id.clone(), network.clone());
            move |tx| {
                decided(tx, &id, network.as_ref(), &body, &fingerprint, now)
                    .map(|(outcome, _)| outcome)
            }
        })
        .await;
    // Only a first key changes the records.
    let outcome = match outcome {
        Ok(Outcome::Granted(machine)) if machine.key_fingerprint.is_some() => {
            Ok(Outcome::Granted(machine))
        }
        Ok(Outcome::Granted(machine)) => {
            let id = id.clone();
            shared
                .store
                .transaction_of(machine.application, move |tx| {
                    let (outcome, first) =
                        decided(tx, &id, network.as_ref(), &body, &fingerprint, now)?;
                    if first && matches!(outcome, Outcome::Granted(_)) {
                        records::set_key(tx, &id, &fingerprint)?;
                    }
                    Ok(outcome)
                })
                .await
        }
        outcome => outcome,
    };
    match outcome.map_err(|error| internal(&error))? {
        Outcome::Granted(machine) => {
            reached(KillPoint::AgentEnrolled);
            let kind = PartyKind::Agent {
                application: machine.application,
                node: machine.id,
            };
            answer(shared, &csr, kind)
        }
        Outcome::Refused(refusal) => {
            let (code, at) = (refusal.code(), store::now());
            if let Some(count) = shared.refusals.note(Told::Line(id.clone()), at) {
                tracing::warn!(machine = %id, code, count, "enrolments were refused");
            }
            if refusal.is_reported()
                && let Some(count) = shared.refusals.note(Told::Event(id.clone()), at)
            {
                let told = shared
                    .store
                    .transaction(move |tx| report(tx, &id, refusal, count));
                told.await.map_err(|error| internal(&error))?;
            }
            Err(refuse(
                StatusCode::FORBIDDEN,
                refusal.code(),
                refusal.to_string(),
            ))
        }
        Outcome::Unknown => {
            if let Some(count) = shared.refusals.note(Told::Unknown, store::now()) {
                tracing::warn!(machine = %id, count, "unknown machines tried to enrol");
            }
            // The same words as for a wrong token: who guesses learns nothing.
            let refusal = Refusal::UnknownToken;
            Err(refuse(
                StatusCode::FORBIDDEN,
                refusal.code(),
                refusal.to_string(),
            ))
        }
    }
}

fn instant(at: Millis) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(records::unsigned(at))
}

/// The outcome, and whether the key is the machine's first.
fn decided(
    tx: &rusqlite::Connection,
    id: &conpaas_model::ids::MachineId,
    network: Option<&ApplicationId>,
    body: &EnrolRequest,
    fingerprint: &str,
    now: SystemTime,
) -> Result<(Outcome, bool), DirectorError> {
    let machine = records::machine(tx, id)?;
    let Some(machine) = machine.filter(|m| network.is_none_or(|network| m.application == *network))
    else {
        return Ok((Outcome::Unknown, false));
    };
    let record = NodeRecord {
        token_hash: machine.token_hash.clone(),
        token_expires_at: instant(machine.token_expires_at),
        key_fingerprint: machine.key_fingerprint.clone(),
        removed: machine.is_removed(),
    };
    let asked = EnrolmentRequest {
        token: body.token.clone(),
        key_fingerprint: fingerprint.to_owned(),
    };
    Ok(match decide(&record, &asked, now) {
        Decision::Issue => (Outcome::Granted(Box::new(machine)), true),
        Decision::IssueAgain => (Outcome::Granted(Box::new(machine)), false),
        Decision::Refuse(refusal) => (Outcome::Refused(refusal), false),
    })
}

/// Writes down that a machine's enrolment was refused, and how often since the last time.
fn report(
    tx: &rusqlite::Connection,
    id: &conpaas_model::ids::MachineId,
    refusal: Refusal,
    count: u64,
) -> Result<(), DirectorError> {
    let Some(machine) = records::machine(tx, id)? else {
        return Ok(());
    };
    let Some((application, service)) = records::place_of(tx, &machine.service)? else {
        return Ok(());
    };
    let reason = refusal.to_string();
    let event = events::NewEvent {
        service: Some(&service),
        actor: "system",
        reason: Some(&reason),
        what: EventKind::EnrolmentRefused {
            node: machine.node,
            machine: machine.id,
            code: refusal.code().to_owned(),
            count,
        },
    };
    events::append(tx, &application, &event)
}

/// A manager process asks for an identity of its own, with the certificate of its node's agent.
pub async fn manager(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let (body, csr, _) = request_of(request).await?;
    if body.machine != caller.machine.id {
        return Err(refuse(
            StatusCode::FORBIDDEN,
            "other_machine",
            "the request names another machine than its sender's",
        ));
    }
    system_node(shared, &caller.machine).await?;
    let kind = PartyKind::Manager {
        application: caller.machine.application.clone(),
        node: caller.machine.id.clone(),
    };
    trust::expect_manager(shared, &caller.machine)
        .await
        .map_err(|error| internal(&error))?;
    reached(KillPoint::ManagerEnrolled);
    answer(shared, &csr, kind)
}

fn answer(shared: &Arc<Shared>, csr: &[u8], kind: PartyKind) -> Result<Response<Body>, Refused> {
    let identity = Identity::new(shared.installation.clone(), kind);
    // Before the roots are read: when they change in between, it is out of date and asks again.
    let trust = shared.trust_digest();
    match shared.sign(csr, &identity) {
        Ok(chain) => Ok(json_response(
            StatusCode::OK,
            &EnrolAnswer {
                chain: chain.to_pem(),
                roots: shared.roots_pem(),
                lifetime_seconds: shared.config.certificate_lifetime.as_secs(),
                trust,
            },
        )),
        Err(error) => {
            tracing::error!(error = full(&error), "a certificate could not be signed");
            Err(refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the certificate could not be signed; try again",
            ))
        }
    }
}
