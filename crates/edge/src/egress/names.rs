//! Names for applications that may get out: each question goes on to the name servers of this
//! computer as it is, and is answered whatever they do. Nothing is kept, and nothing understood
//! but a message's head.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Where resolvers find their name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const NAMES_PORT: u16 = 53;
/// How long one name server may take; machines ask again after three seconds.
const ANSWER: Duration = Duration::from_millis(1200);
/// Name servers that are asked, at most.
const MOST_SERVERS: usize = 2;
/// Questions of one application under way at once.
const MOST_QUESTIONS: usize = 256;
/// A message has a head of this length (RFC 1035, 4.1.1).
const HEAD: usize = 12;
const SERVER_FAILURE: u8 = 2;

/// The name servers to ask, best first: those that were `given`, else this computer's.
pub fn servers(given: &[IpAddr]) -> Vec<SocketAddr> {
    let found = if given.is_empty() {
        listed(&std::fs::read_to_string(Path::new(RESOLV_CONF)).unwrap_or_default())
    } else {
        given.to_vec()
    };
    let servers = found.into_iter().take(MOST_SERVERS);
    servers.map(|ip| SocketAddr::new(ip, NAMES_PORT)).collect()
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

/// That nobody could say: the answer to a question, or nothing when it is none.
fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let mut answer = question.to_vec();
    let is_question = question.len() >= HEAD && question[2] & 0x80 == 0;
    if is_question {
        answer[2] |= 0x80;
        answer[3] = (answer[3] & 0x70) | 0x80 | SERVER_FAILURE;
        // It has no records: those that came with the question, like EDNS, are not said again.
        answer[6..HEAD].fill(0);
        answer.truncate(question_end(question)?);
    }
    is_question.then_some(answer)
}

/// Where the one question of a message ends.
fn question_end(message: &[u8]) -> Option<usize> {
    if message.get(4..6)? != [0, 1] {
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
    let end = at + 4;
    (end <= message.len()).then_some(end)
}

/// Whether an answer is one to a question: the same number, and said to be an answer.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    answer.len() >= HEAD && answer[..2] == question[..2] && answer[2] & 0x80 != 0
}

/// Answers questions that come to a socket, for ever.
pub async fn answer_all(socket: UdpSocket, given: Arc<[IpAddr]>) {
    let (socket, slots) = (Arc::new(socket), Arc::new(Semaphore::new(MOST_QUESTIONS)));
    let mut tasks = tokio::task::JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        while tasks.try_join_next().is_some() {}
        // Errors are those of answers that nobody waits for any more.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let question = buffer[..length].to_vec();
        if failure(&question).is_none() {
            continue;
        }
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (socket, given) = (socket.clone(), given.clone());
        tasks.spawn(async move {
            let _slot = slot;
            let mut answer = None;
            for server in servers(&given) {
                answer = tokio::time::timeout(ANSWER, ask(server, &question))
                    .await
                    .ok()
                    .and_then(Result::ok);
                if answer.is_some() {
                    break;
                }
            }
            if let Some(answer) = answer.or_else(|| failure(&question)) {
                let _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

async fn ask(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)),
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

/// A connection to the first name server that takes one.
pub async fn connect(given: &[IpAddr]) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other("this computer has no name server");
    for server in servers(given) {
        match tokio::time::timeout(ANSWER, TcpStream::connect(server)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(late) => last = late.into(),
        }
    }
    Err(last)
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
        for none in [&QUESTION[..11], &QUESTION[..20], &answer, b""] {
            assert_eq!(failure(none), None);
        }
    }

    #[test]
    fn name_servers_are_those_of_the_computer() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 192.0.2.1\nnameserver\nnameserver ::1\nnameserver x\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(listed(text), expected);
    }

    #[tokio::test]
    async fn questions_are_passed_on_and_always_answered() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let asked = tokio::spawn(async move { ask(at, QUESTION).await });
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], QUESTION);
        // One of another number is not taken for the answer.
        server.send_to(&[0; 20], from).await.unwrap();
        let answer = failure(QUESTION).unwrap();
        server.send_to(&answer, from).await.unwrap();
        assert_eq!(asked.await.unwrap().unwrap(), answer);
    }
}
