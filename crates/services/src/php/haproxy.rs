//! The load balancer's runtime interface: commands over its socket, and its table of servers.

use super::proxy_metrics::{Answers, CLASSES};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Most bytes of a batch of map entries: the interface's own buffer holds 16 KiB.
const BATCH: usize = 12 * 1024;
const LIMIT: Duration = Duration::from_secs(5);

/// Speaks to one running load balancer; each command has a connection of its own.
#[derive(Clone, Debug)]
pub struct Runtime {
    socket: PathBuf,
}

/// A server as the load balancer has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub backend: String,
    pub name: String,
    /// Address and port.
    pub address: String,
    /// As shown: `UP`, `DOWN`, `MAINT`, `DRAIN`, `UP 1/3`, ...
    pub status: String,
    /// Requests in flight or waiting for it.
    pub in_flight: u64,
    /// Most requests at once; 0 is unlimited.
    pub most: u64,
    /// Seconds since its status last changed.
    pub seconds_so: u64,
}

/// What a frontend or a backend has counted, and how busy it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub name: String,
    pub is_frontend: bool,
    pub answers: Answers,
    pub sessions: u64,
    pub queue: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Attempts after the first one.
    pub retries: u64,
    pub aborts: u64,
}

impl Server {
    pub fn is_up(&self) -> bool {
        self.status.starts_with("UP")
    }
    pub fn is_down(&self) -> bool {
        self.status.starts_with("DOWN")
    }
    pub fn in_maintenance(&self) -> bool {
        self.status.starts_with("MAINT")
    }
    pub fn is_draining(&self) -> bool {
        self.status.starts_with("DRAIN")
    }
    /// Its full name in commands.
    pub fn path(&self) -> String {
        format!("{}/{}", self.backend, self.name)
    }
}

impl Runtime {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Sends a command; its answer follows on the stream.
    pub async fn begin(&self, command: &str) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        Ok(stream)
    }

    /// One command and its answer, trimmed.
    pub async fn ask(&self, command: &str) -> io::Result<String> {
        let talk = async {
            let mut stream = self.begin(command).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer.trim().to_owned())
        };
        tokio::time::timeout(LIMIT, talk).await.unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the load balancer's runtime interface is silent",
            ))
        })
    }

    /// A command that answers nothing when it succeeds, or one of the given beginnings.
    pub async fn order(&self, command: &str, good: &[&str]) -> io::Result<()> {
        let answer = self.ask(command).await?;
        if answer.is_empty() || good.iter().any(|beginning| answer.starts_with(beginning)) {
            return Ok(());
        }
        let short = command.lines().next().unwrap_or_default();
        Err(io::Error::other(format!(
            "the load balancer refused '{short}': {answer}"
        )))
    }

    /// All servers of all backends.
    pub async fn servers(&self) -> io::Result<Vec<Server>> {
        // -1: all proxies, 4: servers, -1: all of them.
        servers(&self.ask("show stat -1 4 -1").await?)
    }

    /// What all frontends and backends have counted.
    pub async fn traffic(&self) -> io::Result<Vec<Traffic>> {
        // -1: all proxies, 3: frontends and backends, -1: all of them.
        traffic(&self.ask("show stat -1 3 -1").await?)
    }

    /// Replaces a map's whole content at one instant.
    pub async fn replace_map(
        &self,
        map: &Path,
        entries: impl Iterator<Item = (String, String)>,
    ) -> io::Result<()> {
        let map = map.display();
        let answer = self.ask(&format!("prepare map {map}")).await?;
        let version = answer
            .rsplit(' ')
            .next()
            .and_then(|word| word.parse::<u64>().ok())
            .ok_or_else(|| {
                io::Error::other(format!(
                    "the load balancer refused a new version of {map}: {answer}"
                ))
            })?;
        let mut batch = String::new();
        for (key, value) in entries {
            let line = format!("{key} {value}\n");
            if batch.len() + line.len() > BATCH {
                self.add(&map, version, &batch).await?;
                batch.clear();
            }
            batch.push_str(&line);
        }
        if !batch.is_empty() {
            self.add(&map, version, &batch).await?;
        }
        self.order(&format!("commit map @{version} {map}"), &[])
            .await
    }

    async fn add(&self, map: &impl std::fmt::Display, version: u64, batch: &str) -> io::Result<()> {
        // The batch ends in a line break; an empty line ends the payload.
        self.order(&format!("add map @{version} {map} <<\n{batch}"), &[])
            .await
    }
}

/// The table that `show stat` gives; columns are found by name.
struct Table<'a> {
    head: Vec<&'a str>,
    rows: Vec<Vec<&'a str>>,
}

impl<'a> Table<'a> {
    fn read(text: &'a str) -> Self {
        let mut lines = text.lines().filter(|line| !line.is_empty());
        let head = lines.next().unwrap_or_default().trim_start_matches("# ");
        Self {
            head: head.split(',').collect(),
            rows: lines.map(|line| line.split(',').collect()).collect(),
        }
    }

    fn column(&self, name: &str) -> io::Result<usize> {
        let found = self.head.iter().position(|title| *title == name);
        found.ok_or_else(|| {
            io::Error::other(format!("the load balancer's table has no column '{name}'"))
        })
    }
}

fn text(cells: &[&str], at: usize) -> String {
    cells.get(at).copied().unwrap_or_default().to_owned()
}

fn number(cells: &[&str], at: usize) -> u64 {
    cells
        .get(at)
        .and_then(|cell| cell.parse().ok())
        .unwrap_or(0)
}

fn servers(answer: &str) -> io::Result<Vec<Server>> {
    let table = Table::read(answer);
    let column = |name: &str| table.column(name);
    let (backend, name, address, status) = (
        column("pxname")?,
        column("svname")?,
        column("addr")?,
        column("status")?,
    );
    let (queue, sessions, most) = (column("qcur")?, column("scur")?, column("slim")?);
    let changed = column("lastchg")?;
    let server = |cells: &Vec<&str>| Server {
        backend: text(cells, backend),
        name: text(cells, name),
        address: text(cells, address),
        status: text(cells, status),
        in_flight: number(cells, queue) + number(cells, sessions),
        most: number(cells, most),
        seconds_so: number(cells, changed),
    };
    Ok(table.rows.iter().map(server).collect())
}

fn traffic(answer: &str) -> io::Result<Vec<Traffic>> {
    let table = Table::read(answer);
    let column = |name: &str| table.column(name);
    let mut classes = [0; CLASSES.len()];
    for (at, class) in classes.iter_mut().zip(CLASSES) {
        *at = column(&format!("hrsp_{class}"))?;
    }
    let (name, kind) = (column("pxname")?, column("svname")?);
    let (sessions, queue) = (column("scur")?, column("qcur")?);
    let (bytes_in, bytes_out) = (column("bin")?, column("bout")?);
    let (retries, again, aborts) = (column("wretr")?, column("wredis")?, column("cli_abrt")?);
    let one = |cells: &Vec<&str>| Traffic {
        name: text(cells, name),
        is_frontend: text(cells, kind) == "FRONTEND",
        answers: classes.map(|at| number(cells, at)),
        sessions: number(cells, sessions),
        queue: number(cells, queue),
        bytes_in: number(cells, bytes_in),
        bytes_out: number(cells, bytes_out),
        retries: number(cells, retries) + number(cells, again),
        aborts: number(cells, aborts),
    };
    Ok(table.rows.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_by_column_names() {
        let table = "# pxname,svname,qcur,qmax,scur,slim,status,addr,lastchg,\nb,s,2,9,3,5,UP 1/3,10.0.0.1:80,7,\n\n";
        let found = servers(table).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].in_flight, found[0].most, found[0].is_up()),
            (5, 5, true)
        );
        assert_eq!(found[0].address, "10.0.0.1:80");
        assert!(servers("# a,b\n").is_err());
    }
}
