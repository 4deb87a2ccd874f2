//! Bodies and answers: building them, reading them within limits, files in parts.

use crate::{ErrorBody, WireError};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Any error a body may end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of requests we send and answers we give.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// How long a sender of a body may pause.
const PAUSE: Duration = Duration::from_secs(30);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Any body of bytes as ours.
pub fn boxed<B>(body: B) -> Body
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

pub fn empty() -> Body {
    boxed(Empty::new())
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    boxed(Full::new(bytes.into()))
}

/// A body that is read from somewhere while it is sent.
pub fn reader_body(reader: impl AsyncRead + Send + 'static) -> Body {
    boxed(StreamBody::new(
        ReaderStream::with_capacity(reader, 64 * 1024).map_ok(Frame::data),
    ))
}

/// An answer in JSON. A value that cannot be encoded becomes an internal error.
pub fn json_response<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_json(status, bytes),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be encoded");
            error_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the answer cannot be encoded",
                None,
            )
        }
    }
}

/// A refusal or failure with its code, words and what to do next.
pub fn error_response(
    status: StatusCode,
    code: &str,
    message: impl Into<String>,
    hint: Option<String>,
) -> Response<Body> {
    Problem {
        status,
        body: ErrorBody {
            code: code.to_owned(),
            message: message.into(),
            hint,
        },
    }
    .into()
}

fn with_json(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A request that is refused, with what to answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", body.message)]
pub struct Problem {
    pub status: StatusCode,
    pub body: ErrorBody,
}

impl Problem {
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody {
                code: code.to_owned(),
                message: message.into(),
                hint: None,
            },
        }
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
}

impl From<Problem> for Response<Body> {
    fn from(problem: Problem) -> Self {
        // Three strings always encode.
        let mut response = with_json(
            problem.status,
            serde_json::to_vec(&problem.body).unwrap_or_default(),
        );
        if problem.status == StatusCode::UPGRADE_REQUIRED {
            response
                .headers_mut()
                .insert(UPGRADE, HeaderValue::from_static(crate::stream::PROTOCOL));
        }
        response
    }
}

/// Why a body could not be taken whole.
pub(crate) enum Collect {
    TooLarge,
    Paused,
    Broken(BoxError),
}

/// Reads a body whole, up to `limit` bytes, with no pause longer than `pause`.
pub(crate) async fn collect<B>(body: B, limit: usize, pause: Duration) -> Result<Bytes, Collect>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let mut whole = BytesMut::new();
    loop {
        match tokio::time::timeout(pause, body.frame()).await {
            Err(_) => return Err(Collect::Paused),
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(error))) => return Err(Collect::Broken(error.into())),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    if whole.len() + data.len() > limit {
                        return Err(Collect::TooLarge);
                    }
                    whole.extend_from_slice(&data);
                }
            }
        }
    }
}

/// Reads a request's body whole, up to `max_bytes`. The error is what to answer.
pub async fn read_bytes<B>(request: Request<B>, max_bytes: usize) -> Result<Bytes, Problem>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    collect(request.into_body(), max_bytes, PAUSE)
        .await
        .map_err(|failed| match failed {
            Collect::TooLarge => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the request's body is over the limit of {max_bytes} bytes"),
            ),
            Collect::Paused => Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                "the request's body stopped coming",
            ),
            Collect::Broken(error) => Problem::new(
                StatusCode::BAD_REQUEST,
                "body_broken",
                format!("the request's body broke off: {error}"),
            ),
        })
}

/// Reads a request's body as JSON, up to `max_bytes`. The error is what to answer. An empty body
/// reads as `null`.
pub async fn read_json<T, B>(request: Request<B>, max_bytes: usize) -> Result<T, Problem>
where
    T: DeserializeOwned,
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let bytes = read_bytes(request, max_bytes).await?;
    from_json(&bytes).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "body_invalid",
            format!("the request's body is not valid: {error}"),
        )
    })
}

pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(if bytes.is_empty() { b"null" } else { bytes })
}

/// What an answer that is no success says.
pub(crate) fn remote_error(status: StatusCode, bytes: &[u8]) -> WireError {
    let body = serde_json::from_slice(bytes).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(bytes).chars().take(300).collect();
        let reason = status.canonical_reason().unwrap_or("no reason");
        ErrorBody {
            code: format!("http_{}", status.as_u16()),
            message: if text.trim().is_empty() {
                reason.to_owned()
            } else {
                text
            },
            hint: None,
        }
    });
    WireError::Remote { status, body }
}

/// Which bytes of a content are asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// First byte and number of bytes.
    Span(u64, u64),
    Unsatisfiable,
}

/// Reads a Range header against a content's length. What is no single range of bytes asks for all.
fn part(header: Option<&str>, length: u64) -> Part {
    let Some((first, last)) = header
        .and_then(|h| h.strip_prefix("bytes="))
        .and_then(|h| h.split_once('-'))
    else {
        return Part::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), _) if first >= length => Part::Unsatisfiable,
        (Ok(first), Ok(last)) if last >= first => {
            Part::Span(first, last.min(length - 1) - first + 1)
        }
        (Ok(first), Err(_)) if last.trim().is_empty() => Part::Span(first, length - first),
        (Err(_), Ok(0)) if first.trim().is_empty() => Part::Unsatisfiable,
        (Err(_), Ok(count)) if first.trim().is_empty() => match count.min(length) {
            0 => Part::Unsatisfiable,
            count => Part::Span(length - count, count),
        },
        _ => Part::Whole,
    }
}

/// Answers with a file, or with the part of it that a Range header in `headers` asks for.
pub async fn file_response(
    headers: &HeaderMap,
    mut file: tokio::fs::File,
) -> io::Result<Response<Body>> {
    let length = file.metadata().await?.len();
    let (status, first, count) =
        match part(headers.get(RANGE).and_then(|v| v.to_str().ok()), length) {
            Part::Whole => (StatusCode::OK, 0, length),
            Part::Span(first, count) => (StatusCode::PARTIAL_CONTENT, first, count),
            Part::Unsatisfiable => {
                let message = format!("the content has {length} bytes");
                let mut response = error_response(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    "range_not_satisfiable",
                    message,
                    None,
                );
                insert(
                    response.headers_mut(),
                    CONTENT_RANGE,
                    format!("bytes */{length}"),
                );
                return Ok(response);
            }
        };
    if first > 0 {
        file.seek(io::SeekFrom::Start(first)).await?;
    }
    let mut response = Response::new(reader_body(file.take(count)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(count));
    if status == StatusCode::PARTIAL_CONTENT {
        insert(
            headers,
            CONTENT_RANGE,
            format!("bytes {first}-{}/{length}", first + count - 1),
        );
    }
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (header, length, wanted) in [
            (None, 10, Part::Whole),
            (Some("bytes=0-"), 10, Part::Span(0, 10)),
            (Some("bytes=4-"), 10, Part::Span(4, 6)),
            (Some("bytes=4-5"), 10, Part::Span(4, 2)),
            (Some("bytes=4-99"), 10, Part::Span(4, 6)),
            (Some("bytes=-3"), 10, Part::Span(7, 3)),
            (Some("bytes=-30"), 10, Part::Span(0, 10)),
            (Some("bytes=10-"), 10, Part::Unsatisfiable),
            (Some("bytes=-0"), 10, Part::Unsatisfiable),
            (Some("bytes=0-"), 0, Part::Unsatisfiable),
            (Some("bytes=-1"), 0, Part::Unsatisfiable),
            (Some("bytes=5-4"), 10, Part::Whole),
            (Some("bytes=0-1,3-4"), 10, Part::Whole),
            (Some("lines=1-2"), 10, Part::Whole),
            (Some("bytes=x-y"), 10, Part::Whole),
        ] {
            assert_eq!(part(header, length), wanted, "{header:?} of {length}");
        }
    }
}
