//! Uploaded archives: recognised by content, every member checked, written anew as a plain tar
//! that is safe to unpack. Where the bytes are kept is `blobs`' business.

mod format;
mod rules;
#[cfg(test)]
mod tests;
mod walk;

use format::sniff;
use rules::{Survey, check_link};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use walk::walk;

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
