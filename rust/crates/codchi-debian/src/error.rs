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
    /// A setting is no address.
    #[cfg(feature = "net")]
    #[error("{setting} is not an address that begins with `http://` or `https://`")]
    BadAddress {
        /// The setting; its value may hold credentials, so it is not shown.
        setting: &'static str,
    },
    /// Nothing could be downloaded.
    #[cfg(feature = "net")]
    #[error("cannot download `{url}`: {reason}")]
    Network {
        /// What was asked for, without credentials.
        url: String,
        /// Why it failed.
        reason: String,
    },
    /// The server wants a login, or refuses.
    #[cfg(feature = "net")]
    #[error("`{url}` is refused (status {status})")]
    Refused {
        /// What was asked for, without credentials.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The mirror does not have the file.
    #[cfg(feature = "net")]
    #[error("the mirror does not have {what}: `{url}` is not there")]
    Missing {
        /// What was wanted, such as a package's name.
        what: String,
        /// What was asked for, without credentials.
        url: String,
    },
    /// The content is not what the signed index says.
    #[cfg(feature = "net")]
    #[error("`{url}` ({what}) is not what the signed index says: {reason}")]
    Mismatch {
        /// What was wanted, such as a package's name.
        what: String,
        /// What was asked for, without credentials.
        url: String,
        /// Which sum or size differs.
        reason: String,
    },
    /// A Release file whose signature is not accepted.
    #[cfg(feature = "net")]
    #[error("the signature of `{url}` is not accepted: {source}")]
    Signature {
        /// The file.
        url: String,
        /// Why.
        source: crate::openpgp::SignatureError,
    },
    /// A signed file that does not say what it should.
    #[cfg(feature = "net")]
    #[error("`{url}` is not usable: {reason}")]
    BadIndex {
        /// The file.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A Release file past its date.
    #[cfg(feature = "net")]
    #[error("`{url}` was valid until {until} only: the mirror is out of date, or someone replays old data")]
    Stale {
        /// The file.
        url: String,
        /// The date it names.
        until: String,
    },
    /// A suite this program does not know.
    #[cfg(feature = "net")]
    #[error("there is no suite `{0}`; known are `bookworm`, `trixie`, `forky` and `sid`")]
    NoSuite(String),
    /// A package the suite does not have.
    #[cfg(feature = "net")]
    #[error("Debian's `{suite}` has no package `{name}`")]
    NoPackage {
        /// The suite.
        suite: String,
        /// The name.
        name: String,
        /// Names near to it.
        nearest: Vec<String>,
    },
    /// A file with further keys that cannot be used.
    #[cfg(feature = "net")]
    #[error("`{}`, which `base.keyrings` names, is not usable: {source}", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// Why.
        source: crate::openpgp::SignatureError,
    },
    /// Offline, and nothing verified is at hand.
    #[cfg(feature = "net")]
    #[error("there is no copy of Debian's `{0}` at hand, and the network may not be used")]
    Offline(String),
}

#[cfg(feature = "net")]
impl Error {
    /// Names what was downloaded from where.
    pub(crate) fn download(
        trouble: crate::http::Trouble,
        what: &str,
        address: &crate::mirror::Address,
    ) -> Error {
        use crate::http::Trouble as T;
        let url = address.to_string();
        match trouble {
            T::NoAnswer(reason) | T::Connection(reason) => Error::Network { url, reason },
            T::Moved(_) => {
                Error::Network { url, reason: "the server sends from one place to the next".into() }
            }
            T::Missing => Error::Missing { what: what.into(), url },
            T::Refused(status) => Error::Refused { url, status },
            T::Status(status) => {
                Error::Network { url, reason: format!("the server answered with status {status}") }
            }
            T::Wrong(sum) => {
                Error::Mismatch { what: what.into(), url, reason: format!("its SHA-256 is {sum}") }
            }
            T::Size(got, want) => Error::Mismatch {
                what: what.into(),
                url,
                reason: format!("it has {got} bytes instead of {want}"),
            },
            T::TooBig => Error::Mismatch { what: what.into(), url, reason: "it is far too big".into() },
            T::File(e) => Error::File(e),
        }
    }
}

impl Diagnose for Error {
    fn kind(&self) -> Kind {
        match self {
            #[cfg(feature = "net")]
            Error::Network { .. } | Error::Refused { .. } | Error::Offline(_) => Kind::Host,
            #[cfg(feature = "net")]
            Error::BadAddress { .. } | Error::NoSuite(_) => Kind::Usage,
            #[cfg(feature = "net")]
            Error::NoPackage { .. } => Kind::NotFound,
            _ => Kind::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        let lines: &[&str] = match self {
            Error::File(e) if e.source.kind() == std::io::ErrorKind::StorageFull => {
                &["the disk is full: free some space and run the command again; what is downloaded is kept"]
            }
            #[cfg(feature = "net")]
            Error::Network { .. } => &[
                "is the network up? behind a proxy, set `https_proxy` and `http_proxy`",
                "another mirror can be named with the setting `base.mirror` or CODCHI_BASE_MIRROR",
            ],
            #[cfg(feature = "net")]
            Error::Refused { .. } => &[
                "credentials go into the mirror's address (`https://USER:PASSWORD@HOST/debian`) or apt's auth.conf",
            ],
            #[cfg(feature = "net")]
            Error::Missing { .. } => &[
                "mirrors delete superseded versions: `codchi update NAME` takes the mirror's present state",
                "or the mirror is not complete: name another with the setting `base.mirror`",
            ],
            #[cfg(feature = "net")]
            Error::Mismatch { .. } => &[
                "the mirror may be changing right now, or a proxy alters files: try again, or use another mirror",
            ],
            #[cfg(feature = "net")]
            Error::Signature { .. } => &[
                "nothing of this mirror was used; name another with the setting `base.mirror`",
                "when a mirror signs with keys of its own, name the file with these in the setting `base.keyrings`",
            ],
            #[cfg(feature = "net")]
            Error::Stale { .. } => &[
                "is the clock right? otherwise use a mirror that is kept up to date (setting `base.mirror`)",
                "to use it as it is, set `accept-expired = true` under `[base]` in config.toml, or CODCHI_BASE_ACCEPT_STALE=1",
            ],
            #[cfg(feature = "net")]
            Error::BadIndex { .. } => &[
                "it may be no mirror of Debian, or be changing right now: try again, or name another with the setting `base.mirror`",
            ],
            #[cfg(feature = "net")]
            Error::Keyring { .. } => &["it has to hold public keys of OpenPGP, armored or not"],
            #[cfg(feature = "net")]
            Error::Offline(_) => &["run the command once with the network"],
            #[cfg(feature = "net")]
            Error::NoPackage { nearest, .. } if !nearest.is_empty() => {
                return vec![format!("did you mean `{}`?", nearest.join("`, `"))];
            }
            _ => &[],
        };
        lines.iter().map(|l| (*l).to_owned()).collect()
    }
}
