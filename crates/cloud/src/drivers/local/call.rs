//! Calling the helper from the driver's many-threaded process.

use super::channel;
use super::helper::listen_address;
use super::idmap::IdMap;
use super::step::StepError;
use crate::error::CloudError;
use conpaas_model::ids::ApplicationId;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A command that runs the helper, with nothing of our environment.
pub fn helper(program: &Path, command: &str) -> Command {
    let mut helper = Command::new(program);
    helper
        .arg("machine-helper")
        .arg(command)
        .env_clear()
        .stdin(Stdio::null())
        .current_dir("/");
    helper
}

/// Starts a helper. A program that was just written cannot be run for a moment when another
/// thread's child has yet to close the descriptor it inherited; that passes.
fn start(command: &mut Command) -> std::io::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && tries < 50 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

fn failure(output: &Output) -> CloudError {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .rev()
        .find_map(|line| serde_json::from_str::<StepError>(line).ok())
        .map_or_else(
            || CloudError::Step {
                step: "run the machine helper".into(),
                detail: format!("it ended with {}: {}", output.status, text.trim()),
            },
            CloudError::from,
        )
}

fn json(map: &IdMap) -> Result<String, CloudError> {
    serde_json::to_string(map).map_err(|e| CloudError::Step {
        step: "encode the id map".into(),
        detail: e.to_string(),
    })
}

/// Runs a helper command that takes the id map and paths.
pub fn run_mapped<P: AsRef<OsStr>>(
    program: &Path,
    command: &str,
    map: &IdMap,
    paths: &[P],
) -> Result<(), CloudError> {
    let mut helper = helper(program, command);
    helper
        .arg(json(map)?)
        .args(paths)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = start(&mut helper)
        .and_then(Child::wait_with_output)
        .map_err(CloudError::io("run", program))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failure(&output))
    }
}

/// Unpacks a tar stream into a folder; the error is tar's last words.
pub fn unpack(program: &Path, map: &IdMap, folder: &Path, stream: Stdio) -> Result<(), CloudError> {
    let mut helper = helper(program, "unpack");
    helper
        .arg(json(map)?)
        .arg(folder)
        .stdin(stream)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = start(&mut helper)
        .and_then(Child::wait_with_output)
        .map_err(CloudError::io("run", program))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failure(&output))
    }
}

/// A listener inside an application's network.
pub fn listen(
    program: &Path,
    state_dir: &Path,
    network: &ApplicationId,
    gateway: Ipv4Addr,
    port: u16,
) -> Result<TcpListener, CloudError> {
    let (_, sockets) = inside(
        program,
        "listen",
        state_dir,
        network,
        &[listen_address(gateway, port)],
    )?;
    match sockets.into_iter().next() {
        Some(socket) => Ok(TcpListener::from(socket)),
        None => Err(CloudError::NoNetwork {
            network: network.to_string(),
        }),
    }
}

/// The name of an application's network and the sockets of its outlet: names by UDP and by TCP,
/// then one for each of `ports`.
pub fn outlet(
    program: &Path,
    state_dir: &Path,
    network: &ApplicationId,
    ports: &[u16],
) -> Result<(String, Vec<OwnedFd>), CloudError> {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let (name, sockets) = inside(program, "outlet", state_dir, network, &ports)?;
    if name.is_empty() {
        return Err(CloudError::NoNetwork {
            network: network.to_string(),
        });
    }
    Ok((String::from_utf8_lossy(&name).into_owned(), sockets))
}

/// Runs a helper command inside a network that answers with one message.
fn inside(
    program: &Path,
    command: &str,
    state_dir: &Path,
    network: &ApplicationId,
    arguments: &[String],
) -> Result<(Vec<u8>, Vec<OwnedFd>), CloudError> {
    let (ours, theirs) =
        channel::pair().map_err(CloudError::io("make a socket pair for", program))?;
    let output = helper(program, command)
        .arg(state_dir)
        .arg(network.as_str())
        .args(arguments)
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(Child::wait_with_output)
        .map_err(CloudError::io("run", program))?;
    if !output.status.success() {
        return Err(failure(&output));
    }
    channel::receive(ours.as_fd()).map_err(|e| CloudError::Step {
        step: "receive sockets of a network".into(),
        detail: e.to_string(),
    })
}
