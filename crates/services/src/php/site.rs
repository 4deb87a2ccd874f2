//! A release's files: what of them people may ask for and by which path, and how they are laid
//! out on a node under a path that is the same everywhere.

use super::ACCOUNT;
use super::manager::SitePlan;
use crate::support::files;
use conpaas_core::role_agent::{NodeContext, RoleError};
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::level::ReleaseLevel;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// What answers a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A web server, from a file.
    Static,
    /// PHP, by this script (a path below the public folder, with a leading slash).
    Script(String),
}

/// All paths of a release that have an answer of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    pub paths: BTreeMap<String, Target>,
    /// What answers others below a path: scripts.
    pub fronts: BTreeMap<String, String>,
    /// What answers all others: a script, or nothing (a web server says 404).
    pub front: Option<String>,
}

impl Site {
    /// The script that answers a path, if PHP does.
    pub fn script(&self, path: &str) -> Option<&str> {
        match self.paths.get(path) {
            Some(Target::Script(script)) => Some(script),
            Some(Target::Static) => None,
            None => {
                let mut below = self
                    .fronts
                    .iter()
                    .filter(|(below, _)| path.starts_with(*below));
                // Of beginnings of one path the last in order is the longest.
                let longest = below.next_back().map(|(_, script)| script);
                longest.or(self.front.as_ref()).map(String::as_str)
            }
        }
    }
}

/// Where a release is laid out for PHP.
pub fn release_folder(plan: &SitePlan, release: ReleaseNumber) -> PathBuf {
    plan.base.join(release.to_string())
}

/// The public folder of a release, as load balancer and backends name it.
pub fn document_root(plan: &SitePlan, release: ReleaseNumber) -> PathBuf {
    public(&release_folder(plan, release), plan)
}

/// The public folder below a folder with a release's files.
pub fn public(folder: &Path, plan: &SitePlan) -> PathBuf {
    if plan.web_root.is_empty() {
        folder.to_owned()
    } else {
        folder.join(&plan.web_root)
    }
}

/// Where code of a service may write on this node. It outlives releases, not the machine.
pub fn scratch(plan: &SitePlan) -> PathBuf {
    plan.base.join("scratch")
}

/// The folder with a release's files as they were uploaded, or with the welcome page.
pub async fn source(
    node: &NodeContext,
    plan: &SitePlan,
    level: &ReleaseLevel,
) -> Result<PathBuf, RoleError> {
    match &level.code {
        // This is work in the background: what is still on its way is waited for.
        Some(code) => loop {
            match node.code.folder(code).await {
                Err(RoleError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                }
                done => break done,
            }
        },
        None => welcome(plan),
    }
}

fn welcome(plan: &SitePlan) -> Result<PathBuf, RoleError> {
    let folder = plan.base.join("welcome");
    files::folder(&plan.base, 0o755)?;
    files::folder(&folder, 0o755)?;
    files::write_if_changed(
        &folder.join("index.php"),
        include_bytes!("welcome/index.php"),
        0o644,
    )?;
    files::write_if_changed(
        &folder.join("welcome.css"),
        include_bytes!("welcome/welcome.css"),
        0o644,
    )?;
    Ok(folder)
}

/// Whether a path below the public folder is hidden by the plan.
fn is_hidden(plan: &SitePlan, below_public: &str) -> bool {
    let inside = |path: &str, outer: &str| path == outer || path.starts_with(&format!("{outer}/"));
    plan.hidden
        .iter()
        .any(|hidden| inside(below_public, hidden))
        || plan
            .writable
            .iter()
            .any(|writable| match plan.web_root.as_str() {
                "" => inside(below_public, writable),
                root => inside(&format!("{root}/{below_public}"), writable),
            })
}

/// Paths below the public folder that a web server must refuse by itself.
pub fn refused(plan: &SitePlan) -> BTreeSet<String> {
    let writable = plan
        .writable
        .iter()
        .filter_map(|writable| match plan.web_root.as_str() {
            "" => Some(writable.clone()),
            root => writable
                .strip_prefix(&format!("{root}/"))
                .map(str::to_owned),
        });
    plan.hidden.iter().cloned().chain(writable).collect()
}

/// Looks through a release's files. Links are not followed, except that a script may be one
/// that stays inside the release. Names with a leading dot are private, but for `.well-known`.
pub fn survey(folder: &Path, plan: &SitePlan) -> io::Result<Site> {
    let root = public(folder, plan);
    let mut site = Site::default();
    let mut todo = vec![String::new()];
    while let Some(at) = todo.pop() {
        let mut index = None;
        for entry in std::fs::read_dir(root.join(&at))? {
            let entry = entry?;
            // A name that is no UTF-8 cannot be asked for in a way all daemons agree on.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.contains(['\n', '\r', '\0'])
                || (name.starts_with('.') && !(at.is_empty() && name == ".well-known"))
            {
                continue;
            }
            let path = if at.is_empty() {
                name.clone()
            } else {
                format!("{at}/{name}")
            };
            if is_hidden(plan, &path) {
                continue;
            }
            let kind = entry.file_type()?;
            let script = has_php_extension(&name);
            let url = format!("/{path}");
            if kind.is_dir() {
                // A web server redirects to the path with a slash.
                site.paths.insert(url, Target::Static);
                todo.push(path);
            } else if script && (kind.is_file() || stays_inside(folder, &entry.path())) {
                if name == "index.php" {
                    index = Some(Target::Script(url.clone()));
                }
                site.paths.insert(url.clone(), Target::Script(url));
            } else if kind.is_file() && !script {
                if matches!(name.as_str(), "index.html" | "index.htm") && index.is_none() {
                    index = Some(Target::Static);
                }
                site.paths.insert(url, Target::Static);
            }
        }
        if let Some(index) = index {
            let url = if at.is_empty() {
                "/".to_owned()
            } else {
                format!("/{at}/")
            };
            site.paths.insert(url, index);
        }
    }
    let script = |path: &str| {
        let script = format!("/{path}");
        let is_one = site.paths.get(&script) == Some(&Target::Script(script.clone()));
        is_one.then_some(script)
    };
    let front = script(&plan.front_controller);
    let fronts = plan.fronts.iter();
    let fronts = fronts.filter_map(|front| Some((front.below.clone(), script(&front.script)?)));
    (site.front, site.fronts) = (front, fronts.collect());
    Ok(site)
}

fn has_php_extension(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "php")
}

fn stays_inside(folder: &Path, link: &Path) -> bool {
    match (folder.canonicalize(), link.canonicalize()) {
        (Ok(folder), Ok(target)) => target.is_file() && target.starts_with(folder),
        _ => false,
    }
}

/// Lays a release out for PHP: files are hard links to the uploaded ones (copies where the
/// file system does not do that), and what code may write is a link into the scratch folder,
/// which starts with the uploaded content. Appears whole or not at all.
pub fn lay_out(
    source: &Path,
    plan: &SitePlan,
    release: ReleaseNumber,
    keep: &BTreeSet<ReleaseNumber>,
) -> Result<PathBuf, RoleError> {
    let target = release_folder(plan, release);
    files::folder(&plan.base, 0o755)?;
    make_scratch(plan)?;
    if target.is_dir() {
        return Ok(target);
    }
    forget_others(plan, keep);
    let unfinished = files::neighbour(&target).with_extension(format!("{}", std::process::id()));
    let work = || -> io::Result<()> {
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        mirror(source, source, &unfinished)?;
        for writable in &plan.writable {
            open_for_writing(
                source,
                &unfinished,
                &scratch(plan).join("writable"),
                writable,
            )?;
        }
        match std::fs::rename(&unfinished, &target) {
            // Somebody else was faster with the same content.
            Err(_) if target.is_dir() => std::fs::remove_dir_all(&unfinished),
            other => other,
        }
    };
    work().map_err(RoleError::io(format!(
        "laying out release {release} in {}",
        target.display()
    )))?;
    Ok(target)
}

/// Folders under the scratch folder that PHP itself needs; they belong to its account.
fn make_scratch(plan: &SitePlan) -> Result<(), RoleError> {
    let scratch = scratch(plan);
    files::folder(&scratch, 0o755)?;
    files::folder(&scratch.join("writable"), 0o755)?;
    for part in ["sessions", "tmp"] {
        files::folder_of(&scratch.join(part), 0o750, ACCOUNT)?;
    }
    Ok(())
}

/// Removes layouts of releases that are neither wanted nor newer than all that are.
fn forget_others(plan: &SitePlan, keep: &BTreeSet<ReleaseNumber>) {
    let Some(newest) = keep.last() else { return };
    for entry in std::fs::read_dir(&plan.base)
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix('r'))
            .and_then(|n| n.parse().ok())
            .map(ReleaseNumber);
        if let Some(number) = number
            && number < *newest
            && !keep.contains(&number)
        {
            // Only tidying: a failure shows as disk use, and the next layout tries again.
            if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "an old release's files could not be removed");
            }
        }
    }
}

fn mirror(top: &Path, from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(to)?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            mirror(top, &path, &target)?;
        } else if kind.is_file() {
            if std::fs::hard_link(&path, &target).is_err() {
                std::fs::copy(&path, &target)?;
            }
        } else if kind.is_symlink() && stays_below(top, &path) {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, &target)?;
        }
    }
    Ok(())
}

/// Whether a link is relative and leads to something inside the release.
fn stays_below(top: &Path, link: &Path) -> bool {
    let relative = std::fs::read_link(link).is_ok_and(|target| target.is_relative());
    relative
        && matches!((top.canonicalize(), link.canonicalize()), (Ok(top), Ok(target)) if target.starts_with(&top))
}

/// Puts a link into the scratch folder in the place of a writable path. In there each writable
/// path is one entry of a folder that is not the account's, so that code can never make us
/// write through a link of its own.
fn open_for_writing(
    source: &Path,
    layout: &Path,
    scratch: &Path,
    writable: &str,
) -> io::Result<()> {
    let (original, place) = (source.join(writable), layout.join(writable));
    let home = scratch.join(writable.replace('/', "%2F"));
    if std::fs::symlink_metadata(&home).is_err() {
        let unfinished = files::neighbour(&home);
        if original.is_file() {
            std::fs::copy(&original, &unfinished)?;
            files::give(&unfinished, ACCOUNT)?;
        } else {
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished)?;
            }
            copy_owned(original.is_dir().then_some(original.as_path()), &unfinished)?;
        }
        std::fs::rename(&unfinished, &home)?;
    }
    match std::fs::symlink_metadata(&place) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(&place)?,
        Ok(_) => std::fs::remove_file(&place)?,
        Err(_) => {
            if let Some(parent) = place.parent() {
                std::fs::create_dir_all(parent)?;
            }
        }
    }
    std::os::unix::fs::symlink(&home, &place)
}

/// A copy of a folder (or an empty one) that belongs to the account; links are left out.
fn copy_owned(from: Option<&Path>, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(to)?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o750))?;
    files::give(to, ACCOUNT)?;
    for entry in from
        .map(std::fs::read_dir)
        .transpose()?
        .into_iter()
        .flatten()
    {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_owned(Some(&entry.path()), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), &target)?;
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640))?;
            files::give(&target, ACCOUNT)?;
        }
    }
    Ok(())
}

/// Reads a role's configuration.
pub fn read<T: serde::de::DeserializeOwned>(config: &serde_json::Value) -> Result<T, RoleError> {
    serde_json::from_value(config.clone()).map_err(|error| {
        RoleError::Failed(format!("the role's configuration cannot be read: {error}"))
    })
}
