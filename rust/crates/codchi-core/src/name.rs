//! Names that must not be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// The text does not have the form of the name.
    #[error(
        "`{given}` is not allowed as a {what}: use 1 to 63 lower-case letters, digits and `-`, starting with a letter and not ending with `-`"
    )]
    Form {
        /// The kind of name.
        what: &'static str,
        /// What was given.
        given: String,
    },
    /// The name has a meaning of its own.
    #[error("`{given}` is reserved and cannot be used as {what}")]
    Reserved {
        /// The kind of name.
        what: &'static str,
        /// What was given.
        given: String,
    },
}

fn label(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=63).contains(&b.len())
        && b[0].is_ascii_lowercase()
        && b[b.len() - 1] != b'-'
        && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                let reserved: &[&str] = $reserved;
                if !label(s) {
                    Err(NameError::Form { what: $what, given: s.into() })
                } else if reserved.contains(&s) {
                    Err(NameError::Reserved { what: $what, given: s.into() })
                } else {
                    Ok(Self(s.into()))
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.0.as_ref()
            }
        }
    };
}

name_type!(
    /// The name of a machine on this host.
    MachineName, "machine name", &[]
);
name_type!(
    /// The name of an input of a machine flake.
    InputName, "input name", &["self", "codchi", "nixpkgs"]
);
name_type!(
    /// The name of a driver.
    DriverName, "driver name", &[]
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_follow_the_rule() {
        for good in ["a", "my-project", "a1", &"a".repeat(63)] {
            assert!(good.parse::<MachineName>().is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "-a", "a-", "a_b", "a b", "a/b", "ä", "..", &"a".repeat(64)] {
            assert!(matches!(bad.parse::<MachineName>(), Err(NameError::Form { .. })), "{bad}");
        }
    }

    #[test]
    fn reserved_inputs_are_refused() {
        assert!(matches!("nixpkgs".parse::<InputName>(), Err(NameError::Reserved { .. })));
    }
}
