//! One installation under test.

use crate::memory::Memory;
use conpaas_cloud::{Exit, MemoryCloud};
use conpaas_director::DirectorConfig;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Waits until a condition gives a value; the status text says in the end what was the case.
pub fn wait_for<T, S: Debug>(
    what: &str,
    bound: Duration,
    mut condition: impl FnMut() -> Result<T, S>,
) -> T {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(status) if begun.elapsed() > bound => {
                panic!("waited {bound:?} for {what}; last: {status:#?}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A finished run of the program.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program under test: the one that was built beside this test, or `CONPAAS_BIN`.
pub fn program() -> PathBuf {
    if let Some(given) = std::env::var_os("CONPAAS_BIN") {
        return given.into();
    }
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(2).unwrap().join("conpaas")
}

/// Where a world's machines come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Namespaces of this computer, by `conpaas nutshell`: real machines, real daemons.
    Local,
    /// Tasks of the test's own process: real Director, edge, managers and agents; doubles of
    /// daemons. What can go wrong with a cloud can be made to happen here.
    Memory,
}

/// One installation with its own state folder, ports and machines.
pub struct World {
    pub edge_port: u16,
    pub api_port: u16,
    keep: bool,
    /// The installation, if it is in this process.
    memory: Option<Memory>,
    folder: tempfile::TempDir,
}

/// A user with contexts of their own.
pub struct Person {
    config: PathBuf,
}

/// A port nobody uses at the moment.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl World {
    /// Starts an installation and logs in as its operator.
    pub fn start() -> Self {
        let mut world = Self::prepare();
        // Whoever asks for a port before it is used may lose it to another test.
        (world.api_port, world.edge_port) = (0, 0);
        let up = world.up();
        assert_eq!(up.code, 0, "nutshell up: {up:#?}\n{}", world.logs());
        world.learn_ports();
        world
    }

    /// Takes the ports that the running installation chose.
    pub fn learn_ports(&mut self) {
        let status = self.json(["nutshell", "status"]);
        let port = |name: &str| {
            let text = status[name].as_str()?;
            text.rsplit(':').next()?.trim_end_matches('/').parse().ok()
        };
        self.api_port = port("url").unwrap_or_else(|| panic!("no port: {status}"));
        self.edge_port = port("edge_address").unwrap_or_else(|| panic!("no port: {status}"));
    }

    /// An installation that was not started yet.
    pub fn prepare() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cps-e2e-")
            .tempdir()
            .unwrap();
        Self {
            folder,
            edge_port: free_port(),
            api_port: free_port(),
            keep: false,
            memory: None,
        }
    }

    /// Starts an installation on a platform and logs in as its operator.
    pub fn start_on(platform: Platform) -> Self {
        match platform {
            Platform::Local => Self::start(),
            Platform::Memory => Self::start_memory(|_| {}),
        }
    }

    /// Starts an installation in this process; `adjust` changes its Director's settings first.
    pub fn start_memory(adjust: impl FnOnce(&mut DirectorConfig)) -> Self {
        Self::in_this_process(false, adjust)
    }

    /// The same, with agents and managers that can be killed alone (see [`crate::memory::lives`]).
    pub fn start_mortal(adjust: impl FnOnce(&mut DirectorConfig)) -> Self {
        Self::in_this_process(true, adjust)
    }

    fn in_this_process(mortal: bool, adjust: impl FnOnce(&mut DirectorConfig)) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cps-e2e-")
            .tempdir()
            .unwrap();
        let memory = Memory::start(folder.path(), mortal, adjust);
        let (edge_port, api_port) = (memory.edge_port, memory.api_port());
        let (password, fingerprint) = (memory.password_file(), memory.fingerprint.clone());
        let world = Self {
            folder,
            edge_port,
            api_port,
            keep: false,
            memory: Some(memory),
        };
        world.login(&world.operator(), "admin", &password, &fingerprint);
        world
    }

    pub fn platform(&self) -> Platform {
        if self.memory.is_some() {
            Platform::Memory
        } else {
            Platform::Local
        }
    }

    /// The cloud of a world in this process.
    pub fn cloud(&self) -> &MemoryCloud {
        &self.memory.as_ref().expect("a world on memory").cloud
    }

    /// The installation in this process.
    pub fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("a world on memory")
    }

    fn operator(&self) -> Person {
        Person {
            config: self.folder.path().join("config"),
        }
    }

    fn login(&self, person: &Person, name: &str, password: &Path, fingerprint: &str) {
        let url = format!("https://127.0.0.1:{}", self.api_port);
        let password = password.to_str().unwrap();
        let login = self.run_as(
            person,
            [
                "login",
                &url,
                "--user",
                name,
                "--password-file",
                password,
                "--fingerprint",
                fingerprint,
            ],
        );
        assert_eq!(login.code, 0, "{login:#?}");
    }

    /// Makes a user who is logged in.
    pub fn person(&self, name: &str) -> Person {
        let person = Person {
            config: self.folder.path().join(format!("config-{name}")),
        };
        let password = self.folder.path().join(format!("password-{name}"));
        std::fs::write(&password, format!("the long password of {name}\n")).unwrap();
        self.ok([
            "user",
            "create",
            name,
            "--password-file",
            password.to_str().unwrap(),
        ]);
        let contexts = self.json(["context", "list"]);
        let current = contexts
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["current"] == true)
            .unwrap();
        self.login(
            &person,
            name,
            &password,
            current["fingerprint"].as_str().unwrap(),
        );
        person
    }

    /// Runs the program to its end as somebody.
    pub fn run_as<I: AsRef<OsStr>>(
        &self,
        person: &Person,
        arguments: impl IntoIterator<Item = I>,
    ) -> Finished {
        self.command(arguments)
            .env("XDG_CONFIG_HOME", &person.config)
            .output()
            .unwrap()
            .into()
    }

    /// Takes the Director away; everything else goes on.
    pub fn stop_director(&self) {
        match &self.memory {
            Some(memory) => memory.stop_director(),
            None => {
                // Its keeper would start it again.
                signal(self.daemon("nutshell-keeper"), libc::SIGSTOP);
                let director = self.daemon("director");
                kill(director);
                wait_for("the Director to be gone", Duration::from_secs(10), || {
                    let stat = std::fs::read_to_string(format!("/proc/{director}/stat"));
                    match stat {
                        Ok(stat) if !stat.contains(") Z ") => Err(stat),
                        _ => Ok(()),
                    }
                });
            }
        }
    }

    /// Starts the Director again on the state it left.
    pub fn start_director(&self) {
        match &self.memory {
            Some(memory) => memory.start_director(),
            None => {
                signal(self.daemon("nutshell-keeper"), libc::SIGCONT);
                let up = self.up();
                assert_eq!(up.code, 0, "{up:#?}");
            }
        }
    }

    /// The process id of a running daemon of the nutshell: `director`, `edge`, `nutshell-keeper`.
    pub fn daemon(&self, name: &str) -> i32 {
        let marker = format!("conpaas {name} --state");
        let found = self
            .processes()
            .into_iter()
            .find(|line| line.contains(&marker));
        let line = found.unwrap_or_else(|| panic!("no process {marker}: {:#?}", self.processes()));
        line.split(' ').next().unwrap().parse().unwrap()
    }

    /// Lets the machine of a node (`APP/SERVICE/NUMBER`) die, as a crash would.
    pub fn kill_machine(&self, target: &str) {
        let node = self.json(["node", "show", target]);
        let machine = node["machine"].as_str().expect("a machine").to_owned();
        match &self.memory {
            Some(memory) => {
                let found = memory
                    .cloud
                    .machines()
                    .into_iter()
                    .find(|m| m.machine.to_string() == machine);
                let found = found.unwrap_or_else(|| panic!("the cloud has no machine {machine}"));
                assert!(memory.cloud.kill(
                    &found.id,
                    Exit::Signal {
                        signal: libc::SIGKILL
                    }
                ));
            }
            None => kill(first_process(&machine)),
        }
    }

    /// The machine's first process of a node (`APP/SERVICE/NUMBER`), by this computer's number.
    pub fn first_process(&self, target: &str) -> i32 {
        let node = self.json(["node", "show", target]);
        first_process(node["machine"].as_str().expect("a machine"))
    }

    /// Runs a command inside a machine, as its root: how it ended and what it said.
    pub fn inside(&self, first_process: i32, command: &[&str]) -> (Option<i32>, String) {
        let output = Command::new("nsenter")
            .args(["-t", &first_process.to_string()])
            .args(["-U", "-m", "-n", "-p", "--"])
            .args(command)
            .output()
            .expect("nsenter runs");
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.code(), said)
    }

    /// Machines that the cloud has, by the Director's names for them.
    pub fn machines(&self) -> BTreeSet<String> {
        match &self.memory {
            Some(memory) => memory
                .cloud
                .machines()
                .iter()
                .map(|machine| machine.machine.to_string())
                .collect(),
            None => {
                let folders = std::fs::read_dir(self.state().join("cloud/machines"))
                    .into_iter()
                    .flatten()
                    .flatten();
                folders
                    .map(|entry| {
                        let text =
                            std::fs::read(entry.path().join("machine.json")).unwrap_or_default();
                        let record: Value = serde_json::from_slice(&text).unwrap_or_default();
                        record["machine"]
                            .as_str()
                            .map_or_else(|| entry.path().display().to_string(), str::to_owned)
                    })
                    .collect()
            }
        }
    }

    /// Machines that the Director's records know, of all applications, managers' included.
    pub fn recorded_machines(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for app in self.json(["app", "list"]).as_array().into_iter().flatten() {
            let target = app["id"].as_str().unwrap_or_default();
            for node in self
                .json(["node", "list", target])
                .as_array()
                .into_iter()
                .flatten()
            {
                found.extend(node["machine"].as_str().map(str::to_owned));
            }
        }
        found
    }

    /// Waits until the cloud has exactly the machines that the records know.
    pub fn wait_no_leak(&self) -> BTreeSet<String> {
        wait_for(
            "the cloud to have what the records know",
            Duration::from_secs(60),
            || {
                let (cloud, records) = (self.machines(), self.recorded_machines());
                if cloud == records {
                    Ok(cloud)
                } else {
                    Err((cloud, records))
                }
            },
        )
    }

    /// The program under test as if it were another one.
    pub fn newer_program(&self) -> PathBuf {
        let newer = self.path().join("conpaas-newer");
        std::fs::copy(program(), &newer).unwrap();
        // What follows an executable's own parts changes nothing but who it is.
        let mut file = std::fs::File::options().append(true).open(&newer).unwrap();
        std::io::Write::write_all(&mut file, b"newer").unwrap();
        newer
    }

    pub fn up(&self) -> Finished {
        self.up_with(&program())
    }

    /// `nutshell up` by another build of the program.
    pub fn up_with(&self, program: &Path) -> Finished {
        let (api, edge) = (self.api_port.to_string(), self.edge_port.to_string());
        let mut arguments = vec!["nutshell", "up", "--api-port", &api, "--edge-port", &edge];
        // What is tested reaches nobody outside, unless the test says so.
        let settings = std::fs::read_to_string(self.state().join("nutshell.toml"));
        if !settings.is_ok_and(|text| text.contains("egress =")) {
            arguments.extend(["--egress", "none"]);
        }
        self.command_of(program, arguments).output().unwrap().into()
    }

    /// An application `shop` with a started PHP service `web` that runs version 1 of a small site.
    pub fn with_shop() -> Self {
        let world = Self::start();
        world.ok(["app", "create", "shop"]);
        world.ok(["service", "add", "shop", "php", "--name", "web"]);
        let archive = world.path().join("v1.tar.gz");
        crate::archive::site(&archive, 1);
        let archive = archive.to_str().unwrap();
        world.ok(["code", "upload", "shop/web", archive, "--activate"]);
        world.ok(["app", "start", "shop"]);
        world
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The program with this world's environment.
    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        self.command_of(&program(), arguments)
    }

    /// Another build of the program with this world's environment.
    pub fn command_of<I: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("CONPAAS_STATE", self.state())
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("NO_COLOR", "1")
            .env_remove("CONPAAS_CONTEXT")
            .env_remove("CONPAAS_URL")
            .env_remove("CONPAAS_TOKEN")
            .env_remove("CONPAAS_FINGERPRINT")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Finished {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs the program; it must succeed.
    pub fn ok<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> String {
        let arguments: Vec<_> = arguments
            .into_iter()
            .map(|a| a.as_ref().to_owned())
            .collect();
        let finished = self.run(&arguments);
        assert_eq!(
            finished.code,
            0,
            "{arguments:?}: {finished:#?}\n{}",
            self.logs()
        );
        finished.stdout
    }

    /// Runs the program with `--json`; it must succeed and print one value.
    pub fn json<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Value {
        let mut all: Vec<_> = arguments
            .into_iter()
            .map(|a| a.as_ref().to_owned())
            .collect();
        all.push("--json".into());
        let text = self.ok(&all);
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{all:?} printed no JSON ({e}): {text}"))
    }

    /// The whole status of a service.
    pub fn service(&self, target: &str) -> Value {
        self.json(["service", "show", target])
    }

    /// On how many nodes of a service a role is ready.
    pub fn ready(&self, target: &str, role: &str) -> usize {
        ready_in(&self.service(target), role)
    }

    /// The same for every role that people ask for, as `role=count`, sorted, without those that
    /// are ready nowhere.
    pub fn ready_roles(&self, target: &str) -> Vec<String> {
        let service = self.service(target);
        let wished = service["roles"].as_object().into_iter().flatten();
        wished
            .map(|(role, _)| (role, ready_in(&service, role)))
            .filter(|(_, count)| *count > 0)
            .map(|(role, count)| format!("{role}={count}"))
            .collect()
    }

    /// A GET through the edge; gives status and body.
    pub fn get(&self, host: &str, path: &str) -> Result<(u16, String), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let url = format!("http://127.0.0.1:{}{path}", self.edge_port);
            let request = crate::http::client(0)
                .get(url)
                .header("Host", host)
                .timeout(Duration::from_secs(20));
            let answer = request.send().await.map_err(|e| format!("{e:?}"))?;
            let status = answer.status().as_u16();
            Ok((status, answer.text().await.map_err(|e| format!("{e:?}"))?))
        })
    }

    /// Waits until a page answers with this status.
    pub fn wait_status(&self, host: &str, path: &str, status: u16) -> String {
        wait_for(
            &format!("{status} from {host}{path}"),
            Duration::from_secs(60),
            || match self.get(host, path) {
                Ok((got, body)) if got == status => Ok(body),
                other => Err(other),
            },
        )
    }

    /// Processes that belong to this world: those whose command line or environment names its folder.
    pub fn processes(&self) -> Vec<String> {
        let marker = self.folder.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if pid != std::process::id()
                && (line.contains(&marker)
                    || String::from_utf8_lossy(&environment).contains(&marker))
            {
                found.push(format!("{pid} {line}"));
            }
        }
        found
    }

    /// The last lines of the daemons' logs, for a failure's text.
    pub fn logs(&self) -> String {
        if let Some(memory) = &self.memory {
            let machines = memory.cloud.machines();
            let say =
                |arguments: &[&str]| format!("--- {arguments:?}\n{}\n", self.run(arguments).stdout);
            let apps = self.run(["app", "list", "--json"]).stdout;
            let apps: Value = serde_json::from_str(&apps).unwrap_or_default();
            let shown = apps
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|app| app["id"].as_str());
            let shown: String = shown
                .map(|id| say(&["app", "show", id, "--json"]) + &say(&["node", "list", id]))
                .collect();
            return format!(
                "--- machines\n{machines:#?}\n{shown}{}",
                say(&["operation", "list"])
            );
        }
        let mut text = String::new();
        let mut folders = vec![self.state().join("log")];
        folders.extend(
            std::fs::read_dir(self.state().join("cloud/machines"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
        for folder in folders {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|e| e == "log") {
                    let content = std::fs::read(&path).unwrap_or_default();
                    let content = String::from_utf8_lossy(&content);
                    let lines: Vec<&str> = content.lines().collect();
                    let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                    text.push_str(&format!("--- {}\n{tail}\n", path.display()));
                }
            }
        }
        text
    }

    /// Leaves the state folder after the test, to look into.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl World {
    /// Prints what applications say of themselves, for whoever reads of a failure.
    fn tell(&self) {
        let apps = self.run(["app", "list", "--json"]).stdout;
        let apps: Value = serde_json::from_str(&apps).unwrap_or_default();
        for app in apps.as_array().into_iter().flatten() {
            let Some(app) = app["name"].as_str() else {
                continue;
            };
            let events = self.run(["app", "events", app]).stdout;
            eprintln!("--- events of {app}\n{events}");
            let services = self.run(["service", "list", app, "--json"]).stdout;
            let services: Value = serde_json::from_str(&services).unwrap_or_default();
            for service in services.as_array().into_iter().flatten() {
                let target = format!("{app}/{}", service["name"].as_str().unwrap_or_default());
                let lines = self.run(["logs", &target, "--lines", "400"]).stdout;
                eprintln!("--- logs of {target}\n{lines}");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            self.tell();
        }
        if let Some(memory) = self.memory.take() {
            drop(memory);
        } else {
            let down = self.run(["nutshell", "destroy", "--yes"]);
            if down.code != 0 {
                eprintln!("nutshell destroy: {down:#?}");
            }
        }
        if self.keep {
            eprintln!("kept {}", self.folder.path().display());
            self.folder.disable_cleanup(true);
        }
    }
}

fn ready_in(service: &Value, role: &str) -> usize {
    let nodes = service["nodes"].as_array().into_iter().flatten();
    let is_ready = |found: &Value| found["role"] == role && found["phase"] == "ready";
    nodes
        .flat_map(|node| node["roles"].as_array().into_iter().flatten())
        .filter(|found| is_ready(found))
        .count()
}

fn kill(pid: i32) {
    signal(pid, libc::SIGKILL);
}

/// Sends a signal to a process of a test's own installation.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: a signal to a process that belongs to this test.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// PID 1 of a machine, as this computer numbers it.
fn first_process(machine: &str) -> i32 {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let context = || {
            std::fs::read_to_string(format!("/proc/{pid}/root/etc/conpaas/context.json"))
                .unwrap_or_default()
        };
        if line.starts_with("/usr/local/bin/conpaas init") && context().contains(machine) {
            return pid;
        }
    }
    panic!("no process of machine {machine}");
}
