//! Fetching bulk: streamed, and taken up where it broke off.

use super::{Client, build};
use crate::{Backoff, WireError, empty};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Tries in a row that may bring no byte.
const FRUITLESS: u32 = 4;

impl Client {
    /// Fetches the bytes from `from` on into `writer` and gives the content's whole size. A transfer
    /// that breaks is resumed a few times by itself; what was written before stays written, so after
    /// an error the caller may go on later from where its writer stands.
    ///
    /// The content behind `path` must not change (it is addressed by its hash); whether it is the
    /// right one is the caller's to check. `Changed` says that its size did.
    pub async fn download<W: AsyncWrite + Unpin + Send>(
        &self,
        path: &str,
        writer: &mut W,
        from: u64,
    ) -> Result<u64, WireError> {
        let mut at = from;
        let mut known_size = None;
        let mut fruitless = 0;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        loop {
            let before = at;
            match self.fetch(path, writer, &mut at, &mut known_size).await {
                Ok(size) => {
                    writer.flush().await.map_err(WireError::Write)?;
                    return Ok(size);
                }
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => {
                    if at > before {
                        fruitless = 0;
                        backoff.reset();
                    }
                    fruitless += 1;
                    if fruitless >= FRUITLESS {
                        return Err(error);
                    }
                    tracing::debug!(path, at, %error, "a transfer broke and is resumed");
                    // One transfer alone: nobody to be out of step with, so no jitter is needed.
                    tokio::time::sleep(backoff.next(1.0)).await;
                }
            }
        }
    }

    /// One try from `at`, which moves on with what was written.
    async fn fetch<W: AsyncWrite + Unpin + Send>(
        &self,
        path: &str,
        writer: &mut W,
        at: &mut u64,
        known_size: &mut Option<u64>,
    ) -> Result<u64, WireError> {
        let mut request = build(Method::GET, path, empty())?;
        if *at > 0 {
            let range = HeaderValue::try_from(format!("bytes={at}-"))
                .map_err(|e| WireError::Request(e.into()))?;
            request.headers_mut().insert(RANGE, range);
        }
        let response = self.request(request).await?;
        let (size, mut skip) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let (first, size) = content_range(response.headers()).ok_or(WireError::Changed)?;
                if first != Some(*at) {
                    return Err(WireError::Changed);
                }
                (Some(size), 0)
            }
            // The server knows no ranges, or none was asked for: pass over what is there already.
            StatusCode::OK => (number(response.headers(), CONTENT_LENGTH), *at),
            // Nothing lies beyond what is there: complete, if that is the size.
            StatusCode::RANGE_NOT_SATISFIABLE => match content_range(response.headers()) {
                Some((None, size)) if size == *at => return Ok(size),
                _ => return Err(WireError::Changed),
            },
            _ => return Err(self.refusal(response).await),
        };
        if let Some(size) = size
            && *known_size.get_or_insert(size) != size
        {
            return Err(WireError::Changed);
        }
        let pause = self.0.settings.body_timeout;
        let mut body = response.into_body();
        while let Some(frame) =
            timeout(pause, body.frame())
                .await
                .map_err(|_| WireError::Timeout {
                    what: "the answer's body",
                    after: pause,
                })?
        {
            let Ok(mut data) = frame.map_err(WireError::Http)?.into_data() else {
                continue;
            };
            if skip > 0 {
                let passed = skip.min(data.len() as u64);
                skip -= passed;
                let _ = data.split_to(usize::try_from(passed).unwrap_or(data.len()));
            }
            writer.write_all(&data).await.map_err(WireError::Write)?;
            *at += data.len() as u64;
        }
        match size {
            Some(size) if *at < size => Err(WireError::Io(io::ErrorKind::UnexpectedEof.into())),
            Some(size) if *at > size => Err(WireError::Changed),
            _ if skip > 0 => Err(WireError::Changed),
            _ => Ok(*at),
        }
    }
}

fn number(headers: &HeaderMap, name: http::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// First byte (`None` for an unsatisfied range) and whole size of a Content-Range header.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, u64)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (span, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let first = if span == "*" {
        None
    } else {
        Some(span.split_once('-')?.0.parse().ok()?)
    };
    Some((first, size.parse().ok()?))
}
