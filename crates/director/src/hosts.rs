//! Names under which people reach applications. Which node answers is the machine side's word.

use conpaas_model::ids::Name;

/// A DNS label holds at most so many characters.
pub const LABEL_MAX: usize = 63;

/// `NAME-OWNER` of an application: unambiguous, because owners' names hold no dash.
pub fn label(app: &Name, owner: &Name) -> String {
    format!("{app}-{owner}")
}

/// The host name of an exposed service. The first one of an application has the application's
/// own name, further ones theirs in front of it.
pub fn host(app: &Name, owner: &Name, service: &Name, first: bool, base: &str) -> String {
    let label = label(app, owner);
    if first {
        format!("{label}.{base}")
    } else {
        format!("{service}.{label}.{base}")
    }
}

/// The host name at which a release that is held is shown. One label deeper than any service's, so
/// that it is nobody else's.
pub fn preview_host(app: &Name, owner: &Name, service: &Name, base: &str) -> String {
    format!("preview.{}", host(app, owner, service, false, base))
}

/// A host name as it is kept and compared; one word is a name under the base domain.
pub fn whole(name: &str, base: &str) -> String {
    let name = name.trim();
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    match name.contains('.') {
        true => name,
        false => format!("{name}.{}", base.to_ascii_lowercase()),
    }
}

/// The host name that is claimed by this text: a whole one, or one word for a name under the base
/// domain. Names that applications have by themselves cannot be claimed; they hold a dash before the
/// base domain, so a claimed word has none. The error says what is wrong with it.
pub fn claimable(text: &str, base: &str) -> Result<String, String> {
    let name = whole(text, base);
    let bad = |why: &str| {
        Err(format!(
            "'{text}' is no host name that can be claimed: {why}"
        ))
    };
    if !name.is_ascii() {
        return bad("write letters beyond ASCII in its xn-- form");
    }
    let good = |label: &str| {
        let inner = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inner
            && (1..=LABEL_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.split('.').all(good) {
        return bad("its parts are letters, digits and inner dashes, 63 of them at most");
    }
    let base = base.to_ascii_lowercase();
    if name.len() > 253 {
        return bad("it is longer than 253 characters");
    }
    if name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
    {
        return bad("it is an address");
    }
    let under = name
        .strip_suffix(&base)
        .and_then(|rest| rest.strip_suffix('.'));
    if name == base || under.is_some_and(|word| word.contains(['.', '-'])) {
        return bad(&format!(
            "names under {base} are applications' own, but for single words without a dash"
        ));
    }
    Ok(name)
}

/// The address to type into a browser, at the edge's ports for HTTP and, if it has one, HTTPS.
pub fn url(host: &str, http: u16, https: Option<u16>) -> String {
    match (http, https) {
        (_, Some(443)) => format!("https://{host}/"),
        (_, Some(port)) => format!("https://{host}:{port}/"),
        (80, None) => format!("http://{host}/"),
        (port, None) => format!("http://{host}:{port}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_and_single_words_can_be_claimed_and_nothing_that_applications_have() {
        for (text, name) in [
            ("Shop", "shop.example.org"),
            ("shop.example.org", "shop.example.org"),
            ("WWW.Museum.NL.", "www.museum.nl"),
            ("a-b.museum.nl", "a-b.museum.nl"),
            ("notexample.org", "notexample.org"),
        ] {
            assert_eq!(claimable(text, "Example.org").as_deref(), Ok(name));
        }
        let long = format!("{}.org", "a".repeat(64));
        for text in [
            "",
            ".",
            "example.org",
            "shop-ann",
            "shop-ann.example.org",
            "web.shop.example.org",
            "a..b",
            "-a.org",
            "a_b.org",
            "a b.org",
            "http://a.org",
            "a.org:80",
            "*.a.org",
            "m\u{fc}ller.de",
            "10.0.0.1",
            &long,
        ] {
            assert!(claimable(text, "example.org").is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_service_has_the_applications_name() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (app, owner, service) = (name("shop"), name("ann"), name("web"));
        assert_eq!(
            host(&app, &owner, &service, true, "example.org"),
            "shop-ann.example.org"
        );
        assert_eq!(
            host(&app, &owner, &service, false, "localhost"),
            "web.shop-ann.localhost"
        );
        assert_eq!(
            preview_host(&app, &owner, &service, "localhost"),
            "preview.web.shop-ann.localhost"
        );
        assert_eq!(url("a.localhost", 8080, None), "http://a.localhost:8080/");
        assert_eq!(url("a.example.org", 80, None), "http://a.example.org/");
        assert_eq!(
            url("a.example.org", 80, Some(443)),
            "https://a.example.org/"
        );
        assert_eq!(url("a.b", 80, Some(8443)), "https://a.b:8443/");
    }
}
