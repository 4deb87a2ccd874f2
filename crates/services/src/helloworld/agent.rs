//! How the two roles run on a node: a small web server each. A greeter's greeting is a file; a
//! front runs a script for each request that asks at the endpoint of greeters.

use super::{Config, FRONT, FRONT_PORT, GREETER, GREETER_PORT, HelloWorld};
use crate::support::background::{Stops, stop_all};
use crate::support::{files, http};
use async_trait::async_trait;
use conpaas_core::endpoint;
use conpaas_core::role_agent::{NodeContext, ProcessSpec, RoleAgent, RoleError};
use conpaas_model::level::{Duty, RoleLevel};
use conpaas_model::status::{Phase, RoleStatus};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PROGRAM: &str = "/bin/busybox";
const SIGTERM: i32 = 15;
const GRACE: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(5);

/// Asks at the endpoint, once more if whoever answered went away amid it.
const SCRIPT: &str = r#"#!/bin/sh
for i in 1 2; do
  if text=$(timeout 2 /bin/busybox wget -q -O - "http://$(cat greeter)/"); then
    printf 'Status: 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%s\n' "$text"
    exit
  fi
done
printf 'Status: 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Type: text/plain\r\n\r\nNo greeter is there right now.\n'
"#;

/// The agent half of `greeter`.
#[derive(Default)]
pub struct Greeter {
    stops: Stops,
}

/// The agent half of `front`.
#[derive(Default)]
pub struct Front {
    stops: Stops,
}

fn read(level: &RoleLevel) -> Result<Config, RoleError> {
    serde_json::from_value(level.config.clone()).map_err(|error| {
        RoleError::Failed(format!("the role's configuration cannot be read: {error}"))
    })
}

/// Makes a role's web server run over a folder.
async fn serve(
    node: &NodeContext,
    role: &str,
    port: u16,
    folder: &Path,
    stops: &mut Stops,
) -> Result<(), RoleError> {
    stops.settle(Duration::ZERO).await?;
    let name = node.process_name(role, "httpd");
    if stops.under_way(&name)
        || node
            .processes
            .list()
            .await?
            .iter()
            .any(|process| process.name == name && process.running)
    {
        return Ok(());
    }
    files::folder(&node.log_folder, 0o755)?;
    let mut argv: Vec<String> = [
        PROGRAM,
        "httpd",
        "-f",
        "-v",
        "-p",
        &format!("{}:{port}", node.address),
        "-h",
        &folder.display().to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    if files::is_root() {
        argv.extend(["-u", "www-data"].map(str::to_owned));
    }
    let spec = ProcessSpec {
        name,
        argv,
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        user: None,
        log: node.log(role, "httpd"),
        working_directory: PathBuf::from("/"),
        stop_signal: SIGTERM,
    };
    node.processes.ensure(&spec).await.map(drop)
}

/// A role's phase, proven by a real request; and the answer.
async fn look(
    node: &NodeContext,
    role: &str,
    port: u16,
    level: &RoleLevel,
) -> Result<(Phase, Option<String>), RoleError> {
    let name = node.process_name(role, "httpd");
    let process = node
        .processes
        .list()
        .await?
        .into_iter()
        .find(|process| process.name == name);
    if process.as_ref().is_none_or(|process| !process.running) {
        let phase = match process.and_then(|process| process.exit) {
            Some(exit) => Phase::Failed(format!(
                "the web server ended with {exit}: {}",
                files::last_line(&node.log(role, "httpd")).unwrap_or_default()
            )),
            None if level.duty == Duty::Drain => Phase::Drained,
            None => Phase::Starting,
        };
        return Ok((phase, None));
    }
    let answer = http::get(SocketAddrV4::new(node.address, port).into(), "/", LIMIT).await;
    Ok(match answer {
        Ok(answer) if answer.status == 200 => (
            Phase::Ready,
            Some(String::from_utf8_lossy(&answer.body).trim().to_owned()),
        ),
        // A front without greeters does its own part: it says so, with 503.
        Ok(answer) if answer.status == 503 && level.providers.is_empty() => (Phase::Ready, None),
        Ok(answer) => (Phase::Failed(format!("it answers {}", answer.status)), None),
        Err(_) => (Phase::Starting, None),
    })
}

/// Established connections by the kernel's own table, as (local, remote) ends.
fn connections() -> Vec<(SocketAddrV4, SocketAddrV4)> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let end = |text: &str| {
        let (address, port) = text.split_once(':')?;
        // The table shows addresses as the machine's own 32-bit numbers.
        let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
        Some(SocketAddrV4::new(
            Ipv4Addr::from(address),
            u16::from_str_radix(port, 16).ok()?,
        ))
    };
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (*words.get(3)? == "01").then_some(())?;
            Some((end(words.get(1)?)?, end(words.get(2)?)?))
        })
        .collect()
}

/// The phase of a role that should take no new work.
fn draining(phase: Phase, in_flight: usize) -> Phase {
    match phase {
        Phase::Ready if in_flight == 0 => Phase::Drained,
        Phase::Ready => Phase::Draining,
        other => other,
    }
}

/// Connections to a port of this node.
fn incoming(node: &NodeContext, port: u16) -> usize {
    let own = SocketAddrV4::new(node.address, port);
    connections()
        .iter()
        .filter(|(local, _)| *local == own)
        .count()
}

#[async_trait]
impl RoleAgent for Greeter {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        let config = read(level)?;
        let folder = node.role_folder(GREETER);
        files::folder(&folder, 0o755)?;
        files::write_if_changed(
            &folder.join("index.html"),
            format!("{}\n", config.text).as_bytes(),
            0o644,
        )?;
        serve(node, GREETER, GREETER_PORT, &folder, &mut self.stops).await
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let (mut phase, text) = look(node, GREETER, GREETER_PORT, level).await?;
        if level.duty == Duty::Drain {
            phase = draining(phase, incoming(node, GREETER_PORT));
        }
        let mut status = RoleStatus {
            own: Some(phase),
            ..RoleStatus::default()
        };
        if let Some(text) = text {
            status.facts.insert("says".into(), text.into());
        }
        Ok(status)
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        stop_all(
            &node.processes,
            &mut self.stops,
            &node.process_name(GREETER, ""),
            GRACE,
        )
        .await
    }

    async fn command(
        &mut self,
        node: &NodeContext,
        name: &str,
        arguments: &Value,
    ) -> Result<Value, RoleError> {
        if name != "greet" {
            return Err(RoleError::Failed(format!(
                "this role has no command '{name}'"
            )));
        }
        let answer = http::get(
            SocketAddrV4::new(node.address, GREETER_PORT).into(),
            "/",
            LIMIT,
        )
        .await
        .map_err(RoleError::io("asking the greeter"))?;
        let text = String::from_utf8_lossy(&answer.body).trim().to_owned();
        let shout = arguments
            .get("shout")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        Ok(json!({"says": if shout { text.to_uppercase() } else { text }}))
    }
}

#[async_trait]
impl RoleAgent for Front {
    async fn apply(&mut self, node: &NodeContext, _level: &RoleLevel) -> Result<(), RoleError> {
        let folder = node.role_folder(FRONT);
        let scripts = folder.join("cgi-bin");
        files::folder(&folder, 0o755)?;
        files::folder(&scripts, 0o755)?;
        let greeter = endpoint::address(&HelloWorld, GREETER)
            .map(|at| node.loopback.place(at).to_string())
            .unwrap_or_default();
        files::write_if_changed(&scripts.join("greeter"), greeter.as_bytes(), 0o644)?;
        files::write_if_changed(&scripts.join("index.cgi"), SCRIPT.as_bytes(), 0o755)?;
        serve(node, FRONT, FRONT_PORT, &folder, &mut self.stops).await
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let (mut phase, _) = look(node, FRONT, FRONT_PORT, level).await?;
        if level.duty == Duty::Drain {
            phase = draining(phase, incoming(node, FRONT_PORT));
        }
        let serving = phase.is_ready().then_some(level.serve).flatten();
        Ok(RoleStatus {
            own: Some(phase),
            serving,
            // Greeters in use are known to the endpoint.
            ..RoleStatus::default()
        })
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        stop_all(
            &node.processes,
            &mut self.stops,
            &node.process_name(FRONT, ""),
            GRACE,
        )
        .await
    }
}
