//! What people can do: one file per noun. Each command asks the Director through the generated
//! client and shows the answer.

pub mod account;
pub mod app;
pub mod audit;
pub mod cloud;
pub mod code;
pub mod completion;
pub mod context;
pub mod director;
pub mod domain;
pub mod env;
#[cfg(feature = "daemons")]
pub mod image;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod operation;
pub mod own;
pub mod quarantine;
pub mod secret;
pub mod service;
#[cfg(feature = "daemons")]
pub mod simulate;
pub mod token;
pub mod top;
pub mod user;

/// A value's stable word, as JSON has it.
pub(crate) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// A number without needless digits.
pub(crate) fn number(value: f64) -> String {
    // Adding nothing turns a negative zero into zero.
    format!("{}", (value * 1000.0).round() / 1000.0 + 0.0)
}

/// `2026-01-31 12:00:05`, from the API's RFC 3339 in UTC.
pub(crate) fn time(text: &str) -> String {
    text.get(..19)
        .map_or_else(|| text.to_owned(), |head| head.replace('T', " "))
}

/// A JSON value in a table: text without its quotes.
pub(crate) fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
