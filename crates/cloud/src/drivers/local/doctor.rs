//! Whether this computer can make machines: each thing they need, tried, with the cure.

use super::LocalConfig;
use super::call;
use super::cgroup::{self, Cgroups};
use super::idmap::IdMap;
use super::image;
use crate::error::CloudError;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when nothing is to be done.
    pub cure: String,
}

impl Check {
    fn of(name: &str, result: Result<String, (String, String)>) -> Self {
        let (ok, detail, cure) = match result {
            Ok(detail) => (true, detail, String::new()),
            Err((detail, cure)) => (false, detail, cure),
        };
        Self {
            name: name.to_owned(),
            ok,
            detail,
            cure,
        }
    }
}

fn split(error: CloudError) -> (String, String) {
    match error {
        CloudError::Unfit { what, cure } => (what, cure),
        CloudError::Image { path, what, cure } => (format!("{}: {what}", path.display()), cure),
        other => (other.to_string(), String::new()),
    }
}

/// Tries namespaces and overlays in a passing folder below `folder`.
pub fn probe(program: &Path, map: &IdMap, folder: &Path) -> Result<(), CloudError> {
    let place = folder.join(
        format!(
            ".probe-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        )
        .replace(['(', ')'], "-"),
    );
    fs::DirBuilder::new()
        .mode(0o711)
        .create(&place)
        .map_err(CloudError::io("make", &place))?;
    let result = call::run_mapped(program, "probe", map, &[&place]);
    if call::run_mapped(program, "remove", map, &[&place]).is_err() {
        // Nothing was made in it when namespaces fail.
        let _ = fs::remove_dir(&place);
    }
    result
}

/// Looks at everything machines need and says what is wrong. Changes nothing; blocks shortly.
pub fn doctor(config: &LocalConfig) -> Vec<Check> {
    let program = fs::canonicalize(&config.program).unwrap_or_else(|_| config.program.clone());
    let map = IdMap::detect(config.id_base);
    let mut checks = vec![Check::of("user namespaces", kernel())];
    checks.push(Check::of(
        "ids for machines",
        match &map {
            Ok(map) => Ok(format!(
                "machines' root is user {} of this computer",
                map.root_uid()
            )),
            Err(CloudError::Unfit { what, cure }) => Err((what.clone(), cure.clone())),
            Err(e) => Err((e.to_string(), String::new())),
        },
    ));
    for tool in ["tar", "zstd"] {
        let found = ["/usr/bin", "/bin", "/usr/local/bin"]
            .iter()
            .map(|d| Path::new(d).join(tool))
            .find(|p| p.exists());
        checks.push(Check::of(
            &format!("program {tool}"),
            found.map(|p| p.display().to_string()).ok_or_else(|| {
                (
                    format!("{tool} is missing"),
                    format!("Install it (Debian: apt install {tool})"),
                )
            }),
        ));
    }
    if let Ok(map) = &map {
        let place = existing(&config.state_dir);
        let tried = probe(&program, map, &place).map(|()| format!("work in {}", place.display()));
        checks.push(Check::of("namespaces and overlays", tried.map_err(split)));
        checks.push(Check::of(
            "machine image",
            image::check(&config.image, map)
                .map(|()| config.image.display().to_string())
                .map_err(split),
        ));
    }
    checks.push(match cgroup::detect() {
        Cgroups::V1 { .. } => Check::of("limits", Ok("control groups, version 1".into())),
        Cgroups::V2 { base } => Check::of(
            "limits",
            Ok(format!(
                "control groups, version 2, below {}",
                base.display()
            )),
        ),
        // Machines run without limits too: worth knowing, no failure.
        Cgroups::None { reason } => Check::of("limits", Ok(format!("none: {reason}"))),
    });
    checks
}

/// The nearest folder above that is there.
fn existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors()
        .find(|p| p.is_dir())
        .map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn kernel() -> Result<String, (String, String)> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|t| t.trim().to_owned());
    if !Path::new("/proc/self/ns/user").exists() {
        return Err((
            "the kernel has no user namespaces".into(),
            "Run a kernel with CONFIG_USER_NS".into(),
        ));
    }
    let most = read("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if most == "0" {
        return Err((
            "the kernel allows no user namespaces (user.max_user_namespaces is 0)".into(),
            "As root: sysctl user.max_user_namespaces=10000".into(),
        ));
    }
    if !nix::unistd::geteuid().is_root() {
        for (file, bad, name) in [
            (
                "/proc/sys/kernel/unprivileged_userns_clone",
                "0",
                "kernel.unprivileged_userns_clone=1",
            ),
            (
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
                "kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        ] {
            if read(file).as_deref() == Some(bad) {
                return Err((
                    "ordinary users may not make user namespaces".into(),
                    format!("As root: sysctl {name}"),
                ));
            }
        }
    }
    Ok(format!("allowed, {most} at most"))
}
