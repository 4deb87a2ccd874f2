//! What code is given beside its settings, in PHP's own notation: a file of its own that the
//! pool's file includes, since it may hold secrets. Pure, but for writing that file.

use crate::support::files;
use conpaas_core::role_agent::RoleError;
use conpaas_model::ids::ReleaseNumber;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Names that a request brings along: its word would hide the environment's.
const OF_REQUESTS: &[&str] = &[
    "AUTH_TYPE",
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "DOCUMENT_ROOT",
    "DOCUMENT_URI",
    "GATEWAY_INTERFACE",
    "HTTPS",
    "PATH_INFO",
    "PATH_TRANSLATED",
    "PHP_ADMIN_VALUE",
    "PHP_AUTH_DIGEST",
    "PHP_AUTH_PW",
    "PHP_AUTH_USER",
    "PHP_SELF",
    "PHP_VALUE",
    "QUERY_STRING",
    "REDIRECT_STATUS",
    "REMOTE_ADDR",
    "REMOTE_HOST",
    "REMOTE_IDENT",
    "REMOTE_PORT",
    "REMOTE_USER",
    "REQUEST_METHOD",
    "REQUEST_SCHEME",
    "REQUEST_TIME",
    "REQUEST_TIME_FLOAT",
    "REQUEST_URI",
    "SCRIPT_FILENAME",
    "SCRIPT_NAME",
    "SERVER_ADDR",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
];
const ENDING: &str = ".env.conf";

/// What PHP's process manager cannot pass on, in words that hold no value.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    if OF_REQUESTS.contains(&name) {
        return Err(format!(
            "{name} is what a request says in PHP: choose another name"
        ));
    }
    // It takes these for names of its own, whatever the quotes.
    if value.starts_with('$') || value.contains("$pool") {
        return Err(format!(
            "the value of {name} begins with '$' or holds '$pool', which PHP-FPM would replace: \
             put something before the '$', or encode it, for instance in base64"
        ));
    }
    Ok(())
}

/// A value in the notation of the process manager, which reads back the very same bytes.
fn quoted(value: &str) -> String {
    if value.is_empty() {
        // An empty text is refused there; a variable that it lacks itself is empty.
        return "$CONPAAS_NOTHING".to_owned();
    }
    let mut text = String::new();
    for (number, line) in value.split('\n').enumerate() {
        if number > 0 {
            // It reads line by line, so a line's end can only be there by its name; and two of
            // these in a row would be one name.
            text.push_str("PHP_EOL\"\"");
        }
        for (number, part) in line.split('\'').enumerate() {
            if number > 0 {
                text.push_str("\"'\"");
            }
            if !part.is_empty() {
                // Nothing means anything between these.
                let _ = write!(text, "'{part}'");
            }
        }
    }
    text
}

/// The file's text: all of it belongs to the pool that includes it.
pub fn text(all: &BTreeMap<String, String>) -> String {
    let mut text = String::from("; Written by ConPaaS; changes here are lost.\n");
    for (name, value) in all {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "env[{name}] = {}", quoted(value));
    }
    text
}

/// Where a release's file is.
pub fn file(folder: &Path, release: ReleaseNumber) -> PathBuf {
    folder.join(format!("{release}{ENDING}"))
}

/// Writes a release's file, for its owner only.
pub fn write(
    folder: &Path,
    release: ReleaseNumber,
    all: &BTreeMap<String, String>,
) -> Result<(), RoleError> {
    files::folder(folder, 0o755)?;
    files::write_if_changed(&file(folder, release), text(all).as_bytes(), 0o600)?;
    Ok(())
}

/// Removes the files of all other releases; nobody reads them any more.
pub fn forget_others(folder: &Path, keep: impl Fn(ReleaseNumber) -> bool) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let release = name
            .to_str()
            .and_then(|name| name.strip_suffix(ENDING)?.strip_prefix('r')?.parse().ok())
            .map(ReleaseNumber);
        if release.is_some_and(|release| !keep(release))
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "an old environment could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_by_pieces() {
        for (value, text) in [
            ("", "$CONPAAS_NOTHING"),
            ("a b;c\"d\\", "'a b;c\"d\\'"),
            ("it's", "'it'\"'\"'s'"),
            ("'", "\"'\""),
            ("a\n\nb\n", "'a'PHP_EOL\"\"PHP_EOL\"\"'b'PHP_EOL\"\""),
            ("a${x}", "'a${x}'"),
        ] {
            assert_eq!(quoted(value), text, "{value:?}");
        }
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused_without_its_value() {
        assert!(check("DB", "a$b ${c}").is_ok());
        for value in ["$2y$10$abc", "x$pool"] {
            let why = check("DB", value).unwrap_err();
            assert!(why.contains("DB") && !why.contains(value), "{why}");
        }
        assert!(check("REMOTE_ADDR", "x").is_err());
    }

    #[test]
    fn files_of_other_releases_go() {
        let folder = tempfile::tempdir().unwrap();
        let all = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for number in [1, 2] {
            write(folder.path(), ReleaseNumber(number), &all).unwrap();
        }
        std::fs::write(folder.path().join("r1.conf"), "").unwrap();
        forget_others(folder.path(), |release| release == ReleaseNumber(2));
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["r1.conf", "r2.env.conf"]);
    }
}
