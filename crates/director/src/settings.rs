//! Settings of a service and arguments of commands: merged, checked against a JSON Schema, and
//! refused in words that name what is wrong and what would be right.

use crate::error::DirectorError;
use conpaas_core::service_type::ServiceType;
use conpaas_model::spec::Settings;
use serde_json::Value;

fn properties(schema: &Value) -> Option<&serde_json::Map<String, Value>> {
    schema.get("properties")?.as_object()
}

/// The defaults a schema states.
pub fn defaults(schema: &Value) -> Settings {
    properties(schema)
        .into_iter()
        .flatten()
        .filter_map(|(name, property)| Some((name.clone(), property.get("default")?.clone())))
        .collect()
}

/// `present` with `change` over it; `null` puts a setting back to its default.
pub fn merge(schema: &Value, present: &Settings, change: &Settings) -> Settings {
    let defaults = defaults(schema);
    let mut merged = defaults.clone();
    merged.extend(present.clone());
    for (name, value) in change {
        match (value, defaults.get(name)) {
            (Value::Null, Some(default)) => merged.insert(name.clone(), default.clone()),
            (Value::Null, None) => merged.remove(name),
            (value, _) => merged.insert(name.clone(), value.clone()),
        };
    }
    merged
}

/// What a property allows, in words.
fn allowed(property: &Value) -> String {
    let text = |key: &str| property.get(key).filter(|value| !value.is_null());
    if let Some(values) = text("enum").and_then(Value::as_array) {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        return format!("one of {}", values.join(", "));
    }
    let kind = match text("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "another value".to_owned(),
    };
    let mut words = kind;
    match (text("minimum"), text("maximum")) {
        (Some(low), Some(high)) => words.push_str(&format!(" from {low} to {high}")),
        (Some(low), None) => words.push_str(&format!(" of at least {low}")),
        (None, Some(high)) => words.push_str(&format!(" of at most {high}")),
        (None, None) => {}
    }
    if let Some(unit) = text("unit").or(text("x-unit")).and_then(Value::as_str) {
        words.push_str(&format!(" ({unit})"));
    }
    if let Some(pattern) = text("pattern").and_then(Value::as_str) {
        words.push_str(&format!(" that matches {pattern}"));
    }
    if let Some(length) = text("maxLength") {
        words.push_str(&format!(" of at most {length} characters"));
    }
    words
}

/// Checks a value against a schema; `noun` is what one property is called, for instance `setting`.
pub fn check(noun: &str, schema: &Value, value: &Value) -> Result<(), DirectorError> {
    let code = "invalid_value";
    if let (Some(known), Some(given)) = (properties(schema), value.as_object()) {
        let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
        if let Some(name) = given
            .keys()
            .find(|name| closed && !known.contains_key(*name))
        {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(DirectorError::invalid(
                "unknown_setting",
                format!(
                    "there is no {noun} '{name}'; there are: {}",
                    names.join(", ")
                ),
            ));
        }
    }
    let validator = jsonschema::validator_for(schema)
        .map_err(|error| DirectorError::internal("a schema is broken", error.to_string()))?;
    let mut problems = Vec::new();
    for error in validator.iter_errors(value) {
        let path = error.instance_path().to_string();
        let name = path
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let property = properties(schema).and_then(|known| known.get(&name));
        problems.push(match property {
            Some(property) => format!(
                "{noun} '{name}' cannot be {}: allowed is {}",
                value.get(&name).unwrap_or(&Value::Null),
                allowed(property)
            ),
            None => error.to_string(),
        });
    }
    problems.dedup();
    if problems.is_empty() {
        return Ok(());
    }
    Err(DirectorError::invalid(code, problems.join("; ")))
}

/// The settings a service would have after a change, if they are good.
pub fn changed(
    service_type: &dyn ServiceType,
    present: &Settings,
    change: &Settings,
) -> Result<Settings, DirectorError> {
    let schema = service_type.settings_schema();
    let merged = merge(&schema, present, change);
    check("setting", &schema, &Value::Object(merged.clone()))?;
    service_type
        .check_settings(&merged)
        .map_err(|reason| DirectorError::invalid("invalid_value", reason))?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "additionalProperties": false, "properties": {
            "limit": {"type": "integer", "minimum": 1, "maximum": 64, "default": 8, "unit": "MiB"},
            "mode": {"enum": ["a", "b"], "default": "a"},
            "note": {"type": "string"},
        }})
    }

    fn map(value: Value) -> Settings {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn null_puts_a_setting_back() {
        let merged = merge(
            &schema(),
            &map(json!({"limit": 9, "note": "x"})),
            &map(json!({"limit": null, "note": null})),
        );
        assert_eq!(Value::Object(merged), json!({"limit": 8, "mode": "a"}));
    }

    #[test]
    fn a_refusal_names_setting_value_and_range() {
        let error = check("setting", &schema(), &json!({"limit": 99}))
            .unwrap_err()
            .to_string();
        for part in ["'limit'", "99", "from 1 to 64", "MiB"] {
            assert!(error.contains(part), "{error}");
        }
        let error = check("setting", &schema(), &json!({"mode": "c"}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("one of \"a\", \"b\""), "{error}");
        let error = check("setting", &schema(), &json!({"lmit": 1}))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("'lmit'") && error.contains("limit, mode"),
            "{error}"
        );
        assert!(check("setting", &schema(), &json!({"limit": 64, "mode": "b"})).is_ok());
    }
}
