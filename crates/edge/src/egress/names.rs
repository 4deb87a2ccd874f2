//! Names for applications that may get out: each plain question goes on to the name servers of this
//! computer as it is, and is answered whatever they do. Nothing is kept, and nothing understood
//! but a message's head and where its question ends.

use super::recent::Recent;
use super::share::Share;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;

/// Where resolvers find their name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const NAMES_PORT: u16 = 53;
/// How long one name server may take; machines ask again after three seconds.
const ANSWER: Duration = Duration::from_millis(1200);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Name servers that are asked, at most.
const MOST_SERVERS: usize = 2;
/// A message has a head of this length (RFC 1035, 4.1.1).
const HEAD: usize = 12;
const SERVER_FAILURE: u8 = 2;
/// Questions for whole zones: servers may give those to this computer, but not to others.
const ZONE_TRANSFERS: [[u8; 2]; 2] = [[0, 251], [0, 252]];

/// Whom to ask.
pub struct Servers {
    given: Vec<IpAddr>,
    listed: Recent<Vec<IpAddr>>,
}

impl Servers {
    /// Those that are given, else this computer's.
    pub fn new(given: Vec<IpAddr>) -> Self {
        Self {
            given,
            listed: Recent::default(),
        }
    }

    /// The name servers to ask, best first.
    fn addresses(&self) -> Vec<SocketAddr> {
        let read = || Ok(listed(&std::fs::read_to_string(RESOLV_CONF)?));
        let found = if self.given.is_empty() {
            self.listed.get(read).unwrap_or_default()
        } else {
            Arc::new(self.given.clone())
        };
        let servers = found.iter().take(MOST_SERVERS);
        servers.map(|ip| SocketAddr::new(*ip, NAMES_PORT)).collect()
    }

    /// The first answer that a server gives, or that nobody could say.
    async fn answer(&self, question: &[u8], by: Transport) -> Option<Vec<u8>> {
        for server in self.addresses() {
            let asked = async {
                match by {
                    Transport::Datagram => ask_by_datagram(server, question).await,
                    Transport::Stream => ask_by_stream(server, question).await,
                }
            };
            if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, asked).await {
                return Some(answer);
            }
        }
        failure(question)
    }
}

#[derive(Clone, Copy)]
enum Transport {
    Datagram,
    Stream,
}

/// The name servers of a resolv.conf(5).
fn listed(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = (words.next() == Some("nameserver")).then(|| words.next())??;
            name.parse().ok()
        })
        .collect()
}

/// Where the question of a plain query ends: one question, no records, nothing but asking.
fn question_end(message: &[u8]) -> Option<usize> {
    let head = message.get(..HEAD)?;
    let is_query = head[2] & 0xf8 == 0;
    if !is_query || head[4..10] != [0, 1, 0, 0, 0, 0] {
        return None;
    }
    let mut at = HEAD;
    loop {
        let length = *message.get(at)?;
        at += 1;
        match length {
            0 => break,
            1..64 => at += usize::from(length),
            _ => return None,
        }
    }
    let kind = message.get(at..at + 2)?;
    let end = at + 4;
    (end <= message.len() && !ZONE_TRANSFERS.iter().any(|transfer| transfer == kind)).then_some(end)
}

/// That nobody could say: the answer to a plain question.
fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let mut answer = question.get(..question_end(question)?)?.to_vec();
    answer[2] |= 0x80;
    answer[3] = (answer[3] & 0x70) | 0x80 | SERVER_FAILURE;
    // It has no records: those that came with the question, like EDNS, are not said again.
    answer[6..HEAD].fill(0);
    Some(answer)
}

/// Whether an answer is one to a question: the same number, and said to be an answer.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    answer.len() >= HEAD && answer[..2] == question[..2] && answer[2] & 0x80 != 0
}

/// Answers questions that come to a socket until it is closed, those that had come included.
pub async fn answer_all(
    socket: UdpSocket,
    servers: Arc<Servers>,
    share: Share,
    mut closing: watch::Receiver<bool>,
) {
    let socket = Arc::new(socket);
    let mut tasks = tokio::task::JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        while tasks.try_join_next().is_some() {}
        let received = tokio::select! {
            biased;
            received = socket.recv_from(&mut buffer) => received,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        // Errors are those of answers that nobody waits for any more.
        let Ok((length, from)) = received else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let question = buffer[..length].to_vec();
        if question_end(&question).is_none() {
            continue;
        }
        let Some(place) = share.question() else {
            if let Some(answer) = failure(&question) {
                let _ = socket.send_to(&answer, from).await;
            }
            continue;
        };
        let (socket, servers) = (socket.clone(), servers.clone());
        tasks.spawn(async move {
            if let Some(answer) = servers.answer(&question, Transport::Datagram).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(place);
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn ask_by_datagram(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    // Of this one alone are answers taken.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], question) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

/// Answers questions that come over a connection, to its end.
pub async fn answer_stream(mut stream: TcpStream, servers: &Servers) -> io::Result<()> {
    loop {
        let question = tokio::time::timeout(IDLE, read_framed(&mut stream)).await??;
        let Some(answer) = (match question_end(&question) {
            Some(_) => servers.answer(&question, Transport::Stream).await,
            None => None,
        }) else {
            return Ok(());
        };
        tokio::time::timeout(IDLE, write_framed(&mut stream, &answer)).await??;
    }
}

async fn ask_by_stream(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, question).await?;
    let answer = read_framed(&mut stream).await?;
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::other("it answers another question"))
    }
}

/// A message as it goes over a connection, after its length (RFC 1035, 4.2.2).
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), message].concat())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] =
        b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x07example\x03org\0\0\x01\0\x01EDNS";

    #[test]
    fn a_question_that_nobody_can_answer_is_answered_so() {
        let answer = failure(QUESTION).unwrap();
        assert_eq!(
            answer,
            b"\x12\x34\x81\xa2\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01"
        );
        assert!(answers(&answer, QUESTION));
        assert!(!answers(QUESTION, QUESTION));
    }

    #[test]
    fn only_plain_questions_are_passed_on() {
        assert!(question_end(QUESTION).is_some());
        let with = |at: usize, byte: u8| {
            let mut message = QUESTION.to_vec();
            message[at] = byte;
            message
        };
        let zone = QUESTION.len() - 7;
        for other in [
            QUESTION[..11].to_vec(),
            QUESTION[..20].to_vec(),
            failure(QUESTION).unwrap(),
            with(2, 5 << 3), // an update
            with(2, 4 << 3), // a notice
            with(5, 2),      // two questions
            with(9, 1),      // a record besides
            with(zone, 252), // a whole zone
            with(zone, 251),
            Vec::new(),
        ] {
            assert_eq!(question_end(&other), None, "{other:?}");
            assert_eq!(failure(&other), None);
        }
    }

    #[test]
    fn name_servers_are_those_of_the_computer() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 192.0.2.1\nnameserver\nnameserver ::1\nnameserver x\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(listed(text), expected);
    }

    #[tokio::test]
    async fn questions_are_passed_on_by_either_transport() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let streams = tokio::net::TcpListener::bind(at).await.unwrap();
        let answer = failure(QUESTION).unwrap();
        let asked = tokio::spawn(async move { ask_by_datagram(at, QUESTION).await });
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], QUESTION);
        // One of another number is not taken for the answer.
        server.send_to(&[0; 20], from).await.unwrap();
        server.send_to(&answer, from).await.unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), answer);

        let asked = tokio::spawn(async move { ask_by_stream(at, QUESTION).await });
        let (mut stream, _) = streams.accept().await.unwrap();
        assert_eq!(read_framed(&mut stream).await.unwrap(), QUESTION);
        write_framed(&mut stream, &answer).await.unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), answer);
    }
}
