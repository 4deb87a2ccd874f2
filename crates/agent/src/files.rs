//! Small state files: read whole, replaced whole, with their format's version.

use crate::ShellError;
use conpaas_model::protocol::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    v: u32,
    content: T,
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> ShellError + 'a {
    move |source| ShellError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The data a machine got at birth.
pub fn load_context(path: &Path) -> Result<Context, ShellError> {
    let text = std::fs::read(path).map_err(failed("read", path))?;
    serde_json::from_slice(&text).map_err(|source| ShellError::Malformed {
        path: path.to_owned(),
        source,
    })
}

/// What was saved, if it is there, whole and of a format this build knows.
pub fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = std::fs::read(path).ok()?;
    match serde_json::from_slice::<Kept<T>>(&text) {
        Ok(kept) if kept.v == FORMAT => Some(kept.content),
        _ => {
            tracing::warn!(path = %path.display(), "a state file cannot be understood and is left aside");
            None
        }
    }
}

/// Saves in mode 0600; after a crash either the old or the new content is there.
pub fn save<T: Serialize>(path: &Path, content: &T) -> Result<(), ShellError> {
    let text = serde_json::to_vec(&Kept { v: FORMAT, content }).map_err(|source| {
        ShellError::Malformed {
            path: path.to_owned(),
            source,
        }
    })?;
    let draft = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(failed("write", &draft))?;
    file.write_all(&text)
        .and_then(|()| file.sync_data())
        .map_err(failed("write", &draft))?;
    std::fs::rename(&draft, path).map_err(failed("replace", path))
}
