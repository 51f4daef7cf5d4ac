//! What can go wrong with a store.

use std::path::PathBuf;

use codchi_core::report::{Diagnose, Kind};
use codchi_fs::FsError;
use codchi_nix::NixError;

/// A failure of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The host's store was asked for and there is none.
    #[error("the host has no Nix daemon of version 2.18 or later that answers: {0}")]
    NoHostStore(String),
    /// Nothing to make a store from could be had.
    #[error("Nix could not be fetched: {0}")]
    Fetch(String),
    /// What was downloaded has another form than expected.
    #[error("`{}` is not usable: {reason}", path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The program that was unpacked does not run.
    #[error("the Nix that was unpacked does not run here: {0}")]
    DoesNotRun(String),
    /// There is no store yet.
    #[error("there is no store yet")]
    None,
    /// The plumbing was called in a way it does not know.
    #[error("{0}")]
    Usage(String),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// Someone else is making the store.
    #[error(transparent)]
    Lock(#[from] codchi_fs::LockError),
    /// Nix failed.
    #[error(transparent)]
    Nix(#[from] NixError),
    /// The namespace could not be entered.
    #[error(transparent)]
    Runtime(#[from] codchi_runtime::Error),
    /// The Debian mirror failed.
    #[error(transparent)]
    Debian(#[from] codchi_debian::Error),
}

impl Diagnose for StoreError {
    fn kind(&self) -> Kind {
        match self {
            StoreError::NoHostStore(_) => Kind::Host,
            StoreError::Usage(_) => Kind::Usage,
            StoreError::Lock(codchi_fs::LockError::Held { .. }) => Kind::Busy,
            StoreError::Nix(e) => e.kind(),
            StoreError::Runtime(e) => e.kind(),
            StoreError::Debian(e) => e.kind(),
            _ => Kind::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            StoreError::NoHostStore(_) => {
                vec!["set `kind = \"own\"` under `[store]` in the settings to use a store of Codchi's own".into()]
            }
            StoreError::Fetch(_) | StoreError::Package { .. } | StoreError::DoesNotRun(_) => vec![
                "`base.mirror` in the settings names a Debian mirror; `store.nix-tarball` a copy of Nix's binary tarball"
                    .into(),
            ],
            StoreError::Nix(e) => e.hints(),
            StoreError::Runtime(e) => e.hints(),
            StoreError::Debian(e) => e.hints(),
            _ => Vec::new(),
        }
    }
}

/// Adds what was tried to a failed system call.
pub(crate) trait Tried<T> {
    fn tried(self, what: impl Into<String>) -> Result<T, StoreError>;
}

impl<T, E: Into<std::io::Error>> Tried<T> for Result<T, E> {
    fn tried(self, what: impl Into<String>) -> Result<T, StoreError> {
        self.map_err(|e| StoreError::System { what: what.into(), source: e.into() })
    }
}
