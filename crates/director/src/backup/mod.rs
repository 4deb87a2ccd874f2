//! Backups of everything the Director keeps, as one archive, and how one becomes the state folder
//! again. They are made and restored by who may read the state folder, never over the API: keys are
//! in them. What numbers after a restore must outrank is in `outrank`.

mod outrank;
mod restore;
mod write;

#[cfg(test)]
mod tests;

pub use restore::{Restored, restore};
pub use write::{Taken, Target, take};

use crate::error::StartError;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// How archives of this program are laid out.
pub const FORMAT: u32 = 1;
/// The member that says what the others are; it comes first.
const MANIFEST: &str = "manifest.json";
const STORE: &str = "store.db";
const BLOBS: &str = "blobs";
/// Folders of keys, certificates and what goes with them, taken whole.
const FOLDERS: [&str; 2] = ["pki", "api"];
/// Single files that are taken if they are there.
const FILES: [&str; 1] = [crate::director::PASSWORD_FILE];

/// What an archive is, and what has to be in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// Schema of the store in it.
    pub schema: i64,
    pub installation: String,
    pub incarnation: u64,
    pub taken_at: String,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Relative to the Director's folder.
    pub name: String,
    pub size: u64,
    /// In hex.
    pub sha256: String,
}

/// What keeps a backup from being taken or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} holds no Director's store", folder.display())]
    NoStore { folder: PathBuf },
    #[error("another backup of {} is being taken", folder.display())]
    Busy { folder: PathBuf },
    #[error("{} is there already", path.display())]
    Exists { path: PathBuf },
    #[error("the disk of {} is full", path.display())]
    DiskFull { path: PathBuf, source: io::Error },
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the store cannot be {action}")]
    Store {
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the code version with hash {hash} is missing or damaged in the Director's folder")]
    Blob { hash: String },
    #[error("{} is no backup: {why}", path.display())]
    NotABackup { path: PathBuf, why: String },
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(
        "the backup was written by version {program} in format {found}, and this program knows up to {FORMAT}"
    )]
    NewerFormat { program: String, found: u32 },
    #[error(
        "the backup was written by version {program} with schema {found}, newer than this program knows ({known})"
    )]
    NewerSchema {
        program: String,
        found: i64,
        known: i64,
    },
    #[error(
        "the backup is of the installation {found}, and {} is of {here}",
        folder.display()
    )]
    OtherInstallation {
        found: String,
        here: String,
        folder: PathBuf,
    },
    #[error("a Director runs on {}", folder.display())]
    Running { folder: PathBuf },
    #[error("the folder {} cannot be used", folder.display())]
    Folder {
        folder: PathBuf,
        source: Box<StartError>,
    },
}

impl BackupError {
    /// The next thing to do.
    pub fn hint(&self) -> String {
        match self {
            Self::NoStore { .. } => "say where the installation is: --state FOLDER".to_owned(),
            Self::Busy { .. } => "wait for it, then try again".to_owned(),
            Self::Exists { .. } => "name another file, or overwrite it: --force".to_owned(),
            Self::DiskFull { .. } => {
                "make room there, or name a file on another disk; nothing was changed".to_owned()
            }
            Self::File { .. } | Self::Store { .. } | Self::Folder { .. } => {
                "look whether this user may read and write there; nothing was changed".to_owned()
            }
            Self::Blob { .. } => {
                "restore that file from another backup, or upload the code anew and delete the damaged version: conpaas code list".to_owned()
            }
            Self::NotABackup { .. } => {
                "name an archive that `conpaas director backup` wrote".to_owned()
            }
            Self::Damaged { .. } => {
                "fetch the archive again, or take an older one; nothing was changed".to_owned()
            }
            Self::NewerFormat { program, .. } | Self::NewerSchema { program, .. } => {
                format!("restore it with conpaas {program} or newer; nothing was changed")
            }
            Self::OtherInstallation { .. } => {
                "restore it into a folder of its own: --state FOLDER".to_owned()
            }
            Self::Running { .. } => {
                "end it first, machines and edge go on: conpaas nutshell down --director".to_owned()
            }
        }
    }

    /// A failed action on a file, told apart from a full disk.
    fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path, source }
            }
            _ => Self::File {
                action,
                path,
                source,
            },
        }
    }

    fn store<E>(action: &'static str) -> impl Fn(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Store {
            action,
            source: source.into(),
        }
    }
}
