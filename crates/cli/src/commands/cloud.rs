//! `conpaas cloud` and `conpaas instance-type`: where machines come from, and their sizes.

use crate::commands::number;
use crate::exit::Outcome;
use crate::printer::Table;
use crate::session::Session;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum CloudCommand {
    /// List clouds with what they have free
    #[command(after_help = "Examples:\n  conpaas cloud list\n  conpaas cloud list --json")]
    List,
}

#[derive(Subcommand)]
pub enum InstanceTypeCommand {
    /// List sizes of machines with their prices
    #[command(
        after_help = "Examples:\n  conpaas instance-type list\n  conpaas instance-type list --json"
    )]
    List,
}

pub async fn clouds(session: &Session, CloudCommand::List: CloudCommand) -> Outcome {
    let client = session.client()?;
    let clouds = client.list_clouds().await?.items;
    session.printer.either(&clouds, |printer| {
        let mut table = Table::new([
            "NAME",
            "DRIVER",
            "MACHINES",
            "FREE VCPUS",
            "FREE MEMORY",
            "FREE DISK",
            "LIMITS",
        ]);
        for cloud in &clouds {
            table.row([
                cloud.name.clone(),
                cloud.driver.clone(),
                cloud.machines.to_string(),
                number(cloud.free_vcpus),
                format!("{} MiB", cloud.free_memory_mib),
                format!("{} MiB", cloud.free_disk_mib),
                cloud.limits.clone(),
            ]);
        }
        table.print(printer);
    })
}

pub async fn instance_types(
    session: &Session,
    InstanceTypeCommand::List: InstanceTypeCommand,
) -> Outcome {
    let client = session.client()?;
    let types = client.list_instance_types().await?.items;
    session.printer.either(&types, |printer| {
        let mut table = Table::new(["NAME", "VCPUS", "MEMORY", "CREDITS/H"]);
        for size in &types {
            table.row([
                size.name.clone(),
                number(size.vcpus),
                format!("{} MiB", size.memory_mib),
                number(size.credits_per_hour),
            ]);
        }
        table.print(printer);
    })
}
