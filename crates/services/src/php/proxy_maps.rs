//! The load balancer's maps as they are in its process and in their files, which a restart reads.

use super::haproxy::Runtime;
use crate::support::files;
use conpaas_core::role_agent::RoleError;
use conpaas_model::ids::ReleaseNumber;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Replaces a map in the running load balancer and in its file, so that a restart has the same.
pub async fn replace(
    runtime: &Runtime,
    map: &Path,
    entries: BTreeMap<String, String>,
) -> Result<(), RoleError> {
    let mut text = String::new();
    for (key, value) in &entries {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key} {value}");
    }
    runtime
        .replace_map(map, entries.into_iter())
        .await
        .map_err(RoleError::io(format!("replacing {}", map.display())))?;
    files::write_if_changed(map, text.as_bytes(), 0o644)?;
    Ok(())
}

/// The releases that a map's file has entries of.
pub fn numbers_in(map: &Path) -> BTreeSet<ReleaseNumber> {
    let text = std::fs::read_to_string(map).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .map(ReleaseNumber)
        .collect()
}

/// What the map says before there was any release.
pub const NOBODY: &str = "active 0\nsince 0\npreview 0\n";

const ACTIVE: &str = "active";
const SINCE: &str = "since";
const PREVIEW: &str = "preview";

/// Leads people to a release from now on (absent: as before), and those at the preview address to
/// the one that is held; remembers both for a restart.
pub async fn lead_to(
    runtime: &Runtime,
    map: &Path,
    release: Option<ReleaseNumber>,
    preview: Option<ReleaseNumber>,
) -> io::Result<()> {
    let found = entries(runtime, map).await?;
    let mut wanted = found.clone();
    let number = |release: ReleaseNumber| release.0.to_string();
    wanted.insert(PREVIEW.to_owned(), preview.map_or("0".to_owned(), number));
    if let Some(release) = release.map(number)
        && found.get(ACTIVE) != Some(&release)
    {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = now.map_or(0, |now| now.as_secs());
        wanted.insert(SINCE.to_owned(), since.to_string());
        wanted.insert(ACTIVE.to_owned(), release);
    }
    // The time before the switch: whoever is first to see the release is told so.
    for key in [SINCE, ACTIVE, PREVIEW] {
        let Some(value) = wanted
            .get(key)
            .filter(|value| found.get(key) != Some(*value))
        else {
            continue;
        };
        let verb = if found.contains_key(key) {
            "set"
        } else {
            "add"
        };
        let order = format!("{verb} map {} {key} {value}", map.display());
        runtime.order(&order, &[]).await?;
    }
    let text: String = [ACTIVE, SINCE, PREVIEW]
        .into_iter()
        .filter_map(|key| Some(format!("{key} {}\n", wanted.get(key)?)))
        .collect();
    files::write_if_changed(map, text.as_bytes(), 0o644)
        .map(drop)
        .map_err(io::Error::other)
}

/// The release people are led to by the running load balancer.
pub async fn serving(runtime: &Runtime, map: &Path) -> io::Result<Option<ReleaseNumber>> {
    let found = entries(runtime, map).await?;
    let number = found.get(ACTIVE).and_then(|number| number.parse().ok());
    Ok(number.filter(|number| *number != 0).map(ReleaseNumber))
}

/// A map's entries in the running load balancer: a line holds its address there, key and value.
async fn entries(runtime: &Runtime, map: &Path) -> io::Result<BTreeMap<String, String>> {
    let answer = runtime.ask(&format!("show map {}", map.display())).await?;
    let entry = |line: &str| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    Ok(answer.lines().filter_map(entry).collect())
}
