//! A client of the store's line protocol (RESP 2), as small as administration needs: one question
//! at a time, bounded in time and size. What is asked is the roles' business.

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longest answer that is read.
const MOST: usize = 1 << 20;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    Error(String),
    Number(i64),
    Nothing,
}

impl Reply {
    /// The text of an answer that has one.
    pub fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A connection that was logged in, if it had to be.
pub struct Store {
    stream: BufReader<TcpStream>,
    limit: Duration,
}

impl Store {
    /// Connects, within `limit`; every answer must come within it, too.
    pub async fn connect(
        at: SocketAddrV4,
        login: Option<(&str, &str)>,
        limit: Duration,
    ) -> io::Result<Self> {
        let stream = within(limit, TcpStream::connect(at)).await?;
        stream.set_nodelay(true)?;
        let mut store = Self {
            stream: BufReader::new(stream),
            limit,
        };
        if let Some((user, password)) = login {
            store.done(&["AUTH", user, password]).await?;
        }
        Ok(store)
    }

    /// Asks and waits for the answer.
    pub async fn ask(&mut self, words: &[&str]) -> io::Result<Reply> {
        let mut question = format!("*{}\r\n", words.len());
        for word in words {
            question.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        let limit = self.limit;
        within(limit, async {
            self.stream.get_mut().write_all(question.as_bytes()).await?;
            self.reply().await
        })
        .await
    }

    /// Asks for something to be done; a refusal is an error.
    pub async fn done(&mut self, words: &[&str]) -> io::Result<()> {
        match self.ask(words).await? {
            Reply::Error(reason) => Err(io::Error::other(reason)),
            _ => Ok(()),
        }
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let line = self.line().await?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(odd)?;
        Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(rest.parse().map_err(|_| odd())?),
            "$" => {
                let Ok(length) = usize::try_from(rest.parse::<i64>().map_err(|_| odd())?) else {
                    return Ok(Reply::Nothing);
                };
                if length > MOST {
                    return Err(odd());
                }
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes).await?;
                bytes.truncate(length);
                Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            // Lists are never asked for.
            _ => return Err(odd()),
        })
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let read = (&mut self.stream)
            .take(MOST as u64)
            .read_until(b'\n', &mut line)
            .await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&line);
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn odd() -> io::Error {
    io::Error::other("an answer that is none")
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_of_every_kind_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let std::net::SocketAddr::V4(at) = listener.local_addr().unwrap() else {
            panic!("no such address");
        };
        let answers = b"+OK\r\n$5\r\na\r\nb!\r\n$-1\r\n:7\r\n-ERR no\r\n*0\r\n";
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answers).await.unwrap();
            let mut asked = String::new();
            let mut reader = BufReader::new(stream);
            for _ in 0..3 {
                reader.read_line(&mut asked).await.unwrap();
            }
            // Until it has gone: what follows is asked on the same connection.
            tokio::io::copy(&mut reader, &mut tokio::io::sink())
                .await
                .unwrap();
            asked
        });
        let mut store = Store::connect(at, None, Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(
            store.ask(&["PING"]).await.unwrap(),
            Reply::Text("OK".into())
        );
        assert_eq!(store.ask(&["A"]).await.unwrap().text().unwrap(), "a\r\nb!");
        assert_eq!(store.ask(&["A"]).await.unwrap(), Reply::Nothing);
        assert_eq!(store.ask(&["A"]).await.unwrap(), Reply::Number(7));
        assert!(store.done(&["A"]).await.is_err());
        assert!(store.ask(&["A"]).await.is_err());
        drop(store);
        assert_eq!(server.await.unwrap(), "*1\r\n$4\r\nPING\r\n");
    }
}
