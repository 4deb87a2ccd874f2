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
