//! What an error means to the person who reads it.

/// The kind of a failure; it decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The operation failed.
    Failed,
    /// The command line was wrong.
    Usage,
    /// The host lacks something; `codchi doctor` says what.
    Host,
    /// A person said no, or an answer was missing.
    Declined,
    /// The machine or thing named does not exist.
    NotFound,
    /// Someone else holds the lock.
    Busy,
    /// Interrupted by a signal.
    Interrupted,
}

impl Kind {
    /// The exit status of the program for this kind.
    pub fn exit_status(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Host => 3,
            Kind::Declined => 4,
            Kind::NotFound => 5,
            Kind::Busy => 6,
            Kind::Interrupted => 130,
        }
    }
}

/// Implemented by each crate's error type, so that the program can choose status, style and hints.
pub trait Diagnose: std::error::Error {
    /// What kind of failure this is.
    fn kind(&self) -> Kind {
        Kind::Failed
    }
    /// What to do next, one line each, without a full stop; commands a person may type are in backticks.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}
