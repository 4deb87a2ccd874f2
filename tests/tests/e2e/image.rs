//! Builds of the machine image that are cut short: nothing half is ever shown, and the next build
//! clears away what an earlier one left. The program that fetches packages is a double; the recipe
//! around it is what is tried.

use conpaas_tests::{signal, wait_for};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// In the place of `mmdebstrap`: writes half an archive and waits, or what `kind` says.
const FETCHER: &str = r#"#!/bin/bash
for word; do
  case $word in
    --include=*) include=${word#--include=} ;;
    */image.tar.zst) target=$word ;;
  esac
done
case $(cat "$(dirname "$0")/kind") in
  waits) echo half >"$target"; echo $$ >"$(dirname "$0")/pid"; exec sleep 300 ;;
  half) echo half >"$target" ;;
  whole)
    mkdir -p "$target.d/var/lib/dpkg"
    for package in ${include//,/ }; do
      printf 'Package: %s\nStatus: install ok installed\n\n' "$package"
    done >"$target.d/var/lib/dpkg/status"
    tar -C "$target.d" -c . | zstd -q >"$target" ;;
esac
"#;

struct Recipe {
    folder: tempfile::TempDir,
}

impl Recipe {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fetcher = folder.path().join("mmdebstrap");
        std::fs::write(&fetcher, FETCHER).unwrap();
        std::fs::set_permissions(&fetcher, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join("packages"), "nginx-light\n").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, kind: &str) -> Command {
        std::fs::write(self.path("kind"), kind).unwrap();
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/build");
        let others = std::env::var("PATH").unwrap();
        let mut command = Command::new(recipe);
        command
            .arg("--packages")
            .arg(self.path("packages"))
            .env("PATH", format!("{}:{others}", self.folder.path().display()))
            .env("CONPAAS_CACHE", self.path("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn build(&self, kind: &str) -> Output {
        self.command(kind).output().unwrap()
    }

    /// A build that has written half an archive, and its fetcher.
    fn half_way(&self) -> (Child, i32) {
        let _ = std::fs::remove_file(self.path("pid"));
        let build = self.command("waits").spawn().unwrap();
        let fetcher = wait_for("half an archive", Duration::from_secs(120), || {
            let text = std::fs::read_to_string(self.path("pid")).unwrap_or_default();
            text.trim().parse::<i32>().map_err(|_| text)
        });
        (build, fetcher)
    }

    /// Names in the folder of images: whole ones, and those of builds.
    fn shown(&self) -> (Vec<String>, Vec<String>) {
        let names = std::fs::read_dir(self.path("cache/images")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name != ".lock")
            .partition(|name| !name.starts_with(".build."))
    }
}

#[test]
fn a_build_that_is_cut_short_shows_nothing_and_the_next_one_clears_up() {
    let recipe = Recipe::new();
    // Told to end: it clears up by itself.
    let (mut build, _) = recipe.half_way();
    signal(build.id().cast_signed(), libc::SIGTERM);
    assert_eq!(build.wait().unwrap().code(), Some(143));
    assert_eq!(recipe.shown(), (vec![], vec![]));

    // Killed: what it fetched with lives on, and lies there until that has ended, too.
    let (mut build, fetcher) = recipe.half_way();
    build.kill().unwrap();
    build.wait().unwrap();
    let (whole, left) = recipe.shown();
    assert_eq!((whole.len(), left.len()), (0, 1), "{whole:?} {left:?}");
    signal(fetcher, libc::SIGKILL);

    // What came out cannot be read.
    let done = recipe.build("half");
    let words = String::from_utf8(done.stderr).unwrap();
    assert!(
        !done.status.success() && words.contains("cannot be read"),
        "{words}"
    );
    assert_eq!(recipe.shown(), (vec![], vec![]));

    // And at last one that is whole; the next one finds it.
    let path = |done: Output| {
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{words}");
        let path = String::from_utf8(done.stdout).unwrap();
        (PathBuf::from(path.trim()), words)
    };
    let (first, _) = path(recipe.build("whole"));
    assert!(std::fs::metadata(&first).unwrap().len() > 0);
    let (again, words) = path(recipe.build("waits"));
    assert_eq!(again, first);
    assert!(words.contains("is built already"), "{words}");
    let (whole, left) = recipe.shown();
    assert_eq!((whole.len(), left.len()), (1, 0), "{whole:?} {left:?}");
}
