//! What this computer can still promise: its real free memory, disk and processors, less what
//! machines that live were promised.

use super::config::LocalConfig;
use crate::error::CloudError;
use crate::types::{Capacity, Resources};
use std::fs;

/// What the computer is and has now.
pub struct Host {
    vcpus: f64,
    memory_mib: u64,
    available_mib: u64,
    disk_mib: u64,
    disk_free_mib: u64,
}

impl Host {
    /// Asks the kernel.
    pub fn look(config: &LocalConfig) -> Result<Self, CloudError> {
        let path = std::path::Path::new("/proc/meminfo");
        let text = fs::read_to_string(path).map_err(CloudError::io("read", path))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next())
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024
        };
        let disk = nix::sys::statvfs::statvfs(&config.state_dir)
            .map_err(|e| CloudError::io("look at the disk of", &config.state_dir)(e.into()))?;
        let mib = |blocks: u64| blocks.saturating_mul(disk.fragment_size()) >> 20;
        Ok(Self {
            vcpus: std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
            memory_mib: field("MemTotal:"),
            available_mib: field("MemAvailable:"),
            disk_mib: mib(disk.blocks()),
            disk_free_mib: mib(disk.blocks_available()),
        })
    }
}

/// What was promised to one machine, and what of it the machine uses already.
pub struct Promise {
    pub vcpus: f64,
    pub memory_bytes: u64,
    pub used_bytes: u64,
}

/// Everything promised must be there at once: memory in use by a machine counts as promised,
/// not as taken twice.
pub fn what_is_free(host: &Host, promises: &[Promise], config: &LocalConfig) -> Capacity {
    let promised_mib = promises.iter().map(|p| p.memory_bytes).sum::<u64>() >> 20;
    let used_mib = promises
        .iter()
        .map(|p| p.used_bytes.min(p.memory_bytes))
        .sum::<u64>()
        >> 20;
    let real =
        (host.available_mib + used_mib).saturating_sub(config.memory_reserve_mib + promised_mib);
    let total_memory = config
        .memory_mib
        .unwrap_or(host.memory_mib)
        .min(host.memory_mib);
    let allowed = config
        .memory_mib
        .map_or(u64::MAX, |most| most.saturating_sub(promised_mib));
    let vcpus = host.vcpus * config.cpu_overcommit;
    Capacity {
        total: Resources {
            vcpus,
            memory_mib: total_memory,
            disk_mib: host.disk_mib,
        },
        free: Resources {
            vcpus: (vcpus - promises.iter().map(|p| p.vcpus).sum::<f64>()).max(0.0),
            memory_mib: real.min(allowed),
            disk_mib: host.disk_free_mib.saturating_sub(config.disk_reserve_mib),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            vcpus: 2.0,
            memory_mib: 8000,
            available_mib: 4000,
            disk_mib: 9000,
            disk_free_mib: 3000,
        }
    }

    #[test]
    fn promises_are_kept_back_and_use_is_not_counted_twice() {
        let config = LocalConfig {
            memory_reserve_mib: 500,
            ..LocalConfig::new("/s", "/i")
        };
        let promise = |used: u64| Promise {
            vcpus: 0.5,
            memory_bytes: 1000 << 20,
            used_bytes: used << 20,
        };
        assert_eq!(what_is_free(&host(), &[], &config).free.memory_mib, 3500);
        assert_eq!(
            what_is_free(&host(), &[promise(0)], &config)
                .free
                .memory_mib,
            2500
        );
        let free = what_is_free(&host(), &[promise(400)], &config).free;
        assert_eq!(
            (free.memory_mib, free.vcpus, free.disk_mib),
            (2900, 15.5, 1976)
        );
        let capped = LocalConfig {
            memory_mib: Some(1500),
            ..config
        };
        assert_eq!(
            what_is_free(&host(), &[promise(400)], &capped)
                .free
                .memory_mib,
            500
        );
        assert_eq!(
            what_is_free(&host(), &[promise(0), promise(0)], &capped)
                .free
                .memory_mib,
            0
        );
    }
}
