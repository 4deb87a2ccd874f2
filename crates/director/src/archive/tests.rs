use super::*;
use std::io::Cursor;

const BOUNDS: Bounds = Bounds {
    unpacked: 1 << 20,
    members: 100,
};

fn tar_of(entries: &[(&str, tar::EntryType, u32, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, mode, content) in entries {
        let mut header = tar::Header::new_gnu();
        // Written by hand: the library refuses to write what we must refuse to read.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_mtime(1_000_000);
        let is_link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        if is_link {
            let link = &mut header.as_old_mut().linkname;
            link[..content.len()].copy_from_slice(content.as_bytes());
        }
        let content = if is_link { "" } else { content };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Path, mode, and content (or `-> target`) of a member.
type Found = (String, u32, String);

fn take(bytes: &[u8]) -> Result<(Normalised, Vec<Found>), ArchiveError> {
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(bytes).unwrap();
    let mut out = tempfile::tempfile().unwrap();
    let normalised = normalise(source.path(), &mut out, BOUNDS)?;
    out.seek(SeekFrom::Start(0)).unwrap();
    let mut plain = Vec::new();
    out.read_to_end(&mut plain).unwrap();
    assert_eq!(normalised.size, plain.len() as u64);
    assert_eq!(normalised.sha256, hex::encode(Sha256::digest(&plain)));
    let mut found = Vec::new();
    for entry in tar::Archive::new(Cursor::new(plain)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mode) = (
            entry.path().unwrap().display().to_string(),
            entry.header().mode().unwrap(),
        );
        assert_eq!(entry.header().uid().unwrap(), 0);
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        if let Some(link) = entry.link_name().unwrap() {
            text = format!("-> {}", link.display());
        }
        found.push((path, mode, text));
    }
    Ok((normalised, found))
}

use tar::EntryType::{Block, Directory, Fifo, Link, Regular, Symlink};

#[test]
fn a_single_top_folder_is_stripped_and_modes_are_plain() {
    let bytes = tar_of(&[
        ("site/", Directory, 0o700, ""),
        ("site/index.html", Regular, 0o600, "hi"),
        ("site/run.sh", Regular, 0o711, "x"),
        ("site/a/link", Symlink, 0o777, "../index.html"),
    ]);
    let (normalised, found) = take(&bytes).unwrap();
    assert_eq!(normalised.files, 3);
    let wanted = [
        ("index.html".to_owned(), 0o644, "hi".to_owned()),
        ("run.sh".to_owned(), 0o755, "x".to_owned()),
        ("a/link".to_owned(), 0o777, "-> ../index.html".to_owned()),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn a_file_at_the_top_keeps_the_folders() {
    let bytes = tar_of(&[
        ("a.txt", Regular, 0o644, "1"),
        ("d/b.txt", Regular, 0o644, "2"),
    ]);
    let paths: Vec<_> = take(&bytes)
        .unwrap()
        .1
        .into_iter()
        .map(|found| found.0)
        .collect();
    assert_eq!(paths, ["a.txt", "d/b.txt"]);
}

#[test]
fn compressed_and_plain_are_the_same() {
    let plain = tar_of(&[("a.txt", Regular, 0o644, "content")]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz.write_all(&plain).unwrap();
    let wanted = take(&plain).unwrap().0;
    assert_eq!(take(&gz.finish().unwrap()).unwrap().0, wanted);
    assert_eq!(take(&bz.finish().unwrap()).unwrap().0, wanted);
    // The strongest setting that people use asks for the most memory of whoever unpacks.
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 9);
    xz.write_all(&plain).unwrap();
    assert_eq!(take(&xz.finish().unwrap()).unwrap().0, wanted);
    let zst = zstd::stream::encode_all(&plain[..], 19).unwrap();
    assert_eq!(take(&zst).unwrap().0, wanted);
    // Two frames one after another are one stream, as they are for `zstd -d`.
    let (one, two) = plain.split_at(plain.len() / 2);
    let mut frames = zstd::stream::encode_all(one, 3).unwrap();
    frames.extend(zstd::stream::encode_all(two, 3).unwrap());
    assert_eq!(take(&frames).unwrap().0, wanted);
    // One that asks for half a gigabyte of memory is refused, not obeyed.
    let mut greedy = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
    greedy.dict_size(512 << 20);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&greedy);
    let check = liblzma::stream::Check::Crc64;
    let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
    let mut xz = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    xz.write_all(&plain).unwrap();
    let refused = take(&xz.finish().unwrap());
    assert!(
        matches!(refused, Err(ArchiveError::Damaged(_))),
        "{refused:?}"
    );
}

fn zip_of(names: &[&str]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for name in names {
        let options = zip::write::SimpleFileOptions::default();
        writer.start_file(*name, options).unwrap();
        writer.write_all(b"content").unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn zips_are_taken_and_their_slips_refused() {
    let (_, found) = take(&zip_of(&["x/a.txt", "x/b/c.txt"])).unwrap();
    let paths: Vec<_> = found.iter().map(|found| found.0.as_str()).collect();
    assert_eq!(paths, ["a.txt", "b/c.txt"]);
    for bad in [
        "../evil",
        "a/../../evil",
        "/etc/passwd",
        "..\\evil",
        "C:\\evil",
    ] {
        let error = take(&zip_of(&[bad])).unwrap_err();
        assert!(
            matches!(error, ArchiveError::Member { .. }),
            "{bad}: {error}"
        );
    }
}

#[test]
fn what_leads_out_or_is_no_file_is_refused() {
    let rows: &[&[(&str, tar::EntryType, u32, &str)]] = &[
        &[("../evil", Regular, 0o644, "x")],
        &[("/etc/passwd", Regular, 0o644, "x")],
        &[("a/../../b", Regular, 0o644, "x")],
        &[("l", Symlink, 0o777, "/etc/passwd")],
        &[("l", Symlink, 0o777, "../out")],
        &[("a/l", Symlink, 0o777, "../b/../../out")],
        &[("h", Link, 0o644, "../../etc/passwd")],
        &[("l", Symlink, 0o777, "d"), ("l/x", Regular, 0o644, "x")],
        &[("dev", Block, 0o644, "")],
        &[("pipe", Fifo, 0o644, "")],
        &[("su", Regular, 0o4755, "x")],
        &[("a", Regular, 0o644, "x"), ("a", Regular, 0o644, "y")],
        &[("a", Regular, 0o644, "x"), ("a/b", Regular, 0o644, "y")],
        // Nodes refuse what leads through another link, so it is not taken.
        &[
            ("d/f", Regular, 0o644, "x"),
            ("q", Symlink, 0o777, "d"),
            ("z/y", Symlink, 0o777, "../q/x"),
        ],
        &[
            ("top/z", Symlink, 0o777, "./q/x"),
            ("top/q", Symlink, 0o777, "d"),
            ("top/d/f", Regular, 0o644, "x"),
        ],
        &[
            ("d/f", Regular, 0o644, "x"),
            ("q", Symlink, 0o777, "d"),
            ("h", Link, 0o644, "q/f"),
        ],
        // Inside as long as the top folder is there, outside once it is stripped.
        &[
            ("top/f", Regular, 0o644, "x"),
            ("top/l", Symlink, 0o777, "../top/f"),
        ],
    ];
    for entries in rows {
        let error = take(&tar_of(entries)).unwrap_err();
        assert!(
            matches!(error, ArchiveError::Member { .. }),
            "{entries:?}: {error}"
        );
    }
}

#[test]
fn a_link_to_a_link_itself_is_taken() {
    let bytes = tar_of(&[
        ("d/f", Regular, 0o644, "x"),
        ("q", Symlink, 0o777, "d/f"),
        ("z/y", Symlink, 0o777, "../q"),
    ]);
    assert_eq!(take(&bytes).unwrap().0.files, 3);
}

proptest::proptest! {
    /// Archives of files, folders and links among a few names, so that links meet links: what is
    /// taken here, a node unpacks.
    #[test]
    fn nodes_unpack_whatever_is_taken(
        rows in proptest::collection::vec(
            ("[ab](/[ab]){0,2}", 0..3u8, "((\\.\\./){0,2})[abc](/(\\.\\./)?[abc])?"), 1..6)
    ) {
        let entries: Vec<_> = rows
            .iter()
            .map(|(path, kind, to)| match kind {
                0 => (path.as_str(), Regular, 0o644, "x"),
                1 => (path.as_str(), Directory, 0o755, ""),
                _ => (path.as_str(), Symlink, 0o777, to.as_str()),
            })
            .collect();
        let mut source = tempfile::NamedTempFile::new().unwrap();
        source.write_all(&tar_of(&entries)).unwrap();
        let mut out = tempfile::tempfile().unwrap();
        if normalise(source.path(), &mut out, BOUNDS).is_ok() {
            out.seek(SeekFrom::Start(0)).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let unpacked = conpaas_agent::unpack(out, &folder.path().join("code"));
            proptest::prop_assert!(unpacked.is_ok(), "{entries:?}: {unpacked:?}");
        }
    }
}

#[test]
fn bombs_nothing_and_nonsense_are_refused() {
    let big = "x".repeat(700_000);
    let bytes = tar_of(&[("a", Regular, 0o644, &big), ("b", Regular, 0o644, &big)]);
    assert!(matches!(take(&bytes), Err(ArchiveError::TooLarge { .. })));
    let names: Vec<String> = (0..101).map(|n| format!("f{n}")).collect();
    let many: Vec<_> = names
        .iter()
        .map(|n| (n.as_str(), Regular, 0o644, ""))
        .collect();
    assert!(matches!(
        take(&tar_of(&many)),
        Err(ArchiveError::TooMany { .. })
    ));
    assert!(matches!(
        take(&tar_of(&[("d/", Directory, 0o755, "")])),
        Err(ArchiveError::Empty)
    ));
    assert!(matches!(
        take(b"hello, this is no archive"),
        Err(ArchiveError::Unknown(""))
    ));
    assert!(matches!(
        take(b""),
        Err(ArchiveError::Unknown("an empty file"))
    ));
    let whole = tar_of(&[("a.txt", Regular, 0o644, &big)]);
    assert!(matches!(
        take(&whole[..100_000]),
        Err(ArchiveError::Damaged(_))
    ));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&whole).unwrap();
    let gz = gz.finish().unwrap();
    assert!(matches!(
        take(&gz[..gz.len() / 2]),
        Err(ArchiveError::Damaged(_))
    ));
}
