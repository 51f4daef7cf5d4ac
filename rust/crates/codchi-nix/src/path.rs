//! Store paths.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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

    /// Where content with this hash (of its archive, as `sha256-...`) is when it was added under a name: what Nix's manual
    /// calls a fixed-output path of a recursive hash. Nix gives every flake's source the name `source`.
    pub fn of_content(nar_hash: &str, name: &str) -> Option<StorePath> {
        let hash = crate::drv::sha256_hex(nar_hash)?;
        let sum = Sha256::digest(format!("source:sha256:{hash}:{STORE_DIR}:{name}"));
        let mut short = [0u8; 20];
        for (i, b) in sum.iter().enumerate() {
            short[i % 20] ^= b;
        }
        format!("{STORE_DIR}/{}-{name}", crate::drv::to_base32(&short)).parse().ok()
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
    fn the_path_of_a_content_is_what_nix_makes_of_it() {
        // Both as Nix 2.26 and 2.34 print them.
        let of = |hash, name| StorePath::of_content(hash, name).unwrap().to_string();
        assert_eq!(of("sha256-+64MEAu7YGi8FgTN82XZgAfh1a26XR/JJ7M1ov1N08c=", "codchi-base"), P);
        let source = "/nix/store/5g7f9wfihq2x6xq79dy1zypwr6r2vvs6-source";
        assert_eq!(of("sha256-ikYNZP4FwwPyQStcXQNVtdhzxE6Pm0cZlT/2v8INyMU=", "source"), source);
        assert_eq!(StorePath::of_content("sha256-x", "source"), None);
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
