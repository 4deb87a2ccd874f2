//! Which user and group ids of the host stand behind the ids inside machines. A machine's ids
//! 0 to 65535 lie in a range that nobody on the host is; the id of whoever runs the driver is
//! mapped once more above them, in the application's namespace only, so that supervisors reach
//! the state folder and machines do not.

use super::step::{Step, StepError};
use crate::error::CloudError;
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::fs;
use std::process::Command;

/// Ids a machine has: 0 up to this, exclusive.
pub const MACHINE_IDS: u32 = 65_536;

/// A run of ids inside a namespace and where it lies outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// The whole mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub uids: Vec<Extent>,
    pub gids: Vec<Extent>,
    pub own_uid: u32,
    pub own_gid: u32,
    /// Whether the set-uid tools of the host write the maps (ordinary users) or we do (root).
    pub by_tools: bool,
}

impl IdMap {
    /// The mapping this process can make: from `base` on as root, else from the user's own
    /// subordinate ids.
    pub fn detect(base: u32) -> Result<Self, CloudError> {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        if uid == 0 {
            let whole = [Extent {
                inside: 0,
                outside: base,
                count: MACHINE_IDS,
            }];
            let seen = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            if !covers(&seen, base, MACHINE_IDS) {
                return Err(CloudError::Unfit {
                    what: format!(
                        "ids {base} to {} do not exist in this user namespace",
                        base.saturating_add(MACHINE_IDS - 1)
                    ),
                    cure: "Set the base of machines' ids to a range that this container was given"
                        .into(),
                });
            }
            return Ok(Self {
                uids: whole.to_vec(),
                gids: whole.to_vec(),
                own_uid: uid,
                own_gid: gid,
                by_tools: false,
            });
        }
        for tool in ["newuidmap", "newgidmap"] {
            if !["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"]
                .iter()
                .any(|d| std::path::Path::new(d).join(tool).exists())
            {
                return Err(CloudError::Unfit {
                    what: format!("the program {tool} is missing"),
                    cure: "Install it (Debian: apt install uidmap), or run ConPaaS as root".into(),
                });
            }
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = user_name(&passwd, uid).unwrap_or_else(|| uid.to_string());
        let range = |file: &str| -> Result<Vec<Extent>, CloudError> {
            let text = fs::read_to_string(file).unwrap_or_default();
            let extents = subordinate(&text, &name, uid);
            if extents.iter().map(|e| e.count).sum::<u32>() < 1000 {
                return Err(CloudError::Unfit {
                    what: format!("{file} gives the user {name} no subordinate ids"),
                    cure: format!(
                        "As root: usermod --add-subuids 200000-265535 --add-subgids 200000-265535 {name}"
                    ),
                });
            }
            Ok(extents)
        };
        Ok(Self {
            uids: range("/etc/subuid")?,
            gids: range("/etc/subgid")?,
            own_uid: uid,
            own_gid: gid,
            by_tools: true,
        })
    }

    /// The host's id behind a machine's root.
    pub fn root_uid(&self) -> u32 {
        self.uids.first().map_or(0, |e| e.outside)
    }

    /// Writes the application's namespace's maps from outside, for the process `pid` in it.
    pub fn write_outer(&self, pid: i32) -> Result<(), StepError> {
        for (kind, extents, own, tool) in [
            ("uid_map", &self.uids, self.own_uid, "newuidmap"),
            ("gid_map", &self.gids, self.own_gid, "newgidmap"),
        ] {
            let mut all = extents.clone();
            all.push(Extent {
                inside: MACHINE_IDS,
                outside: own,
                count: 1,
            });
            if self.by_tools {
                let output = Command::new(tool)
                    .arg(pid.to_string())
                    .args(
                        all.iter()
                            .flat_map(|e| [e.inside, e.outside, e.count])
                            .map(|n| n.to_string()),
                    )
                    .output()
                    .step_cure(
                        format!("run {tool}"),
                        "Install it (Debian: apt install uidmap)",
                    )?;
                if !output.status.success() {
                    return Err(StepError {
                        cure: Some("See that it is set-uid root and that /etc/subuid and /etc/subgid hold your range".into()),
                        ..StepError::new(format!("map ids with {tool}"), String::from_utf8_lossy(&output.stderr).trim())
                    });
                }
            } else {
                fs::write(format!("/proc/{pid}/{kind}"), text(&all))
                    .step(format!("write the {kind} of the application's namespace"))?;
            }
        }
        Ok(())
    }

    /// Writes the maps of a machine's own namespace, from inside the application's.
    pub fn write_nested(&self, pid: i32) -> Result<(), StepError> {
        for (kind, extents) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            // The kernel demands that each extent lies within one of the parent's.
            let nested: Vec<Extent> = extents
                .iter()
                .map(|e| Extent {
                    outside: e.inside,
                    ..*e
                })
                .collect();
            fs::write(format!("/proc/{pid}/{kind}"), text(&nested))
                .step(format!("write the {kind} of the machine"))?;
        }
        Ok(())
    }
}

fn text(extents: &[Extent]) -> String {
    extents
        .iter()
        .map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count))
        .collect()
}

/// Whether a kernel id map has the ids `base .. base + count` inside.
fn covers(map: &str, base: u32, count: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line
            .split_ascii_whitespace()
            .filter_map(|n| n.parse::<u64>().ok());
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(inside), Some(_), Some(n)) => {
                inside <= base as u64 && base as u64 + count as u64 <= inside + n
            }
            _ => false,
        }
    })
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// A user's ranges out of a subordinate-id file, laid end to end from 0 on.
fn subordinate(text: &str, name: &str, uid: u32) -> Vec<Extent> {
    let mut inside = 0;
    let mut extents = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [owner, start, count] = fields[..] else {
            continue;
        };
        if owner != name && owner.parse() != Ok(uid) {
            continue;
        }
        let (Ok(outside), Ok(count)) = (start.parse::<u32>(), count.parse::<u32>()) else {
            continue;
        };
        let count = count.min(MACHINE_IDS - inside);
        if count > 0 {
            extents.push(Extent {
                inside,
                outside,
                count,
            });
            inside += count;
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_laid_end_to_end_and_capped() {
        let text = "ann:100000:30000\nbob:1:1\n1000:300000:65536\nbroken\n";
        assert_eq!(
            subordinate(text, "ann", 1000),
            [
                Extent {
                    inside: 0,
                    outside: 100_000,
                    count: 30_000
                },
                Extent {
                    inside: 30_000,
                    outside: 300_000,
                    count: 35_536
                }
            ]
        );
        assert!(subordinate(text, "eve", 7).is_empty());
    }

    #[test]
    fn sees_whether_a_range_exists() {
        let host = "         0          0 4294967295\n";
        assert!(covers(host, 1_000_000_000, MACHINE_IDS));
        assert!(!covers("0 100000 65536\n", 1_000_000_000, MACHINE_IDS));
        assert!(covers("0 100000 65536\n", 0, MACHINE_IDS));
    }

    #[test]
    fn finds_the_users_name() {
        assert_eq!(
            user_name("root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n", 1000).as_deref(),
            Some("ann")
        );
    }
}
