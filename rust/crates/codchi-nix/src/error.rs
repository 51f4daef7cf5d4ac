//! What can go wrong with Nix.

use std::path::PathBuf;

use codchi_core::document::DocumentError;
use codchi_core::report::{Diagnose, Kind};
use codchi_fs::FsError;

use crate::nix::Version;
use crate::refusal::Refusal;

/// A failure of Nix, or of reading what it wrote.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    /// The program could not be started.
    #[error("cannot run `{program}`: {source}")]
    Spawn {
        /// Its name.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nix is older than what Codchi needs.
    #[error("Nix {found} is too old: Codchi needs {needed} or later")]
    TooOld {
        /// What the program said.
        found: Version,
        /// The floor.
        needed: Version,
    },
    /// A Nix command failed. `message` is made for a person: where in their module first, then why.
    #[error("{what} failed: {message}")]
    Command {
        /// What was being done, such as `evaluating the machine`.
        what: String,
        /// The shortened message of Nix.
        message: String,
    },
    /// A source could not be had.
    #[error("{what} failed: {}: {said}", refusal.message())]
    Source {
        /// What was being done, such as `fetching REFERENCE`.
        what: String,
        /// Why.
        refusal: Refusal,
        /// The line of git, ssh or curl that tells it.
        said: String,
        /// The host in question, where it is known.
        host: Option<String>,
    },
    /// A build failed.
    #[error("{message}")]
    Build {
        /// The shortened message of Nix.
        message: String,
        /// The derivation that failed, where Nix named one.
        drv: Option<String>,
        /// The last lines of that build's log.
        log: Vec<String>,
    },
    /// Nix answered with something this program does not understand.
    #[error("cannot understand the answer of `{what}`: {reason}")]
    Answer {
        /// The command.
        what: String,
        /// What was odd about it.
        reason: String,
    },
    /// Text that is not a store path.
    #[error("`{0}` is not a store path")]
    StorePath(String),
    /// A file that should have a known form has not.
    #[error("`{}`, line {line}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A derivation in the store is none.
    #[error("`{}` is no derivation: {reason}", path.display())]
    Derivation {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no flake where one was expected.
    #[error("`{0}` is no flake: it has no flake.nix")]
    NoFlake(String),
    /// A source wants something of this computer as an input: it would be copied to where all may read it.
    #[error(
        "`{flake}` takes `{reference}` of this computer as its input `{input}`, which only a machine flake may"
    )]
    HostPath {
        /// Whose flake.
        flake: String,
        /// The input.
        input: String,
        /// Where it is.
        reference: String,
    },
    /// The flake has no module to make a machine of.
    #[error("`{0}` has no module: neither `nixosModules` nor `codchiModules`")]
    NoModule(String),
    /// A generation that is asked for does not exist.
    #[error("there is no generation {number}")]
    NoGeneration {
        /// Its number.
        number: u64,
        /// Those that there are.
        all: Vec<u64>,
    },
    /// Interrupted by a signal.
    #[error("interrupted")]
    Interrupted,
    /// A document of Codchi's own could not be read.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FsError),
}

impl Diagnose for NixError {
    fn kind(&self) -> Kind {
        match self {
            NixError::Spawn { .. } | NixError::TooOld { .. } => Kind::Host,
            NixError::NoGeneration { .. } => Kind::NotFound,
            NixError::Source { refusal, .. } => refusal.kind(),
            NixError::Interrupted => Kind::Interrupted,
            NixError::Document(e) => e.kind(),
            _ => Kind::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            NixError::TooOld { .. } => vec!["`codchi doctor` tells how to use a store of Codchi's own".into()],
            NixError::Command { message, .. } if crate::trace::is_network(message) => vec![
                "the source could not be reached: check the network, or use `--offline` with what is already there".into(),
            ],
            NixError::Source { refusal, host, .. } => refusal.hints(host.as_deref()),
            NixError::HostPath { input, .. } => vec![format!(
                "where you want that, say so in the machine's flake.nix: `inputs.SOURCE.inputs.{input}.url`"
            )],
            NixError::Document(e) => e.hints(),
            NixError::Derivation { .. } => {
                vec!["`codchi store repair` mends what is damaged in the store".into()]
            }
            NixError::Parse { .. } => vec!["nothing was changed; mend that line and try again".into()],
            NixError::NoGeneration { all, .. } if !all.is_empty() => {
                let all: Vec<String> = all.iter().map(u64::to_string).collect();
                vec![format!("there are {}", all.join(", "))]
            }
            NixError::Answer { .. } => {
                vec!["`codchi store status` tells which Nix that is; `codchi store repair` checks the store".into()]
            }
            NixError::NoFlake(_) => vec!["the templates of Codchi show what one holds".into()],
            NixError::NoModule(_) => {
                vec!["add `nixosModules.default` to its outputs; the templates of Codchi show how".into()]
            }
            _ => Vec::new(),
        }
    }
}
