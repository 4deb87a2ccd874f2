//! Unpacking machine images: whole or not at all, once, and owned through the id map.

use super::LocalConfig;
use super::call;
use super::idmap::IdMap;
use super::records::Layout;
use super::supervisor::keep_program;
use crate::error::CloudError;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Unpacks the tarball `tar` (`.tar`, or `.tar.zst` by the program `zstd`) to `images/NAME` in
/// the state folder, unless it is there already, and returns that folder. `name` must change
/// with the content. Two callers at once do it once. Blocks for seconds.
///
/// # Errors
/// [`CloudError::Image`] when the tarball is missing or cut short; then nothing is left behind.
pub fn prepare_image(config: &LocalConfig, tar: &Path, name: &str) -> Result<PathBuf, CloudError> {
    let plain = !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !plain {
        return Err(CloudError::Invalid {
            what: format!("'{name}' cannot name an image: use letters, digits, '.', '_' and '-'"),
        });
    }
    let layout = Layout(config.state_dir.clone());
    layout.make().map_err(CloudError::io("make", &layout.0))?;
    let map = IdMap::detect(config.id_base)?;
    let folder = layout.images().join(name);
    let lock_path = layout.images().join(format!(".{name}.lock"));
    let lock = File::options()
        .create(true)
        .append(true)
        .open(&lock_path)
        .map_err(CloudError::io("open", &lock_path))?;
    lock.lock().map_err(CloudError::io("lock", &lock_path))?;
    if folder.is_dir() {
        check(&folder, &map)?;
        return Ok(folder);
    }
    let program =
        keep_program(&layout, &config.program).map_err(CloudError::io("copy", &config.program))?;
    let partial = layout.images().join(format!(".{name}.partial"));
    if partial.exists() {
        call::run_mapped(&program, "remove", &map, &[&partial])?;
    }
    fs::create_dir(&partial).map_err(CloudError::io("make", &partial))?;
    let unpacked = unpack(&program, &map, tar, &partial).and_then(|()| {
        if partial.join("etc").is_dir() {
            Ok(())
        } else {
            Err(broken(tar, "holds no /etc: it is no root file system"))
        }
    });
    if let Err(error) = unpacked {
        let _ = call::run_mapped(&program, "remove", &map, &[&partial]);
        return Err(error);
    }
    fs::rename(&partial, &folder).map_err(CloudError::io("rename", &partial))?;
    Ok(folder)
}

/// Removes the driver's whole state folder, images and all. What lies in it belongs in part to
/// machines' ids, so that its owner alone could not.
///
/// # Errors
/// [`CloudError::Invalid`] while there are machines: destroy them first.
pub fn remove_state(config: &LocalConfig) -> Result<(), CloudError> {
    let layout = Layout(config.state_dir.clone());
    if !layout.0.exists() {
        return Ok(());
    }
    let machines = layout
        .load_all()
        .map_err(CloudError::io("read the records in", &layout.0))?;
    if !machines.is_empty() {
        return Err(CloudError::Invalid {
            what: format!(
                "{} still holds {} machines: destroy them first",
                layout.0.display(),
                machines.len()
            ),
        });
    }
    // Not the copy of the program that lies in what is being removed.
    call::run_mapped(
        &config.program,
        "remove",
        &IdMap::detect(config.id_base)?,
        &[&layout.0],
    )
}

fn broken(tar: &Path, what: &str) -> CloudError {
    CloudError::Image {
        path: tar.to_owned(),
        what: what.to_owned(),
        cure: "Build it again: make image".into(),
    }
}

fn unpack(program: &Path, map: &IdMap, tar: &Path, folder: &Path) -> Result<(), CloudError> {
    let mut file = File::open(tar).map_err(|e| broken(tar, &format!("cannot be opened ({e})")))?;
    let mut magic = [0u8; 4];
    let compressed = file.read_exact(&mut magic).is_ok() && magic == [0x28, 0xB5, 0x2F, 0xFD];
    file.seek(SeekFrom::Start(0))
        .map_err(CloudError::io("read", tar))?;
    if !compressed {
        if !ends_well(&mut file).map_err(CloudError::io("read", tar))? {
            return Err(broken(tar, "is cut short"));
        }
        return call::unpack(program, map, folder, Stdio::from(file))
            .map_err(|e| broken(tar, &format!("is cut short or damaged ({e})")));
    }
    let mut zstd = Command::new("zstd")
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::from(file))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| CloudError::Unfit {
            what: format!("the program zstd cannot be run ({e})"),
            cure: "Install it (Debian: apt install zstd)".into(),
        })?;
    let stream = zstd.stdout.take().map(OwnedFd::from);
    // tar stops reading at the end of the archive, before the zeros that fill its last record.
    // Held open here, the rest is read and checked too, and zstd does not write to nobody.
    let rest = stream.as_ref().map(OwnedFd::try_clone).transpose();
    let rest = rest.map_err(CloudError::io("unpack", tar))?.map(File::from);
    let unpacked = call::unpack(
        program,
        map,
        folder,
        stream.map_or_else(Stdio::null, Stdio::from),
    );
    if let Some(mut rest) = rest
        && unpacked.is_ok()
    {
        std::io::copy(&mut rest, &mut std::io::sink()).map_err(CloudError::io("unpack", tar))?;
    }
    let output = zstd
        .wait_with_output()
        .map_err(CloudError::io("unpack", tar))?;
    // One that a signal ended wrote to somebody who had gone: who went first knows why.
    let failed_itself = output.status.code().is_some_and(|code| code != 0);
    if failed_itself || (unpacked.is_ok() && !output.status.success()) {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(broken(
            tar,
            &format!("is cut short or damaged ({})", words.trim()),
        ));
    }
    unpacked.map_err(|e| broken(tar, &format!("is cut short or damaged ({e})")))
}

/// A whole tar file ends in two blocks of zeros; tar itself takes the end of file for one.
fn ends_well(file: &mut File) -> std::io::Result<bool> {
    let length = file.metadata()?.len();
    let mut tail = [0u8; 1024];
    let whole = length >= 1024 && length.is_multiple_of(512) && {
        file.seek(SeekFrom::End(-1024))?;
        file.read_exact(&mut tail)?;
        tail.iter().all(|b| *b == 0)
    };
    file.seek(SeekFrom::Start(0))?;
    Ok(whole)
}

/// Whether an unpacked image can be used with this map.
pub fn check(folder: &Path, map: &IdMap) -> Result<(), CloudError> {
    let image = |what: String, cure: &str| CloudError::Image {
        path: folder.to_owned(),
        what,
        cure: cure.to_owned(),
    };
    let metadata = fs::metadata(folder).map_err(|e| {
        image(
            format!("is missing ({e})"),
            "Unpack it with conpaas nutshell up, or build it with make image",
        )
    })?;
    if metadata.uid() != map.root_uid() {
        return Err(image(
            format!(
                "belongs to user {} and not to machines' root {}",
                metadata.uid(),
                map.root_uid()
            ),
            "It was unpacked for another range of ids or by another user: remove it and unpack it again",
        ));
    }
    Ok(())
}
