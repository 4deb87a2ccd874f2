//! The behaviour every driver shows, as checks that take any [`Cloud`] and say in words what is
//! wrong. A new driver passes these before anything else is asked of it.

use crate::Cloud;
use crate::error::CloudError;
use crate::types::{CloudMachineId, CreateMachine, Machine, MachineState};
use conpaas_model::ids::{ApplicationId, InstallationId, MachineId};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// What the checks need to know about the cloud under test.
#[derive(Clone, Debug)]
pub struct Subject {
    /// An instance type of which a handful fit.
    pub small: String,
    /// An instance type that exists but never fits.
    pub giant: String,
    /// Text that a machine writes to its console when it starts.
    pub console_text: String,
    /// The tags used; nothing else may carry them.
    pub installation: InstallationId,
}

type Outcome = Result<(), String>;

/// A request with tags of the subject; `number` tells machines of one check apart.
pub fn request(subject: &Subject, check: &str, number: u8) -> Result<CreateMachine, String> {
    let id = |e: conpaas_model::ids::IdError| e.to_string();
    Ok(CreateMachine {
        token: format!("{check}-{number}"),
        installation: subject.installation.clone(),
        application: ApplicationId::from_suffix(check).map_err(id)?,
        machine: MachineId::from_suffix(&format!("{check}{number}")).map_err(id)?,
        hostname: format!("{check}-{number}"),
        instance_type: subject.small.clone(),
        address: Ipv4Addr::new(100, 64, 1, number),
        contextualization: br#"{"greeting":"hello"}"#.to_vec(),
    })
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn say(e: CloudError) -> String {
    e.to_string()
}

async fn ids(
    cloud: &dyn Cloud,
    installation: &InstallationId,
) -> Result<Vec<CloudMachineId>, String> {
    Ok(cloud
        .list(installation)
        .await
        .map_err(say)?
        .into_iter()
        .map(|m| m.id)
        .collect())
}

async fn made(cloud: &dyn Cloud, request: CreateMachine) -> Result<Machine, String> {
    let machine = cloud.create(request).await.map_err(say)?;
    ensure(!matches!(machine.state, MachineState::Dead { .. }), || {
        format!("a new machine is {:?}", machine.state)
    })?;
    Ok(machine)
}

/// One token, one machine, however often and at once it is asked.
pub async fn tokens_name_machines(cloud: &dyn Cloud, subject: &Subject) -> Outcome {
    let first = made(cloud, request(subject, "tokens", 2)?).await?;
    let again = made(cloud, request(subject, "tokens", 2)?).await?;
    ensure(first.id == again.id, || {
        format!("one token made {} and {}", first.id, again.id)
    })?;
    let (a, b) = tokio::join!(
        cloud.create(request(subject, "tokens", 3)?),
        cloud.create(request(subject, "tokens", 3)?)
    );
    let (a, b) = (a.map_err(say)?, b.map_err(say)?);
    ensure(a.id == b.id, || {
        format!("one token asked twice at once made {} and {}", a.id, b.id)
    })?;
    ensure(a.id != first.id, || {
        "another token gave the same machine".into()
    })?;
    let listed = ids(cloud, &subject.installation).await?;
    ensure(listed.len() == 2, || {
        format!("two machines were made, {} are listed", listed.len())
    })?;
    for id in listed {
        cloud.destroy(&id).await.map_err(say)?;
    }
    Ok(())
}

/// A machine carries what it was asked to be, and only its own installation sees it.
pub async fn tags_are_kept(cloud: &dyn Cloud, subject: &Subject) -> Outcome {
    let asked = request(subject, "tags", 2)?;
    let machine = made(cloud, asked.clone()).await?;
    let listed = cloud.list(&subject.installation).await.map_err(say)?;
    let found = listed
        .iter()
        .find(|m| m.id == machine.id)
        .ok_or("a machine that was made is not listed")?;
    ensure(
        found.token == asked.token
            && found.application == asked.application
            && found.machine == asked.machine
            && found.installation == asked.installation
            && found.hostname == asked.hostname
            && found.instance_type == asked.instance_type
            && found.address == asked.address,
        || format!("tags changed: {found:?}"),
    )?;
    ensure(found.image.as_ref() == Some(&cloud.image()), || {
        format!("it does not say what it started from: {found:?}")
    })?;
    let foreign: InstallationId = "inst-foreign".parse().map_err(|e| format!("{e}"))?;
    let seen = ids(cloud, &foreign).await?;
    ensure(seen.is_empty(), || {
        format!("a foreign installation sees {seen:?}")
    })?;
    cloud.destroy(&machine.id).await.map_err(say)
}

/// Destroyed is gone; destroying again, or what never was, succeeds.
pub async fn destroying_ends(cloud: &dyn Cloud, subject: &Subject) -> Outcome {
    let machine = made(cloud, request(subject, "destroy", 2)?).await?;
    for _ in 0..2 {
        cloud.destroy(&machine.id).await.map_err(say)?;
        let left = ids(cloud, &subject.installation).await?;
        ensure(left.is_empty(), || {
            format!("after destroy there is still {left:?}")
        })?;
    }
    let again = made(cloud, request(subject, "destroy", 2)?).await?;
    let (a, b) = tokio::join!(cloud.destroy(&again.id), cloud.destroy(&again.id));
    a.and(b).map_err(say)
}

/// A size that is not offered is refused, naming those that are.
pub async fn unknown_sizes_are_refused(cloud: &dyn Cloud, subject: &Subject) -> Outcome {
    let asked = CreateMachine {
        instance_type: "no-such-size".into(),
        ..request(subject, "sizes", 2)?
    };
    match cloud.create(asked).await {
        Err(e @ CloudError::UnknownInstanceType { .. }) => {
            ensure(e.to_string().contains(&subject.small), || {
                format!("the refusal does not name what there is: {e}")
            })?;
        }
        other => return Err(format!("an unknown size gave {other:?}")),
    }
    let left = ids(cloud, &subject.installation).await?;
    ensure(left.is_empty(), || format!("a refusal left {left:?}"))
}

/// What does not fit is refused with the numbers, and what was promised is no longer free.
pub async fn what_does_not_fit_is_refused(cloud: &dyn Cloud, subject: &Subject) -> Outcome {
    let asked = CreateMachine {
        instance_type: subject.giant.clone(),
        ..request(subject, "capacity", 2)?
    };
    match cloud.create(asked).await {
        Err(e @ CloudError::NoCapacity { asked, free }) => {
            ensure(!free.covers(&asked), || {
                format!("refused although it fits: {e}")
            })?;
            let text = e.to_string();
            ensure(
                text.contains(&asked.memory_mib.to_string())
                    && text.contains(&free.memory_mib.to_string()),
                || format!("the refusal lacks numbers: {text}"),
            )?;
        }
        other => return Err(format!("a giant gave {other:?}")),
    }
    let left = ids(cloud, &subject.installation).await?;
    ensure(left.is_empty(), || format!("a refusal left {left:?}"))?;
    let types = cloud.instance_types();
    let size = types
        .iter()
        .find(|t| t.name == subject.small)
        .ok_or("the small size is not offered")?;
    let before = cloud.capacity().await.map_err(say)?;
    let machine = made(cloud, request(subject, "capacity", 3)?).await?;
    let during = cloud.capacity().await.map_err(say)?;
    cloud.destroy(&machine.id).await.map_err(say)?;
    ensure(
        (before.free.vcpus - during.free.vcpus - size.vcpus).abs() < 0.01,
        || {
            format!(
                "a machine of {} vCPUs took {} of {}",
                size.vcpus,
                before.free.vcpus - during.free.vcpus,
                before.free.vcpus
            )
        },
    )
}

/// What a machine wrote to its console can be read, its tail alone too.
pub async fn consoles_can_be_read(cloud: &dyn Cloud, subject: &Subject) -> Outcome {
    let machine = made(cloud, request(subject, "console", 2)?).await?;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let text = String::from_utf8_lossy(&cloud.console(&machine.id, 65_536).await.map_err(say)?)
            .into_owned();
        if text.contains(&subject.console_text) {
            let tail = cloud.console(&machine.id, 4).await.map_err(say)?;
            ensure(tail.len() == 4, || {
                format!("four bytes were asked for, {} came", tail.len())
            })?;
            break;
        }
        ensure(Instant::now() < end, || {
            format!(
                "the console never said '{}': '{text}'",
                subject.console_text
            )
        })?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cloud.destroy(&machine.id).await.map_err(say)?;
    match cloud.console(&machine.id, 10).await {
        Err(CloudError::NotFound { .. }) => Ok(()),
        other => Err(format!(
            "the console of a machine that is gone gave {other:?}"
        )),
    }
}

/// All of the above, each with its name.
pub async fn run_all(cloud: &dyn Cloud, subject: &Subject) -> Vec<(&'static str, Outcome)> {
    vec![
        (
            "tokens name machines",
            tokens_name_machines(cloud, subject).await,
        ),
        ("tags are kept", tags_are_kept(cloud, subject).await),
        ("destroying ends", destroying_ends(cloud, subject).await),
        (
            "unknown sizes are refused",
            unknown_sizes_are_refused(cloud, subject).await,
        ),
        (
            "what does not fit is refused",
            what_does_not_fit_is_refused(cloud, subject).await,
        ),
        (
            "consoles can be read",
            consoles_can_be_read(cloud, subject).await,
        ),
    ]
}
