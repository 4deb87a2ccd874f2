//! A large archive on its way to the Director: cut off by either side's death, gone on with, and no
//! more memory for it however large it is.

use conpaas_tests::{Platform, World, wait_for};
use sha2::{Digest, Sha256};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LARGE: u64 = 320 * MIB;
/// More than a Director needs at rest and for the upload, less than the archive has.
const MEMORY: u64 = 150 * MIB;

/// A tar with one large file that does not repeat itself.
fn large(path: &Path) {
    let mut tar = tar::Builder::new(BufWriter::new(std::fs::File::create(path).unwrap()));
    let mut header = tar::Header::new_gnu();
    header.set_size(LARGE);
    header.set_mode(0o644);
    header.set_cksum();
    struct Noise(u64);
    impl std::io::Read for Noise {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            for eight in into.chunks_mut(8) {
                // A step of xorshift64 (Marsaglia).
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                eight.copy_from_slice(&self.0.to_le_bytes()[..eight.len()]);
            }
            Ok(into.len())
        }
    }
    let content = std::io::Read::take(Noise(88_172_645_463_325_252), LARGE);
    tar.append_data(&mut header, "large.bin", content).unwrap();
    tar.into_inner().unwrap().flush().unwrap();
}

fn hash(path: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(path).unwrap()))
}

/// How much of any upload the Director has.
fn there(parts: &Path) -> u64 {
    let files = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    files(parts.to_owned())
        .flat_map(|service| files(service.path()))
        .filter_map(|part| Some(part.metadata().ok()?.len()))
        .sum()
}

/// The most memory a process ever had.
fn most_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib * 1024
}

#[test]
fn a_large_upload_goes_on_where_it_broke_off_and_takes_no_memory() {
    let world = World::start_on(Platform::Local);
    world.ok(["app", "create", "shop"]);
    world.ok(["service", "add", "shop", "php", "--name", "it"]);
    let archive = world.path().join("large.tar");
    large(&archive);
    let sha256 = hash(&archive);
    let upload = ["code", "upload", "shop/it", archive.to_str().unwrap()];
    let parts = world.state().join("director/parts");

    // The client dies in the middle.
    let mut command = world.command(upload);
    let mut client = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("a part of the upload", Duration::from_secs(60), || {
        let there = there(&parts);
        if there > 16 * MIB { Ok(()) } else { Err(there) }
    });
    client.kill().unwrap();
    client.wait().unwrap();
    let before = there(&parts);
    assert!(before < LARGE, "it was over already");
    assert_eq!(
        world.json(["code", "list", "shop/it"]),
        serde_json::json!([])
    );

    // Another goes on, and outlives a Director that dies in the middle.
    let mut command = world.command(upload);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let client = command.spawn().unwrap();
    wait_for("more of the upload", Duration::from_secs(60), || {
        let there = there(&parts);
        let more = there > before + 16 * MIB;
        if more { Ok(()) } else { Err(there) }
    });
    conpaas_tests::signal(world.daemon("director"), 9);
    world.start_director();
    let finished = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert!(finished.status.success(), "{said}");
    assert!(said.matches("are there; going on").count() >= 2, "{said}");
    assert_eq!(there(&parts), 0, "nothing is left of it");

    let most = most_memory(world.daemon("director"));
    println!("the Director had {} MiB at most", most / MIB);
    assert!(most < MEMORY, "{} MiB", most / MIB);
    let list = world.json(["code", "list", "shop/it"]);
    let code = list[0]["id"].as_str().unwrap();
    let back = world.path().join("back.tar");
    world.ok([
        "code",
        "download",
        "shop/it",
        code,
        "--output",
        back.to_str().unwrap(),
    ]);
    assert_eq!(hash(&back), sha256);
}
