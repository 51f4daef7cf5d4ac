//! A person's settings: `config.toml`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{DocumentError, parse_toml};

/// The settings version this program writes.
pub const SETTINGS_VERSION: u32 = 1;

/// `config.toml`. Every key has a default; an unknown key is an error, so that a typing mistake is not silence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// [`SETTINGS_VERSION`] of the writer.
    pub version: u32,
    /// What every new machine starts with.
    pub defaults: Defaults,
    /// The built-in base.
    pub base: BaseSettings,
    /// The store.
    pub store: StoreSettings,
    /// Where secrets are kept.
    pub secrets: SecretSettings,
    /// Whose signatures on certificates are trusted.
    pub certificates: CertificateSettings,
    /// Whether sources have moved on.
    pub updates: UpdateSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            version: SETTINGS_VERSION,
            defaults: Defaults::default(),
            base: BaseSettings::default(),
            store: StoreSettings::default(),
            secrets: SecretSettings::default(),
            certificates: CertificateSettings::default(),
            updates: UpdateSettings::default(),
        }
    }
}

/// What every new machine starts with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Defaults {
    /// A person's own modules, as `SOURCE#attribute`.
    pub modules: Vec<String>,
    /// Driver of new machines.
    pub driver: Option<String>,
    /// `nixpkgs` or `debian`.
    pub base: Option<String>,
}

/// Where secrets are kept. What a machine has already stays where it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct SecretSettings {
    /// Where new ones go.
    pub place: SecretPlace,
    /// What opens the file, where they go into one.
    pub key: SecretKey,
    /// A shell command that prints the passphrase, so that nobody has to type it.
    pub passphrase_command: Option<String>,
}

/// Certificate authorities beside those that this computer trusts: of a company's proxy, say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct CertificateSettings {
    /// Files with certificates in PEM.
    pub extra: Vec<PathBuf>,
}

/// Where secrets go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretPlace {
    /// The desktop's Secret Service where there is one, else a file.
    #[default]
    Auto,
    /// The desktop's Secret Service.
    SecretService,
    /// An encrypted file.
    File,
}

/// What opens an encrypted file of secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretKey {
    /// A key that systemd-creds seals where it can, else one in a file.
    #[default]
    Auto,
    /// A key that systemd-creds seals, by the TPM or a key of this host.
    SystemdCreds,
    /// A passphrase.
    Passphrase,
    /// A key in a file that only its owner may read.
    File,
}

/// The built-in base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct BaseSettings {
    /// Address of a Debian mirror, such as `http://deb.debian.org/debian`; none: that of the host's apt, else Debian's.
    pub mirror: Option<String>,
    /// Address of the security archive; none: beside the mirror where it has one, else Debian's.
    pub security_mirror: Option<String>,
    /// Suite of new machines.
    pub suite: String,
    /// Use a mirror's lists past their Valid-Until date.
    pub accept_expired: bool,
    /// Files with further OpenPGP keys (armored or binary) that may sign a Release file.
    pub keyrings: Vec<PathBuf>,
}

impl Default for BaseSettings {
    fn default() -> Self {
        BaseSettings {
            mirror: None,
            security_mirror: None,
            suite: "bookworm".into(),
            accept_expired: false,
            keyrings: Vec::new(),
        }
    }
}

/// Whether sources have moved on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct UpdateSettings {
    /// Let `status` have the git servers of sources asked in the background, at most once an hour.
    pub check: bool,
}

impl Default for UpdateSettings {
    fn default() -> Self {
        UpdateSettings { check: true }
    }
}

/// Which store to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// The host's where it has a recent enough daemon, else an own one.
    #[default]
    Auto,
    /// The host's.
    Host,
    /// An own one.
    Own,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct StoreSettings {
    /// Which store to use.
    pub kind: StoreKind,
    /// Where the official Nix binary tarball is fetched from; none: nixos.org, then the Debian mirror.
    pub nix_tarball: Option<String>,
    /// Further lines for nix.conf.
    pub nix_conf: Option<String>,
}

impl Settings {
    /// Parses `config.toml`; `file` is named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Settings, DocumentError> {
        parse_toml(file, text, SETTINGS_VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(Settings::parse(Path::new("c"), "").unwrap(), Settings::default());
    }

    #[test]
    fn mistakes_are_errors_that_name_the_line() {
        let e = Settings::parse(Path::new("c.toml"), "version = 1\n[base]\nmiror = \"x\"\n").unwrap_err();
        assert!(e.to_string().starts_with("`c.toml` line 3: unknown field `miror`"), "{e}");
        let e = Settings::parse(Path::new("c.toml"), "version = 2\n").unwrap_err();
        assert!(matches!(e, DocumentError::Newer { found: 2, .. }));
        let e = Settings::parse(Path::new("c.toml"), "version = 1\nx = [\n").unwrap_err();
        assert!(matches!(e, DocumentError::Syntax { line: 2 | 3, .. }), "{e}");
    }
}
