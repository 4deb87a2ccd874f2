//! Files that role agents write: whole or not at all, and only when they changed. Accounts are
//! looked up in /etc/passwd itself, since a static binary has no name service.

use conpaas_core::role_agent::RoleError;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Writes a file by way of a neighbour and a rename, if its content differs. Says whether it
/// wrote.
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> Result<bool, RoleError> {
    let what = || format!("writing {}", path.display());
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let neighbour = neighbour(path);
    let write = || -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&neighbour)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        std::fs::rename(&neighbour, path)
    };
    write().map_err(RoleError::io(what()))?;
    Ok(true)
}

/// A name beside `path` that nobody serves or reads.
pub fn neighbour(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    path.with_file_name(format!(".{name}.new"))
}

/// Makes a folder and its parents; the folder itself gets this mode whatever the umask.
pub fn folder(path: &Path, mode: u32) -> Result<(), RoleError> {
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(RoleError::io(format!(
            "making the folder {}",
            path.display()
        )))
}

/// Makes a folder that belongs to an account of the machine.
pub fn folder_of(path: &Path, mode: u32, account: &str) -> Result<(), RoleError> {
    folder(path, mode)?;
    give(path, account).map_err(RoleError::io(format!(
        "giving {} to {account}",
        path.display()
    )))
}

/// Gives a file or folder to an account, where we are root and the machine has that account.
pub fn give(path: &Path, account: &str) -> io::Result<()> {
    match ids(account) {
        Some((user, group)) if is_root() => {
            std::os::unix::fs::lchown(path, Some(user), Some(group))
        }
        _ => Ok(()),
    }
}

/// Whether this process is root of its machine: only then can daemons change to other accounts.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The account to run a daemon as, where we are root and the machine has that account.
pub fn account(name: &str) -> Option<String> {
    (is_root() && ids(name).is_some()).then(|| name.to_owned())
}

/// A secret that never leaves its machine, made when it is first asked for.
pub fn local_secret(path: &Path) -> Result<String, RoleError> {
    use std::io::Read;
    if let Ok(secret) = std::fs::read_to_string(path)
        && secret.len() == 64
    {
        return Ok(secret);
    }
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(RoleError::io("making a secret"))?;
    let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_if_changed(path, secret.as_bytes(), 0o600)?;
    Ok(secret)
}

/// User and group number of an account.
fn ids(account: &str) -> Option<(u32, u32)> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == account).then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// The end of a log, at most 4 KiB.
pub fn tail(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))
        .ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    Some(String::from_utf8_lossy(&tail).into_owned())
}

/// The last line of a log that says something, for the reason of a failure.
pub fn last_line(path: &Path) -> Option<String> {
    let tail = tail(path)?;
    tail.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(|line| line.chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_only_what_changed_and_leaves_no_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.conf");
        assert!(write_if_changed(&path, b"x", 0o640).unwrap());
        assert!(!write_if_changed(&path, b"x", 0o640).unwrap());
        assert!(write_if_changed(&path, b"y", 0o640).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
    }

    #[test]
    fn the_last_line_with_words_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "one\ntwo\n\n").unwrap();
        assert_eq!(last_line(&path).as_deref(), Some("two"));
        assert_eq!(last_line(&dir.path().join("none")), None);
    }
}
