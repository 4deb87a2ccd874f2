//! Versions of a wire: a party states all it speaks, best first; the other picks the newest both know.

use http::HeaderValue;
use std::fmt;

/// Header in which versions are stated.
pub const VERSION_HEADER: &str = "conpaas-version";

/// The versions of requests and streams that this build speaks.
pub const WIRE: Versions = Versions {
    oldest: 1,
    newest: 1,
};

/// A range of versions; usually the present one and one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub oldest: u32,
    pub newest: u32,
}

impl Versions {
    /// The newest version that both this range and a header's value name. A header that cannot be
    /// read names none.
    pub fn pick(&self, header: &str) -> Option<u32> {
        header
            .split(',')
            .filter_map(|number| number.trim().parse::<u32>().ok())
            .filter(|version| (self.oldest..=self.newest).contains(version))
            .max()
    }

    /// The header's value: all versions, newest first.
    pub fn header(&self) -> HeaderValue {
        // Digits, commas and spaces are always a valid value.
        HeaderValue::try_from(self.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, version) in (self.oldest..=self.newest).rev().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{version}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_picked() {
        let ours = Versions {
            oldest: 2,
            newest: 3,
        };
        assert_eq!(ours.header(), "3, 2");
        for (theirs, picked) in [
            ("3, 2", Some(3)),
            ("2,1", Some(2)),
            ("4, 3", Some(3)),
            ("1", None),
            ("5", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(ours.pick(theirs), picked, "{theirs}");
        }
    }
}
