//! Which destinations applications may reach through this computer: pure functions over addresses.
//! Public addresses are the world's; this computer, private networks and other applications are not.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

/// A range of addresses, written `ADDRESS/LENGTH` or as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    first: Ipv4Addr,
    length: u8,
}

/// A text that is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no range of addresses: write it like 192.168.0.0/16 or 10.0.0.7")]
pub struct NoRange(String);

impl Range {
    const fn new(first: [u8; 4], length: u8) -> Self {
        let [a, b, c, d] = first;
        Self {
            first: Ipv4Addr::new(a, b, c, d),
            length,
        }
    }

    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.length))
            .unwrap_or(0)
    }

    /// Whether it is one address.
    fn is_single(self) -> bool {
        self.length == 32
    }

    /// Whether an address is in the range.
    pub fn holds(self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.first)) & self.mask() == 0
    }
}

impl FromStr for Range {
    type Err = NoRange;
    fn from_str(text: &str) -> Result<Self, NoRange> {
        let no = || NoRange(text.to_owned());
        let (first, length) = text.split_once('/').unwrap_or((text, "32"));
        let range = Self {
            first: first.parse().map_err(|_| no())?,
            length: length.parse().map_err(|_| no())?,
        };
        if range.length > 32 || u32::from(range.first) & !range.mask() != 0 {
            return Err(no());
        }
        Ok(range)
    }
}

impl TryFrom<String> for Range {
    type Error = NoRange;
    fn try_from(text: String) -> Result<Self, NoRange> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

/// Never let through, whatever is allowed: loopback; links, and the one public address, where clouds
/// answer their machines with credentials; applications' own networks; what is no destination (IANA's
/// registry of special addresses).
const NEVER: [Range; 7] = [
    Range::new([0, 0, 0, 0], 8),
    Range::new([127, 0, 0, 0], 8),
    Range::new([169, 254, 0, 0], 16),
    Range::new([168, 63, 129, 16], 32),
    Range::new([100, 64, 0, 0], 10),
    Range::new([224, 0, 0, 0], 4),
    Range::new([240, 0, 0, 0], 4),
];

/// Not let through unless allowed: networks of the house that this computer stands in.
const PRIVATE: [Range; 5] = [
    Range::new([10, 0, 0, 0], 8),
    Range::new([172, 16, 0, 0], 12),
    Range::new([192, 168, 0, 0], 16),
    Range::new([192, 0, 0, 0], 24),
    Range::new([198, 18, 0, 0], 15),
];

/// Why a destination is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Never,
    Private,
    ThisComputer,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "refused: no destination for applications",
            Self::Private => "refused: a private network",
            Self::ThisComputer => "refused: this computer",
        })
    }
}

/// What the operator allows.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Ranges that applications may reach although they are private; single addresses also if they
    /// are this computer's.
    pub allow: Vec<Range>,
    /// Where this computer serves the world: an application may call itself by its public address.
    pub front_doors: Vec<SocketAddr>,
}

impl Rules {
    /// Whether a connection may be made; `own` are this computer's addresses.
    pub fn check(&self, to: SocketAddrV4, own: &[Ipv4Addr]) -> Result<(), Refusal> {
        let address = *to.ip();
        if NEVER.iter().any(|range| range.holds(address)) {
            return Err(Refusal::Never);
        }
        let mut allowed = self.allow.iter().filter(|range| range.holds(address));
        if own.contains(&address) {
            let front = self.front_doors.iter().any(|door| {
                door.port() == to.port() && (door.ip().is_unspecified() || door.ip() == address)
            });
            return if front || allowed.any(|range| range.is_single()) {
                Ok(())
            } else {
                Err(Refusal::ThisComputer)
            };
        }
        let private = PRIVATE.iter().any(|range| range.holds(address));
        if private && allowed.next().is_none() {
            return Err(Refusal::Private);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_is_open_and_the_house_is_not() {
        let own: Vec<Ipv4Addr> = ["192.0.2.7", "10.1.2.3", "10.9.8.7", "10.9.8.8"]
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        let rules = Rules {
            allow: vec![
                "10.9.0.0/16".parse().unwrap(),
                "127.0.0.1".parse().unwrap(),
                "192.168.7.7".parse().unwrap(),
                "10.9.8.8".parse().unwrap(),
            ],
            front_doors: vec![
                "0.0.0.0:80".parse().unwrap(),
                "10.1.2.3:8080".parse().unwrap(),
            ],
        };
        let check = |to: &str| rules.check(to.parse().unwrap(), &own);
        for open in [
            "198.51.100.2:443",
            "8.8.8.8:53",
            "100.63.255.255:80",
            "100.128.0.1:80",
            "172.32.0.1:80",
            "10.9.255.1:5432",
            "192.168.7.7:80",
            "192.0.2.7:80",
            "10.1.2.3:8080",
            "10.9.8.8:5432",
        ] {
            assert_eq!(check(open), Ok(()), "{open}");
        }
        for (closed, why) in [
            ("127.0.0.1:80", Refusal::Never),
            ("127.8.8.8:80", Refusal::Never),
            ("169.254.169.254:80", Refusal::Never),
            ("100.64.0.1:7443", Refusal::Never),
            ("100.127.255.255:80", Refusal::Never),
            ("0.0.0.0:80", Refusal::Never),
            ("239.1.1.1:80", Refusal::Never),
            ("255.255.255.255:80", Refusal::Never),
            ("10.1.2.4:80", Refusal::Private),
            ("172.31.255.255:80", Refusal::Private),
            ("192.168.7.8:80", Refusal::Private),
            ("168.63.129.16:80", Refusal::Never),
            ("192.0.2.7:22", Refusal::ThisComputer),
            ("192.0.2.7:8080", Refusal::ThisComputer),
            // A range says nothing of this computer.
            ("10.9.8.7:5432", Refusal::ThisComputer),
            ("10.1.2.3:5432", Refusal::ThisComputer),
        ] {
            assert_eq!(check(closed), Err(why), "{closed}");
        }
    }

    #[test]
    fn ranges_are_written_whole() {
        for good in ["10.0.0.0/8", "192.168.7.7/32", "0.0.0.0/0"] {
            assert_eq!(good.parse::<Range>().unwrap().to_string(), good);
        }
        for bad in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0",
            "",
            "::/0",
            "10.0.0.0/x",
        ] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
        assert!(
            "0.0.0.0/0"
                .parse::<Range>()
                .unwrap()
                .holds(Ipv4Addr::new(9, 9, 9, 9))
        );
    }
}
