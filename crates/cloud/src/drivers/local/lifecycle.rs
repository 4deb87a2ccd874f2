//! Making, finding and destroying machines: what the driver's calls do, blocking.

use super::call;
use super::capacity::{Host, Promise, what_is_free};
use super::cgroup::{self, Allowance, Cgroups};
use super::config::{GATEWAY, LocalConfig, PREFIX};
use super::console;
use super::idmap::IdMap;
use super::image;
use super::process::{Pidfd, ProcessIdentity};
use super::records::{self, Layout, MachineRecord, StateRecord, VERSION, describe, machine_state};
use super::request::{check, id_for, well_formed};
use super::supervisor::{Report, Spec, keep_program};
use crate::error::CloudError;
use crate::types::{
    Capacity, CloudMachineId, CreateMachine, Exit, Machine, MachineState, Resources,
};
use conpaas_model::ids::{ApplicationId, InstallationId};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the kernel may take to end a killed machine.
const DYING: Duration = Duration::from_secs(10);

pub struct Inner {
    pub config: LocalConfig,
    pub cgroups: Cgroups,
    /// The copy of the program that everything started from now on runs.
    pub program: PathBuf,
    layout: Layout,
    map: IdMap,
    /// Machines this process is making now.
    in_flight: Mutex<HashSet<CloudMachineId>>,
    /// One call at a time per machine.
    gates: Mutex<HashMap<CloudMachineId, Arc<Mutex<()>>>>,
    /// Held between looking at what is free and writing down a promise.
    admission: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these guard stays whole even if a holder panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub fn open(mut config: LocalConfig) -> Result<Self, CloudError> {
        config.state_dir = std::path::absolute(&config.state_dir)
            .map_err(CloudError::io("find", &config.state_dir))?;
        config.image =
            std::path::absolute(&config.image).map_err(CloudError::io("find", &config.image))?;
        let layout = Layout(config.state_dir.clone());
        layout.make().map_err(CloudError::io("make", &layout.0))?;
        let map = IdMap::detect(config.id_base)?;
        image::check(&config.image, &map)?;
        let program = keep_program(&layout, &config.program)
            .map_err(CloudError::io("copy", &config.program))?;
        super::doctor::probe(&program, &map, &layout.0)?;
        let this = Self {
            cgroups: cgroup::detect(),
            config,
            program,
            layout,
            map,
            in_flight: Mutex::default(),
            gates: Mutex::default(),
            admission: Mutex::default(),
        };
        this.clear_leftovers()?;
        Ok(this)
    }

    /// Names of the image and of the program, both made from their content.
    pub fn image(&self) -> String {
        let name = |path: Option<&Path>| {
            let name = path.and_then(Path::file_name).unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        format!(
            "{}/{}",
            name(Some(&self.config.image)),
            name(self.program.parent())
        )
    }

    /// Removes what interrupted creations and removals left under names that nobody finds.
    fn clear_leftovers(&self) -> Result<(), CloudError> {
        let machines = self.layout.machines();
        let entries = fs::read_dir(&machines).map_err(CloudError::io("read", &machines))?;
        let stale: Vec<PathBuf> = entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with('.'))
            .map(|e| e.path())
            .collect();
        if stale.is_empty() {
            Ok(())
        } else {
            call::run_mapped(&self.program, "remove", &self.map, &stale)
        }
    }

    fn load_all(&self) -> Result<Vec<(MachineRecord, Option<StateRecord>)>, CloudError> {
        self.layout
            .load_all()
            .map_err(CloudError::io("read the records in", &self.layout.0))
    }

    fn is_in_flight(&self, id: &CloudMachineId) -> bool {
        lock(&self.in_flight).contains(id)
    }

    pub fn list(&self, installation: &InstallationId) -> Result<Vec<Machine>, CloudError> {
        let ours = self
            .load_all()?
            .into_iter()
            .filter(|(record, _)| record.installation == *installation);
        Ok(ours
            .map(|(record, state)| {
                let flying = self.is_in_flight(&record.id);
                describe(record, state, flying)
            })
            .collect())
    }

    /// Records of machines that are not dead: what was promised to them is not free.
    fn living(&self) -> Result<Vec<MachineRecord>, CloudError> {
        let mut living = Vec::new();
        for (record, state) in self.load_all()? {
            let now = machine_state(
                state.as_ref(),
                self.is_in_flight(&record.id),
                ProcessIdentity::is_alive,
            );
            if !matches!(now, MachineState::Dead { .. }) {
                living.push(record);
            }
        }
        Ok(living)
    }

    pub fn capacity(&self) -> Result<Capacity, CloudError> {
        let host = Host::look(&self.config)?;
        let promises: Vec<Promise> = self
            .living()?
            .iter()
            .map(|r| Promise {
                vcpus: r.vcpus,
                memory_bytes: r.allowance.memory_bytes,
                used_bytes: r
                    .cgroups
                    .memory_used(r.installation.as_str(), r.id.as_str())
                    .unwrap_or(0),
            })
            .collect();
        Ok(what_is_free(&host, &promises, &self.config))
    }

    pub fn console(&self, id: &CloudMachineId, most: usize) -> Result<Vec<u8>, CloudError> {
        let folder = self.layout.machine(id);
        if !well_formed(id) || !folder.join("machine.json").exists() {
            return Err(CloudError::NotFound { id: id.clone() });
        }
        console::tail(&folder, most).map_err(CloudError::io("read the console in", &folder))
    }

    pub fn create(&self, request: &CreateMachine) -> Result<Machine, CloudError> {
        let size = self
            .config
            .instance_types
            .iter()
            .find(|t| t.name == request.instance_type)
            .ok_or_else(|| CloudError::UnknownInstanceType {
                name: request.instance_type.clone(),
                known: self
                    .config
                    .instance_types
                    .iter()
                    .map(|t| t.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        check(request)?;
        let id = id_for(&request.installation, &request.token);
        let gate = lock(&self.gates).entry(id.clone()).or_default().clone();
        let _one_at_a_time = lock(&gate);
        if let Some(machine) = self.existing(&id)? {
            return Ok(machine);
        }
        let record = MachineRecord {
            version: VERSION,
            id: id.clone(),
            token: request.token.clone(),
            installation: request.installation.clone(),
            application: request.application.clone(),
            machine: request.machine.clone(),
            hostname: request.hostname.clone(),
            instance_type: size.name.clone(),
            vcpus: size.vcpus,
            address: request.address,
            allowance: Allowance {
                memory_bytes: size.memory_mib << 20,
                cpu_millis: (size.vcpus * 1000.0).round() as u64,
                pids: self.config.pids_per_machine,
            },
            cgroups: self.cgroups.clone(),
            image: Some(self.image()),
            created_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        };
        let _flying = Flight::new(self, &id);
        self.admit(&record)?;
        match self.start(&record, &request.contextualization) {
            Ok(state) => Ok(describe(record, Some(state), false)),
            Err(error) => {
                if let Err(left) = self.take_down(&id) {
                    tracing::warn!(machine = %id, error = %left, "could not clear away a machine that failed to start");
                }
                Err(error)
            }
        }
    }

    /// The machine a former call with the same token made; an unfinished one is waited for if
    /// its supervisor still works at it, else cleared away.
    fn existing(&self, id: &CloudMachineId) -> Result<Option<Machine>, CloudError> {
        let end = Instant::now() + self.config.start_limit;
        loop {
            let found = self.layout.load(id).map_err(CloudError::io(
                "read the records of",
                &self.layout.machine(id),
            ))?;
            let Some((record, state)) = found else {
                return Ok(None);
            };
            match machine_state(state.as_ref(), false, ProcessIdentity::is_alive) {
                MachineState::Pending if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                MachineState::Pending
                | MachineState::Dead {
                    exit: Exit::Interrupted,
                } => {
                    self.take_down(id)?;
                    return Ok(None);
                }
                _ => return Ok(Some(describe(record, state, false))),
            }
        }
    }

    /// Checks that the machine fits and writes it down, as one step.
    fn admit(&self, record: &MachineRecord) -> Result<(), CloudError> {
        let _guard = lock(&self.admission);
        let asked = Resources {
            vcpus: record.vcpus,
            memory_mib: record.allowance.memory_bytes >> 20,
            disk_mib: 0,
        };
        let free = self.capacity()?.free;
        if !free.covers(&asked) || free.disk_mib == 0 {
            return Err(CloudError::NoCapacity {
                asked: Resources {
                    disk_mib: u64::from(free.disk_mib == 0),
                    ..asked
                },
                free,
            });
        }
        if let Some(other) = self
            .living()?
            .iter()
            .find(|r| r.application == record.application && r.address == record.address)
        {
            return Err(CloudError::Invalid {
                what: format!(
                    "the address {} already belongs to machine {}",
                    record.address, other.id
                ),
            });
        }
        let new = self.layout.machines().join(format!(".new-{}", record.id));
        let folder = self.layout.machine(&record.id);
        let written = fs::DirBuilder::new()
            .mode(0o711)
            .create(&new)
            .and_then(|()| records::write(&new.join("machine.json"), &serde_json::to_vec(record)?))
            .and_then(|()| fs::hard_link(&self.program, new.join("conpaas")))
            .and_then(|()| fs::rename(&new, &folder));
        if written.is_err() {
            let _ = fs::remove_dir_all(&new);
        }
        written.map_err(CloudError::io("make", &folder))
    }

    fn start(&self, record: &MachineRecord, context: &[u8]) -> Result<StateRecord, CloudError> {
        let step = |step: &str, detail: String| CloudError::Step {
            step: step.to_owned(),
            detail,
        };
        let spec = Spec {
            version: VERSION,
            state_dir: self.config.state_dir.clone(),
            image: self.config.image.clone(),
            id: record.id.clone(),
            installation: record.installation.clone(),
            application: record.application.clone(),
            hostname: record.hostname.clone(),
            address: record.address,
            gateway: GATEWAY,
            prefix: PREFIX,
            init_argv: self.config.init_argv.clone(),
            map: self.map.clone(),
            cgroups: record.cgroups.clone(),
            allowance: record.allowance,
        };
        let bytes = spec
            .encode(context)
            .map_err(|e| step("describe the machine", e.to_string()))?;
        let mut starter = Command::new(&self.program)
            .arg("machine-supervisor")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(CloudError::io("run", &self.program))?;
        // Dropped at once, so that the supervisor sees the end of what it is told.
        let told = starter
            .stdin
            .take()
            .map_or(Ok(()), |mut stdin| stdin.write_all(&bytes));
        let heard = starter.stdout.take().map_or(Ok(Vec::new()), |stdout| {
            read_within(stdout, self.config.start_limit)
        });
        let _ = starter.wait();
        told.map_err(|e| step("tell the supervisor what to make", e.to_string()))?;
        let heard = heard.map_err(|e| step("hear from the machine's supervisor", e.to_string()))?;
        match serde_json::from_slice::<Report>(&heard) {
            Ok(report) => Ok(report?),
            Err(_) if heard.is_empty() => Err(step(
                "start the machine",
                "its supervisor ended without a word".into(),
            )),
            Err(e) => Err(step("understand the machine's supervisor", e.to_string())),
        }
    }

    pub fn destroy(&self, id: &CloudMachineId) -> Result<(), CloudError> {
        if !well_formed(id) {
            return Err(CloudError::Invalid {
                what: format!("'{id}' is no machine of this cloud"),
            });
        }
        let gate = lock(&self.gates).entry(id.clone()).or_default().clone();
        let result = {
            let _one_at_a_time = lock(&gate);
            self.take_down(id)
        };
        lock(&self.gates).retain(|_, gate| Arc::strong_count(gate) > 1);
        result
    }

    /// Ends a machine and removes all that is left of it.
    fn take_down(&self, id: &CloudMachineId) -> Result<(), CloudError> {
        let folder = self.layout.machine(id);
        let found = self
            .layout
            .load(id)
            .map_err(CloudError::io("read the records of", &folder))?;
        // What carries no record of ours is never touched.
        let Some((record, state)) = found else {
            return Ok(());
        };
        let failed = |detail: String| CloudError::Step {
            step: format!("destroy machine {id}"),
            detail,
        };
        if let Some(state) = &state {
            end(state.init.as_ref(), &state.supervisor).map_err(|e| failed(e.to_string()))?;
            // A supervisor at work when we looked may have started init since.
            let late = self
                .layout
                .load(id)
                .ok()
                .flatten()
                .and_then(|(_, s)| s)
                .and_then(|s| s.init);
            if let Some(init) = late.filter(|i| Some(i) != state.init.as_ref()) {
                end(Some(&init), &state.supervisor).map_err(|e| failed(e.to_string()))?;
            }
        }
        record
            .cgroups
            .remove(record.installation.as_str(), id.as_str(), DYING)
            .map_err(failed)?;
        let gone = self
            .layout
            .machines()
            .join(format!(".gone-{id}-{}", std::process::id()));
        match fs::rename(&folder, &gone) {
            // Another process was quicker; what it took away is its to remove.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(CloudError::io("rename", &folder))?,
        }
        call::run_mapped(&self.program, "remove", &self.map, &[&gone])?;
        self.remove_empty_network(&record.application)
    }

    fn remove_empty_network(&self, network: &ApplicationId) -> Result<(), CloudError> {
        let folder = self.layout.network(network);
        let problem = CloudError::io("remove", &folder);
        let attempt = || -> io::Result<()> {
            let _lock = self.layout.lock_network(network)?;
            if !self.layout.holders(network)?.is_empty() {
                return Ok(());
            }
            // Whole and at once: another process may be about to make its lock in here.
            let gone = self
                .layout
                .machines()
                .join(format!(".gone-{network}-{}", std::process::id()));
            fs::rename(&folder, &gone)?;
            fs::remove_dir_all(&gone)
        };
        attempt().map_err(problem)
    }
}

/// Marks a machine as being made for as long as it lives.
struct Flight<'a> {
    inner: &'a Inner,
    id: CloudMachineId,
}

impl<'a> Flight<'a> {
    fn new(inner: &'a Inner, id: &CloudMachineId) -> Self {
        lock(&inner.in_flight).insert(id.clone());
        Self {
            inner,
            id: id.clone(),
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        lock(&self.inner.in_flight).remove(&self.id);
    }
}

/// Ends a machine's processes and waits until the kernel has seen them off.
fn end(init: Option<&ProcessIdentity>, supervisor: &ProcessIdentity) -> io::Result<()> {
    let kill = |pidfd: &Pidfd, patience: Duration| -> io::Result<()> {
        pidfd.signal(libc::SIGKILL)?;
        if pidfd.wait(patience)? {
            Ok(())
        } else {
            Err(io::Error::other("its processes do not end"))
        }
    };
    if let Some(pidfd) = init.map(ProcessIdentity::open).transpose()?.flatten() {
        kill(&pidfd, DYING)?;
    }
    if let Some(pidfd) = supervisor.open()? {
        // With init gone it writes its last record and ends by itself; one still at work does not.
        if init.is_none() || !pidfd.wait(Duration::from_secs(2))? {
            kill(&pidfd, DYING)?;
        }
    }
    Ok(())
}

fn read_within(mut source: impl Read + AsFd, limit: Duration) -> io::Result<Vec<u8>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let end = Instant::now() + limit;
    let mut all = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis() as i64;
        let ready = {
            let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
            poll(
                &mut fds,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            )
        };
        match ready {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(0) if left == 0 => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {limit:?}"),
                ));
            }
            Ok(0) => continue,
            Ok(_) => {}
        }
        match source.read(&mut buffer)? {
            0 => return Ok(all),
            n => all.extend(&buffer[..n]),
        }
    }
}
