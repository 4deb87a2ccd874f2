//! An installation in the test's own process: a real Director, a real edge, and machines of the
//! `memory` cloud with real agents and managers. Only what a role's daemons would be is a double.

mod machines;
mod switchboard;

pub use machines::{Door, Machine, Machines};

use conpaas_cloud::{Cloud, MemoryCloud, Resources};
use conpaas_director::{Director, DirectorConfig, PASSWORD_FILE, StartError};
use conpaas_edge::{Edge, EdgeConfig};
use conpaas_services::registry::Registry;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use switchboard::Switchboard;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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
    director: Mutex<Option<Director>>,
    edge: Option<JoinHandle<()>>,
    edge_end: CancellationToken,
    /// Gone only while this is being dropped.
    runtime: Option<Runtime>,
}

impl Memory {
    /// Starts all of it below a folder; `adjust` changes the Director's settings first.
    pub fn start(folder: &Path, adjust: impl FnOnce(&mut DirectorConfig)) -> Self {
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
        let machines = Machines::new(folder.join("m"), board.clone());
        runtime.spawn(machines.clone().follow(cloud.clone()));

        let edge_folder = folder.join("edge");
        let mut edge_config = EdgeConfig::new(edge_folder.clone());
        edge_config.bind = SocketAddr::from(([127, 0, 0, 1], 0));
        let edge = runtime
            .block_on(Edge::bind(edge_config, Arc::new(board)))
            .unwrap();
        let edge_port = edge.address().port();
        let edge_end = CancellationToken::new();
        let end = edge_end.clone();
        let edge = runtime.spawn(edge.serve(async move { end.cancelled().await }));

        let mut config = DirectorConfig::new(folder.join("state"));
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.edge_port = edge_port;
        config.edge_folder = Some(edge_folder);
        config.default_cloud = CLOUD.to_owned();
        config.drain = Duration::from_secs(10);
        adjust(&mut config);
        let director = runtime.block_on(first_start(&mut config, &cloud));
        // From now on it has to be found again where it was.
        config.listen = director.address();
        Self {
            fingerprint: director.fingerprint().to_owned(),
            cloud,
            edge_port,
            config,
            machines,
            director: Mutex::new(Some(director)),
            edge: Some(edge),
            edge_end,
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

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    /// Stops the Director; machines, managers and edge go on.
    pub fn stop_director(&self) {
        let director = self.director.lock().unwrap().take();
        self.runtime().block_on(async {
            if let Some(director) = director {
                director.stop().await;
            }
        });
    }

    /// Starts the Director again on the state it left.
    pub fn start_director(&self) {
        let director = self
            .runtime()
            .block_on(start(&self.config, &self.cloud))
            .unwrap();
        *self.director.lock().unwrap() = Some(director);
    }
}

async fn start(config: &DirectorConfig, cloud: &MemoryCloud) -> Result<Director, StartError> {
    let clouds = BTreeMap::from([(CLOUD.to_owned(), Arc::new(cloud.clone()) as Arc<dyn Cloud>)]);
    Director::start(config.clone(), clouds, Arc::new(Registry::standard())).await
}

/// Machines keep the Director's address for life, so the port for them is chosen here; another
/// one is when somebody took it meanwhile.
async fn first_start(config: &mut DirectorConfig, cloud: &MemoryCloud) -> Director {
    for _ in 0..10 {
        config.host_listener = Some(SocketAddr::from((
            [127, 0, 0, 1],
            crate::world::free_port(),
        )));
        match start(config, cloud).await {
            Ok(director) => return director,
            Err(StartError::Machines(error)) => eprintln!("the Director does not start: {error:?}"),
            Err(error) => panic!("the Director does not start: {error:?}"),
        }
    }
    panic!("no port for machines was to be had");
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop_director();
        self.edge_end.cancel();
        let edge = self.edge.take();
        self.runtime().block_on(async {
            self.machines.end_all();
            if let Some(edge) = edge {
                let _ = tokio::time::timeout(Duration::from_secs(5), edge).await;
            }
        });
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}
