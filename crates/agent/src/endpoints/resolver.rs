//! Names of a node's endpoints, answered on its loopback network by UDP and TCP. Nothing is
//! ever asked of anybody else, so every answer comes at once: names of the node's domain are
//! known here or do not exist, and for others the asker is sent to the next name server.

use conpaas_core::endpoint::DOMAIN;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Questions by TCP side by side.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(5);
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// Answers are true for this node only until its level changes.
const TTL_SECONDS: u32 = 1;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
const FORMAT_ERROR: u8 = 1;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
/// Resolvers go on to the next name server after this one, at once.
const REFUSED: u8 = 5;

/// The names of a node, shared with whoever changes them.
#[derive(Clone, Default)]
pub struct Names(Arc<RwLock<BTreeMap<String, Ipv4Addr>>>);

impl Names {
    /// From now on there are these, by their names without the domain.
    pub fn set(&self, names: BTreeMap<String, Ipv4Addr>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// The address of a whole name, in whatever case it is asked for.
    pub fn find(&self, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_ascii_lowercase();
        if name == "localhost" {
            return Some(Ipv4Addr::LOCALHOST);
        }
        let first = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.get(first).copied()
    }
}

/// Whether a name is for nobody else to know: one of our domain, or a word alone.
fn is_own(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last == name || last.eq_ignore_ascii_case(DOMAIN)
}

/// The answer to a question as it goes over the wire; nothing for what is no question at all.
pub fn answer(names: &Names, question: &[u8]) -> Option<Vec<u8>> {
    let header = question.get(..HEADER)?;
    // An answer is never answered: two resolvers would talk for ever.
    if header[2] & 0x80 != 0 {
        return None;
    }
    let refuse = |code: u8| {
        let mut reply = header.to_vec();
        reply[2] = 0x80 | (header[2] & 0x79);
        reply[3] = code;
        reply[4..].fill(0);
        Some(reply)
    };
    if header[2] & 0x78 != 0 {
        return refuse(NOT_IMPLEMENTED);
    }
    if header[4..6] != [0, 1] {
        return refuse(FORMAT_ERROR);
    }
    let Some((name, end)) = read_name(question) else {
        return refuse(FORMAT_ERROR);
    };
    let Some(&[t0, t1, c0, c1]) = question.get(end..end + 4) else {
        return refuse(FORMAT_ERROR);
    };
    let (kind, class) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([c0, c1]));
    let found = names
        .find(&name)
        .filter(|_| class == CLASS_IN || class == CLASS_ANY);
    let told = found.filter(|_| kind == TYPE_A || kind == TYPE_ANY);
    let mut reply = header.to_vec();
    // Ours is an answer with authority; recursion is neither offered nor needed.
    let own = found.is_some() || is_own(&name);
    reply[2] = 0x80 | (u8::from(own) << 2) | (header[2] & 0x01);
    reply[3] = match (own, &found) {
        (_, Some(_)) => 0,
        (true, None) => NO_SUCH_NAME,
        (false, None) => REFUSED,
    };
    reply[4..].copy_from_slice(&[0, 1, 0, u8::from(told.is_some()), 0, 0, 0, 0]);
    reply.extend_from_slice(&question[HEADER..end + 4]);
    if let Some(address) = told {
        // The name is the one at the question's place.
        reply.extend_from_slice(&[0xc0, HEADER as u8]);
        reply.extend_from_slice(&TYPE_A.to_be_bytes());
        reply.extend_from_slice(&CLASS_IN.to_be_bytes());
        reply.extend_from_slice(&TTL_SECONDS.to_be_bytes());
        reply.extend_from_slice(&4u16.to_be_bytes());
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}

/// The name of the first question and where it ends. Questions hold no pointers.
fn read_name(question: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        if length > 63 || name.len() + length > 253 {
            return None;
        }
        let label = question.get(at..at + length)?;
        if !name.is_empty() {
            name.push('.');
        }
        // Whatever is no text is no name of ours.
        name.push_str(&String::from_utf8_lossy(label));
        at += length;
    }
}

/// Answers at an address by UDP and TCP until it is dropped.
pub async fn serve(at: SocketAddrV4, names: Names) {
    let at = SocketAddr::V4(at);
    let mut told = false;
    let (datagrams, streams) = loop {
        let both = async { Ok((UdpSocket::bind(at).await?, TcpListener::bind(at).await?)) };
        let both: std::io::Result<_> = both.await;
        match both {
            Ok(both) => break both,
            Err(error) => {
                if !told {
                    tracing::warn!(%at, %error, "names cannot be answered yet");
                    told = true;
                }
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        }
    };
    tokio::join!(by_datagram(&datagrams, &names), by_stream(&streams, &names));
}

async fn by_datagram(socket: &UdpSocket, names: &Names) {
    let mut buffer = [0u8; 1500];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                if let Some(reply) = answer(names, &buffer[..length]) {
                    // One who has gone misses nothing.
                    let _ = socket.send_to(&reply, from).await;
                }
            }
            // The word of an earlier asker's closed port.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn by_stream(listener: &TcpListener, names: &Names) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut asked = tokio::task::JoinSet::new();
    loop {
        while asked.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let names = names.clone();
                asked.spawn(async move {
                    // Ends with the asker's patience or its connection.
                    let _ = answer_stream(stream, &names).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(LISTEN_AGAIN).await,
        }
    }
}

async fn answer_stream(mut stream: TcpStream, names: &Names) -> std::io::Result<()> {
    loop {
        let question = async {
            let length = stream.read_u16().await?;
            let mut question = vec![0u8; usize::from(length)];
            stream.read_exact(&mut question).await?;
            Ok::<_, std::io::Error>(question)
        };
        let question = tokio::time::timeout(IDLE, question).await??;
        let Some(reply) = answer(names, &question) else {
            return Ok(());
        };
        let length = u16::try_from(reply.len()).unwrap_or_default();
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
