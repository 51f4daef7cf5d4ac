//! What an export says of itself.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::document::{DocumentError, parse_json};
use crate::name::{DriverName, MachineName};

/// The version of [`Export`] this program writes. It reads all before.
pub const EXPORT_VERSION: u32 = 1;

/// The record's file, beside the machine's flake.nix and flake.lock in an export. It comes first in the tar.
pub const FILE: &str = "codchi.json";

/// Where record and flake lie in an export, unless the machine has something of that name itself.
pub const FOLDERS: [&str; 2] = ["etc/nixos", "etc/nixos-codchi"];

/// `codchi.json`: which machine this is, and what it was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Export {
    /// [`EXPORT_VERSION`] of the writer.
    pub version: u32,
    /// The version of Codchi that wrote it.
    pub codchi: String,
    /// The machine.
    pub name: MachineName,
    /// What it ran on.
    pub driver: DriverName,
    /// Where packages and options come from: `nixpkgs` or `debian`.
    pub base: String,
    /// Suite of the built-in base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// When, in seconds since 1970.
    pub exported: u64,
    /// The system it had.
    pub toplevel: String,
    /// Whether its init script has still to run.
    #[serde(default)]
    pub init_script_pending: bool,
    /// Inputs of the flake that are nowhere to be fetched: store paths, which lie at `inputs/HASH/NAME` beside this file.
    #[serde(default)]
    pub inputs: Vec<String>,
}

/// Where an input lies beside the record: `inputs/HASH/NAME`, so that adding it to a store gives the same path.
pub fn input_folder(path: &str) -> Option<String> {
    let (hash, name) = path.strip_prefix("/nix/store/")?.split_once('-')?;
    let plain = |s: &str| !s.is_empty() && !s.starts_with('.') && !s.contains('/');
    (plain(hash) && plain(name)).then(|| format!("inputs/{hash}/{name}"))
}

impl Export {
    /// Parses a record; `file` is named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Export, DocumentError> {
        parse_json(file, text, &[])
    }
}

/// What `tar --json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    /// 1.
    pub version: u32,
    /// The machine.
    pub machine: MachineName,
    /// The file that was written.
    pub file: String,
    /// Its size.
    pub size: u64,
    /// Files, folders and links in it.
    pub entries: u64,
    /// Bytes of content in it, holes left out.
    pub bytes: u64,
    /// What could not be exported: name and reason, the first ones.
    pub lost: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_lies_where_its_name_says_and_nowhere_else() {
        assert_eq!(input_folder("/nix/store/abc-codchi-base").unwrap(), "inputs/abc/codchi-base");
        for bad in [
            "/nix/store/abc",
            "/etc/abc-x",
            "/nix/store/abc-x/y",
            "/nix/store/..-x",
            "/nix/store/abc-..",
            "/nix/store/a/b-c",
        ] {
            assert_eq!(input_folder(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_record_of_the_first_version_is_read() {
        let text = r#"{"version":1,"codchi":"0.1.0","name":"m","driver":"native","base":"debian","exported":1,"toplevel":"/nix/store/x"}"#;
        let record = Export::parse(Path::new("codchi.json"), text).unwrap();
        assert_eq!((record.name.as_str(), record.inputs.len(), record.init_script_pending), ("m", 0, false));
        assert!(Export::parse(Path::new("codchi.json"), r#"{"version":1}"#).is_err());
    }
}
