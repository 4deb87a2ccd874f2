//! `conpaas cloud` and `conpaas instance-type`: where machines come from, their sizes, and
//! whether there is room.

use crate::commands::number;
use crate::exit::{CliError, Exit, Outcome};
use crate::printer::{Table, print_pairs};
use crate::session::{Session, all};
use crate::values::nearest;
use clap::Subcommand;
use conpaas_client::{Client, ClientError, ListCloudsQuery, ListInstanceTypesQuery};
use conpaas_model::api::CloudInfo;
use conpaas_model::instance::InstanceType;
use serde::Serialize;

#[derive(Subcommand)]
pub enum CloudCommand {
    /// List clouds with what they have free
    #[command(after_help = "Examples:\n  conpaas cloud list\n  conpaas cloud list --json")]
    List,
    /// Show a cloud with its sizes of machines and what they can do
    #[command(after_help = "Examples:\n  conpaas cloud show local")]
    Show {
        /// Its name (see `conpaas cloud list`)
        name: String,
    },
    /// Look whether clouds answer and have room for another machine (exit code 5: no room)
    #[command(after_help = "Examples:\n  conpaas cloud check\n  conpaas cloud check local --json")]
    Check {
        /// Only this one
        name: Option<String>,
    },
}

#[derive(Subcommand)]
pub enum InstanceTypeCommand {
    /// List sizes of machines with their prices
    #[command(
        after_help = "Examples:\n  conpaas instance-type list\n  conpaas instance-type list --json"
    )]
    List,
    /// Show one
    #[command(after_help = "Examples:\n  conpaas instance-type show small")]
    Show {
        /// Its name (see `conpaas instance-type list`)
        name: String,
    },
    /// Count how many more machines of it fit into each cloud (exit code 5: none anywhere)
    #[command(after_help = "Examples:\n  conpaas instance-type check small")]
    Check {
        /// Its name (see `conpaas instance-type list`)
        name: String,
    },
}

/// What a check found of a cloud.
#[derive(Serialize)]
struct Room {
    cloud: String,
    instance_type: String,
    /// How many more of them fit.
    fit: u64,
}

/// How many more machines of a size a cloud has room for.
fn fit(cloud: &CloudInfo, size: &InstanceType) -> u64 {
    let by_memory = cloud.free_memory_mib.checked_div(size.memory_mib);
    // What is too many to count is limited by memory anyway.
    let by_vcpus = (cloud.free_vcpus.max(0.0) / size.vcpus).floor() as u64;
    by_memory.map_or(by_vcpus, |count| count.min(by_vcpus))
}

fn missing<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> CliError {
    let list = what.replace(' ', "-");
    CliError::new(Exit::NotFound, format!("there is no {what} '{name}'")).hint(
        match nearest(name, known) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("see those there are: conpaas {list} list"),
        },
    )
}

fn find<'a>(clouds: &'a [CloudInfo], name: &str) -> Result<&'a CloudInfo, CliError> {
    let known = || clouds.iter().map(|cloud| cloud.name.as_str());
    let found = clouds.iter().find(|cloud| cloud.name == name);
    found.ok_or_else(|| missing("cloud", name, known()))
}

async fn all_clouds(client: &Client) -> Result<Vec<CloudInfo>, ClientError> {
    all(None, async |cursor| {
        let query = ListCloudsQuery {
            cursor,
            ..Default::default()
        };
        client.list_clouds(&query).await
    })
    .await
}

pub async fn clouds(session: &Session, command: CloudCommand) -> Outcome {
    let client = session.client()?;
    let clouds = all_clouds(&client).await?;
    match command {
        CloudCommand::List => session.printer.either(&clouds, |printer| {
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
        }),
        CloudCommand::Show { name } => {
            let cloud = find(&clouds, &name)?;
            session.printer.either(cloud, |printer| {
                print_pairs(
                    printer,
                    &[
                        ("name", cloud.name.clone()),
                        ("driver", cloud.driver.clone()),
                        ("machines", cloud.machines.to_string()),
                        ("free vCPUs", number(cloud.free_vcpus)),
                        ("free memory", format!("{} MiB", cloud.free_memory_mib)),
                        ("free disk", format!("{} MiB", cloud.free_disk_mib)),
                        ("limits", cloud.limits.clone()),
                        ("features", cloud.features.join(", ")),
                    ],
                );
                printer.line("");
                sizes(&cloud.instance_types).print(printer);
            })
        }
        CloudCommand::Check { name } => {
            let looked_at = match &name {
                Some(name) => std::slice::from_ref(find(&clouds, name)?),
                None => &clouds[..],
            };
            let room: Vec<Room> = looked_at
                .iter()
                .filter_map(|cloud| {
                    let smallest = cloud
                        .instance_types
                        .iter()
                        .min_by_key(|size| size.memory_mib)?;
                    Some(room(cloud, smallest))
                })
                .collect();
            let full: Vec<String> = room
                .iter()
                .filter(|room| room.fit == 0)
                .map(|room| format!("cloud '{}'", room.cloud))
                .collect();
            show_room(session, &room)?;
            refuse(full.is_empty(), &full.join(" and "))
        }
    }
}

fn room(cloud: &CloudInfo, size: &InstanceType) -> Room {
    Room {
        cloud: cloud.name.clone(),
        instance_type: size.name.clone(),
        fit: fit(cloud, size),
    }
}

fn show_room(session: &Session, room: &[Room]) -> Outcome {
    session.printer.either(&room, |printer| {
        let mut table = Table::new(["CLOUD", "INSTANCE TYPE", "MORE THAT FIT"]);
        for room in room {
            let cells = [&room.cloud, &room.instance_type];
            table.row([cells[0].clone(), cells[1].clone(), room.fit.to_string()]);
        }
        table.print(printer);
    })
}

fn refuse(fine: bool, who: &str) -> Outcome {
    if fine {
        return Ok(());
    }
    Err(CliError::new(
        Exit::Conflict,
        format!("{who} has no room for another machine"),
    )
    .hint("stop or scale down what is not needed; see what is free: conpaas cloud list"))
}

fn sizes(types: &[InstanceType]) -> Table {
    let mut table = Table::new(["NAME", "VCPUS", "MEMORY", "CREDITS/H"]);
    for size in types {
        table.row([
            size.name.clone(),
            number(size.vcpus),
            format!("{} MiB", size.memory_mib),
            number(size.credits_per_hour),
        ]);
    }
    table
}

pub async fn instance_types(session: &Session, command: InstanceTypeCommand) -> Outcome {
    let client = session.client()?;
    let types = all(None, async |cursor| {
        let query = ListInstanceTypesQuery {
            cursor,
            ..Default::default()
        };
        client.list_instance_types(&query).await
    })
    .await?;
    let find = |name: &str| {
        let known = || types.iter().map(|size| size.name.as_str());
        let found = types.iter().find(|size| size.name == name);
        found.ok_or_else(|| missing("instance type", name, known()))
    };
    match command {
        InstanceTypeCommand::List => session
            .printer
            .either(&types, |printer| sizes(&types).print(printer)),
        InstanceTypeCommand::Show { name } => {
            let size = find(&name)?;
            session.printer.either(size, |printer| {
                sizes(std::slice::from_ref(size)).print(printer);
            })
        }
        InstanceTypeCommand::Check { name } => {
            let size = find(&name)?;
            let clouds = all_clouds(&client).await?;
            let room: Vec<Room> = clouds
                .iter()
                .filter(|cloud| cloud.instance_types.iter().any(|has| has.name == size.name))
                .map(|cloud| room(cloud, size))
                .collect();
            show_room(session, &room)?;
            let fine = room.iter().any(|room| room.fit > 0);
            refuse(fine, &format!("no cloud can hold a {}: each", size.name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_bounded_by_what_is_scarcest() {
        let size = |vcpus, memory_mib| InstanceType {
            name: "x".into(),
            vcpus,
            memory_mib,
            credits_per_hour: 1.0,
        };
        let cloud = |free_vcpus, free_memory_mib| CloudInfo {
            name: "c".into(),
            driver: "local".into(),
            limits: String::new(),
            features: Vec::new(),
            instance_types: Vec::new(),
            free_vcpus,
            free_memory_mib,
            free_disk_mib: 0,
            machines: 0,
        };
        assert_eq!(fit(&cloud(2.0, 10_000), &size(0.5, 256)), 4);
        assert_eq!(fit(&cloud(200.0, 1000), &size(0.5, 256)), 3);
        assert_eq!(fit(&cloud(-1.0, 1000), &size(0.5, 256)), 0);
    }
}
