//! `conpaas node`: the machines in the hands of an application.

use crate::commands::{time, word};
use crate::exit::{CliError, Outcome};
use crate::follow::{Wait, finish};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all};
use crate::target::{NodeTarget, Target};
use clap::Subcommand;
use conpaas_client::{ListAppNodesQuery, ListNodesQuery};
use conpaas_model::api::Node;
use conpaas_model::status::{NodeState, NodeSummary};

#[derive(Subcommand)]
pub enum NodeCommand {
    /// List the nodes of an application or a service
    #[command(
        after_help = "Examples:\n  conpaas node list shop\n  conpaas node list shop/web --json\n  conpaas node list shop/web --role backend --state up"
    )]
    List {
        /// APP (managers' nodes too) or APP/SERVICE
        target: Target,
        /// Only with this role
        #[arg(long, value_name = "ROLE")]
        role: Option<String>,
        /// Only in this state: requested, booting, up, dead or releasing
        #[arg(long, value_name = "STATE", value_parser = crate::values::word_of::<NodeState>)]
        state: Option<NodeState>,
    },
    /// Show a node
    #[command(
        after_help = "Examples:\n  conpaas node show shop/web/web-3\n  conpaas node show shop/web/3"
    )]
    Show {
        /// APP/SERVICE/NODE, by name, number or id
        target: NodeTarget,
    },
    /// Put a new node in its place, then let it go
    #[command(after_help = "Examples:\n  conpaas node replace shop/web/web-3")]
    Replace {
        /// APP/SERVICE/NODE, by name, number or id
        target: NodeTarget,
        #[command(flatten)]
        wait: Wait,
    },
}

/// What a node's roles do, in one line.
pub fn roles(node: &NodeSummary) -> String {
    let of = |role: &conpaas_model::status::RoleSummary| {
        let release = role
            .release
            .map(|release| format!(" {release}"))
            .unwrap_or_default();
        let reason = role
            .reason
            .as_ref()
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default();
        format!("{}{release} {}{reason}", role.role, role.phase)
    };
    node.roles.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// A node's state; and whether machines are made of something newer now.
fn state_of(node: &Node) -> String {
    let outdated = if node.outdated == Some(true) {
        " (outdated)"
    } else {
        ""
    };
    format!("{}{outdated}", word(&node.state))
}

pub async fn run(session: &Session, command: NodeCommand) -> Outcome {
    let client = session.client()?;
    match command {
        NodeCommand::List {
            target,
            role,
            state,
        } => {
            let nodes = match &target {
                Target { node: Some(_), .. } => {
                    return Err(CliError::usage(
                        "an application or a service is meant here: APP or APP/SERVICE",
                    ));
                }
                Target {
                    app, service: None, ..
                } => {
                    all(None, async |cursor| {
                        let role = role.clone();
                        let limit = None;
                        let query = ListAppNodesQuery {
                            cursor,
                            limit,
                            state,
                            role,
                        };
                        client.list_app_nodes(app, &query).await
                    })
                    .await?
                }
                Target {
                    app,
                    service: Some(service),
                    ..
                } => {
                    all(None, async |cursor| {
                        let role = role.clone();
                        let limit = None;
                        let query = ListNodesQuery {
                            cursor,
                            limit,
                            state,
                            role,
                        };
                        client.list_nodes(app, service, &query).await
                    })
                    .await?
                }
            };
            session.printer.either(&nodes, |printer| {
                let mut table = Table::new([
                    "NODE", "SERVICE", "STATE", "TYPE", "ADDRESS", "ROLES", "TROUBLE",
                ]);
                for node in &nodes {
                    table.row([
                        node.name.clone(),
                        node.service.to_string(),
                        state_of(node),
                        node.instance_type.clone(),
                        node.address.clone(),
                        if node.manager {
                            "manager".to_owned()
                        } else {
                            node.summary.as_ref().map(roles).unwrap_or_default()
                        },
                        node.trouble.clone().unwrap_or_default(),
                    ]);
                }
                table.print(printer);
            })
        }
        NodeCommand::Show { target } => {
            let node = client
                .show_node(&target.app, &target.service, &target.node)
                .await?;
            session.printer.either(&node, |printer| {
                let health = node
                    .summary
                    .as_ref()
                    .map(|summary| summary.health.clone())
                    .unwrap_or_default();
                let mib =
                    |value: Option<u64>| value.map(|mib| format!("{mib} MiB")).unwrap_or_default();
                print_pairs(
                    printer,
                    &[
                        ("name", node.name.clone()),
                        ("number", node.number.to_string()),
                        ("service", node.service.to_string()),
                        ("state", state_of(&node)),
                        ("trouble", node.trouble.clone().unwrap_or_default()),
                        (
                            "roles",
                            node.summary.as_ref().map(roles).unwrap_or_default(),
                        ),
                        ("cloud", node.cloud.clone()),
                        ("instance type", node.instance_type.clone()),
                        ("limits", node.limits.clone().unwrap_or_default()),
                        ("image", node.image.clone().unwrap_or_default()),
                        ("address", node.address.clone()),
                        ("machine", node.machine.clone().unwrap_or_default()),
                        ("memory used", mib(health.memory_used_mib)),
                        ("disk used", mib(health.disk_used_mib)),
                        ("created", time(&node.created_at)),
                    ],
                );
            })
        }
        NodeCommand::Replace { target, wait } => {
            let accepted = client
                .replace_node(&target.app, &target.service, &target.node)
                .await?;
            finish(session, &client, accepted, &wait).await
        }
    }
}
