//! Makes the client's methods from the Director's OpenAPI document: one per operation, named
//! after its operationId. Pure: text in, text out. Bodies and answers are the model's types of
//! the same name; a type that the model lacks is written out beside the methods.

use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Names of the public types in a module's source text.
pub fn public_types(source: &str) -> BTreeSet<String> {
    source
        .lines()
        .filter_map(|line| {
            let rest = ["pub struct ", "pub enum ", "pub type "]
                .iter()
                .find_map(|p| line.trim().strip_prefix(p))?;
            Some(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            )
        })
        .collect()
}

/// The text of `generated.rs`.
pub fn generate(document: &str, known: &BTreeSet<String>) -> Result<String, String> {
    let document: Value =
        serde_json::from_str(document).map_err(|e| format!("the document is no JSON: {e}"))?;
    let paths = document["paths"]
        .as_object()
        .ok_or("the document has no paths")?;
    let mut generator = Generator {
        document: &document,
        known,
        extra: BTreeMap::new(),
    };
    let mut methods = BTreeMap::new();
    let mut queries = String::new();
    for (path, item) in paths {
        let shared = item["parameters"].as_array().cloned().unwrap_or_default();
        for method in METHODS {
            let Some(operation) = item.get(method) else {
                continue;
            };
            let id = operation["operationId"]
                .as_str()
                .ok_or_else(|| format!("{method} {path} has no operationId"))?;
            let mut parameters = shared.clone();
            parameters.extend(
                operation["parameters"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
            );
            let text = generator.method(path, method, id, operation, &parameters, &mut queries)?;
            if methods.insert(id.to_owned(), text).is_some() {
                return Err(format!("two operations are called {id}"));
            }
        }
    }
    let mut out = String::from(
        "//! Made from openapi/director.json by `cargo run -p conpaas-client --example generate`;\n\
         //! changes made by hand are lost.\n\n\
         #![allow(unused_imports)]\n\n\
         use crate::transport::segment;\n\
         use crate::{Client, ClientError, Download, Events, Upload};\n\
         use conpaas_model::api::*;\n\
         use conpaas_model::ids::*;\n\
         use conpaas_model::instance::*;\n\
         use conpaas_model::spec::*;\n\
         use conpaas_model::status::*;\n\
         use reqwest::Method;\n\
         use serde::{Deserialize, Serialize};\n\n",
    );
    out.push_str(&queries);
    generator.write_extra(&mut out)?;
    out.push_str("impl Client {\n");
    out.push_str(&methods.into_values().collect::<Vec<_>>().join("\n"));
    out.push_str("}\n");
    Ok(out)
}

struct Generator<'a> {
    document: &'a Value,
    known: &'a BTreeSet<String>,
    /// Types to write out: name and schema; nothing when it is written already.
    extra: BTreeMap<String, Option<Value>>,
}

impl Generator<'_> {
    fn method(
        &mut self,
        path: &str,
        method: &str,
        id: &str,
        operation: &Value,
        parameters: &[Value],
        queries: &mut String,
    ) -> Result<String, String> {
        let mut arguments = String::new();
        let mut pattern = String::new();
        let mut segments = Vec::new();
        for part in path.split('/').skip(1) {
            match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                Some(name) => {
                    let name = identifier(name);
                    let _ = write!(arguments, ", {name}: &str");
                    pattern.push_str("/{}");
                    segments.push(format!("segment({name})"));
                }
                None => {
                    let _ = write!(pattern, "/{part}");
                }
            }
        }
        let address = if segments.is_empty() {
            format!("{pattern:?}")
        } else {
            format!("&format!({pattern:?}, {})", segments.join(", "))
        };
        let mut call = format!("self.call(Method::{}, {address})", method.to_uppercase());

        let query: Vec<&Value> = parameters.iter().filter(|p| p["in"] == "query").collect();
        if !query.is_empty() {
            let name = format!("{}Query", camel(id));
            let _ = write!(
                queries,
                "/// What [`Client::{id}`] may be asked for.\n#[derive(Clone, Debug, Default, Serialize)]\npub struct {name} {{\n"
            );
            for parameter in query {
                let wire = parameter["name"]
                    .as_str()
                    .ok_or("a parameter has no name")?;
                for line in parameter["description"]
                    .as_str()
                    .unwrap_or_default()
                    .lines()
                {
                    let _ = writeln!(queries, "    /// {line}");
                }
                queries.push_str("    #[serde(skip_serializing_if = \"Option::is_none\")]\n");
                let field = identifier(wire);
                if field != wire {
                    let _ = writeln!(queries, "    #[serde(rename = {wire:?})]");
                }
                let kind = self.rust_type(&parameter["schema"])?;
                let kind = kind
                    .strip_prefix("Option<")
                    .and_then(|k| k.strip_suffix('>'))
                    .unwrap_or(&kind)
                    .to_owned();
                let _ = writeln!(queries, "    pub {field}: Option<{kind}>,");
            }
            queries.push_str("}\n\n");
            let _ = write!(arguments, ", query: &{name}");
            call.push_str(".query(query)");
        }

        let mut bulk = false;
        if let Some(content) = operation["requestBody"]["content"].as_object() {
            if let Some(json) = content.get("application/json") {
                let body = self.rust_type(&json["schema"])?;
                let _ = write!(arguments, ", body: &{body}");
                call.push_str(".json(body)");
            } else {
                arguments.push_str(", upload: Upload");
                call.push_str(".upload(upload)");
                bulk = true;
            }
        }
        let takes = |header: &str| {
            parameters.iter().any(|p| {
                p["in"] == "header"
                    && p["name"]
                        .as_str()
                        .is_some_and(|n| n.eq_ignore_ascii_case(header))
            })
        };
        if !bulk && takes("idempotency-key") {
            call.push_str(".keyed()");
        }
        if takes("if-match") {
            call.push_str(".guarded(self)");
        }

        let (answer, send) = match self.answer(operation)? {
            Answer::Nothing => ("()".to_owned(), "done()"),
            Answer::Json(kind) if bulk => (kind, "bulk_answer()"),
            Answer::Json(kind) => (kind, "answer()"),
            Answer::Bytes => ("Download".to_owned(), "download()"),
            Answer::Events(kind) => {
                arguments.push_str(", last_event: Option<&str>");
                call.push_str(".last_event(last_event)");
                (format!("Events<{kind}>"), "events()")
            }
        };
        let mut text = String::new();
        let summary = operation["summary"]
            .as_str()
            .or_else(|| operation["description"].as_str())
            .unwrap_or_default();
        for line in summary.lines() {
            let _ = writeln!(text, "    /// {}", line.trim_end());
        }
        let _ = write!(
            text,
            "    ///\n    /// `{} {path}`\n    pub async fn {id}(&self{arguments}) -> Result<{answer}, ClientError> {{\n        {call}.{send}.await\n    }}\n",
            method.to_uppercase()
        );
        Ok(text)
    }

    fn answer(&mut self, operation: &Value) -> Result<Answer, String> {
        let empty = Map::new();
        let responses = operation["responses"].as_object().unwrap_or(&empty);
        for (_, response) in responses
            .iter()
            .filter(|(status, _)| status.starts_with('2'))
        {
            let Some(content) = response["content"].as_object() else {
                continue;
            };
            if let Some((kind, media)) = content.iter().next() {
                return Ok(match kind.as_str() {
                    "application/json" => Answer::Json(self.rust_type(&media["schema"])?),
                    "text/event-stream" => {
                        let schema = if media["itemSchema"].is_object() {
                            &media["itemSchema"]
                        } else {
                            &media["schema"]
                        };
                        let schema = if schema["type"] == "array" {
                            &schema["items"]
                        } else {
                            schema
                        };
                        let named = schema["$ref"].is_string();
                        Answer::Events(if named {
                            self.rust_type(schema)?
                        } else {
                            "serde_json::Value".to_owned()
                        })
                    }
                    _ => Answer::Bytes,
                });
            }
        }
        Ok(Answer::Nothing)
    }

    fn rust_type(&mut self, schema: &Value) -> Result<String, String> {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or_default();
            return self.named(name);
        }
        for combined in ["oneOf", "anyOf", "allOf"] {
            if let Some(options) = schema[combined].as_array() {
                let (nulls, rest): (Vec<&Value>, Vec<&Value>) =
                    options.iter().partition(|o| o["type"] == "null");
                return match (rest.as_slice(), nulls.is_empty()) {
                    ([one], true) => self.rust_type(one),
                    ([one], false) => Ok(format!("Option<{}>", self.rust_type(one)?)),
                    _ => Ok("serde_json::Value".to_owned()),
                };
            }
        }
        let (kind, nullable) = match &schema["type"] {
            Value::String(kind) => (kind.as_str(), false),
            Value::Array(kinds) => (
                kinds
                    .iter()
                    .filter_map(Value::as_str)
                    .find(|k| *k != "null")
                    .unwrap_or("object"),
                kinds.iter().any(|k| k == "null"),
            ),
            _ => ("", false),
        };
        let plain = match kind {
            "string" => "String".to_owned(),
            "boolean" => "bool".to_owned(),
            "number" => "f64".to_owned(),
            "integer" => match schema["format"].as_str() {
                Some("int32") if schema["minimum"].is_number() => "u32".to_owned(),
                Some("int32") => "i32".to_owned(),
                _ if schema["minimum"].is_number() => "u64".to_owned(),
                _ => "i64".to_owned(),
            },
            "array" => format!("Vec<{}>", self.rust_type(&schema["items"])?),
            "object" if is_page(schema) => format!(
                "Page<{}>",
                self.rust_type(&schema["properties"]["items"]["items"])?
            ),
            _ => "serde_json::Value".to_owned(),
        };
        Ok(if nullable {
            format!("Option<{plain}>")
        } else {
            plain
        })
    }

    fn named(&mut self, name: &str) -> Result<String, String> {
        if self.known.contains(name) {
            return Ok(name.to_owned());
        }
        let document = self.document;
        let schema = &document["components"]["schemas"][name];
        if schema.is_null() {
            return Err(format!("the document has no schema {name}"));
        }
        if is_page(schema) {
            // The document may write the items out instead of naming their type again.
            let item = name
                .strip_prefix("Page_")
                .filter(|item| self.known.contains(*item));
            return match item {
                Some(item) => Ok(format!("Page<{item}>")),
                None => self.rust_type(schema),
            };
        }
        if schema["properties"].is_object() {
            if !self.extra.contains_key(name) {
                self.extra.insert(name.to_owned(), Some(schema.clone()));
            }
            return Ok(name.to_owned());
        }
        self.rust_type(schema)
    }

    fn write_extra(&mut self, out: &mut String) -> Result<(), String> {
        while let Some(name) = self
            .extra
            .iter()
            .find(|(_, s)| s.is_some())
            .map(|(name, _)| name.clone())
        {
            let Some(schema) = self.extra.insert(name.clone(), None).flatten() else {
                continue;
            };
            for line in schema["description"].as_str().unwrap_or_default().lines() {
                let _ = writeln!(out, "/// {line}");
            }
            let _ = write!(
                out,
                "#[derive(Clone, Debug, Serialize, Deserialize)]\npub struct {name} {{\n"
            );
            let required: BTreeSet<&str> = schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            for (wire, property) in schema["properties"].as_object().into_iter().flatten() {
                for line in property["description"].as_str().unwrap_or_default().lines() {
                    let _ = writeln!(out, "    /// {line}");
                }
                let mut kind = self.rust_type(property)?;
                if !required.contains(wire.as_str()) && !kind.starts_with("Option<") {
                    kind = format!("Option<{kind}>");
                }
                if kind.starts_with("Option<") {
                    out.push_str(
                        "    #[serde(default, skip_serializing_if = \"Option::is_none\")]\n",
                    );
                }
                let field = identifier(wire);
                if &field != wire {
                    let _ = writeln!(out, "    #[serde(rename = {wire:?})]");
                }
                let _ = writeln!(out, "    pub {field}: {kind},");
            }
            out.push_str("}\n\n");
        }
        Ok(())
    }
}

enum Answer {
    Nothing,
    Json(String),
    Bytes,
    Events(String),
}

fn is_page(schema: &Value) -> bool {
    schema["properties"]["items"]["type"] == "array" && schema["properties"]["next"].is_object()
}

fn camel(snake: &str) -> String {
    snake
        .split('_')
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|c| c.to_uppercase().collect::<String>() + letters.as_str())
                .unwrap_or_default()
        })
        .collect()
}

fn identifier(name: &str) -> String {
    let name = name.replace(['-', '.'], "_").to_lowercase();
    match name.as_str() {
        "type" => "kind".to_owned(),
        "ref" => "reference".to_owned(),
        _ => name,
    }
}
