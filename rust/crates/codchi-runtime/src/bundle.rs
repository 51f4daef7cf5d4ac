//! What an OCI runtime is told of a machine: a configuration of the OCI runtime specification, of which the settings hold what a
//! system decides, and a supervisor puts in what only it knows.
//!
//! Only fields that `drivers/oci/host.nix` renders are known: what a system could ask for beyond (hooks, which run on the host,
//! annotations, mounts of the host's folders, namespaces of others) is an error. See
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::Extent;

/// A configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Version of the specification.
    pub oci_version: String,
    /// Host name in the machine.
    pub hostname: String,
    /// Its root file system.
    pub root: Root,
    /// PID 1.
    pub process: Process,
    /// File systems of the kernel, in order.
    pub mounts: Vec<Mount>,
    /// What the specification has for Linux.
    pub linux: Linux,
}

/// A root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Its folder.
    pub path: PathBuf,
}

/// PID 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    terminal: bool,
    user: User,
    cwd: PathBuf,
    /// Its program, and what that is told.
    pub args: Vec<String>,
    env: Vec<String>,
    capabilities: Capabilities,
    no_new_privileges: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rlimits: Vec<Limit>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Capabilities {
    bounding: Vec<String>,
    effective: Vec<String>,
    permitted: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    r#type: String,
    hard: u64,
    soft: u64,
}

/// A mount that the runtime makes in the machine's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where.
    pub destination: PathBuf,
    /// Name of the file system.
    pub r#type: String,
    /// As mount(2) takes it.
    pub source: PathBuf,
    /// As mount(8) takes them.
    pub options: Vec<String>,
}

/// What the specification has for Linux.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Linux {
    namespaces: Vec<Namespace>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    uid_mappings: Vec<Mapping>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gid_mappings: Vec<Mapping>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cgroups_path: Option<PathBuf>,
    /// Limits.
    pub resources: Resources,
    masked_paths: Vec<PathBuf>,
    readonly_paths: Vec<PathBuf>,
    seccomp: Seccomp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespace {
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mapping {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
    size: u32,
}

/// Limits, as control groups hold a machine to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Memory.
    #[serde(default)]
    pub memory: Memory,
    /// Time of processors.
    #[serde(default)]
    pub cpu: Cpu,
    /// Tasks.
    #[serde(default)]
    pub pids: Pids,
    /// Which devices it may use: all, since what it can reach is decided by what is mounted in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    devices: Vec<DeviceRule>,
}

/// How much memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// How much time of processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Microseconds of a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
    /// Microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
}

/// How many tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pids {
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceRule {
    allow: bool,
    access: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Seccomp {
    default_action: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    architectures: Vec<String>,
    syscalls: Vec<Calls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Calls {
    names: Vec<String>,
    action: String,
    errno_ret: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    args: Vec<Argument>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default, rename = "valueTwo", skip_serializing_if = "Option::is_none")]
    value_two: Option<u64>,
    op: String,
}

/// What the runtime starts: the machine finds it where it cannot put anything else.
const INIT: &str = "/run/codchi/bin/codchi-boot";
/// Namespaces without which a machine is part of its host.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"];
/// File systems of the kernel that a machine mounts for itself.
const FILE_SYSTEMS: [&str; 6] = ["cgroup", "devpts", "mqueue", "proc", "sysfs", "tmpfs"];
/// Below what a machine mounts them.
const PLACES: [&str; 3] = ["/proc", "/dev", "/sys"];
const REFUSE: &str = "SCMP_ACT_ERRNO";
/// The instruction sets that a process of this host can use; x32 is not among them, and ends whoever uses it.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
#[cfg(not(target_arch = "aarch64"))]
const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"];

/// What a supervisor puts in.
pub(crate) struct Host<'a> {
    /// The staged root.
    pub root: &'a Path,
    /// The machine's ids, by those of the namespace that the runtime runs in.
    pub uids: &'a [Extent],
    /// Its groups'.
    pub gids: &'a [Extent],
    /// Its control group, below where the runtime finds them.
    pub cgroup: PathBuf,
    /// Further devices, below /dev.
    pub devices: Vec<PathBuf>,
    /// How many files each of its processes may have open: at first, and at most.
    pub files: (u64, u64),
    /// How many tasks each of its users may have, where no control group counts them.
    pub tasks: Option<u64>,
}

impl Config {
    /// Refuses what no machine may have, and puts in what none goes without; `refused` and `absent` are system calls, `dropped`
    /// capabilities.
    pub(crate) fn settle(&mut self, refused: &[&str], absent: &[&str], dropped: &[&str]) -> Result<()> {
        let no = |what: String| Err(Error::Settings(format!("{what}, which no machine of this driver may")));
        if self.root.path.as_os_str() != "@root@" {
            return no(format!("the root file system is `{}`", self.root.path.display()));
        }
        // Runtimes have been led out of the root by a program or a folder that is a link to one of theirs.
        let Process { args, cwd, .. } = &self.process;
        if args.first().is_none_or(|a| a != INIT)
            || args.get(1).is_none_or(|a| a != "--supervised")
            || cwd != Path::new("/")
        {
            return no(format!("its first process is `{}` in `{}`", args.join(" "), cwd.display()));
        }
        for m in &self.mounts {
            let bound = m.options.iter().any(|o| o.trim_start_matches('r').starts_with("bind"));
            let placed = PLACES.iter().any(|p| m.destination.starts_with(p))
                && !m.destination.components().any(|c| c == Component::ParentDir);
            if bound || !placed || !FILE_SYSTEMS.contains(&m.r#type.as_str()) {
                let (source, at) = (m.source.display(), m.destination.display());
                return no(format!("`{source}` ({}) is mounted at `{at}`", m.r#type));
            }
        }
        if let Some(kind) = NAMESPACES.iter().find(|k| !self.linux.namespaces.iter().any(|n| n.r#type == **k))
        {
            return no(format!("it has no {kind} namespace of its own"));
        }
        let linux = &self.linux;
        if linux.cgroups_path.is_some() || !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty() {
            return no("its ids or its control group are chosen".into());
        }
        let calls = &mut self.linux.seccomp;
        let weak = |c: &Calls| c.action != REFUSE || c.errno_ret == 0;
        if calls.default_action != "SCMP_ACT_ALLOW" || calls.syscalls.iter().any(weak) {
            return no("system calls have other answers than errors".into());
        }
        let known = |calls: &Seccomp, name: &str| {
            calls.syscalls.iter().any(|c| c.args.is_empty() && c.names.iter().any(|n| n == name))
        };
        for (names, errno_ret) in [(refused, 1), (absent, 38)] {
            let names: Vec<String> = names.iter().filter(|n| !known(calls, n)).map(|n| (*n).into()).collect();
            if !names.is_empty() {
                calls.syscalls.push(Calls { names, action: REFUSE.into(), errno_ret, args: Vec::new() });
            }
        }
        // AF_VSOCK, which no network namespace bounds, and the old call whose arguments lie where no filter looks.
        // The kernel looks at half of the register.
        let vsock = Argument {
            index: 0,
            value: u64::from(u32::MAX),
            value_two: Some(40),
            op: "SCMP_CMP_MASKED_EQ".into(),
        };
        for (name, errno_ret, args) in [("socket", 97, vec![vsock]), ("socketcall", 38, Vec::new())] {
            let rule = Calls { names: vec![name.into()], action: REFUSE.into(), errno_ret, args };
            let has =
                |c: &Calls| c.names.iter().any(|n| n == name) && (c.args.is_empty() || c.args == rule.args);
            if !calls.syscalls.iter().any(has) {
                calls.syscalls.push(rule);
            }
        }
        calls.architectures = ARCHITECTURES.map(String::from).to_vec();
        let has = &mut self.process.capabilities;
        for set in [&mut has.bounding, &mut has.effective, &mut has.permitted] {
            set.retain(|c| !dropped.contains(&c.as_str()));
        }
        self.linux.resources.devices = vec![DeviceRule { allow: true, access: "rwm".into() }];
        Ok(())
    }

    /// With what only this host knows.
    pub(crate) fn on(&self, host: &Host<'_>) -> Config {
        let mut all = self.clone();
        all.root.path = host.root.into();
        let map = |extents: &[Extent]| {
            let one = |e: &Extent| Mapping { container_id: e.inside, host_id: e.outside, size: e.count };
            extents.iter().map(one).collect()
        };
        all.linux.uid_mappings = map(host.uids);
        all.linux.gid_mappings = map(host.gids);
        all.linux.cgroups_path = Some(host.cgroup.clone());
        all.process.terminal = true;
        let limit = |kind: &str, soft, hard| Limit { r#type: kind.into(), soft, hard };
        all.process.rlimits = vec![limit("RLIMIT_NOFILE", host.files.0, host.files.1)];
        all.process.rlimits.extend(host.tasks.map(|t| limit("RLIMIT_NPROC", t, t)));
        all.mounts.extend(host.devices.iter().map(|d| Mount {
            destination: d.clone(),
            r#type: "bind".into(),
            source: d.clone(),
            options: ["bind", "nosuid", "noexec"].map(String::from).to_vec(),
        }));
        all
    }
}
