//! Who unpacks code: a short-lived child of the agent that first gives up being root, in a fresh
//! folder of its own. What it leaves is looked over here, and only then becomes the machine's.
//! What an archive may hold is `unpack`'s business.

use crate::unpack::{UnpackError, unpack};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown,
};
use std::path::Path;
use std::process::{Command, Stdio};

/// Debian's `nobody`, user and group: it owns nothing on a machine.
const NOBODY: u32 = 65_534;
/// The program's word for [`unpack_main`].
const WORD: &str = "unpack-code";
/// Most that is kept of what a child says.
const WORDS_KEPT: usize = 2000;

/// Where archives are unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacker {
    /// By a child of this very program (`conpaas unpack-code`), as nobody when this one is root.
    Child,
    /// By this process, with the rights it has: for agents that are a part of another program,
    /// which are no machine's.
    Here,
}

impl Unpacker {
    /// Unpacks an archive to `draft`, which is made, and in the end owned by the caller alone:
    /// folders 0755, files 0644.
    pub(crate) fn unpack(self, archive: File, draft: &Path) -> Result<(), String> {
        match self {
            Self::Here => unpack(io::BufReader::new(archive), draft)
                .map_err(|error| crate::party::chained(&error)),
            Self::Child => by_child(archive, draft),
        }
    }
}

fn by_child(archive: File, draft: &Path) -> Result<(), String> {
    let cannot = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let unpacking = if Uid::effective().is_root() {
        NOBODY
    } else {
        Uid::effective().as_raw()
    };
    DirBuilder::new()
        .mode(0o700)
        .create(draft)
        .map_err(cannot("its folder cannot be made"))?;
    if Uid::effective().is_root() {
        lchown(draft, Some(NOBODY), Some(NOBODY)).map_err(cannot("its folder cannot be given"))?;
    }
    let output = Command::new("/proc/self/exe")
        .arg(WORD)
        .env_clear()
        .current_dir(draft)
        .stdin(archive)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(cannot("the process that unpacks cannot be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(WORDS_KEPT).collect();
        return Err(if said.is_empty() {
            format!("the process that unpacks ended with {}", output.status)
        } else {
            said
        });
    }
    take_over(draft, unpacking).map_err(cannot("what was unpacked is not taken over"))
}

fn wrong(path: &Path, problem: &str) -> io::Error {
    io::Error::other(format!("{} {problem}", path.display()))
}

/// Makes a folder that `unpacking` filled the caller's own, from the top down: what lies below is
/// looked at only when nobody else can change it any more.
fn take_over(folder: &Path, unpacking: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc_flags())
        .open(folder)?;
    if opened.metadata()?.uid() != unpacking {
        return Err(wrong(folder, "is not of the account that unpacks"));
    }
    fchown(&opened, Some(uid), Some(gid))?;
    opened.set_permissions(Permissions::from_mode(0o755))?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let found = std::fs::symlink_metadata(&path)?;
        if found.uid() != unpacking {
            return Err(wrong(&path, "is not of the account that unpacks"));
        }
        let kind = found.file_type();
        if kind.is_dir() {
            take_over(&path, unpacking)?;
        } else if kind.is_symlink() {
            lchown(&path, Some(uid), Some(gid))?;
        } else if kind.is_file() && found.nlink() == 1 {
            lchown(&path, Some(uid), Some(gid))?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        } else {
            return Err(wrong(&path, "is neither a file, a folder nor a link"));
        }
    }
    Ok(())
}

/// A folder itself, never what a link names.
fn libc_flags() -> i32 {
    (nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_NOFOLLOW).bits()
}

/// What `conpaas unpack-code` does: gives up being root, then unpacks the archive on its standard
/// input to the folder it was started in. Says on its standard output who it was.
pub fn unpack_main(arguments: &[OsString]) -> i32 {
    match work(arguments) {
        Ok(()) => 0,
        Err(reason) => {
            let _ = io::Write::write_all(&mut io::stderr(), reason.as_bytes());
            1
        }
    }
}

fn work(arguments: &[OsString]) -> Result<(), String> {
    if !arguments.is_empty() {
        return Err("unpack-code takes no arguments".to_owned());
    }
    drop_rights().map_err(|error| format!("the rights of root cannot be given up: {error}"))?;
    let (uid, groups) = (Uid::current(), nix::unistd::getgroups());
    let groups = groups.map_err(|error| error.to_string())?.len();
    let said = format!("{{\"uid\":{uid},\"groups\":{groups}}}\n");
    io::Write::write_all(&mut io::stdout(), said.as_bytes()).map_err(|error| error.to_string())?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let stdin = io::stdin().lock();
    unpack(io::BufReader::new(stdin), Path::new("."))
        .map_err(|error: UnpackError| crate::party::chained(&error))
}

/// Becomes nobody for good, if this is root; whoever it is, it can gain nothing any more.
fn drop_rights() -> nix::Result<()> {
    nix::sys::prctl::set_no_new_privs()?;
    if Uid::effective().is_root() {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
            return Err(nix::errno::Errno::EPERM);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unpacked_becomes_the_callers_unless_another_had_a_hand_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let draft = folder.path().join("draft");
        std::fs::create_dir_all(draft.join("a")).unwrap();
        std::fs::write(draft.join("a/f"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", draft.join("l")).unwrap();
        let me = Uid::effective().as_raw();
        assert!(take_over(&draft, me + 1).is_err());
        take_over(&draft, me).unwrap();
        let mode = std::fs::metadata(draft.join("a/f")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o644);

        // A second name of a file could be of one that lies elsewhere.
        std::fs::hard_link(draft.join("a/f"), draft.join("a/g")).unwrap();
        assert!(take_over(&draft, me).is_err());
        std::fs::remove_file(draft.join("a/g")).unwrap();
        if me != 0 {
            return;
        }
        // Root has files of two accounts made: only those of the one are taken.
        let all = ["", "a", "a/f", "l"];
        for path in all {
            lchown(draft.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        take_over(&draft, NOBODY).unwrap();
        for path in all {
            let found = std::fs::symlink_metadata(draft.join(path)).unwrap();
            assert_eq!((found.uid(), found.gid()), (0, 0), "{path}");
        }
        assert!(take_over(&draft, NOBODY).is_err());
    }
}
