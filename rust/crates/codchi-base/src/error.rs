//! What can go wrong in a build or in a machine.

use std::path::PathBuf;

use codchi_core::report::{Diagnose, Kind};
use codchi_fs::FsError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A build or an activation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FsError),
    /// The request of a derivation, or a file of the base, does not parse.
    #[error("`{}` does not parse: {source}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The program was called in a way it does not know.
    #[error("{0}")]
    Usage(String),
    /// A package file is not what it should be.
    #[error(transparent)]
    Package(#[from] codchi_debian::Error),
    /// Packages that must not be in one machine.
    #[error("these packages cannot be in one machine:\n{}", .0.iter().map(|c| format!("- {c}")).collect::<Vec<_>>().join("\n"))]
    Conflict(Vec<String>),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: rustix::io::Errno,
    },
    /// A program ended with a failure.
    #[error("`{program}` failed ({status})")]
    Program {
        /// Its name.
        program: String,
        /// How it ended.
        status: String,
    },
    /// Something else that is wrong with the machine.
    #[error("{0}")]
    Machine(String),
}

impl Diagnose for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Usage(_) => Kind::Usage,
            _ => Kind::Failed,
        }
    }
}

/// Adds what was tried to a failed system call.
pub(crate) trait Tried<T> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Tried<T> for rustix::io::Result<T> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System { what: what(), source })
    }
}
