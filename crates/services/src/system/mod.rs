//! The system's own service type: nodes on which managers of services run. Not offered to people.

use crate::support::background::{Stops, stop_all};
use crate::support::files;
use async_trait::async_trait;
use conpaas_core::role_agent::{NodeContext, ProcessSpec, RoleAgent, RoleAgents, RoleError};
use conpaas_core::service_type::{Decision, Fencing, RoleDeclaration, ServiceType};
use conpaas_model::level::{Duty, RoleLevel};
use conpaas_model::protocol::MANAGER_PORT;
use conpaas_model::status::{Phase, RoleStatus};
use serde_json::{Value, json};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;

const MANAGER: &str = "manager";
/// Our own program, as every machine has it.
const PROGRAM: &str = "/usr/local/bin/conpaas";
const SIGTERM: i32 = 15;
/// Time for a manager to say goodbye; it keeps nothing that the Director does not have.
const GRACE: Duration = Duration::from_secs(5);

/// The service type of the system's own nodes, both halves.
pub struct System;

static ROLES: [RoleDeclaration; 1] = [RoleDeclaration {
    name: MANAGER,
    title: "runs the managers of an application's services",
    uses: &[],
    carries_releases: false,
    port: MANAGER_PORT,
    exposed: false,
    min: 0,
    max: 4,
    default_count: 1,
    packable: false,
    fencing: Fencing::OnSuspicion,
    memory_weight: 1,
}];

impl ServiceType for System {
    fn name(&self) -> &'static str {
        "system"
    }
    fn title(&self) -> &'static str {
        "Managers of an application"
    }
    fn internal(&self) -> bool {
        true
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        &ROLES
    }
    fn packages(&self) -> &'static [&'static str] {
        &[]
    }
    fn settings_schema(&self) -> Value {
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Settings of the system's own nodes",
            "type": "object",
            "additionalProperties": false,
            "properties": {}
        })
    }
    fn takes_code(&self) -> bool {
        false
    }
    fn decide(&self, decision: &Decision<'_>) -> Value {
        json!({"memory_mib": decision.memory_mib})
    }
}

impl RoleAgents for System {
    fn role_agent(&self, role: &str) -> Option<Box<dyn RoleAgent>> {
        (role == MANAGER).then(|| Box::<Manager>::default() as Box<dyn RoleAgent>)
    }
}

/// The agent half of `manager`: one process that manages all services of the application. Who
/// it is and whom it trusts it reads from the machine's own context, so nothing secret is here.
#[derive(Default)]
struct Manager {
    stops: Stops,
}

fn process_name(node: &NodeContext) -> String {
    node.process_name(MANAGER, "daemon")
}

#[async_trait]
impl RoleAgent for Manager {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        self.stops.settle(Duration::ZERO).await?;
        let name = process_name(node);
        if self.stops.under_way(&name)
            || node
                .processes
                .list()
                .await?
                .iter()
                .any(|process| process.name == name && process.running)
        {
            return Ok(());
        }
        let folder = node.role_folder(MANAGER);
        files::folder(&folder, 0o700)?;
        files::folder(&node.log_folder, 0o755)?;
        let config = folder.join("config.json");
        files::write_if_changed(&config, level.config.to_string().as_bytes(), 0o600)?;
        let spec = ProcessSpec {
            name,
            argv: [
                PROGRAM,
                "manager",
                "--config",
                &config.display().to_string(),
            ]
            .map(str::to_owned)
            .to_vec(),
            env: vec![],
            user: None,
            log: node.log(MANAGER, "daemon"),
            working_directory: PathBuf::from("/"),
            stop_signal: SIGTERM,
        };
        node.processes.ensure(&spec).await.map(drop)
    }

    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let name = process_name(node);
        let process = node
            .processes
            .list()
            .await?
            .into_iter()
            .find(|process| process.name == name);
        let address = SocketAddrV4::new(node.address, MANAGER_PORT);
        let own = match process {
            Some(process) if process.running => {
                match tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address))
                    .await
                {
                    // A manager holds nothing in flight that its successor would not take up again.
                    Ok(Ok(_)) if level.duty == Duty::Drain => Phase::Drained,
                    Ok(Ok(_)) => Phase::Ready,
                    _ => Phase::Starting,
                }
            }
            Some(process) => {
                let exit = process.exit.unwrap_or_default();
                Phase::Failed(format!(
                    "the manager ended with {exit}: {}",
                    files::last_line(&node.log(MANAGER, "daemon")).unwrap_or_default()
                ))
            }
            None if level.duty == Duty::Drain => Phase::Drained,
            None => Phase::Starting,
        };
        Ok(RoleStatus {
            own: Some(own),
            ..RoleStatus::default()
        })
    }

    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        stop_all(
            &node.processes,
            &mut self.stops,
            &node.process_name(MANAGER, ""),
            GRACE,
        )
        .await
    }
}
