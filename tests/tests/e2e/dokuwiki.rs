//! A real application: DokuWiki, as Debian packages it, on three backends.

use conpaas_tests::{World, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Packs DokuWiki from Debian's package (unpacked by `scripts/fetch-dokuwiki`) into one
/// self-contained archive: Debian spreads it over several folders and links them.
fn pack(folder: &Path) -> PathBuf {
    let root = std::env::var_os("CONPAAS_DOKUWIKI").map_or_else(
        || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/fetch-dokuwiki");
            let output = Command::new(script).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        },
        PathBuf::from,
    );
    let script = r#"
        set -eu
        site=$2/site
        mkdir -p "$site"
        cp -a "$1/usr/share/dokuwiki/." "$site/"
        find "$site" -type l -delete
        rm -f "$site/inc/preload.php" "$site/install.php"
        cp -a "$1/var/lib/dokuwiki/lib/." "$site/lib/"
        mkdir -p "$site/conf" "$site/data"
        cp -a "$1/etc/dokuwiki/." "$site/conf/"
        find "$site/conf" -type l -delete
        cp -a "$1/var/lib/dokuwiki/acl/." "$site/conf/"
        cp -a "$1/var/lib/dokuwiki/data/." "$site/data/"
        cp -a "$1/usr/share/php" "$1/usr/share/php-geshi" "$site/inc/"
        find "$site" -type l -delete
        sed -i "s#'/usr/share/php/#DOKU_INC.'inc/php/#g; s#'/usr/share/php-geshi/#DOKU_INC.'inc/php-geshi/#g" $(grep -rl "'/usr/share/php" "$site/inc" "$site/vendor")
        sed -i "s#'/var/lib/dokuwiki/data'#'./data'#" "$site/conf/dokuwiki.php"
        for part in attic cache index locks media media_attic media_meta meta pages tmp; do mkdir -p "$site/data/$part"; done
        printf '<?php\n$conf["title"] = "House wiki";\n$conf["useacl"] = 1;\n$conf["superuser"] = "admin";\n' > "$site/conf/local.php"
        printf '*\t@ALL\t8\n' > "$site/conf/acl.auth.php"
        printf 'admin:nobody-knows:Admin:admin@example.org:admin,user\n' > "$site/conf/users.auth.php"
        tar -C "$site" -czf "$2/dokuwiki.tar.gz" .
    "#;
    let status = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(&root)
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success(), "packing dokuwiki");
    folder.join("dokuwiki.tar.gz")
}

#[test]
fn dokuwiki_serves_from_three_backends_switches_and_rolls_back() {
    let world = World::start();
    let archive = pack(world.path());
    world.ok(["app", "create", "wiki"]);
    world.ok(["service", "add", "wiki", "php", "--name", "web"]);
    world.ok(["service", "set", "wiki/web", r#"writable=["data","conf"]"#]);
    world.ok([
        "code",
        "upload",
        "wiki/web",
        archive.to_str().unwrap(),
        "--activate",
    ]);
    world.ok(["app", "start", "wiki"]);
    let scaled = world.run(["service", "scale", "wiki/web", "backend=3"]);
    assert_eq!(scaled.code, 0, "{scaled:#?}");
    let told = "warning: each of the 3 backends has a writable data, conf of its own";
    assert!(scaled.stderr.contains(told), "{scaled:#?}");
    let host = "wiki-admin.localhost";

    let page = world.wait_status(host, "/doku.php?id=start", 200);
    assert!(page.contains("House wiki"), "{page}");
    let page = world.wait_status(host, "/", 200);
    assert!(page.contains("House wiki"), "the start page: {page}");
    let form = world.wait_status(host, "/doku.php?id=start&do=login", 200);
    assert!(
        form.contains("name=\"u\"") && form.contains("type=\"password\""),
        "the log-in form: {form}"
    );
    let file = world.wait_status(host, "/lib/images/smileys/biggrin.svg", 200);
    assert!(file.contains("<svg"), "a static file: {file}");
    for path in [
        "/conf/local.php",
        "/data/pages/",
        "/.htaccess",
        "/inc/../conf/users.auth.php",
    ] {
        let (status, body) = world.get(host, path).unwrap();
        assert!(
            status != 200 || !body.contains("superuser"),
            "{path}: {status} {body}"
        );
    }

    let before = world.service("wiki/web")["active_release"].clone();
    let second = world.path().join("second.tar.gz");
    conpaas_tests::archive::site(&second, 2);
    world.ok([
        "code",
        "upload",
        "wiki/web",
        second.to_str().unwrap(),
        "--activate",
    ]);
    assert!(
        world
            .wait_status(host, "/", 200)
            .starts_with("version 2 from ")
    );
    world.ok(["service", "rollback", "wiki/web"]);
    wait_for("the wiki to be back", Duration::from_secs(30), || {
        let answer = world.get(host, "/doku.php?id=start");
        match &answer {
            Ok((200, page)) if page.contains("House wiki") => Ok(()),
            _ => Err(answer),
        }
    });
    assert_ne!(
        world.service("wiki/web")["active_release"],
        before,
        "a rollback is a release of its own"
    );
}
