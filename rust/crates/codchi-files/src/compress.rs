//! Compression of tars.

use std::io::{BufRead, Read, Write};

use crate::error::{FilesError, Result};

/// How a tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
}

/// Suffixes of file names, with what they mean.
const SUFFIXES: [(&str, Compression); 7] = [
    (".tar", Compression::None),
    (".tar.gz", Compression::Gzip),
    (".tgz", Compression::Gzip),
    (".tar.xz", Compression::Xz),
    (".txz", Compression::Xz),
    (".tar.zst", Compression::Zstd),
    (".tzst", Compression::Zstd),
];

impl Compression {
    /// What a file name asks for; none where that is nothing known.
    pub fn of_name(name: &str) -> Option<Compression> {
        SUFFIXES.iter().find(|(s, _)| name.ends_with(s)).map(|(_, c)| *c)
    }

    /// What [`Debug`] says, in small letters.
    pub fn of_word(word: &str) -> Option<Compression> {
        SUFFIXES.iter().map(|(_, c)| *c).find(|c| format!("{c:?}").eq_ignore_ascii_case(word))
    }

    /// The suffixes that are known.
    pub fn suffixes() -> impl Iterator<Item = &'static str> {
        SUFFIXES.iter().map(|(s, _)| *s)
    }

    /// Runs `f` with a writer that compresses to `out`.
    pub fn around<T>(self, mut out: impl Write, f: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
        match self {
            Compression::None => f(&mut out),
            Compression::Gzip => {
                let mut w = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                let done = f(&mut w)?;
                w.finish().and_then(|mut o| o.flush()).map_err(FilesError::Write)?;
                Ok(done)
            }
            Compression::Xz => {
                let mut w = liblzma::write::XzEncoder::new(out, 6);
                let done = f(&mut w)?;
                w.finish().and_then(|mut o| o.flush()).map_err(FilesError::Write)?;
                Ok(done)
            }
            Compression::Zstd => {
                let mut w = zstd::stream::write::Encoder::new(out, 3).map_err(FilesError::Write)?;
                let done = f(&mut w)?;
                w.finish().and_then(|mut o| o.flush()).map_err(FilesError::Write)?;
                Ok(done)
            }
        }
    }
}

/// A reader of what is in a tar, compressed as its first bytes say.
pub fn decompress<'r>(mut input: impl BufRead + 'r) -> Result<Box<dyn Read + 'r>> {
    let start = input.fill_buf().map_err(FilesError::Read)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(input))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(input).map_err(FilesError::Read)?)
        }
        _ => Box::new(input),
    })
}
