//! What managers report, taken into the store: wishes for nodes, exposures, statuses. A report is
//! whole, so taking one again changes nothing.

use super::broker::tell;
use super::managers;
use super::records;
use super::shared::Shared;
use crate::error::DirectorError;
use crate::incarnation::{self, Incarnation};
use crate::operations;
use crate::store::changes::Touched;
use crate::store::{self, Millis, services};
use conpaas_core::broker::NodeKey;
use conpaas_kill_points::{KillPoint, reached};
use conpaas_model::ends::{AGENT, EndsToTell};
use conpaas_model::event::{DeathSignal, EventKind, LeaveReason, RequestReason};
use conpaas_model::ids::{ApplicationId, Epoch, NodeNumber, ServiceId};
use conpaas_model::protocol::{ManagerReport, NodeWish, ServiceReport};
use conpaas_model::status::{NodeHealth, SILENT, ServiceStatus};
use rusqlite::{Connection, params};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often figures alone (memory, CPU) are written down.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
/// Most processes of one node whose ends are told; init counts fewer.
const PROCESSES_TOLD: usize = 1000;
/// How far ahead of the recorded numbers a manager may count: more is a mistake.
const NUMBERS_AHEAD: u64 = 10_000;

/// Who reports.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The manager on a system service's node.
    Manager { system: ServiceId, epoch: Epoch },
    /// The Director itself, of system services.
    Director,
}

/// Whether a report brings news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    News,
    /// Only figures changed: worth recording, nobody need be woken.
    Figures,
}

/// Holds back what was recorded a moment ago.
#[derive(Default)]
pub struct Filter {
    last: Option<(ManagerReport, Instant)>,
}

impl Filter {
    /// What to do with a report; nothing when it says what the last one said.
    pub fn pass(&mut self, report: &ManagerReport) -> Option<Pass> {
        let bare = without_figures(report.clone());
        let now = Instant::now();
        match &self.last {
            Some((last, _)) if *last != bare => {}
            Some((_, at)) if now.duration_since(*at) < FIGURES_EVERY => return None,
            Some(_) => {
                self.last = Some((bare, now));
                return Some(Pass::Figures);
            }
            None => {}
        }
        self.last = Some((bare, now));
        Some(Pass::News)
    }

    /// Lets the next report through whatever it says.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

/// The same without what changes all the time.
pub fn without_figures(mut report: ManagerReport) -> ManagerReport {
    for node in report
        .services
        .iter_mut()
        .flat_map(|service| &mut service.status.nodes)
    {
        node.health = NodeHealth::default();
    }
    report
}

/// Takes reports in; false when their sender has lost the post.
pub async fn take(
    shared: &Arc<Shared>,
    origin: Origin,
    reports: Vec<ServiceReport>,
    pass: Pass,
) -> Result<bool, DirectorError> {
    let now = store::now();
    let change = move |tx: &rusqlite::Transaction<'_>| {
        if let Origin::Manager { system, epoch } = &origin
            && managers::epoch(tx, system)? != *epoch
        {
            return Ok((None, Touched::default()));
        }
        let (mut doubts, mut touched) = (BTreeSet::new(), Touched::default());
        for report in &reports {
            if let Some(application) = take_one(tx, &origin, report, pass, now, &mut doubts)? {
                touched.add(&application.into());
            }
        }
        Ok((Some(doubts), touched))
    };
    let taken = match pass {
        Pass::News => shared.store.transaction_finding(change).await,
        Pass::Figures => shared.store.quiet(change).await.map(|(taken, _)| taken),
    };
    let doubts = taken?;
    reached(KillPoint::ReportTaken);
    let in_office = doubts.is_some();
    if let Some(doubts) = doubts.filter(|doubts| !doubts.is_empty()) {
        shared.doubts.add(doubts);
        shared.wake.notify_one();
    }
    Ok(in_office)
}

/// Takes one in; the application whose it is, if it counts. Clouds of nodes that have just fallen
/// silent are added to `doubts`.
fn take_one(
    tx: &Connection,
    origin: &Origin,
    report: &ServiceReport,
    pass: Pass,
    now: Millis,
    doubts: &mut BTreeSet<String>,
) -> Result<Option<ApplicationId>, DirectorError> {
    // A service that was removed meanwhile, or that is another manager's: not the sender's to say.
    let Some(row) = services::get(tx, &report.service)? else {
        return Ok(None);
    };
    let epoch = match origin {
        Origin::Manager { system, epoch } if row.manager.as_ref() == Some(system) => *epoch,
        Origin::Director if row.internal => Incarnation::of(tx)?.director_epoch(),
        Origin::Manager { .. } | Origin::Director => return Ok(None),
    };
    let mut next = row.next_node;
    for (number, wish) in &report.nodes {
        let key = NodeKey {
            service: row.id.clone(),
            number: *number,
        };
        match wish {
            // A spec that has changed since may need the node.
            NodeWish::Gone if report.status.generation < row.generation => {}
            NodeWish::Gone => {
                if records::wish_gone(tx, &key)? {
                    // One that an earlier version wrote says no reason: then it was none of a death.
                    let reason = report.leaving.get(number).copied();
                    tell_leaving(tx, &key, reason.unwrap_or(LeaveReason::Surplus))?;
                }
            }
            NodeWish::Present {
                cloud,
                instance_type,
            } => {
                // A number below the next one was given before: it is there, or it is over.
                if *number < next || number.0 > next.0.saturating_add(NUMBERS_AHEAD) {
                    continue;
                }
                let Some(address) = records::free_address(tx, &row.app, &row.id)? else {
                    tracing::error!(application = %row.app, "the application has no address left for another node");
                    continue;
                };
                records::insert_node(tx, &key, cloud, instance_type, address, now)?;
                let what = EventKind::NodeRequested {
                    node: *number,
                    cloud: cloud.clone(),
                    instance_type: instance_type.clone(),
                    because: report
                        .requested
                        .get(number)
                        .cloned()
                        .unwrap_or(RequestReason::Count),
                };
                tell(tx, &key, what, None)?;
                next = NodeNumber(number.0.saturating_add(1));
            }
        }
    }
    if next != row.next_node {
        tx.prepare_cached("UPDATE services SET next_node = ?2 WHERE id = ?1")?
            .execute(params![row.id.as_str(), records::signed(next.0)])?;
    }
    let known: BTreeSet<NodeNumber> = row.status.iter().flat_map(silent).collect();
    for number in silent(&report.status).filter(|number| !known.contains(number)) {
        let key = NodeKey {
            service: row.id.clone(),
            number,
        };
        if let Some(node) = records::node(tx, &key)? {
            doubts.insert(node.cloud);
        }
    }
    for ends in &report.ends {
        tell_ends(tx, &row.id, ends)?;
    }
    let old = row.exposure.as_ref();
    // After a restore the edge goes on as it did until there is somebody to lead people to.
    let says_nothing =
        report.exposure.upstreams.is_empty() && row.awaits_exposure(incarnation::restored_at(tx)?);
    // A manager that only listens yet reports none: what stands holds.
    let newer = old.is_none_or(|old| report.exposure.version >= old.version);
    if newer && !says_nothing && old != Some(&report.exposure) {
        let text = serde_json::to_string(&report.exposure)?;
        tx.prepare_cached("UPDATE services SET exposure_json = ?2 WHERE id = ?1")?
            .execute(params![row.id.as_str(), text])?;
    }
    match pass {
        Pass::News => operations::observe(tx, &row.id, &report.status)?,
        Pass::Figures => services::set_status(tx, &row.id, &report.status)?,
    }
    tx.prepare_cached("UPDATE services SET status_epoch = ?2 WHERE id = ?1")?
        .execute(params![row.id.as_str(), records::signed(epoch.0)])?;
    Ok(Some(row.app))
}

/// The nodes whose agents have hung up.
fn silent(status: &ServiceStatus) -> impl Iterator<Item = NodeNumber> {
    let silent = status.nodes.iter().filter(|node| node.state == SILENT);
    silent.map(|node| node.number)
}

/// Tells that a node is wished gone; one that fell silent is thereby judged dead.
fn tell_leaving(tx: &Connection, key: &NodeKey, because: LeaveReason) -> Result<(), DirectorError> {
    let node = key.number;
    match because {
        LeaveReason::Silent { seconds } => {
            let signal = DeathSignal::Silence { seconds };
            let reason = signal.to_string();
            tell(tx, key, EventKind::NodeDied { node, signal }, Some(&reason))
        }
        because => tell(tx, key, EventKind::NodeLetGo { node, because }, None),
    }
}

/// Writes down ends of a process that were not written down yet.
fn tell_ends(
    tx: &Connection,
    service: &ServiceId,
    found: &EndsToTell,
) -> Result<(), DirectorError> {
    let key = NodeKey {
        service: service.clone(),
        number: found.node,
    };
    let (node, ends) = (found.node, &found.ends);
    let Some(mut record) = records::node(tx, &key)? else {
        return Ok(());
    };
    let before = record.told.insert(ends.process.clone(), ends.count);
    let times = ends.count.saturating_sub(before.unwrap_or(0));
    if times == 0 || record.told.len() > PROCESSES_TOLD {
        return Ok(());
    }
    records::set_told(tx, &key, &record.told)?;
    let (exit, total) = (ends.last, ends.count);
    let what = if ends.process == AGENT {
        EventKind::AgentRestarted {
            node,
            exit,
            times,
            total,
        }
    } else {
        let (role, part) = ends.process.split_once('/').unwrap_or((&ends.process, ""));
        EventKind::ProcessEnded {
            node,
            role: role.to_owned(),
            process: part.to_owned(),
            exit,
            times,
            total,
        }
    };
    tell(tx, &key, what, Some(&exit.to_string()))
}
