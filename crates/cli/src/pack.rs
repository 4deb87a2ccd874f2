//! Packs a folder into an archive to upload. The same folder gives the same bytes, so that the
//! Director recognises what it has already.

use crate::exit::CliError;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{File, Metadata};
use std::io::{self, Seek, Write};
use std::path::Path;

/// Folders of version control, which are no part of an application.
const LEFT_OUT: [&str; 3] = [".git", ".hg", ".svn"];

/// A `tar.gz` of what is in `folder`, in a file without a name, read from its start.
pub fn folder(folder: &Path) -> Result<File, CliError> {
    pack(folder).map_err(|error| {
        CliError::failed(format!("the folder {} cannot be packed", folder.display()))
            .because(&error)
    })
}

fn pack(folder: &Path) -> io::Result<File> {
    let file = tempfile::tempfile()?;
    let mut builder = tar::Builder::new(GzEncoder::new(
        io::BufWriter::new(file),
        Compression::default(),
    ));
    builder.follow_symlinks(false);
    add(&mut builder, folder, Path::new(""))?;
    let mut file = builder
        .into_inner()?
        .finish()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

fn add<W: Write>(builder: &mut tar::Builder<W>, folder: &Path, below: &Path) -> io::Result<()> {
    let mut entries = std::fs::read_dir(folder.join(below))?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let inside = below.join(entry.file_name());
        let path = entry.path();
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = entry.metadata().map_err(named)?;
        let mut header = header(&metadata);
        if metadata.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            builder.append_data(&mut header, &inside, io::empty())?;
            add(builder, folder, &inside)?;
        } else if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(
                &mut header,
                &inside,
                std::fs::read_link(&path).map_err(named)?,
            )?;
        } else if metadata.is_file() {
            header.set_size(metadata.len());
            builder.append_data(&mut header, &inside, File::open(&path).map_err(named)?)?;
        }
    }
    Ok(())
}

/// A header without owners; modes only say whether something can be run.
fn header(metadata: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let modified = metadata
        .modified()
        .ok()
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    header.set_mtime(modified.map_or(0, |since| since.as_secs()));
    header.set_mode(if metadata.is_dir() || runnable(metadata) {
        0o755
    } else {
        0o644
    });
    header
}

#[cfg(unix)]
fn runnable(metadata: &Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0
}

#[cfg(not(unix))]
fn runnable(_metadata: &Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    #[test]
    fn the_same_folder_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/c.txt", "a.txt", ".git/config"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let bytes = || {
            let mut bytes = Vec::new();
            super::folder(folder.path())
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            bytes
        };
        let first = bytes();
        assert_eq!(first, bytes());
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(first.as_slice()));
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["a.txt", "b", "b/c.txt"]);
    }
}
