//! Archives are taken, checked and put in place of a folder; whatever is wrong with one changes
//! nothing. What machines do after a restore is tested elsewhere.

use super::*;
use crate::director::lock;
use crate::incarnation::Incarnation;
use crate::store::{self, Store, codes, housekeeping, migrations};
use conpaas_model::ids::{Generation, NodeNumber, ReleaseNumber, SecretVersion, ServiceId};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const KEY: &str = "pki/secrets.key";

fn blob() -> (&'static [u8], String) {
    let code: &[u8] = b"what an application consists of";
    (code, hex::encode(Sha256::digest(code)))
}

/// A Director's folder with an application, a release and its code.
async fn director() -> tempfile::TempDir {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("director");
    for inside in ["pki", "api", "blobs", "uploads"] {
        std::fs::create_dir_all(folder.join(inside)).unwrap();
    }
    std::fs::write(folder.join(KEY), "the key").unwrap();
    std::fs::write(folder.join("api/key.pem"), "another").unwrap();
    std::fs::write(folder.join("admin-password"), "hush").unwrap();
    let (code, hash) = blob();
    std::fs::write(folder.join("blobs").join(&hash), code).unwrap();
    let store = Store::open(&folder.join(STORE)).unwrap();
    store
        .transaction(move |tx| {
            store::set_meta(tx, "installation", "inst-a")?;
            tx.execute_batch(&format!(
                "INSERT INTO users(id, name, password_hash, rank, node_quota, created_at)
                     VALUES('user-a', 'ann', '', 'operator', 9, 1);
                 INSERT INTO apps(id, owner_id, name, description, labels_json, run, ever_started,
                     generation, created_at) VALUES('app-a', 'user-a', 'shop', '', '{{}}', 'running', 1, 3, 1);
                 INSERT INTO services(id, app_id, name, type, description, labels_json, own_manager,
                     internal, run, run_since, ever_started, generation, roles_json, active_release,
                     drain_seconds, next_node, next_release, exposure_json, created_at)
                     VALUES('svc-a', 'app-a', 'web', 'php', '', '{{}}', 0, 0, 'running', 1, 1, 4, '{{}}', 1,
                     30, 3, 2, '{{\"version\":{{\"epoch\":1,\"generation\":1}},\"upstreams\":{{}}}}', 1);
                 INSERT INTO codes(id, service_id, filename, description, size, files, sha256,
                     original_size, original_sha256, created_at, actor)
                     VALUES('code-a', 'svc-a', 'a.tar', '', 1, 1, '{hash}', 1, '{hash}', 1, 'ann');
                 INSERT INTO releases(service_id, number, code_id, settings_json, reason, actor, created_at)
                     VALUES('svc-a', 1, 'code-a', '{{}}', 'created', 'ann', 1);
                 INSERT INTO operations(id, kind, owner_id, app_id, app_name, targets_json, previous_json,
                     actor, outcome, created_at, deadline) VALUES('op-a', 'scale', 'user-a', 'app-a', 'shop',
                     '[{{\"service\":\"svc-a\",\"name\":\"web\",\"generation\":4}}]', '{{\"services\":[]}}', 'ann',
                     'running', 1, 301);"
            ))?;
            let node = |number: u64, state: &str, stage: &str| {
                tx.execute_batch(&format!(
                    "INSERT INTO nodes(service_id, number, cloud, instance_type, address, state, wish, created_at)
                         VALUES('svc-a', {number}, 'c', 'small', '100.64.0.1{number}', '{state}', 'present', 1);
                     INSERT INTO machines(id, app_id, owner_id, service_id, node_number, cloud, instance_type,
                         cloud_token, state, token_hash, token_expires_at, created_at)
                         VALUES('m-{number}', 'app-a', 'user-a', 'svc-a', {number}, 'c', 'small', 'm-{number}',
                         '{stage}', '', 0, 1);"
                ))
            };
            node(1, "up", "up")?;
            node(2, "booting", "booting")?;
            Ok(())
        })
        .await
        .unwrap();
    state
}

fn backed_up(state: &Path, name: &str) -> PathBuf {
    let path = state.join(name);
    let target = Target::File {
        path: path.clone(),
        overwrite: false,
    };
    take(&state.join("director"), &target, "root on this computer").unwrap();
    path
}

/// Everything below a folder, by name and content.
fn content(folder: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(content(&path));
        } else {
            found.insert((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

#[tokio::test]
async fn a_backup_of_a_running_director_is_whole_private_and_in_the_audit() {
    let state = director().await;
    let folder = state.path().join("director");
    // It runs: it holds its lock, and its store is open.
    let running = lock(&folder).unwrap();
    let store = Store::open(&folder.join(STORE)).unwrap();
    let path = backed_up(state.path(), "a.tar.gz");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let audit = store
        .read(|tx| housekeeping::list_audit(tx, (None, Some("backup_director")), 1 << 40, 9))
        .await
        .unwrap();
    assert_eq!(audit.len(), 1);
    assert_eq!(audit[0].status, Some(200));
    assert_eq!(audit[0].target, path.display().to_string());
    // No draft is left, and a file that is there is not overwritten unasked.
    let names = std::fs::read_dir(&folder).unwrap().flatten();
    let names: Vec<_> = names
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        names.iter().all(|name| !name.starts_with(".backup-")),
        "{names:?}"
    );
    let again = |overwrite| {
        let path = path.clone();
        take(&folder, &Target::File { path, overwrite }, "root")
    };
    assert!(matches!(again(false), Err(BackupError::Exists { .. })));
    let taken = again(true).unwrap();
    assert_eq!(taken.manifest.schema, migrations::KNOWN);
    let members: Vec<&str> = taken
        .manifest
        .members
        .iter()
        .map(|m| m.name.as_str())
        .collect();
    let code = format!("blobs/{}", blob().1);
    assert_eq!(
        members,
        [STORE, "admin-password", "api/key.pem", KEY, &code]
    );
    drop(running);
}

#[tokio::test]
async fn code_that_is_missing_or_damaged_is_said_instead_of_packed() {
    let state = director().await;
    let folder = state.path().join("director");
    let path = state.path().join("a.tar.gz");
    let target = Target::File {
        path: path.clone(),
        overwrite: false,
    };
    let code = folder.join("blobs").join(blob().1);
    std::fs::write(&code, "something else").unwrap();
    assert!(matches!(
        take(&folder, &target, "root"),
        Err(BackupError::Blob { .. })
    ));
    std::fs::remove_file(&code).unwrap();
    assert!(matches!(
        take(&folder, &target, "root"),
        Err(BackupError::Blob { .. })
    ));
    assert!(!path.exists());
    // One of a deleted version may have gone at this moment.
    let store = Connection::open(folder.join(STORE)).unwrap();
    store
        .execute("UPDATE codes SET deleted_at = 1", [])
        .unwrap();
    assert!(codes::kept_blobs(&store).unwrap().is_empty());
    take(&folder, &target, "root").unwrap();
    let nowhere = take(state.path(), &target, "root");
    assert!(matches!(nowhere, Err(BackupError::NoStore { .. })));
}

#[tokio::test]
async fn what_is_restored_outranks_what_was_given_since() {
    let state = director().await;
    let folder = state.path().join("director");
    let path = backed_up(state.path(), "a.tar.gz");
    std::fs::write(folder.join(KEY), "a later key").unwrap();
    // Another release was made meanwhile, and is served.
    let later = Connection::open(folder.join(STORE)).unwrap();
    later
        .execute(
            "UPDATE services SET next_release = 3, active_release = 2",
            [],
        )
        .unwrap();
    drop(later);
    let restored = restore(&path, &folder, "root on this computer").unwrap();
    let former = restored.former.unwrap();
    assert_eq!(
        std::fs::read_to_string(former.join(KEY)).unwrap(),
        "a later key"
    );
    assert_eq!(
        std::fs::read_to_string(folder.join(KEY)).unwrap(),
        "the key"
    );
    let (code, hash) = blob();
    assert_eq!(
        std::fs::read(folder.join("blobs").join(hash)).unwrap(),
        code
    );
    let mode = std::fs::metadata(folder.join(KEY))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let floor = Incarnation(restored.incarnation).floor();
    assert!(floor > 0);
    let store = Store::open(&folder.join(STORE)).unwrap();
    store
        .read(move |tx| {
            let service: ServiceId = "svc-a".parse().unwrap();
            let row = store::services::get(tx, &service)?.unwrap();
            assert_eq!(row.generation, Generation(floor));
            assert_eq!(row.next_node, NodeNumber(floor));
            // The same content under a number that nobody has seen a later one than.
            assert_eq!(row.active, ReleaseNumber(floor));
            assert_eq!(row.next_release, ReleaseNumber(floor + 1));
            let active = store::services::get_release(tx, &service, row.active)?.unwrap();
            assert_eq!(active.code.unwrap().as_str(), "code-a");
            assert!(row.exposure.is_none());
            assert!(row.awaits_exposure(crate::incarnation::restored_at(tx)?));
            let secret = store::secrets::next_version(tx, &service, "A")?;
            assert_eq!(secret, SecretVersion(floor + 1));
            // What was being made is not known to be ours any more; what was up is.
            let nodes = store::machines::nodes_of_service(tx, &service)?;
            let numbers: Vec<u64> = nodes.iter().map(|node| node.number.0).collect();
            assert_eq!(numbers, [1]);
            let operations = store::operations::running(tx, None)?;
            assert_eq!(operations[0].targets[0].generation, Generation(floor));
            assert!(operations[0].deadline > 301);
            let audit = housekeeping::list_audit(tx, (None, None), 1 << 40, 9)?;
            let actions: Vec<&str> = audit.iter().map(|row| row.action.as_str()).collect();
            assert_eq!(actions, ["restore_director", "backup_director"]);
            Ok(())
        })
        .await
        .unwrap();
    drop(store);
    // The same backup once more: above what the first restore gave.
    let again = restore(&path, &folder, "root on this computer").unwrap();
    assert!(again.incarnation > restored.incarnation);
    // Where no release was made meanwhile, the one that runs is the one that is active.
    let store = Store::open(&folder.join(STORE)).unwrap();
    let read = store.read(|tx| store::services::every(tx)).await.unwrap();
    assert_eq!(
        read[0].active,
        ReleaseNumber(Incarnation(again.incarnation).floor())
    );
    drop(store);
    let newer = backed_up(state.path(), "b.tar.gz");
    restore(&newer, &folder, "root on this computer").unwrap();
    let store = Store::open(&folder.join(STORE)).unwrap();
    let kept = store.read(|tx| store::services::every(tx)).await.unwrap();
    assert_eq!(kept[0].active, read[0].active);
    drop(store);
    // And into a folder that is not there yet.
    let fresh = state.path().join("elsewhere");
    let elsewhere = restore(&path, &fresh, "root on this computer").unwrap();
    assert_eq!(elsewhere.former, None);
    assert_eq!(std::fs::read_to_string(fresh.join(KEY)).unwrap(), "the key");
}

#[tokio::test]
async fn a_damaged_archive_changes_nothing() {
    let state = director().await;
    let folder = state.path().join("director");
    let path = backed_up(state.path(), "a.tar.gz");
    let whole = std::fs::read(&path).unwrap();
    drop(lock(&folder).unwrap());
    // Opening a store leaves its files in order, so that they can be compared.
    drop(Connection::open(folder.join(STORE)).unwrap().query_row(
        "SELECT count(*) FROM meta",
        [],
        |row| row.get::<_, i64>(0),
    ));
    let before = content(&folder);
    let beside = || std::fs::read_dir(state.path()).unwrap().count();
    let count = beside();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = restore(&path, &folder, "root");
        let same = bytes.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        let length = bytes.len();
        let error = error.expect_err(&format!("{length} bytes, the first {same} as before"));
        assert_eq!(content(&folder), before, "{error}");
        assert_eq!(beside(), count, "{error}");
        assert!(!error.hint().is_empty());
        error
    };
    for length in [
        1,
        20,
        whole.len() / 3,
        whole.len() / 2,
        whole.len() - 9,
        whole.len() - 1,
    ] {
        let error = refused(&whole[..length]);
        let told = matches!(
            error,
            BackupError::Damaged { .. } | BackupError::NotABackup { .. }
        );
        assert!(told, "{length}: {error:?}");
    }
    let mut tried = 0;
    for at in (20..whole.len()).step_by(whole.len() / 40) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        if unpacked(&changed) == unpacked(&whole) {
            // Packed otherwise, it says the same: zeros may be copied from here or from there.
            continue;
        }
        tried += 1;
        let error = refused(&changed);
        let told = matches!(
            error,
            BackupError::Damaged { .. } | BackupError::NotABackup { .. }
        );
        assert!(told, "{at}: {error:?}");
    }
    assert!(tried > 20, "{tried}");
    let other = refused(b"no archive at all, but long enough to look like something");
    assert!(matches!(other, BackupError::NotABackup { .. }), "{other:?}");
    std::fs::write(&path, &whole).unwrap();
    restore(&path, &folder, "root").unwrap();
}

#[tokio::test]
async fn what_is_newer_or_of_others_or_in_use_is_refused() {
    let state = director().await;
    let folder = state.path().join("director");
    let path = backed_up(state.path(), "a.tar.gz");
    let running = lock(&folder).unwrap();
    let error = restore(&path, &folder, "root").unwrap_err();
    assert!(matches!(error, BackupError::Running { .. }), "{error:?}");
    drop(running);

    let here = Connection::open(folder.join(STORE)).unwrap();
    let rename = |to: &str| {
        here.execute(
            "UPDATE meta SET value = ?1 WHERE key = 'installation'",
            [to],
        )
        .unwrap()
    };
    rename("inst-b");
    let error = restore(&path, &folder, "root").unwrap_err();
    assert!(
        matches!(error, BackupError::OtherInstallation { .. }),
        "{error:?}"
    );
    rename("inst-a");
    drop(here);

    let changed = |edit: &dyn Fn(&mut serde_json::Value)| {
        let path = repacked(state.path(), &path, edit);
        restore(&path, &folder, "root").unwrap_err()
    };
    let error = changed(&|manifest| manifest["schema"] = (migrations::KNOWN + 1).into());
    assert!(
        matches!(error, BackupError::NewerSchema { .. }),
        "{error:?}"
    );
    assert!(
        error.hint().contains(conpaas_model::VERSION),
        "{}",
        error.hint()
    );
    let error = changed(&|manifest| manifest["format"] = (FORMAT + 1).into());
    assert!(
        matches!(error, BackupError::NewerFormat { .. }),
        "{error:?}"
    );
    let error = changed(&|manifest| manifest["members"][0]["sha256"] = "00".into());
    assert!(matches!(error, BackupError::Damaged { .. }), "{error:?}");
    for name in ["../outside", "/outside", "a/b/c"] {
        let error = changed(&|manifest| manifest["members"][1]["name"] = name.into());
        assert!(
            matches!(error, BackupError::Damaged { .. }),
            "{name}: {error:?}"
        );
    }
    assert!(!state.path().join("outside").exists());
}

/// What gzip makes of it; nothing if it refuses.
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(bytes);
    decoder.read_to_end(&mut text).ok().map(|_| text)
}

/// The same archive with another manifest, and members named as it says.
fn repacked(state: &Path, path: &Path, edit: &dyn Fn(&mut serde_json::Value)) -> PathBuf {
    use std::io::{Read, Write};
    let file = std::fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut members = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        members.push((name, bytes));
    }
    let mut manifest: serde_json::Value = serde_json::from_slice(&members[0].1).unwrap();
    edit(&mut manifest);
    members[0].1 = serde_json::to_vec(&manifest).unwrap();
    for (at, member) in manifest["members"].as_array().unwrap().iter().enumerate() {
        members[at + 1].0 = member["name"].as_str().unwrap().to_owned();
    }
    let to = state.join("changed.tar.gz");
    let out = std::fs::File::create(&to).unwrap();
    let packed = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
    let mut packed = tar::Builder::new(packed);
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        // As somebody with bad intent would write it: the usual ways refuse such names.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        packed.append(&header, bytes.as_slice()).unwrap();
    }
    packed
        .into_inner()
        .unwrap()
        .finish()
        .unwrap()
        .flush()
        .unwrap();
    to
}
