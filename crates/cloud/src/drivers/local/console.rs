//! A machine's console as bounded files: the current one and one before it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes after which the console turns to a new file; twice this is kept at most.
const HALF: u64 = 512 * 1024;

/// The writing end, held by the supervisor.
pub struct Console {
    folder: PathBuf,
    file: File,
    written: u64,
}

impl Console {
    pub fn open(folder: &Path) -> io::Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(folder.join("console.log"))?;
        let written = file.metadata()?.len();
        Ok(Self {
            folder: folder.to_owned(),
            file,
            written,
        })
    }

    /// Appends; a full file becomes the one before.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + bytes.len() as u64 > HALF {
            fs::rename(
                self.folder.join("console.log"),
                self.folder.join("console.old"),
            )?;
            *self = Self::open(&self.folder)?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// The last `most` bytes of a machine's console.
pub fn tail(folder: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut newest = last_of(&folder.join("console.log"), most)?;
    if newest.len() < most {
        let mut older = last_of(&folder.join("console.old"), most - newest.len())?;
        older.append(&mut newest);
        newest = older;
    }
    Ok(newest)
}

fn last_of(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most as u64)))?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut console = Console::open(folder.path()).unwrap();
        for i in 0..400u32 {
            let line = format!("{i:>4095}\n");
            console.append(line.as_bytes()).unwrap();
        }
        let all = tail(folder.path(), usize::MAX).unwrap();
        assert!(all.len() as u64 <= 2 * HALF && all.len() as u64 > HALF);
        assert!(all.ends_with(b" 399\n"));
        assert_eq!(tail(folder.path(), 5).unwrap(), b" 399\n");
    }
}
