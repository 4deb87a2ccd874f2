//! What can go wrong with a cloud, in words that name the cure where there is one.

use crate::types::{CloudMachineId, Resources};
use std::path::{Path, PathBuf};

/// Why a cloud did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The machine does not fit; nothing was made.
    #[error("the machine needs {asked}, but this cloud has only {free} free")]
    NoCapacity { asked: Resources, free: Resources },
    /// No such size of machine here.
    #[error("there is no instance type '{name}' here; choose one of: {known}")]
    UnknownInstanceType { name: String, known: String },
    /// The request can never work as it stands.
    #[error("{what}")]
    Invalid { what: String },
    /// No machine of this id carries our tags.
    #[error("there is no machine {id}")]
    NotFound { id: CloudMachineId },
    /// The network lives in its machines, and none is running.
    #[error("the network of {network} has no running machine, so there is nothing to enter")]
    NoNetwork { network: String },
    /// This computer cannot make machines as it is set up.
    #[error("this computer cannot make machines: {what}. {cure}")]
    Unfit { what: String, cure: String },
    /// The machine image cannot be used.
    #[error("the machine image {}: {what}. {cure}", path.display())]
    Image {
        path: PathBuf,
        what: String,
        cure: String,
    },
    /// One step of the work failed.
    #[error("could not {step}: {detail}")]
    Step { step: String, detail: String },
    /// The cloud did not answer or refused for now; trying again may help.
    #[error("the cloud is not available now: {what}")]
    Unavailable { what: String },
    /// A file or folder of the driver.
    #[error("could not {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl CloudError {
    /// Wraps an I/O error with what was being done to which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| CloudError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
