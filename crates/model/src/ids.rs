//! Typed identifiers and names. One alphabetical registry of id kinds; each is shown with its
//! prefix, so that a stray id in a log says what it names. Making random ids is the caller's
//! business (this crate has no randomness): pass the random part in.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is wrong with an identifier or a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("'{text}' is no {kind}: expected '{prefix}-' and lower-case letters or digits")]
    Malformed {
        text: String,
        kind: &'static str,
        prefix: &'static str,
    },
    #[error(
        "'{text}' cannot be a name: use 1 to 40 lower-case letters, digits and '-', starting with a letter and not ending in '-'"
    )]
    Name { text: String },
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);
        impl $name {
            /// The prefix every id of this kind starts with (before the dash).
            pub const PREFIX: &'static str = $prefix;
            /// Builds an id from its part after the prefix (lower-case letters and digits).
            pub fn from_suffix(suffix: &str) -> Result<Self, IdError> {
                format!("{}-{suffix}", $prefix).parse()
            }
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let ok = text.len() <= 64 && text
                    .strip_prefix(concat!($prefix, "-"))
                    .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
                if ok { Ok(Self(text.to_owned())) } else {
                    Err(IdError::Malformed { text: text.to_owned(), kind: stringify!($name), prefix: $prefix })
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> { text.parse() }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String { id.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> { String::schema() }
        }
        impl utoipa::ToSchema for $name {}
    )*};
}

ids! {
    /// An application.
    ApplicationId = "app";
    /// A code version: one uploaded archive of one service.
    CodeId = "code";
    /// One ConPaaS installation (one Director's world); part of every certificate identity.
    InstallationId = "inst";
    /// A machine, in the Director's records.
    MachineId = "m";
    /// An operation: a change under way.
    OperationId = "op";
    /// A principal: who owns or acts.
    PrincipalId = "user";
    /// A service.
    ServiceId = "svc";
    /// An API token (the public half, never the secret).
    TokenId = "tok";
}

/// A validated name of an application, a service or a user.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let ok = (1..=40).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && text.as_bytes()[0].is_ascii_lowercase()
            && !text.ends_with('-');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Name {
                text: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl utoipa::PartialSchema for Name {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}
impl utoipa::ToSchema for Name {}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident shows $letter:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl $name {
            /// The one after this.
            pub fn next(self) -> Self { Self(self.0.saturating_add(1)) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}{}", $letter, self.0) }
        }
    )*};
}

counters! {
    /// Orders managers of one service: the Director raises it each time it makes a new manager.
    Epoch shows "e";
    /// Orders the states of a record by its single writer.
    Generation shows "g";
    /// Number of a node within its service, never reused.
    NodeNumber shows "";
    /// Number of a release within its service, never reused.
    ReleaseNumber shows "r";
    /// Version of a secret within its service and name; each new value is a new one.
    SecretVersion shows "v";
    /// Counts the leaders of a role that has one: whoever has seen a higher one follows no lower.
    Term shows "t";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_their_prefix_and_refuse_others() {
        assert_eq!(ServiceId::from_suffix("a1").unwrap().as_str(), "svc-a1");
        assert!("app-x".parse::<ServiceId>().is_err());
        assert!("svc-".parse::<ServiceId>().is_err());
        assert!("svc-../x".parse::<ServiceId>().is_err());
    }

    #[test]
    fn names_are_host_name_labels() {
        for good in ["a", "shop", "web-2"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "2a", "a-", "A", "a_b", "a.b", &"x".repeat(41)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
