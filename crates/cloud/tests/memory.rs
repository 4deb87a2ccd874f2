//! The behaviour suite on the `memory` driver, and what only it can do.

// Tests may stop at what they did not expect.
#![allow(clippy::unwrap_used)]

use conpaas_cloud::{
    Cloud, CloudError, Exit, MachineState, MemoryCloud, MemoryEvent, Resources, suite,
};
use conpaas_model::instance::InstanceType;

fn cloud() -> (MemoryCloud, suite::Subject) {
    let cloud = MemoryCloud::new(
        "memory",
        Resources {
            vcpus: 4.0,
            memory_mib: 4096,
            disk_mib: 1000,
        },
    );
    let mut types = cloud.instance_types();
    types.push(InstanceType {
        name: "giant".into(),
        vcpus: 1.0,
        memory_mib: 1 << 30,
        credits_per_hour: 99.0,
    });
    cloud.set_instance_types(types);
    let subject = suite::Subject {
        small: "small".into(),
        giant: "giant".into(),
        console_text: "is made".into(),
        installation: "inst-suite".parse().unwrap(),
    };
    (cloud, subject)
}

#[tokio::test]
async fn behaves_as_every_cloud() {
    let (cloud, subject) = cloud();
    for (name, outcome) in suite::run_all(&cloud, &subject).await {
        assert_eq!(outcome, Ok(()), "{name}");
    }
}

#[tokio::test]
async fn a_slow_boot_takes_the_time_it_is_told() {
    let (cloud, subject) = cloud();
    cloud.set_boot_delay(std::time::Duration::from_millis(20));
    let start = std::time::Instant::now();
    let machine = cloud
        .create(suite::request(&subject, "slow", 2).unwrap())
        .await
        .unwrap();
    assert_eq!(machine.state, MachineState::Running);
    assert!(start.elapsed().as_millis() >= 20);
}

#[tokio::test]
async fn failures_come_as_ordered_and_a_lost_answer_leaves_its_machine() {
    let (cloud, subject) = cloud();
    let mut events = cloud.events();
    let request = || suite::request(&subject, "failures", 2).unwrap();
    cloud.fail_next_create("out of order");
    assert!(matches!(
        cloud.create(request()).await,
        Err(CloudError::Unavailable { .. })
    ));
    assert!(cloud.machines().is_empty());
    cloud.lose_next_answer();
    assert!(matches!(
        cloud.create(request()).await,
        Err(CloudError::Unavailable { .. })
    ));
    let lost = cloud.machines().remove(0);
    assert_eq!(cloud.create(request()).await.unwrap().id, lost.id);
    cloud.fail_next_destroy("busy");
    assert!(cloud.destroy(&lost.id).await.is_err());
    assert!(cloud.kill(&lost.id, Exit::Signal { signal: 9 }));
    assert!(!cloud.kill(&lost.id, Exit::Signal { signal: 9 }));
    cloud.destroy(&lost.id).await.unwrap();
    assert!(matches!(events.try_recv(), Ok(MemoryEvent::Running { .. })));
    assert!(matches!(events.try_recv(), Ok(MemoryEvent::Died { .. })));
    assert!(matches!(
        events.try_recv(),
        Ok(MemoryEvent::Destroyed { .. })
    ));
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn held_boots_wait_for_the_test() {
    let (cloud, subject) = cloud();
    cloud.hold_boots(true);
    let machine = cloud
        .create(suite::request(&subject, "held", 2).unwrap())
        .await
        .unwrap();
    assert_eq!(machine.state, MachineState::Pending);
    assert!(cloud.boot(&machine.id));
    assert_eq!(cloud.machines()[0].state, MachineState::Running);
}
