//! A release that is held: shown at the preview address alone, until it is promoted or discarded.

use conpaas_tests::{Platform, World, archive, load};
use serde_json::Value;
use std::time::Duration;

const HOST: &str = "shop-admin.localhost";
const PREVIEW: &str = "preview.it.shop-admin.localhost";

fn archive_of(world: &World, version: u32) -> String {
    let path = world.path().join(format!("v{version}.tar.gz"));
    archive::site(&path, version);
    path.to_str().unwrap().to_owned()
}

/// Which version a host name shows.
fn shown(world: &World, host: &str) -> String {
    let (status, body) = world.get(host, "/").unwrap();
    assert_eq!(status, 200, "{host}: {body}");
    body.split(" from ").next().unwrap().to_owned()
}

/// What a client that claims to be at the preview address is shown at another.
fn shown_to_a_liar(world: &World) -> String {
    let url = format!("http://127.0.0.1:{}/", world.edge_port);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let ask = async {
        let client = conpaas_tests::http::client(0);
        let request = client.get(url).header("host", HOST);
        let request = request.header("conpaas-preview", "1");
        request.send().await?.text().await
    };
    let body = runtime.block_on(ask).unwrap();
    body.split(" from ").next().unwrap().to_owned()
}

#[test]
fn a_release_is_held_until_it_is_promoted() {
    let world = World::start_on(Platform::Local);
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "it"]);
    let one = archive_of(&world, 1);
    world.ok(["code", "upload", "shop/it", &one, "--activate"]);
    world.ok(["app", "start", "shop"]);
    world.wait_status(HOST, "/", 200);
    world.ok(["service", "scale", "shop/it", "backend=2", "proxy=2"]);
    assert_eq!(world.get(PREVIEW, "/").unwrap().0, 404, "nothing is held");

    let load = load::start(world.edge_port, HOST, "/", Duration::from_millis(10));
    let two = archive_of(&world, 2);
    let said = world.ok(["code", "upload", "shop/it", &two, "--preview"]);
    assert!(said.contains(PREVIEW), "{said}");
    for _ in 0..4 {
        assert_eq!(shown(&world, PREVIEW), "version 2");
        assert_eq!(shown(&world, HOST), "version 1");
        assert_eq!(shown_to_a_liar(&world), "version 1");
    }
    // Settings of what is held are tried together with its code.
    world.ok(["service", "set", "shop/it", "memory_limit=96M", "--preview"]);
    assert_eq!(shown(&world, PREVIEW), "version 2");
    let service = world.service("shop/it");
    assert_ne!(service["settings"]["memory_limit"], "96M");
    assert_ne!(service["preview_release"], service["active_release"]);

    world.ok(["service", "promote", "shop/it"]);
    let counts = load.finish();
    assert_eq!(counts.failed, Vec::<String>::new());
    assert_eq!(counts.back_steps, 0, "{counts:?}");
    assert_eq!(shown(&world, HOST), "version 2");
    assert_eq!(world.get(PREVIEW, "/").unwrap().0, 404);
    let service = world.service("shop/it");
    assert_eq!(service["settings"]["memory_limit"], "96M");
    assert_eq!(service["preview_release"], Value::Null);

    // One that is discarded leaves nothing, and one that another change overtakes says so.
    let three = archive_of(&world, 3);
    world.ok(["code", "upload", "shop/it", &three, "--preview"]);
    assert_eq!(shown(&world, PREVIEW), "version 3");
    world.ok(["service", "discard", "shop/it"]);
    assert_eq!(world.get(PREVIEW, "/").unwrap().0, 404);
    assert_eq!(shown(&world, HOST), "version 2");
    let nothing = world.run(["service", "promote", "shop/it"]);
    assert_eq!(nothing.code, 5, "{nothing:?}");
    world.ok(["service", "rollback", "shop/it", "r2", "--preview"]);
    assert_eq!(shown(&world, PREVIEW), "version 1");
    let overtaken = world.run(["service", "set", "shop/it", "memory_limit=128M"]);
    assert!(
        overtaken.stderr.contains("held for a preview no more"),
        "{overtaken:?}"
    );
    assert_eq!(world.get(PREVIEW, "/").unwrap().0, 404);
    assert_eq!(shown(&world, HOST), "version 2");
}
