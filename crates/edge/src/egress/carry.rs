//! Carrying one application's connections out: taken at an outlet's doors, checked, made anew from
//! this computer, and logged: `TIME OWNER/APP FROM TO SENT RECEIVED OUTCOME`, one line each.

use super::policy::Rules;
use super::{EgressConfig, names};
use crate::access_log::AccessLog;
use conpaas_model::edge::Outlet;
use jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// How long a destination may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// Connections of one application at once; more wait at the door.
const MOST_CONNECTIONS: usize = 1024;

/// Carries connections out.
pub struct Carrier {
    pub(super) config: EgressConfig,
    rules: Rules,
    log: AccessLog,
    under_way: watch::Sender<usize>,
    closing: watch::Sender<bool>,
}

/// One connection that is counted as under way.
struct UnderWay(Arc<Carrier>);

impl UnderWay {
    fn new(carrier: &Arc<Carrier>) -> Self {
        carrier.under_way.send_modify(|count| *count += 1);
        Self(carrier.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|count| *count -= 1);
    }
}

/// Where a taken connection goes.
enum To {
    Address(SocketAddrV4),
    NameServer,
}

impl Carrier {
    /// `front_doors` are the ports at which this computer serves the world.
    pub fn new(config: EgressConfig, front_doors: Vec<u16>, log: AccessLog) -> Self {
        Self {
            rules: Rules {
                allow: config.allow.clone(),
                front_doors,
            },
            config,
            log,
            under_way: watch::Sender::new(0),
            closing: watch::Sender::new(false),
        }
    }

    /// From now on no connection is taken.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    pub fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Returns when nothing is under way.
    pub async fn at_rest(&self) {
        let _ = self
            .under_way
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }

    /// Serves an outlet until it is closed and what it carries has ended.
    pub(super) async fn serve(self: &Arc<Self>, open: conpaas_cloud::Outlet, outlet: &Outlet) {
        let mut doors = JoinSet::new();
        let given: Arc<[IpAddr]> = self.config.name_servers.clone().into();
        match UdpSocket::from_std(open.names) {
            Ok(socket) => drop(doors.spawn(names::answer_all(socket, given))),
            Err(error) => tracing::warn!(%error, "names cannot be answered"),
        }
        let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut connections = JoinSet::new();
        let (taken, mut taking) = tokio::sync::mpsc::channel(16);
        let listeners = open.doors.into_iter().map(|door| (door, false));
        for (door, for_names) in listeners.chain([(open.long_names, true)]) {
            match TcpListener::from_std(door) {
                Ok(door) => drop(doors.spawn(take(door, for_names, slots.clone(), taken.clone()))),
                Err(error) => tracing::warn!(%error, "a door of an outlet cannot be opened"),
            }
        }
        let mut closing = self.closing.subscribe();
        loop {
            tokio::select! {
                _ = closing.wait_for(|closing| *closing) => break,
                Some((stream, for_names, slot)) = taking.recv() => {
                    while connections.try_join_next().is_some() {}
                    let (under_way, outlet) = (UnderWay::new(self), outlet.clone());
                    connections.spawn(async move {
                        let _slot: OwnedSemaphorePermit = slot;
                        under_way.0.carry(stream, for_names, &outlet).await;
                    });
                }
            }
        }
        doors.abort_all();
        while connections.join_next().await.is_some() {}
    }

    async fn carry(&self, mut inner: TcpStream, for_names: bool, outlet: &Outlet) {
        let (Ok(from), Ok(SocketAddr::V4(bound_for))) = (inner.peer_addr(), inner.local_addr())
        else {
            return;
        };
        let to = if for_names {
            To::NameServer
        } else {
            To::Address(bound_for)
        };
        let (outcome, sent, received) = match self.connect(&to).await {
            Ok(mut outer) => {
                keep_alive(&inner);
                keep_alive(&outer);
                match tokio::io::copy_bidirectional(&mut inner, &mut outer).await {
                    Ok((sent, received)) => ("done".to_owned(), sent, received),
                    Err(error) => (format!("broke off: {error}"), 0, 0),
                }
            }
            Err(why) => {
                // It was taken already: all that can be said is that it is broken.
                let _ = inner.set_zero_linger();
                (why, 0, 0)
            }
        };
        drop(inner);
        self.log.line(format!(
            "{} {}/{} {from} {bound_for} {sent} {received} {outcome}",
            Timestamp::now(),
            outlet.owner,
            outlet.app,
        ));
    }

    /// The connection onwards, or why there is none.
    async fn connect(&self, to: &To) -> Result<TcpStream, String> {
        let connecting = async {
            match to {
                To::NameServer => names::connect(&self.config.name_servers).await,
                To::Address(address) => TcpStream::connect(address).await,
            }
        };
        if let To::Address(address) = to {
            let own = own_addresses().map_err(|error| format!("failed: {error}"))?;
            self.rules
                .check(*address, &own)
                .map_err(|refusal| refusal.to_string())?;
        }
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("failed: {error}")),
            Err(_) => Err("failed: no answer".to_owned()),
        }
    }
}

/// Takes connections at one door, for ever.
async fn take(
    door: TcpListener,
    for_names: bool,
    slots: Arc<Semaphore>,
    taken: tokio::sync::mpsc::Sender<(TcpStream, bool, OwnedSemaphorePermit)>,
) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match door.accept().await {
            Ok((stream, _)) => {
                if taken.send((stream, for_names, slot)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Mostly too many open files: waiting gives others time to end.
                tracing::warn!(%error, "cannot take a connection that wants to get out");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The addresses of this computer.
fn own_addresses() -> io::Result<Vec<Ipv4Addr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    Ok(all
        .filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip()))
        .collect())
}

/// A peer that vanished must not hold a connection for ever; one that is silent may.
fn keep_alive(stream: &TcpStream) {
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
}
