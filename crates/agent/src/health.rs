//! Figures of the node: memory and CPU by the machine's own control group where it is shown, else
//! by its processes; what its files take; its network. A machine's limits are its cloud's business.

use conpaas_model::metrics::{Reading, Source, Value, names};
use conpaas_model::protocol::MACHINE_GROUP;
use conpaas_model::status::NodeHealth;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the node is looked at, and how often its files are.
pub const LOOK: Duration = Duration::from_secs(1);
const FILES_EVERY: Duration = Duration::from_secs(30);
/// A look may take one part in so many of the time until the next.
const COST: u32 = 200;
/// The same for an agent that shares its machine with others: each of them looks at all there is.
const SHARED_COST: u32 = 100 * COST;
/// And yet it is looked again after this: what made one look long may be over.
const LONGEST: Duration = Duration::from_secs(60);
/// Most files that are looked at.
const MOST_FILES: usize = 300_000;
/// Where a machine's own files are, apart from those of the image.
const OWN_FILES: [&str; 5] = [
    "/var/lib/conpaas",
    "/var/log",
    "/srv/conpaas",
    "/tmp",
    "/var/tmp",
];

/// What is known of the node now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    memory_bytes: Option<u64>,
    cpu_millis: Option<u64>,
    disk_bytes: Option<u64>,
    network: Option<(u64, u64)>,
}

/// Looks at the node again and again, and never so often that it costs.
pub struct Probe {
    group: PathBuf,
    figures: Figures,
    next: Option<Instant>,
    /// Whether files here are the node's own, and no others'.
    has_own_files: bool,
    files: Arc<Files>,
    next_files: Option<Instant>,
}

#[derive(Default)]
struct Files {
    busy: AtomicBool,
    /// Bytes and one; zero when nobody has looked yet.
    bytes: AtomicU64,
    micros: AtomicU64,
}

impl Probe {
    /// A probe of a machine of its own, or of a process that shares one with others.
    pub fn of(own_machine: bool) -> Self {
        Self {
            has_own_files: own_machine,
            group: PathBuf::from(MACHINE_GROUP),
            figures: Figures::default(),
            next: None,
            files: Arc::default(),
            next_files: None,
        }
    }

    /// Looks, if it is time.
    pub fn look(&mut self) {
        let now = Instant::now();
        self.look_at_files(now);
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        let group = group(&self.group);
        let processes = match group {
            (Some(_), Some(_)) => (None, None),
            _ => processes(),
        };
        let before = self.figures;
        self.figures = Figures {
            memory_bytes: group.0.or(processes.0),
            // The time of a process that nobody waited for is lost; time does not go back.
            cpu_millis: group.1.or(processes.1).max(before.cpu_millis),
            disk_bytes: self.files.bytes.load(Ordering::Relaxed).checked_sub(1),
            network: network(),
        };
        let cost = if self.has_own_files {
            COST
        } else {
            SHARED_COST
        };
        let pause = now.elapsed().saturating_mul(cost);
        self.next = Some(now + pause.min(LONGEST));
    }

    /// Looks at files in a thread of its own: there may be many.
    fn look_at_files(&mut self, now: Instant) {
        if !self.has_own_files
            || self.next_files.is_some_and(|next| now < next)
            || self.files.busy.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let cost = Duration::from_micros(self.files.micros.load(Ordering::Relaxed));
        self.next_files = Some(now + FILES_EVERY.max(cost.saturating_mul(COST)));
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let bytes = taken(&OWN_FILES.map(PathBuf::from));
            let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            files.micros.store(micros, Ordering::Relaxed);
            files
                .bytes
                .store(bytes.saturating_add(1), Ordering::Relaxed);
            files.busy.store(false, Ordering::Relaxed);
        });
    }

    /// The figures as the node's report has them.
    pub fn health(&self) -> NodeHealth {
        let mib = |bytes: Option<u64>| bytes.map(|bytes| bytes >> 20);
        NodeHealth {
            memory_used_mib: mib(self.figures.memory_bytes),
            disk_used_mib: mib(self.figures.disk_bytes),
            cpu_seconds: self.figures.cpu_millis.map(|millis| millis as f64 / 1000.0),
        }
    }

    /// The figures as a reading: all count from the machine's birth.
    pub fn reading(&self) -> Reading {
        let Figures {
            memory_bytes,
            cpu_millis,
            disk_bytes,
            network,
        } = self.figures;
        let values = [
            (names::MEMORY_BYTES, memory_bytes.map(Value::gauge)),
            (names::CPU_MILLIS, cpu_millis.map(Value::Counter)),
            (names::DISK_BYTES, disk_bytes.map(Value::gauge)),
            (
                names::NETWORK_IN_BYTES,
                network.map(|(into, _)| Value::Counter(into)),
            ),
            (
                names::NETWORK_OUT_BYTES,
                network.map(|(_, out)| Value::Counter(out)),
            ),
        ];
        let known = values
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Reading {
            source: Source::default(),
            life: 0,
            values: known.collect(),
        }
    }
}

/// Memory in bytes and CPU time in milliseconds by the machine's control group: what it uses
/// without the copies of files that can be dropped at once.
fn group(folder: &Path) -> (Option<u64>, Option<u64>) {
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let field = |text: &str, name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
    let droppable = read("memory.stat").and_then(|text| {
        // The older kind counts groups below it apart.
        field(&text, "total_inactive_file ").or_else(|| field(&text, "inactive_file "))
    });
    let micros = read("cpu.stat").and_then(|text| field(&text, "usage_usec "));
    (
        used.map(|used| used.saturating_sub(droppable.unwrap_or(0))),
        micros.map(|micros| micros / 1000),
    )
}

/// The same by the processes that can be seen here: pages that they share after a fork count for
/// each, shared memory once per session.
fn processes() -> (Option<u64>, Option<u64>) {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return (None, None);
    };
    let (mut anonymous, mut ticks, mut found) = (0u64, 0u64, false);
    let mut shared: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let Some(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|text| Stat::read(&text))
        else {
            continue;
        };
        found = true;
        ticks = ticks.saturating_add(stat.ticks);
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
            anonymous += kib(&text, "RssAnon:");
            let most = shared.entry(stat.session).or_default();
            *most = kib(&text, "RssShmem:").max(*most);
        }
    }
    let memory = anonymous + shared.values().sum::<u64>();
    // The kernel counts in hundredths of a second towards processes, on every platform we run on.
    (
        found.then_some(memory * 1024),
        found.then_some(ticks.saturating_mul(10)),
    )
}

/// A field of a process' status.
fn kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Session of a process, and CPU time of it and of its children that have ended.
struct Stat {
    session: u64,
    ticks: u64,
}

impl Stat {
    fn read(text: &str) -> Option<Self> {
        // The name, in brackets, may hold anything; fields are counted from behind it.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let times = fields.get(11..15)?.iter();
        Some(Self {
            session: fields.get(3)?.parse().ok()?,
            ticks: times.filter_map(|field| field.parse::<u64>().ok()).sum(),
        })
    }
}

/// Bytes in and out over all links but the one to itself.
fn network() -> Option<(u64, u64)> {
    links(&std::fs::read_to_string("/proc/self/net/dev").ok()?)
}

fn links(table: &str) -> Option<(u64, u64)> {
    let link = |line: &str| {
        let (name, fields) = line.split_once(':')?;
        let fields: Vec<u64> = fields
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        (name.trim() != "lo").then_some((*fields.first()?, *fields.get(8)?))
    };
    let all = table.lines().filter_map(link);
    all.reduce(|one, two| (one.0.saturating_add(two.0), one.1.saturating_add(two.1)))
}

/// What files below these folders take; folders of other file systems are left out.
fn taken(folders: &[PathBuf]) -> u64 {
    let (mut bytes, mut seen) = (0u64, 0);
    let mut waiting: Vec<(PathBuf, u64)> = folders
        .iter()
        .filter_map(|folder| {
            Some((
                folder.clone(),
                std::fs::symlink_metadata(folder).ok()?.dev(),
            ))
        })
        .collect();
    while let Some((folder, device)) = waiting.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MOST_FILES {
                return bytes;
            }
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.is_dir() && found.dev() == device {
                waiting.push((entry.path(), device));
            }
            // The kernel counts in pieces of 512 bytes, whatever the disk's are.
            bytes = bytes.saturating_add(found.blocks().saturating_mul(512));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_the_kernels_texts() {
        let status =
            "Name:\tx\nVmRSS:\t900 kB\nRssAnon:\t 120 kB\nRssFile:\t700 kB\nRssShmem:\t80 kB\n";
        assert_eq!(
            (kib(status, "RssAnon:"), kib(status, "RssShmem:")),
            (120, 80)
        );
        let stat = Stat::read("7 (a) b) S 1 7 6 0 -1 0 0 0 0 0 11 22 33 44 20 0 1 0 5").unwrap();
        assert_eq!((stat.session, stat.ticks), (6, 110));
        let table = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 100 1 0 0 0 0 0 0 30 1 0 0 0 0 0 0\n";
        assert_eq!(links(table), Some((100, 30)));
        let (memory, cpu) = processes();
        assert!(memory.is_some_and(|bytes| bytes > 0) && cpu.is_some());
    }

    #[test]
    fn a_control_group_of_either_kind_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(group(folder.path()), (None, None));
        write("memory.usage_in_bytes", "5000\n");
        write(
            "memory.stat",
            "cache 9\ninactive_file 10\ntotal_inactive_file 1000\n",
        );
        assert_eq!(group(folder.path()), (Some(4000), None));
        std::fs::remove_file(folder.path().join("memory.usage_in_bytes")).unwrap();
        write("memory.current", "700\n");
        write("memory.stat", "anon 9\ninactive_file 100\n");
        write("cpu.stat", "usage_usec 2500000\nuser_usec 1\n");
        assert_eq!(group(folder.path()), (Some(600), Some(2500)));
    }

    #[test]
    fn files_are_counted_by_what_they_take() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/b"), vec![1u8; 100_000]).unwrap();
        let bytes = taken(&[folder.path().to_owned(), folder.path().join("none")]);
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }

    #[tokio::test]
    async fn a_probe_has_figures_after_its_first_look() {
        let mut probe = Probe::of(false);
        probe.look();
        assert!(probe.health().memory_used_mib.is_some());
        let reading = probe.reading();
        assert!(
            reading.values.contains_key(names::CPU_MILLIS),
            "{reading:?}"
        );
    }
}
