//! Opening a stream on the serving side.

use super::{FramedStream, StreamSettings};
use crate::body::Problem;
use crate::server::{Permit, version_problem};
use crate::{Body, VERSION_HEADER, WireError, empty};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::time::Duration;

/// What the Upgrade header names.
pub(crate) const PROTOCOL: &str = "conpaas-stream";

/// How long the connection may take to change over once the answer was given.
const CHANGE_OVER: Duration = Duration::from_secs(10);

/// True when these headers ask for, or agree to, one of our streams.
pub(crate) fn is_our_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()))
}

/// A stream that stands as soon as the answer has gone out.
pub struct Accepting<Rx, Tx> {
    upgrade: OnUpgrade,
    version: u32,
    settings: StreamSettings,
    held: Option<Permit>,
    messages: PhantomData<fn(&Tx) -> Rx>,
}

impl<Rx, Tx> Accepting<Rx, Tx>
where
    Rx: DeserializeOwned + Send + 'static,
    Tx: Serialize,
{
    /// Waits for the connection to change over. The answer must be on its way: await this in a task
    /// of its own.
    pub async fn established(self) -> Result<FramedStream<Rx, Tx>, WireError> {
        let upgraded = tokio::time::timeout(CHANGE_OVER, self.upgrade)
            .await
            .map_err(|_| WireError::Timeout {
                what: "opening the stream",
                after: CHANGE_OVER,
            })?
            .map_err(WireError::Http)?;
        Ok(FramedStream::start(
            TokioIo::new(upgraded),
            self.version,
            &self.settings,
            self.held,
        ))
    }

    /// The version both sides speak.
    pub fn version(&self) -> u32 {
        self.version
    }
}

/// Agrees to open a stream that receives `Rx` and sends `Tx`. Answer with the response, and await
/// [`Accepting::established`] in a task of its own. The error is what to answer otherwise: no stream
/// was asked for, or in no version that is spoken here.
pub fn accept_stream<Rx, Tx, B>(
    request: &mut Request<B>,
    settings: &StreamSettings,
) -> Result<(Response<Body>, Accepting<Rx, Tx>), Problem> {
    if !is_our_upgrade(request.headers()) {
        return Err(Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "stream_expected",
            format!("this path opens a stream: ask with 'Upgrade: {PROTOCOL}'"),
        ));
    }
    let stated = request
        .headers()
        .get(VERSION_HEADER)
        .cloned()
        .unwrap_or(HeaderValue::from_static("none"));
    let version = stated
        .to_str()
        .ok()
        .and_then(|stated| settings.versions.pick(stated))
        .ok_or_else(|| version_problem(&stated, settings.versions))?;
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert(VERSION_HEADER, HeaderValue::from(version));
    let held = request.extensions_mut().remove::<Permit>();
    let upgrade = hyper::upgrade::on(request);
    Ok((
        response,
        Accepting {
            upgrade,
            version,
            settings: settings.clone(),
            held,
            messages: PhantomData,
        },
    ))
}
