//! A state folder, a tiny image and short ways to make, enter and look at machines.

use conpaas_cloud::{
    Cloud, CloudMachineId, CreateMachine, LocalCloud, LocalConfig, Machine, prepare_image,
    remove_state, suite,
};
use conpaas_model::ids::InstallationId;
use conpaas_model::instance::InstanceType;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub struct World {
    pub folder: tempfile::TempDir,
    pub config: LocalConfig,
    pub cloud: LocalCloud,
}

/// A root file system of folders only: every program the tests run is this one.
pub fn image_tar(path: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    };
    for folder in [
        "./",
        "./etc",
        "./proc",
        "./sys",
        "./dev",
        "./run",
        "./usr",
        "./usr/local",
        "./usr/local/bin",
        "./tmp",
        "./below",
        "./root",
    ] {
        add(folder, tar::EntryType::Directory, 0o755, b"");
    }
    add(
        "./below/file",
        tar::EntryType::Regular,
        0o644,
        b"from the image",
    );
    tar.finish().unwrap();
}

pub fn config(folder: &Path) -> LocalConfig {
    let mut config = LocalConfig::new(folder.join("state"), folder.join("state/images/tiny"));
    config.init_argv = vec!["/usr/local/bin/conpaas".into(), "test-init".into()];
    config.disk_reserve_mib = 64;
    let size = |name: &str, vcpus, memory_mib| InstanceType {
        name: name.into(),
        vcpus,
        memory_mib,
        credits_per_hour: 1.0,
    };
    config.instance_types = vec![size("small", 0.25, 64), size("giant", 1.0, 1 << 30)];
    config
}

/// An installation of each world's own, so that tests run side by side.
pub fn installation(folder: &Path) -> InstallationId {
    let name = folder.file_name().unwrap().to_string_lossy().to_lowercase();
    let suffix: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    InstallationId::from_suffix(&suffix).unwrap()
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("conpaas-cloud-")
            .tempdir()
            .unwrap();
        let config = config(folder.path());
        let tar = folder.path().join("tiny.tar");
        image_tar(&tar);
        assert_eq!(prepare_image(&config, &tar, "tiny").unwrap(), config.image);
        let cloud = LocalCloud::open(config.clone()).unwrap();
        Self {
            folder,
            config,
            cloud,
        }
    }

    pub fn subject(&self) -> suite::Subject {
        suite::Subject {
            small: "small".into(),
            giant: "giant".into(),
            console_text: "is up as process 1".into(),
            installation: installation(self.folder.path()),
        }
    }

    pub fn request(&self, application: &str, number: u8) -> CreateMachine {
        CreateMachine {
            application: format!("app-{application}").parse().unwrap(),
            address: Ipv4Addr::new(100, 64, 7, number),
            ..suite::request(&self.subject(), application, number).unwrap()
        }
    }

    pub async fn create(&self, application: &str, number: u8) -> Machine {
        let machine = self
            .cloud
            .create(self.request(application, number))
            .await
            .unwrap();
        assert_eq!(machine.state, conpaas_cloud::MachineState::Running);
        machine
    }

    /// Runs a probe of this program in a machine.
    pub fn inside(&self, machine: &Machine, probe: &[&str]) -> std::process::Output {
        let argv: Vec<&str> = ["/usr/local/bin/conpaas", "inside"]
            .iter()
            .chain(probe)
            .copied()
            .collect();
        self.cloud
            .exec_command(&machine.id, &argv)
            .output()
            .unwrap()
    }

    pub fn says(&self, machine: &Machine, probe: &[&str]) -> String {
        let output = self.inside(machine, probe);
        assert!(
            output.status.success(),
            "{probe:?}: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Who answers `machine` at an address.
    pub fn asks(&self, machine: &Machine, address: &str) -> String {
        self.says(machine, &["ask", address])
    }

    pub fn machine_folder(&self, id: &CloudMachineId) -> PathBuf {
        self.config.state_dir.join("machines").join(id.as_str())
    }

    /// A process of a machine from its record: "supervisor" or "init".
    pub fn pid(&self, machine: &Machine, which: &str) -> i32 {
        let text =
            std::fs::read_to_string(self.machine_folder(&machine.id).join("state.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[which]["pid"]
            .as_i64()
            .unwrap() as i32
    }

    /// Waits until the machine's init answers.
    pub async fn is_up(&self, machine: &Machine) {
        let dialer = conpaas_cloud::Dialer::new(self.cloud.network_access(&machine.application));
        let address = (machine.address, super::inside::PORT).into();
        until("init answers", async || {
            dialer.connect(address).await.is_ok()
        })
        .await;
    }

    pub async fn destroy_all(&self) {
        for machine in self.cloud.list(&self.subject().installation).await.unwrap() {
            self.cloud.destroy(&machine.id).await.unwrap();
        }
    }

    /// Processes that run a program of this world's state folder.
    pub fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
            if exe.starts_with(&self.config.state_dir) {
                let line =
                    std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
                found.push(format!(
                    "{} {}",
                    entry.file_name().to_string_lossy(),
                    line.replace('\0', " ")
                ));
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Also after a failed assertion nothing may stay: one more driver on its own thread.
        let cloud = self.cloud.clone();
        let installation = self.subject().installation;
        let _ = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                for machine in cloud.list(&installation).await.unwrap_or_default() {
                    let _ = cloud.destroy(&machine.id).await;
                }
            });
        })
        .join();
        if let Err(e) = remove_state(&self.config) {
            println!("  could not clear away: {e}");
        }
    }
}

/// Waits for a condition, for ten seconds at most.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
