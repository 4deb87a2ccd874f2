//! What every request passes before its handler: who asks, whether they may, the audit row, and
//! the idempotency key. What the path names is looked up here, once, so that to a stranger it is
//! missing in just the same words.

use super::Operations;
use super::repeat::{TokenSecret, TokenSecrets};
use crate::access::{self, Access};
use crate::auth::{Principal, authenticate, sha256_hex};
use crate::blobs;
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::apps::{self, AppRow};
use crate::store::housekeeping as keep;
use crate::store::operations::{self, OperationRow};
use crate::store::services::{self, ServiceRow};
use crate::store::users::{self, TokenRow, UserRow};
use crate::store::{millis, now};
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use conpaas_model::ids::PrincipalId;
use http::{Method, StatusCode, header};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Header that names a request which may be sent again without happening twice.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Header of an answer that was kept from the first time.
pub const REPLAYED: &str = "idempotent-replayed";

#[derive(Clone)]
pub(super) struct Gate {
    pub(super) shared: Arc<Shared>,
    pub(super) operations: Arc<Operations>,
}

/// What a path names, as far as the principal may know of it.
#[derive(Default)]
struct Named {
    app: Option<AppRow>,
    service: Option<ServiceRow>,
    operation: Option<OperationRow>,
    token: Option<TokenRow>,
    user: Option<UserRow>,
}

/// An application by name, `OWNER:NAME` or id, if the principal may know of it.
pub(super) fn find_app(
    tx: &Connection,
    principal: &Principal,
    text: &str,
) -> Result<AppRow, DirectorError> {
    let found = match text.split_once(':') {
        Some((owner, name)) => apps::by_name(tx, owner, name)?,
        None => match apps::by_name(tx, principal.user.name.as_str(), text)? {
            Some(found) => Some(found),
            None => apps::by_id(tx, text)?,
        },
    };
    found
        .filter(|found| principal.is_operator() || principal.owns(&found.owner))
        .ok_or_else(|| {
            DirectorError::not_found(format!("no application '{text}'"))
                .hint("list yours: conpaas app list")
        })
}

/// An application in the trash by name or `OWNER:NAME`, if the principal may know of it.
fn find_trashed(
    tx: &Connection,
    principal: &Principal,
    text: &str,
) -> Result<Option<AppRow>, DirectorError> {
    let own = principal.user.name.as_str();
    let (owner, name) = text.split_once(':').unwrap_or((own, text));
    let found = apps::trashed_by_name(tx, owner, name)?;
    Ok(found.filter(|found| principal.is_operator() || principal.owns(&found.owner)))
}

fn look_up(
    tx: &Connection,
    principal: &Principal,
    id: &str,
    params: &BTreeMap<String, String>,
) -> Result<Named, DirectorError> {
    let mut named = Named::default();
    if let Some(text) = params.get("app") {
        let app = match find_app(tx, principal, text) {
            // What is to be brought back may be named by the name it had.
            Err(missing) if id == "restore_app" => {
                find_trashed(tx, principal, text)?.ok_or(missing)?
            }
            found => found?,
        };
        if let Some(text) = params.get("service") {
            let found = services::find(tx, &app.id, text)?;
            named.service = Some(found.ok_or_else(|| {
                DirectorError::not_found(format!("no service '{text}' in '{}'", app.name))
                    .hint(format!("list them: conpaas service list {}", app.name))
            })?);
        }
        named.app = Some(app);
    }
    if let Some(text) = params.get("operation") {
        let found = operations::get(tx, text)?
            .filter(|found| principal.is_operator() || principal.owns(&found.owner));
        named.operation = Some(found.ok_or_else(|| {
            DirectorError::not_found(format!("no operation '{text}'"))
                .hint("list yours: conpaas operation list")
        })?);
    }
    if let Some(text) = params.get("token") {
        let found = users::find_token(tx, text)?
            .filter(|found| principal.owns(&found.user) && found.revoked_at.is_none());
        named.token = Some(found.ok_or_else(|| {
            DirectorError::not_found(format!("no token '{text}'"))
                .hint("list yours: conpaas token list")
        })?);
    }
    if let Some(text) = params.get("user") {
        let found = users::find(tx, text)?
            .filter(|found| principal.is_operator() || principal.owns(&found.id));
        named.user =
            Some(found.ok_or_else(|| DirectorError::not_found(format!("no user '{text}'")))?);
    }
    Ok(named)
}

fn bearer(parts: &http::request::Parts) -> Result<&str, DirectorError> {
    parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::trim)
        .ok_or_else(|| DirectorError::unauthenticated("this needs a login"))
}

/// Lets a request through, or answers it.
pub(super) async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (shared, begun) = (gate.shared.clone(), Instant::now());
    let response = match admit(gate, request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    shared
        .own
        .answered(response.status().as_u16(), begun.elapsed());
    response
}

async fn admit(gate: Gate, request: Request, next: Next) -> Result<Response, DirectorError> {
    let (parts, body) = request.into_parts();
    let Some(matched) = parts.extensions.get::<MatchedPath>().cloned() else {
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    let method = if parts.method == Method::HEAD {
        Method::GET
    } else {
        parts.method.clone()
    };
    let Some(id) = gate
        .operations
        .get(&(method, matched.as_str().to_owned()))
        .cloned()
    else {
        // A known path with a method it does not take: the router says so.
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    let Some(access) = access::of(&id) else {
        return Err(DirectorError::forbidden("nobody may call this"));
    };
    if access == Access::Public {
        return Ok(next.run(Request::from_parts(parts, body)).await);
    }
    let shared = gate.shared;
    let principal = authenticate(&shared.store, bearer(&parts)?).await?;
    if matches!(parts.method, Method::GET | Method::HEAD) {
        let request = named(&shared, &principal, &id, access, parts, body).await?;
        return Ok(next.run(request).await);
    }
    // Looked at before the audit row is begun: it refuses what was not begun at all.
    let key = key_of(&parts, &id)?;
    let secrets = TokenSecrets::of(&principal.token, bearer(&parts)?);
    let (actor, token) = (principal.user.name.to_string(), principal.token.clone());
    let (action, target) = (id.clone(), parts.uri.path().to_owned());
    let row = shared
        .store
        .quiet(move |tx| keep::begin_audit(tx, now(), &actor, Some(&token), &action, &target))
        .await?;
    // What changes something runs to its end, even when the caller hangs up.
    let store = shared.store.clone();
    let work = async move {
        let response = match named(&shared, &principal, &id, access, parts, body).await {
            Err(error) => error.into_response(),
            Ok(request) => match key {
                None => next.run(request).await,
                Some(key) => keyed(
                    &shared,
                    (&principal.user.id, key),
                    secrets,
                    &id,
                    request,
                    next,
                )
                .await
                .unwrap_or_else(IntoResponse::into_response),
            },
        };
        let status = response.status().as_u16();
        if let Err(error) = store
            .quiet(move |tx| keep::end_audit(tx, row, status))
            .await
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "an audit row stays open"
            );
        }
        response
    };
    tokio::spawn(work)
        .await
        .map_err(|error| DirectorError::internal("a request broke off", error))
}

/// The request with whoever asks, and what its path names, in its extensions.
async fn named(
    shared: &Shared,
    principal: &Principal,
    id: &str,
    access: Access,
    mut parts: http::request::Parts,
    body: Body,
) -> Result<Request, DirectorError> {
    match access {
        Access::Operator if !principal.is_operator() => {
            return Err(DirectorError::forbidden("only operators may do this"));
        }
        Access::Public | Access::LoggedIn | Access::Owner | Access::Operator => {}
    }
    let params = RawPathParams::from_request_parts(&mut parts, &()).await;
    let params: BTreeMap<String, String> = params
        .map_err(|error| DirectorError::invalid("invalid_path", error.to_string()))?
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if !params.is_empty() {
        let (asking, id) = (principal.clone(), id.to_owned());
        let found = shared
            .store
            .read(move |tx| look_up(tx, &asking, &id, &params))
            .await?;
        let extensions = &mut parts.extensions;
        found.app.map(|row| extensions.insert(row));
        found.service.map(|row| extensions.insert(row));
        found.operation.map(|row| extensions.insert(row));
        found.token.map(|row| extensions.insert(row));
        found.user.map(|row| extensions.insert(row));
    }
    parts.extensions.insert(principal.clone());
    Ok(Request::from_parts(parts, body))
}

/// Changes that make a release, whatever their method.
const MAKE_RELEASES: [&str; 4] = ["set_settings", "set_env", "set_secret", "unset_secret"];

/// Whether an operation takes an idempotency key: all that make or begin something, except what
/// begins or ends a login. Other changes come to the same when they are repeated.
pub(super) fn takes_key(method: &Method, id: &str) -> bool {
    *method == Method::POST && access::of(id) != Some(Access::Public) && id != "logout"
        || MAKE_RELEASES.contains(&id)
}

/// Whether an operation changes something that has an entity tag: an application, a service or a
/// user. Commands of a service type and pieces of uploads leave the service's wish as it is.
pub(super) fn takes_precondition(method: &Method, path: &str) -> bool {
    *method != Method::GET
        && (path.contains("{app}") || path.contains("{user}"))
        && !path.contains("{command}")
        && !path.contains("{sha256}")
}

fn key_of(parts: &http::request::Parts, id: &str) -> Result<Option<String>, DirectorError> {
    let Some(key) = parts.headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    if !takes_key(&parts.method, id) {
        return Ok(None);
    }
    let key = key
        .to_str()
        .ok()
        .filter(|key| !key.is_empty() && key.len() <= 200);
    key.map(|key| Some(key.to_owned())).ok_or_else(|| {
        DirectorError::invalid(
            "invalid_key",
            "an idempotency key has 1 to 200 visible characters",
        )
    })
}

enum Key {
    Taken,
    Answered(u16, String),
}

/// Runs a request under a key, or answers what it was answered the first time.
async fn keyed(
    shared: &Shared,
    (user, key): (&PrincipalId, String),
    secrets: TokenSecrets,
    id: &str,
    request: Request,
    next: Next,
) -> Result<Response, DirectorError> {
    let (mut parts, body) = request.into_parts();
    let (body, content) = if id == "upload_code" {
        // Streamed to the disk first: what a key names is known when all of it has come.
        let upload = blobs::receive(shared, body.into_data_stream()).await?;
        let content = upload.sha256.clone();
        parts.extensions.insert(blobs::Received::new(upload));
        (Body::empty(), content)
    } else {
        let bytes = to_bytes(body, super::MAX_JSON)
            .await
            .map_err(|_| DirectorError::too_large("this request is too large"))?;
        // A body may hold a password or a secret: what is kept of it must not help to guess.
        let mut content = shared.vault.digest(&bytes);
        if id == "create_token" {
            content.push_str(secrets.token.as_str());
            parts.extensions.insert(secrets.next());
        }
        (Body::from(bytes), content)
    };
    let kept = millis(shared.config.kept.keys);
    let hash = sha256_hex(format!("{} {} {content}", parts.method, parts.uri));
    let (user, run_id) = (user.clone(), shared.run_id.clone());
    let (asking, named) = (user.clone(), key.clone());
    let found = shared
        .store
        .quiet(move |tx| {
            let at = now();
            match keep::find_key(tx, &asking, &named, at - kept)? {
                Some(row) if row.request_hash != hash => Err(DirectorError::conflict(
                    "key_reused",
                    "this idempotency key was used for another request",
                )),
                Some(row) if row.answer.is_none() && row.run_id == run_id => {
                    Err(DirectorError::conflict(
                        "in_progress",
                        "this very request is under way already",
                    )
                    .hint("send it again, with the same key, for its answer")
                    .retry_after(1))
                }
                Some(row) if row.answer.is_some() => Ok(row
                    .answer
                    .map_or(Key::Taken, |(status, body)| Key::Answered(status, body))),
                _ => {
                    keep::take_key(tx, &asking, &named, &hash, &run_id, at)?;
                    Ok(Key::Taken)
                }
            }
        })
        .await?;
    if let Key::Answered(status, body) = found {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        let body = secrets.put_back(body);
        let kind = [
            (header::CONTENT_TYPE.as_str(), "application/json"),
            (REPLAYED, "true"),
        ];
        return Ok((status, kind, body).into_response());
    }
    let given = parts.extensions.get::<TokenSecret>().cloned();
    let response = next.run(Request::from_parts(parts, body)).await;
    let (parts, body) = response.into_parts();
    let broken = |error| DirectorError::internal("an answer broke off", error);
    let bytes = to_bytes(body, 64 << 20).await.map_err(broken)?;
    let status = parts.status;
    let mut text = String::from_utf8(bytes.to_vec()).ok();
    if let (Some(text), Some(given)) = (&mut text, &given) {
        *text = given.take_out(text);
    }
    shared
        .store
        .quiet(move |tx| match text.filter(|_| status.is_success()) {
            Some(text) => keep::answer_key(tx, &user, &key, status.as_u16(), &text),
            // Nothing was made: the same key may try again.
            None => keep::drop_key(tx, &user, &key),
        })
        .await?;
    Ok(Response::from_parts(parts, Body::from(bytes)))
}
