//! Live streams (server-sent events): an application's events, an operation's changes.

use super::apps::Here;
use super::views;
use crate::auth::{Principal, still_holds};
use crate::error::DirectorError;
use crate::shared::Shared;
use crate::store::apps::AppRow;
use crate::store::operations::{self, OperationRow};
use crate::store::{apps, events, now};
use axum::Extension;
use axum::extract::State;
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use conpaas_model::api::{Event, Operation, Outcome};
use conpaas_model::ids::TokenId;
use futures::Stream;
use http::HeaderMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often an idle stream says that it still is there.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often an idle stream looks whether its token still holds; it also looks on each change.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Events read at once.
const BATCH: u64 = 200;

type Frames<S> = Sse<axum::response::sse::KeepAliveStream<S>>;

fn sse<S>(stream: S) -> Frames<S>
where
    S: Stream<Item = Result<Frame, DirectorError>> + Send + 'static,
{
    Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("heartbeat"))
}

/// Waits until it is time to look again: at the next change, or after a while. False when the
/// Director ends.
async fn next_change(shared: &Shared, changed: &mut watch::Receiver<u64>) -> bool {
    tokio::select! {
        () = shared.shutdown.cancelled() => false,
        result = changed.changed() => result.is_ok(),
        () = tokio::time::sleep(LOOK_EVERY) => true,
    }
}

struct EventsState {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    token: TokenId,
    app: AppRow,
    after: u64,
    ready: VecDeque<Event>,
}

impl EventsState {
    /// The next event, when there is one; `None` when the application or the Director is gone, or
    /// the token holds no more.
    async fn next(&mut self) -> Result<Option<Event>, DirectorError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.after = event.sequence;
                return Ok(Some(event));
            }
            let (id, after, token) = (self.app.id.clone(), self.after, self.token.clone());
            let look = move |tx: &rusqlite::Transaction<'_>| {
                if !still_holds(tx, &token, now())? {
                    return Ok(None);
                }
                let found = events::after(tx, &id, after, BATCH)?;
                Ok(Some((found, apps::get(tx, &id)?.is_some())))
            };
            let Some((found, there)) = self.shared.store.read(look).await? else {
                return Ok(None);
            };
            self.ready.extend(found);
            let wait = self.ready.is_empty();
            if wait && (!there || !next_change(&self.shared, &mut self.changed).await) {
                return Ok(None);
            }
        }
    }
}

/// An application's events as they happen; `Last-Event-ID` is the last sequence number seen.
#[utoipa::path(get, path = "/v1/apps/{app}/events/stream", operation_id = "stream_events",
    params(("app" = String, Path, description = "NAME, OWNER:NAME or id."),
        ("Last-Event-ID" = Option<String>, Header, description = "The last one seen.")),
    responses((status = 200, description = "Server-sent events; each one's data is an event.",
        body = Event, content_type = "text/event-stream")))]
pub(super) async fn stream_events(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Extension(app): Extension<AppRow>,
    headers: HeaderMap,
) -> Frames<impl Stream<Item = Result<Frame, DirectorError>> + Send + 'static> {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let after = last.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let changed = shared.store.changed_of(&app.id);
    let state = EventsState {
        shared,
        changed,
        token: principal.token,
        app,
        after,
        ready: VecDeque::new(),
    };
    sse(futures::stream::try_unfold(state, |mut state| async move {
        let Some(event) = state.next().await? else {
            return Ok(None);
        };
        let frame = Frame::default().id(event.sequence.to_string());
        Ok(Some((frame.data(serde_json::to_string(&event)?), state)))
    }))
}

struct OperationState {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    token: TokenId,
    id: String,
    told: Option<String>,
    number: u64,
    over: bool,
}

impl OperationState {
    /// The operation once it is another than the one last told; `None` after its end, or
    /// when the token holds no more.
    async fn next(&mut self) -> Result<Option<String>, DirectorError> {
        while !self.over {
            let (id, token) = (self.id.clone(), self.token.clone());
            let look = move |tx: &rusqlite::Transaction<'_>| {
                if !still_holds(tx, &token, now())? {
                    return Ok(None);
                }
                operations::get(tx, &id)?
                    .map(|row| views::operation(tx, row))
                    .transpose()
            };
            let found: Option<Operation> = self.shared.store.read(look).await?;
            let Some(operation) = found else {
                return Ok(None);
            };
            self.over = operation.outcome != Outcome::Running;
            let text = serde_json::to_string(&operation)?;
            if self.told.as_ref() != Some(&text) {
                self.told = Some(text.clone());
                self.number += 1;
                return Ok(Some(text));
            }
            if !self.over && !next_change(&self.shared, &mut self.changed).await {
                return Ok(None);
            }
        }
        Ok(None)
    }
}

/// An operation, whole, on each change; the stream ends after its outcome.
#[utoipa::path(get, path = "/v1/operations/{operation}/stream", operation_id = "stream_operation",
    params(("operation" = String, Path, description = "Its id.")),
    responses((status = 200, description = "Server-sent events; each one's data is the operation.",
        body = Operation, content_type = "text/event-stream")))]
pub(super) async fn stream_operation(
    State(shared): Here,
    Extension(principal): Extension<Principal>,
    Extension(row): Extension<OperationRow>,
) -> Frames<impl Stream<Item = Result<Frame, DirectorError>> + Send + 'static> {
    let changed = shared.store.changed_of(&row.app);
    let id = row.id.to_string();
    let state = OperationState {
        shared,
        changed,
        token: principal.token,
        id,
        told: None,
        number: 0,
        over: false,
    };
    sse(futures::stream::try_unfold(state, |mut state| async move {
        let Some(text) = state.next().await? else {
            return Ok(None);
        };
        Ok(Some((
            Frame::default().id(state.number.to_string()).data(text),
            state,
        )))
    }))
}
