//! Whether an application may get out of its network, and which way. What carries its connections
//! is the edge; which destinations nobody reaches is the edge's business too.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// An application's way out.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Nothing gets out: connections are refused at once, names are not known.
    None,
    /// Through the Director's machine.
    #[default]
    Director,
}

impl Egress {
    /// What is left of a wish where the installation allows `most`.
    #[must_use]
    pub fn within(self, most: Self) -> Self {
        self.min(most)
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Director => "director",
        })
    }
}

/// A word that names no way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no egress policy: it is none or director")]
pub struct UnknownEgress(String);

impl FromStr for Egress {
    type Err = UnknownEgress;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "director" => Ok(Self::Director),
            other => Err(UnknownEgress(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_api_and_the_installation_has_the_last_word() {
        for egress in [Egress::None, Egress::Director] {
            assert_eq!(egress.to_string().parse(), Ok(egress));
            let word = serde_json::to_value(egress).unwrap();
            assert_eq!(word, egress.to_string());
            assert_eq!(egress.within(Egress::None), Egress::None);
            assert_eq!(egress.within(Egress::Director), egress);
        }
        assert!("all".parse::<Egress>().is_err());
    }
}
