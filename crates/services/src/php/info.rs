//! `conpaas php info`: which PHP a backend runs, with which extensions, and the settings of each
//! release on it. Answers what people otherwise upload a `phpinfo()` page for.

use super::manager::BackendConfig;
use conpaas_core::role_agent::RoleError;
use conpaas_model::ids::ReleaseNumber;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// The program tells about itself in some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the program says with one option.
async fn said(program: &str, option: &str) -> Result<String, RoleError> {
    let running = Command::new(program)
        .arg(option)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, running)
        .await
        .map_err(|_| RoleError::Failed(format!("{program} {option} does not end")))?
        .map_err(RoleError::io(format!("running {program} {option}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The version out of `PHP 8.2.29 (fpm-fcgi) (built: ...)`.
fn version(text: &str) -> Option<&str> {
    text.split_whitespace().nth(1)
}

/// Names of extensions, without the headings in brackets.
fn extensions(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('['))
        .collect()
}

fn settings(config: &BackendConfig) -> Value {
    let mut all: Map<String, Value> = config.php.clone().into_iter().collect();
    all.insert("memory_limit".into(), config.memory_limit.clone().into());
    let disabled = config.disable_functions.join(",");
    all.insert("disable_functions".into(), disabled.into());
    json!({
        "processes": config.children,
        "opcache_mib": config.opcache_mib,
        "settings": all,
    })
}

/// The answer of one backend.
pub async fn answer(
    program: &str,
    releases: &BTreeMap<ReleaseNumber, BackendConfig>,
) -> Result<Value, RoleError> {
    let (about, modules) = (said(program, "-v").await?, said(program, "-m").await?);
    let releases: BTreeMap<String, Value> = releases
        .iter()
        .map(|(number, config)| (number.to_string(), settings(config)))
        .collect();
    Ok(json!({
        "php": version(&about),
        "extensions": extensions(&modules),
        "releases": releases,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_php_says_of_itself_is_read() {
        assert_eq!(
            version("PHP 8.2.29 (fpm-fcgi) (built: x)\nCopy"),
            Some("8.2.29")
        );
        assert_eq!(version(""), None);
        let text = "[PHP Modules]\nbcmath\nCore\n\n[Zend Modules]\nZend OPcache\n";
        assert_eq!(extensions(text), ["bcmath", "Core", "Zend OPcache"]);
    }
}
