//! An encrypted file (age, https://age-encryption.org/v1), and the key that opens it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use age::secrecy::{ExposeSecret, SecretString};
use codchi_sys::memory::Private;
use serde::{Deserialize, Serialize};

use crate::vault::Ask;
use crate::{MAX_BUNDLE, Result, SecretsError};

/// Name that a sealed key carries, so that no other credential can take its place.
const SEALED_NAME: &str = "codchi-secrets-key";

/// Most work of a passphrase, as a power of two: some seconds.
const MOST_WORK: u8 = 22;

/// What opens the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// A key that systemd-creds seals, by the TPM or a key of this host.
    SystemdCreds,
    /// A passphrase.
    Passphrase,
    /// A key in a file that only its owner may read.
    File,
}

/// What opens a file, ready for use.
enum Opener {
    Identity(age::x25519::Identity),
    Passphrase(SecretString),
}

/// Where keys are, and who can be asked for a passphrase.
pub struct Keys<'a> {
    /// The file of the key, sealed or not.
    pub file: &'a Path,
    /// A shell command that prints the passphrase.
    pub command: Option<&'a str>,
    /// Who else can be asked.
    pub ask: Ask<'a>,
    /// The passphrase, once it was given.
    pub given: &'a std::cell::RefCell<Option<SecretString>>,
}

fn creds(args: &[&str], input: &[u8], what: &'static str) -> Result<Private> {
    let failed = |reason: String| SecretsError::Creds { what, reason };
    let mut child = Command::new("systemd-creds")
        .args(args)
        .args(["-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).map_err(|e| failed(e.to_string()))?;
    }
    let out = match &mut child.stdout {
        Some(stdout) => Private::read_from(stdout, 1 << 16).map_err(|e| failed(e.to_string()))?,
        None => return Err(failed("it has no output".into())),
    };
    let rest = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if rest.status.success() {
        return Ok(out);
    }
    Err(failed(String::from_utf8_lossy(&rest.stderr).trim().into()))
}

/// Whether systemd-creds seals and opens for this user on this host.
pub fn creds_work() -> bool {
    let name = format!("--name={SEALED_NAME}");
    let Ok(sealed) = creds(&["encrypt", &name], b"probe", "seal a key") else { return false };
    creds(&["decrypt", &name], &sealed, "open a key").is_ok_and(|p| *p == *b"probe")
}

impl Keys<'_> {
    fn identity(&self, key: Key, make: bool) -> Result<age::x25519::Identity> {
        let name = format!("--name={SEALED_NAME}");
        let file = self.file.with_extension(if key == Key::File { "age" } else { "sealed" });
        let text = match codchi_fs::read(&file) {
            Ok(bytes) if key == Key::File => Private::copy(&bytes).map_err(SecretsError::io("get memory"))?,
            Ok(sealed) => creds(&["decrypt", &name], &sealed, "open the key of the secrets")?,
            Err(e) if e.is_not_found() && make => {
                let new = age::x25519::Identity::generate();
                let text = new.to_string();
                let text = text.expose_secret().as_bytes();
                if let Some(dir) = file.parent() {
                    codchi_fs::create_private_dir(dir)?;
                }
                if key == Key::File {
                    codchi_fs::write_atomic(&file, text, 0o600)?;
                } else {
                    let sealed = creds(&["encrypt", &name], text, "seal the key of the secrets")?;
                    codchi_fs::write_atomic(&file, &*sealed, 0o600)?;
                }
                return Ok(new);
            }
            Err(e) if e.is_not_found() => return Err(SecretsError::NoKey(file.display().to_string())),
            Err(e) => return Err(e.into()),
        };
        let text = std::str::from_utf8(&text).unwrap_or_default().trim();
        age::x25519::Identity::from_str(text).map_err(|reason| SecretsError::Undecryptable {
            file: file.display().to_string(),
            reason: reason.into(),
        })
    }

    fn passphrase(&self, new: bool) -> Result<SecretString> {
        let text = match (self.command, &self.ask) {
            (Some(command), _) => {
                let mut child = Command::new("sh")
                    .args(["-c", command])
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .map_err(SecretsError::io("run `passphrase-command`"))?;
                let out = match &mut child.stdout {
                    Some(s) => Private::read_from(s, 4096).map_err(SecretsError::io("read a passphrase"))?,
                    None => return Err(SecretsError::NoPassphrase),
                };
                let status = child.wait().map_err(SecretsError::io("run `passphrase-command`"))?;
                if !status.success() || out.is_empty() {
                    return Err(SecretsError::NoPassphrase);
                }
                out
            }
            (None, Ask::Person(ask)) => ask(new).ok_or(SecretsError::NoPassphrase)?,
            (None, Ask::Nobody | Ask::Desktop) => return Err(SecretsError::NoPassphrase),
        };
        let line = std::str::from_utf8(&text).map_err(|_| SecretsError::WrongPassphrase)?;
        Ok(SecretString::from(line.trim_end_matches(['\n', '\r']).to_owned()))
    }

    fn opener(&self, key: Key, make: bool) -> Result<Opener> {
        Ok(match key {
            Key::Passphrase => {
                let given = self.given.borrow().clone();
                let passphrase = given.map_or_else(|| self.passphrase(make), Ok)?;
                *self.given.borrow_mut() = Some(passphrase.clone());
                Opener::Passphrase(passphrase)
            }
            other => Opener::Identity(self.identity(other, make)?),
        })
    }

    /// Asks for the passphrase, if one opens the secrets; a new one when the argument says so.
    pub fn ask_first(&self, key: Key, new: bool) -> Result<()> {
        if key == Key::Passphrase {
            self.opener(key, new)?;
        }
        Ok(())
    }

    /// Encrypts.
    pub fn seal(&self, key: Key, plain: &[u8]) -> Result<Vec<u8>> {
        let damaged = |e: String| SecretsError::Service { what: "encrypt", reason: e };
        let encryptor = match self.opener(key, true)? {
            Opener::Identity(identity) => {
                let to = identity.to_public();
                age::Encryptor::with_recipients(std::iter::once(&to as &dyn age::Recipient))
                    .map_err(|e| damaged(e.to_string()))?
            }
            Opener::Passphrase(p) => age::Encryptor::with_user_passphrase(p),
        };
        let mut out = Vec::new();
        let mut writer = encryptor.wrap_output(&mut out).map_err(SecretsError::io("encrypt"))?;
        writer.write_all(plain).map_err(SecretsError::io("encrypt"))?;
        writer.finish().map_err(SecretsError::io("encrypt"))?;
        Ok(out)
    }

    /// Decrypts; `file` is named in errors.
    pub fn open(&self, key: Key, sealed: &[u8], file: &Path) -> Result<Private> {
        let broken =
            |reason: String| SecretsError::Undecryptable { file: file.display().to_string(), reason };
        let decryptor = age::Decryptor::new(sealed).map_err(|e| broken(e.to_string()))?;
        let opener = self.opener(key, false)?;
        let opened = match opener {
            Opener::Identity(identity) => decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)),
            Opener::Passphrase(p) => {
                let mut identity = age::scrypt::Identity::new(p);
                // By itself it takes a busy computer's measure for the most that a file may ask.
                identity.set_max_work_factor(MOST_WORK);
                decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
            }
        };
        let mut reader = opened.map_err(|e| match (key, e) {
            (Key::Passphrase, age::DecryptError::DecryptionFailed | age::DecryptError::NoMatchingKeys) => {
                self.given.borrow_mut().take();
                SecretsError::WrongPassphrase
            }
            (_, e) => broken(e.to_string()),
        })?;
        Private::read_from(&mut reader, MAX_BUNDLE).map_err(|e| broken(e.to_string()))
    }
}
