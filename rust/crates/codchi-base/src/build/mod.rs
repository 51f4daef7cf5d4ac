//! The builder of the base's derivations. Each action reads its request from the derivation's structured attributes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub mod alternatives;
pub mod caches;
pub mod certificates;
pub mod deb;
pub mod join;
pub mod ld_cache;
pub mod lent;
pub mod loader;
pub mod merge;
pub mod package;
pub mod toplevel;
pub mod tree;
pub mod units;
pub mod version;

/// What an unpacked package says about itself, at `nix-support/deb.json` of its store path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DebInfo {
    /// Package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// Source package.
    pub source: String,
    /// Bytes below `usr`.
    pub size: u64,
    /// Fields `Depends`, `Provides`, `Conflicts`, `Breaks` as written.
    pub control: BTreeMap<String, String>,
    /// Links its maintainer script would register.
    pub alternatives: Vec<alternatives::Alternative>,
    /// Directories below `/var` it owns: path, octal mode, user, group.
    pub var: Vec<(String, String, String, String)>,
}

/// Path of [`DebInfo`] in an unpacked package.
pub const INFO: &str = "nix-support/deb.json";
/// In a package: the unpacked packages it needs, one store path per line.
pub const CLOSURE: &str = "nix-support/deb-closure";

impl DebInfo {
    /// Reads the description of an unpacked package.
    pub fn of(raw: &Path) -> Result<DebInfo> {
        read_json(&raw.join(INFO))
    }
}

/// Reads a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = codchi_fs::read(path)?;
    serde_json::from_slice(&text).map_err(|source| Error::Parse { path: path.into(), source })
}

#[derive(Deserialize)]
struct Request<T> {
    outputs: BTreeMap<String, PathBuf>,
    #[serde(flatten)]
    action: T,
}

fn request<T: DeserializeOwned>() -> Result<(PathBuf, T)> {
    let file =
        std::env::var_os("NIX_ATTRS_JSON_FILE").map(PathBuf::from).unwrap_or_else(|| ".attrs.json".into());
    let mut r: Request<T> = read_json(&file)?;
    let out =
        r.outputs.remove("out").ok_or_else(|| Error::Usage("the derivation has no output `out`".into()))?;
    Ok((out, r.action))
}

/// Runs one action of the builder.
pub fn run(action: &str) -> Result<()> {
    match action {
        "unpack" => request().and_then(|(out, r)| deb::run(&out, &r)),
        "package" => request().and_then(|(out, r)| package::run(&out, &r)),
        "tree" => request().and_then(|(out, r)| tree::run(&out, &r)),
        "units" => request().and_then(|(out, r)| units::run(&out, &r)),
        "join" => request().and_then(|(out, r)| join::run(&out, &r)),
        "layer" => request().and_then(|(out, r)| merge::layer(&out, &r)),
        "lent" => request().and_then(|(out, r)| lent::run(&out, &r)),
        "merge" => request().and_then(|(out, r)| merge::run(&out, &r)),
        "certificates" => request().and_then(|(out, r)| certificates::run(&out, &r)),
        "toplevel" => request().and_then(|(out, r)| toplevel::run(&out, &r)),
        "tools" => request().and_then(|(out, r)| package::tools(&out, &r)),
        other => Err(Error::Usage(format!("unknown action `{other}`"))),
    }
}
