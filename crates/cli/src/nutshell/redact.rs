//! Takes secrets out of text before it leaves this computer: what is known to be one, and what
//! looks like one. Pure. Rather too much is taken than too little.

const REMOVED: &str = "[removed]";
/// What stands before a secret, as the end of a name: `admin_password = ...`, `"token": "..."`.
const NAMES: [&str; 9] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "api_key",
    "private_key",
];

/// The text without secrets. `known` are secrets by themselves, wherever they stand.
pub fn redact(text: &str, known: &[String]) -> String {
    let mut text = without_keys(text);
    for secret in known.iter().filter(|secret| secret.len() >= 8) {
        text = text.replace(secret.as_str(), REMOVED);
    }
    let mut lines: Vec<String> = text.lines().map(line).collect();
    if text.ends_with('\n') {
        lines.push(String::new());
    }
    lines.join("\n")
}

/// Keys in PEM, also those whose lines were joined by JSON's `\n`.
fn without_keys(text: &str) -> String {
    const END: &str = "-----END ";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ") {
        let (before, block) = rest.split_at(at);
        out.push_str(before);
        let head = block.lines().next().unwrap_or_default();
        let head = head.split("\\n").next().unwrap_or_default();
        if !head.contains("PRIVATE KEY") {
            let (first, after) = block.split_at("-----BEGIN ".len());
            out.push_str(first);
            rest = after;
            continue;
        }
        out.push_str(REMOVED);
        // One without an end is a secret to the end of the text.
        let Some(end) = block.find(END) else {
            return out;
        };
        let tail = &block[end + END.len()..];
        rest = match tail.find("-----") {
            Some(close) => &tail[close + 5..],
            None => "",
        };
    }
    out.push_str(rest);
    out
}

fn line(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((start, end)) = next_value(rest) {
        out.push_str(&rest[..start]);
        out.push_str(REMOVED);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Where the next value of a secret begins and ends.
fn next_value(text: &str) -> Option<(usize, usize)> {
    // Changes no byte's place.
    let lower = text.to_ascii_lowercase();
    let named = NAMES.iter().flat_map(|name| {
        let found = lower.match_indices(name);
        found.filter_map(|(at, name)| value_after_name(text, at + name.len()))
    });
    let bearer = lower
        .match_indices("bearer ")
        .filter_map(|(at, word)| until_end(text, at + word.len()));
    let hashes = lower
        .match_indices("$argon2")
        .filter_map(|(at, _)| until_end(text, at));
    named.chain(bearer).chain(hashes).min()
}

/// The value after `name`, `name"`, with `:` or `=` between them.
fn value_after_name(text: &str, at: usize) -> Option<(usize, usize)> {
    let rest = &text[at..];
    let behind = rest.trim_start_matches(['"', '\'', '\\']).trim_start();
    let value = behind.strip_prefix([':', '=']).map(str::trim_start)?;
    let value = value.trim_start_matches(['"', '\'', '\\', '[']);
    let lower = value.to_ascii_lowercase();
    let value = if lower.starts_with("bearer ") || lower.starts_with("basic ") {
        value.split_once(' ').map_or(value, |(_, rest)| rest)
    } else {
        value
    };
    until_end(text, text.len() - value.len())
}

/// From here to where a word ends; nothing where there is none, or it was taken out before.
fn until_end(text: &str, start: usize) -> Option<(usize, usize)> {
    let value = &text[start..];
    let stop =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ',' | ';' | '}' | ')');
    let end = value.find(stop).unwrap_or(value.len());
    let is_secret = end > 0 && !value.starts_with(REMOVED) && !value.starts_with("null");
    is_secret.then_some((start, start + end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for (text, left) in [
            ("password = \"hunter2\"", "password = \"[removed]\""),
            (
                r#"{"token":"abc.def","x":1}"#,
                r#"{"token":"[removed]","x":1}"#,
            ),
            (r#"{\"token\":\"abc\"}"#, r#"{\"token\":\"[removed]\"}"#),
            (
                "Authorization: Bearer abc.def",
                "Authorization: Bearer [removed]",
            ),
            ("sent bearer abc, then", "sent bearer [removed], then"),
            ("DB_PASSWORD=x1 OTHER=2", "DB_PASSWORD=[removed] OTHER=2"),
            ("$argon2id$v=19$m=1,t=2 x", "[removed],t=2 x"),
            ("token_file = \"/a/b\"", "token_file = \"/a/b\""),
            ("the token is refused", "the token is refused"),
            ("it was known-to-be-secret here", "it was [removed] here"),
            ("{\"secret\":null}", "{\"secret\":null}"),
            (
                "a\n-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\nb",
                "a\n[removed]\nb",
            ),
            (r"x -----BEGIN EC PRIVATE KEY-----\nMII", "x [removed]"),
            (
                "-----BEGIN CERTIFICATE-----\nMII",
                "-----BEGIN CERTIFICATE-----\nMII",
            ),
            (
                "two: token=a token=b\n",
                "two: token=[removed] token=[removed]\n",
            ),
        ] {
            assert_eq!(redact(text, &["known-to-be-secret".into()]), left);
        }
    }
}
