//! The secrets of all machines of a person.

use std::path::PathBuf;

use codchi_core::dirs::Dirs;
use codchi_core::document::parse_json;
use codchi_core::name::MachineName;
use codchi_core::settings::{SecretKey, SecretPlace, SecretSettings};
use codchi_fs::{Lock, LockError};
use codchi_sys::memory::Private;
use rustix::fs::{AtFlags, CWD, unlinkat};
use serde::{Deserialize, Serialize};

use crate::file::{self, Key, Keys};
use crate::service::{self, Keyring};
use crate::{Bundle, Result};

/// Index version this program writes.
const VERSION: u32 = 1;
/// In the folder of the secrets; other files have the names of machines and an extension.
const LOCK: &str = "lock";

/// Who can be asked.
#[derive(Clone, Copy)]
pub enum Ask<'a> {
    /// Nobody: what is locked is an error.
    Nobody,
    /// The desktop may show its dialog to unlock a keyring; there is no terminal for a passphrase.
    Desktop,
    /// A person at a terminal, who gives a passphrase; a new one when the argument says so.
    Person(&'a dyn Fn(bool) -> Option<Private>),
}

/// Where the secrets of a machine are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "place", rename_all = "kebab-case")]
pub enum Place {
    /// The desktop's Secret Service.
    SecretService,
    /// An encrypted file.
    File {
        /// What opens it.
        key: Key,
    },
}

impl Place {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Place::SecretService => "in the keyring of the desktop session",
            Place::File { key: Key::SystemdCreds } => {
                "in an encrypted file, whose key systemd-creds seals on this computer"
            }
            Place::File { key: Key::Passphrase } => "in a file that your passphrase encrypts",
            Place::File { key: Key::File } => {
                "in an encrypted file, whose key lies in another file: a copy of one of them alone tells nothing"
            }
        }
    }
}

/// What is known of a machine's secrets without opening them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    version: u32,
    #[serde(flatten)]
    place: Place,
    names: Vec<String>,
}

/// The secrets of all machines of a person.
pub struct Vault<'a> {
    folder: PathBuf,
    key: PathBuf,
    /// The folder with the settings, which tells this person's machines from others of the same keyring.
    settings_folder: String,
    settings: &'a SecretSettings,
    ask: Ask<'a>,
    passphrase: std::cell::RefCell<Option<age::secrecy::SecretString>>,
}

impl<'a> Vault<'a> {
    /// Of these folders.
    pub fn new(dirs: &Dirs, settings: &'a SecretSettings, ask: Ask<'a>) -> Vault<'a> {
        Vault {
            folder: dirs.secrets(),
            key: dirs.secrets_key(),
            settings_folder: dirs.config.display().to_string(),
            settings,
            ask,
            passphrase: Default::default(),
        }
    }

    fn index_file(&self, machine: &MachineName) -> PathBuf {
        self.folder.join(format!("{machine}.json"))
    }

    fn age_file(&self, machine: &MachineName) -> PathBuf {
        self.folder.join(format!("{machine}.age"))
    }

    fn index(&self, machine: &MachineName) -> Result<Option<Index>> {
        let file = self.index_file(machine);
        Ok(match codchi_fs::read_if_exists(&file)? {
            Some(text) => Some(parse_json(&file, &text, &[])?),
            None => None,
        })
    }

    fn write_index(&self, machine: &MachineName, place: Place, names: Vec<String>) -> Result<()> {
        let index = Index { version: VERSION, place, names };
        let text = serde_json::to_string_pretty(&index).unwrap_or_default();
        Ok(codchi_fs::write_atomic(self.index_file(machine), text.as_bytes(), 0o600)?)
    }

    /// Makes the folder and holds it: both it and the key go with the last machine's secrets, and come with the first's. No
    /// person is waited for meanwhile.
    fn lock(&self) -> Result<Lock> {
        let who = format!("process {}", std::process::id());
        loop {
            match codchi_fs::create_private_dir(&self.folder) {
                // It was there when it was made, and gone when it was looked at.
                Err(e) if e.is_already_there() && !self.folder.exists() => continue,
                made => made?,
            }
            match Lock::take(self.folder.join(LOCK), &who) {
                // Between the two another removed the folder.
                Err(LockError::File(e)) if e.is_not_found() => {}
                taken => return Ok(taken?),
            }
        }
    }

    fn keyring<'b>(&'b self, machine: &'b MachineName) -> Keyring<'b> {
        Keyring { machine: machine.as_str(), folder: &self.settings_folder, ask: self.ask }
    }

    fn keys(&self) -> Keys<'_> {
        Keys {
            file: &self.key,
            command: self.settings.passphrase_command.as_deref(),
            ask: self.ask,
            given: &self.passphrase,
        }
    }

    /// Where the secrets of a machine are, or would go.
    pub fn place(&self, machine: &MachineName) -> Result<Place> {
        if let Some(index) = self.index(machine)? {
            return Ok(index.place);
        }
        let use_service = match self.settings.place {
            SecretPlace::SecretService => true,
            SecretPlace::File => false,
            SecretPlace::Auto => service::is_there(),
        };
        if use_service {
            return Ok(Place::SecretService);
        }
        let exists = |extension: &str| self.key.with_extension(extension).exists();
        let key = match self.settings.key {
            SecretKey::SystemdCreds => Key::SystemdCreds,
            SecretKey::Passphrase => Key::Passphrase,
            SecretKey::File => Key::File,
            // One key for all machines: what the first chose.
            SecretKey::Auto if exists("sealed") => Key::SystemdCreds,
            SecretKey::Auto if exists("age") => Key::File,
            SecretKey::Auto if file::creds_work() => Key::SystemdCreds,
            SecretKey::Auto => Key::File,
        };
        Ok(Place::File { key })
    }

    /// The names of a machine's secrets. Nothing is opened for it.
    pub fn names(&self, machine: &MachineName) -> Result<Vec<String>> {
        Ok(self.index(machine)?.map(|i| i.names).unwrap_or_default())
    }

    /// All secrets of a machine.
    pub fn load(&self, machine: &MachineName) -> Result<Bundle> {
        match self.index(machine)? {
            None => Ok(Bundle::new()),
            Some(index) if index.names.is_empty() => Ok(Bundle::new()),
            Some(index) => {
                // A keyring may hold more: what could not be removed with an earlier machine of this name.
                let mut all = self.load_from(machine, index.place)?;
                let more: Vec<String> =
                    all.names().filter(|n| !index.names.iter().any(|i| i == n)).map(String::from).collect();
                more.iter().for_each(|n| drop(all.remove(n)));
                Ok(all)
            }
        }
    }

    fn load_from(&self, machine: &MachineName, place: Place) -> Result<Bundle> {
        match place {
            Place::SecretService => self.keyring(machine).load(),
            Place::File { key } => {
                let file = self.age_file(machine);
                let sealed = codchi_fs::read(&file)?;
                Bundle::decode(&self.keys().open(key, &sealed, &file)?)
            }
        }
    }

    /// Adds or replaces some of a machine's secrets.
    pub fn store(&self, machine: &MachineName, changes: Bundle) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut names = self.names(machine)?;
        let place = self.place(machine)?;
        self.ask_first(place, names.is_empty())?;
        let lock = self.lock()?;
        names.extend(changes.names().map(String::from));
        names.sort();
        names.dedup();
        match place {
            Place::SecretService => {
                // The names first: what is in the keyring can then be removed with the machine, whatever happens.
                self.write_index(machine, place, names)?;
                drop(lock);
                self.keyring(machine).store(&changes)
            }
            Place::File { key } => {
                let mut all = self.load(machine)?;
                all.extend(changes);
                self.write_file(machine, key, &all)?;
                self.write_index(machine, place, names)
            }
        }
    }

    /// Asks for the passphrase where there is one to ask for.
    fn ask_first(&self, place: Place, is_new: bool) -> Result<()> {
        match place {
            Place::File { key } => self.keys().ask_first(key, is_new),
            Place::SecretService => Ok(()),
        }
    }

    fn write_file(&self, machine: &MachineName, key: Key, all: &Bundle) -> Result<()> {
        let sealed = self.keys().seal(key, &all.encode()?)?;
        Ok(codchi_fs::write_atomic(self.age_file(machine), &sealed, 0o600)?)
    }

    /// Removes one secret of a machine; whether there was one.
    pub fn unset(&self, machine: &MachineName, name: &str) -> Result<bool> {
        let Some(index) = self.index(machine)?.filter(|i| i.names.iter().any(|n| n == name)) else {
            return Ok(false);
        };
        self.ask_first(index.place, false)?;
        if index.place == Place::SecretService {
            self.keyring(machine).remove(Some(name))?;
        }
        let _lock = self.lock()?;
        match index.place {
            Place::SecretService => {}
            Place::File { key } => {
                let mut all = self.load_from(machine, index.place)?;
                all.remove(name);
                self.write_file(machine, key, &all)?;
            }
        }
        let names = index.names.into_iter().filter(|n| n != name).collect();
        self.write_index(machine, index.place, names)?;
        Ok(true)
    }

    /// Gives a machine the secrets of another.
    pub fn copy(&self, from: &MachineName, to: &MachineName) -> Result<()> {
        self.store(to, self.load(from)?)
    }

    /// Gives the secrets of a machine to another name. What has it already is left alone.
    pub fn hand_over(&self, from: &MachineName, to: &MachineName) -> Result<()> {
        if self.index(from)?.is_none() {
            return Ok(());
        }
        self.copy(from, to)?;
        self.remove(from)
    }

    /// Removes all secrets of a machine.
    pub fn remove(&self, machine: &MachineName) -> Result<()> {
        let Some(index) = self.index(machine)? else { return self.clean_up(machine) };
        let removed = match index.place {
            Place::SecretService if !index.names.is_empty() => self.keyring(machine).remove(None),
            _ => Ok(()),
        };
        self.clean_up(machine)?;
        removed
    }

    fn clean_up(&self, machine: &MachineName) -> Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        let lock = self.lock()?;
        codchi_fs::remove_if_exists(self.age_file(machine))?;
        codchi_fs::remove_if_exists(self.index_file(machine))?;
        // With the last machine's secrets goes the key.
        if codchi_fs::read_dir(&self.folder)?.iter().all(|entry| entry.file_name() == LOCK) {
            for extension in ["age", "sealed"] {
                codchi_fs::remove_if_exists(self.key.with_extension(extension))?;
            }
            lock.remove()?;
            // It stays where another has put its lock there by now.
            let _ = unlinkat(CWD, &self.folder, AtFlags::REMOVEDIR);
        }
        Ok(())
    }
}
