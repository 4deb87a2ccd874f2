//! Figures of the node, read from /proc: what the processes of this machine use. A machine's
//! limits are its cloud's business.

use conpaas_model::status::NodeHealth;

/// Reads the figures; what cannot be read is absent.
pub fn read() -> NodeHealth {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return NodeHealth::default();
    };
    let (mut memory_kib, mut ticks, mut found) = (0u64, 0u64, false);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
            memory_kib += resident_kib(&text);
            found = true;
        }
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            ticks += cpu_ticks(&text);
        }
    }
    // The kernel counts in hundredths of a second towards processes, on every platform we run on.
    NodeHealth {
        memory_used_mib: found.then_some(memory_kib / 1024),
        disk_used_mib: None,
        cpu_seconds: found.then_some(ticks as f64 / 100.0),
    }
}

/// Memory of a process' own, without the files it shares with others.
fn resident_kib(status: &str) -> u64 {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .split_whitespace()
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0)
    };
    field("RssAnon:") + field("RssShmem:")
}

/// CPU time of a process and of its children that have ended.
fn cpu_ticks(stat: &str) -> u64 {
    // The name, in brackets, may hold anything; fields are counted from behind it.
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return 0;
    };
    rest.split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_the_kernels_texts() {
        let status =
            "Name:\tx\nVmRSS:\t900 kB\nRssAnon:\t 120 kB\nRssFile:\t700 kB\nRssShmem:\t80 kB\n";
        assert_eq!(resident_kib(status), 200);
        let stat = "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 11 22 33 44 20 0 1 0 5";
        assert_eq!(cpu_ticks(stat), 110);
        assert!(read().memory_used_mib.is_some());
    }
}
