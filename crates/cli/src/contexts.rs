//! Contexts: which Directors this person knows, by name, with the pinned fingerprint and where
//! the token is. Kept in the person's configuration folder, readable by nobody else.

use crate::exit::CliError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One Director as this person knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub url: String,
    pub fingerprint: String,
    /// Holds the token; absent until someone logged in.
    pub token_file: PathBuf,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contexts {
    /// The one that is used when none is named.
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// Where they are kept.
#[derive(Clone, Debug)]
pub struct ContextStore {
    folder: PathBuf,
}

impl ContextStore {
    /// The person's own: `$XDG_CONFIG_HOME/conpaas`, by default `~/.config/conpaas`.
    pub fn of_person() -> Result<Self, CliError> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let folder = absolute("XDG_CONFIG_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".config")))
            .ok_or_else(|| {
                CliError::usage("there is no folder for configuration")
                    .hint("set HOME or XDG_CONFIG_HOME")
            })?
            .join("conpaas");
        Ok(Self { folder })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join("contexts.toml")
    }

    /// Where a context's token belongs.
    pub fn token_file(&self, name: &str) -> PathBuf {
        self.folder.join("tokens").join(name)
    }

    /// What is known; nothing at first.
    pub fn load(&self) -> Result<Contexts, CliError> {
        let path = self.path();
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                CliError::failed(format!("{} is no list of contexts", path.display()))
                    .because(&error)
                    .hint("mend it, or remove it and log in again: conpaas login URL")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
            Err(error) => {
                Err(CliError::failed(format!("{} cannot be read", path.display())).because(&error))
            }
        }
    }

    pub fn save(&self, contexts: &Contexts) -> Result<(), CliError> {
        let text = toml::to_string_pretty(contexts).map_err(|error| {
            CliError::failed("the contexts cannot be written down").because(&error)
        })?;
        write_private(&self.path(), text.as_bytes())
    }

    /// Notes a Director with its token and makes it the current one. The token goes to
    /// `token_file`; by default to where this context's was, or to the person's own folder.
    pub fn remember(
        &self,
        name: &str,
        url: &str,
        fingerprint: &str,
        token: &str,
        token_file: Option<PathBuf>,
    ) -> Result<(), CliError> {
        check_name(name).map_err(CliError::usage)?;
        let mut contexts = self.load()?;
        let before = contexts.contexts.get(name).filter(|known| known.url == url);
        let token_file = token_file
            .or_else(|| before.map(|known| known.token_file.clone()))
            .unwrap_or_else(|| self.token_file(name));
        write_private(&token_file, token.as_bytes())?;
        contexts.contexts.insert(
            name.to_owned(),
            Context {
                url: url.to_owned(),
                fingerprint: fingerprint.to_owned(),
                token_file,
            },
        );
        contexts.current = Some(name.to_owned());
        self.save(&contexts)
    }

    /// Forgets a context and its token; true if there was one.
    pub fn forget(&self, name: &str) -> Result<bool, CliError> {
        let Some(context) = self.let_go(name)? else {
            return Ok(false);
        };
        remove_if_there(&context.token_file)?;
        self.tidy();
        Ok(true)
    }

    /// Forgets a context; its token stays where it is. Gives what there was.
    pub fn let_go(&self, name: &str) -> Result<Option<Context>, CliError> {
        let mut contexts = self.load()?;
        let Some(context) = contexts.contexts.remove(name) else {
            return Ok(None);
        };
        if contexts.current.as_deref() == Some(name) {
            contexts.current = None;
        }
        if contexts.contexts.is_empty() {
            remove_if_there(&self.path())?;
        } else {
            self.save(&contexts)?;
        }
        self.tidy();
        Ok(Some(context))
    }

    /// Nothing that is empty stays in the person's configuration.
    fn tidy(&self) {
        // Folders that still hold something refuse, and may stay.
        let _ = std::fs::remove_dir(self.folder.join("tokens"));
        let _ = std::fs::remove_dir(&self.folder);
    }
}

impl Contexts {
    /// The context whose token lies in this file.
    pub fn with_token_file(&self, token_file: &Path) -> Option<&str> {
        self.contexts
            .iter()
            .find(|(_, context)| context.token_file == token_file)
            .map(|(name, _)| name.as_str())
    }

    /// `wanted` if no context has that name, else the first of `wanted-2`, `wanted-3` that is free.
    pub fn free_name(&self, wanted: &str) -> String {
        if !self.contexts.contains_key(wanted) {
            return wanted.to_owned();
        }
        (2..)
            .map(|number: u32| format!("{wanted}-{number}"))
            .find(|name| !self.contexts.contains_key(name))
            .unwrap_or_else(|| wanted.to_owned())
    }
}

impl Context {
    pub fn token(&self) -> Result<Option<String>, CliError> {
        match std::fs::read_to_string(&self.token_file) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|token| !token.is_empty())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CliError::failed(format!(
                "{} cannot be read",
                self.token_file.display()
            ))
            .because(&error)),
        }
    }
}

/// Names become file names.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = !name.is_empty()
        && name.len() <= 60
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if good {
        Ok(())
    } else {
        Err(format!(
            "'{name}' cannot name a context: use letters, digits, '-', '_' and '.'"
        ))
    }
}

pub fn remove_if_there(path: &Path) -> Result<(), CliError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::failed(format!("{} cannot be removed", path.display())).because(&error))
        }
        _ => Ok(()),
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed(format!("{} cannot be written", path.display())).because(&error)
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    make_private_folder(folder).map_err(failed)?;
    // Temporary files are made with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn make_private_folder(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}
