//! What can go wrong.

use std::io;

use codchi_core::report::{Diagnose, Kind};

/// A copy that failed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file operation.
    #[error("cannot {op} `{path}`: {source}")]
    File {
        /// What was tried.
        op: &'static str,
        /// On which path of the tree, made printable.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A tar could not be read.
    #[error("cannot read the tar: {0}")]
    Read(io::Error),
    /// A tar could not be written.
    #[error("cannot write the tar: {0}")]
    Write(io::Error),
    /// A tar that is none, or not whole.
    #[error("this is no tar that can be used: {0}")]
    Tar(String),
    /// Something in a tar that is refused.
    #[error("`{entry}` in the tar {why}")]
    Entry {
        /// Its name, made printable.
        entry: String,
        /// Why.
        why: String,
    },
    /// Whoever watches said no.
    #[error("interrupted")]
    Interrupted,
}

/// Result of a copy.
pub type Result<T, E = FilesError> = std::result::Result<T, E>;

impl From<codchi_fs::FsError> for FilesError {
    fn from(e: codchi_fs::FsError) -> FilesError {
        FilesError::File { op: e.op, path: e.path.display().to_string(), source: e.source }
    }
}

impl Diagnose for FilesError {
    fn kind(&self) -> Kind {
        match self {
            FilesError::Interrupted => Kind::Interrupted,
            _ => Kind::Failed,
        }
    }
}

/// Adds what was tried, and on which path of the tree.
pub(crate) trait At<T> {
    fn at(self, op: &'static str, path: &[u8]) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, op: &'static str, path: &[u8]) -> Result<T> {
        self.map_err(|e| {
            let shown = codchi_core::text::printable_line(&String::from_utf8_lossy(path));
            let path = if shown.is_empty() { ".".into() } else { shown };
            FilesError::File { op, path, source: e.into() }
        })
    }
}
