//! Settings of a release: their JSON Schema, checks beyond it, and reading them. PHP's own
//! settings keep PHP's own names.

use conpaas_model::spec::Settings;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// Names of the settings that go into PHP's configuration as they are.
pub const PHP_SETTINGS: &[&str] = &[
    "date.timezone",
    "default_charset",
    "display_errors",
    "error_reporting",
    "log_errors",
    "max_execution_time",
    "max_file_uploads",
    "max_input_time",
    "max_input_vars",
    "opcache.enable",
    "output_buffering",
    "post_max_size",
    "session.cookie_httponly",
    "session.cookie_lifetime",
    "session.cookie_samesite",
    "session.cookie_secure",
    "session.gc_maxlifetime",
    "session.name",
    "short_open_tag",
    "upload_max_filesize",
];

/// Names in the time zone database, one a line: an unknown one would make PHP warn on every page.
const TIME_ZONES: &str = include_str!("timezones.txt");

/// A size as PHP writes it.
const SIZE: &str = "^[1-9][0-9]{0,9}[KMG]?$";
/// A path inside the archive: no climbing, no empty or dot parts, nothing a configuration file
/// would read differently.
const RELATIVE: &str = r"^(?!\.)[A-Za-z0-9_+~@-][A-Za-z0-9._+~@-]*(/(?!\.)[A-Za-z0-9._+~@-]+)*$";

/// JSON Schema (2020-12) of the settings; `unit` is ours and for people.
pub fn schema() -> Value {
    let integer =
        |title: &str, description: &str, unit: &str, low: u64, high: u64, default: u64| {
            json!({"type": "integer", "title": title, "description": description, "unit": unit,
               "minimum": low, "maximum": high, "default": default})
        };
    let flag = |title: &str, description: &str, default: bool| json!({"type": "boolean", "title": title, "description": description, "default": default});
    let size = |title: &str, description: &str, default: &str| {
        json!({"type": "string", "title": title, "description": description, "unit": "bytes (K, M and G allowed)",
               "pattern": SIZE, "default": default})
    };
    let paths = |title: &str, description: &str, most: u32| {
        json!({"type": "array", "title": title, "description": description, "default": [], "uniqueItems": true,
               "maxItems": most, "items": {"type": "string", "maxLength": 200, "pattern": RELATIVE}})
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of PHP web hosting",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "max_execution_time": integer("Longest computation", "How much processor time one request may use.", "s", 1, 3600, 30),
            "request_timeout": integer("Longest request", "How long one request may take in all; it is ended then.", "s", 1, 3600, 120),
            "memory_limit": size("Memory of one request", "A request that needs more is ended. At least 16M.", "128M"),
            "upload_max_filesize": size("Largest uploaded file", "Must fit into post_max_size.", "2M"),
            "post_max_size": size("Largest request body", "Holds all uploaded files of one request together.", "8M"),
            "max_file_uploads": integer("Most files in one request", "Further files are ignored.", "files", 0, 1000, 20),
            "max_input_vars": integer("Most form fields", "Further fields of a form are cut off.", "fields", 100, 100_000, 1000),
            "max_input_time": integer("Longest reading of input", "How long parsing of a request's body may take.", "s", 1, 3600, 60),
            "log_errors": flag("Log errors", "Write errors to the backend's log.", true),
            "display_errors": flag("Show errors", "Show errors in pages: only for development.", false),
            "error_reporting": {"type": "string", "title": "Which errors", "description": "Kinds of errors that are reported.",
                "enum": ["E_ALL", "E_ALL & ~E_DEPRECATED & ~E_STRICT", "E_ALL & ~E_NOTICE & ~E_DEPRECATED & ~E_STRICT", "E_ERROR | E_PARSE | E_CORE_ERROR | E_COMPILE_ERROR"],
                "default": "E_ALL & ~E_DEPRECATED & ~E_STRICT"},
            "disable_functions": {"type": "array", "title": "Functions not allowed", "description": "PHP functions that code may not call.",
                "maxItems": 200, "uniqueItems": true, "items": {"type": "string", "maxLength": 64, "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "default": ["pcntl_alarm", "pcntl_exec", "pcntl_fork", "pcntl_setpriority", "pcntl_signal", "pcntl_wait", "pcntl_waitpid"]},
            "date.timezone": {"type": "string", "title": "Time zone", "description": "Name in the time zone database.", "maxLength": 64,
                "pattern": "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$", "default": "UTC"},
            "default_charset": {"type": "string", "title": "Character set", "description": "Character set of pages that do not say theirs.",
                "maxLength": 40, "pattern": "^[A-Za-z0-9._-]*$", "default": "UTF-8"},
            "output_buffering": integer("Output buffer", "Output held back before it is sent; 0 sends at once.", "bytes", 0, 1_048_576, 4096),
            "short_open_tag": flag("Short tags", "Treat <? as the start of PHP code.", false),
            "sessions": {"type": "string", "title": "Shared sessions", "description": "on keeps PHP's sessions in a store that all backends share; off leaves them to PHP: files of each backend alone, which die with its machine.",
                "enum": ["on", "off"], "default": "on"},
            "session.name": {"type": "string", "title": "Name of the session cookie", "description": "Letters and digits.",
                "maxLength": 64, "pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "default": "PHPSESSID"},
            "session.gc_maxlifetime": integer("Life of an idle session", "After this it may be forgotten.", "s", 60, 2_592_000, 1440),
            "session.cookie_lifetime": integer("Life of the session cookie", "0 means until the browser closes.", "s", 0, 31_536_000, 0),
            "session.cookie_secure": flag("Session cookie over HTTPS only", "", false),
            "session.cookie_httponly": flag("Session cookie hidden from scripts", "", true),
            "session.cookie_samesite": {"type": "string", "title": "Session cookie and other sites", "description": "Empty leaves it to the browser.",
                "enum": ["", "Lax", "Strict"], "default": "Lax"},
            "opcache.enable": flag("Keep compiled code", "Off makes every request compile its files again.", true),
            "processes": integer("PHP processes of one backend", "Requests one backend works on at once; 0 computes it from the machine's memory.", "processes", 0, 512, 0),
            "web_root": {"type": "string", "title": "Public folder", "description": "Folder of the archive that people see, for instance public; empty for the whole archive.",
                "maxLength": 200, "pattern": format!("^$|{RELATIVE}"), "default": ""},
            "front_controller": {"type": "string", "title": "Front controller", "description": "Script in the public folder that answers paths which are no file, if it exists; empty for none.",
                "maxLength": 200, "pattern": format!("^$|{RELATIVE}"), "default": "index.php"},
            "front_controllers": {"type": "array", "title": "Front controllers below paths", "description": "Scripts that answer paths which are no file below a path; the longest path counts.",
                "default": [], "maxItems": 20, "items": {"type": "object", "additionalProperties": false, "required": ["below", "script"],
                    "properties": {"below": {"type": "string", "maxLength": 200, "pattern": "^(/[A-Za-z0-9._~@+-]+)+/$"}, "script": {"type": "string", "maxLength": 200, "pattern": RELATIVE}}}},
            "redirects": {"type": "array", "title": "Redirects", "description": "Paths that lead elsewhere, before anything answers them; from may end in /* for all below it, and to in * for what that stood for.",
                "default": [], "maxItems": 200, "items": {"type": "object", "additionalProperties": false, "required": ["from", "to"],
                    "properties": {"from": {"type": "string", "maxLength": 200, "pattern": r"^/([A-Za-z0-9._~@+/-]*|([A-Za-z0-9._~@+/-]*/)?\*)$"},
                        "to": {"type": "string", "maxLength": 500, "pattern": r"^(/(?!/)|https?://[A-Za-z0-9])[A-Za-z0-9._~:/?#@!$&'()+,;=%-]*\*?$"},
                        "status": {"type": "integer", "enum": [301, 302, 307, 308], "default": 302}}}},
            "hidden": paths("Hidden paths", "Paths in the public folder that nobody may fetch.", 50),
            "writable": paths("Writable paths", "Paths of the archive where code may write. They start as in the archive, each backend has its own, and they die with its machine; nobody may fetch them.", 50),
            "warm_up": {"type": "array", "title": "Pages for warming up", "description": "Fetched from every new PHP pool before people are led to it; an answer of 500 or above keeps the release from being switched to.",
                "default": ["/"], "maxItems": 20, "items": {"type": "string", "maxLength": 500, "pattern": "^/[!-~]*$"}},
            "static_cache_seconds": integer("Caching of static files", "How long browsers may keep static files without asking; 0 makes them ask.", "s", 0, 31_536_000, 0)
        }
    })
}

/// The schema's properties, made once: configurations of thousands of nodes ask for defaults.
static PROPERTIES: LazyLock<Value> = LazyLock::new(|| schema()["properties"].take());

fn default(name: &str) -> &'static Value {
    &PROPERTIES[name]["default"]
}

/// A setting's value or, if absent, its default.
pub fn value(settings: &Settings, name: &str) -> Value {
    settings.get(name).unwrap_or_else(|| default(name)).clone()
}

/// A number, or its default if it is no number.
pub fn number(settings: &Settings, name: &str) -> u64 {
    value(settings, name)
        .as_u64()
        .or_else(|| default(name).as_u64())
        .unwrap_or(0)
}

/// A text, empty if it is none.
pub fn text(settings: &Settings, name: &str) -> String {
    value(settings, name)
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// A list of texts.
pub fn list(settings: &Settings, name: &str) -> Vec<String> {
    value(settings, name)
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

/// Bytes of a size as PHP writes it.
pub fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let factor = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => 1,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// What may surprise people about settings that are right.
pub fn warnings(settings: &Settings, backends: u32) -> Vec<String> {
    let writable = list(settings, "writable");
    if writable.is_empty() || backends < 2 {
        return Vec::new();
    }
    vec![format!(
        "each of the {backends} backends has a writable {} of its own: what one writes there, the \
         others do not see, and it dies with its machine",
        writable.join(", ")
    )]
}

/// Checks beyond the schema.
pub fn check(settings: &Settings) -> Result<(), String> {
    let size = |name: &str| {
        bytes(&text(settings, name))
            .ok_or_else(|| format!("{name} is no size: write for instance 64M"))
    };
    let (memory, upload, post) = (
        size("memory_limit")?,
        size("upload_max_filesize")?,
        size("post_max_size")?,
    );
    if memory < 16 << 20 {
        return Err("memory_limit is less than 16M, too little for PHP to start a page".into());
    }
    if memory > 16 << 30 {
        return Err("memory_limit is more than 16G, more than any machine has".into());
    }
    if upload > post {
        return Err(format!(
            "upload_max_filesize ({}) does not fit into post_max_size ({}): raise post_max_size too",
            text(settings, "upload_max_filesize"),
            text(settings, "post_max_size")
        ));
    }
    let zone = text(settings, "date.timezone");
    if TIME_ZONES.lines().all(|known| known != zone) {
        let alike = TIME_ZONES
            .lines()
            .find(|known| known.eq_ignore_ascii_case(&zone));
        let hint = alike.unwrap_or("Europe/Amsterdam or UTC");
        return Err(format!(
            "date.timezone '{zone}' is no time zone: write for instance {hint}"
        ));
    }
    super::rules::check(settings)?;
    let writable = list(settings, "writable");
    if let Some((outer, inner)) = writable
        .iter()
        .flat_map(|a| writable.iter().map(move |b| (a, b)))
        .find(|(a, b)| b.starts_with(&format!("{a}/")))
    {
        return Err(format!(
            "writable names both '{outer}' and '{inner}', which lies inside it: name the outer one alone"
        ));
    }
    Ok(())
}
