//! What daemons wrote, kept where it outlives their machines: one file per node and source, each
//! line with the moment it arrived. How lines travel is `machines::intake`'s business.

mod status;

pub use status::Statuses;

use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that grows beyond this is set aside, in place of the one set aside before.
const FILE_LIMIT: u64 = 4 << 20;
/// Sources of one node; a node cannot fill a folder with names.
const MOST_SOURCES: usize = 64;
/// How much of a file's end is looked at first, and how much more each time.
const WINDOW: u64 = 64 << 10;
/// Microseconds since 1970 in a line's beginning: fixed, so that it can be cut off.
const STAMP_DIGITS: usize = 16;

/// Where a source has been read up to, on its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Names the file on the node; another name is another file.
    pub file: String,
    pub offset: u64,
}

/// One source of one node.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    pub application: &'a str,
    pub service: &'a str,
    pub node: u64,
    /// `ROLE-NAME`.
    pub name: &'a str,
}

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub node: Option<u64>,
    pub role: Option<String>,
    /// The newest of each source.
    pub lines: usize,
    /// Later than this, in microseconds since 1970.
    pub after: u64,
    pub matching: Option<Regex>,
    pub statuses: Option<Statuses>,
}

/// A line that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Microseconds since 1970 when it arrived, each only once.
    pub at: u64,
    pub node: u64,
    pub source: String,
    pub text: String,
}

/// Lines, and from where to go on.
#[derive(Debug)]
pub struct Lines {
    /// In the order of their arrival.
    pub lines: Vec<Line>,
    /// No line that arrived up to here is missing: pass it as `after`.
    pub up_to: u64,
}

/// The folder of all logs of an installation.
#[derive(Debug)]
pub struct LogStore {
    folder: PathBuf,
    /// The stamp that was given last. Held while lines are written, so that whoever has read it
    /// finds every line up to it.
    last: Mutex<u64>,
}

impl LogStore {
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            last: Mutex::new(0),
        }
    }

    fn service(&self, application: &str, service: &str) -> PathBuf {
        self.folder.join(application).join(service)
    }

    /// Takes a piece of a source in; what was taken before is not taken twice. An empty piece
    /// asks for the position only. Blocks.
    ///
    /// # Errors
    /// When the disk does not take it, or the node has too many sources.
    pub fn append(&self, source: &Source<'_>, at: &Position, bytes: &[u8]) -> io::Result<Position> {
        let folder = self
            .service(source.application, source.service)
            .join(source.node.to_string());
        let noted = folder.join(format!("{}.position", source.name));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Option<Position> = match std::fs::read(&noted) {
            Ok(text) => serde_json::from_slice(&text).ok(),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(known.unwrap_or_default());
        }
        let end = at.offset.saturating_add(bytes.len() as u64);
        let fresh = match &known {
            Some(known) if known.file == at.file => {
                let have = known.offset.saturating_sub(at.offset);
                usize::try_from(have)
                    .ok()
                    .and_then(|have| bytes.get(have..))
                    .unwrap_or_default()
            }
            _ => bytes,
        };
        if fresh.is_empty() {
            return Ok(known.unwrap_or_default());
        }
        make_folder(&folder)?;
        if known.is_none() && std::fs::read_dir(&folder)?.count() >= MOST_SOURCES * 3 {
            return Err(io::Error::other("this node has too many logs"));
        }
        let path = folder.join(format!("{}.log", source.name));
        let mut file = open(&path)?;
        if file.metadata()?.len() > FILE_LIMIT {
            std::fs::rename(&path, aside(&path))?;
            file = open(&path)?;
        }
        let mut text = Vec::with_capacity(fresh.len() + fresh.len() / 4);
        for line in fresh
            .strip_suffix(b"\n")
            .unwrap_or(fresh)
            .split(|b| *b == b'\n')
        {
            *last = now().max(*last + 1);
            write!(text, "{:0STAMP_DIGITS$} ", *last)?;
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        file.write_all(&text)?;
        let position = Position {
            file: at.file.clone(),
            offset: end,
        };
        let mut draft = tempfile::NamedTempFile::new_in(&folder)?;
        serde_json::to_writer(&mut draft, &position)?;
        draft.persist(&noted).map_err(|error| error.error)?;
        Ok(position)
    }

    /// The lines of a service that are wanted. Blocks.
    ///
    /// # Errors
    /// When a log that is there cannot be read.
    pub fn read(&self, application: &str, service: &str, wanted: &Wanted) -> io::Result<Lines> {
        let up_to = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // After a restart nothing has been stamped yet: what is there arrived before now.
        let up_to = if up_to == 0 { now() } else { up_to };
        let mut lines = Vec::new();
        for node in self.nodes(application, service)? {
            if wanted.node.is_some_and(|wanted| wanted != node) {
                continue;
            }
            let folder = self.service(application, service).join(node.to_string());
            for entry in std::fs::read_dir(&folder)? {
                let name = entry?.file_name();
                let Some(source) = name.to_str().and_then(|name| name.strip_suffix(".log")) else {
                    continue;
                };
                let of_role = |role: &String| source.starts_with(&format!("{role}-"));
                if wanted.role.as_ref().is_none_or(of_role) {
                    let path = folder.join(&name);
                    read_source(&path, node, source, wanted, up_to, &mut lines)?;
                }
            }
        }
        lines.sort_by_key(|line| line.at);
        Ok(Lines { lines, up_to })
    }

    /// Numbers of the nodes of a service that have logs.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn nodes(&self, application: &str, service: &str) -> io::Result<Vec<u64>> {
        let mut nodes = Vec::new();
        for entry in list(&self.service(application, service))? {
            if let Ok(number) = entry.file_name().to_string_lossy().parse() {
                nodes.push(number);
            }
        }
        nodes.sort_unstable();
        Ok(nodes)
    }

    /// Removes the logs of applications that `keep` does not know, and the oldest ones of
    /// applications that have more than `most` bytes. Blocks.
    ///
    /// # Errors
    /// When the disk does not do it.
    pub fn clean(&self, keep: &dyn Fn(&str) -> bool, most: u64) -> io::Result<()> {
        for entry in list(&self.folder)? {
            if !keep(&entry.file_name().to_string_lossy()) {
                std::fs::remove_dir_all(entry.path())?;
                continue;
            }
            let mut files = Vec::new();
            collect(&entry.path(), &mut files)?;
            files.sort();
            let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
            for (_, size, path) in files {
                if total <= most {
                    break;
                }
                std::fs::remove_file(path)?;
                total -= size;
            }
        }
        Ok(())
    }
}

/// Microseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".1");
    aside.into()
}

/// What a folder holds; nothing when it is not there.
fn list(folder: &Path) -> io::Result<Vec<std::fs::DirEntry>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Logs below a folder, with what to sort the oldest first by.
fn collect(folder: &Path, files: &mut Vec<(SystemTime, u64, PathBuf)>) -> io::Result<()> {
    for entry in list(folder)? {
        let found = entry.metadata()?;
        if found.is_dir() {
            collect(&entry.path(), files)?;
        } else if !entry.file_name().to_string_lossy().ends_with(".position") {
            files.push((found.modified()?, found.len(), entry.path()));
        }
    }
    Ok(())
}

/// The newest lines of one source, those set aside included.
fn read_source(
    path: &Path,
    node: u64,
    source: &str,
    wanted: &Wanted,
    up_to: u64,
    into: &mut Vec<Line>,
) -> io::Result<()> {
    let mut found: VecDeque<Line> = VecDeque::new();
    for path in [path.to_owned(), aside(path)] {
        let enough = read_file(
            &path,
            wanted,
            up_to,
            wanted.lines - found.len(),
            |at, text| Line {
                at,
                node,
                source: source.to_owned(),
                text: text.to_owned(),
            },
        )?;
        let (mut newest, went_back) = enough;
        newest.extend(found);
        found = newest;
        if !went_back || found.len() >= wanted.lines {
            break;
        }
    }
    into.extend(found);
    Ok(())
}

/// The newest lines of a file; and whether older ones could still be wanted.
fn read_file(
    path: &Path,
    wanted: &Wanted,
    up_to: u64,
    most: usize,
    line: impl Fn(u64, &str) -> Line,
) -> io::Result<(VecDeque<Line>, bool)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((VecDeque::new(), false)),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    let mut window = WINDOW;
    loop {
        let from = size.saturating_sub(window);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(window)
            .read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut found = VecDeque::new();
        // The window begins in the middle of a line, unless the file begins there.
        let mut oldest = u64::MAX;
        for kept in text.lines().skip(usize::from(from > 0)) {
            let Some((at, said)) = kept
                .split_at_checked(STAMP_DIGITS)
                .and_then(|(at, rest)| Some((at.parse().ok()?, rest.strip_prefix(' ')?)))
            else {
                continue;
            };
            oldest = oldest.min(at);
            let fits = wanted.matching.as_ref().is_none_or(|m| m.is_match(said))
                && wanted.statuses.as_ref().is_none_or(|s| s.of(said));
            if at > wanted.after && at <= up_to && fits {
                found.push_back(line(at, said));
                if found.len() > most {
                    found.pop_front();
                }
            }
        }
        let all_seen = oldest <= wanted.after;
        if from == 0 || all_seen || found.len() >= most {
            return Ok((found, !all_seen));
        }
        window = window.saturating_mul(8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(node: u64, name: &str) -> Source<'_> {
        Source {
            application: "app-1",
            service: "svc-1",
            node,
            name,
        }
    }

    fn at(file: &str, offset: u64) -> Position {
        Position {
            file: file.to_owned(),
            offset,
        }
    }

    fn texts(store: &LogStore, wanted: &Wanted) -> Vec<String> {
        let found = store.read("app-1", "svc-1", wanted).unwrap();
        found.lines.into_iter().map(|line| line.text).collect()
    }

    fn all() -> Wanted {
        Wanted {
            lines: 100,
            ..Wanted::default()
        }
    }

    #[test]
    fn a_piece_that_comes_again_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::new(folder.path().to_owned());
        let web = source(1, "web-access");
        assert_eq!(store.append(&web, &at("a", 0), b"").unwrap(), at("", 0));
        let end = store.append(&web, &at("a", 0), b"one\ntwo\n").unwrap();
        assert_eq!(end, at("a", 8));
        assert_eq!(store.append(&web, &at("a", 0), b"one\ntwo\n").unwrap(), end);
        let end = store.append(&web, &at("a", 4), b"two\nthree\n").unwrap();
        assert_eq!(end, at("a", 14));
        // Another file begins anew; a question changes nothing.
        assert_eq!(store.append(&web, &at("b", 0), b"").unwrap(), end);
        store.append(&web, &at("b", 0), b"four\n").unwrap();
        assert_eq!(texts(&store, &all()), ["one", "two", "three", "four"]);
    }

    #[test]
    fn lines_come_in_order_by_node_role_time_and_match() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::new(folder.path().to_owned());
        store
            .append(&source(1, "web-access"), &at("a", 0), b"GET /1 200\n")
            .unwrap();
        store
            .append(&source(2, "proxy-main"), &at("b", 0), b"up\n")
            .unwrap();
        let seen = store.read("app-1", "svc-1", &all()).unwrap().up_to;
        store
            .append(&source(1, "web-access"), &at("a", 11), b"GET /2 500\n")
            .unwrap();
        assert_eq!(texts(&store, &all()), ["GET /1 200", "up", "GET /2 500"]);
        let role = Wanted {
            role: Some("web".to_owned()),
            ..all()
        };
        assert_eq!(texts(&store, &role), ["GET /1 200", "GET /2 500"]);
        let node = Wanted {
            node: Some(2),
            ..all()
        };
        assert_eq!(texts(&store, &node), ["up"]);
        let later = Wanted {
            after: seen,
            ..all()
        };
        assert_eq!(texts(&store, &later), ["GET /2 500"]);
        let one = Wanted { lines: 1, ..role };
        assert_eq!(texts(&store, &one), ["GET /2 500"]);
        let none = Wanted { lines: 0, ..all() };
        let found = store.read("app-1", "svc-1", &none).unwrap();
        assert!(
            found.lines.is_empty() && found.up_to > seen,
            "{}",
            found.up_to
        );
        let bad = Wanted {
            matching: Some(Regex::new(" 5..").unwrap()),
            ..all()
        };
        assert_eq!(texts(&store, &bad), ["GET /2 500"]);
        assert_eq!(store.nodes("app-1", "svc-1").unwrap(), [1, 2]);
        assert!(
            texts(
                &store,
                &Wanted {
                    node: Some(9),
                    ..all()
                }
            )
            .is_empty()
        );
    }

    #[test]
    fn a_log_is_bounded_and_an_old_one_is_searched_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::new(folder.path().to_owned());
        let web = source(1, "web-access");
        let piece: Vec<u8> = (0..1000)
            .flat_map(|n| format!("line {n} {}\n", "x".repeat(200)).into_bytes())
            .collect();
        store.append(&web, &at("a", 0), b"the first\n").unwrap();
        let mut end = 10;
        for _ in 0..24 {
            end = store.append(&web, &at("a", end), &piece).unwrap().offset;
        }
        let one = Wanted {
            matching: Some(Regex::new("^the first$").unwrap()),
            ..all()
        };
        assert_eq!(texts(&store, &one), ["the first"], "set aside, and found");
        for _ in 0..60 {
            end = store.append(&web, &at("a", end), &piece).unwrap().offset;
        }
        assert!(texts(&store, &one).is_empty());
        let mut files = Vec::new();
        collect(folder.path(), &mut files).unwrap();
        let total: u64 = files.iter().map(|(_, size, _)| size).sum();
        assert!(total < 2 * (FILE_LIMIT + (1 << 20)), "{total}");
        store.clean(&|_| true, 5 << 20).unwrap();
        let mut files = Vec::new();
        collect(folder.path(), &mut files).unwrap();
        assert_eq!(files.len(), 1);
        store.clean(&|_| false, u64::MAX).unwrap();
        assert!(store.nodes("app-1", "svc-1").unwrap().is_empty());
    }
}
