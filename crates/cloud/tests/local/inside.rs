//! What this program does inside machines: a small init that answers who it is, and probes that
//! say what a machine may and may not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// The port every machine's init answers on.
pub const PORT: u16 = 7000;

/// PID 1 of a test's machines: speaks on the console, answers with its name, reaps.
pub fn init() -> i32 {
    let name = std::fs::read_to_string("/etc/hostname")
        .unwrap()
        .trim()
        .to_owned();
    println!("init of {name} is up as process {}", std::process::id());
    let context = std::fs::read("/etc/conpaas/context.json").unwrap();
    println!("context of {} bytes", context.len());
    let datagrams = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    let answer = format!("I am {name}");
    std::thread::spawn(move || answer_datagrams(&datagrams, &answer));
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(format!("I am {name}").as_bytes());
        }
    });
    loop {
        let mut status = 0;
        if unsafe { libc::wait(&mut status) } < 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Who answers at an address: its words, or why nobody does.
pub fn ask(address: SocketAddr) -> String {
    match TcpStream::connect_timeout(&address, Duration::from_millis(1500)) {
        Ok(mut stream) => {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1500)));
            let mut answer = String::new();
            match stream.read_to_string(&mut answer) {
                Ok(_) => answer,
                Err(e) => format!("connected, then: {e}"),
            }
        }
        Err(e) => format!("nobody: {e}"),
    }
}

/// Answers each datagram with the same words, until the process ends.
pub fn answer_datagrams(socket: &UdpSocket, words: &str) {
    let mut asked = [0; 16];
    while let Ok((_, from)) = socket.recv_from(&mut asked) {
        let _ = socket.send_to(words.as_bytes(), from);
    }
}

/// Everybody who answers a datagram to an address, in order.
fn ask_by_datagram(address: SocketAddr) -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_broadcast(true).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(700)))
        .unwrap();
    if let Err(error) = socket.send_to(b"who?", address) {
        return format!("nobody: {error}");
    }
    let mut answers = std::collections::BTreeSet::new();
    let mut answer = [0; 64];
    while let Ok((length, _)) = socket.recv_from(&mut answer) {
        answers.insert(String::from_utf8_lossy(&answer[..length]).into_owned());
    }
    match answers.is_empty() {
        true => "nobody".to_owned(),
        false => answers.into_iter().collect::<Vec<_>>().join(", "),
    }
}

fn errno(rc: libc::c_long) -> String {
    if rc < 0 {
        format!(
            "{:?}",
            std::io::Error::last_os_error().raw_os_error().unwrap()
        )
    } else {
        "allowed".into()
    }
}

/// Runs one probe; prints what it found.
pub fn main(args: &[String]) -> i32 {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match &words[..] {
        ["status"] => {
            for kind in ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup"] {
                println!(
                    "ns {}",
                    std::fs::read_link(format!("/proc/self/ns/{kind}"))
                        .unwrap()
                        .display()
                );
            }
            print!("{}", std::fs::read_to_string("/proc/self/status").unwrap());
        }
        ["ask", address] => print!("{}", ask(address.parse().unwrap())),
        ["ask-by-datagram", address] => print!("{}", ask_by_datagram(address.parse().unwrap())),
        ["sockets"] => {
            let open = |family, kind, protocol| unsafe { libc::socket(family, kind, protocol) };
            let raw = open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
            println!("raw {}", errno(raw.into()));
            let ping = open(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP);
            println!("ping {}", errno(ping.into()));
            let frames = open(libc::AF_PACKET, libc::SOCK_RAW, 0x0300);
            println!("frames {}", errno(frames.into()));
        }
        ["links"] => print!("{}", std::fs::read_to_string("/proc/net/dev").unwrap()),
        ["routes"] => print!("{}", std::fs::read_to_string("/proc/net/route").unwrap()),
        ["read", path] => print!("{}", std::fs::read_to_string(path).unwrap()),
        ["mode", path] => {
            use std::os::unix::fs::MetadataExt;
            let m = std::fs::metadata(path).unwrap();
            print!("{:o} {}:{}", m.mode() & 0o7777, m.uid(), m.gid());
        }
        ["hog", mib] => {
            // Chosen first when memory runs out, as role processes will ask for themselves.
            let _ = std::fs::write("/proc/self/oom_score_adj", "500");
            let mut held: Vec<Vec<u8>> = Vec::new();
            for i in 0..mib.parse::<usize>().unwrap() {
                held.push(vec![i as u8 | 1; 1 << 20]);
            }
            print!("held {} MiB", held.len());
        }
        ["spin", millis] => {
            let start = std::time::Instant::now();
            while start.elapsed() < Duration::from_millis(millis.parse().unwrap()) {}
            let mut used = unsafe { std::mem::zeroed::<libc::rusage>() };
            unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut used) };
            print!(
                "{}",
                used.ru_utime.tv_sec * 1000 + used.ru_utime.tv_usec / 1000
            );
        }
        ["overlay"] => {
            std::fs::remove_dir_all("/below").unwrap();
            std::fs::write("/above", "x").unwrap();
            std::os::unix::fs::chown("/above", Some(33), Some(33)).unwrap();
            print!("{}", !std::path::Path::new("/below").exists());
        }
        ["forbidden"] => unsafe {
            let null = std::ptr::null::<libc::c_char>();
            println!(
                "mount {}",
                errno(libc::mount(
                    c"none".as_ptr(),
                    c"/tmp".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    std::ptr::null()
                ) as i64)
            );
            println!("unshare {}", errno(libc::unshare(libc::CLONE_NEWNS) as i64));
            println!(
                "clone {}",
                errno(libc::syscall(
                    libc::SYS_clone,
                    libc::CLONE_NEWUSER | libc::SIGCHLD,
                    0,
                    0,
                    0,
                    0
                ))
            );
            println!("clone3 {}", errno(libc::syscall(libc::SYS_clone3, null, 0)));
            println!(
                "keyctl {}",
                errno(libc::syscall(libc::SYS_keyctl, 0, 0, 0, 0, 0))
            );
            println!(
                "io_uring {}",
                errno(libc::syscall(libc::SYS_io_uring_setup, 8, null))
            );
            println!(
                "ptrace {}",
                errno(libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0))
            );
            println!(
                "reboot {}",
                errno(libc::syscall(libc::SYS_reboot, 0, 0, 0, 0))
            );
            println!(
                "raw socket {}",
                errno(libc::socket(libc::AF_INET, libc::SOCK_RAW, 1) as i64)
            );
            println!(
                "mknod {}",
                errno(libc::mknod(
                    c"/tmp/sda".as_ptr(),
                    libc::S_IFBLK | 0o600,
                    libc::makedev(8, 0)
                ) as i64)
            );
            for (name, family) in [("packet", libc::AF_PACKET), ("vsock", libc::AF_VSOCK)] {
                println!(
                    "{name} {}",
                    errno(libc::socket(family, libc::SOCK_DGRAM, 0) as i64)
                );
            }
            let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_NETLINK];
            let usual = families.map(|family| libc::socket(family, libc::SOCK_DGRAM, 0) >= 0);
            println!("usual {}", usual == [true; 3]);
            println!(
                "oom {}",
                std::fs::write("/proc/self/oom_score_adj", "-500").is_ok()
            );
            println!(
                "forward {}",
                std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").is_ok()
            );
            println!(
                "sysrq {}",
                std::fs::write("/proc/sysrq-trigger", "h").is_ok()
            );
            println!(
                "kcore {}",
                std::fs::read("/proc/kcore").is_ok_and(|b| !b.is_empty())
            );
            println!(
                "program {}",
                std::fs::File::options()
                    .write(true)
                    .open("/usr/local/bin/conpaas")
                    .is_ok()
            );
        },
        ["fill", path] => {
            let mut file = std::fs::File::create(path).unwrap();
            let mebibyte = vec![1u8; 1 << 20];
            let most = (0..1000).take_while(|_| file.write_all(&mebibyte).is_ok());
            print!("{}", most.count());
            std::fs::remove_file(path).unwrap();
        }
        ["inotify"] => {
            let most = (0..1000).take_while(|_| unsafe { libc::inotify_init() } >= 0);
            print!("{}", most.count());
        }
        ["wrong-arch"] => {
            // The 32-bit entry of the kernel, where call numbers mean other things.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("int 0x80", inout("rax") 20i64 => _);
            }
            print!("lived");
        }
        other => panic!("no probe {other:?}"),
    }
    0
}
