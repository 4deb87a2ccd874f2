//! Values that people type: `KEY=VALUE` by a JSON Schema, durations, counts by role. Pure.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Splits `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it should look like KEY=VALUE".to_owned()),
    }
}

/// A value as its schema wants it: JSON where it is JSON of the schema's type, else the text.
pub fn typed(schema: Option<&Value>, text: &str) -> Value {
    let literal = || Value::String(text.to_owned());
    // Puts a setting back to its default, whatever its type.
    if text == "null" {
        return Value::Null;
    }
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        return literal();
    };
    let Some(schema) = schema else { return value };
    if let Some(choices) = schema["enum"].as_array() {
        return if choices.contains(&value) {
            value
        } else {
            literal()
        };
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return value,
    };
    if kinds.iter().any(|kind| is_of_kind(&value, kind)) {
        return value;
    }
    // A text that is no string of this schema: the Director says what is wrong with the value
    // that was meant (`"many"` for a number stays text, `5` for a text is the text "5").
    if kinds.contains(&"string") {
        literal()
    } else {
        value
    }
}

fn is_of_kind(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => false,
    }
}

/// Typed values of many pairs, by the properties of a schema.
pub fn settings(schema: &Value, pairs: &[(String, String)]) -> Map<String, Value> {
    pairs
        .iter()
        .map(|(key, text)| (key.clone(), typed(schema["properties"].get(key), text)))
        .collect()
}

/// Counts by role, as `ROLE=N`, `ROLE=+N` or `ROLE=N..M`.
pub fn counts(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>, String> {
    let mut roles = BTreeMap::new();
    for (role, count) in pairs {
        let digits = count.strip_prefix('+').unwrap_or(count);
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let between = count.split_once("..");
        if !is_number(digits) && !between.is_some_and(|(min, max)| is_number(min) && is_number(max))
        {
            return Err(format!(
                "'{count}' is no count for {role}: write {role}=4, {role}=+1 for one more, or \
                 {role}=2..6 for what an automatic scaler may choose"
            ));
        }
        if roles.insert(role.clone(), count.clone()).is_some() {
            return Err(format!("{role} is given twice"));
        }
    }
    Ok(roles)
}

/// A word of the model that serialises as a plain text, for instance a state.
pub fn word_of<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|error| {
        // Serde names the words that there are.
        error.to_string()
    })
}

/// A duration such as `90s`, `5m`, `1h30m` or `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no duration: write 90s, 5m or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let piece = Duration::from_millis(number.checked_mul(millis).ok_or_else(wrong)?);
        total = total.checked_add(piece).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() {
        Err(wrong())
    } else if total.is_zero() {
        Err(format!(
            "'{text}' is no time at all: write 90s, 5m or 1h30m"
        ))
    } else {
        Ok(total)
    }
}

/// A fingerprint of a Director's key, as 64 hexadecimal digits; colons between them are allowed.
pub fn fingerprint(text: &str) -> Result<String, String> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(digits)
    } else {
        Err(
            "a fingerprint has 64 hexadecimal digits; the operator sees it with `conpaas nutshell status`"
                .to_owned(),
        )
    }
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The nearest of some words, if one is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + word.chars().count() / 4;
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many letters have to be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_follow_their_schema() {
        let schema = json!({"properties": {
            "memory": {"type": "string"}, "limit": {"type": "integer"}, "on": {"type": "boolean"},
            "paths": {"type": "array"}, "level": {"enum": ["1", "high"]}, "either": {"type": ["integer", "string"]},
        }});
        let given: Vec<(String, String)> = [
            ("memory", "128"),
            ("limit", "5"),
            ("on", "true"),
            ("paths", "[\"a\"]"),
            ("level", "1"),
            ("either", "7"),
            ("unknown", "x=y"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec();
        assert_eq!(
            Value::Object(settings(&schema, &given)),
            json!({"memory": "128", "limit": 5, "on": true, "paths": ["a"], "level": "1", "either": 7, "unknown": "x=y"})
        );
        // What cannot be of the type goes through as it was meant, for the Director to refuse.
        assert_eq!(
            typed(Some(&json!({"type": "integer"})), "many"),
            json!("many")
        );
        assert_eq!(typed(Some(&json!({"type": "integer"})), "1.5"), json!(1.5));
        assert_eq!(
            typed(Some(&json!({"type": "string"})), "\"a b\""),
            json!("a b")
        );
        assert_eq!(typed(Some(&json!({"type": "string"})), ""), json!(""));
    }

    #[test]
    fn pairs_and_counts() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(pair("a=").unwrap(), ("a".into(), String::new()));
        assert!(pair("a").is_err() && pair("=b").is_err());
        let of = |text: &str| counts(&[pair(text).unwrap()]);
        assert_eq!(of("web=+2").unwrap()["web"], "+2");
        assert!(of("web=two").is_err() && of("web=").is_err() && of("web=--1").is_err());
        assert!(counts(&[pair("web=1").unwrap(), pair("web=2").unwrap()]).is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        for bad in ["", "5", "m", "5x", "0s", "-1s", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_words() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(
            nearest("servce", ["app", "service", "node"]),
            Some("service")
        );
        assert_eq!(nearest("xyzzy", ["app", "service", "node"]), None);
    }
}
