//! How much of a machine's memory each daemon gets: pure arithmetic over MiB. Machines show
//! their host's memory to programs, so every daemon must be told.

/// Sizes of one PHP pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// Processes, so requests at once.
    pub children: u32,
    /// Shared memory for compiled code, in MiB.
    pub opcache_mib: u64,
}

/// The master process and what a pool needs besides its children, in MiB.
const POOL_BASE_MIB: u64 = 16;
/// What a child needs at least, in MiB.
const CHILD_FLOOR_MIB: u64 = 16;

/// Sizes of a PHP pool whose role may use `memory_mib` with all its releases: two pools are side
/// by side during a switch, so each gets half. Few requests come near their limit, so a child is
/// reckoned with a quarter of it; two children are the least with which one slow page does not
/// block everybody.
pub fn pool(memory_mib: u64, memory_limit_bytes: u64, wished_children: u64) -> PoolSize {
    let half = memory_mib / 2;
    let opcache_mib = (half / 6).clamp(8, 128);
    let child = (memory_limit_bytes >> 22).max(CHILD_FLOOR_MIB);
    let computed = half.saturating_sub(opcache_mib + POOL_BASE_MIB) / child;
    let children = if wished_children > 0 {
        wished_children
    } else {
        computed.clamp(2, 256)
    };
    PoolSize {
        children: u32::try_from(children).unwrap_or(u32::MAX),
        opcache_mib,
    }
}

/// The session store itself, in MiB.
const STORE_BASE_MIB: u64 = 8;

/// Memory for sessions in a store that may use `memory_mib`, in MiB: while its file is written
/// anew, or another copy is made, what changes meanwhile is there twice.
pub fn store(memory_mib: u64) -> u64 {
    (memory_mib.saturating_sub(STORE_BASE_MIB) / 2).max(4)
}

/// Most connections of any load balancer; what it may hold now is set below this while it runs.
pub const MOST_CONNECTIONS: u64 = 8000;

/// Connections a load balancer may hold in `memory_mib`: a connection in use has two buffers of
/// 16 KiB and its state, and half of the memory stays free.
pub fn connections(memory_mib: u64) -> u64 {
    (memory_mib * 1024 / 2 / 48).clamp(200, MOST_CONNECTIONS)
}

/// Threads or worker processes for so many virtual CPUs.
pub fn threads(vcpus: f64) -> u32 {
    // Saturating by definition of `as` for floats; NaN gives 0.
    (vcpus.ceil() as u32).clamp(1, 16)
}
