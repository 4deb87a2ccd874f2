//! What a machine is: its image, the suite of all clouds, its walls and limits.

use super::world::World;
use conpaas_cloud::{
    Cloud, CloudError, Limits, LocalCloud, MachineState, doctor, prepare_image, suite,
};
use std::os::fd::AsRawFd;
use std::process::Command;

pub async fn the_doctor_is_content(root: bool) {
    let world = World::new();
    for check in doctor(&world.config) {
        println!(
            "  {}: {} {} {}",
            check.name, check.ok, check.detail, check.cure
        );
        assert!(check.ok, "{check:?}");
    }
    println!("  features: {:?}", world.cloud.features());
    if root {
        assert!(matches!(
            world.cloud.features().limits,
            conpaas_cloud::LimitsSupport::Enforced { .. }
        ));
    }
}

pub async fn images_are_whole_or_not_there(_root: bool) {
    let world = World::new();
    let images = world.config.state_dir.join("images");
    let names = || {
        let mut names: Vec<String> = std::fs::read_dir(&images)
            .unwrap()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| !n.ends_with(".lock"))
            .collect();
        names.sort();
        names
    };
    let whole = world.folder.path().join("tiny.tar");
    let bytes = std::fs::read(&whole).unwrap();
    let zst = world.folder.path().join("tiny.tar.zst");
    assert!(
        Command::new("zstd")
            .arg("-q")
            .arg(&whole)
            .arg("-o")
            .arg(&zst)
            .status()
            .unwrap()
            .success()
    );
    let packed = std::fs::read(&zst).unwrap();
    let short = world.folder.path().join("short");
    for (cut, why) in [
        (bytes[..bytes.len() - 1024].to_vec(), "tar"),
        (bytes[..700].to_vec(), "tar"),
        (packed[..packed.len() - 9].to_vec(), "zst"),
        (b"nonsense".to_vec(), "text"),
    ] {
        std::fs::write(&short, cut).unwrap();
        let error = prepare_image(&world.config, &short, "short").unwrap_err();
        println!("  {why}: {error}");
        assert!(matches!(error, CloudError::Image { .. }), "{error}");
        assert_eq!(names(), ["tiny"], "{why}");
    }
    assert!(matches!(
        prepare_image(&world.config, &short.join("absent"), "short"),
        Err(CloudError::Image { .. })
    ));
    assert!(matches!(
        prepare_image(&world.config, &zst, "../climb"),
        Err(CloudError::Invalid { .. })
    ));
    let at_once: Vec<_> = (0..3)
        .map(|_| {
            let (config, zst) = (world.config.clone(), zst.clone());
            std::thread::spawn(move || prepare_image(&config, &zst, "packed").unwrap())
        })
        .collect();
    for thread in at_once {
        assert_eq!(thread.join().unwrap(), images.join("packed"));
    }
    assert_eq!(names(), ["packed", "tiny"]);

    // tar reads no further than the end of the archive: what comes behind is read all the same.
    let long = world.folder.path().join("long.tar");
    std::fs::write(&long, [&bytes[..], &vec![0u8; 4 << 20]].concat()).unwrap();
    let zst = world.folder.path().join("long.tar.zst");
    let mut pack = Command::new("zstd");
    pack.arg("-q").arg(&long).arg("-o").arg(&zst);
    assert!(pack.status().unwrap().success());
    prepare_image(&world.config, &zst, "long").unwrap();
    assert_eq!(names(), ["long", "packed", "tiny"]);
    let mut config = world.config.clone();
    config.image = images.join("missing");
    let error = LocalCloud::open(config).err().unwrap();
    println!("  {error}");
    assert!(matches!(error, CloudError::Image { .. }));
    let mut config = world.config.clone();
    config.state_dir = "/proc/conpaas".into();
    println!("  {}", LocalCloud::open(config).err().unwrap());
    // An overlay cannot have its upper layer on every file system: the probe says so.
    if std::path::Path::new("/dev/mqueue").is_dir() {
        let mut config = world.config.clone();
        config.state_dir = "/dev/mqueue/conpaas".into();
        assert!(LocalCloud::open(config).is_err());
    }
}

pub async fn it_behaves_as_every_cloud(_root: bool) {
    let world = World::new();
    for (name, outcome) in suite::run_all(&world.cloud, &world.subject()).await {
        println!("  {name}: {outcome:?}");
        assert_eq!(outcome, Ok(()), "{name}");
    }
    let taken = world.create("address", 2).await;
    let mut again = world.request("address", 3);
    again.address = taken.address;
    for address in [
        again.address,
        "100.64.0.1".parse().unwrap(),
        "10.0.0.1".parse().unwrap(),
        "100.127.255.255".parse().unwrap(),
    ] {
        again.address = address;
        let error = world.cloud.create(again.clone()).await.unwrap_err();
        println!("  {error}");
        assert!(matches!(error, CloudError::Invalid { .. }));
    }
    let mut broken = world.config.clone();
    broken.init_argv = vec!["/no/such/init".into()];
    let error = LocalCloud::open(broken)
        .unwrap()
        .create(world.request("broken", 2))
        .await
        .unwrap_err();
    println!("  {error}");
    assert!(error.to_string().contains("/no/such/init"));
    assert_eq!(
        world
            .cloud
            .list(&world.subject().installation)
            .await
            .unwrap()
            .len(),
        1
    );
    assert!(
        world
            .cloud
            .exec_command(&taken.id, &["/no/such/program"])
            .output()
            .unwrap()
            .status
            .code()
            == Some(127)
    );
    world.destroy_all().await;
    assert!(
        world
            .cloud
            .exec_command(&taken.id, &["/bin/true"])
            .output()
            .unwrap()
            .status
            .code()
            == Some(125)
    );
}

fn namespaces(status: &str) -> Vec<String> {
    status
        .lines()
        .filter_map(|l| l.strip_prefix("ns "))
        .map(str::to_owned)
        .collect()
}

pub async fn machines_are_apart_and_bound(root: bool) {
    let world = World::new();
    let (one, two) = (
        world.create("apart", 2).await,
        world.create("apart", 3).await,
    );
    let host: Vec<String> = ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup"]
        .iter()
        .map(|k| {
            std::fs::read_link(format!("/proc/self/ns/{k}"))
                .unwrap()
                .display()
                .to_string()
        })
        .collect();
    let (a, b) = (world.says(&one, &["status"]), world.says(&two, &["status"]));
    println!(
        "  host {host:?}\n  one  {:?}\n  two  {:?}",
        namespaces(&a),
        namespaces(&b)
    );
    for (i, name) in host.iter().enumerate() {
        assert!(
            namespaces(&a)[i] != *name
                && namespaces(&b)[i] != *name
                && namespaces(&a)[i] != namespaces(&b)[i],
            "{name}"
        );
    }
    let init = world.pid(&one, "init");
    let of_init = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    for (who, status) in [("init", &of_init), ("entered program", &a)] {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap()
                .trim()
                .to_owned()
        };
        println!(
            "  {who}: CapEff {} CapBnd {} Seccomp {} NoNewPrivs {}",
            field("CapEff:"),
            field("CapBnd:"),
            field("Seccomp:"),
            field("NoNewPrivs:")
        );
        // The nine that are kept: bits 0, 1, 3 to 7, 10 and 18.
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(field(set), "00000000000404fb", "{who} {set}");
        }
        assert_eq!(field("CapAmb:"), "0000000000000000");
        assert_eq!(field("Seccomp:"), "2");
        assert_eq!(field("NoNewPrivs:"), "1");
    }
    let owner = of_init
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    println!("  init is user {owner} of the host");
    if root {
        assert_eq!(owner, "1000000000");
    }
    let forbidden = world.says(&one, &["forbidden"]);
    println!("  {}", forbidden.replace('\n', "; "));
    for line in forbidden.lines() {
        let (what, found) = line.rsplit_once(' ').unwrap();
        let expected = match what {
            "clone3" => libc::ENOSYS.to_string(),
            "packet" | "vsock" => libc::EAFNOSUPPORT.to_string(),
            "usual" => "true".into(),
            "forward" | "sysrq" | "kcore" | "program" | "oom" => "false".into(),
            _ => libc::EPERM.to_string(),
        };
        assert_eq!(found, expected, "{what}");
    }
    #[cfg(target_arch = "x86_64")]
    assert_eq!(
        world.inside(&one, &["wrong-arch"]).status.code(),
        Some(128 + libc::SIGSYS)
    );
    assert_eq!(
        world.says(&one, &["mode", "/etc/conpaas/context.json"]),
        "600 0:0"
    );
    assert_eq!(
        world.says(&one, &["read", "/etc/conpaas/context.json"]),
        r#"{"greeting":"hello"}"#
    );
    assert_eq!(
        world.says(&one, &["read", "/etc/resolv.conf"]),
        "nameserver 127.0.0.53\nnameserver 100.64.0.1\noptions timeout:3 attempts:2\n"
    );
    assert_eq!(world.says(&one, &["overlay"]), "true");
    assert_eq!(world.says(&one, &["mode", "/above"]), "644 33:33");
    assert_eq!(world.says(&two, &["read", "/below/file"]), "from the image");
    // The contextualization reaches no record, argument or environment.
    for file in ["machine.json", "state.json", "console.log"] {
        assert!(
            !std::fs::read_to_string(world.machine_folder(&one.id).join(file))
                .unwrap()
                .contains("greeting"),
            "{file}"
        );
    }
    for which in ["supervisor", "init"] {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{}/{file}", world.pid(&one, which)))
                .unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains("greeting"));
        }
    }
    world.destroy_all().await;
}

pub async fn limits_hold_and_init_survives(root: bool) {
    let world = World::new();
    let machine = world.create("limits", 2).await;
    world.is_up(&machine).await;
    println!("  {:?}", machine.limits);
    // An eighth of 64 MiB, held by files that no process would ever give back.
    for path in ["/dev/shm/full", "/run/full"] {
        assert_eq!(world.says(&machine, &["fill", path]), "8", "{path}");
    }
    // The kernel counts these for whoever made the namespaces, too.
    assert_eq!(world.says(&machine, &["inotify"]), "16");
    let namespace = format!("/proc/{}/ns/user", world.pid(&machine, "supervisor"));
    let namespace = std::fs::File::open(namespace).unwrap();
    let (own, mut maker) = (unsafe { libc::geteuid() }, u32::MAX);
    // NS_GET_OWNER_UID
    unsafe { libc::ioctl(namespace.as_raw_fd(), 0xb704, &mut maker) };
    assert_eq!(maker, if root { 1_000_000_000 } else { own });
    match &machine.limits {
        Limits::Enforced {
            memory_bytes,
            cpu_millis,
            pids,
            ..
        } => {
            assert_eq!((*memory_bytes, *cpu_millis, *pids), (64 << 20, 250, 2048));
        }
        Limits::None { reason } => {
            assert!(!root, "as root limits must hold: {reason}");
            return world.destroy_all().await;
        }
    }
    let hog = world.inside(&machine, &["hog", "200"]);
    println!(
        "  a hog of 200 MiB in 64: {:?} '{}'",
        hog.status.code(),
        String::from_utf8_lossy(&hog.stdout)
    );
    assert_eq!(hog.status.code(), Some(128 + libc::SIGKILL));
    assert!(world.says(&machine, &["hog", "20"]).contains("held 20"));
    let now = world.cloud.list(&machine.installation).await.unwrap();
    assert_eq!(now[0].state, MachineState::Running, "init survived");
    world.is_up(&machine).await;
    let used: u64 = world.says(&machine, &["spin", "1000"]).parse().unwrap();
    println!("  a busy second of a quarter processor used {used} ms");
    assert!(used < 450, "{used}");
    world.destroy_all().await;
}
