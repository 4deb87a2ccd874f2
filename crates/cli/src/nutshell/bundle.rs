//! `conpaas nutshell support-bundle`: one archive of what somebody who helps wants to see: status,
//! settings, checks and the ends of logs. Nothing that people or applications keep secret is in
//! it: no store, no code, no environment; texts pass through `redact`.

use super::redact::redact;
use super::settings::{Place, Settings};
use super::{DIRECTOR, EDGE, KEEPER, checks, keeper, status};
use crate::exit::{CliError, Outcome};
use crate::session::Session;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// So much of the end of each log is taken.
const LOG_END: u64 = 2 << 20;
/// So many machines' consoles are taken, the newest first.
const MACHINES: usize = 50;
const FORMAT: u32 = 1;

pub async fn run(session: &Session, place: &Place, output: Option<PathBuf>) -> Outcome {
    if !place.state().is_dir() {
        return Err(CliError::failed(format!(
            "there is no nutshell in {}",
            place.state().display()
        ))
        .hint("say which: --state FOLDER"));
    }
    let settings = Settings::load(place)?;
    let known = known_secrets(place);
    let mut members: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, text: &str| members.push((name.to_owned(), redact(text, &known)));
    let status = status::collect(session, place, &settings).await?;
    add("status.json", &json(&status));
    add("checks.json", &json(&checks::all(place, &settings)?));
    add("kept.json", &json(&keeper::seen(place)));
    add(
        "about.json",
        &json(&serde_json::json!({
            "format": FORMAT,
            "program": conpaas_model::VERSION,
            "kernel": std::fs::read_to_string("/proc/version").unwrap_or_default().trim(),
        })),
    );
    add("nutshell.toml", &end_of(&place.settings()));
    for name in ["routes.json", "applied.json"] {
        add(&format!("edge/{name}"), &end_of(&place.edge().join(name)));
    }
    for daemon in [DIRECTOR, EDGE, KEEPER] {
        add(&format!("log/{daemon}.log"), &end_of(&place.log(daemon)));
    }
    for folder in newest(&place.cloud().join("machines")) {
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "log") {
                let file = entry.file_name().to_string_lossy().into_owned();
                add(&format!("machines/{name}/{file}"), &end_of(&path));
            }
        }
    }
    let path = output.unwrap_or_else(|| PathBuf::from("conpaas-support.tar.gz"));
    write(&path, &members).map_err(|error| {
        CliError::failed(format!("{} cannot be written", path.display()))
            .because(&error)
            .hint("name a file that is not there yet: --output FILE")
    })?;
    let shown = path.display().to_string();
    let value = serde_json::json!({"file": shown, "members": members.len()});
    session.printer.either(&value, |printer| {
        printer.line(&shown);
        printer
            .note("passwords, tokens and keys were taken out; look through it before you send it");
    })
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Secrets that lie in files of the nutshell: they are taken out wherever they turn up.
fn known_secrets(place: &Place) -> Vec<String> {
    let mut files = vec![place.token(), place.admin_password()];
    if let Ok(edge) = std::fs::read_dir(place.edge()) {
        files.extend(
            edge.flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|ending| ending == "key")),
        );
    }
    files
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
        .collect()
}

/// The end of a file as text; where it cannot be read, why.
fn end_of(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
        let mut bytes = Vec::new();
        file.take(LOG_END).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("(not read: {error})\n"))
}

fn newest(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found
        .into_iter()
        .rev()
        .take(MACHINES)
        .map(|(_, path)| path)
        .collect()
}

/// A new file that only its owner may read.
fn write(path: &Path, members: &[(String, String)]) -> std::io::Result<()> {
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, text) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(text.len() as u64);
        archive.append_data(
            &mut header,
            format!("conpaas-support/{name}"),
            text.as_bytes(),
        )?;
    }
    archive.into_inner()?.finish()?.sync_all()
}
