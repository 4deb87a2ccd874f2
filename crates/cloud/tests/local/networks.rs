//! Who reaches whom, checked by who answers.

use super::inside;
use super::world::{World, until};
use conpaas_cloud::{Cloud, CloudError, Dialer, Machine, network_instance, open_outlet};
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::process::Command;

/// A listener that answers with a name, until the process ends.
fn answer(listener: TcpListener, name: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(name.as_bytes());
        }
    });
}

fn host_network() -> String {
    let mut all = String::new();
    for args in [
        &["-o", "link"][..],
        &["-o", "addr"],
        &["route", "show", "table", "all"],
        &["rule"],
    ] {
        let output = Command::new("ip").args(args).output().unwrap();
        // Counters and lifetimes aside, `ip` prints settings only.
        let text = String::from_utf8(output.stdout).unwrap();
        all.extend(
            text.lines()
                .map(|l| l.split("valid_lft").next().unwrap().to_owned() + "\n"),
        );
    }
    all
}

/// Whoever holds an outlet gets what one network's machines want outside, at its ports alone, and
/// sees where it was bound for; another may hold one beside it.
fn out_by_outlets(world: &World, inside: &Machine, other: &Machine) {
    let access = world.cloud.network_access(&inside.application);
    let first = open_outlet(&access, &[80, 81]).unwrap().unwrap();
    let second = open_outlet(&access, &[80, 81]).unwrap().unwrap();
    assert_eq!(first.instance, second.instance);
    assert_eq!(network_instance(&access), Some(first.instance.clone()));
    drop(first);
    for door in second.doors {
        door.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            for stream in door.incoming() {
                let mut stream = stream.unwrap();
                let to = stream.local_addr().unwrap();
                let _ = std::io::Write::write_all(&mut stream, format!("for {to}").as_bytes());
            }
        });
    }
    for outside in ["198.51.100.7:80", "198.51.100.7:81", "203.0.113.9:80"] {
        assert_eq!(world.asks(inside, outside), format!("for {outside}"));
    }
    for (who, outside) in [(inside, "198.51.100.7:82"), (other, "198.51.100.7:80")] {
        let said = world.asks(who, outside);
        assert!(
            said.starts_with("nobody") && said.contains("refused"),
            "{said}"
        );
    }
    // Machines of the same network are reached as ever.
    assert!(!world.asks(inside, "100.64.7.77:80").starts_with("for"));
}

/// What is no connection stays inside, too: datagrams to one and to all, other protocols, frames.
fn nothing_else_passes(world: &World, first: &Machine, second: &Machine, host_address: &str) {
    let on_host = UdpSocket::bind("0.0.0.0:0").unwrap();
    let host_port = on_host.local_addr().unwrap().port();
    std::thread::spawn(move || inside::answer_datagrams(&on_host, "the host"));
    let everybody_first = Some("I am first-2, I am first-3");
    for (who, target, expected) in [
        (first, "100.64.7.3:7000".to_owned(), Some("I am first-3")),
        (second, "100.64.7.4:7000".to_owned(), Some("I am second-4")),
        (first, "100.64.7.4:7000".to_owned(), None),
        (second, "100.64.7.3:7000".to_owned(), None),
        (first, "100.127.255.255:7000".to_owned(), everybody_first),
        (first, format!("100.127.255.255:{host_port}"), None),
        (first, format!("100.64.0.1:{host_port}"), None),
        (first, format!("127.0.0.1:{host_port}"), None),
        (first, format!("{host_address}:{host_port}"), None),
    ] {
        let said = world.says(who, &["ask-by-datagram", &target]);
        println!("  {} sends to {target}: {said}", who.hostname);
        match expected {
            Some(names) => assert_eq!(said, names),
            None => assert!(said.starts_with("nobody"), "{said}"),
        }
    }
    let sockets = world.says(first, &["sockets"]);
    println!(
        "  {} opens: {}",
        first.hostname,
        sockets.replace('\n', "; ")
    );
    assert!(!sockets.contains("allowed"), "{sockets}");
    // No address of the sixth version, not even one that a link gives itself.
    assert_eq!(world.says(first, &["read", "/proc/net/if_inet6"]), "");
}

pub async fn networks_do_not_leak(_root: bool) {
    let before = host_network();
    let world = World::new();
    let (a1, a2) = (
        world.create("first", 2).await,
        world.create("first", 3).await,
    );
    let (b1, b4) = (
        world.create("second", 2).await,
        world.create("second", 4).await,
    );
    for machine in [&a1, &a2, &b1, &b4] {
        world.is_up(machine).await;
    }
    assert_eq!(host_network(), before, "the host's network changed");
    assert_eq!(a1.network_instance, a2.network_instance);
    assert_ne!(a1.network_instance, b1.network_instance);
    let port = 7100;
    let director = world
        .cloud
        .director_listener(&a1.application, port)
        .await
        .unwrap()
        .unwrap();
    answer(director, "the director to the first");
    let on_host = TcpListener::bind("127.0.0.1:0").unwrap();
    let host_port = on_host.local_addr().unwrap().port();
    answer(on_host, "the host");
    let address = world
        .cloud
        .director_address(&a1.application, port)
        .to_string();
    for (who, target, expected) in [
        (&a1, "100.64.7.3:7000".to_owned(), Some("I am first-3")),
        (&b1, "100.64.7.4:7000".to_owned(), Some("I am second-4")),
        (&a1, "100.64.7.2:7000".to_owned(), Some("I am first-2")),
        (&b1, "100.64.7.2:7000".to_owned(), Some("I am second-2")),
        (&a1, address.clone(), Some("the director to the first")),
        (&b1, address.clone(), None),
        (&a1, "100.64.7.4:7000".to_owned(), None),
        (&b1, "100.64.7.3:7000".to_owned(), None),
        (&a1, "100.64.0.1:22".to_owned(), None),
        (&a1, format!("100.64.0.1:{host_port}"), None),
        (&a1, format!("127.0.0.1:{host_port}"), None),
    ] {
        let said = world.asks(who, &target);
        println!("  {} asks {target}: {said}", who.hostname);
        match expected {
            Some(name) => assert_eq!(said, name),
            None => assert!(said.starts_with("nobody"), "{said}"),
        }
    }
    for address in before
        .lines()
        .filter_map(|l| l.split(" inet ").nth(1))
        .filter_map(|l| l.split('/').next())
    {
        let said = world.asks(&a1, &format!("{address}:{host_port}"));
        println!("  {} asks the host at {address}: {said}", a1.hostname);
        assert!(said.starts_with("nobody"), "{said}");
    }
    let host_address = before
        .lines()
        .filter_map(|l| l.split(" inet ").nth(1)?.split('/').next())
        .find(|address| !address.starts_with("127."));
    nothing_else_passes(&world, &a1, &b1, host_address.unwrap_or("127.0.0.1"));
    let links = world.says(&a1, &["links"]);
    assert_eq!(
        links.lines().filter(|l| l.contains(':')).count(),
        2,
        "{links}"
    );
    // The one way out leads to the gateway, where nobody takes anything for the outside.
    let routes = world.says(&a1, &["routes"]);
    let ways_out: Vec<&str> = routes
        .lines()
        .skip(1)
        .filter(|l| l.split('\t').nth(1) == Some("00000000"))
        .filter_map(|l| l.split('\t').nth(2))
        .collect();
    assert_eq!(ways_out, ["01004064"], "{routes}");
    for outside in ["198.51.100.7:80", "192.0.2.1:53", "203.0.113.9:7100"] {
        let said = world.asks(&a1, outside);
        println!("  {} asks {outside}: {said}", a1.hostname);
        assert!(
            said.starts_with("nobody") && said.contains("refused"),
            "{said}"
        );
    }
    out_by_outlets(&world, &a1, &b1);
    // The two applications have machines of the same address: whoever dials gets its own.
    for (machine, name) in [(&a1, "I am first-2"), (&b1, "I am second-2")] {
        let access = world.cloud.network_access(&machine.application);
        let access = serde_json::from_str(&serde_json::to_string(&access).unwrap()).unwrap();
        let dialer = Dialer::new(access);
        for _ in 0..100 {
            let mut stream = dialer
                .connect((machine.address, inside::PORT).into())
                .await
                .unwrap();
            let mut said = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut said)
                .await
                .unwrap();
            assert_eq!(said, name);
        }
    }
    // A network that lost all machines and got new ones is found again.
    let dialer = Dialer::new(world.cloud.network_access(&a1.application));
    dialer
        .connect((a1.address, inside::PORT).into())
        .await
        .unwrap();
    for machine in [&a1, &a2] {
        world.cloud.destroy(&machine.id).await.unwrap();
    }
    let error = dialer
        .connect((a1.address, inside::PORT).into())
        .await
        .unwrap_err();
    println!("  {error}");
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
    assert!(matches!(
        world.cloud.director_listener(&a1.application, port).await,
        Err(CloudError::NoNetwork { .. })
    ));
    assert!(matches!(
        open_outlet(&world.cloud.network_access(&a1.application), &[80]),
        Err(CloudError::NoNetwork { .. })
    ));
    let back = world.create("first", 2).await;
    assert_ne!(back.network_instance, a1.network_instance);
    until("the new network is found", async || {
        dialer
            .connect((back.address, inside::PORT).into())
            .await
            .is_ok()
    })
    .await;
    drop(dialer);
    world.destroy_all().await;
    until("all helpers are gone", async || {
        world.processes().is_empty()
    })
    .await;
    assert_eq!(host_network(), before, "the host's network changed");
}
