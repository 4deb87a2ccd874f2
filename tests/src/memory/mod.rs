//! An installation in the test's own process: a real Director, a real edge, and machines of the
//! `memory` cloud with real agents and managers. Only what a role's daemons would be is a double.

pub mod lives;
mod machines;
mod switchboard;

pub use machines::{Door, Machine, Machines};

use conpaas_cloud::{Cloud, MemoryCloud, Resources};
use conpaas_director::{Director, DirectorConfig, PASSWORD_FILE, StartError};
use conpaas_edge::{Edge, EdgeConfig};
use conpaas_services::registry::Registry;
use lives::Threads;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use switchboard::Switchboard;
use tokio::runtime::Runtime;

/// The cloud's name.
pub const CLOUD: &str = "memory";

/// More than any scenario needs.
pub const PLENTY: Resources = Resources {
    vcpus: 64.0,
    memory_mib: 65_536,
    disk_mib: 1 << 20,
};

/// See the module.
pub struct Memory {
    pub cloud: MemoryCloud,
    pub edge_port: u16,
    pub fingerprint: String,
    config: DirectorConfig,
    machines: Arc<Machines>,
    processes: Arc<Processes>,
    /// Gone only while this is being dropped.
    runtime: Option<Runtime>,
}

/// The Director and the edge, each with threads of its own.
struct Processes {
    config: Mutex<DirectorConfig>,
    cloud: MemoryCloud,
    board: Switchboard,
    edge_config: Mutex<EdgeConfig>,
    director: Mutex<Option<(Threads, Option<Director>)>>,
    edge: Mutex<Option<Threads>>,
    this: Weak<Processes>,
}

impl Processes {
    fn start_director(&self) -> Result<(), StartError> {
        let this = self.this.clone();
        let threads = Threads::new(2, move || {
            let Some(processes) = this.upgrade() else {
                return;
            };
            // As whoever watches over it would.
            processes.kill_director();
            let begun = std::time::Instant::now();
            while let Err(error) = processes.start_director() {
                if begun.elapsed() > Duration::from_secs(20) {
                    eprintln!("the Director does not come back: {error:?}");
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let (config, cloud) = (self.config.lock().unwrap().clone(), self.cloud.clone());
        let started = threads.run(async move {
            let clouds = BTreeMap::from([(CLOUD.to_owned(), Arc::new(cloud) as Arc<dyn Cloud>)]);
            Director::start(config, clouds, Arc::new(Registry::standard())).await
        });
        match started {
            Ok(Ok(director)) => {
                let stays = (threads, Some(director));
                *self.director.lock().unwrap() = Some(stays);
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            // It was killed while it started; its end starts the next.
            Err(_) => {
                *self.director.lock().unwrap() = Some((threads, None));
                Ok(())
            }
        }
    }

    /// Ends it where it is.
    fn kill_director(&self) {
        // One that dies while it starts is not there yet.
        let begun = std::time::Instant::now();
        let mut held = self.director.lock().unwrap().take();
        while held.is_none() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
            held = self.director.lock().unwrap().take();
        }
        if let Some((mut threads, director)) = held {
            threads.kill();
            drop(director);
        }
    }

    /// Lets it finish what it does.
    fn stop_director(&self) {
        let held = self.director.lock().unwrap().take();
        if let Some((mut threads, Some(director))) = held {
            let _ = threads.run(director.stop());
            threads.kill();
        }
    }

    fn start_edge(&self) -> std::io::Result<u16> {
        let this = self.this.clone();
        let threads = Threads::new(2, move || {
            let Some(processes) = this.upgrade() else {
                return;
            };
            let dead = processes.edge.lock().unwrap().take();
            if let Some(mut dead) = dead {
                dead.kill();
            }
            if let Err(error) = processes.start_edge() {
                eprintln!("the edge does not come back: {error}");
            }
        });
        let (config, board) = (self.edge_config.lock().unwrap().clone(), self.board.clone());
        let bound = threads.run(async { Edge::bind(config, Arc::new(board)) });
        let port = match bound {
            Ok(edge) => {
                let edge = edge.map_err(std::io::Error::other)?;
                let port = edge.address().port();
                // From now on it has to be found again where it was.
                self.edge_config.lock().unwrap().bind = edge.address();
                threads.spawn(edge.serve(std::future::pending()));
                port
            }
            Err(_) => self.edge_config.lock().unwrap().bind.port(),
        };
        *self.edge.lock().unwrap() = Some(threads);
        Ok(port)
    }
}

impl Memory {
    /// Starts all of it below a folder; `adjust` changes the Director's settings first. `mortal`:
    /// agents and managers can be killed alone.
    pub fn start(folder: &Path, mortal: bool, adjust: impl FnOnce(&mut DirectorConfig)) -> Self {
        if std::env::var_os("CONPAAS_LOG").is_some() {
            conpaas_agent::start_logging();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let board = Switchboard::default();
        let cloud = MemoryCloud::new(CLOUD, PLENTY);
        let machines = Machines::new(folder.join("m"), board.clone(), mortal);
        runtime.spawn(machines.clone().follow(cloud.clone()));

        let edge_folder = folder.join("edge");
        let mut edge_config = EdgeConfig::new(edge_folder.clone());
        edge_config.bind = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = DirectorConfig::new(folder.join("state"));
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.edge_folder = Some(edge_folder);
        config.default_cloud = CLOUD.to_owned();
        config.drain = Duration::from_secs(10);
        adjust(&mut config);
        let processes = Arc::new_cyclic(|this| Processes {
            config: Mutex::new(config),
            cloud: cloud.clone(),
            board,
            edge_config: Mutex::new(edge_config),
            director: Mutex::default(),
            edge: Mutex::default(),
            this: this.clone(),
        });
        let edge_port = processes.start_edge().unwrap();
        processes.config.lock().unwrap().edge_port = edge_port;
        let fingerprint = first_start(&processes);
        let config = processes.config.lock().unwrap().clone();
        Self {
            fingerprint,
            cloud,
            edge_port,
            config,
            machines,
            processes,
            runtime: Some(runtime),
        }
    }

    pub fn api_port(&self) -> u16 {
        self.config.listen.port()
    }

    /// The file with the first operator's password.
    pub fn password_file(&self) -> PathBuf {
        self.config.state.join(PASSWORD_FILE)
    }

    /// Stops the Director; machines, managers and edge go on.
    pub fn stop_director(&self) {
        self.processes.stop_director();
    }

    /// Ends the Director where it is; machines, managers and edge go on.
    pub fn kill_director(&self) {
        self.processes.kill_director();
    }

    /// Starts the Director again on the state it left.
    pub fn start_director(&self) {
        self.processes.start_director().unwrap();
    }

    /// Looks at something in the Director's store; waits for a Director.
    pub fn counts(&self, queries: &[&'static str]) -> Vec<(&'static str, i64)> {
        let queries = queries.to_vec();
        crate::wait_for("a Director with a store", Duration::from_secs(20), || {
            let held = self.processes.director.lock().unwrap();
            let Some((threads, Some(director))) = &*held else {
                return Err("no Director".to_owned());
            };
            let (store, queries) = (director.store().clone(), queries.clone());
            let found = threads.run(async move {
                let look = store.read(move |tx| {
                    let mut found = Vec::new();
                    for query in queries {
                        found.push((query, tx.query_row(query, [], |row| row.get::<_, i64>(0))?));
                    }
                    Ok(found)
                });
                look.await.map_err(|error| format!("{error:?}"))
            });
            found.unwrap_or_else(|died| Err(died.to_owned()))
        })
    }
}

/// Machines keep the Director's address for life, so the port for them is chosen here; another
/// one is when somebody took it meanwhile.
fn first_start(processes: &Processes) -> String {
    for _ in 0..10 {
        let port = crate::world::free_port();
        processes.config.lock().unwrap().host_listener =
            Some(SocketAddr::from(([127, 0, 0, 1], port)));
        match processes.start_director() {
            Ok(()) => {
                let held = processes.director.lock().unwrap();
                let (_, director) = held.as_ref().unwrap();
                let director = director.as_ref().unwrap();
                // From now on it has to be found again where it was.
                processes.config.lock().unwrap().listen = director.address();
                return director.fingerprint().to_owned();
            }
            Err(StartError::Machines(error)) => eprintln!("the Director does not start: {error:?}"),
            Err(error) => panic!("the Director does not start: {error:?}"),
        }
    }
    panic!("no port for machines was to be had");
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop_director();
        drop(self.processes.edge.lock().unwrap().take());
        let runtime = self.runtime.take();
        if let Some(runtime) = &runtime {
            runtime.block_on(async { self.machines.end_all() });
        }
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}
