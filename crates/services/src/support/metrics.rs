//! Reading what daemons log, line by line, for figures. What a line means is the role's business.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most bytes of a log in one look; a daemon that writes faster is not counted whole.
const MOST: u64 = 4 << 20;

/// Microseconds since 1970: names a life that begins now.
pub fn since_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

/// Follows a log from its present end, over files that are set aside or written anew.
pub struct Tail {
    path: PathBuf,
    /// Number of the file, and how far it was read.
    at: Option<(u64, u64)>,
}

impl Tail {
    /// What is in the log now was written to others.
    pub fn of(path: PathBuf) -> Self {
        let at = std::fs::metadata(&path).ok();
        Self {
            at: at.map(|found| (found.ino(), found.len())),
            path,
        }
    }

    /// Gives each whole line that was written since the last look.
    pub fn look(&mut self, mut line: impl FnMut(&str)) {
        let aside = PathBuf::from(format!("{}.1", self.path.display()));
        // The end of a file that was set aside meanwhile comes first.
        if let Some((known, _)) = self.at
            && std::fs::metadata(&self.path).is_ok_and(|found| found.ino() != known)
        {
            let _ = self.read(&aside, Some(known), &mut line);
            self.at = None;
        }
        let path = self.path.clone();
        // A log that cannot be read now is read at the next look.
        let _ = self.read(&path, None, &mut line);
    }

    fn read(
        &mut self,
        path: &std::path::Path,
        only: Option<u64>,
        line: &mut impl FnMut(&str),
    ) -> io::Result<()> {
        let mut file = File::open(path)?;
        let found = file.metadata()?;
        let number = found.ino();
        if only.is_some_and(|only| only != number) {
            return Ok(());
        }
        let from = match self.at {
            Some((known, offset)) if known == number && offset <= found.len() => offset,
            _ => 0,
        };
        let skipped = (found.len() - from).saturating_sub(MOST);
        file.seek(SeekFrom::Start(from + skipped))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |end| end + 1);
        for text in String::from_utf8_lossy(&bytes[..whole]).lines() {
            line(text);
        }
        self.at = Some((number, from + skipped + whole as u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(tail: &mut Tail) -> Vec<String> {
        let mut all = Vec::new();
        tail.look(|line| all.push(line.to_owned()));
        all
    }

    #[test]
    fn each_line_is_seen_once_over_files_that_are_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, "old\n").unwrap();
        let mut tail = Tail::of(path.clone());
        assert!(seen(&mut tail).is_empty());
        std::fs::write(&path, "old\none\ntw").unwrap();
        assert_eq!(seen(&mut tail), ["one"]);
        std::fs::write(&path, "old\none\ntwo\nthree\n").unwrap();
        std::fs::rename(&path, folder.path().join("a.log.1")).unwrap();
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(seen(&mut tail), ["two", "three", "four"]);
        assert!(seen(&mut tail).is_empty());
        let mut fresh = Tail::of(folder.path().join("b.log"));
        std::fs::write(folder.path().join("b.log"), "first\n").unwrap();
        assert_eq!(seen(&mut fresh), ["first"]);
    }
}
