//! Which kind of archive it is, told by its first bytes, and its plain bytes from the compressed.

use super::ArchiveError;
use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use std::fs::File;
use std::io::{BufReader, Read};

/// Memory that unpacking xz may take, in bytes: enough for its strongest setting (`xz -9` needs 65
/// MiB by its manual), and a bound for archives that ask for gigabytes.
const XZ_MEMORY: u64 = 80 << 20;
/// The binary logarithm of the window that zstd may ask for: 64 MiB, that of `zstd --ultra -20`.
const ZSTD_WINDOW_LOG: u32 = 26;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Tar,
    TarGz,
    TarBz2,
    TarXz,
    TarZst,
    Zip,
}

impl Format {
    /// The tar within; a zip has none, and is given as it is.
    ///
    /// # Errors
    /// When the decoder cannot be made or the file cannot be read.
    pub(super) fn plain(self, file: File) -> Result<Box<dyn Read>, ArchiveError> {
        let file = BufReader::new(file);
        Ok(match self {
            Self::Tar | Self::Zip => Box::new(file),
            Self::TarGz => Box::new(MultiGzDecoder::new(file)),
            Self::TarBz2 => Box::new(MultiBzDecoder::new(file)),
            Self::TarXz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)
                    .map_err(|error| ArchiveError::Damaged(error.into()))?;
                Box::new(XzDecoder::new_stream(file, stream))
            }
            Self::TarZst => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(file)
                    .map_err(ArchiveError::Damaged)?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .map_err(ArchiveError::Damaged)?;
                Box::new(decoder)
            }
        })
    }
}

pub(super) fn sniff(head: &[u8]) -> Result<Format, ArchiveError> {
    let is = |magic: &[u8]| head.starts_with(magic);
    if is(b"PK\x03\x04") || is(b"PK\x05\x06") {
        Ok(Format::Zip)
    } else if is(&[0x1f, 0x8b]) {
        Ok(Format::TarGz)
    } else if is(b"BZh") {
        Ok(Format::TarBz2)
    } else if is(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Ok(Format::TarXz)
    } else if is(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Ok(Format::TarZst)
    } else if head.len() >= 512 && tar_header(head) {
        Ok(Format::Tar)
    } else {
        Err(ArchiveError::Unknown(if is(b"Rar!") {
            "rar"
        } else if is(b"7z\xbc\xaf") {
            "7z"
        } else if head.is_empty() {
            "an empty file"
        } else {
            ""
        }))
    }
}

/// Whether a block is a tar header: its checksum tells.
fn tar_header(block: &[u8]) -> bool {
    let Some(field) = block.get(148..156) else {
        return false;
    };
    let text: String = field.iter().map(|byte| char::from(*byte)).collect();
    let Ok(stated) = u64::from_str_radix(text.trim_matches(['\0', ' ']), 8) else {
        return false;
    };
    let sum = |(at, byte): (usize, &u8)| {
        u64::from(if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        })
    };
    block.iter().take(512).enumerate().map(sum).sum::<u64>() == stated
}
