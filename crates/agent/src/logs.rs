//! The last lines of a node's logs, for people. Which logs there are is the roles' business:
//! every file `ROLE-NAME.log` in the log folder is one source.

use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes read of one log.
const WINDOW: u64 = 1 << 20;

/// The last lines by source, as `{SOURCE: [LINE, ..]}`; `{"role": ROLE, "lines": N}` narrows it.
pub fn tail(folder: &Path, arguments: &Value) -> Value {
    let role = arguments.get("role").and_then(Value::as_str);
    let lines = arguments
        .get("lines")
        .and_then(Value::as_u64)
        .unwrap_or(100);
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let mut found = Map::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(source) = name.to_str().and_then(|name| name.strip_suffix(".log")) else {
            continue;
        };
        if role.is_some_and(|role| !source.starts_with(&format!("{role}-"))) {
            continue;
        }
        if let Ok(last) = last_lines(&entry.path(), lines) {
            found.insert(source.to_owned(), json!(last));
        }
    }
    Value::Object(found)
}

fn last_lines(path: &Path, lines: usize) -> std::io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let from = size.saturating_sub(WINDOW);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut all: Vec<&str> = text.lines().collect();
    if from > 0 && !all.is_empty() {
        // The window begins in the middle of a line.
        all.remove(0);
    }
    Ok(all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_come_by_source_and_role() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("web-access.log"), "1\n2\n3\n").unwrap();
        std::fs::write(folder.path().join("proxy-main.log"), "p\n").unwrap();
        std::fs::write(folder.path().join("web.txt"), "no log").unwrap();
        let all = tail(folder.path(), &json!({"role": null, "lines": 2}));
        assert_eq!(all, json!({"web-access": ["2", "3"], "proxy-main": ["p"]}));
        let web = tail(folder.path(), &json!({"role": "web", "lines": 9}));
        assert_eq!(web, json!({"web-access": ["1", "2", "3"]}));
    }
}
