//! The engine settings that `drivers/native/host.nix` renders, with the host's values put in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use codchi_core::engine::{Variable, substitute};
use codchi_core::folder::Folder;
use codchi_core::port::Forward;
use codchi_core::session::Channel;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bundle::Config;
use crate::error::{Error, Result};
use crate::outer::OuterConfig;

/// The version of the settings this program understands.
pub const VERSION: u32 = 1;

/// The file's name in a machine's runtime directory.
pub(crate) const FILE: &str = "spec.json";

/// Rootless: the file beside a machine's root that says which of its accounts is the caller on the host.
pub const CALLER_FILE: &str = "caller";

/// Engine settings of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// [`VERSION`].
    pub version: u32,
    /// What an OCI runtime is told that makes the machine, in place of most of what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    /// Host name in the machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_name: String,
    /// The machine's root file system.
    pub root: PathBuf,
    /// PID 1 and its arguments, as paths in the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init: Vec<String>,
    /// Its whole environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Mounts, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Device nodes below /dev; `?`: where the host has it.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Paths that show nothing.
    #[serde(default)]
    pub masked_paths: Vec<PathBuf>,
    /// Paths that cannot be written.
    #[serde(default)]
    pub read_only_paths: Vec<PathBuf>,
    /// What root of the machine may not do.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// System calls that are refused.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Its network.
    #[serde(default)]
    pub network: Network,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// How it is stopped.
    #[serde(default)]
    pub stop: Stop,
}

/// A mount of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// A bind's path on the host.
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// Where, in the machine.
    pub target: PathBuf,
    /// Options of mount(8); those that are no flags go to the file system.
    #[serde(default)]
    pub options: Vec<String>,
    /// Show the host's owners as the machine's, where that needs root.
    #[serde(default)]
    pub idmap: bool,
    /// Memory that the machine can neither unmount nor change.
    #[serde(default)]
    pub outer: bool,
    /// Left out where the host lacks the source.
    #[serde(default)]
    pub optional: bool,
    /// Of the source, a store, only what the system needs to run ([`Launch::closure`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closure: bool,
}

/// Kinds of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    Bind,
    /// Memory.
    Tmpfs,
    /// Memory that is never swapped out.
    Ramfs,
    /// Processes.
    Proc,
    /// Devices and drivers.
    Sysfs,
    /// The machine's own control groups.
    Cgroup2,
    /// Terminals.
    Devpts,
    /// POSIX message queues.
    Mqueue,
}

impl MountKind {
    /// The kernel's name of the file system.
    pub fn as_str(self) -> &'static str {
        match self {
            MountKind::Bind => "bind",
            MountKind::Tmpfs => "tmpfs",
            MountKind::Ramfs => "ramfs",
            MountKind::Proc => "proc",
            MountKind::Sysfs => "sysfs",
            MountKind::Cgroup2 => "cgroup2",
            MountKind::Devpts => "devpts",
            MountKind::Mqueue => "mqueue",
        }
    }
}

/// What root of a machine may not do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Names such as `CAP_SYS_MODULE`, dropped from the bounding set.
    #[serde(default)]
    pub drop: Vec<String>,
}

/// System calls that are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    /// Their names.
    #[serde(default)]
    pub deny: Vec<String>,
    /// The error they end with.
    #[serde(default = "Seccomp::errno")]
    pub errno: u16,
    /// Names of calls that answer ENOSYS, as a kernel without them would: programs that can do without ask no further.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Families of sockets that answer as if the kernel lacked them: `AF_VSOCK`, which no network namespace bounds.
    #[serde(default)]
    pub families: Vec<String>,
}

impl Seccomp {
    fn errno() -> u16 {
        1
    }
}

impl Default for Seccomp {
    fn default() -> Self {
        Seccomp { deny: Vec::new(), errno: 1, absent: Vec::new(), families: Vec::new() }
    }
}

/// A machine's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Which kind.
    #[serde(default)]
    pub mode: NetworkMode,
}

/// Kinds of networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Its own, with a way out.
    #[default]
    Private,
    /// Its own, without a way out.
    None,
}

/// Limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Processors.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Processes and threads.
    #[serde(default)]
    pub tasks: Option<u64>,
}

/// How a machine is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stop {
    /// The signal for PID 1: `SIGRTMIN+4`, `SIGRTMIN+3`, `SIGTERM`, ...
    #[serde(default = "Stop::signal")]
    pub signal: String,
    /// How long it may take before all is killed.
    #[serde(default = "Stop::timeout")]
    pub timeout_seconds: u64,
}

impl Stop {
    fn signal() -> String {
        "SIGRTMIN+4".into()
    }
    fn timeout() -> u64 {
        90
    }

    /// The signal's number.
    pub fn number(&self) -> Result<i32> {
        use codchi_sys::signal as s;
        let known = match self.signal.as_str() {
            "SIGTERM" => Some(s::SIGTERM),
            "SIGINT" => Some(s::SIGINT),
            "SIGQUIT" => Some(s::SIGQUIT),
            "SIGHUP" => Some(s::SIGHUP),
            "SIGUSR1" => Some(s::SIGUSR1),
            "SIGUSR2" => Some(s::SIGUSR2),
            other => other
                .strip_prefix("SIGRTMIN+")
                .and_then(|n| n.parse::<i32>().ok())
                .filter(|n| (0..=30).contains(n))
                .map(s::real_time),
        };
        known.ok_or_else(|| Error::Settings(format!("`{}` is not a signal to stop with", self.signal)))
    }
}

impl Default for Stop {
    fn default() -> Self {
        Stop { signal: Self::signal(), timeout_seconds: Self::timeout() }
    }
}

/// An account of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its group's.
    pub gid: u32,
}

impl Default for User {
    /// The first account that NixOS makes for a person.
    fn default() -> User {
        User { uid: 1000, gid: 100 }
    }
}

/// What a supervisor is told: the engine settings as the manifest has them, and this host's side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Launch {
    /// [`VERSION`].
    pub version: u32,
    /// The machine's name.
    pub name: String,
    /// Engine settings of the manifest, variables not yet replaced.
    pub engine: Value,
    /// The machine's root file system; made and owned rightly by the supervisor when it is empty.
    pub root: PathBuf,
    /// As root: the first id of the machine's range. Rootless: none.
    #[serde(default)]
    pub uid_base: Option<u32>,
    /// As root: how many ids that range has.
    #[serde(default = "own_ids", skip_serializing_if = "is_own_ids")]
    pub uid_count: u32,
    /// The person's account in the machine.
    #[serde(default)]
    pub user: User,
    /// Rootless: that account shall be the caller on the host.
    #[serde(default)]
    pub user_is_caller: bool,
    /// The outer namespace.
    #[serde(default)]
    pub outer: OuterConfig,
    /// The directory with the store's files, as the outer namespace shows it.
    pub store: PathBuf,
    /// The system to run.
    pub toplevel: PathBuf,
    /// Names of what that needs to run, in the store, where the machine sees nothing else of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closure: Vec<String>,
    /// The directory with the static programs.
    pub bin: PathBuf,
    /// Folders of the host in it.
    #[serde(default)]
    pub folders: Vec<Folder>,
    /// Ports of the host that lead into it.
    #[serde(default)]
    pub ports: Vec<Forward>,
    /// Sockets of the caller's session in it.
    #[serde(default)]
    pub channels: Vec<Channel>,
    /// Servers whose passwords git may tell it.
    #[serde(default)]
    pub git_hosts: Vec<String>,
    /// Devices of the host that it may use, below /dev, where the host has them.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Tells this from what was written before: a supervisor repeats it when it has done what this says.
    #[serde(default)]
    pub revision: u64,
    /// The OCI runtime that makes the machine, where its settings are for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<PathBuf>,
    /// Seconds that it may take to be ready; none: as a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// Where the console is written.
    pub console_log: PathBuf,
}

fn own_ids() -> u32 {
    crate::ids::COUNT
}

fn is_own_ids(count: &u32) -> bool {
    *count == own_ids()
}

/// The variables of this engine's settings.
const VARIABLES: [Variable; 9] = [
    Variable::needed("name"),
    Variable::needed("root"),
    Variable::needed("store"),
    Variable::needed("toplevel"),
    Variable::optional("endpoint"),
    Variable::needed("agent"),
    Variable::needed("bin"),
    Variable::needed("host"),
    Variable::needed("notify"),
];

impl Launch {
    /// Reads what the supervisor of a machine was told last.
    ///
    /// # Errors
    /// It was told nothing yet, or a person changed the file.
    pub fn read(dir: &std::path::Path) -> Result<Launch> {
        let path = dir.join(FILE);
        serde_json::from_str(&codchi_fs::read_to_string(&path)?)
            .map_err(|e| Error::Settings(format!("`{}`: {e}", path.display())))
    }

    /// Whether the settings mount what a variable stands for.
    pub fn mounts(&self, variable: &str) -> bool {
        let mounts = self.engine["mounts"].as_array();
        mounts.is_some_and(|all| all.iter().any(|m| m["source"] == variable))
    }

    /// The settings with this host's values; `dir` is the machine's runtime directory.
    pub fn spec(&self, dir: &std::path::Path) -> Result<Spec> {
        let text = |p: &std::path::Path| {
            p.to_str()
                .map(String::from)
                .ok_or_else(|| Error::Settings(format!("`{}` is not UTF-8", p.display())))
        };
        let values = BTreeMap::from([
            ("name", self.name.clone()),
            ("root", text(&self.root)?),
            ("store", text(&self.store)?),
            ("toplevel", text(&self.toplevel)?),
            ("bin", text(&self.bin)?),
            ("endpoint", text(&dir.join("daemon"))?),
            ("agent", text(&dir.join("agent"))?),
            ("host", text(&dir.join("host"))?),
            ("notify", text(&dir.join("notify"))?),
        ]);
        let done =
            substitute(&self.engine, &VARIABLES, &values).map_err(|e| Error::Settings(e.to_string()))?;
        let mut spec: Spec = serde_json::from_value(done).map_err(|e| Error::Settings(e.to_string()))?;
        spec.devices.extend(self.devices.iter().map(|d| format!("{d}?")));
        spec.check()?;
        Ok(spec)
    }
}

/// Whether engine settings show a machine only what its system needs to run.
pub fn shows_closure(engine: &Value) -> bool {
    engine["mounts"].as_array().is_some_and(|all| all.iter().any(|m| m["closure"] == true))
}

impl Spec {
    /// The mount of the store of which the machine sees only a part.
    pub(crate) fn closure(&self) -> Option<&Mount> {
        self.mounts.iter().find(|m| m.closure)
    }

    /// What types do not say.
    pub fn check(&self) -> Result<()> {
        let bad = |s: String| Err(Error::Settings(s));
        if self.version != VERSION {
            return bad(format!("version {} is not supported, only {VERSION}", self.version));
        }
        let init = self.config.as_ref().map_or(&self.init, |c| &c.process.args);
        if init.is_empty() {
            return bad("`init` is empty".into());
        }
        for m in &self.mounts {
            if !m.target.is_absolute() || m.target.components().any(|c| c == std::path::Component::ParentDir)
            {
                return bad(format!("the mount point `{}` is not an absolute path", m.target.display()));
            }
            if m.kind == MountKind::Bind && !m.source.as_ref().is_some_and(|s| s.is_absolute()) {
                return bad(format!("the mount at `{}` needs an absolute `source`", m.target.display()));
            }
            if m.closure && m.kind != MountKind::Bind {
                return bad(format!("`closure` at `{}` is for a bind mount", m.target.display()));
            }
            if m.outer && !matches!(m.kind, MountKind::Tmpfs | MountKind::Ramfs) {
                return bad(format!("`outer` at `{}` is for tmpfs and ramfs", m.target.display()));
            }
        }
        for d in &self.devices {
            let n = d.trim_end_matches('?');
            if n.is_empty() || n.starts_with('/') || n.split('/').any(|c| c == "..") {
                return bad(format!("`{d}` is not a device below /dev"));
            }
        }
        self.stop.number()?;
        crate::caps::numbers(&self.capabilities.drop)?;
        crate::filter::program(&self.seccomp)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_have_numbers() {
        let s = |n: &str| Stop { signal: n.into(), timeout_seconds: 1 }.number();
        assert_eq!(s("SIGTERM").unwrap(), 15);
        assert_eq!(s("SIGRTMIN+4").unwrap(), codchi_sys::signal::real_time(4));
        assert!(s("SIGRTMIN+99").is_err());
        assert!(s("9").is_err());
    }
}
