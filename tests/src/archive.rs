//! Small application archives, made on the spot.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::path::Path;

/// Writes a `.tar.gz` with these files.
pub fn tar_gz(path: &Path, files: &[(&str, &str)]) {
    let file = std::fs::File::create(path).unwrap();
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
}

/// A site of one version: a page that says who answered, and a static file.
pub fn site(path: &Path, version: u32) {
    let page = format!(
        "<?php header('X-Version: {version}'); echo 'version {version} from ' . gethostname();"
    );
    tar_gz(
        path,
        &[
            ("index.php", &page),
            ("static.txt", &format!("static {version}\n")),
        ],
    );
}
