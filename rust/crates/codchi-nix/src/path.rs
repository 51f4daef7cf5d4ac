//! Store paths.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::NixError;

/// The directory all store paths are in, as Nix and machines see it.
pub const STORE_DIR: &str = "/nix/store";

/// A path directly in `/nix/store`, such as `/nix/store/<hash>-hello`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(String);

impl StorePath {
    /// The whole path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.0[STORE_DIR.len() + 1..]
    }

    /// The part after the hash.
    pub fn name(&self) -> &str {
        &self.base_name()[33..]
    }

    /// The path as seen by Nix and by machines; the host may have it elsewhere.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The store path that a path in the store lies in, such as `/nix/store/<hash>-x` of `/nix/store/<hash>-x/bin/x`.
    pub fn containing(path: &str) -> Option<StorePath> {
        let rest = path.strip_prefix(STORE_DIR)?.strip_prefix('/')?;
        let base = rest.split('/').next()?;
        format!("{STORE_DIR}/{base}").parse().ok()
    }
}

impl FromStr for StorePath {
    type Err = NixError;
    fn from_str(s: &str) -> Result<Self, NixError> {
        let base = s.strip_prefix(STORE_DIR).and_then(|s| s.strip_prefix('/')).unwrap_or("");
        let b = base.as_bytes();
        // Nix's base 32 has no e, o, t, u; names may hold these characters only, 211 of them.
        let ok = b.len() > 33
            && b.len() <= 33 + 211
            && b[32] == b'-'
            && b[..32].iter().all(|c| b"0123456789abcdfghijklmnpqrsvwxyz".contains(c))
            && b[33..].iter().all(|c| c.is_ascii_alphanumeric() || b"+-._?=".contains(c));
        if ok { Ok(StorePath(s.into())) } else { Err(NixError::StorePath(s.into())) }
    }
}

impl TryFrom<String> for StorePath {
    type Error = NixError;
    fn try_from(s: String) -> Result<Self, NixError> {
        s.parse()
    }
}

impl From<StorePath> for String {
    fn from(p: StorePath) -> String {
        p.0
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: &str = "/nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-codchi-base";

    #[test]
    fn a_store_path_has_a_hash_and_a_name() {
        let p: StorePath = P.parse().unwrap();
        assert_eq!(p.name(), "codchi-base");
        assert_eq!(StorePath::containing(&format!("{P}/lib/x")).as_ref(), Some(&p));
    }

    #[test]
    fn what_could_lead_out_of_the_store_is_refused() {
        for bad in [
            "",
            "/nix/store",
            "/nix/store/..",
            "/nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-",
            "/nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-a/../b",
            "/nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-a/b",
            "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-a",
            "/nix/store/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-a b",
            "/nix/stores/2qm2yn86wdws0cjv58mmnpfmm0h2hk0c-a",
        ] {
            assert!(bad.parse::<StorePath>().is_err(), "{bad}");
        }
    }
}
