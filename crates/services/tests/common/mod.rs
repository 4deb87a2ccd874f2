//! A small world for tests with real daemons: nodes are addresses of the loopback network,
//! processes are children of the test, and each role's agent half is driven as the agent's shell
//! would drive it, only more often.
#![allow(dead_code, reason = "each test uses its part")]

use conpaas_core::endpoint::Loopback;
use conpaas_core::role_agent::{
    CodeStore, NodeContext, ProcessSpec, ProcessStatus, Processes, RoleAgent, RoleAgents,
    RoleError, SecretStore,
};
use conpaas_model::ids::SecretVersion;
use conpaas_model::level::RoleLevel;
use conpaas_model::spec::CodeRef;
use conpaas_model::status::RoleStatus;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Processes as children of the test; all end with it.
#[derive(Default)]
pub struct Children(Mutex<BTreeMap<String, Entry>>);

/// A child, the digest of its spec, how it ended, and its stop signal.
type Entry = (Child, String, Option<i32>, i32);

fn kill(pid: i32, signal: i32, group: bool) {
    let target = if group {
        format!("-{pid}")
    } else {
        pid.to_string()
    };
    let _ = Command::new("/bin/kill")
        .args([&format!("-{signal}"), "--", &target])
        .stderr(Stdio::null())
        .status();
}

impl Children {
    fn look(child: &mut Child, exit: &mut Option<i32>) -> bool {
        if exit.is_none()
            && let Ok(Some(status)) = child.try_wait()
        {
            *exit = Some(
                status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            );
        }
        exit.is_none()
    }
    pub fn pids(&self) -> BTreeMap<String, i32> {
        let mut all = self.0.lock().unwrap();
        all.iter_mut()
            .filter_map(|(name, (child, _, exit, _))| {
                Self::look(child, exit).then(|| (name.clone(), child.id() as i32))
            })
            .collect()
    }
    /// Kills a process with its whole group, as a crash would.
    pub fn crash(&self, name: &str) {
        kill(self.pids()[name], 9, true);
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (child, ..) in self.0.lock().unwrap().values_mut() {
            kill(child.id() as i32, 9, true);
            let _ = child.wait();
        }
    }
}

#[async_trait::async_trait]
impl Processes for Children {
    async fn ensure(&self, spec: &ProcessSpec) -> Result<ProcessStatus, RoleError> {
        let mut all = self.0.lock().unwrap();
        let digest = format!("{spec:?}");
        if let Some((child, old, exit, _)) = all.get_mut(&spec.name)
            && Self::look(child, exit)
        {
            if *old != digest {
                return Err(RoleError::Failed("another spec".into()));
            }
            return Ok(ProcessStatus {
                name: spec.name.clone(),
                pid: child.id() as i32,
                running: true,
                exit: None,
                digest,
            });
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)
            .map_err(RoleError::io("opening a log"))?;
        let child = Command::new(&spec.argv[0])
            .args(&spec.argv[1..])
            .env_clear()
            .envs(spec.env.iter().cloned())
            .current_dir(&spec.working_directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(RoleError::io(format!("starting {}", spec.argv[0])))?;
        let pid = child.id() as i32;
        all.insert(
            spec.name.clone(),
            (child, digest.clone(), None, spec.stop_signal),
        );
        Ok(ProcessStatus {
            name: spec.name.clone(),
            pid,
            running: true,
            exit: None,
            digest,
        })
    }
    async fn list(&self) -> Result<Vec<ProcessStatus>, RoleError> {
        let mut all = self.0.lock().unwrap();
        Ok(all
            .iter_mut()
            .map(|(name, (child, digest, exit, _))| {
                let running = Self::look(child, exit);
                ProcessStatus {
                    name: name.clone(),
                    pid: child.id() as i32,
                    running,
                    exit: *exit,
                    digest: digest.clone(),
                }
            })
            .collect())
    }
    async fn signal(&self, name: &str, signal: i32) -> Result<(), RoleError> {
        if let Some(pid) = self.pids().get(name) {
            kill(*pid, signal, false);
        }
        Ok(())
    }
    async fn stop(&self, name: &str, grace: Duration) -> Result<(), RoleError> {
        let signal = self.0.lock().unwrap().get(name).map_or(15, |entry| entry.3);
        self.signal(name, signal).await?;
        let until = Instant::now() + grace;
        while self.pids().contains_key(name) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if let Some((mut child, ..)) = self.0.lock().unwrap().remove(name) {
            kill(child.id() as i32, 9, true);
            let _ = child.wait();
        }
        Ok(())
    }
}

/// Code that is unpacked already, by hash.
#[derive(Default)]
pub struct Unpacked(pub Mutex<BTreeMap<String, PathBuf>>);

#[async_trait::async_trait]
impl CodeStore for Unpacked {
    async fn folder(&self, code: &CodeRef) -> Result<PathBuf, RoleError> {
        self.0
            .lock()
            .unwrap()
            .get(&code.sha256)
            .cloned()
            .ok_or_else(|| RoleError::Failed("no such code".into()))
    }
}

/// Secrets that the Director would give, by name and version.
#[derive(Default)]
pub struct Known(pub Mutex<BTreeMap<(String, u64), String>>);

#[async_trait::async_trait]
impl SecretStore for Known {
    async fn value(&self, name: &str, version: SecretVersion) -> Result<String, RoleError> {
        let known = self.0.lock().unwrap();
        known
            .get(&(name.to_owned(), version.0))
            .cloned()
            .ok_or_else(|| RoleError::Failed(format!("no secret {name} {version}")))
    }
}

type Shared<T> = Arc<Mutex<T>>;

/// A role on a node, driven in the background.
pub struct Driven {
    pub node: NodeContext,
    pub children: Arc<Children>,
    level: Shared<Option<RoleLevel>>,
    status: Shared<(u64, RoleStatus)>,
    error: Shared<String>,
    renew: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
    round: Arc<AtomicU64>,
}

impl Driven {
    pub fn set(&self, level: RoleLevel) {
        *self.level.lock().unwrap() = Some(level);
        self.round.fetch_add(1, Ordering::SeqCst);
    }
    pub fn change(&self, change: impl FnOnce(&mut RoleLevel)) {
        change(self.level.lock().unwrap().as_mut().unwrap());
        self.round.fetch_add(1, Ordering::SeqCst);
    }
    /// Asks for an end; `stopped` says when it has come.
    pub fn unset(&self) {
        *self.level.lock().unwrap() = None;
        self.round.fetch_add(1, Ordering::SeqCst);
    }
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
    /// The agent crashes and a new one takes over.
    pub fn renew(&self) {
        self.renew.store(true, Ordering::SeqCst);
        self.round.fetch_add(1, Ordering::SeqCst);
    }
    /// Waits until what is observed of the present level satisfies a condition.
    pub async fn until(&self, what: &str, condition: impl Fn(&RoleStatus) -> bool) {
        let round = self.round.load(Ordering::SeqCst);
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let (seen, status) = self.status.lock().unwrap().clone();
            if seen >= round && condition(&status) {
                return;
            }
            assert!(
                Instant::now() < limit,
                "{what} did not come on {}: {status:?}; last error: {}",
                self.node.node_name,
                self.error.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub code: Arc<Unpacked>,
    pub secrets: Arc<Known>,
    net: (u8, u8),
}

impl World {
    /// A world in a part of the loopback network that no other test has.
    pub fn new(test: u8) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("conpaas-services-")
            .tempdir_in("/tmp")
            .unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let pid = std::process::id();
        Self {
            dir,
            code: Arc::default(),
            secrets: Arc::default(),
            net: (100 + (pid % 120) as u8, (pid / 120 % 32) as u8 * 8 + test),
        }
    }
    pub fn address(&self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.net.0, self.net.1, node)
    }
    /// Where endpoints of this world are.
    pub fn loopback(&self) -> Loopback {
        Loopback([127, self.net.0])
    }
    pub fn at(&self, node: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address(node), port)
    }
    pub fn code(&self, name: &str, files: &[(&str, &str)]) -> CodeRef {
        let folder = self.dir.path().join("code").join(name);
        for (path, content) in files {
            let file = folder.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        self.unpacked(name, &folder)
    }
    pub fn unpacked(&self, name: &str, folder: &Path) -> CodeRef {
        self.code
            .0
            .lock()
            .unwrap()
            .insert(name.to_owned(), folder.to_owned());
        CodeRef {
            id: format!("code-{name}").parse().unwrap(),
            sha256: name.to_owned(),
            size: 1,
        }
    }
    /// A node with one role, driven until the test ends.
    pub fn drive(&self, agents: &'static dyn RoleAgents, node: u8, role: &'static str) -> Driven {
        let children = Arc::new(Children::default());
        let folder = self.dir.path().join(format!("n{node}"));
        std::fs::create_dir_all(&folder).unwrap();
        let context = NodeContext {
            node_name: format!("node-{node}"),
            service: "svc-test".into(),
            address: self.address(node),
            processes: Arc::clone(&children) as Arc<dyn Processes>,
            code: Arc::clone(&self.code) as Arc<dyn CodeStore>,
            secrets: Arc::clone(&self.secrets) as Arc<dyn SecretStore>,
            run_folder: folder.join("run"),
            log_folder: folder.join("log"),
            loopback: self.loopback(),
        };
        let driven = Driven {
            node: context.clone(),
            children,
            level: Shared::default(),
            status: Shared::default(),
            error: Shared::default(),
            renew: Arc::default(),
            stopped: Arc::default(),
            round: Arc::default(),
        };
        let (level, status, error) = (
            Arc::clone(&driven.level),
            Arc::clone(&driven.status),
            Arc::clone(&driven.error),
        );
        let (renew, stopped, rounds) = (
            Arc::clone(&driven.renew),
            Arc::clone(&driven.stopped),
            Arc::clone(&driven.round),
        );
        tokio::spawn(async move {
            let new = || -> Box<dyn RoleAgent> { agents.role_agent(role).unwrap() };
            let mut agent = new();
            loop {
                if renew.swap(false, Ordering::SeqCst) {
                    agent = new();
                }
                let round = rounds.load(Ordering::SeqCst);
                let wanted = level.lock().unwrap().clone();
                let result = match &wanted {
                    Some(wanted) => match agent.apply(&context, wanted).await {
                        Ok(()) => agent
                            .observe(&context, wanted)
                            .await
                            .map(|seen| *status.lock().unwrap() = (round, seen)),
                        Err(error) => Err(error),
                    },
                    None if round > 0 => agent
                        .stop(&context)
                        .await
                        .map(|done| stopped.store(done, Ordering::SeqCst)),
                    None => Ok(()),
                };
                if let Err(problem) = result {
                    *error.lock().unwrap() = format!("{problem:?}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        driven
    }
}

/// An answer to a test's request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One request on a connection of its own.
pub async fn request(
    address: SocketAddrV4,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<Answer> {
    let work = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or_else(|| std::io::Error::other("cut off"))?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| std::io::Error::other("no status"))?;
        Ok(Answer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    };
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::other("too slow")))
}

pub async fn get(address: SocketAddrV4, path: &str) -> std::io::Result<Answer> {
    request(address, "GET", path, "", "").await
}

/// Clients that ask all the time; each notices failures and versions that go back.
pub struct Load {
    end: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<(u64, Vec<String>)>>,
}

impl Load {
    /// `version` reads a number from a good answer's body.
    pub fn start(
        address: SocketAddrV4,
        paths: &'static [&'static str],
        version: fn(&str) -> Option<u64>,
    ) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let total = Arc::new(AtomicU64::new(0));
        let clients = (0..6_usize)
            .map(|client| {
                let (end, total) = (Arc::clone(&end), Arc::clone(&total));
                tokio::spawn(async move {
                    let (mut asked, mut trouble, mut newest) = (0, Vec::new(), 0);
                    while !end.load(Ordering::SeqCst) && asked < 20_000 {
                        let path = paths[(asked as usize + client) % paths.len()];
                        let method = if client == 0 && !path.ends_with("css") {
                            "POST"
                        } else {
                            "GET"
                        };
                        match request(address, method, path, "", "").await {
                            Ok(answer) if answer.status == 200 => match version(&answer.body) {
                                Some(found) if found < newest => {
                                    trouble.push(format!("back from {newest} to {found}"))
                                }
                                Some(found) => newest = found,
                                None => trouble.push(format!("odd answer {:?}", answer.body)),
                            },
                            Ok(answer) => trouble.push(format!(
                                "{method} {path}: {} {}",
                                answer.status, answer.body
                            )),
                            Err(error) => trouble.push(format!("{method} {path}: {error}")),
                        }
                        asked += 1;
                        total.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    (asked, trouble)
                })
            })
            .collect();
        Self {
            end,
            asked: total,
            clients,
        }
    }
    /// Waits until so many further requests were answered.
    pub async fn more(&self, count: u64) {
        let goal = self.asked.load(Ordering::SeqCst) + count;
        let limit = Instant::now() + Duration::from_secs(60);
        while self.asked.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < limit, "the load stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    /// Ends the load; no request may have failed.
    pub async fn finish(self, what: &str) -> u64 {
        self.end.store(true, Ordering::SeqCst);
        let (mut asked, mut trouble) = (0, Vec::new());
        for client in self.clients {
            let (count, mut problems) = client.await.unwrap();
            asked += count;
            trouble.append(&mut problems);
        }
        println!("{what}: {asked} requests, {} failed", trouble.len());
        assert!(
            trouble.is_empty(),
            "{what}: {} of {asked} requests: {:?}",
            trouble.len(),
            &trouble[..trouble.len().min(5)]
        );
        assert!(asked > 20, "{what}: only {asked} requests");
        asked
    }
}
