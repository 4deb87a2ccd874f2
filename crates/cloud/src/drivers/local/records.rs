//! The state folder: where things lie, what is written down about each machine, and how truth is
//! told from it. Records are written whole or not at all; whether something runs is asked of the
//! kernel, never believed of a file.
//!
//! ```text
//! bin/HASH/conpaas          programs machines run, by content
//! images/NAME/              unpacked images, owned through the id map
//! networks/APP/{lock,instance}
//! machines/ID/{machine.json,state.json,console.log,console.old,conpaas,lower,root,upper,work}
//! ```

use super::cgroup::{Allowance, Cgroups};
use super::process::ProcessIdentity;
use crate::types::{CloudMachineId, Exit, Limits, Machine, MachineState};
use conpaas_model::ids::{ApplicationId, InstallationId, MachineId};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Version of the files below; a newer one is not understood by older programs.
pub const VERSION: u32 = 1;

/// What was asked for, written once before anything is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineRecord {
    pub version: u32,
    pub id: CloudMachineId,
    pub token: String,
    pub installation: InstallationId,
    pub application: ApplicationId,
    pub machine: MachineId,
    pub hostname: String,
    pub instance_type: String,
    pub vcpus: f64,
    pub address: Ipv4Addr,
    pub allowance: Allowance,
    /// Where its limits were to be set.
    pub cgroups: Cgroups,
    /// Image and program; absent in records of older programs.
    #[serde(default)]
    pub image: Option<String>,
    pub created_at: u64,
}

/// How far the supervisor got, rewritten by it alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StateRecord {
    pub version: u32,
    pub supervisor: ProcessIdentity,
    /// The network it sits in, once it does.
    pub network_instance: Option<String>,
    /// The machine's first process, once it runs.
    pub init: Option<ProcessIdentity>,
    pub limits: Option<Limits>,
    pub exit: Option<Exit>,
}

/// Paths below a state folder.
#[derive(Clone, Debug)]
pub struct Layout(pub PathBuf);

impl Layout {
    pub fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }
    pub fn machines(&self) -> PathBuf {
        self.0.join("machines")
    }
    pub fn networks(&self) -> PathBuf {
        self.0.join("networks")
    }
    pub fn machine(&self, id: &CloudMachineId) -> PathBuf {
        self.machines().join(id.as_str())
    }
    pub fn network(&self, network: &ApplicationId) -> PathBuf {
        self.networks().join(network.as_str())
    }
    pub fn instance(&self, network: &ApplicationId) -> PathBuf {
        self.network(network).join("instance")
    }

    /// Makes the state folder (for its owner's eyes only) and what lies in it.
    pub fn make(&self) -> io::Result<()> {
        let mut folder = fs::DirBuilder::new();
        folder.recursive(true).mode(0o700).create(&self.0)?;
        for path in [self.bin(), self.images(), self.machines(), self.networks()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(path)?;
        }
        Ok(())
    }

    /// Everything written down about one machine.
    pub fn load(
        &self,
        id: &CloudMachineId,
    ) -> io::Result<Option<(MachineRecord, Option<StateRecord>)>> {
        let folder = self.machine(id);
        let Some(record) = read::<MachineRecord>(&folder.join("machine.json"))? else {
            return Ok(None);
        };
        Ok(Some((record, read(&folder.join("state.json"))?)))
    }

    /// Everything written down about all machines. Folders without a record are not ours to tell.
    pub fn load_all(&self) -> io::Result<Vec<(MachineRecord, Option<StateRecord>)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.machines())? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|n| !n.starts_with('.')) else {
                continue;
            };
            all.extend(self.load(&CloudMachineId(name.to_owned()))?);
        }
        all.sort_by(|a, b| a.0.id.cmp(&b.0.id));
        Ok(all)
    }

    /// Supervisors that sit in this application's network now, with the network's name.
    pub fn holders(&self, network: &ApplicationId) -> io::Result<Vec<(ProcessIdentity, String)>> {
        let mut holders = Vec::new();
        for (record, state) in self.load_all()? {
            if let Some(state) = state.filter(|_| record.application == *network)
                && let Some(instance) = state.network_instance
                && state.supervisor.is_alive()
            {
                holders.push((state.supervisor, instance));
            }
        }
        Ok(holders)
    }

    /// Locks a network against being made or removed by another process.
    pub fn lock_network(&self, network: &ApplicationId) -> io::Result<File> {
        let path = self.network(network).join("lock");
        loop {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(self.network(network))?;
            let file = match File::options().create(true).append(true).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            file.lock()?;
            // Whoever removed the network while we waited left us a lock that nobody else sees.
            match fs::metadata(&path) {
                Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(file),
                _ => {}
            }
        }
    }
}

/// Reads a record; `None` when there is none.
pub fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

/// Where a machine is, from what is written and what the kernel says.
pub fn machine_state(
    state: Option<&StateRecord>,
    in_flight: bool,
    alive: impl Fn(&ProcessIdentity) -> bool,
) -> MachineState {
    match state {
        Some(StateRecord {
            exit: Some(exit), ..
        }) => MachineState::Dead { exit: exit.clone() },
        Some(state) if alive(&state.supervisor) => {
            if state.init.is_some() {
                MachineState::Running
            } else {
                MachineState::Pending
            }
        }
        _ if in_flight => MachineState::Pending,
        Some(StateRecord { init: Some(_), .. }) => MachineState::Dead {
            exit: Exit::SupervisorGone,
        },
        _ => MachineState::Dead {
            exit: Exit::Interrupted,
        },
    }
}

/// The public face of a machine.
pub fn describe(record: MachineRecord, state: Option<StateRecord>, in_flight: bool) -> Machine {
    let status = machine_state(state.as_ref(), in_flight, ProcessIdentity::is_alive);
    Machine {
        id: record.id,
        token: record.token,
        installation: record.installation,
        application: record.application,
        machine: record.machine,
        hostname: record.hostname,
        instance_type: record.instance_type,
        address: record.address,
        image: record.image,
        state: status,
        created_at: record.created_at,
        limits: state
            .as_ref()
            .and_then(|s| s.limits.clone())
            .unwrap_or_else(|| Limits::None {
                reason: "the machine has not started".into(),
            }),
        network_instance: state.and_then(|s| s.network_instance),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_comes_from_the_kernel_not_the_file() {
        let someone = ProcessIdentity {
            pid: 1,
            start_time: 1,
            boot_id: "b".into(),
        };
        let state = |init: bool, exit: Option<Exit>| StateRecord {
            version: VERSION,
            supervisor: someone.clone(),
            network_instance: None,
            init: init.then(|| someone.clone()),
            limits: None,
            exit,
        };
        let ask = |s: Option<StateRecord>, flight, alive| {
            machine_state(s.as_ref(), flight, move |_| alive)
        };
        assert_eq!(
            ask(Some(state(true, None)), false, true),
            MachineState::Running
        );
        assert_eq!(
            ask(Some(state(true, None)), false, false),
            MachineState::Dead {
                exit: Exit::SupervisorGone
            }
        );
        assert_eq!(
            ask(Some(state(false, None)), false, true),
            MachineState::Pending
        );
        assert_eq!(
            ask(Some(state(false, None)), false, false),
            MachineState::Dead {
                exit: Exit::Interrupted
            }
        );
        assert_eq!(ask(None, true, false), MachineState::Pending);
        assert_eq!(
            ask(None, false, false),
            MachineState::Dead {
                exit: Exit::Interrupted
            }
        );
        let exit = Exit::Code { code: 3 };
        assert_eq!(
            ask(Some(state(true, Some(exit.clone()))), false, false),
            MachineState::Dead { exit }
        );
    }
}
