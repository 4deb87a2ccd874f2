//! Which machine image a nutshell uses: the one that was named, or the newest one in the cache.

use super::settings::{Place, Settings};
use crate::exit::CliError;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An image as a tarball.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tarball {
    pub path: PathBuf,
    /// Changes with its content.
    pub name: String,
}

const ENDINGS: [&str; 2] = [".tar.zst", ".tar"];

fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = ENDINGS
        .iter()
        .find_map(|ending| file.strip_suffix(ending))?;
    (!name.is_empty() && !name.starts_with('.')).then(|| name.to_owned())
}

/// The tarball to use, if there is one.
pub fn find() -> Result<Option<Tarball>, CliError> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = variable("CONPAAS_IMAGE") {
        let path = std::path::absolute(&path).unwrap_or(path);
        let Some(name) = name_of(&path) else {
            return Err(CliError::usage(format!(
                "CONPAAS_IMAGE is {}, which is no .tar.zst or .tar",
                path.display()
            )));
        };
        readable(&path)?;
        return Ok(Some(Tarball { path, name }));
    }
    let cache = variable("CONPAAS_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("conpaas")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/conpaas")));
    Ok(cache.and_then(|cache| newest(&cache.join("images"))))
}

/// Whether a tarball that was named can be read, and else why not.
fn readable(path: &Path) -> Result<(), CliError> {
    let wrong =
        |what: &str| CliError::usage(format!("CONPAAS_IMAGE is {}, which {what}", path.display()));
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(wrong("is no file").hint("name a .tar.zst or .tar")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(wrong("is not there").hint("make the machine image: make image"))
        }
        Err(error) => Err(wrong("cannot be read")
            .because(&error)
            .hint("let this user read it, or take another one")),
    }
}

fn newest(folder: &Path) -> Option<Tarball> {
    let entries = std::fs::read_dir(folder).ok()?;
    let of = |entry: std::fs::DirEntry| -> Option<(SystemTime, Tarball)> {
        let path = entry.path();
        let name = name_of(&path)?;
        let metadata = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some((metadata.modified().ok()?, Tarball { path, name }))
    };
    entries
        .flatten()
        .filter_map(of)
        .max_by_key(|(made, _)| *made)
        .map(|(_, tarball)| tarball)
}

/// Where an image lies once it is unpacked.
pub fn unpacked(place: &Place, tarball: &Tarball) -> PathBuf {
    place.cloud().join("images").join(&tarball.name)
}

/// What to do when there is none at all.
pub fn missing() -> CliError {
    CliError::failed("there is no machine image")
        .hint("make it: make image (or images/build), or set CONPAAS_IMAGE to one")
}

/// The unpacked image, unpacking it when that was not done yet. Blocks for seconds.
pub fn prepare(place: &Place, settings: &Settings) -> Result<PathBuf, CliError> {
    match find()? {
        Some(tarball) => {
            conpaas_cloud::prepare_image(&settings.local(place), &tarball.path, &tarball.name)
                .map_err(|error| {
                    CliError::failed("the machine image cannot be used").because(&error)
                })
        }
        None => settings
            .image
            .clone()
            .filter(|folder| folder.is_dir())
            .ok_or_else(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_an_image_cannot_be_used_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.tar");
        let why = |path: &Path| readable(path).unwrap_err();
        assert!(why(&file).what.ends_with("which is not there"));
        assert!(why(folder.path()).what.ends_with("which is no file"));
        std::fs::write(&file, "").unwrap();
        readable(&file).unwrap();
        let through = file.join("b.tar");
        assert!(why(&through).what.ends_with("which cannot be read"));
        assert_eq!(why(&through).causes.len(), 1);
    }

    #[test]
    fn the_newest_tarball_counts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest(folder.path()), None);
        let old = SystemTime::now() - std::time::Duration::from_secs(100);
        for (name, age) in [
            ("a.tar.zst", true),
            ("b.tar", false),
            (".c.tar", false),
            ("d.partial", false),
        ] {
            let file = std::fs::File::create(folder.path().join(name)).unwrap();
            if age {
                file.set_modified(old).unwrap();
            }
        }
        assert_eq!(newest(folder.path()).unwrap().name, "b");
        assert_eq!(name_of(Path::new("/x/0f3a.tar.zst")).unwrap(), "0f3a");
        assert_eq!(name_of(Path::new("/x/.tar")), None);
    }
}
