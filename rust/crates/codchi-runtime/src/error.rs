//! What can go wrong, and what mends it.

use std::io;

use codchi_core::report::{Diagnose, Kind};
use codchi_fs::FsError;

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks something that a person can supply.
    #[error("{what}")]
    Host {
        /// What is missing.
        what: String,
        /// What mends it, one line each.
        hints: Vec<String>,
    },
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    Os {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// The machine's engine settings are not usable.
    #[error("the engine settings of the machine are not usable: {0}")]
    Settings(String),
    /// The machine ended before it was ready.
    #[error("`{name}` did not start: {why}")]
    Start {
        /// Its name.
        name: String,
        /// Why.
        why: String,
        /// The last lines of its console.
        console: Vec<String>,
    },
    /// It runs already.
    #[error("the machine `{0}` runs already")]
    Running(String),
    /// It does not run.
    #[error("`{0}` is not running")]
    NotRunning(String),
    /// It did not do what was asked in time.
    #[error("`{name}` did not {what} within {seconds} seconds")]
    Timeout {
        /// Its name.
        name: String,
        /// What was asked.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// A machine has no such account.
    #[error("the machine has no user `{0}`")]
    NoUser(String),
    /// Said by a process of ours in another namespace.
    #[error("{0}")]
    Told(String),
}

/// Result of the runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Diagnose for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Host { .. } => Kind::Host,
            Error::Running(_) => Kind::Busy,
            _ => Kind::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Error::Host { hints, .. } => hints.clone(),
            Error::Start { console, .. } => console.iter().map(|l| format!("console: {l}")).collect(),
            Error::NotRunning(name) => vec![format!("start it with `codchi start {name}`")],
            Error::Running(name) => vec![format!("`codchi stop {name}` stops it")],
            Error::Timeout { name, .. } => vec![format!("`codchi logs {name}` shows what it does")],
            _ => Vec::new(),
        }
    }
}

/// Names what was tried when a system call failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|e| Error::Os { doing: what.into(), source: e.into() })
    }
}
