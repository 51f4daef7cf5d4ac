//! Secrets of machines: how they are kept on the host, and how they travel.
//!
//! Values live in [`Private`] memory. They are kept in the desktop's Secret Service, or in a file that age encrypts; which of
//! both, and which names there are, is in an index that holds no value.

mod bundle;
mod file;
mod service;
mod vault;

pub use bundle::{Bundle, MAX_BUNDLE, MAX_VALUE};
pub use codchi_sys::memory::{Private, wipe};
pub use vault::{Ask, Place, Vault};

use codchi_core::report::{Diagnose, Kind};

/// Why secrets could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] codchi_fs::FsError),
    /// Whoever else changes secrets could not be waited for.
    #[error(transparent)]
    Lock(#[from] codchi_fs::LockError),
    /// The index does not say what it should.
    #[error(transparent)]
    Document(#[from] codchi_core::document::DocumentError),
    /// No Secret Service answers.
    #[error("the Secret Service does not answer: {0}")]
    NoService(String),
    /// It does, but refuses.
    #[error("the Secret Service cannot {what}: {reason}")]
    Service {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// The keyring is locked and nobody can be asked to unlock it.
    #[error("the keyring of the desktop session is locked")]
    Locked,
    /// A passphrase is needed and nobody can be asked for it.
    #[error("the secrets are encrypted with a passphrase, and nobody can be asked for it")]
    NoPassphrase,
    /// The passphrase is wrong.
    #[error("the passphrase does not open the secrets")]
    WrongPassphrase,
    /// The file is damaged, or its key is another one.
    #[error("`{file}` cannot be decrypted: {reason}")]
    Undecryptable {
        /// The file.
        file: String,
        /// Why not.
        reason: String,
    },
    /// The key that opens the file is missing.
    #[error("the key of the secrets is gone: `{0}` is not there")]
    NoKey(String),
    /// A program that seals the key failed.
    #[error("`systemd-creds` cannot {what}: {reason}")]
    Creds {
        /// What was tried.
        what: &'static str,
        /// What it said.
        reason: String,
    },
    /// What arrived is not a list of secrets.
    #[error("the secrets arrived damaged: {0}")]
    Damaged(String),
    /// A value, or all together, is too large.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Which.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// Memory or a stream failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl SecretsError {
    /// Names what was tried when memory or a stream failed.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> SecretsError {
        move |source| SecretsError::Io { what, source }
    }
}

fn in_a_file() -> String {
    "`place = \"file\"` under `[secrets]` in config.toml keeps new ones in an encrypted file instead".into()
}

impl Diagnose for SecretsError {
    fn kind(&self) -> Kind {
        match self {
            SecretsError::NoService(_) | SecretsError::NoKey(_) => Kind::Host,
            SecretsError::Locked | SecretsError::NoPassphrase => Kind::Declined,
            _ => Kind::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            SecretsError::Document(e) => e.hints(),
            SecretsError::NoService(_) => {
                vec!["log in to the desktop session whose keyring holds the secrets".into(), in_a_file()]
            }
            SecretsError::Service { .. } => vec![in_a_file()],
            SecretsError::Locked => vec!["unlock it, or run the command in the desktop session".into()],
            SecretsError::NoPassphrase => vec![
                "run it in a terminal".into(),
                "`passphrase-command` under `[secrets]` in config.toml prints it without asking".into(),
            ],
            SecretsError::NoKey(_)
            | SecretsError::Undecryptable { .. }
            | SecretsError::Creds { .. }
            | SecretsError::Damaged(_) => {
                vec!["if it is lost for good: `codchi secrets set` gives each secret a new value".into()]
            }
            _ => Vec::new(),
        }
    }
}

/// Result of using secrets.
pub type Result<T, E = SecretsError> = std::result::Result<T, E>;
