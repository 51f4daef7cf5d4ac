//! Failures as the program reports them.

use codchi_core::report::{Diagnose, Kind};

/// What is printed, and which exit status it means.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Decides the exit status.
    pub kind: Kind,
    /// For the person.
    pub message: String,
    /// What to do next, one line each.
    pub hints: Vec<String>,
}

/// Result of a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure without hints.
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), hints: Vec::new() }
    }
    /// The operation failed.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Failed, message)
    }
    /// The command line was wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, message)
    }
    /// The system did not do what it was asked.
    pub fn os(doing: &str, why: impl Into<std::io::Error>) -> Failure {
        Failure::failed(format!("cannot {doing}: {}", why.into()))
    }
    /// A program could not be run.
    pub fn cannot_run(program: &str, why: impl std::fmt::Display) -> Failure {
        Failure::failed(format!("cannot run `{program}`: {why}"))
    }
    /// The same of git, which a host may lack.
    pub fn without_git(why: impl std::fmt::Display) -> Failure {
        Failure { kind: Kind::Host, ..Failure::cannot_run("git", why) }.hint("install git")
    }
    /// What cannot be, whatever a person does: a defect of this program.
    pub fn internal(message: impl Into<String>) -> Failure {
        Failure::failed(message).hint("this is a defect of Codchi: report it, with `codchi --version`")
    }
    /// With what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }
    /// Of any error that can tell what it means.
    pub fn of(error: &dyn Diagnose) -> Failure {
        Failure { kind: error.kind(), message: error.to_string(), hints: error.hints() }
    }
    /// As an error of a driver, which tells it to whoever waits for a machine.
    pub fn into_engine(self) -> codchi_drivers::DriverError {
        let Failure { kind, message, hints } = self;
        codchi_drivers::DriverError::Runtime { message, hints, kind }
    }
    /// What to do next: the hints, and where the disk is full, that. Other programs tell it in the middle of something else.
    pub fn advice(&self) -> impl Iterator<Item = &str> {
        const SIGNS: [&str; 3] = ["No space left on device", "disk is full", "Disk quota exceeded"];
        let told = |t: &String| SIGNS.iter().any(|s| t.contains(s));
        let known = self.hints.iter().any(|h| h.contains("free some space"));
        let full = !known && (told(&self.message) || self.hints.iter().any(told));
        let space = full.then_some("the disk is full: free some space and run the command again");
        self.hints.iter().map(String::as_str).chain(space)
    }
}

macro_rules! from_diagnose {
    ($($t:ty),* $(,)?) => {$(
        impl From<$t> for Failure {
            fn from(e: $t) -> Failure {
                Failure::of(&e)
            }
        }
    )*};
}

from_diagnose!(
    codchi_core::dirs::DirsError,
    codchi_core::document::DocumentError,
    codchi_core::flake::FlakeError,
    codchi_core::source::SourceError,
    codchi_drivers::DriverError,
    codchi_nix::NixError,
    codchi_secrets::SecretsError,
    codchi_store::StoreError,
    codchi_debian::Error,
);

impl From<codchi_core::name::NameError> for Failure {
    fn from(e: codchi_core::name::NameError) -> Failure {
        Failure::usage(e.to_string())
    }
}

impl From<codchi_fs::FsError> for Failure {
    fn from(e: codchi_fs::FsError) -> Failure {
        Failure::failed(e.to_string())
    }
}
