//! Carrying one application's connections out: taken at an outlet's doors, checked, made anew from
//! this computer, and logged: `TIME OWNER/APP FROM TO SENT RECEIVED OUTCOME`, one line each.

use super::policy::Rules;
use super::recent::Recent;
use super::share::{Place, Share, Shares};
use super::{EgressConfig, names};
use crate::access_log::AccessLog;
use conpaas_model::edge::Outlet;
use jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// How long a destination may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How long what was refused keeps its place: whoever tries in vain again and again is slowed down.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Carries connections out.
pub struct Carrier {
    pub(super) config: EgressConfig,
    rules: Rules,
    own: Recent<Vec<Ipv4Addr>>,
    servers: Arc<names::Servers>,
    shares: Shares,
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

/// A connection that was taken at a door.
struct Taken {
    stream: TcpStream,
    for_names: bool,
    place: Place,
}

impl Carrier {
    /// `front_doors` are where this computer serves the world.
    pub fn new(config: EgressConfig, front_doors: Vec<SocketAddr>, log: AccessLog) -> Self {
        Self {
            rules: Rules {
                allow: config.allow.clone(),
                front_doors,
            },
            own: Recent::default(),
            servers: Arc::new(names::Servers::new(config.name_servers.clone())),
            shares: Shares::by_open_files(),
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

    /// Whether an outlet is open.
    pub fn is_busy(&self) -> bool {
        *self.under_way.borrow() > 0
    }

    /// Returns when nothing is under way.
    pub async fn at_rest(&self) {
        let mut under_way = self.under_way.subscribe();
        let _ = under_way.wait_for(|count| *count == 0).await;
    }

    /// Serves an outlet until it is closed, everybody who knocked before was taken, and what it
    /// carries has ended.
    pub(super) async fn serve(
        self: &Arc<Self>,
        open: conpaas_cloud::Outlet,
        outlet: &watch::Receiver<Outlet>,
    ) {
        // Those who knocked and were not taken yet are under way, too.
        let _open = UnderWay::new(self);
        let owner = outlet.borrow().owner.clone();
        let share = self.shares.of(&owner);
        let mut tasks = JoinSet::new();
        match UdpSocket::from_std(open.names) {
            Ok(socket) => {
                let (servers, closing) = (self.servers.clone(), self.closing.subscribe());
                tasks.spawn(names::answer_all(socket, servers, share.clone(), closing));
            }
            Err(error) => tracing::warn!(%error, "names cannot be answered"),
        }
        let (taken, mut taking) = mpsc::channel(16);
        let doors = open.doors.into_iter().map(|door| (door, false));
        for (door, for_names) in doors.chain([(open.long_names, true)]) {
            let door = match TcpListener::from_std(door) {
                Ok(door) => door,
                Err(error) => {
                    tracing::warn!(%error, "a door of an outlet cannot be opened");
                    continue;
                }
            };
            let door = Door {
                listener: door,
                for_names,
                share: share.clone(),
                taken: taken.clone(),
            };
            tasks.spawn(door.take(self.closing.subscribe()));
        }
        drop(taken);
        let mut connections = JoinSet::new();
        while let Some(taken) = taking.recv().await {
            while connections.try_join_next().is_some() {}
            let (under_way, outlet) = (UnderWay::new(self), outlet.clone());
            connections.spawn(async move {
                let Taken {
                    stream,
                    for_names,
                    place,
                } = taken;
                let carried = if for_names {
                    let _ = names::answer_stream(stream, &under_way.0.servers).await;
                    true
                } else {
                    under_way.0.carry(stream, &outlet).await
                };
                if !carried {
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                drop(place);
            });
        }
        while connections.join_next().await.is_some() {}
        while tasks.join_next().await.is_some() {}
    }

    /// Carries one connection to its end; false when it was not let through.
    async fn carry(&self, inner: TcpStream, outlet: &watch::Receiver<Outlet>) -> bool {
        let (Ok(from), Ok(SocketAddr::V4(to))) = (inner.peer_addr(), inner.local_addr()) else {
            return false;
        };
        // What does not end well on both sides is to look so: a half is no whole.
        let _ = inner.set_zero_linger();
        let mut record = Record {
            log: self.log.clone(),
            outlet: outlet.clone(),
            from,
            to,
            sent: Arc::default(),
            received: Arc::default(),
            outcome: "cut off".to_owned(),
        };
        let outer = match self.connect(to).await {
            Ok(outer) => outer,
            Err(why) => {
                // It was taken already: all that can be said is that it is broken.
                record.outcome = why;
                return false;
            }
        };
        let _ = outer.set_zero_linger();
        for stream in [&inner, &outer] {
            let _ = stream.set_nodelay(true);
            keep_alive(stream);
        }
        let mut inner = Counted {
            stream: inner,
            written: record.received.clone(),
        };
        let mut outer = Counted {
            stream: outer,
            written: record.sent.clone(),
        };
        match tokio::io::copy_bidirectional(&mut inner, &mut outer).await {
            Ok(_) => {
                record.outcome = "done".to_owned();
                end_well(&inner.stream);
                end_well(&outer.stream);
            }
            Err(error) => record.outcome = format!("broke off: {error}"),
        }
        true
    }

    /// The connection onwards, or why there is none.
    async fn connect(&self, to: SocketAddrV4) -> Result<TcpStream, String> {
        let own = self
            .own
            .get(own_addresses)
            .map_err(|error| format!("failed: {error}"))?;
        self.rules
            .check(to, &own)
            .map_err(|refusal| refusal.to_string())?;
        match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("failed: {error}")),
            Err(_) => Err("failed: no answer".to_owned()),
        }
    }
}

/// Where machines knock at one port.
struct Door {
    listener: TcpListener,
    for_names: bool,
    share: Share,
    taken: mpsc::Sender<Taken>,
}

impl Door {
    /// Takes connections until it is closed, and then those that had knocked.
    async fn take(self, mut closing: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = closing.wait_for(|closing| *closing) => break,
            };
            match accepted {
                Ok((stream, _)) => self.hand_on(stream).await,
                Err(error) => {
                    // Mostly too many open files: waiting gives others time to end.
                    tracing::warn!(%error, "cannot take a connection that wants to get out");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        let now = Duration::ZERO;
        while let Ok(Ok((stream, _))) = tokio::time::timeout(now, self.listener.accept()).await {
            self.hand_on(stream).await;
        }
    }

    async fn hand_on(&self, stream: TcpStream) {
        if let Some(place) = self.share.connection().await {
            let taken = Taken {
                stream,
                for_names: self.for_names,
                place,
            };
            let _ = self.taken.send(taken).await;
        }
    }
}

/// The line of one connection, written however it ends.
struct Record {
    log: AccessLog,
    outlet: watch::Receiver<Outlet>,
    from: SocketAddr,
    to: SocketAddrV4,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    outcome: String,
}

impl Drop for Record {
    fn drop(&mut self) {
        let outlet = self.outlet.borrow();
        self.log.line(format!(
            "{} {}/{} {} {} {} {} {}",
            Timestamp::now(),
            outlet.owner,
            outlet.app,
            self.from,
            self.to,
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
            self.outcome,
        ));
    }
}

/// A connection that counts what is written to it.
struct Counted {
    stream: TcpStream,
    written: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.written.fetch_add(count as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The addresses of this computer.
fn own_addresses() -> io::Result<Vec<Ipv4Addr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    Ok(all
        .filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip()))
        .collect())
}

/// Both sides have said that they are done: what is still on its way may arrive.
fn end_well(stream: &TcpStream) {
    let off = nix::libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    let _ = setsockopt(stream, sockopt::Linger, &off);
}

/// A peer that vanished must not hold a connection for ever; one that is silent may.
fn keep_alive(stream: &TcpStream) {
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
}
