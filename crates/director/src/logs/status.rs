//! The status that a line of an access log tells, whichever daemon wrote it, and which statuses
//! are looked for.

use std::str::FromStr;

/// Statuses that are looked for: `404`, `5xx`, several by comma.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Vec<(u16, u16)>);

impl Statuses {
    /// Whether a line tells one of them; one that tells none is not meant.
    pub fn of(&self, line: &str) -> bool {
        status_of(line).is_some_and(|status| {
            let among = |(first, last): &(u16, u16)| (*first..=*last).contains(&status);
            self.0.iter().any(among)
        })
    }
}

impl FromStr for Statuses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let part = part.trim();
            let class = part.strip_suffix("xx").and_then(|class| class.parse().ok());
            match (class, part.parse()) {
                (Some(class @ 1..=5), _) => Ok((class * 100, class * 100 + 99)),
                (None, Ok(status @ 100..=599)) => Ok((status, status)),
                _ => Err(format!("'{part}' is no status")),
            }
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}

fn number(word: &str) -> Option<u16> {
    let digits = word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    word.parse().ok().filter(|_| digits)
}

/// PHP puts the status before duration, memory and share of a processor; load balancers and web
/// servers put the request in quotes and the status behind it. Read from a line's end, as a request
/// holds people's own words.
fn status_of(line: &str) -> Option<u16> {
    let mut words = line.rsplit(' ');
    let mut ends = |unit: &str| words.next().is_some_and(|word| word.ends_with(unit));
    if ends("%") && ends("kB") && ends("ms") {
        return words.next().and_then(number);
    }
    let (_, behind) = line.rsplit_once("\" ")?;
    behind.split(' ').next().and_then(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_daemons_lines_tell_their_status() {
        for (line, status) in [
            (
                "- 100.64.0.9 [2026-11-28T15:00:00+00:00] \"GET /a HTTP/1.1\" 404 12 0.001 release=2",
                Some(404),
            ),
            (
                "10.0.0.1 [28/Nov/2026:15:23:37.455] \"GET /b\" 503 902 0 php-s2 r2n1 ---- release=2 of=-",
                Some(503),
            ),
            (
                "28/Nov/2026:15:00:00 +0000 GET /index.php?x=\" 200 1 500 12.345ms 2048kB 80.00%",
                Some(500),
            ),
            ("[28-Nov-2026] NOTICE: ready to handle connections", None),
            ("took 12ms", None),
            ("said \"no\" 7 times", None),
        ] {
            assert_eq!(status_of(line), status, "{line}");
        }
    }

    #[test]
    fn statuses_and_classes_are_looked_for() {
        let wanted: Statuses = "5xx, 404".parse().unwrap();
        let line = |status: u16| format!("\"GET /\" {status} 1");
        assert!(wanted.of(&line(500)) && wanted.of(&line(599)) && wanted.of(&line(404)));
        assert!(!wanted.of(&line(403)) && !wanted.of("no request"));
        for bad in ["", "6xx", "xx", "5xxx", "99", "600", "404,"] {
            assert!(bad.parse::<Statuses>().is_err(), "{bad}");
        }
    }
}
