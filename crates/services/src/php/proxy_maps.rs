//! The load balancer's maps as they are in its process and in their files, which a restart reads.

use super::haproxy::Runtime;
use crate::support::files;
use conpaas_core::role_agent::RoleError;
use conpaas_model::ids::ReleaseNumber;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

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

/// The release people are led to by the running load balancer.
pub async fn serving(runtime: &Runtime, active: &Path) -> std::io::Result<Option<ReleaseNumber>> {
    let answer = runtime
        .ask(&format!("show map {}", active.display()))
        .await?;
    let number = answer
        .lines()
        .filter(|line| line.contains(" active "))
        .find_map(|line| line.rsplit(' ').next()?.parse().ok());
    Ok(number.filter(|number| *number != 0).map(ReleaseNumber))
}
