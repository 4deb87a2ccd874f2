//! What the edge says itself when it leads nobody on: small pages for people, JSON for programs.

use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use http::{Response, StatusCode};

/// The reasons for an answer of the edge's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page<'a> {
    UnknownHost {
        base_domain: &'a str,
    },
    Starting {
        app: &'a str,
    },
    Stopped {
        app: &'a str,
    },
    NoBackends {
        app: &'a str,
    },
    /// No upstream took a connection.
    Unreachable {
        app: &'a str,
    },
    /// An upstream broke off before it answered.
    Broken {
        app: &'a str,
    },
    /// An upstream did not begin its answer in time.
    TooSlow {
        app: &'a str,
    },
    /// Only encrypted connections are served.
    Secure {
        location: &'a str,
    },
    BadHost,
    NoTunnels,
    /// The client did not send all of its request.
    ClientStopped,
}

struct Words {
    status: StatusCode,
    code: &'static str,
    title: String,
    why: String,
    next: String,
    /// Seconds.
    retry_after: Option<u16>,
}

fn words(page: &Page<'_>) -> Words {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    let (status, code, title, why, next, retry_after): (_, _, String, &str, String, _) = match page
    {
        Page::UnknownHost { base_domain } => (
            StatusCode::NOT_FOUND,
            "unknown_host",
            "Nothing lives at this address".into(),
            "No application answers to this host name.",
            format!("Check the address. Applications here are at NAME-OWNER.{base_domain}."),
            None,
        ),
        Page::Starting { app } => (
            unavailable,
            "starting",
            format!("{app} is starting"),
            "Its machines are being made ready.",
            "This page looks again by itself.".into(),
            Some(2),
        ),
        Page::Stopped { app } => (
            unavailable,
            "stopped",
            format!("{app} is stopped"),
            "Its owner stopped it. Nothing of it is lost.",
            format!("If it is yours: conpaas app start {app}"),
            Some(60),
        ),
        Page::NoBackends { app } => (
            unavailable,
            "no_backends",
            format!("{app} cannot answer now"),
            "None of its machines is ready to serve; they are being replaced.",
            format!("This page looks again by itself. If it is yours: conpaas app show {app}"),
            Some(5),
        ),
        Page::Unreachable { app } => (
            unavailable,
            "unreachable",
            format!("{app} cannot be reached"),
            "None of its proxies takes connections at this moment.",
            "This page looks again by itself.".into(),
            Some(2),
        ),
        Page::Broken { app } => (
            StatusCode::BAD_GATEWAY,
            "broken_off",
            format!("{app} broke off"),
            "The connection to it ended before it answered. Whether it carried out what you asked is not known.",
            "Look whether it was done before you send it again.".into(),
            None,
        ),
        Page::TooSlow { app } => (
            StatusCode::GATEWAY_TIMEOUT,
            "too_slow",
            format!("{app} took too long"),
            "It did not begin to answer in time. It may still be working on what you asked.",
            "Look whether it was done before you send it again.".into(),
            None,
        ),
        Page::Secure { location } => (
            StatusCode::PERMANENT_REDIRECT,
            "https_only",
            "This site is encrypted".into(),
            "It answers over HTTPS only.",
            format!("Go on at {location}"),
            None,
        ),
        Page::BadHost => (
            StatusCode::BAD_REQUEST,
            "bad_host",
            "Which site?".into(),
            "The request names no host, or not exactly one.",
            "Send one Host header.".into(),
            None,
        ),
        Page::NoTunnels => (
            StatusCode::METHOD_NOT_ALLOWED,
            "no_tunnels",
            "No tunnels here".into(),
            "This server leads to its own applications only.",
            "Use another method.".into(),
            None,
        ),
        Page::ClientStopped => (
            StatusCode::REQUEST_TIMEOUT,
            "request_not_whole",
            "The request did not arrive as a whole".into(),
            "Sending it stopped half way.",
            "Send it again.".into(),
            None,
        ),
    };
    Words {
        status,
        code,
        title,
        why: why.to_owned(),
        next,
        retry_after,
    }
}

/// The answer for a reason, in the form that the request's `Accept` header prefers.
pub fn answer(page: &Page<'_>, request: &HeaderMap) -> Response<String> {
    let words = words(page);
    let (kind, text) = if wants_json(request) {
        let value = serde_json::json!({
            "code": words.code, "what": words.title, "why": words.why, "next": words.next,
        });
        ("application/json", value.to_string() + "\n")
    } else {
        ("text/html; charset=utf-8", html(&words))
    };
    let mut response = Response::new(text);
    *response.status_mut() = words.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = words.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Page::Secure { location } = page
        && let Ok(location) = HeaderValue::from_str(location)
    {
        headers.insert(LOCATION, location);
    }
    if words.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(
            ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
    }
    response
}

/// JSON is for who names it and does not name HTML.
fn wants_json(headers: &HeaderMap) -> bool {
    let mut json = false;
    for value in headers.get_all(ACCEPT) {
        let value = value.as_bytes().to_ascii_lowercase();
        let has = |word: &[u8]| value.windows(word.len()).any(|part| part == word);
        if has(b"text/html") {
            return false;
        }
        json |= has(b"application/json") || has(b"+json");
    }
    json
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

fn html(words: &Words) -> String {
    let refresh = match words.retry_after {
        Some(seconds) if seconds <= 5 => {
            format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">\n")
        }
        _ => String::new(),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         {refresh}<title>{title}</title>\n<style>\n\
         :root {{ color-scheme: light dark; }}\n\
         body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; \
         font: 1.05rem/1.6 system-ui, sans-serif; background: Canvas; color: CanvasText; }}\n\
         main {{ max-width: 34rem; padding: 2rem; border-left: .35rem solid #2a7de1; }}\n\
         h1 {{ margin: 0 0 .6rem; font-size: 1.7rem; line-height: 1.25; }}\n\
         p {{ margin: .3rem 0; }}\n\
         small {{ display: block; margin-top: 1.4rem; opacity: .65; }}\n\
         </style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p>{why}</p>\n<p>{next}</p>\n\
         <small>{status} &middot; ConPaaS</small>\n</main>\n</body>\n</html>\n",
        title = escape(&words.title),
        why = escape(&words.why),
        next = escape(&words.next),
        status = words.status,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_json_and_people_get_html() {
        let mut headers = HeaderMap::new();
        let page = Page::Stopped { app: "shop" };
        assert!(
            answer(&page, &headers)
                .body()
                .starts_with("<!doctype html>")
        );
        headers.insert(
            ACCEPT,
            HeaderValue::from_static("text/html, application/json"),
        );
        assert!(
            answer(&page, &headers)
                .body()
                .starts_with("<!doctype html>")
        );
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let response = answer(&page, &headers);
        let value: serde_json::Value = serde_json::from_str(response.body()).unwrap();
        assert_eq!(value["code"], "stopped");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "60");
    }

    #[test]
    fn names_cannot_carry_markup() {
        let response = answer(&Page::Starting { app: "<script>" }, &HeaderMap::new());
        assert!(!response.body().contains("<script>"));
        assert!(response.body().contains("http-equiv=\"refresh\""));
    }
}
