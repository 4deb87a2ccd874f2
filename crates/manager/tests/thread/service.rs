//! A service type for these tests: one role that carries releases, whose daemon is a shell that
//! reads its code.

use async_trait::async_trait;
use conpaas_core::role_agent::{NodeContext, ProcessSpec, RoleAgent, RoleAgents, RoleError};
use conpaas_core::service_type::{
    CommandDeclaration, CommandKind, Decision, Fencing, RoleDeclaration, ServiceType,
};
use conpaas_model::ids::ReleaseNumber;
use conpaas_model::level::RoleLevel;
use conpaas_model::status::{Phase, RoleStatus};
use serde_json::{Value, json};
use std::time::Duration;

pub const CODE: &str = "festina lente";

pub struct TestType;

static ROLES: &[RoleDeclaration] = &[RoleDeclaration {
    name: "worker",
    title: "works",
    uses: &[],
    carries_releases: true,
    port: 9000,
    exposed: false,
    min: 1,
    max: 9,
    default_count: 1,
    packable: false,
    fencing: Fencing::OnSuspicion,
    memory_weight: 1,
}];

static COMMANDS: &[CommandDeclaration] = &[CommandDeclaration {
    name: "echo",
    title: "says the same",
    kind: CommandKind::Query,
    role: "worker",
    arguments: || json!({}),
}];

impl ServiceType for TestType {
    fn name(&self) -> &'static str {
        "test"
    }
    fn title(&self) -> &'static str {
        "a test"
    }
    fn roles(&self) -> &'static [RoleDeclaration] {
        ROLES
    }
    fn packages(&self) -> &'static [&'static str] {
        &[]
    }
    fn settings_schema(&self) -> Value {
        json!({})
    }
    fn commands(&self) -> &'static [CommandDeclaration] {
        COMMANDS
    }
    fn takes_code(&self) -> bool {
        true
    }
    fn decide(&self, _: &Decision<'_>) -> Value {
        Value::Null
    }
}

impl RoleAgents for TestType {
    fn role_agent(&self, role: &str) -> Option<Box<dyn RoleAgent>> {
        (role == "worker").then(|| Box::new(Worker) as Box<dyn RoleAgent>)
    }
}

struct Worker;

fn name(node: &NodeContext, release: ReleaseNumber) -> String {
    node.process_name("worker", &release.to_string())
}

#[async_trait]
impl RoleAgent for Worker {
    async fn apply(&mut self, node: &NodeContext, level: &RoleLevel) -> Result<(), RoleError> {
        for (number, release) in &level.releases {
            let folder = match &release.code {
                Some(code) => node.code.folder(code).await?,
                None => return Err(RoleError::Failed("there is no code".to_owned())),
            };
            node.processes
                .ensure(&ProcessSpec {
                    name: name(node, *number),
                    argv: ["/bin/sh", "-c", "cat motto; exec sleep 100000"]
                        .map(str::to_owned)
                        .to_vec(),
                    env: vec![],
                    user: None,
                    log: node.log("worker", "main"),
                    working_directory: folder,
                    stop_signal: 15,
                })
                .await?;
        }
        for process in node.processes.list().await? {
            let wanted = level
                .releases
                .keys()
                .any(|number| name(node, *number) == process.name);
            if process.name.starts_with("worker/") && !wanted {
                node.processes
                    .stop(&process.name, Duration::from_secs(2))
                    .await?;
            }
        }
        Ok(())
    }
    async fn observe(
        &mut self,
        node: &NodeContext,
        level: &RoleLevel,
    ) -> Result<RoleStatus, RoleError> {
        let list = node.processes.list().await?;
        let mut status = RoleStatus::default();
        for number in level.releases.keys() {
            let found = list
                .iter()
                .find(|process| process.name == name(node, *number) && process.running);
            status.releases.insert(
                *number,
                if found.is_some() {
                    Phase::Ready
                } else {
                    Phase::Starting
                },
            );
            if let Some(found) = found {
                status.facts.insert("pid".to_owned(), found.pid.into());
            }
        }
        Ok(status)
    }
    async fn stop(&mut self, node: &NodeContext) -> Result<bool, RoleError> {
        for process in node.processes.list().await? {
            if process.name.starts_with("worker/") {
                node.processes
                    .stop(&process.name, Duration::from_secs(2))
                    .await?;
            }
        }
        Ok(true)
    }
    async fn command(
        &mut self,
        node: &NodeContext,
        name: &str,
        arguments: &Value,
    ) -> Result<Value, RoleError> {
        if node.node_name.ends_with("-2") {
            return Err(RoleError::Failed("not in the mood".to_owned()));
        }
        Ok(json!({ "name": name, "arguments": arguments }))
    }
}
