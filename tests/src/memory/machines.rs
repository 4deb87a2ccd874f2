//! Machines of the `memory` cloud: for each one that runs, the real agent in this process, with
//! folders of its own. What would be processes of the machine are tasks that end with it, or
//! threads of their own where they are to be killed.

use super::lives::Threads;
use super::switchboard::Switchboard;
use crate::doubles;
use conpaas_agent::{AgentParts, AgentSocket, Folders};
use conpaas_cloud::{CloudMachineId, MemoryCloud, MemoryEvent};
use conpaas_core::role_agent::{ProcessSpec, ProcessStatus, Processes, RoleError};
use conpaas_manager::{Listen, ManagerParts};
use conpaas_model::protocol::{Context, MANAGER_PORT};
use conpaas_services::registry::Registry;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// All machines that live.
pub struct Machines {
    root: PathBuf,
    board: Switchboard,
    registry: OnceLock<Registry>,
    /// Agents and managers have threads of their own, and die and come back alone.
    mortal: bool,
    living: Mutex<BTreeMap<CloudMachineId, Arc<Machine>>>,
}

/// One machine.
pub struct Machine {
    folder: PathBuf,
    context: Context,
    folders: Folders,
    board: Switchboard,
    registry: Registry,
    mortal: bool,
    /// Nothing starts here any more.
    over: Mutex<bool>,
    this: Weak<Machine>,
    agent: Mutex<Option<Task>>,
    manager: Mutex<Option<Manager>>,
}

/// Something that runs on a machine; dropping it ends it as a crash would.
struct Task {
    shutdown: CancellationToken,
    runs: Runs,
}

enum Runs {
    Among(JoinHandle<()>),
    Alone(Threads),
}

impl Task {
    /// Waits until nothing of it runs.
    fn bury(mut self) {
        if let Runs::Alone(threads) = &mut self.runs {
            threads.kill();
        }
    }

    fn is_over(&self) -> bool {
        match &self.runs {
            Runs::Among(handle) => handle.is_finished(),
            Runs::Alone(threads) => threads.is_dead(),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        match &self.runs {
            Runs::Among(handle) => {
                self.shutdown.cancel();
                handle.abort();
            }
            // Its threads end with it.
            Runs::Alone(_) => {}
        }
    }
}

struct Manager {
    task: Task,
    _plug: Plug,
}

/// An address that answers while this lives.
struct Plug {
    board: Switchboard,
    context: Context,
    address: SocketAddr,
    here: SocketAddr,
}

impl Plug {
    fn new(machine: &Machine, port: u16, here: SocketAddr) -> Self {
        let address = SocketAddr::from((machine.context.address, port));
        machine
            .board
            .plug(&machine.context.application, address, here);
        Self {
            board: machine.board.clone(),
            context: machine.context.clone(),
            address,
            here,
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.board
            .unplug(&self.context.application, self.address, self.here);
    }
}

impl Machines {
    pub fn new(root: PathBuf, board: Switchboard, mortal: bool) -> Arc<Self> {
        let machines = Arc::new(Self {
            root,
            board,
            registry: OnceLock::new(),
            mortal,
            living: Mutex::default(),
        });
        let _ = machines.registry.set(doubles::registry(&machines));
        machines
    }

    /// Follows what the cloud does for ever.
    pub async fn follow(self: Arc<Self>, cloud: MemoryCloud) {
        let mut events = cloud.events();
        while let Some(event) = events.recv().await {
            match event {
                MemoryEvent::Running { machine, request } => {
                    self.start(machine.id, &request.contextualization);
                }
                MemoryEvent::Died { id } => drop(self.end(&id)),
                MemoryEvent::Destroyed { id } => {
                    if let Some(machine) = self.end(&id) {
                        let _ = std::fs::remove_dir_all(&machine.folder);
                    }
                }
            }
        }
    }

    fn start(&self, id: CloudMachineId, contextualization: &[u8]) {
        let folder = self.root.join(id.as_str());
        let context: Context = serde_json::from_slice(contextualization).unwrap();
        let folders = Folders {
            state: folder.join("state"),
            run: folder.join("run"),
            log: folder.join("log"),
        };
        let registry = self.registry.get().unwrap().clone();
        let machine = Arc::new_cyclic(|this| Machine {
            folder,
            context,
            folders,
            board: self.board.clone(),
            registry,
            mortal: self.mortal,
            over: Mutex::default(),
            this: this.clone(),
            agent: Mutex::default(),
            manager: Mutex::default(),
        });
        self.living.lock().unwrap().insert(id, machine.clone());
        machine.start_agent();
    }

    fn end(&self, id: &CloudMachineId) -> Option<Arc<Machine>> {
        let machine = self.living.lock().unwrap().remove(id)?;
        machine.end();
        Some(machine)
    }

    pub fn end_all(&self) {
        let all = std::mem::take(&mut *self.living.lock().unwrap());
        all.values().for_each(|machine| machine.end());
    }

    /// The machine with this folder for its roles.
    pub fn of_roles(&self, folder: &Path) -> Option<Arc<Machine>> {
        let living = self.living.lock().unwrap();
        living
            .values()
            .find(|machine| machine.folders.run.join("roles") == folder)
            .cloned()
    }
}

impl Machine {
    fn start_agent(&self) {
        let over = self.over.lock().unwrap();
        if *over {
            return;
        }
        let shutdown = CancellationToken::new();
        let parts = AgentParts {
            context: self.context.clone(),
            processes: Arc::new(NoProcesses),
            folders: self.folders.clone(),
            dial: self.board.dial_within(&self.context.application),
            registry: self.registry.clone(),
            local_net: None,
            unpacker: conpaas_agent::Unpacker::Here,
            shutdown: shutdown.clone(),
        };
        let work = async move {
            if let Err(error) = conpaas_agent::run_with(parts).await {
                eprintln!("an agent ended: {error}");
            }
        };
        // As init does.
        let runs = self.run(work, Self::restart_agent);
        *self.agent.lock().unwrap() = Some(Task { shutdown, runs });
    }

    fn run(&self, work: impl Future<Output = ()> + Send + 'static, died: fn(&Self)) -> Runs {
        if !self.mortal {
            return Runs::Among(tokio::spawn(work));
        }
        let this = self.this.clone();
        let threads = Threads::new(1, move || {
            if let Some(machine) = this.upgrade() {
                died(&machine);
            }
        });
        threads.spawn(work);
        Runs::Alone(threads)
    }

    fn restart_agent(&self) {
        let mut agent = self.agent.lock().unwrap();
        let Some(dead) = agent.take() else { return };
        drop(agent);
        dead.bury();
        self.start_agent();
    }

    /// The role's next look finds it dead and starts another.
    fn bury_manager(&self) {
        let dead = self.manager.lock().unwrap().take();
        if let Some(dead) = dead {
            dead.task.bury();
        }
    }

    fn end(&self) {
        *self.over.lock().unwrap() = true;
        *self.agent.lock().unwrap() = None;
        *self.manager.lock().unwrap() = None;
    }

    /// Makes the manager process run; a later call finds it running.
    pub async fn run_manager(&self) -> std::io::Result<()> {
        if self
            .manager
            .lock()
            .unwrap()
            .as_ref()
            .is_some_and(|manager| !manager.task.is_over())
        {
            return Ok(());
        }
        // Taken in by the manager's own threads: a socket belongs to the runtime it was made in.
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let plug = Plug::new(self, MANAGER_PORT, listener.local_addr()?);
        let shutdown = CancellationToken::new();
        let (context, registry) = (self.context.clone(), self.registry.clone());
        let (folders, ending) = (self.folders.clone(), shutdown.clone());
        let dial = self.board.dial_within(&self.context.application);
        let work = async move {
            let parts = ManagerParts {
                context,
                enrol: Arc::new(AgentSocket::new(folders.agent_socket())),
                state: folders.state.join("manager"),
                status_socket: folders.run.join("manager.sock"),
                dial,
                registry,
                listen: Listen::On(TcpListener::from_std(listener).unwrap()),
                shutdown: ending,
            };
            if let Err(error) = conpaas_manager::run_with(parts).await {
                eprintln!("a manager ended: {error}");
            }
        };
        let runs = self.run(work, Self::bury_manager);
        *self.manager.lock().unwrap() = Some(Manager {
            task: Task { shutdown, runs },
            _plug: plug,
        });
        Ok(())
    }

    /// Whether the manager runs and has its certificate.
    pub fn manager_is_up(&self) -> bool {
        let runs = self
            .manager
            .lock()
            .unwrap()
            .as_ref()
            .is_some_and(|manager| !manager.task.is_over());
        runs && self
            .folders
            .state
            .join("manager/manager.chain.pem")
            .exists()
    }

    pub fn stop_manager(&self) {
        *self.manager.lock().unwrap() = None;
    }

    /// Answers requests on a port of this machine with a page, while the door lives.
    pub async fn open_door(&self, port: u16, page: Arc<Mutex<String>>) -> std::io::Result<Door> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let plug = Plug::new(self, port, listener.local_addr()?);
        let shutdown = CancellationToken::new();
        let handle = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let page = page.lock().unwrap().clone();
                tokio::spawn(tokio::time::timeout(
                    Duration::from_secs(10),
                    answer(stream, page),
                ));
            }
        });
        Ok(Door {
            _task: Task {
                shutdown,
                runs: Runs::Among(handle),
            },
            _plug: plug,
        })
    }
}

/// A port that answers people.
pub struct Door {
    _plug: Plug,
    _task: Task,
}

/// Reads one request's head and answers it with a page.
async fn answer(mut stream: TcpStream, page: String) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 64 * 1024 {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return Ok(()),
        }
    }
    let text = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    );
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// A machine of records has no processes.
struct NoProcesses;

#[async_trait::async_trait]
impl Processes for NoProcesses {
    async fn ensure(&self, spec: &ProcessSpec) -> Result<ProcessStatus, RoleError> {
        Err(RoleError::Failed(format!(
            "there is no init here to run {}",
            spec.name
        )))
    }
    async fn list(&self) -> Result<Vec<ProcessStatus>, RoleError> {
        Ok(Vec::new())
    }
    async fn signal(&self, _name: &str, _signal: i32) -> Result<(), RoleError> {
        Ok(())
    }
    async fn stop(&self, _name: &str, _grace: Duration) -> Result<(), RoleError> {
        Ok(())
    }
}
