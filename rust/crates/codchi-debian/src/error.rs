//! What can go wrong, and what a person does about it.

use std::path::PathBuf;

use codchi_core::report::{Diagnose, Kind};
use codchi_fs::FsError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FsError),
    /// The file is not a Debian package, or a damaged one.
    #[error("`{}` is not a valid Debian package: {reason}", path.display())]
    BadPackage {
        /// The package.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The package wants to write where it must not.
    #[error("refused to unpack `{}`: its entry `{entry}` {reason}", path.display())]
    Hostile {
        /// The package.
        path: PathBuf,
        /// The entry, as the package names it.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Diagnose for Error {
    fn kind(&self) -> Kind {
        Kind::Failed
    }

    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}
