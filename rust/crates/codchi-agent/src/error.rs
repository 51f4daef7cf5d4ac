//! What can go wrong in the agent, and what the host is told of it.

use std::io;

use codchi_core::protocol::{Failure, ProtocolError};
use codchi_fs::FsError;

/// A failure of the agent or of starting a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program was started in a way it does not know.
    #[error("usage: codchi-agent [SOCKET-DIRECTORY]")]
    Usage,
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FsError),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The host sent what the protocol does not allow.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The host went away, or said nothing for too long.
    #[error("the host closed the connection")]
    Closed,
    /// Too many commands run.
    #[error("{0} commands run already, which is the limit")]
    Busy(usize),
    /// The host speaks another version.
    #[error(
        "the host speaks version {0} of the agent protocol, this machine's agent speaks {1}; restart the machine"
    )]
    Version(u32, u32),
    /// No such account.
    #[error("there is no user `{0}` in this machine")]
    NoUser(String),
    /// An argument, variable or directory that Linux cannot express.
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    /// A variable's name is empty or holds `=`.
    #[error("`{0}` cannot be the name of a variable")]
    VariableName(String),
    /// The working directory cannot be entered.
    #[error("cannot enter the directory `{dir}`: {source}")]
    Directory {
        /// The directory.
        dir: String,
        /// Why not.
        source: io::Error,
    },
    /// What the machine's modules declare cannot be carried out.
    #[error("{0}")]
    Declared(String),
    /// No such program.
    #[error("{0}: command not found")]
    NotFound(String),
    /// The program cannot be run.
    #[error("{name}: {why}")]
    NotExecutable {
        /// The program.
        name: String,
        /// Why not.
        why: String,
    },
}

impl Error {
    /// Adds what was tried to a failed system call.
    pub fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |e| Error::System { what, source: e.into() }
    }

    /// What the host is told.
    pub fn failure(&self) -> Failure {
        let code = match self {
            Error::NotFound(_) => 127,
            Error::NotExecutable { .. } => 126,
            _ => 125,
        };
        Failure { code, message: self.to_string() }
    }
}
