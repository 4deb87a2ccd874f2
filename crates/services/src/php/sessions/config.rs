//! Texts of the session store's configuration, and of PHP's part in it. Pure.

use super::super::manager::SessionsConfig;
use std::net::SocketAddrV4;
use std::path::Path;

/// What PHP's session handler puts before a session's name.
pub const PREFIX: &str = "PHPREDIS_SESSION:";
/// The key that says of which term the data are. It travels with them, so whoever has it has a
/// whole copy of what that term began with.
pub const TERM: &str = "conpaas:term";
/// The account of this node's agent.
pub const AGENT: &str = "conpaas";
/// The account of other copies.
const COPY: &str = "copy";

/// The store's file. Whoever comes without a name may do to sessions what PHP's handler does, and
/// read the term; whoever copies may copy; only the agent of this very node may do anything else.
pub fn file(
    listen: SocketAddrV4,
    folder: &Path,
    secret: &str,
    config: &SessionsConfig,
    follows: Option<SocketAddrV4>,
) -> String {
    let (ip, port) = (listen.ip(), listen.port());
    let memory = config.memory_mib;
    let folder = folder.display();
    let follows = follows.map_or_else(String::new, |leader| {
        format!("replicaof {} {}\n", leader.ip(), leader.port())
    });
    format!(
        r#"# Written by ConPaaS; changes here are lost.
bind {ip}
port {port}
protected-mode no
daemonize no
logfile ""
always-show-logo no
dir "{folder}"
maxclients 4000
tcp-keepalive 10
timeout 0
databases 1
# Every write is in the file before it is answered, so that a process that dies loses nothing.
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 8mb
save ""
# Full of sessions, the ones that were idle longest are forgotten (locks are never idle).
maxmemory {memory}mb
maxmemory-policy volatile-lru
maxmemory-samples 10
replica-announce-ip {ip}
replica-announce-port {port}
replica-read-only yes
replica-serve-stale-data yes
# From a file: a copy that was sent straight from memory gets nothing more until its next word, up
# to a second later, and seems whole meanwhile.
repl-diskless-sync no
rdb-del-sync-files yes
repl-diskless-load disabled
repl-timeout 10
repl-ping-replica-period 2
client-output-buffer-limit replica 16mb 8mb 60
masteruser {COPY}
masterauth {COPY}
user default on nopass resetchannels ~{PREFIX}* %R~{TERM} -@all +ping +echo +select +get +set +setex +psetex +getex +del +unlink +exists +expire +pexpire +ttl +eval +evalsha
user {COPY} on nopass resetchannels -@all +ping +replconf +psync
user {AGENT} on >{secret} ~* &* +@all
{follows}"#
    )
}

/// Where PHP's handler finds the store: the node's endpoint, which holds questions while the
/// leader changes. PHP waits longer than the endpoint holds.
pub fn save_path(endpoint: SocketAddrV4) -> String {
    let wait = super::HOLD_SECONDS + 5;
    format!("tcp://{endpoint}?timeout={wait}&read_timeout={wait}&prefix={PREFIX}")
}

/// Pause between two tries for a session that another request has, in microseconds.
const TRY_MICROSECONDS: u64 = 5000;

/// Lines of PHP's ini file: one request at a time has a session. The lock of one that died ends
/// by itself; others wait a little longer than that.
pub fn ini_lines(lock_seconds: u64) -> String {
    let tries = (lock_seconds + 5) * 1_000_000 / TRY_MICROSECONDS;
    format!(
        "redis.session.locking_enabled = 1\n\
         redis.session.lock_expire = {lock_seconds}\n\
         redis.session.lock_wait_time = {TRY_MICROSECONDS}\n\
         redis.session.lock_retries = {tries}\n"
    )
}
