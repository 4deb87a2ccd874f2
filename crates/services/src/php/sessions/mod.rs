//! `sessions`: the store of PHP's sessions, one process a node; one copy leads, the others follow
//! it. Who leads, the manager decides; how a copy begins, hands over and follows is here.

mod config;
mod locks;
mod next;

pub use config::{ini_lines, save_path};
pub use locks::taken_again;

use super::manager::SessionsConfig;
use super::{Php, SESSIONS};
use crate::support::background::{Stops, stop_all};
use crate::support::files;
use crate::support::redis::Store;
use async_trait::async_trait;
use config::{AGENT, TERM};
use conpaas_core::endpoint;
use conpaas_core::role_agent::{NodeContext, ProcessSpec, ProcessStatus, RoleAgent, RoleError};
use conpaas_core::service_type::Standing;
use conpaas_model::ids::{NodeNumber, Term};
use conpaas_model::level::{Duty, Lead, LeadStage, RoleLevel};
use conpaas_model::status::{Phase, RoleStatus};
use locks::Holders;
use next::{Part, Step, View, next};
use serde_json::{Map, Value};
use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const PROGRAM: &str = "/usr/bin/redis-server";
const ACCOUNT: &str = "redis";
/// How long PHP is held while nobody leads.
pub const HOLD_SECONDS: u32 = 15;
const SIGTERM: i32 = 15;
const GRACE: Duration = Duration::from_secs(10);
/// How long an answer of this node's store may take, and of another's.
const LIMIT: Duration = Duration::from_secs(2);
const FAR_LIMIT: Duration = Duration::from_millis(500);
/// How long one call may work towards its level before it is looked at again.
const TURN: Duration = Duration::from_millis(600);
const PAUSE: Duration = Duration::from_millis(20);
/// After so many starts without an answer it counts as failed.
const STARTS: u32 = 3;

/// The agent half of the role.
#[derive(Default)]
pub struct Sessions {
    stops: Stops,
    /// The newest term that was told here, and since when.
    told: Option<(Term, Instant)>,
    /// How far the data were when last seen, for when it does not answer.
    ahead: u64,
    /// Starts since it last answered.
    starts: u32,
    /// Another that leads by a higher term.
    higher: Option<SocketAddrV4>,
    holders: Holders,
    born: Option<Instant>,
}

/// Where this node's endpoint to the store is.
pub fn place(node: &NodeContext) -> Result<SocketAddrV4, RoleError> {
    endpoint::address(&Php, SESSIONS)
        .map(|at| node.loopback.place(at))
        .ok_or_else(|| RoleError::Failed("the type declares no endpoint for sessions".into()))
}

/// How a copy stands, as `observe` tells it.
pub fn standing(facts: &Map<String, Value>) -> Standing {
    let term = |name: &str| facts.get(name).and_then(Value::as_u64).map(Term);
    Standing {
        told: facts.contains_key("sessions"),
        leads: term("leads"),
        holds: term("holds"),
        ahead: facts
            .get("ahead")
            .and_then(Value::as_u64)
            .unwrap_or_default(),
    }
}

fn process_name(node: &NodeContext) -> String {
    node.process_name(SESSIONS, "store")
}

fn own(node: &NodeContext) -> SocketAddrV4 {
    SocketAddrV4::new(node.address, super::SESSIONS_PORT)
}

fn secret(node: &NodeContext) -> Result<String, RoleError> {
    let folder = node.role_folder(SESSIONS);
    files::folder_of(&folder, 0o700, ACCOUNT)?;
    files::local_secret(&folder.join("agent.secret"))
}

fn not_yet(what: &str) -> RoleError {
    RoleError::io(what)(ErrorKind::WouldBlock.into())
}

/// The number of this node, which only leads tell.
fn me(node: &NodeContext, lead: &Lead) -> Option<NodeNumber> {
    std::iter::once(&lead.leader)
        .chain(&lead.others)
        .find(|p| p.address == node.address)
        .map(|p| p.node)
}

/// A word after `name:` on a line of its own.
fn line<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.trim().split_once(':'));
    lines
        .into_iter()
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// What a store says of its part in copying.
fn part(text: &str) -> Option<(Part, u64)> {
    let number = |name: &str| line(text, name).and_then(|n| n.parse::<u64>().ok());
    if line(text, "role")? == "master" {
        let copies = text.lines().filter_map(|line| {
            let (_, words) = line.trim().split_once(':').filter(|(k, _)| {
                k.strip_prefix("slave")
                    .is_some_and(|n| n.parse::<u32>().is_ok())
            })?;
            let word = |name: &str| {
                let words = words.split(',').filter_map(|word| word.split_once('='));
                words
                    .into_iter()
                    .find_map(|(k, v)| (k == name).then_some(v))
            };
            (word("state")? == "online").then_some(())?;
            Some(SocketAddrV4::new(
                word("ip")?.parse().ok()?,
                word("port")?.parse().ok()?,
            ))
        });
        let copies = copies.collect();
        return Some((Part::Master { copies }, number("master_repl_offset")?));
    }
    let of = SocketAddrV4::new(
        line(text, "master_host")?.parse().ok()?,
        line(text, "master_port")?.parse().ok()?,
    );
    let up = line(text, "master_link_status") == Some("up")
        && line(text, "master_sync_in_progress") == Some("0");
    Some((
        Part::Copy { of, up },
        number("slave_repl_offset").unwrap_or(0),
    ))
}

impl Sessions {
    async fn store(&self, node: &NodeContext) -> io::Result<Store> {
        let secret = secret(node).map_err(io::Error::other)?;
        Store::connect(own(node), Some((AGENT, &secret)), LIMIT).await
    }

    async fn look(&mut self, store: &mut Store) -> io::Result<View> {
        let text: String = store.ask(&["INFO", "replication"]).await?;
        let (part, ahead) = part(&text)
            .ok_or_else(|| io::Error::other("the store does not say what part it has"))?;
        // One that still reads its file does not answer this.
        let term: Option<u64> = store.ask(&["GET", TERM]).await?;
        let term = term.map(Term);
        (self.starts, self.ahead) = (0, ahead);
        Ok(View { part, term, ahead })
    }

    /// Makes the process run.
    async fn run(
        &mut self,
        node: &NodeContext,
        config: &SessionsConfig,
        lead: Option<&Lead>,
    ) -> Result<(), RoleError> {
        let name = process_name(node);
        let running = |p: &ProcessStatus| p.name == name && p.running;
        if self.stops.under_way(&name) || node.processes.list().await?.iter().any(running) {
            return Ok(());
        }
        let folder = node.role_folder(SESSIONS);
        let secret = secret(node)?;
        files::folder(&node.log_folder, 0o755)?;
        // One that comes back never takes writes before it knows that it leads.
        let follows = lead
            .filter(|lead| lead.leader.address != node.address)
            .map(|lead| SocketAddrV4::new(lead.leader.address, lead.leader.port));
        let path = folder.join("store.conf");
        let text = config::file(own(node), &folder, &secret, config, follows);
        files::write_if_changed(&path, text.as_bytes(), 0o600)?;
        files::give(&path, ACCOUNT).map_err(RoleError::io("giving the store its file"))?;
        let spec = ProcessSpec {
            name,
            argv: vec![PROGRAM.to_owned(), path.display().to_string()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            user: files::account(ACCOUNT),
            log: node.log(SESSIONS, "store"),
            working_directory: PathBuf::from("/"),
            stop_signal: SIGTERM,
        };
        self.starts = self.starts.saturating_add(1);
        node.processes.ensure(&spec).await.map(drop)
    }

    /// One of the others that holds data of a higher term than this level's.
    async fn ask_others(&self, lead: &Lead) -> Option<SocketAddrV4> {
        let mut asked = JoinSet::new();
        for other in &lead.others {
            let at = SocketAddrV4::new(other.address, other.port);
            asked.spawn(async move {
                let mut store = Store::connect(at, None, FAR_LIMIT).await.ok()?;
                let term: Option<u64> = store.ask(&["GET", TERM]).await.ok()?;
                Some((Term(term?), at))
            });
        }
        let told = asked.join_all().await;
        let newest = told.into_iter().flatten().max()?;
        (newest.0 > lead.term).then_some(newest.1)
    }

    /// One step towards the lead; whether it is where it should be.
    async fn follow(&mut self, node: &NodeContext, lead: &Lead) -> io::Result<Step> {
        let Some(me) = me(node, lead) else {
            return Ok(Step::Stay);
        };
        let since = match self.told {
            Some((term, since)) if term == lead.term => since,
            _ => {
                let now = Instant::now();
                self.told = Some((lead.term, now));
                now
            }
        };
        if lead.leader.node == me {
            self.higher = self.ask_others(lead).await;
        } else {
            self.higher = None;
        }
        let mut store = self.store(node).await?;
        let view = self.look(&mut store).await?;
        let step = next(&view, lead, me, self.higher, since.elapsed());
        let master = matches!(view.part, Part::Master { .. });
        let age = self.born.get_or_insert_with(Instant::now).elapsed();
        let gone = self.holders.take(&lead.users, age);
        if master && step == Step::Stay && lead.leader.node == me {
            free_locks(&mut store, me, &gone).await?;
        }
        let text = |at: SocketAddrV4| (at.ip().to_string(), at.port().to_string());
        match step {
            Step::Stay | Step::Wait => {}
            Step::Begin { empty } => {
                store.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await?;
                if empty {
                    store.ask::<()>(&["FLUSHALL"]).await?;
                }
                let term = lead.term.0.to_string();
                store.ask::<()>(&["SET", TERM, &term]).await?;
                tracing::info!(term = lead.term.0, empty, "the store leads");
            }
            Step::HandOver(whom) => {
                let (ip, port) = text(whom);
                let words = ["FAILOVER", "TO", &ip, &port, "TIMEOUT", "3000"];
                // Refused while it is under way; if it fails, it is tried again.
                store.ask::<()>(&words).await?;
            }
            Step::Follow(whom) => {
                let (ip, port) = text(whom);
                store.ask::<()>(&["REPLICAOF", &ip, &port]).await?;
                if master {
                    // Whoever still speaks to it must look for the leader.
                    store
                        .ask::<u64>(&["CLIENT", "KILL", "TYPE", "normal"])
                        .await?;
                }
                tracing::info!(%whom, "the store follows");
            }
        }
        Ok(step)
    }

    fn phase(&self, view: &View, level: &RoleLevel, node: &NodeContext) -> Phase {
        let master = matches!(view.part, Part::Master { .. });
        let lead = level.leads.get(SESSIONS);
        let leads = lead.is_some_and(|lead| lead.leader.address == node.address);
        if level.duty == Duty::Drain {
            // The manager lets one go only when another leads, or none is wanted.
            return match master && !leads && lead.is_some() {
                true => Phase::Draining,
                false => Phase::Drained,
            };
        }
        let Some(lead) = lead else {
            return Phase::Starting;
        };
        let waited = self
            .told
            .map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let whole = view.term == Some(lead.term);
        if !leads {
            let in_step = matches!(view.part, Part::Copy { up: true, .. });
            let held = whole || lead.stage == LeadStage::Beginning && view.term == lead.after;
            return match in_step && held && view.term.is_some() {
                true => Phase::Ready,
                false => Phase::Starting,
            };
        }
        if whole && master && self.higher.is_none() {
            return Phase::Ready;
        }
        // What it had is gone: that it holds nothing tells the manager, who decides again.
        let lost = master && lead.stage != LeadStage::Beginning && view.term < Some(lead.term);
        if !lost && waited >= 2 * next::HAND_OVER {
            return Phase::Failed(match self.higher {
                Some(other) => format!("the store at {other} leads by a higher term"),
                None => format!("it cannot begin {}: it holds {:?}", lead.term, view.term),
            });
        }
        Phase::Starting
    }
}

/// Frees the locks that nodes which are gone hold.
async fn free_locks(store: &mut Store, me: NodeNumber, gone: &[NodeNumber]) -> io::Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    for node in gone {
        let Some(holder) = locks::holder(host.trim(), me, *node) else {
            continue;
        };
        let words = ["EVAL", locks::SCRIPT, "0", &locks::pattern(), &holder];
        let freed: u64 = store.ask(&words).await?;
        if freed > 0 {
            tracing::info!(%node, freed, "locks of a node that is gone");
        }
    }
    Ok(())
}

fn read(level: &RoleLevel) -> Result<SessionsConfig, RoleError> {
    serde_json::from_value(level.config.clone()).map_err(|error| {
        RoleError::Failed(format!("the role's configuration cannot be read: {error}"))
    })
}

#[async_trait]
impl RoleAgent for Sessions {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        self.stops.settle(Duration::ZERO).await?;
        let lead = level.leads.get(SESSIONS);
        self.run(node, &read(level)?, lead).await?;
        let Some(lead) = lead else {
            return Ok(());
        };
        let until = Instant::now() + TURN;
        loop {
            let waits_for = match self.follow(node, lead).await {
                Ok(Step::Stay) => return Ok(()),
                Ok(Step::Wait | Step::HandOver(_)) => "handing over the lead",
                Ok(Step::Begin { .. } | Step::Follow(_)) => "the store",
                Err(_) => "the store's answer",
            };
            if Instant::now() >= until {
                return Err(not_yet(waits_for));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let mut status = RoleStatus::default();
        let looked = async {
            let mut store = self.store(node).await?;
            let view = self.look(&mut store).await?;
            let keys: i64 = store.ask(&["DBSIZE"]).await?;
            Ok::<_, io::Error>((view, keys))
        };
        let looked = looked.await;
        status.facts.insert("ahead".into(), self.ahead.into());
        match looked {
            Ok((view, keys)) => {
                let phase = self.phase(&view, level, node);
                let lead = level.leads.get(SESSIONS);
                let leads = lead.filter(|lead| {
                    lead.leader.address == node.address
                        && matches!(view.part, Part::Master { .. })
                        && view.term == Some(lead.term)
                        && self.higher.is_none()
                });
                if let Some(lead) = leads {
                    status.facts.insert("leads".into(), lead.term.0.into());
                }
                if let Some(term) = view.term {
                    status.facts.insert("holds".into(), term.0.into());
                }
                // The term itself is no session.
                let sessions = (keys - i64::from(view.term.is_some())).max(0);
                status.facts.insert("sessions".into(), sessions.into());
                status.own = Some(phase);
            }
            Err(_) => {
                let name = process_name(node);
                let list = node.processes.list().await?;
                let process = list.iter().find(|p| p.name == name);
                let ended = process.filter(|p| !p.running).and_then(|p| p.exit);
                status.own = Some(match ended {
                    _ if level.duty == Duty::Drain && process.is_none_or(|p| !p.running) => {
                        Phase::Drained
                    }
                    Some(exit) if self.starts >= STARTS => Phase::Failed(format!(
                        "the store ended with {exit}: {}",
                        files::last_line(&node.log(SESSIONS, "store")).unwrap_or_default()
                    )),
                    _ => Phase::Starting,
                });
            }
        }
        Ok(status)
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        let prefix = node.process_name(SESSIONS, "");
        let gone = stop_all(&node.processes, &mut self.stops, &prefix, GRACE).await?;
        if gone {
            // What another copy holds is newer: nothing is to come back from here.
            let folder = node.role_folder(SESSIONS);
            if folder.exists() {
                std::fs::remove_dir_all(&folder)
                    .map_err(RoleError::io(format!("tidying {}", folder.display())))?;
            }
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_read_by_its_own_words() {
        let master = "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n\
            slave0:ip=100.64.0.3,port=6379,state=online,offset=14,lag=0\r\n\
            slave1:ip=100.64.0.4,port=6379,state=wait_bgsave,offset=0,lag=0\r\n\
            master_failover_state:no-failover\r\nmaster_repl_offset:14\r\n";
        let copies = vec!["100.64.0.3:6379".parse().unwrap()];
        assert_eq!(part(master), Some((Part::Master { copies }, 14)));
        let copy = "role:slave\r\nmaster_host:100.64.0.2\r\nmaster_port:6379\r\n\
            master_link_status:up\r\nmaster_sync_in_progress:0\r\nslave_repl_offset:12\r\n\
            master_repl_offset:12\r\n";
        let of = "100.64.0.2:6379".parse().unwrap();
        assert_eq!(part(copy), Some((Part::Copy { of, up: true }, 12)));
        let first = copy.replace("sync_in_progress:0", "sync_in_progress:1");
        assert_eq!(part(&first), Some((Part::Copy { of, up: false }, 12)));
        assert_eq!(part("role:none"), None);
        assert_eq!(part(""), None);
    }
}
