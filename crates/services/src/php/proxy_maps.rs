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
pub const NOBODY: &str = "active 0\nsince 0\n";

/// Leads people to a release from now on, and remembers it for a restart.
pub async fn lead_to(runtime: &Runtime, active: &Path, release: ReleaseNumber) -> io::Result<()> {
    let mut text = std::fs::read_to_string(active).unwrap_or_default();
    let line = format!("active {release}\n", release = release.0);
    if serving(runtime, active).await? != Some(release) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = now.map_or(0, |now| now.as_secs());
        let map = active.display();
        // Before the switch: whoever is first to see the release is told so.
        runtime
            .order(&format!("set map {map} since {since}"), &[])
            .await?;
        runtime
            .order(&format!("set map {map} active {}", release.0), &[])
            .await?;
        text = format!("{line}since {since}\n");
    } else if !text.starts_with(&line) {
        text = format!("{line}since 0\n");
    }
    files::write_if_changed(active, text.as_bytes(), 0o644)
        .map(drop)
        .map_err(io::Error::other)
}

/// The release people are led to by the running load balancer.
pub async fn serving(runtime: &Runtime, active: &Path) -> io::Result<Option<ReleaseNumber>> {
    let answer = runtime
        .ask(&format!("show map {}", active.display()))
        .await?;
    let number = answer
        .lines()
        .filter(|line| line.contains(" active "))
        .find_map(|line| line.rsplit(' ').next()?.parse().ok());
    Ok(number.filter(|number| *number != 0).map(ReleaseNumber))
}
