//! Secrets by name, together.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use codchi_core::protocol::Delivery;
use codchi_sys::memory::Private;

use crate::{Result, SecretsError};

/// Largest value, in bytes: what systemd takes as a credential.
pub const MAX_VALUE: usize = 1 << 20;
/// Largest list, in bytes.
pub const MAX_BUNDLE: usize = 8 << 20;

/// Secrets by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Bundle(BTreeMap<String, Private>);

impl Bundle {
    /// None.
    pub fn new() -> Bundle {
        Bundle::default()
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, name: impl Into<String>, value: Private) {
        self.0.insert(name.into(), value);
    }

    /// Adds or replaces several.
    pub fn extend(&mut self, others: Bundle) {
        self.0.extend(others.0);
    }

    /// Takes others over; those that are not among them stay, or go.
    pub fn renew(&mut self, others: Bundle, others_stay: bool) {
        if others_stay {
            self.extend(others);
        } else {
            *self = others;
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, name: &str) -> Option<Private> {
        self.0.remove(name)
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Private> {
        self.0.get(name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Private)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// As the agent is told them.
    pub fn delivery(&self, keep_others: bool) -> Delivery<'_> {
        Delivery { keep_others, secrets: self.iter().map(|(n, v)| (n, &**v)).collect() }
    }

    /// As bytes.
    pub fn encode(&self) -> Result<Private> {
        let delivery = self.delivery(false);
        let len = delivery.encoded_len();
        if len > MAX_BUNDLE {
            return Err(SecretsError::TooLarge { what: "the list of secrets".into(), limit: MAX_BUNDLE });
        }
        let mut out = Private::zeroed(len).map_err(SecretsError::io("get memory"))?;
        let mut at = 0;
        delivery.encode(&mut |piece| {
            out[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        });
        Ok(out)
    }

    /// From such bytes.
    pub fn decode(bytes: &[u8]) -> Result<Bundle> {
        let delivery = Delivery::parse(bytes).map_err(|e| SecretsError::Damaged(e.to_string()))?;
        let mut all = Bundle::new();
        for (name, value) in delivery.secrets {
            all.insert(name, Private::copy(value).map_err(SecretsError::io("get memory"))?);
        }
        Ok(all)
    }

    /// Writes it to a stream that goes on afterwards.
    pub fn send(&self, to: &mut impl Write) -> Result<()> {
        let bytes = self.encode()?;
        to.write_all(&(bytes.len() as u32).to_le_bytes())
            .and_then(|()| to.write_all(&bytes))
            .map_err(SecretsError::io("hand on the secrets"))
    }

    /// Reads what [`Bundle::send`] wrote.
    pub fn receive(from: &mut impl Read) -> Result<Bundle> {
        let what = "receive the secrets";
        let mut length = [0; 4];
        from.read_exact(&mut length).map_err(SecretsError::io(what))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_BUNDLE {
            return Err(SecretsError::Damaged(format!("{length} bytes are announced")));
        }
        let mut bytes = Private::zeroed(length).map_err(SecretsError::io("get memory"))?;
        from.read_exact(&mut bytes).map_err(SecretsError::io(what))?;
        Bundle::decode(&bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bundle_is_received_as_it_was_sent(
            all in proptest::collection::btree_map("[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", proptest::collection::vec(any::<u8>(), 0..9000), 0..5),
        ) {
            let mut bundle = Bundle::new();
            for (name, value) in &all {
                bundle.insert(name, Private::copy(value).unwrap());
            }
            let mut wire = Vec::new();
            bundle.send(&mut wire).unwrap();
            wire.extend_from_slice(b"and more");
            let mut rest = &wire[..];
            prop_assert_eq!(Bundle::receive(&mut rest).unwrap(), bundle);
            prop_assert_eq!(rest, b"and more");
        }
    }

    #[test]
    fn an_announced_length_is_not_believed() {
        assert!(Bundle::receive(&mut &[255, 255, 255, 255, 1][..]).is_err());
        assert!(Bundle::receive(&mut &[9, 0, 0, 0, 0][..]).is_err());
    }
}
