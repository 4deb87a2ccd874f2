//! How machines and drivers end, and that nothing is left of them.

use super::world::{self, World, until};
use conpaas_cloud::{Cloud, Exit, LocalCloud, MachineState, suite};
use std::process::Command;

pub async fn deaths_are_noticed(_root: bool) {
    let world = World::new();
    let (one, two, three) = (
        world.create("death", 2).await,
        world.create("death", 3).await,
        world.create("death", 4).await,
    );
    let state = async |machine: &conpaas_cloud::Machine| {
        world
            .cloud
            .list(&machine.installation)
            .await
            .unwrap()
            .into_iter()
            .find(|m| m.id == machine.id)
            .unwrap()
            .state
    };
    // The first machine made the network; the others hold it when its supervisor is killed.
    let init = world.pid(&one, "init");
    unsafe { libc::kill(world.pid(&one, "supervisor"), libc::SIGKILL) };
    until("the machine died with its supervisor", async || {
        state(&one).await
            == MachineState::Dead {
                exit: Exit::SupervisorGone,
            }
    })
    .await;
    until("its init is gone", async || {
        // Its new parent may take its time to reap what is left of it.
        std::fs::read_to_string(format!("/proc/{init}/stat")).map_or(true, |s| s.contains(") Z "))
    })
    .await;
    unsafe { libc::kill(world.pid(&two, "init"), libc::SIGKILL) };
    until("the machine died with its init", async || {
        state(&two).await
            == MachineState::Dead {
                exit: Exit::Signal { signal: 9 },
            }
    })
    .await;
    world.is_up(&three).await;
    assert_eq!(world.asks(&three, "100.64.7.4:7000"), "I am death-4");
    // Asked again with the same token, the dead machine is the answer; after destroy, a new one.
    assert_eq!(
        world
            .cloud
            .create(world.request("death", 3))
            .await
            .unwrap()
            .state,
        MachineState::Dead {
            exit: Exit::Signal { signal: 9 }
        }
    );
    world.cloud.destroy(&one.id).await.unwrap();
    world.cloud.destroy(&two.id).await.unwrap();
    let again = world.create("death", 2).await;
    assert_eq!(again.network_instance, three.network_instance);
    world.is_up(&again).await;
    assert_eq!(world.asks(&three, "100.64.7.2:7000"), "I am death-2");
    world.destroy_all().await;
}

pub async fn drivers_come_and_go(_root: bool) {
    let world = World::new();
    let machine = world.create("restart", 2).await;
    let other = LocalCloud::open(world.config.clone()).unwrap();
    let found = other.list(&machine.installation).await.unwrap();
    assert_eq!(found, std::slice::from_ref(&machine));
    assert_eq!(
        other.create(world.request("restart", 2)).await.unwrap(),
        machine
    );
    other.destroy(&machine.id).await.unwrap();
    assert!(
        world
            .cloud
            .list(&machine.installation)
            .await
            .unwrap()
            .is_empty()
    );
}

/// Makes one machine again and again, so that a killer meets every point of it.
pub fn create_and_hang(folder: &str) {
    let cloud = LocalCloud::open(world::config(folder.as_ref())).unwrap();
    let subject = suite::Subject {
        small: "small".into(),
        giant: "giant".into(),
        console_text: String::new(),
        installation: world::installation(folder.as_ref()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    println!("ready");
    runtime.block_on(async {
        cloud
            .create(suite::request(&subject, "hang", 2).unwrap())
            .await
            .unwrap();
        std::future::pending::<()>().await;
    });
}

pub async fn interrupted_creations_are_found_or_cleared(_root: bool) {
    let world = World::new();
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for round in 0..40u64 {
        let (delay, supervisor_too) = (round / 2, round % 2 == 1);
        let mut child = Command::new("/proc/self/exe")
            .arg("create-and-hang")
            .arg(world.folder.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0u8; 6];
        std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut ready).unwrap();
        std::thread::sleep(std::time::Duration::from_micros(delay * 1200));
        child.kill().unwrap();
        if supervisor_too {
            for process in world.processes() {
                let pid = process.split(' ').next().unwrap().parse().unwrap();
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        child.wait().unwrap();
        let cloud = LocalCloud::open(world.config.clone()).unwrap();
        let listed = cloud.list(&world.subject().installation).await.unwrap();
        assert!(listed.len() <= 1);
        *seen
            .entry(
                listed
                    .first()
                    .map_or("none".into(), |m| format!("{:?}", m.state)),
            )
            .or_default() += 1;
        let again = async || {
            cloud
                .create(suite::request(&world.subject(), "hang", 2).unwrap())
                .await
                .unwrap()
        };
        let mut machine = again().await;
        // One that had run and died is the answer until it is destroyed.
        if machine.state
            == (MachineState::Dead {
                exit: Exit::SupervisorGone,
            })
        {
            cloud.destroy(&machine.id).await.unwrap();
            machine = again().await;
        }
        assert_eq!(machine.state, MachineState::Running);
        assert_eq!(
            cloud
                .list(&world.subject().installation)
                .await
                .unwrap()
                .len(),
            1
        );
        cloud.destroy(&machine.id).await.unwrap();
        until("nothing runs", async || world.processes().is_empty()).await;
    }
    println!("  met after the kill: {seen:?}");
}

pub async fn nothing_stays(root: bool) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let world = World::new();
    let start = std::time::Instant::now();
    LocalCloud::open(world.config.clone()).unwrap();
    println!("  opened in {} ms", start.elapsed().as_millis());
    let mut times = Vec::new();
    for number in 2..12 {
        let start = std::time::Instant::now();
        world.create("many", number).await;
        times.push(start.elapsed().as_micros() as f64 / 1000.0);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "  create to init running, ms: min {:.1} median {:.1} max {:.1}",
        times[0], times[5], times[9]
    );
    let start = std::time::Instant::now();
    world.destroy_all().await;
    println!(
        "  ten machines destroyed in {} ms",
        start.elapsed().as_millis()
    );
    until("nothing runs", async || world.processes().is_empty()).await;
    assert_eq!(
        std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
        mounts
    );
    for folder in ["machines", "networks"] {
        assert_eq!(
            std::fs::read_dir(world.config.state_dir.join(folder))
                .unwrap()
                .count(),
            0,
            "{folder}"
        );
    }
    if root {
        for controller in ["memory", "cpu", "pids", "."] {
            let installation = world.subject().installation;
            let group = format!("/sys/fs/cgroup/{controller}/conpaas/{installation}");
            assert!(!std::path::Path::new(&group).exists(), "{group}");
        }
    }
}
