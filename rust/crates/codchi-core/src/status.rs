//! The documents that `status` and others print as JSON.

use serde::{Deserialize, Serialize};

use crate::folder::Folder;
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
    /// The other host on which that is, as its engine's client calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Where packages and options come from.
    pub base: String,
    /// What it does now.
    pub state: State,
    /// Why it failed, where that is known.
    pub reason: Option<String>,
    /// Host process id of its PID 1.
    pub leader: Option<u32>,
    /// What its processors are, where it is a virtual machine that runs.
    pub acceleration: Option<Acceleration>,
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
    /// It waits for `start`: its secrets could not be read when this computer started.
    NeedsSecrets,
}

impl State {
    /// As in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Stopped => "stopped",
            State::Starting => "starting",
            State::Failed => "failed",
            State::NeedsSecrets => "needs-secrets",
        }
    }
}

/// What the processors of a virtual machine are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Acceleration {
    /// The host's.
    Kvm,
    /// A program's, which is slow.
    Tcg,
}

impl Acceleration {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Acceleration::Kvm => "the host's (kvm)",
            Acceleration::Tcg => "emulated (tcg)",
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

/// `codchi secrets list --json`. No value is in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Secrets {
    /// Schema version of this document: 1.
    pub version: u32,
    /// The machine.
    pub machine: MachineName,
    /// Where its values are kept, for people.
    pub kept: String,
    /// The secrets, by name.
    pub secrets: Vec<SecretStatus>,
}

/// One secret.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct SecretStatus {
    /// Its name.
    pub name: String,
    /// `env`, `file` or `credential`; none: the machine does not use it any more.
    pub kind: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// Whether it has a value.
    pub state: SecretState,
}

/// Whether a secret has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SecretState {
    /// It has one.
    Set,
    /// It has the module's.
    Default,
    /// It has none, and the machine does not start without.
    Missing,
    /// It has none, and needs none.
    Unset,
    /// It has one that the machine does not use any more.
    Unused,
}

impl SecretState {
    /// As in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            SecretState::Set => "set",
            SecretState::Default => "default",
            SecretState::Missing => "missing",
            SecretState::Unset => "unset",
            SecretState::Unused => "unused",
        }
    }
}

/// `codchi du --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Schema version of this document: 1.
    pub version: u32,
    /// The machines, by name.
    pub machines: Vec<MachineUsage>,
    /// Bytes of the store that several of these machines share, each counted once.
    pub shared_bytes: u64,
    /// Bytes of the store that nothing holds: `codchi gc` gives them free.
    pub free_bytes: u64,
}

/// What a machine takes of the disk, in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineUsage {
    /// Its name.
    pub name: MachineName,
    /// Its own files, as they lie on the disk; none where an engine keeps them that does not tell.
    pub files_bytes: Option<u64>,
    /// What of the store no other machine has: its generations, what they were made from, and results of builds inside.
    pub alone_bytes: u64,
    /// What of the store other machines have, too.
    pub shared_bytes: u64,
    /// Its generations.
    pub generations: u64,
}

/// `codchi gc --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    /// Schema version of this document: 1.
    pub version: u32,
    /// Whether it was carried out, as opposed to shown.
    pub done: bool,
    /// The generations that are forgotten.
    pub generations: Vec<ForgottenGenerations>,
    /// How many paths of the store go.
    pub paths: u64,
    /// Their size, in bytes.
    pub bytes: u64,
}

/// Generations of a machine that a collection forgets.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct ForgottenGenerations {
    /// The machine.
    pub machine: MachineName,
    /// Their numbers.
    pub numbers: Vec<u64>,
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
    pub state: Standing,
    /// Why it is refused.
    pub problem: Option<String>,
}

/// `codchi mount list --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct Mounts {
    /// Schema version of this document: 1.
    pub version: u32,
    /// The machine.
    pub machine: MachineName,
    /// By path in the machine.
    pub mounts: Vec<MountStatus>,
}

/// A folder of the host that a machine has, or should.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
pub struct MountStatus {
    /// The folder.
    #[serde(flatten)]
    pub folder: Folder,
    /// Who asked for it.
    pub by: Origin,
    /// What became of it.
    pub state: Standing,
    /// Why it is refused.
    pub problem: Option<String>,
}

/// What became of something that a machine is to have of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "host", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The machine has it.
    Given,
    /// It cannot be had.
    Refused,
    /// The machine is off.
    Stopped,
    /// It was asked for after the machine was started.
    Pending,
    /// A module asks for it, and the person does not give it.
    Withheld,
}

impl Standing {
    /// As in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Given => "given",
            Standing::Refused => "refused",
            Standing::Stopped => "stopped",
            Standing::Pending => "pending",
            Standing::Withheld => "withheld",
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
    /// The folder in the machine whose checkout stands in for that.
    pub checkout: Option<String>,
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
    /// Not there, and no machine needs it.
    Unused,
    /// Machines run, but something is less than it could be.
    Degraded,
    /// Machines cannot run.
    Missing,
}
