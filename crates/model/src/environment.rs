//! What code of a release is given beside its settings: variables, and secrets by name and
//! version. The rules for names and sizes are here; values of secrets are never in these types,
//! and where they are kept is the Director's and the agents' business.

use crate::ids::SecretVersion;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Longest name of a variable or a secret.
pub const MAX_NAME: usize = 100;
/// Most bytes of one value.
pub const MAX_VALUE: usize = 64 * 1024;
/// Most variables and secrets of one release together.
pub const MAX_COUNT: usize = 200;
/// Most bytes of all variables of one release, names included: they travel in every level.
pub const MAX_VARIABLES: usize = 64 * 1024;
/// Most secrets of one release. With the bound of one value it keeps what nodes hold in memory
/// bounded.
pub const MAX_SECRETS: usize = 50;

/// Names that are ours, or that change how processes themselves work.
const RESERVED_PREFIXES: [&str; 4] = ["CONPAAS_", "LD_", "HTTP_", "FCGI_"];
const RESERVED: [&str; 11] = [
    "BASH_ENV", "ENV", "HOME", "IFS", "LOGNAME", "OLDPWD", "PATH", "PWD", "SHELL", "TMPDIR", "USER",
];

/// The environment of a release. A name is either a variable or a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Environment {
    /// Values by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// Versions by name; agents ask the Director for the values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretVersion>,
}

/// What is wrong with a name, a value, or all of them together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    #[error(
        "'{name}' cannot be a name: use 1 to {MAX_NAME} capital letters, digits and '_', starting with a letter or '_'"
    )]
    Name { name: String },
    #[error("'{name}' is kept for the system: choose another name")]
    Reserved { name: String },
    #[error("the value of {name} has {bytes} bytes, and at most {MAX_VALUE} are possible")]
    TooLong { name: String, bytes: usize },
    #[error(
        "the value of {name} holds a NUL, which no environment can hold: encode it, for instance in base64"
    )]
    Nul { name: String },
    #[error("there would be {count} variables and secrets, and at most {MAX_COUNT} are possible")]
    TooMany { count: usize },
    #[error("there would be {count} secrets, and at most {MAX_SECRETS} are possible")]
    TooManySecrets { count: usize },
    #[error(
        "all variables together would have {bytes} bytes, and at most {MAX_VARIABLES} are possible: put large ones into files of the code, or make them secrets"
    )]
    TooLarge { bytes: usize },
    #[error("{name} is a secret already: unset that first, or choose another name")]
    IsSecret { name: String },
    #[error("{name} is a variable already: unset that first, or choose another name")]
    IsVariable { name: String },
}

/// Whether a variable or a secret may be named so.
pub fn check_name(name: &str) -> Result<(), EnvironmentError> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if !fits {
        return Err(EnvironmentError::Name {
            name: name.chars().take(MAX_NAME + 1).collect(),
        });
    }
    if RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|p| name.starts_with(p)) {
        return Err(EnvironmentError::Reserved {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Whether something can be a value at all. The error never holds the value.
pub fn check_value(name: &str, value: &str) -> Result<(), EnvironmentError> {
    if value.len() > MAX_VALUE {
        return Err(EnvironmentError::TooLong {
            name: name.to_owned(),
            bytes: value.len(),
        });
    }
    if value.contains('\0') {
        return Err(EnvironmentError::Nul {
            name: name.to_owned(),
        });
    }
    Ok(())
}

impl Environment {
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty() && self.secrets.is_empty()
    }

    /// This with some variables set (`Some`) or unset (`None`).
    pub fn with_variables(
        &self,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<Self, EnvironmentError> {
        let mut next = self.clone();
        for (name, value) in changes {
            match value {
                Some(value) => {
                    check_name(name)?;
                    check_value(name, value)?;
                    if self.secrets.contains_key(name) {
                        return Err(EnvironmentError::IsSecret { name: name.clone() });
                    }
                    next.variables.insert(name.clone(), value.clone());
                }
                None => {
                    next.variables.remove(name);
                }
            }
        }
        next.check()?;
        Ok(next)
    }

    /// This with a secret at a version.
    pub fn with_secret(
        &self,
        name: &str,
        version: SecretVersion,
    ) -> Result<Self, EnvironmentError> {
        check_name(name)?;
        if self.variables.contains_key(name) {
            return Err(EnvironmentError::IsVariable {
                name: name.to_owned(),
            });
        }
        let mut next = self.clone();
        next.secrets.insert(name.to_owned(), version);
        next.check()?;
        Ok(next)
    }

    /// This without a secret.
    pub fn without_secret(&self, name: &str) -> Self {
        let mut next = self.clone();
        next.secrets.remove(name);
        next
    }

    fn check(&self) -> Result<(), EnvironmentError> {
        let count = self.variables.len() + self.secrets.len();
        if count > MAX_COUNT {
            return Err(EnvironmentError::TooMany { count });
        }
        if self.secrets.len() > MAX_SECRETS {
            return Err(EnvironmentError::TooManySecrets {
                count: self.secrets.len(),
            });
        }
        let bytes = self.variables.iter().map(|(n, v)| n.len() + v.len()).sum();
        if bytes > MAX_VARIABLES {
            return Err(EnvironmentError::TooLarge { bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> BTreeMap<String, Option<String>> {
        BTreeMap::from([(name.to_owned(), Some(value.to_owned()))])
    }

    #[test]
    fn names_are_capitals_and_not_the_systems() {
        for good in ["A", "_", "DB_URL2", &"X".repeat(100)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "2A", "A-B", "A B", "A=B", "Ä", &"X".repeat(101)] {
            let found = check_name(bad);
            assert!(matches!(found, Err(EnvironmentError::Name { .. })), "{bad}");
        }
        for kept in [
            "PATH",
            "LD_PRELOAD",
            "CONPAAS_RELEASE",
            "HTTP_PROXY",
            "HOME",
        ] {
            let found = check_name(kept);
            assert!(
                matches!(found, Err(EnvironmentError::Reserved { .. })),
                "{kept}"
            );
        }
    }

    #[test]
    fn values_have_a_bound_and_no_error_shows_one() {
        assert!(check_value("A", &"x".repeat(MAX_VALUE)).is_ok());
        let long = check_value("A", &"x".repeat(MAX_VALUE + 1)).unwrap_err();
        assert!(!long.to_string().contains("xx"), "{long}");
        assert!(check_value("A", "line\nline \u{fc} $ \" ' \\").is_ok());
        let nul = check_value("A", "hush\0").unwrap_err();
        assert!(!nul.to_string().contains("hush"), "{nul}");
    }

    #[test]
    fn a_name_is_a_variable_or_a_secret_and_all_have_bounds() {
        let one = Environment::default()
            .with_variables(&set("A", "1"))
            .unwrap();
        assert!(matches!(
            one.with_secret("A", SecretVersion(1)),
            Err(EnvironmentError::IsVariable { .. })
        ));
        let both = one.with_secret("S", SecretVersion(1)).unwrap();
        assert!(matches!(
            both.with_variables(&set("S", "x")),
            Err(EnvironmentError::IsSecret { .. })
        ));
        // Unsetting what is not there changes nothing.
        let none = BTreeMap::from([("NOT_THERE".to_owned(), None)]);
        assert_eq!(both.with_variables(&none).unwrap(), both);
        assert_eq!(both.without_secret("S"), one);
        let half = "x".repeat(MAX_VARIABLES / 2);
        let full = one.with_variables(&set("B", &half)).unwrap();
        assert!(matches!(
            full.with_variables(&set("C", &half)),
            Err(EnvironmentError::TooLarge { .. })
        ));
        let many = (0..=MAX_COUNT).map(|n| (format!("N{n}"), Some(String::new())));
        assert!(matches!(
            one.with_variables(&many.collect()),
            Err(EnvironmentError::TooMany { .. })
        ));
        let mut secrets = Environment::default();
        for n in 0..MAX_SECRETS {
            secrets = secrets
                .with_secret(&format!("S{n}"), SecretVersion(1))
                .unwrap();
        }
        assert!(secrets.with_secret("S0", SecretVersion(2)).is_ok());
        assert!(matches!(
            secrets.with_secret("T", SecretVersion(1)),
            Err(EnvironmentError::TooManySecrets { .. })
        ));
    }

    #[test]
    fn an_empty_one_takes_no_room_on_a_wire() {
        let text = serde_json::to_string(&Environment::default()).unwrap();
        assert_eq!(text, "{}");
        assert_eq!(
            serde_json::from_str::<Environment>("{}").unwrap(),
            Environment::default()
        );
    }
}
