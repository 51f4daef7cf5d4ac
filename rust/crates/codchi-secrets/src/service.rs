//! The desktop's Secret Service (freedesktop.org Secret Service API 0.2).

use std::collections::HashMap;

use codchi_sys::memory::{Private, wipe};
use secret_service::EncryptionType;
use secret_service::blocking::{Collection, Item, SecretService};

use crate::vault::Ask;
use crate::{Bundle, Result, SecretsError};

/// The secrets of one machine in the Secret Service.
pub struct Keyring<'a> {
    /// The machine.
    pub machine: &'a str,
    /// What tells the machines of one settings folder from those of another.
    pub folder: &'a str,
    /// Whether a person may be asked to unlock it.
    pub ask: Ask<'a>,
}

fn fails(what: &'static str) -> impl FnOnce(secret_service::Error) -> SecretsError {
    move |e| match e {
        secret_service::Error::Locked | secret_service::Error::Prompt => SecretsError::Locked,
        secret_service::Error::Unavailable => SecretsError::NoService("nobody offers one".into()),
        other => SecretsError::Service { what, reason: other.to_string() },
    }
}

/// Whether a session bus can be there at all; asking for one otherwise would start a bus.
fn has_bus() -> bool {
    std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some_and(|v| !v.is_empty())
        || std::env::var_os("XDG_RUNTIME_DIR")
            .is_some_and(|d| rustix::fs::stat(std::path::Path::new(&d).join("bus")).is_ok())
}

fn connect() -> Result<SecretService<'static>> {
    if !has_bus() {
        return Err(SecretsError::NoService("there is no session bus".into()));
    }
    SecretService::connect(EncryptionType::Dh).map_err(|e| SecretsError::NoService(e.to_string()))
}

/// Whether new secrets can go there.
pub fn is_there() -> bool {
    has_bus() && connect().is_ok_and(|s| s.get_default_collection().is_ok())
}

impl Keyring<'_> {
    fn attributes<'b>(&'b self, name: Option<&'b str>) -> HashMap<&'b str, &'b str> {
        let mut all =
            HashMap::from([("application", "codchi"), ("machine", self.machine), ("folder", self.folder)]);
        all.extend(name.map(|n| ("secret", n)));
        all
    }

    fn unlock(&self, collection: &Collection<'_>) -> Result<()> {
        if !collection.is_locked().map_err(fails("tell whether it is locked"))? {
            return Ok(());
        }
        if matches!(self.ask, Ask::Nobody) {
            return Err(SecretsError::Locked);
        }
        collection.unlock().map_err(fails("be unlocked"))
    }

    fn with_items<T>(
        &self,
        name: Option<&str>,
        then: impl FnOnce(Vec<(String, &Item<'_>)>) -> Result<T>,
    ) -> Result<T> {
        let service = connect()?;
        let found = service.search_items(self.attributes(name)).map_err(fails("be searched"))?;
        let mut items = found.unlocked;
        for item in found.locked {
            if matches!(self.ask, Ask::Nobody) {
                return Err(SecretsError::Locked);
            }
            item.unlock().map_err(fails("be unlocked"))?;
            items.push(item);
        }
        let mut named = Vec::new();
        for item in &items {
            let attributes = item.get_attributes().map_err(fails("describe an item"))?;
            if let Some(name) = attributes.get("secret") {
                named.push((name.clone(), item));
            }
        }
        then(named)
    }

    /// All of them.
    pub fn load(&self) -> Result<Bundle> {
        self.with_items(None, |items| {
            let mut all = Bundle::new();
            for (name, item) in items {
                let mut value = item.get_secret().map_err(fails("give a secret"))?;
                let held = Private::copy(&value).map_err(SecretsError::io("get memory"));
                wipe(&mut value);
                all.insert(name, held?);
            }
            Ok(all)
        })
    }

    /// Adds or replaces some.
    pub fn store(&self, changes: &Bundle) -> Result<()> {
        let service = connect()?;
        let collection = service.get_default_collection().map_err(fails("name its default keyring"))?;
        self.unlock(&collection)?;
        for (name, value) in changes.iter() {
            let label = format!("{name} of the code machine {}", self.machine);
            collection
                .create_item(&label, self.attributes(Some(name)), value, true, "application/octet-stream")
                .map_err(fails("keep a secret"))?;
        }
        Ok(())
    }

    /// Removes one, or all.
    pub fn remove(&self, name: Option<&str>) -> Result<()> {
        self.with_items(name, |items| {
            for (_, item) in items {
                item.delete().map_err(fails("remove a secret"))?;
            }
            Ok(())
        })
    }
}
