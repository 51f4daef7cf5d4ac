//! Failures of drivers.

use std::path::PathBuf;

use codchi_core::document::DocumentError;
use codchi_core::name::MachineName;
use codchi_core::report::{Diagnose, Kind};
use codchi_core::text;
use codchi_fs::FsError;

/// A verb of a driver failed.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no such driver.
    #[error("there is no driver `{given}`")]
    Unknown {
        /// What was asked for.
        given: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The machine is not running.
    #[error("`{0}` is not running")]
    NotRunning(MachineName),
    /// The machine did not come up.
    #[error("`{machine}` did not start: {reason}")]
    Start {
        /// The machine.
        machine: MachineName,
        /// Why.
        reason: String,
        /// The last lines of its console.
        console: Vec<String>,
        /// The whole console log.
        log: PathBuf,
    },
    /// The host lacks something.
    #[error("{what}")]
    Host {
        /// What.
        what: String,
        /// How to get it.
        hints: Vec<String>,
    },
    /// A command could not be run inside.
    #[error("cannot run the command in `{machine}`: {reason}")]
    Attach {
        /// The machine.
        machine: MachineName,
        /// Why.
        reason: String,
        /// What a shell would exit with: 126, 127, or 125.
        status: u8,
        /// What to do.
        hints: Vec<String>,
    },
    /// A program of Codchi's own failed.
    #[error("cannot {what}: {reason}")]
    Helper {
        /// What it was to do.
        what: String,
        /// Why it did not.
        reason: String,
    },
    /// The runtime failed.
    #[error("{message}")]
    Runtime {
        /// Why.
        message: String,
        /// What to do.
        hints: Vec<String>,
        /// What kind of failure it is.
        kind: Kind,
    },
    /// The built system asks for something this program does not know.
    #[error("the settings of the built system do not fit this Codchi: {0}")]
    Settings(String),
    /// A state file does not parse.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
    /// Interrupted by a signal.
    #[error("interrupted")]
    Interrupted,
}

impl From<codchi_runtime::Error> for DriverError {
    fn from(e: codchi_runtime::Error) -> DriverError {
        match e {
            codchi_runtime::Error::Host { what, hints } => DriverError::Host { what, hints },
            codchi_runtime::Error::Settings(s) => DriverError::Settings(s),
            other => {
                DriverError::Runtime { message: other.to_string(), hints: other.hints(), kind: other.kind() }
            }
        }
    }
}

impl Diagnose for DriverError {
    fn kind(&self) -> Kind {
        match self {
            DriverError::Unknown { .. } => Kind::Usage,
            DriverError::Host { .. } => Kind::Host,
            DriverError::Runtime { kind, .. } => *kind,
            DriverError::Interrupted => Kind::Interrupted,
            _ => Kind::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            DriverError::Unknown { given, known } => {
                let near = text::nearest(given, known.iter().map(String::as_str), 1);
                match near.first() {
                    Some(name) => vec![format!("did you mean `{name}`?")],
                    None => vec![format!("there is: `{}`", known.join("`, `"))],
                }
            }
            DriverError::NotRunning(name) => vec![format!("start it with `codchi start {name}`")],
            DriverError::Start { console, log, .. } => {
                let mut hints: Vec<String> = console.iter().map(|l| text::printable_line(l)).collect();
                hints.push(format!("the whole console is in `{}`", log.display()));
                hints
            }
            DriverError::Host { hints, .. }
            | DriverError::Attach { hints, .. }
            | DriverError::Runtime { hints, .. } => hints.clone(),
            DriverError::Settings(_) => vec!["build it again with `codchi rebuild`".into()],
            DriverError::Document(e) => e.hints(),
            _ => Vec::new(),
        }
    }
}
