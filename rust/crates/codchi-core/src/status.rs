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
    /// The inputs that come from git servers, by name.
    pub inputs: Vec<InputStatus>,
}

/// An input that comes from a git server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct InputStatus {
    /// Its name in the machine flake.
    pub name: String,
    /// Where it comes from.
    pub url: String,
    /// The revision that is locked.
    pub locked: String,
    /// The newest revision, when the server last said.
    pub newest: Option<String>,
    /// How they compare.
    pub state: InputState,
}

/// How an input compares with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum InputState {
    /// There is nothing newer.
    UpToDate,
    /// The source moved on.
    UpdatesAvailable,
    /// A commit is pinned.
    Pinned,
    /// The server has not said.
    Unknown,
}

impl InputState {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            InputState::UpToDate => "up to date",
            InputState::UpdatesAvailable => "updates available",
            InputState::Pinned => "pinned",
            InputState::Unknown => "not known",
        }
    }
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

/// `codchi module list --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Modules {
    /// Schema version of this document: 1.
    pub version: u32,
    /// The machine.
    pub machine: MachineName,
    /// The input whose nixpkgs is used, `codchi` among them; none where the machine flake says it in another way.
    pub nixpkgs: Option<String>,
    /// In the order in which they count.
    pub modules: Vec<ModuleStatus>,
}

/// One module of a machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct ModuleStatus {
    /// As the machine flake says it.
    pub text: String,
    /// The input that it comes from; none where it is another expression.
    pub input: Option<String>,
    /// Its attribute path in that input.
    pub module: Option<String>,
    /// Where the input comes from.
    pub url: Option<String>,
    /// The commit, or the hash, that is locked.
    pub revision: Option<String>,
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
    /// Machines run, but something is less than it could be.
    Degraded,
    /// Machines cannot run.
    Missing,
}
