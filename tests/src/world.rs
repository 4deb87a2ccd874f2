//! One installation under test.

use serde_json::Value;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Waits until a condition gives a value; the status text says in the end what was the case.
pub fn wait_for<T, S: Debug>(what: &str, bound: Duration, mut condition: impl FnMut() -> Result<T, S>) -> T {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(status) if begun.elapsed() > bound => panic!("waited {bound:?} for {what}; last: {status:#?}"),
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

/// One installation with its own state folder, ports and machines.
pub struct World {
    folder: tempfile::TempDir,
    pub edge_port: u16,
    pub api_port: u16,
    keep: bool,
}

/// A port nobody uses at the moment.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl World {
    /// Starts an installation and logs in as its operator.
    pub fn start() -> Self {
        let world = Self::prepare();
        let up = world.up();
        assert_eq!(up.code, 0, "nutshell up: {up:#?}\n{}", world.logs());
        world
    }

    /// An installation that was not started yet.
    pub fn prepare() -> Self {
        let folder = tempfile::Builder::new().prefix("cps-e2e-").tempdir().unwrap();
        Self { folder, edge_port: free_port(), api_port: free_port(), keep: false }
    }

    pub fn up(&self) -> Finished {
        let (api, edge) = (self.api_port.to_string(), self.edge_port.to_string());
        self.run(["nutshell", "up", "--api-port", &api, "--edge-port", &edge])
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The program with this world's environment.
    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("CONPAAS_STATE", self.state())
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("NO_COLOR", "1")
            .env_remove("CONPAAS_CONTEXT")
            .env_remove("CONPAAS_URL")
            .env_remove("CONPAAS_TOKEN")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Finished {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs the program; it must succeed.
    pub fn ok<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> String {
        let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let finished = self.run(&arguments);
        assert_eq!(finished.code, 0, "{arguments:?}: {finished:#?}\n{}", self.logs());
        finished.stdout
    }

    /// Runs the program with `--json`; it must succeed and print one value.
    pub fn json<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Value {
        let mut all: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        all.push("--json".into());
        let text = self.ok(&all);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{all:?} printed no JSON ({e}): {text}"))
    }

    /// The whole status of a service.
    pub fn service(&self, target: &str) -> Value {
        self.json(["service", "show", target])
    }

    /// How many nodes of a service have a ready instance of each role, as `role=count` sorted.
    pub fn ready_roles(&self, target: &str) -> Vec<String> {
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for node in self.service(target)["nodes"].as_array().into_iter().flatten() {
            for role in node["roles"].as_array().into_iter().flatten() {
                if role["phase"] == "ready" {
                    *counts.entry(role["role"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
                }
            }
        }
        counts.into_iter().map(|(role, count)| format!("{role}={count}")).collect()
    }

    /// A GET through the edge; gives status and body.
    pub fn get(&self, host: &str, path: &str) -> Result<(u16, String), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let url = format!("http://127.0.0.1:{}{path}", self.edge_port);
            let request = crate::http::client(0).get(url).header("Host", host).timeout(Duration::from_secs(20));
            let answer = request.send().await.map_err(|e| format!("{e:?}"))?;
            let status = answer.status().as_u16();
            Ok((status, answer.text().await.map_err(|e| format!("{e:?}"))?))
        })
    }

    /// Waits until a page answers with this status.
    pub fn wait_status(&self, host: &str, path: &str, status: u16) -> String {
        wait_for(&format!("{status} from {host}{path}"), Duration::from_secs(60), || match self.get(host, path) {
            Ok((got, body)) if got == status => Ok(body),
            other => Err(other),
        })
    }

    /// Processes that belong to this world: those whose command line or environment names its folder.
    pub fn processes(&self) -> Vec<String> {
        let marker = self.folder.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if pid != std::process::id() && (line.contains(&marker) || String::from_utf8_lossy(&environment).contains(&marker)) {
                found.push(format!("{pid} {line}"));
            }
        }
        found
    }

    /// The last lines of the daemons' logs, for a failure's text.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let mut folders = vec![self.state().join("log")];
        folders.extend(std::fs::read_dir(self.state().join("machines")).into_iter().flatten().flatten().map(|e| e.path()));
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

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let down = self.run(["nutshell", "destroy", "--yes"]);
        if down.code != 0 {
            eprintln!("nutshell destroy: {down:#?}");
        }
        if self.keep {
            eprintln!("kept {}", self.folder.path().display());
            self.folder.disable_cleanup(true);
        }
    }
}
