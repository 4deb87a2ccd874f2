//! The `local` driver on real machines. As root nothing here is skipped.

// Tests may stop at what they did not expect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ends;
mod inside;
mod machines;
mod networks;
mod world;

use std::process::Command;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let rest = || std::env::args_os().skip(2).collect();
    // Before any thread: these enter namespaces.
    match args.get(1).map(String::as_str) {
        Some("machine-supervisor") => std::process::exit(conpaas_cloud::supervisor_main(rest())),
        Some("machine-helper") => std::process::exit(conpaas_cloud::helper_main(rest())),
        Some("test-init") => std::process::exit(inside::init()),
        Some("inside") => std::process::exit(inside::main(&args[2..])),
        Some("create-and-hang") => return ends::create_and_hang(&args[2]),
        _ => {}
    }
    let has = |flag: &str| args.iter().any(|a| a == flag);
    // Runners ask for the ignored ones apart; there are none.
    if has("--ignored") {
        return;
    }
    let filter = args
        .iter()
        .skip(1)
        .find(|a| !a.starts_with('-') && *a != "terse")
        .cloned()
        .unwrap_or_default();
    let picked = |name: &str| match has("--exact") {
        true => name == filter,
        false => name.contains(&filter),
    };
    let root = unsafe { libc::geteuid() } == 0;
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    };
    macro_rules! tests {
        ($($module:ident::$name:ident)*) => { $(
            if has("--list") {
                println!("{}: test", stringify!($name));
            } else if picked(stringify!($name)) {
                println!("test {} ...", stringify!($name));
                let start = std::time::Instant::now();
                runtime().block_on($module::$name(root));
                println!("test {} ok ({} ms)", stringify!($name), start.elapsed().as_millis());
            }
        )* };
    }
    tests! {
        machines::the_doctor_is_content
        machines::images_are_whole_or_not_there
        machines::it_behaves_as_every_cloud
        machines::machines_are_apart_and_bound
        machines::limits_hold_and_init_survives
        networks::networks_do_not_leak
        ends::deaths_are_noticed
        ends::drivers_come_and_go
        ends::interrupted_creations_are_found_or_cleared
        ends::nothing_stays
    }
    if has("--list") {
        println!("an_ordinary_user_can_do_it: test");
        return;
    }
    if root && picked("an_ordinary_user_can_do_it") {
        println!("test an_ordinary_user_can_do_it ...");
        an_ordinary_user_can_do_it();
    }
    println!("all tests passed");
}

/// The same tests once more, as a user made for them.
fn an_ordinary_user_can_do_it() {
    let name = format!("cpt{}", std::process::id() % 100_000);
    let folder = tempfile::Builder::new()
        .prefix("conpaas-user-")
        .tempdir()
        .unwrap();
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let program = folder.path().join("tests");
    std::fs::copy("/proc/self/exe", &program).unwrap();
    let home = folder.path().join("home");
    let made = Command::new("useradd")
        .args(["--create-home", "--home-dir"])
        .arg(&home)
        .arg(&name)
        .status();
    assert!(made.is_ok_and(|s| s.success()), "useradd");
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|l| l.starts_with(&format!("{name}:")))
        .unwrap();
    let ids: Vec<u32> = line
        .split(':')
        .skip(2)
        .take(2)
        .map(|n| n.parse().unwrap())
        .collect();
    use std::os::unix::process::CommandExt;
    let status = Command::new(&program)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", &home)
        .current_dir(&home)
        .uid(ids[0])
        .gid(ids[1])
        .status();
    let removed = Command::new("userdel").args(["--remove", &name]).output();
    assert!(
        status.unwrap().success(),
        "the tests fail as an ordinary user"
    );
    assert!(removed.unwrap().status.success(), "userdel");
    println!("test an_ordinary_user_can_do_it ok");
}
