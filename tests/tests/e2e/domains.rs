//! Host names by claim, as people who type them into a browser meet them.

use conpaas_tests::{Platform, World, wait_for};
use std::time::Duration;

/// Waits until a host name is answered with this status.
fn answered(world: &World, host: &str, status: u16) {
    wait_for(host, Duration::from_secs(20), || {
        match world.get(host, "/") {
            Ok((found, _)) if found == status => Ok(()),
            other => Err(other),
        }
    });
}

#[test]
fn a_claimed_name_leads_to_the_service_until_it_is_given_up() {
    let world = World::start_on(Platform::Memory);
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "it"]);
    world.ok(["app", "start", "shop"]);
    world.wait_status("shop-admin.localhost", "/", 200);
    answered(&world, "www.example.org", 404);
    assert_eq!(
        world
            .ok(["domain", "add", "shop/it", "WWW.example.org"])
            .trim(),
        "www.example.org"
    );
    assert_eq!(
        world.ok(["domain", "add", "shop/it", "boutique"]).trim(),
        "boutique.localhost"
    );
    answered(&world, "www.example.org", 200);
    answered(&world, "boutique.localhost", 200);
    let bob = world.person("bob");
    world.run_as(&bob, ["app", "create", "hers"]);
    world.run_as(&bob, ["service", "add", "hers", "php", "--name", "it"]);
    let taken = world.run_as(&bob, ["domain", "add", "hers/it", "boutique"]);
    assert_eq!(taken.code, 5, "{taken:?}");
    let own = world.run_as(&bob, ["domain", "add", "hers/it", "shop-admin"]);
    assert_eq!(own.code, 2, "{own:?}");

    world.ok(["domain", "remove", "shop/it", "www.example.org"]);
    answered(&world, "www.example.org", 404);
    let again = world.run(["domain", "remove", "shop/it", "www.example.org"]);
    assert_eq!(again.code, 4, "{again:?}");
    world.ok(["domain", "remove", "shop/it", "boutique"]);
    world.ok(["domain", "add", "shop/it", "boutique"]);
    // What is in the trash holds no name.
    world.ok(["app", "delete", "shop", "--yes"]);
    let free = world.run_as(&bob, ["domain", "add", "hers/it", "boutique"]);
    assert_eq!(free.code, 0, "{free:?}");
}
