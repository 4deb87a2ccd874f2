//! Metrics in the text format that Prometheus and its kin read. What is exposed to whom is the
//! API's business.

use conpaas_model::metrics::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

/// How far the bounds of a histogram are apart that are told: one for each doubling.
const EVERY: usize = 4;

/// A label: its name is ours, its value may be anybody's.
pub type Label<'a> = (&'a str, String);

/// Families of samples, each told in one piece as the format wants it.
#[derive(Default)]
pub struct Exposition {
    families: BTreeMap<String, (&'static str, String, String)>,
}

impl Exposition {
    /// Adds a value under a name (`FAMILY` or `FAMILY.KIND`; the kind becomes a label).
    pub fn add(&mut self, name: &str, help: &str, labels: &[Label<'_>], value: &Value) {
        let (family, kind) = name.split_once('.').unwrap_or((name, ""));
        let mut all = String::new();
        let kind = (!kind.is_empty()).then(|| ("kind", kind.to_owned()));
        for (name, value) in labels.iter().chain(kind.as_ref()) {
            let comma = if all.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(all, "{comma}{name}=\"{}\"", escaped(value));
        }
        let (family, word) = match value {
            Value::Counter(_) => (format!("conpaas_{family}_total"), "counter"),
            Value::Gauge(_) => (format!("conpaas_{family}"), "gauge"),
            Value::Histogram(_) => (format!("conpaas_{family}_seconds"), "histogram"),
        };
        let (known, _, text) = self
            .families
            .entry(family.clone())
            .or_insert_with(|| (word, help.to_owned(), String::new()));
        if *known != word {
            return;
        }
        match value {
            Value::Counter(count) => {
                let _ = writeln!(text, "{family}{{{all}}} {count}");
            }
            Value::Gauge(gauge) => {
                let _ = writeln!(text, "{family}{{{all}}} {}", gauge.mean());
            }
            Value::Histogram(histogram) => {
                let comma = if all.is_empty() { "" } else { "," };
                for (micros, count) in histogram.cumulative(EVERY) {
                    let bound = seconds(micros);
                    let _ = writeln!(
                        text,
                        "{family}_bucket{{{all}{comma}le=\"{bound}\"}} {count}"
                    );
                }
                let count = histogram.count();
                let _ = writeln!(text, "{family}_bucket{{{all}{comma}le=\"+Inf\"}} {count}");
                let _ = writeln!(text, "{family}_sum{{{all}}} {}", seconds(histogram.sum()));
                let _ = writeln!(text, "{family}_count{{{all}}} {count}");
            }
        }
    }

    /// The whole text.
    pub fn text(self) -> String {
        let mut all = String::new();
        for (name, (word, help, samples)) in self.families {
            let _ = write!(all, "# HELP {name} {help}\n# TYPE {name} {word}\n{samples}");
        }
        all
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1_000_000.0
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Adds all values of a series under its labels; its help text is its name in words.
pub fn expose(into: &mut Exposition, labels: &[Label<'_>], values: &super::Values) {
    for (name, value) in values {
        let family = name.split('.').next().unwrap_or(name);
        let help = family.replace('_', " ");
        into.add(name, &help, labels, value);
    }
}
