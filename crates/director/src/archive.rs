//! Uploaded archives: recognised by content, every member checked, written anew as a plain tar
//! that is safe to unpack. Where the bytes are kept is `blobs`' business.

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Memory that unpacking xz may take, in bytes: enough for its strongest setting (`xz -9` needs 65
/// MiB by its manual), and a bound for archives that ask for gigabytes.
const XZ_MEMORY: u64 = 80 << 20;
/// The binary logarithm of the window that zstd may ask for: 64 MiB, that of `zstd --ultra -20`.
const ZSTD_WINDOW_LOG: u32 = 26;

/// What an archive may hold at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of all files together.
    pub unpacked: u64,
    pub members: u64,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normalised {
    pub files: u64,
    /// Of the plain tar.
    pub size: u64,
    pub sha256: String,
}

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("this is no archive that can be read: tar, tar.gz, tar.bz2, tar.xz, tar.zst and zip are taken{}", seen(.0))]
    Unknown(&'static str),
    #[error("the archive is cut short or damaged")]
    Damaged(#[source] io::Error),
    #[error("the archive holds no files")]
    Empty,
    #[error("'{path}' {problem}")]
    Member { path: String, problem: &'static str },
    #[error("the archive holds more than {members} members")]
    TooMany { members: u64 },
    #[error("the archive unpacks to more than {bytes} bytes")]
    TooLarge { bytes: u64 },
    #[error("the archive could not be written anew")]
    Write(#[source] io::Error),
}

fn seen(what: &str) -> String {
    if what.is_empty() {
        String::new()
    } else {
        format!(" (this is {what})")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Tar,
    TarGz,
    TarBz2,
    TarXz,
    TarZst,
    Zip,
}

fn sniff(head: &[u8]) -> Result<Format, ArchiveError> {
    let is = |magic: &[u8]| head.starts_with(magic);
    if is(b"PK\x03\x04") || is(b"PK\x05\x06") {
        Ok(Format::Zip)
    } else if is(&[0x1f, 0x8b]) {
        Ok(Format::TarGz)
    } else if is(b"BZh") {
        Ok(Format::TarBz2)
    } else if is(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Ok(Format::TarXz)
    } else if is(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Format::TarZst)
    } else if head.len() >= 512 && tar_header(head) {
        Ok(Format::Tar)
    } else {
        Err(ArchiveError::Unknown(if is(b"Rar!") {
            "rar"
        } else if is(b"7z\xbc\xaf") {
            "7z"
        } else if head.is_empty() {
            "an empty file"
        } else {
            ""
        }))
    }
}

/// Whether a block is a tar header: its checksum tells.
fn tar_header(block: &[u8]) -> bool {
    let Some(field) = block.get(148..156) else {
        return false;
    };
    let text: String = field.iter().map(|byte| char::from(*byte)).collect();
    let Ok(stated) = u64::from_str_radix(text.trim_matches(['\0', ' ']), 8) else {
        return false;
    };
    let sum = |(at, byte): (usize, &u8)| {
        u64::from(if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        })
    };
    block.iter().take(512).enumerate().map(sum).sum::<u64>() == stated
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    File { executable: bool },
    Folder,
    Link { target: String },
}

/// One member, with its path clean: no `.`, no `..`, no leading slash.
#[derive(Clone, Debug)]
struct Member {
    path: String,
    kind: Kind,
    size: u64,
    mtime: u64,
}

fn refuse(path: &str, problem: &'static str) -> ArchiveError {
    ArchiveError::Member {
        path: path.to_owned(),
        problem,
    }
}

/// A member's path, clean; `None` for the archive's own top.
fn clean(path: &str) -> Result<Option<String>, ArchiveError> {
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
fn check_link(path: &str, target: &str) -> Result<(), ArchiveError> {
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
fn relative(path: &str, target: &str) -> String {
    let mut climb = "../".repeat(path.split('/').count() - 1);
    climb.push_str(target);
    climb
}

/// The path that a link's target names, both checked before.
fn named(path: &str, target: &str) -> String {
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

fn walk(
    source: &Path,
    format: Format,
    bounds: Bounds,
    take: &mut dyn FnMut(Member, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let file = File::open(source).map_err(ArchiveError::Damaged)?;
    match format {
        Format::Tar => walk_tar(BufReader::new(file), bounds, take),
        Format::TarGz => walk_tar(MultiGzDecoder::new(BufReader::new(file)), bounds, take),
        Format::TarBz2 => walk_tar(MultiBzDecoder::new(BufReader::new(file)), bounds, take),
        Format::TarXz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)
                .map_err(|error| ArchiveError::Damaged(error.into()))?;
            walk_tar(
                XzDecoder::new_stream(BufReader::new(file), stream),
                bounds,
                take,
            )
        }
        Format::TarZst => {
            let mut decoder =
                zstd::stream::read::Decoder::new(file).map_err(ArchiveError::Damaged)?;
            decoder
                .window_log_max(ZSTD_WINDOW_LOG)
                .map_err(ArchiveError::Damaged)?;
            walk_tar(decoder, bounds, take)
        }
        Format::Zip => walk_zip(file, bounds, take),
    }
}

/// What the first look over an archive collects.
#[derive(Default)]
struct Survey {
    members: u64,
    files: u64,
    bytes: u64,
    /// Each path; whether it is a folder, and whether a link.
    paths: BTreeMap<String, (bool, bool)>,
    /// Each link, and the path that its target names.
    links: Vec<(String, String)>,
}

impl Survey {
    fn add(&mut self, member: &Member, bounds: Bounds) -> Result<(), ArchiveError> {
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
    fn check_parents(&self) -> Result<(), ArchiveError> {
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
    fn check_links(&self) -> Result<(), ArchiveError> {
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
    fn top(&self) -> Option<String> {
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

/// Counts and hashes what passes.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        let done = bytes.get(..count).unwrap_or(bytes);
        self.hash.update(done);
        self.size += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Gives zeros when the content ends before its stated size, and says so.
struct Exactly<'a> {
    inner: &'a mut dyn Read,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(part) = buffer.get_mut(..most) else {
            return Ok(0);
        };
        let count = self.inner.read(part)?;
        if count == 0 && self.left > 0 && !part.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads an uploaded archive and writes it to `out` as a plain tar: owner 0, modes 644 and 755,
/// times kept, a single top folder stripped.
pub fn normalise(
    source: &Path,
    out: &mut File,
    bounds: Bounds,
) -> Result<Normalised, ArchiveError> {
    let mut head = Vec::new();
    let mut file = File::open(source).map_err(ArchiveError::Damaged)?;
    Read::by_ref(&mut file)
        .take(512)
        .read_to_end(&mut head)
        .map_err(ArchiveError::Damaged)?;
    drop(file);
    let format = sniff(&head)?;
    let mut survey = Survey::default();
    walk(source, format, bounds, &mut |member, content| {
        survey.add(&member, bounds)?;
        // The stated size is not believed: the content is read whole, and must fit it.
        let mut content = Exactly {
            inner: content,
            left: member.size,
        };
        io::copy(&mut content, &mut io::sink()).map_err(ArchiveError::Damaged)?;
        Ok(())
    })?;
    if survey.files == 0 {
        return Err(ArchiveError::Empty);
    }
    survey.check_parents()?;
    survey.check_links()?;
    let strip = survey.top();
    out.seek(SeekFrom::Start(0)).map_err(ArchiveError::Write)?;
    let sink = Hashing {
        inner: BufWriter::new(out),
        hash: Sha256::new(),
        size: 0,
    };
    let mut builder = tar::Builder::new(sink);
    walk(source, format, bounds, &mut |member, content| {
        let path = match &strip {
            None => member.path.as_str(),
            Some(top) => match member.path.get(top.len() + 1..) {
                Some(path) => path,
                None => return Ok(()),
            },
        };
        append(&mut builder, path, &member, strip.is_some(), content)
    })?;
    let mut sink = builder.into_inner().map_err(ArchiveError::Write)?;
    sink.flush().map_err(ArchiveError::Write)?;
    Ok(Normalised {
        files: survey.files,
        size: sink.size,
        sha256: hex::encode(sink.hash.finalize()),
    })
}

fn append(
    builder: &mut tar::Builder<impl Write>,
    path: &str,
    member: &Member,
    stripped: bool,
    content: &mut dyn Read,
) -> Result<(), ArchiveError> {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(member.mtime);
    header.set_size(member.size);
    match &member.kind {
        Kind::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            builder.append_data(&mut header, format!("{path}/"), io::empty())
        }
        Kind::Link { target } => {
            // With the top folder gone, a link may climb one step less.
            if stripped {
                check_link(path, target)?;
            }
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            builder.append_link(&mut header, path, target)
        }
        Kind::File { executable } => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(if *executable { 0o755 } else { 0o644 });
            let content = Exactly {
                inner: content,
                left: member.size,
            };
            builder.append_data(&mut header, path, content)
        }
    }
    .map_err(ArchiveError::Write)
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
