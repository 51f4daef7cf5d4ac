//! What a supervisor tells of itself, for those who look without asking it.

use std::path::{Path, PathBuf};

use codchi_core::folder::FolderState;
use codchi_core::port::PortState;
use codchi_core::status::Acceleration;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};
use crate::network::Way;
use crate::notify::Said;
use crate::{folders, ports};

/// The state of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing runs.
    Stopped,
    /// PID 1 is not ready yet.
    Starting,
    /// PID 1 said it is ready.
    Running,
    /// It was asked to stop.
    Stopping,
    /// It ended without being asked.
    Failed,
    /// It was not started: a person has to unlock its secrets.
    #[serde(rename = "needs-secrets")]
    NeedsSecrets,
}

/// The file `supervisor.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Supervisor {
    /// 1.
    pub version: u32,
    /// Its process.
    pub pid: i32,
    /// When that began, in the kernel's ticks: with the id it names one process for ever.
    pub start_time: u64,
    /// The machine's PID 1.
    pub leader: Option<i32>,
    /// When that began, in ticks; none: an earlier Codchi looks after the machine.
    #[serde(default)]
    pub leader_start_time: Option<u64>,
    /// Where this host has the machine's root file system, where that is not what its PID 1 sees: a virtual machine's.
    #[serde(default)]
    pub root: Option<PathBuf>,
    /// What a virtual machine's processors are.
    #[serde(default)]
    pub acceleration: Option<Acceleration>,
    /// What the machine does.
    pub state: State,
    /// What PID 1 says of itself.
    #[serde(default)]
    pub text: String,
    /// How it reaches others.
    #[serde(default)]
    pub network: Option<Way>,
    /// The machine's cgroup, as the supervisor sees it.
    #[serde(default)]
    pub cgroup: std::path::PathBuf,
    /// Ports of the host that lead into it.
    #[serde(default)]
    pub ports: Vec<PortState>,
    /// Folders of the host in it.
    #[serde(default)]
    pub folders: Vec<FolderState>,
    /// [`Launch::revision`](crate::spec::Launch::revision) of what is carried out.
    #[serde(default)]
    pub revision: u64,
    /// What a person should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What [`Supervisor::learn`] changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// The machine is ready now.
    pub ready: bool,
    /// It goes down now.
    pub stopping: bool,
    /// It says something else of itself.
    pub text: bool,
}

impl News {
    /// Whether there is any.
    pub fn any(self) -> bool {
        self.ready || self.stopping || self.text
    }
}

impl Supervisor {
    /// Of a machine that is off, looked after by this process.
    pub(crate) fn of_this_process() -> Supervisor {
        let pid = std::process::id().cast_signed();
        Supervisor {
            version: 1,
            pid,
            start_time: start_time(pid).unwrap_or(0),
            leader: None,
            leader_start_time: None,
            root: None,
            acceleration: None,
            state: State::Stopped,
            text: String::new(),
            network: None,
            cgroup: PathBuf::new(),
            ports: Vec::new(),
            folders: Vec::new(),
            revision: 0,
            warnings: Vec::new(),
        }
    }

    /// Takes in what PID 1 said.
    pub(crate) fn learn(&mut self, said: &Said) -> News {
        let mut news = News { text: said.text.is_some(), ..News::default() };
        if said.ready && self.state == State::Starting {
            self.state = State::Running;
            news.ready = true;
        }
        if said.stopping && self.state == State::Running {
            self.state = State::Stopping;
            news.stopping = true;
        }
        if let Some(text) = &said.text {
            self.text.clone_from(text);
        }
        news
    }

    /// Writes it into a machine's runtime directory.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::other).doing("write the state")?;
        Ok(crate::start::write_quick(&dir.join(FILE), &text)?)
    }
}

/// What is known of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// Its PID 1, by the host's ids.
    pub leader: Option<i32>,
    /// What a virtual machine's processors are.
    pub acceleration: Option<Acceleration>,
    /// Its supervisor, by the host's ids.
    pub supervisor: Option<i32>,
    /// How it reaches others.
    pub network: Option<Way>,
    /// Ports of the host that lead into it.
    pub ports: Vec<PortState>,
    /// Folders of the host in it.
    pub folders: Vec<FolderState>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// What PID 1 says of itself.
    pub text: String,
    /// Its addresses, but for those of loopback and link.
    pub addresses: Vec<String>,
}

impl Status {
    /// What of the host it should have and does not, for people, and what to do. `machine` is its name.
    pub fn refusals(&self, machine: &str) -> Vec<String> {
        let ports = self.ports.iter().filter_map(|p| ports::warning(machine, p));
        ports.chain(self.folders.iter().filter_map(folders::warning)).collect()
    }
}

/// The addresses of the network namespace a process is in, from the kernel's own tables.
fn addresses(pid: i32) -> Vec<String> {
    let read = |f: &str| codchi_fs::read_to_string(format!("/proc/{pid}/net/{f}")).unwrap_or_default();
    let mut all = local_v4(&read("fib_trie"));
    all.extend(local_v6(&read("if_inet6")));
    all
}

/// The IPv4 addresses of a machine, the loopback's left out; `leader` is its PID 1.
pub fn addresses_v4(leader: u32) -> Vec<String> {
    local_v4(&codchi_fs::read_to_string(format!("/proc/{leader}/net/fib_trie")).unwrap_or_default())
}

/// `|-- ADDRESS` followed by `/32 host LOCAL`; the table is printed once per routing table.
fn local_v4(trie: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut last = "";
    for l in trie.lines().map(str::trim) {
        if let Some(a) = l.strip_prefix("|-- ") {
            last = a;
        } else if l == "/32 host LOCAL" && !last.starts_with("127.") && !all.iter().any(|a| a == last) {
            all.push(last.into());
        }
    }
    all
}

/// Address, interface index, prefix length, scope (00: global), flags, name.
fn local_v6(table: &str) -> Vec<String> {
    let line = |l: &str| {
        let f: Vec<&str> = l.split_whitespace().collect();
        let [address, _, _, "00", ..] = f[..] else { return None };
        u128::from_str_radix(address, 16).ok().map(|a| std::net::Ipv6Addr::from(a).to_string())
    };
    table.lines().filter_map(line).collect()
}

/// The file's name in a machine's runtime directory.
pub(crate) const FILE: &str = "supervisor.json";

/// What the kernel tells of a process or of one of its tasks: see proc_pid_stat(5).
pub(crate) struct Stat {
    /// What it does, in a letter.
    pub state: char,
    /// Its parent.
    pub parent: i32,
    /// When it began, in ticks.
    pub start_time: u64,
}

/// Of the one whose folder in /proc this is; `None` when there is no such process.
pub(crate) fn stat(folder: &Path) -> Option<Stat> {
    let stat = codchi_fs::read_to_string(folder.join("stat")).ok()?;
    // The name in brackets may hold anything; what follows the last bracket is fields 3 and on.
    let mut f = stat.rsplit_once(')')?.1.split_whitespace();
    let state = f.next()?.chars().next()?;
    let parent = f.next()?.parse().ok()?;
    Some(Stat { state, parent, start_time: f.nth(17)?.parse().ok()? })
}

/// When a process began, in ticks; `None` when there is no such process.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = stat(&Path::new("/proc").join(pid.to_string()))?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.start_time)
}

/// The supervisor's file, when that supervisor lives.
pub(crate) fn living(dir: &Path) -> Result<Option<Supervisor>> {
    let Some(s) = read(dir)? else { return Ok(None) };
    Ok((start_time(s.pid) == Some(s.start_time)).then_some(s))
}

fn read(dir: &Path) -> Result<Option<Supervisor>> {
    let path = dir.join(FILE);
    let Some(text) = codchi_fs::read_if_exists(&path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(std::io::Error::other)
        .doing(format!("read `{}`", path.display()))
}

/// The folder in which a machine's agent listens, as the host reaches it: memory that only its supervisor's namespace shows.
/// Where no supervisor lives, nobody listens either.
pub fn agent_dir(dir: &Path) -> PathBuf {
    let own = dir.join("agent");
    match (living(dir), own.strip_prefix("/")) {
        (Ok(Some(s)), Ok(below)) => Path::new("/proc").join(s.pid.to_string()).join("root").join(below),
        _ => own,
    }
}

/// What a machine does now. `dir` is its runtime directory; that there is none means stopped.
pub fn status(dir: &Path) -> Result<Status> {
    let file = read(dir)?;
    let alive = file.as_ref().is_some_and(|s| start_time(s.pid) == Some(s.start_time));
    Ok(match file {
        Some(s) if alive => Status {
            state: s.state,
            leader: s.leader,
            acceleration: s.acceleration,
            supervisor: Some(s.pid),
            network: s.network,
            ports: s.ports,
            folders: s.folders,
            warnings: s.warnings,
            text: s.text,
            addresses: s.leader.map(addresses).unwrap_or_default(),
        },
        other => Status {
            // A clean end removes the file, or says that the machine failed or waits.
            state: match &other {
                None => State::Stopped,
                Some(s) if s.state == State::NeedsSecrets => State::NeedsSecrets,
                Some(_) => State::Failed,
            },
            leader: None,
            acceleration: None,
            supervisor: None,
            network: None,
            ports: vec![],
            folders: vec![],
            warnings: vec![],
            text: match other {
                None => String::new(),
                Some(s) if matches!(s.state, State::Failed | State::NeedsSecrets) => s.text,
                Some(_) => "the process that looked after it was ended from outside".into(),
            },
            addresses: vec![],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_machine_that_others_may_use() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.2\n        /32 host LOCAL\nLocal:\n     |-- 192.0.2.2\n        /32 host LOCAL\n";
        assert_eq!(local_v4(trie), ["192.0.2.2"]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fd000000000000000000000000000002 02 40 00 82     eth0\n\
                     fe80000000000000fcbaa3fffe5d3be5 02 40 20 80     eth0\n";
        assert_eq!(local_v6(table), ["fd00::2"]);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_id() {
        let me = std::process::id().cast_signed();
        assert!(start_time(me).is_some());
        assert_eq!(start_time(i32::MAX), None);
    }
}
