//! Entity tags of what is read, so that whoever looks often need not be sent the same again. Tags
//! for changing something (`If-Match`) are the handlers' own; here only the content is added.

use crate::auth::sha256_hex;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

/// Characters of a digest in a tag: enough to tell states of one thing apart.
const DIGEST: usize = 16;

/// Tags every answer that is one JSON value, and leaves it out for whoever has it already.
pub(super) async fn tag(request: Request, next: Next) -> Response {
    let reads = request.method() == Method::GET;
    let known = request.headers().get(header::IF_NONE_MATCH).cloned();
    let response = next.run(request).await;
    if !reads || response.status() != StatusCode::OK || !is_json(response.headers()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // The value is in memory already.
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let tag = tag_of(parts.headers.get(header::ETAG), &bytes);
    if let Ok(value) = HeaderValue::from_str(&tag) {
        parts.headers.insert(header::ETAG, value);
    }
    if known.is_some_and(|known| names(&known, &tag)) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::CONTENT_TYPE);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(bytes))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes() == b"application/json")
}

/// A tag of the content, behind the thing's own tag if it has one.
fn tag_of(own: Option<&HeaderValue>, content: &[u8]) -> String {
    let digest = sha256_hex(content);
    let digest = digest.get(..DIGEST).unwrap_or(&digest);
    match own.and_then(|own| own.to_str().ok()) {
        Some(own) => format!("\"{}-{digest}\"", own.trim_matches('"')),
        None => format!("\"{digest}\""),
    }
}

/// Whether an `If-None-Match` names a tag (RFC 9110, 13.1.2: weakly compared).
fn names(known: &HeaderValue, tag: &str) -> bool {
    let known = known.to_str().unwrap_or_default();
    let mut tags = known.split(',').map(str::trim);
    tags.any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}
