//! Limits on machines: control groups of version 2 or 1, made from outside, one group
//! `conpaas/INSTALLATION/MACHINE` each. What the host does not let us do is said, not faked.

use crate::types::{CgroupVersion, Limits};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
const PERIOD_MICROS: u64 = 100_000;
const OURS: &str = "conpaas";

/// Where this host lets us make groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cgroups {
    /// One hierarchy for all; the folder below which ours lie.
    V2 {
        base: PathBuf,
    },
    /// A hierarchy per controller, in the order memory, cpu, pids.
    V1 {
        roots: [PathBuf; 3],
    },
    None {
        reason: String,
    },
}

/// What a machine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowance {
    pub memory_bytes: u64,
    pub cpu_millis: u64,
    pub pids: u64,
}

/// Finds out which groups can be made here, by making the parent ones.
pub fn detect() -> Cgroups {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let found = find(&mounts, &own, nix::unistd::geteuid().is_root());
    match &found {
        Cgroups::V2 { base } => match prepare_v2(base) {
            Ok(()) => found,
            Err(reason) => Cgroups::None { reason },
        },
        Cgroups::V1 { roots } => {
            for root in roots {
                let ours = root.join(OURS);
                // That the parent is there says nothing: another user's installation made it.
                let probe = ours.join(format!("probe-{}", std::process::id()));
                let made = make_below(root, &probe);
                let _ = fs::remove_dir(&probe);
                // Fails while other machines have groups in it, as it should.
                let _ = fs::remove_dir(&ours);
                if let Err(e) = made {
                    return Cgroups::None {
                        reason: format!("cannot make control groups in {}: {e}", root.display()),
                    };
                }
            }
            found
        }
        Cgroups::None { .. } => found,
    }
}

/// Reads the kernel's mount table and own groups: pure, so that every kind of host can be tested.
fn find(mounts: &str, own: &str, root: bool) -> Cgroups {
    let mut v2 = None;
    let mut v1: [Option<PathBuf>; 3] = [None, None, None];
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = left.split(' ').nth(4) else {
            continue;
        };
        let mut right = right.split(' ');
        let (kind, options) = (
            right.next().unwrap_or_default(),
            right.nth(1).unwrap_or_default(),
        );
        if kind == "cgroup2" && v2.is_none() {
            v2 = Some(PathBuf::from(point));
        }
        if kind == "cgroup" {
            for (slot, name) in v1.iter_mut().zip(CONTROLLERS) {
                if slot.is_none() && options.split(',').any(|o| o == name) {
                    *slot = Some(PathBuf::from(point));
                }
            }
        }
    }
    if let [Some(memory), Some(cpu), Some(pids)] = v1 {
        return Cgroups::V1 {
            roots: [memory, cpu, pids],
        };
    }
    match v2 {
        Some(mount) if root => Cgroups::V2 { base: mount },
        Some(mount) => match own.lines().find_map(|l| l.strip_prefix("0::/")) {
            Some(path) => Cgroups::V2 {
                base: mount.join(path),
            },
            None => Cgroups::None {
                reason: "this process is in no control group of its own".into(),
            },
        },
        None => Cgroups::None {
            reason: "the host shows no control groups with memory, cpu and pids".into(),
        },
    }
}

/// Opens the controllers to groups below `base`.
fn prepare_v2(base: &Path) -> Result<(), String> {
    let file = |name: &str| base.join(name);
    let offered = fs::read_to_string(file("cgroup.controllers"))
        .map_err(|e| format!("cannot read {}: {e}", base.display()))?;
    if let Some(missing) = CONTROLLERS
        .iter()
        .find(|c| !offered.split_whitespace().any(|o| o == **c))
    {
        return Err(format!(
            "the controller '{missing}' is not delegated to {}; start with: systemd-run --user --scope -p Delegate=yes",
            base.display()
        ));
    }
    let denied = |e: io::Error| {
        format!(
            "cannot hand controllers on below {}: {e}; as an ordinary user, start with: systemd-run --user --scope -p Delegate=yes",
            base.display()
        )
    };
    if let Err(first) = fs::write(file("cgroup.subtree_control"), "+memory +cpu +pids") {
        // A group that holds processes hands nothing on: ours move into a leaf first.
        if first.raw_os_error() != Some(libc::EBUSY) {
            return Err(denied(first));
        }
        let leaf = file("conpaas-processes");
        make(&leaf).map_err(denied)?;
        for pid in fs::read_to_string(file("cgroup.procs"))
            .map_err(denied)?
            .lines()
        {
            let _ = fs::write(leaf.join("cgroup.procs"), pid);
        }
        fs::write(file("cgroup.subtree_control"), "+memory +cpu +pids").map_err(denied)?;
    }
    Ok(())
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Makes a group and those above it. Another process may just be removing an empty one.
fn make_below(root: &Path, group: &Path) -> io::Result<()> {
    let mut last = Ok(());
    for _ in 0..20 {
        last = group
            .ancestors()
            .take_while(|above| *above != root)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .try_for_each(make);
        match &last {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            _ => break,
        }
    }
    last
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path)
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

impl Cgroups {
    fn roots(&self) -> Vec<&Path> {
        match self {
            Cgroups::V2 { base } => vec![base],
            Cgroups::V1 { roots } => roots.iter().map(PathBuf::as_path).collect(),
            Cgroups::None { .. } => Vec::new(),
        }
    }

    /// The machine's groups, one per hierarchy.
    pub fn groups(&self, installation: &str, machine: &str) -> Vec<PathBuf> {
        self.roots()
            .iter()
            .map(|r| r.join(OURS).join(installation).join(machine))
            .collect()
    }

    /// Makes the machine's groups, limits them, puts `pid` in and reads the limits back.
    pub fn limit(
        &self,
        installation: &str,
        machine: &str,
        pid: i32,
        allow: Allowance,
    ) -> Result<Limits, String> {
        if let Cgroups::None { reason } = self {
            return Ok(Limits::None {
                reason: reason.clone(),
            });
        }
        let quota = (allow.cpu_millis * PERIOD_MICROS / 1000).max(1000);
        for root in self.roots() {
            let mut path = root.to_owned();
            let own = root.join(OURS).join(installation).join(machine);
            make_below(root, &own).map_err(|e| format!("{}: {e}", own.display()))?;
            for part in [OURS, installation, machine] {
                path.push(part);
                if part != machine && matches!(self, Cgroups::V2 { .. }) {
                    let control = path.join("cgroup.subtree_control");
                    fs::write(&control, "+memory +cpu +pids")
                        .map_err(|e| format!("{}: {e}", control.display()))?;
                }
            }
        }
        let groups = self.groups(installation, machine);
        let write = |group: &Path, file: &str, value: String| {
            let path = group.join(file);
            fs::write(&path, value).map_err(|e| format!("{}: {e}", path.display()))
        };
        let limits = match (self, &groups[..]) {
            (Cgroups::V2 { .. }, [group]) => {
                write(group, "memory.max", allow.memory_bytes.to_string())?;
                // Without swap accounting there is no such file, and nothing to limit.
                let _ = write(group, "memory.swap.max", "0".into());
                write(group, "cpu.max", format!("{quota} {PERIOD_MICROS}"))?;
                write(group, "pids.max", allow.pids.to_string())?;
                Limits::Enforced {
                    by: CgroupVersion::V2,
                    memory_bytes: read_number(&group.join("memory.max")).unwrap_or(0),
                    cpu_millis: read_number(&group.join("cpu.max")).unwrap_or(0) * 1000
                        / PERIOD_MICROS,
                    pids: read_number(&group.join("pids.max")).unwrap_or(0),
                }
            }
            (Cgroups::V1 { .. }, [memory, cpu, pids]) => {
                write(
                    memory,
                    "memory.limit_in_bytes",
                    allow.memory_bytes.to_string(),
                )?;
                let _ = write(
                    memory,
                    "memory.memsw.limit_in_bytes",
                    allow.memory_bytes.to_string(),
                );
                write(cpu, "cpu.cfs_period_us", PERIOD_MICROS.to_string())?;
                write(cpu, "cpu.cfs_quota_us", quota.to_string())?;
                write(pids, "pids.max", allow.pids.to_string())?;
                Limits::Enforced {
                    by: CgroupVersion::V1,
                    memory_bytes: read_number(&memory.join("memory.limit_in_bytes")).unwrap_or(0),
                    cpu_millis: read_number(&cpu.join("cpu.cfs_quota_us")).unwrap_or(0) * 1000
                        / PERIOD_MICROS,
                    pids: read_number(&pids.join("pids.max")).unwrap_or(0),
                }
            }
            _ => return Err("unexpected number of hierarchies".into()),
        };
        self.join(installation, machine, pid)?;
        Ok(limits)
    }

    /// Puts a process into the machine's groups.
    pub fn join(&self, installation: &str, machine: &str, pid: i32) -> Result<(), String> {
        for group in self.groups(installation, machine) {
            let path = group.join("cgroup.procs");
            fs::write(&path, pid.to_string()).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }

    /// Memory the machine uses now, in bytes.
    pub fn memory_used(&self, installation: &str, machine: &str) -> Option<u64> {
        let group = self.groups(installation, machine).into_iter().next()?;
        read_number(&group.join("memory.current"))
            .or_else(|| read_number(&group.join("memory.usage_in_bytes")))
    }

    /// Removes the machine's groups, and our parents where they are empty. Processes that
    /// linger in them (a helper on its way out) are waited for, then killed.
    pub fn remove(
        &self,
        installation: &str,
        machine: &str,
        patience: Duration,
    ) -> Result<(), String> {
        let end = Instant::now() + patience;
        for group in self.groups(installation, machine) {
            loop {
                match fs::remove_dir(&group) {
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                        if Instant::now() + patience / 2 > end {
                            kill_members(&group);
                        }
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(format!("{}: {e}", group.display()));
                    }
                    _ => break,
                }
            }
            for parent in group.ancestors().skip(1).take(2) {
                if fs::remove_dir(parent).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn kill_members(group: &Path) {
    let file = group.join("cgroup.procs");
    for pid in fs::read_to_string(&file)
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.parse::<i32>().ok())
    {
        if let Ok(handle) = super::process::Pidfd::open(pid) {
            // Looked up again once the handle pins the process: the pid may have changed hands.
            if fs::read_to_string(&file)
                .unwrap_or_default()
                .lines()
                .any(|l| l.parse() == Ok(pid))
            {
                let _ = handle.signal(libc::SIGKILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchies_of_each_kind_of_host() {
        let hybrid = "1 1 0:1 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      2 1 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      3 1 0:3 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      4 1 0:4 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let root = |name: &str| PathBuf::from("/sys/fs/cgroup").join(name);
        assert_eq!(
            find(hybrid, "0::/", true),
            Cgroups::V1 {
                roots: [root("memory"), root("cpu,cpuacct"), root("pids")]
            }
        );
        let unified = "4 1 0:4 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find(unified, "0::/init.scope\n", true),
            Cgroups::V2 {
                base: "/sys/fs/cgroup".into()
            }
        );
        assert_eq!(
            find(unified, "0::/user.slice/a.scope\n", false),
            Cgroups::V2 {
                base: root("user.slice/a.scope")
            }
        );
        assert!(matches!(find("", "", true), Cgroups::None { .. }));
    }
}
