//! A minimal FastCGI client: one request on a connection of its own, for proofs of life and for
//! warming up. People's requests go through the load balancer instead.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BEGIN_REQUEST: u8 = 1;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;
/// Largest content of one record.
const RECORD: usize = 65_535;
/// Most bytes of an answer that are kept; the rest is read and dropped.
const MOST: usize = 256 * 1024;

/// A script's answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    /// What the script said on standard error.
    pub errors: String,
}

/// Runs one request without a body and waits for its end.
pub async fn request(
    address: SocketAddr,
    params: &[(&str, &str)],
    limit: Duration,
) -> io::Result<Answer> {
    tokio::time::timeout(limit, run(address, params))
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {limit:?}"),
            ))
        })
}

/// Asks for a path that the pool itself answers.
pub async fn ask_pool(
    address: SocketAddr,
    path: &str,
    query: &str,
    limit: Duration,
) -> io::Result<Answer> {
    let params = [
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", path),
        ("SCRIPT_FILENAME", path),
        ("REQUEST_URI", path),
        ("QUERY_STRING", query),
    ];
    request(address, &params, limit).await
}

async fn run(address: SocketAddr, params: &[(&str, &str)]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&encode(params)).await?;
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    loop {
        let mut head = [0_u8; 8];
        stream.read_exact(&mut head).await?;
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let mut content = vec![0; length + usize::from(head[6])];
        stream.read_exact(&mut content).await?;
        content.truncate(length);
        match head[1] {
            STDOUT if out.len() < MOST => out.extend_from_slice(&content),
            STDERR if errors.len() < MOST => errors.extend_from_slice(&content),
            END_REQUEST => return parse(&out, &errors),
            _ => {}
        }
    }
}

fn encode(params: &[(&str, &str)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (name, value) in params {
        for length in [name.len(), value.len()] {
            match u8::try_from(length) {
                Ok(short) if short < 128 => content.push(short),
                // Callers' params are far below 2^31 bytes.
                _ => content.extend_from_slice(&(length as u32 | 0x8000_0000).to_be_bytes()),
            }
        }
        content.extend_from_slice(name.as_bytes());
        content.extend_from_slice(value.as_bytes());
    }
    let mut message = Vec::new();
    // Role 1 (responder), flags 0: the pool closes the connection.
    record(&mut message, BEGIN_REQUEST, &[0, 1, 0, 0, 0, 0, 0, 0]);
    for part in content.chunks(RECORD) {
        record(&mut message, PARAMS, part);
    }
    record(&mut message, PARAMS, &[]);
    record(&mut message, STDIN, &[]);
    message
}

fn record(message: &mut Vec<u8>, kind: u8, content: &[u8]) {
    // Chunks are cut to 65,535 bytes.
    let [high, low] = (content.len() as u16).to_be_bytes();
    message.extend_from_slice(&[1, kind, 0, 1, high, low, 0, 0]);
    message.extend_from_slice(content);
}

fn parse(out: &[u8], errors: &[u8]) -> io::Result<Answer> {
    let end = [&b"\r\n\r\n"[..], b"\n\n"]
        .iter()
        .filter_map(|mark| {
            out.windows(mark.len())
                .position(|w| w == *mark)
                .map(|at| (at, at + mark.len()))
        })
        .min();
    let (head, body) = match end {
        Some((head, body)) => (&out[..head], &out[body..]),
        None => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an answer without an end of its head",
            ));
        }
    };
    let status = String::from_utf8_lossy(head)
        .lines()
        .find_map(|line| {
            line.strip_prefix("Status:")
                .and_then(|rest| rest.trim().get(..3)?.parse().ok())
        })
        .unwrap_or(200);
    Ok(Answer {
        status,
        body: body.to_vec(),
        errors: String::from_utf8_lossy(errors).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = parse(b"Status: 503 Busy\r\nX: y\r\n\r\nhello", b" oops\n").unwrap();
        assert_eq!(
            answer,
            Answer {
                status: 503,
                body: b"hello".to_vec(),
                errors: "oops".into()
            }
        );
        assert_eq!(parse(b"X: y\r\n\r\n", b"").unwrap().status, 200);
        assert!(parse(b"nonsense", b"").is_err());
    }

    #[test]
    fn long_values_have_long_lengths() {
        let long = "v".repeat(300);
        let message = encode(&[("N", &long)]);
        // 16 bytes of BEGIN_REQUEST, 8 of the record's head, then the two lengths.
        assert_eq!(&message[24..29], &[1, 0x80, 0, 1, 44]);
    }
}
