//! Reading archives member by member.

use super::format::Format;
use super::rules::{check_link, clean, relative};
use super::{ArchiveError, Bounds, Kind, Member, refuse};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// Gives every member of a tar to `take`, its content at hand.
fn walk_tar(
    reader: impl Read,
    bounds: Bounds,
    take: &mut dyn FnMut(Member, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    // One member's content may be as large as everything: bounded here, so that a lying header
    // cannot make us read on for ever.
    let most = bounds
        .unpacked
        .saturating_add(bounds.members.saturating_mul(2048))
        .saturating_add(1 << 20);
    let mut archive = tar::Archive::new(reader.take(most));
    for entry in archive.entries().map_err(ArchiveError::Damaged)? {
        let mut entry = entry.map_err(ArchiveError::Damaged)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
        let raw = text(&entry.path_bytes());
        let raw = raw.map_err(|error| refuse(&error.to_string(), "is not named in UTF-8"))?;
        let Some(path) = clean(&raw)? else { continue };
        let header = entry.header();
        let mode = header.mode().map_err(ArchiveError::Damaged)?;
        let link = || -> Result<String, ArchiveError> {
            let name = entry.link_name_bytes().unwrap_or_default();
            text(&name).map_err(|_| refuse(&path, "is a link that is not named in UTF-8"))
        };
        let kind = match header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                if mode & 0o6000 != 0 {
                    return Err(refuse(&path, "is set-uid or set-gid"));
                }
                Kind::File {
                    executable: mode & 0o111 != 0,
                }
            }
            tar::EntryType::Directory => Kind::Folder,
            tar::EntryType::Symlink => {
                let target = link()?;
                check_link(&path, &target)?;
                Kind::Link { target }
            }
            tar::EntryType::Link => {
                let named = link()?;
                let target = clean(&named)?.ok_or_else(|| refuse(&path, "is a link to nothing"))?;
                Kind::Link {
                    target: relative(&path, &target),
                }
            }
            tar::EntryType::XGlobalHeader => continue,
            tar::EntryType::Block | tar::EntryType::Char => {
                return Err(refuse(&path, "is a device"));
            }
            tar::EntryType::Fifo => return Err(refuse(&path, "is a named pipe")),
            _ => return Err(refuse(&path, "is of a kind that is not taken")),
        };
        let size = if matches!(kind, Kind::File { .. }) {
            entry.size()
        } else {
            0
        };
        let mtime = header.mtime().unwrap_or(0);
        take(
            Member {
                path,
                kind,
                size,
                mtime,
            },
            &mut entry,
        )?;
    }
    Ok(())
}

fn zip_error(error: zip::result::ZipError) -> ArchiveError {
    ArchiveError::Damaged(io::Error::other(error))
}

/// Gives every member of a zip to `take`.
fn walk_zip(
    file: File,
    bounds: Bounds,
    take: &mut dyn FnMut(Member, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(zip_error)?;
    if archive.len() as u64 > bounds.members {
        return Err(ArchiveError::TooMany {
            members: bounds.members,
        });
    }
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(zip_error)?;
        let raw = entry.name().map_err(zip_error)?.replace('\\', "/");
        let Some(path) = clean(&raw)? else { continue };
        let mode = entry.unix_mode().unwrap_or(0o644);
        let (kind, size) = match mode & 0o170_000 {
            0o120_000 => {
                let mut target = String::new();
                let read = (&mut entry).take(4096).read_to_string(&mut target);
                read.map_err(ArchiveError::Damaged)?;
                check_link(&path, &target)?;
                (Kind::Link { target }, 0)
            }
            _ if raw.ends_with('/') => (Kind::Folder, 0),
            0o040_000 => (Kind::Folder, 0),
            0 | 0o100_000 => {
                if mode & 0o6000 != 0 {
                    return Err(refuse(&path, "is set-uid or set-gid"));
                }
                (
                    Kind::File {
                        executable: mode & 0o111 != 0,
                    },
                    entry.size(),
                )
            }
            _ => return Err(refuse(&path, "is a device or a pipe")),
        };
        let mtime = entry.last_modified().and_then(zip_time).unwrap_or(0);
        take(
            Member {
                path,
                kind,
                size,
                mtime,
            },
            &mut entry,
        )?;
    }
    Ok(())
}

/// Zip knows no time zone: taken as UTC.
fn zip_time(time: zip::DateTime) -> Option<u64> {
    let small = |value: u8| i8::try_from(value).ok();
    let civil = jiff::civil::DateTime::new(
        i16::try_from(time.year()).ok()?,
        small(time.month())?,
        small(time.day())?,
        small(time.hour())?,
        small(time.minute())?,
        small(time.second().min(59))?,
        0,
    )
    .ok()?;
    let at = jiff::tz::TimeZone::UTC
        .to_timestamp(civil)
        .ok()?
        .as_second();
    u64::try_from(at).ok()
}

pub(super) fn walk(
    source: &Path,
    format: Format,
    bounds: Bounds,
    take: &mut dyn FnMut(Member, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let file = File::open(source).map_err(ArchiveError::Damaged)?;
    match format {
        Format::Zip => walk_zip(file, bounds, take),
        format => walk_tar(format.plain(file)?, bounds, take),
    }
}
