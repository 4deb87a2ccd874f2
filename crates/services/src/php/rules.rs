//! Rules of people's own for paths that are no files: where an old path leads, and which script
//! answers below one. Pure: from a release's settings to entries of the load balancer's maps. They
//! are data there, never configuration.

use super::proxy_config::encode;
use super::settings::value;
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::spec::Settings;
use serde::{Deserialize, Serialize};

/// Parts that the path before a `*` may have: the load balancer cuts them off one by one.
pub const MOST_PARTS: usize = 8;

/// A path that leads elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Redirect {
    /// The path; `/*` at its end: all below it, too.
    pub from: String,
    /// A path, or a whole address; `*` at its end stands for what `from`'s stood for.
    pub to: String,
    #[serde(default = "found")]
    pub status: u16,
}

fn found() -> u16 {
    302
}

impl Redirect {
    /// Whether a path leads elsewhere by this rule.
    pub fn leads_away_from(&self, path: &str) -> bool {
        match below(&self.from) {
            Some(outer) => path.starts_with(outer) || Some(path) == folder(outer),
            None => path == self.from,
        }
    }
}

/// A script that answers what is no file below a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Front {
    /// A path that ends in a slash.
    pub below: String,
    /// A script in the public folder.
    pub script: String,
}

/// A list of a release's settings; what is none (a schema refuses it) is left out.
fn list<T: serde::de::DeserializeOwned>(settings: &Settings, name: &str) -> Vec<T> {
    let all = value(settings, name);
    let all = all.as_array().into_iter().flatten();
    all.filter_map(|one| serde_json::from_value(one.clone()).ok())
        .collect()
}

/// The redirects of a release.
pub fn redirects(settings: &Settings) -> Vec<Redirect> {
    list(settings, "redirects")
}

/// The front controllers of a release besides the one of all paths.
pub fn fronts(settings: &Settings) -> Vec<Front> {
    list(settings, "front_controllers")
}

/// What `from` holds before its `*`, if it has one.
fn below(from: &str) -> Option<&str> {
    from.strip_suffix('*')
}

/// A folder without the slash at its end; the topmost has no such name.
fn folder(outer: &str) -> Option<&str> {
    outer.strip_suffix('/').filter(|path| !path.is_empty())
}

/// Parts of a path between slashes.
fn parts(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

/// Checks beyond the schema.
pub fn check(settings: &Settings) -> Result<(), String> {
    let redirects = redirects(settings);
    for (at, one) in redirects.iter().enumerate() {
        let (from, to) = (&one.from, &one.to);
        if redirects[..at].iter().any(|other| other.from == *from) {
            return Err(format!("redirects names '{from}' twice"));
        }
        match below(from) {
            Some(outer) if to.starts_with(outer) => {
                return Err(format!(
                    "redirects: '{from}' leads to '{to}', which it leads on for ever"
                ));
            }
            Some(outer) if parts(outer) > MOST_PARTS => {
                return Err(format!(
                    "redirects: '{from}' has more than {MOST_PARTS} parts before its *"
                ));
            }
            None if to == from => {
                return Err(format!("redirects: '{from}' leads to itself"));
            }
            None if to.ends_with('*') => {
                return Err(format!(
                    "redirects: '{to}' ends in a *, and '{from}' does not: what should it stand for?"
                ));
            }
            _ => {}
        }
    }
    let fronts = fronts(settings);
    for (at, one) in fronts.iter().enumerate() {
        if fronts[..at].iter().any(|other| other.below == one.below) {
            return Err(format!("front_controllers names '{}' twice", one.below));
        }
    }
    Ok(())
}

/// `STATUS|PARTS|TARGET`: so many parts of the path are cut off, and the rest put behind the target;
/// none where nothing is.
fn leads(one: &Redirect, cut: Option<usize>) -> String {
    let (cut, to) = match (cut, one.to.strip_suffix('*')) {
        (Some(parts), Some(to)) => (parts.to_string(), to),
        (_, Some(to)) => ("-".to_owned(), to),
        (_, None) => ("-".to_owned(), one.to.as_str()),
    };
    format!("{}|{cut}|{to}", one.status)
}

/// Entries of the map of whole paths.
pub fn exact_entries(
    release: ReleaseNumber,
    redirects: &[Redirect],
) -> impl Iterator<Item = (String, String)> + '_ {
    redirects.iter().filter_map(move |one| {
        let path = match below(&one.from) {
            // The folder itself, without its slash.
            Some(outer) => folder(outer)?,
            None => &one.from,
        };
        Some((format!("{}|{}", release.0, encode(path)), leads(one, None)))
    })
}

/// Entries of the map of beginnings of paths.
pub fn below_entries(
    release: ReleaseNumber,
    redirects: &[Redirect],
) -> impl Iterator<Item = (String, String)> + '_ {
    redirects.iter().filter_map(move |one| {
        let outer = below(&one.from)?;
        let key = format!("{}|{}", release.0, encode(outer));
        Some((key, leads(one, Some(parts(outer)))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(redirects: serde_json::Value, fronts: serde_json::Value) -> Settings {
        let all = json!({"redirects": redirects, "front_controllers": fronts});
        all.as_object().unwrap().clone()
    }

    #[test]
    fn entries_say_where_to_and_how_much_of_the_path_goes_along() {
        let rules = redirects(&settings(
            json!([
                {"from": "/old", "to": "/new", "status": 301},
                {"from": "/blog/2019/*", "to": "/news/*"},
                {"from": "/shop/*", "to": "https://shop.example.org/"},
                {"from": "/*", "to": "https://example.org/*", "status": 308}
            ]),
            json!([]),
        ));
        let release = ReleaseNumber(7);
        let pairs = |entries: Vec<(String, String)>| -> Vec<String> {
            entries
                .into_iter()
                .map(|(key, value)| format!("{key} {value}"))
                .collect()
        };
        assert_eq!(
            pairs(exact_entries(release, &rules).collect()),
            [
                "7|%2Fold 301|-|/new",
                "7|%2Fblog%2F2019 302|-|/news/",
                "7|%2Fshop 302|-|https://shop.example.org/",
            ]
        );
        assert_eq!(
            pairs(below_entries(release, &rules).collect()),
            [
                "7|%2Fblog%2F2019%2F 302|2|/news/",
                "7|%2Fshop%2F 302|-|https://shop.example.org/",
                "7|%2F 308|0|https://example.org/",
            ]
        );
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let with = |redirects| check(&settings(redirects, json!([])));
        assert_eq!(
            with(json!([{"from": "/a", "to": "/b"}, {"from": "/b", "to": "/c"}])),
            Ok(())
        );
        for bad in [
            json!([{"from": "/a", "to": "/b"}, {"from": "/a", "to": "/c"}]),
            json!([{"from": "/a", "to": "/a"}]),
            json!([{"from": "/a/*", "to": "/a/b"}]),
            json!([{"from": "/*", "to": "/down.html"}]),
            json!([{"from": "/a", "to": "/b/*"}]),
            json!([{"from": "/1/2/3/4/5/6/7/8/9/*", "to": "/b"}]),
        ] {
            assert!(with(bad.clone()).is_err(), "{bad}");
        }
        let twice =
            json!([{"below": "/a/", "script": "a.php"}, {"below": "/a/", "script": "b.php"}]);
        assert!(check(&settings(json!([]), twice)).is_err());
    }
}
