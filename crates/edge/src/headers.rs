//! What happens to a request's and a response's head on the way through: pure functions.

use conpaas_model::edge::PREVIEW_HEADER;
use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Uri, Version};
use std::net::IpAddr;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Says that a request came to the preview address.
pub const PREVIEW: HeaderName = HeaderName::from_static(PREVIEW_HEADER);
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The protocol a client asks to change to, if it does so properly.
pub fn wanted_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let named = connection_tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if version == Version::HTTP_11 && named {
        headers.get(UPGRADE).cloned()
    } else {
        None
    }
}

/// The host name a request is for: in lower case, without port and final dot. `None` when there
/// is none, or more than one, or it is no host name.
pub fn host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let mut named = headers.get_all(HOST).iter();
    let from_header = named.next();
    if named.next().is_some() {
        return None;
    }
    let text = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => from_header?.to_str().ok()?,
    };
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => text,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
    (!name.is_empty() && name.len() <= 255 && name.bytes().all(allowed)).then_some(name)
}

/// Removes what concerns one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_tokens(headers)
        .filter_map(|token| token.parse().ok())
        .collect();
    for name in named {
        // Nobody may talk us out of what the other side needs.
        if name != HOST {
            headers.remove(name);
        }
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Makes the head that an upstream gets out of the head a client sent. `trusted` says whether
/// the client is a proxy whose word about its own client counts, `secure` whether it came over TLS.
pub fn towards_upstream(
    headers: &mut HeaderMap,
    client: IpAddr,
    (trusted, secure): (bool, bool),
    host_as_sent: &HeaderValue,
    upgrade: Option<&HeaderValue>,
) {
    strip_hop_by_hop(headers);
    // The client's 100-continue is answered here, when its body is first wanted.
    headers.remove(EXPECT);
    headers.remove(PREVIEW);

    let mut chain = String::new();
    if trusted {
        for before in headers.get_all(&FORWARDED_FOR) {
            if let Ok(before) = before.to_str() {
                chain.push_str(before);
                chain.push_str(", ");
            }
        }
    } else {
        for name in [FORWARDED, FORWARDED_HOST, FORWARDED_PROTO] {
            headers.remove(name);
        }
    }
    chain.push_str(&client.to_canonical().to_string());
    if let Ok(chain) = HeaderValue::from_str(&chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    headers
        .entry(FORWARDED_HOST)
        .or_insert_with(|| host_as_sent.clone());
    headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static(if secure {
            "https"
        } else {
            "http"
        }));
    headers.insert(HOST, host_as_sent.clone());
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
}

/// Whether asking twice does no more than asking once.
pub fn idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn hosts_are_compared_without_case_port_and_final_dot() {
        let path: Uri = "/".parse().unwrap();
        for text in [
            "Shop-Ann.LocalHost",
            "shop-ann.localhost:8080",
            "shop-ann.localhost.",
        ] {
            assert_eq!(
                host(&path, &map(&[("host", text)])).as_deref(),
                Some("shop-ann.localhost")
            );
        }
        let whole: Uri = "http://a.b:80/x".parse().unwrap();
        assert_eq!(
            host(&whole, &map(&[("host", "c.d")])).as_deref(),
            Some("a.b")
        );
        assert_eq!(host(&path, &map(&[("host", "a"), ("host", "b")])), None);
        assert_eq!(host(&path, &map(&[("host", "a/b")])), None);
        assert_eq!(host(&path, &map(&[])), None);
    }

    #[test]
    fn a_stranger_cannot_say_who_he_is_and_a_trusted_proxy_can() {
        let sent = [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("expect", "100-continue"),
            ("conpaas-preview", "1"),
            ("host", "a"),
        ];
        let shown = HeaderValue::from_static("a");
        let client: IpAddr = "10.0.0.9".parse().unwrap();
        let mut headers = map(&sent);
        towards_upstream(&mut headers, client, (false, false), &shown, None);
        assert_eq!(headers["x-forwarded-for"], "10.0.0.9");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "a");
        assert!(!headers.contains_key("x-secret"));
        assert!(!headers.contains_key("connection"));
        assert!(!headers.contains_key("expect"));
        assert!(!headers.contains_key("conpaas-preview"));

        let mut headers = map(&sent);
        towards_upstream(&mut headers, client, (true, false), &shown, None);
        assert_eq!(headers["x-forwarded-for"], "6.6.6.6, 10.0.0.9");
        assert_eq!(headers["x-forwarded-proto"], "https");

        let mut headers = map(&[("x-forwarded-proto", "http")]);
        towards_upstream(&mut headers, client, (false, true), &shown, None);
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn an_upgrade_needs_both_headers_and_http_11() {
        let both = map(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(
            wanted_upgrade(Version::HTTP_11, &both).unwrap(),
            "websocket"
        );
        assert!(wanted_upgrade(Version::HTTP_10, &both).is_none());
        assert!(wanted_upgrade(Version::HTTP_11, &map(&[("upgrade", "websocket")])).is_none());
    }
}
