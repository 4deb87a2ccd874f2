//! How calls reach the Director: TLS with a pinned key, token, idempotency keys, and errors.

use crate::{ClientError, Events};
use bytes::Bytes;
use conpaas_model::api::ErrorBody;
use conpaas_pki::SeenFingerprint;
use futures::stream::{BoxStream, StreamExt};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls with a short answer; streams and bulk have none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often, once a second, an answer to a repeated request is waited for.
const REPEATS: u32 = 30;

/// Where a Director is and how it is known.
#[derive(Clone)]
pub struct Endpoint {
    /// For instance `https://127.0.0.1:9443`.
    pub url: String,
    /// The pinned fingerprint of its key, 64 hexadecimal digits.
    pub fingerprint: Option<String>,
    pub token: Option<String>,
}

/// A client of one Director.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Without a slash at its end.
    url: String,
    token: Option<String>,
    if_match: Option<String>,
}

/// Bytes to send as a body of their own.
pub struct Upload {
    body: reqwest::Body,
    length: Option<u64>,
}

impl Upload {
    /// Bytes that come as a stream; `length` when it is known.
    pub fn stream<S>(stream: S, length: Option<u64>) -> Self
    where
        S: futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        Self {
            body: reqwest::Body::wrap_stream(stream),
            length,
        }
    }
}

/// Bytes that the Director sends.
pub struct Download {
    /// Their number, when the Director knows it.
    pub length: Option<u64>,
    /// Their entity tag, without quotes: of an archive its SHA-256, in hex.
    pub tag: Option<String>,
    bytes: BoxStream<'static, Result<Bytes, reqwest::Error>>,
}

impl Download {
    /// The next piece; nothing at the end.
    ///
    /// # Errors
    /// The connection broke off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.bytes.next().await {
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(source)) => Err(ClientError::BrokeOff {
                source: source.without_url(),
            }),
            None => Ok(None),
        }
    }

    /// All of it, as text.
    ///
    /// # Errors
    /// The connection broke off.
    pub async fn text(mut self) -> Result<String, ClientError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(String::from_utf8_lossy(&all).into_owned())
    }
}

impl Client {
    /// A client for a Director whose fingerprint is known.
    ///
    /// # Errors
    /// The address or the fingerprint is none.
    pub fn new(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let url = check_url(&endpoint.url)?;
        let builder = builder();
        let builder = match &endpoint.fingerprint {
            Some(fingerprint) => {
                let tls = conpaas_pki::pinned_client_config(fingerprint).map_err(tls_error)?;
                builder.tls_backend_preconfigured((*tls).clone())
            }
            None if url.starts_with("http:") => {
                builder.tls_backend_preconfigured((*first_contact()?.0).clone())
            }
            None => {
                return Err(ClientError::Address {
                    url: endpoint.url.clone(),
                    why: "its fingerprint is not known".to_owned(),
                });
            }
        };
        let http = builder
            .build()
            .map_err(|source| ClientError::Setup { source })?;
        Ok(Self {
            http,
            url,
            token: endpoint.token.clone(),
            if_match: None,
        })
    }

    /// A client that notes the fingerprint of whoever answers. Send no secret through it.
    ///
    /// # Errors
    /// The address is none.
    pub fn first_contact(url: &str) -> Result<(Self, Arc<SeenFingerprint>), ClientError> {
        let url = check_url(url)?;
        let (tls, seen) = first_contact()?;
        let http = builder()
            .tls_backend_preconfigured((*tls).clone())
            .build()
            .map_err(|source| ClientError::Setup { source })?;
        Ok((
            Self {
                http,
                url,
                token: None,
                if_match: None,
            },
            seen,
        ))
    }

    /// The same client, whose changes are refused unless what they change still is what one looked
    /// at: an entity tag, or a generation (`g12`).
    #[must_use]
    pub fn if_match(mut self, tag: Option<String>) -> Self {
        self.if_match = tag;
        self
    }

    /// The Director's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> Call {
        let keyed = false;
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Call {
            url: self.url.clone(),
            request,
            repeatable: method == Method::GET,
            keyed,
        }
    }
}

fn first_contact() -> Result<(Arc<rustls::ClientConfig>, Arc<SeenFingerprint>), ClientError> {
    conpaas_pki::first_contact_client_config().map_err(tls_error)
}

fn tls_error(source: conpaas_pki::PkiError) -> ClientError {
    ClientError::Tls {
        source: Box::new(source),
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        // The pin is the whole trust: nobody in between may be asked, and nobody redirects.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("conpaas/", env!("CARGO_PKG_VERSION")))
}

fn check_url(text: &str) -> Result<String, ClientError> {
    let bad = |why: &str| ClientError::Address {
        url: text.to_owned(),
        why: why.to_owned(),
    };
    let url = Url::parse(text).map_err(|_| bad("it should look like https://HOST:PORT"))?;
    let loopback = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
    match url.scheme() {
        "https" => {}
        // A token must not cross a network in the clear.
        "http" if loopback => {}
        _ => return Err(bad("it should start with https://")),
    }
    if url.host_str().is_none() || !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it should hold a host and a port, nothing else"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it should end after the port"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// One segment of a path, with everything escaped that could mean something else.
pub(crate) fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b':');
        if plain || (byte == b'.' && text != "." && text != "..") {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// A call that is being put together.
pub(crate) struct Call {
    url: String,
    request: RequestBuilder,
    repeatable: bool,
    keyed: bool,
}

impl Call {
    pub(crate) fn query<Q: Serialize>(mut self, query: &Q) -> Self {
        self.request = self.request.query(query);
        self
    }

    pub(crate) fn json<B: Serialize>(mut self, body: &B) -> Self {
        self.request = self.request.json(body);
        self
    }

    pub(crate) fn upload(mut self, upload: Upload) -> Self {
        self.request = self
            .request
            .header("content-type", "application/octet-stream");
        if let Some(length) = upload.length {
            self.request = self.request.header("content-length", length);
        }
        self.request = self.request.body(upload.body);
        self
    }

    /// The Director recognises a repetition, so that a lost answer does no harm.
    pub(crate) fn keyed(mut self) -> Self {
        self.keyed = true;
        self.repeatable = true;
        let key = format!("{:032x}", rand::random::<u128>());
        self.request = self.request.header("idempotency-key", key);
        self
    }

    /// What it changes may be said to have to be as the caller saw it.
    pub(crate) fn guarded(mut self, client: &Client) -> Self {
        if let Some(tag) = &client.if_match {
            let tag = tag.trim_matches('"');
            self.request = self.request.header("if-match", format!("\"{tag}\""));
        }
        self
    }

    pub(crate) fn last_event(mut self, id: Option<&str>) -> Self {
        if let Some(id) = id {
            self.request = self.request.header("last-event-id", id);
        }
        self
    }

    /// Sends it and takes a JSON answer.
    pub(crate) async fn answer<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let answer = self.short().send().await?;
        let bytes = answer
            .bytes()
            .await
            .map_err(|source| ClientError::BrokeOff {
                source: source.without_url(),
            })?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Malformed { source })
    }

    /// Sends it; there is nothing in the answer.
    pub(crate) async fn done(self) -> Result<(), ClientError> {
        self.short().send().await.map(|_| ())
    }

    /// Sends a body that may take long, and takes a JSON answer.
    pub(crate) async fn bulk_answer<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let answer = self.send().await?;
        let bytes = answer
            .bytes()
            .await
            .map_err(|source| ClientError::BrokeOff {
                source: source.without_url(),
            })?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Malformed { source })
    }

    pub(crate) async fn download(self) -> Result<Download, ClientError> {
        let answer = self.send().await?;
        Ok(Download {
            length: answer.content_length(),
            tag: answer
                .headers()
                .get("etag")
                .and_then(|tag| tag.to_str().ok())
                .map(|tag| tag.trim_matches('"').to_owned()),
            bytes: answer.bytes_stream().boxed(),
        })
    }

    pub(crate) async fn events<T: DeserializeOwned>(mut self) -> Result<Events<T>, ClientError> {
        self.request = self.request.header("accept", "text/event-stream");
        Ok(Events::new(self.send().await?))
    }

    fn short(mut self) -> Self {
        self.request = self.request.timeout(ANSWER_TIMEOUT);
        self
    }

    async fn send(self) -> Result<Response, ClientError> {
        let Self {
            url,
            request,
            repeatable,
            ..
        } = self;
        // A kept-alive connection may have died with the Director's last restart.
        let again = if repeatable {
            request.try_clone()
        } else {
            None
        };
        let first = request.send().await;
        let answer = match (first, again) {
            (Err(error), Some(again)) if !error.is_connect() && !error.is_timeout() => {
                repeat(again).await
            }
            (first, _) => first,
        };
        let answer = answer.map_err(|source| ClientError::from_transport(&url, source))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(refusal(answer).await)
    }
}

/// Sends a request a second time. The first may still be under way at the Director, which says so
/// (409 with `in_progress`) rather than doing it twice: then its answer is waited for.
async fn repeat(request: RequestBuilder) -> Result<Response, reqwest::Error> {
    for _ in 0..REPEATS {
        let Some(copy) = request.try_clone() else {
            break;
        };
        let answer = copy.send().await?;
        let waits = answer.status() == StatusCode::CONFLICT
            && answer.headers().contains_key(reqwest::header::RETRY_AFTER);
        if !waits {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    request.send().await
}

/// What the Director answered instead of what was asked.
async fn refusal(answer: Response) -> ClientError {
    let status = answer.status();
    let bytes = answer.bytes().await.unwrap_or_default();
    let body = serde_json::from_slice::<ErrorBody>(&bytes).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(&bytes)
            .trim()
            .chars()
            .take(300)
            .collect();
        let reason = status.canonical_reason().unwrap_or("an error");
        ErrorBody {
            code: "unknown".to_owned(),
            message: if text.is_empty() {
                format!("the Director answered {} ({reason})", status.as_u16())
            } else {
                format!(
                    "the Director answered {} ({reason}): {text}",
                    status.as_u16()
                )
            },
            hint: None,
        }
    });
    ClientError::Answered {
        status: status.as_u16(),
        body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(segment("ada:shop"), "ada:shop");
        assert_eq!(segment("a/b?c#d"), "a%2Fb%3Fc%23d");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("web-3.x"), "web-3.x");
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(
            check_url("https://paas.example:9443/").unwrap(),
            "https://paas.example:9443"
        );
        assert!(check_url("http://127.0.0.1:80").is_ok());
        for bad in [
            "paas.example",
            "http://paas.example",
            "https://a:b@paas.example",
            "https://x/v1",
            "ftp://x",
        ] {
            assert!(
                matches!(check_url(bad), Err(ClientError::Address { .. })),
                "{bad}"
            );
        }
    }
}
