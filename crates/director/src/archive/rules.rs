//! What members of an archive may be: paths and links that stay inside, each there once, none
//! below a file or a link. Nodes check by rules of their own when they unpack; a test holds that
//! they refuse nothing that is taken here.

use super::{ArchiveError, Bounds, Kind, Member, refuse};
use std::collections::{BTreeMap, BTreeSet};

/// A member's path, clean; `None` for the archive's own top.
pub(super) fn clean(path: &str) -> Result<Option<String>, ArchiveError> {
    if path.starts_with('/') || path.contains(':') && path.as_bytes().get(1) == Some(&b':') {
        return Err(refuse(path, "is an absolute path"));
    }
    if path.contains('\0') || path.len() > 1024 {
        return Err(refuse(path, "is no usable path"));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(refuse(path, "climbs out of the archive")),
            part if part.len() > 255 => return Err(refuse(path, "is no usable path")),
            part => parts.push(part),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

/// A link's target, if it stays inside: relative, climbing only at its start, and no further
/// than the link lies deep.
pub(super) fn check_link(path: &str, target: &str) -> Result<(), ArchiveError> {
    if target.starts_with('/') || target.is_empty() || target.contains('\0') {
        return Err(refuse(path, "is a link that leads out of the archive"));
    }
    let depth = path.split('/').count() - 1;
    let mut climbed = 0;
    let mut went_down = false;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if went_down => {
                return Err(refuse(path, "is a link that climbs after going down"));
            }
            ".." => climbed += 1,
            _ => went_down = true,
        }
    }
    if climbed > depth {
        return Err(refuse(path, "is a link that leads out of the archive"));
    }
    Ok(())
}

/// A hard link as a symbolic one: from where the link lies to what it names.
pub(super) fn relative(path: &str, target: &str) -> String {
    let mut climb = "../".repeat(path.split('/').count() - 1);
    climb.push_str(target);
    climb
}

/// The path that a link's target names, both checked before.
pub(super) fn named(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What the first look over an archive collects.
#[derive(Default)]
pub(super) struct Survey {
    members: u64,
    pub(super) files: u64,
    bytes: u64,
    /// Each path; whether it is a folder, and whether a link.
    paths: BTreeMap<String, (bool, bool)>,
    /// Each link, and the path that its target names.
    links: Vec<(String, String)>,
}

impl Survey {
    pub(super) fn add(&mut self, member: &Member, bounds: Bounds) -> Result<(), ArchiveError> {
        self.members += 1;
        if self.members > bounds.members {
            return Err(ArchiveError::TooMany {
                members: bounds.members,
            });
        }
        self.bytes = self.bytes.saturating_add(member.size);
        if self.bytes > bounds.unpacked {
            return Err(ArchiveError::TooLarge {
                bytes: bounds.unpacked,
            });
        }
        let folder = member.kind == Kind::Folder;
        let link = matches!(member.kind, Kind::Link { .. });
        if let Kind::Link { target } = &member.kind {
            self.links
                .push((member.path.clone(), named(&member.path, target)));
        }
        if !folder {
            self.files += 1;
        }
        let before = self.paths.insert(member.path.clone(), (folder, link));
        match before {
            Some((true, _)) if folder => Ok(()),
            Some(_) => Err(refuse(&member.path, "is there twice")),
            None => Ok(()),
        }
    }

    /// Refuses members below a file or a link.
    pub(super) fn check_parents(&self) -> Result<(), ArchiveError> {
        for path in self.paths.keys() {
            let mut parent = path.as_str();
            while let Some((above, _)) = parent.rsplit_once('/') {
                parent = above;
                match self.paths.get(parent) {
                    Some((_, true)) => return Err(refuse(path, "lies below a link")),
                    Some((false, _)) => return Err(refuse(path, "lies below a file")),
                    Some((true, false)) | None => {}
                }
            }
        }
        Ok(())
    }

    /// Refuses links whose targets lie below other links: where those lead is not in the text, so
    /// nodes refuse them too.
    pub(super) fn check_links(&self) -> Result<(), ArchiveError> {
        for (path, target) in &self.links {
            let mut parent = target.as_str();
            while let Some((above, _)) = parent.rsplit_once('/') {
                parent = above;
                if matches!(self.paths.get(parent), Some((_, true))) {
                    return Err(refuse(path, "is a link that leads through another link"));
                }
            }
        }
        Ok(())
    }

    /// The single top folder that holds everything, if there is one.
    pub(super) fn top(&self) -> Option<String> {
        let tops: BTreeSet<&str> = self
            .paths
            .keys()
            .map(|path| path.split('/').next().unwrap_or(path))
            .collect();
        let top = (tops.len() == 1)
            .then(|| tops.into_iter().next())
            .flatten()?;
        let holds = self.paths.get(top).is_none_or(|(folder, _)| *folder);
        (holds && self.paths.keys().any(|path| path.len() > top.len())).then(|| top.to_owned())
    }
}
