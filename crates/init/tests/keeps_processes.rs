//! A real init (not as PID 1, but as a subreaper) with real processes.

#![allow(clippy::unwrap_used, clippy::panic)]

use conpaas_init::protocol::{
    AGENT, Answer, Call, Ends, Exit, Outcome, Request, Spec, Status, VERSION,
};
use conpaas_init::{Settings, run};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const FOLDER: &str = "CONPAAS_TEST_INIT_FOLDER";

/// Not a test: what [`Init::start`] runs in a process of its own.
#[test]
fn as_init() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = PathBuf::from(folder);
    run(Settings {
        socket: folder.join("init.sock"),
        agent: ["/bin/sh", "-c", "exec sleep 1000"]
            .map(str::to_owned)
            .to_vec(),
        allowed_uid: nix::unistd::geteuid().as_raw(),
        shutdown_grace: Duration::from_secs(2),
        log_limit: 1000,
        agent_backoff: Duration::from_millis(10),
        ..Settings::default()
    })
    .unwrap();
}

struct Init {
    child: Child,
    in_namespace: bool,
    folder: tempfile::TempDir,
}

impl Init {
    fn start() -> Self {
        Self::start_by(Command::new(std::env::current_exe().unwrap()), false)
    }
    fn start_by(mut command: Command, in_namespace: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = command
            .args(["--exact", "as_init", "--nocapture"])
            .env(FOLDER, folder.path())
            .spawn()
            .unwrap();
        let init = Self {
            child,
            in_namespace,
            folder,
        };
        until("init listens", || {
            UnixStream::connect(init.path("init.sock")).is_ok()
        });
        init
    }
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn ask(&self, call: Call) -> Outcome {
        let text = serde_json::to_string(&Request { v: VERSION, call }).unwrap();
        self.ask_raw(&text)
    }
    fn ask_raw(&self, text: &str) -> Outcome {
        let mut stream = UnixStream::connect(self.path("init.sock")).unwrap();
        writeln!(stream, "{text}").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str::<Answer>(&line).unwrap().outcome
    }
    fn spec(&self, name: &str, script: &str) -> Spec {
        Spec {
            name: name.to_owned(),
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("COLOUR".into(), "blue".into())],
            user: None,
            log: self.path("role.log"),
            working_directory: self.folder.path().to_owned(),
            stop_signal: libc::SIGTERM,
        }
    }
    fn ensure(&self, spec: &Spec) -> Status {
        match self.ask(Call::Ensure { spec: spec.clone() }) {
            Outcome::Process(status) => status,
            other => panic!("{other:?}"),
        }
    }
    fn status(&self, name: &str) -> Option<Status> {
        match self.ask(Call::List) {
            Outcome::Processes(list) => list.into_iter().find(|status| status.name == name),
            other => panic!("{other:?}"),
        }
    }
    fn stop(&self, name: &str, grace_ms: u64) {
        assert_eq!(
            self.ask(Call::Stop {
                name: name.into(),
                grace_ms
            }),
            Outcome::Done {}
        );
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // What made a namespace passes no signals on; its child is init then.
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let children = children.unwrap_or_default();
        let pid = match children.split_whitespace().next() {
            Some(child) if self.in_namespace => child.parse().unwrap(),
            _ => own as i32,
        };
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z')
    })
}

fn number(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn a_process_runs_is_left_alone_and_keeps_its_exit_code() {
    let init = Init::start();
    let spec = init.spec("web/a", "echo hello $COLOUR; sleep 1000");
    let first = init.ensure(&spec);
    assert!(first.running && alive(first.pid));
    assert_eq!(init.ensure(&spec), first);
    until("its words are in the log", || {
        std::fs::read_to_string(init.path("role.log")).is_ok_and(|text| text == "hello blue\n")
    });
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", first.pid)).unwrap();
    assert_eq!(score.trim(), "500");
    let other = init.spec("web/a", "sleep 999");
    let refused = init.ask(Call::Ensure {
        spec: other.clone(),
    });
    assert!(matches!(refused, Outcome::Error { code, .. } if code == "other_spec"));

    assert_eq!(
        init.ask(Call::Signal {
            name: "web/a".into(),
            signal: 9
        }),
        Outcome::Done {}
    );
    until("its end is known", || {
        init.status("web/a").is_some_and(|status| !status.running)
    });
    assert_eq!(init.status("web/a").unwrap().exit, Some(128 + 9));
    let second = init.ensure(&other);
    assert!(second.running && second.pid != first.pid && second.exit == Some(137));
    init.stop("web/a", 5000);
    assert!(!alive(second.pid));
    assert_eq!(init.status("web/a"), None);
}

#[test]
fn a_stubborn_process_and_its_daemons_are_killed_after_the_grace() {
    let init = Init::start();
    let script = "trap '' TERM; setsid -f sh -c 'trap \"\" TERM; echo $$ > daemon; sleep 1000'; \
                  echo $$ > main; while :; do sleep 0.1; done";
    let status = init.ensure(&init.spec("db/x", script));
    until("both are up", || {
        number(&init.path("daemon")).is_some() && number(&init.path("main")).is_some()
    });
    let daemon = number(&init.path("daemon")).unwrap();
    let begun = Instant::now();
    init.stop("db/x", 300);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    until("both are gone", || !alive(status.pid) && !alive(daemon));
}

#[test]
fn what_hides_from_its_process_ends_with_it_and_no_sooner() {
    let init = Init::start();
    // Nothing of the environment, a session of its own, and both parents gone at once.
    let script = |name: &str| {
        format!("env -i setsid -f sh -c 'echo $$ > {name}; sleep 1000 & wait'; exec sleep 1000")
    };
    init.ensure(&init.spec("web/old", &script("old")));
    init.ensure(&init.spec("web/new", &script("new")));
    until("both daemons are up", || {
        number(&init.path("old")).is_some() && number(&init.path("new")).is_some()
    });
    let (old, new) = (number(&init.path("old")), number(&init.path("new")));
    init.stop("web/old", 5000);
    assert!(!alive(old.unwrap()), "it holds no port against a successor");
    assert!(alive(new.unwrap()));
    assert!(init.status("web/new").unwrap().running);
    init.ask(Call::Signal {
        name: "web/new".into(),
        signal: 9,
    });
    until("it is gone as well", || !alive(new.unwrap()));
}

#[test]
fn the_agent_is_started_again_and_roles_do_not_notice() {
    let init = Init::start();
    let role = init.ensure(&init.spec("web/a", "sleep 1000"));
    let agents = || {
        let own = std::fs::read_dir("/proc").unwrap().flatten();
        own.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                let parent = stat
                    .rsplit(')')
                    .next()
                    .unwrap_or("")
                    .split_whitespace()
                    .nth(1);
                parent == Some(init.child.id().to_string().as_str()) && *pid != role.pid
            })
            .collect::<Vec<_>>()
    };
    until("the agent runs", || agents().len() == 1);
    let first = agents()[0];
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    until("another agent runs", || {
        agents().iter().any(|pid| *pid != first)
    });
    assert!(alive(role.pid));
    let agent = Ends {
        name: AGENT.into(),
        count: 1,
        last: Exit::Signal(9),
    };
    assert_eq!(init.ask(Call::Ends), Outcome::Ends(vec![agent]));
}

#[test]
fn ends_are_counted_unless_they_were_asked_for() {
    let init = Init::start();
    let spec = init.spec("web/a", "sleep 1000");
    for count in 1..=2 {
        init.ensure(&spec);
        init.ask(Call::Signal {
            name: "web/a".into(),
            signal: 9,
        });
        let killed = Ends {
            name: "web/a".into(),
            count,
            last: Exit::Signal(9),
        };
        until("its end is counted", || {
            init.ask(Call::Ends) == Outcome::Ends(vec![killed.clone()])
        });
    }
    init.ensure(&init.spec("web/b", "exit 3"));
    until("the other's end is counted", || {
        match init.ask(Call::Ends) {
            Outcome::Ends(all) => all.iter().any(|one| one.last == Exit::Code(3)),
            other => panic!("{other:?}"),
        }
    });
    // One that is stopped has done nothing wrong.
    init.ensure(&spec);
    init.stop("web/a", 5000);
    match init.ask(Call::Ends) {
        Outcome::Ends(all) => assert_eq!((all.len(), all[0].count), (2, 2)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sigterm_ends_everything() {
    let mut init = Init::start();
    let polite = init.ensure(&init.spec("a", "sleep 1000"));
    let stubborn = init.ensure(&init.spec("b", "trap '' TERM; while :; do sleep 0.1; done"));
    let pid = nix::unistd::Pid::from_raw(init.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(init.child.wait().unwrap().success());
    until("all are gone", || {
        !alive(polite.pid) && !alive(stubborn.pid)
    });
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let init = Init::start();
    let code = |outcome| match outcome {
        Outcome::Error { code, message } => {
            assert!(!message.is_empty());
            code
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(code(init.ask_raw("{\"v\":9}")), "version");
    assert_eq!(code(init.ask_raw("hello")), "malformed");
    let missing = Spec {
        argv: vec!["/no/such".into()],
        ..init.spec("m", "")
    };
    assert_eq!(code(init.ask(Call::Ensure { spec: missing })), "start");
    let stranger = Spec {
        user: Some("no-such-user".into()),
        ..init.spec("m", "")
    };
    assert_eq!(code(init.ask(Call::Ensure { spec: stranger })), "start");
    assert_eq!(init.status("m"), None);
}

#[test]
fn as_pid_1_it_reaps_strangers_and_switches_users() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: making a PID namespace needs root here");
        return;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child=TERM", "--mount-proc"])
        .arg(std::env::current_exe().unwrap());
    let init = Init::start_by(command, true);
    // Leaves an orphan that ends at once, and one in a session of its own that stays.
    let script = "id -u; sh -c 'sleep 0.01 &'; (setsid sleep 1000 &); sleep 0.3; \
                  ps -A -o stat= -o comm=; exec sleep 1000";
    let spec = Spec {
        user: Some("nobody".into()),
        working_directory: "/".into(),
        ..init.spec("a", script)
    };
    assert!(
        init.ensure(&spec).pid < 20,
        "process ids are those of the namespace"
    );
    let read = |name: &str| std::fs::read_to_string(init.path(name)).unwrap_or_default();
    until("the script has looked around", || {
        read("role.log").contains(" ps\n")
    });
    let log = read("role.log");
    assert!(log.starts_with("65534\n"), "{log}");
    // The agent and the daemon; no zombie of what has ended.
    assert_eq!(log.matches("sleep\n").count(), 2, "{log}");
    assert!(!log.lines().any(|line| line.starts_with('Z')), "{log}");
    init.stop("a", 2000);
    init.ensure(&init.spec("b", "ps -A -o stat= -o comm= > around; sleep 1000"));
    until("another has looked around", || {
        read("around").contains(" ps\n")
    });
    assert_eq!(
        read("around").matches("sleep\n").count(),
        1,
        "{}",
        read("around")
    );
}
