//! Unpacking normalised code archives. The Director checks what people upload; the agent checks
//! again. Who does it, with which rights, is `unpacker`'s business.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the archive cannot be read or written out")]
    Io(#[from] std::io::Error),
    #[error("'{}' leads out of the archive", .0.display())]
    Outside(PathBuf),
    #[error("'{}' is neither a file, a folder nor a symbolic link", .0.display())]
    Kind(PathBuf),
    #[error("'{}' is in the archive twice", .0.display())]
    Twice(PathBuf),
}

/// Unpacks a plain tar into a folder that must not exist yet: folders 0755, files 0644, owned by
/// the caller. Links are made last, so that nothing is ever written through one.
pub fn unpack(archive: impl Read, into: &Path) -> Result<(), UnpackError> {
    make_folder(into)?;
    let mut links = Vec::new();
    let mut seen = BTreeSet::new();
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let stated = entry.path()?.into_owned();
        let path = inside(&stated).ok_or_else(|| UnpackError::Outside(stated.clone()))?;
        if path.as_os_str().is_empty() && kind == EntryType::Directory {
            continue;
        }
        match kind {
            EntryType::Directory => make_folder(&into.join(&path))?,
            EntryType::Regular | EntryType::Continuous => {
                if !seen.insert(path.clone()) {
                    return Err(UnpackError::Twice(stated));
                }
                let target = into.join(&path);
                if let Some(parent) = target.parent() {
                    make_folder(parent)?;
                }
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o644)
                    .open(&target)?;
                std::io::copy(&mut entry, &mut file)?;
            }
            EntryType::Symlink => {
                let to = entry
                    .link_name()?
                    .ok_or_else(|| UnpackError::Kind(stated.clone()))?;
                let base = path.parent().unwrap_or(Path::new(""));
                if to.is_absolute() || inside(&base.join(&to)).is_none() {
                    return Err(UnpackError::Outside(stated));
                }
                if !seen.insert(path.clone()) {
                    return Err(UnpackError::Twice(stated));
                }
                links.push((path, to.into_owned()));
            }
            _ => return Err(UnpackError::Kind(stated)),
        }
    }
    let paths: BTreeSet<PathBuf> = links.iter().map(|(path, _)| path.clone()).collect();
    for (path, to) in links {
        // A link below, or by way of, another link could lead anywhere once both stand.
        let base = path.parent().unwrap_or(Path::new(""));
        let by_link = |start: &Path| start.ancestors().skip(1).any(|a| paths.contains(a));
        let target = inside(&base.join(&to)).ok_or_else(|| UnpackError::Outside(path.clone()))?;
        if by_link(&path) || by_link(&target) || climbs_after_descending(&to) {
            return Err(UnpackError::Outside(path));
        }
        let place = into.join(&path);
        if let Some(parent) = place.parent() {
            make_folder(parent)?;
        }
        symlink(&to, &place)?;
    }
    Ok(())
}

/// The path without `.` and `..`, unless it leads out.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// `a/../b` means something else when `a` is a link.
fn climbs_after_descending(path: &Path) -> bool {
    path.components()
        .skip_while(|component| !matches!(component, Component::Normal(_)))
        .any(|component| component == Component::ParentDir)
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    type Entry<'a> = (&'a str, EntryType, &'a str);

    fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, kind, content) in entries {
            // The builder refuses paths that climb, so headers are written by hand.
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4777);
            let data = if *kind == EntryType::Regular {
                *content
            } else {
                ""
            };
            if *kind == EntryType::Symlink {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_size(data.len() as u64);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(data.as_bytes());
            bytes.resize(bytes.len().div_ceil(512) * 512, 0);
        }
        bytes.extend_from_slice(&[0; 1024]);
        bytes
    }

    fn try_unpack(entries: &[Entry<'_>]) -> Result<tempfile::TempDir, UnpackError> {
        let folder = tempfile::tempdir().unwrap();
        unpack(&archive(entries)[..], &folder.path().join("out")).map(|()| folder)
    }

    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Symlink;

    #[test]
    fn files_folders_and_links_come_out_tame() {
        let folder = try_unpack(&[
            ("./", EntryType::Directory, ""),
            ("a/b.txt", FILE, "hello"),
            ("a/c", LINK, "../d"),
            ("d", FILE, "x"),
        ])
        .unwrap();
        let out = folder.path().join("out");
        assert_eq!(
            std::fs::read_to_string(out.join("a/b.txt")).unwrap(),
            "hello"
        );
        assert_eq!(std::fs::read_to_string(out.join("a/c")).unwrap(), "x");
        let mode = |path: &str| {
            std::fs::metadata(out.join(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!((mode("a"), mode("a/b.txt")), (0o755, 0o644));
    }

    #[test]
    fn whatever_leads_out_is_refused() {
        for entries in [
            &[("../x", FILE, "")][..],
            &[("/etc/x", FILE, "")],
            &[("a/../../x", FILE, "")],
            &[("l", LINK, "/etc/passwd")],
            &[("l", LINK, "..")],
            &[("a/l", LINK, "../../x")],
            &[("l", LINK, "d/.."), ("d", LINK, ".")],
            &[
                ("d/e/f", FILE, ""),
                ("l", LINK, "d/e"),
                ("m", LINK, "l/../../x"),
            ],
            &[("d/f", FILE, ""), ("l", LINK, "d"), ("l/m", LINK, "x")],
        ] {
            let error = try_unpack(entries).unwrap_err();
            assert!(
                matches!(error, UnpackError::Outside(_)),
                "{entries:?}: {error:?}"
            );
        }
        for kind in [
            EntryType::Char,
            EntryType::Block,
            EntryType::Fifo,
            EntryType::Link,
        ] {
            assert!(matches!(
                try_unpack(&[("x", kind, "")]).unwrap_err(),
                UnpackError::Kind(_)
            ));
        }
        let twice = [("x", FILE, "a"), ("./x", FILE, "b")];
        assert!(matches!(
            try_unpack(&twice).unwrap_err(),
            UnpackError::Twice(_)
        ));
    }
}
