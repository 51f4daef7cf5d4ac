//! The manifest that a built machine carries at `codchi/manifest.json`, and the needs that evaluation alone gives.
//!
//! The shape is what `modules/` and `drivers/*/host.nix` emit; nothing in it depends on a host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::port::Protocol;

/// The manifest version this program writes and reads best.
pub const MANIFEST_VERSION: u32 = 1;

/// All a host must know of a built machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`] of the writer.
    pub version: u32,
    /// Version of the Codchi modules that wrote it.
    pub codchi: String,
    /// Driver it was evaluated for.
    pub driver: String,
    /// Nix system, such as `x86_64-linux`.
    pub system: String,
    /// Where packages and options came from.
    pub base: Base,
    /// `system.stateVersion`.
    pub state_version: String,
    /// The person's account in the machine.
    pub user: User,
    /// What the host must supply.
    pub needs: Needs,
    /// What of the store the machine sees.
    pub isolation: Isolation,
    /// Limits.
    pub resources: Resources,
    /// Store path of the init script, run once as the user; none: none.
    pub init_script: Option<String>,
    /// The driver's engine settings, rendered by `drivers/NAME/host.nix`, with variables `@name@`.
    pub engine: serde_json::Value,
}

/// Where packages and the option set come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Base {
    /// `nixpkgs` or `debian`.
    pub name: String,
    /// For people, such as `NixOS 26.05` or `Debian 12 (bookworm)`.
    pub label: String,
}

/// The person's account in the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Login name.
    pub name: String,
    /// Numeric id in the machine.
    pub uid: u32,
    /// Numeric id of its group, where that is fixed.
    #[serde(default)]
    pub gid: Option<u32>,
    /// Home directory.
    pub home: String,
}

/// What evaluation alone tells of the demands on the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Needs {
    /// Secrets by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Capabilities without which the machine is refused.
    pub required_capabilities: Vec<String>,
    /// Capabilities used when present.
    pub optional_capabilities: Vec<String>,
    /// By which protocols it shows windows, of `x11` and `wayland`; none named: either.
    #[serde(default)]
    pub displays: Vec<String>,
    /// USB devices that are handed over, as `vendor:product`.
    #[serde(default)]
    pub usb_devices: Vec<String>,
    /// Which of the host's own secrets are asked for.
    pub host_secrets: BTreeMap<String, bool>,
    /// Host folders by path in the machine.
    pub mounts: BTreeMap<String, Mount>,
    /// Forwarded ports by port in the machine.
    pub ports: BTreeMap<String, Port>,
    /// `driver.settings.<driver>` as written, but for keys that the driver lets every module set: to be consented to.
    pub driver_settings: serde_json::Value,
}

/// A secret a person supplies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Shown when it is asked for.
    pub description: String,
    /// `env`, `file` or `credential`.
    pub kind: String,
    /// Where a file secret appears.
    pub path: Option<String>,
    /// Owner of a file secret.
    pub owner: String,
    /// Octal mode of a file secret.
    pub mode: String,
    /// Whether the machine is refused without it.
    pub required: bool,
    /// Value when none is given; not secret.
    pub default: Option<String>,
    /// Regular expression the value must match.
    pub check: Option<String>,
    /// Units that get it by LoadCredential.
    pub services: Vec<String>,
    /// Units of the user's own manager that do.
    #[serde(default)]
    pub user_services: Vec<String>,
}

/// A host folder in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Path on the host; `~` is the host user's home.
    pub source: String,
    /// Not writable in the machine.
    pub read_only: bool,
    /// Left out where the host lacks it.
    pub optional: bool,
}

/// A forwarded port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Port on the host.
    pub host: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What of the store a machine sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// `shared` or `closure`.
    pub store: String,
}

/// Limits, where the driver supports them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processors, fractions allowed.
    pub cpus: Option<f64>,
    /// Bytes.
    pub disk: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}
