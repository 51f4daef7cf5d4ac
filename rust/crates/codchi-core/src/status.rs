//! The documents that `status` and others print as JSON.

use serde::Serialize;

use crate::name::MachineName;
use crate::port::{Forward, Origin};

/// `codchi status --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Status {
    /// Schema version of this document: 1.
    pub version: u32,
    /// The machines, by name.
    pub machines: Vec<MachineStatus>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineStatus {
    /// Its name.
    pub name: MachineName,
    /// What it runs on.
    pub driver: String,
    /// Where packages and options come from.
    pub base: String,
    /// What it does now.
    pub state: State,
    /// Why it failed, where that is known.
    pub reason: Option<String>,
    /// Host process id of its PID 1.
    pub leader: Option<u32>,
    /// The generation in use.
    pub generation: Option<u32>,
    /// How that relates to the machine folder.
    pub config: Config,
    /// Its network addresses.
    pub addresses: Vec<String>,
    /// The system in use.
    pub toplevel: Option<String>,
    /// Bytes of its root file system, the store not counted; none where it was not measured.
    pub disk_bytes: Option<u64>,
}

/// What a machine does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is up.
    Running,
    /// It is off.
    Stopped,
    /// It is on its way up.
    Starting,
    /// It went down by itself, or did not come up.
    Failed,
}

impl State {
    /// As in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Stopped => "stopped",
            State::Starting => "starting",
            State::Failed => "failed",
        }
    }
}

/// How the system in use relates to the machine folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Config {
    /// A rebuild would change nothing.
    UpToDate,
    /// The machine folder, or a local source, changed since.
    Modified,
    /// A remote source moved on.
    UpdatesAvailable,
    /// An earlier generation was chosen.
    RolledBack,
}

impl Config {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Config::UpToDate => "up to date",
            Config::Modified => "modified",
            Config::UpdatesAvailable => "updates available",
            Config::RolledBack => "rolled back",
        }
    }
}

/// `codchi generations --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Generations {
    /// Schema version of this document: 1.
    pub version: u32,
    /// The machine.
    pub machine: MachineName,
    /// Oldest first.
    pub generations: Vec<GenerationStatus>,
}

/// One generation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct GenerationStatus {
    /// Its number.
    pub number: u32,
    /// Unix time it was built.
    pub created: u64,
    /// Whether it is the one in use.
    pub current: bool,
    /// The system.
    pub toplevel: String,
    /// The base, for people.
    pub base: String,
}

/// `codchi port list --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Ports {
    /// Schema version of this document: 1.
    pub version: u32,
    /// The machine.
    pub machine: MachineName,
    /// By port in the machine.
    pub ports: Vec<PortStatus>,
}

/// A port on 127.0.0.1 of the host that leads into a machine, or should.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct PortStatus {
    /// The ports.
    #[serde(flatten)]
    pub forward: Forward,
    /// Who asked for it.
    pub by: Origin,
    /// What became of it.
    pub state: PortStanding,
    /// Why it is refused.
    pub problem: Option<String>,
}

/// What became of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PortStanding {
    /// It leads into the machine.
    Forwarded,
    /// It cannot be had.
    Refused,
    /// The machine is off.
    Stopped,
    /// It was asked for after the machine was started.
    Pending,
    /// A module asks for it, and the person does not give it.
    Withheld,
}

impl PortStanding {
    /// As in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            PortStanding::Forwarded => "forwarded",
            PortStanding::Refused => "refused",
            PortStanding::Stopped => "stopped",
            PortStanding::Pending => "pending",
            PortStanding::Withheld => "withheld",
        }
    }
}

/// `codchi doctor --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Doctor {
    /// Schema version of this document: 1.
    pub version: u32,
    /// What was looked at.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What, such as `user namespaces`.
    pub what: String,
    /// How it is.
    pub level: Level,
    /// What was found, in a line.
    pub detail: String,
    /// What mends it, a command or an option where there is one.
    pub fix: Option<String>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Good,
    /// Not there, and no machine needs it.
    Unused,
    /// Machines run, but something is less than it could be.
    Degraded,
    /// Machines cannot run.
    Missing,
}
