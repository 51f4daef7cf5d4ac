//! Control groups: a subtree of our own for the supervisor and the machine.
//!
//! Only cgroup2 is used, on hybrid hosts too: a machine mounts its own part of it. See cgroups(7) and the kernel's
//! cgroup-v2 document ("Delegation").

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_fs::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, Gid, Mode, OFlags, Uid};
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::outer::OWN_DIR;
use crate::spec::Resources;

/// The subtree of a machine.
pub(crate) struct Tree {
    /// Where this process was before.
    from: PathBuf,
    /// What is ours.
    dir: PathBuf,
    /// Whether a service manager made it for us, and removes it.
    unit: bool,
}

/// The part of a machine's processes.
pub(crate) struct Fresh {
    /// Its directory.
    pub dir: OwnedFd,
    /// How many tasks the machine may have, where no control group holds it to that.
    pub unheld: Option<u64>,
}

/// A cgroup2 mount: which part of the tree it shows, and where.
#[derive(Debug, PartialEq)]
struct Mounted {
    shows: PathBuf,
    at: PathBuf,
}

fn mounts(mountinfo: &str) -> Vec<Mounted> {
    let line = |l: &str| {
        let (left, right) = l.split_once(" - ")?;
        right.starts_with("cgroup2 ").then_some(())?;
        let mut f = left.split(' ').skip(3);
        Some(Mounted { shows: unescape(f.next()?).into(), at: unescape(f.next()?).into() })
    };
    mountinfo.lines().filter_map(line).collect()
}

/// Undoes the octal escapes of the kernel's mount tables.
fn unescape(s: &str) -> String {
    s.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn own_path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|l| l.strip_prefix("0::/"))
}

impl Mounted {
    fn path_of(&self, own: &str) -> Option<PathBuf> {
        let full = Path::new("/").join(own);
        full.strip_prefix(&self.shows).ok().map(|rest| self.at.join(rest))
    }
}

/// The directory of the cgroup this process is in that it may change, if there is one.
pub(crate) fn own_delegated() -> Result<Option<PathBuf>> {
    let own = codchi_fs::read_to_string("/proc/self/cgroup")?;
    let Some(own) = own_path(&own) else { return Ok(None) };
    let table = codchi_fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts(&table).iter().rev().filter_map(|m| m.path_of(own)).find(|d| {
        rustix::fs::access(d, Access::WRITE_OK).is_ok()
            && rustix::fs::access(d.join("cgroup.procs"), Access::WRITE_OK).is_ok()
    }))
}

/// A cgroup in that of a machine for a command that enters it, where we may make one: rootless the way there leads
/// through groups that are not ours, and the command counts as the caller's.
pub(crate) fn for_entering(leader: i32) -> Option<OwnedFd> {
    let its = codchi_fs::read_to_string(format!("/proc/{leader}/cgroup")).ok()?;
    let its = own_path(&its)?;
    // The machine's own services lie below `machine`; that name is ours, and so is what precedes it.
    let machine = &its[..its.find("/machine").map(|i| i + "/machine".len())?];
    let table = codchi_fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts(&table).iter().rev().filter_map(|m| m.path_of(machine)).find_map(|d| {
        let dir = d.join("codchi-enter");
        match rustix::fs::mkdir(&dir, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(_) => return None,
        }
        rustix::fs::access(dir.join("cgroup.procs"), Access::WRITE_OK).ok()?;
        rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    })
}

/// The file by which everything in a machine's cgroup is held still. See "cgroup.freeze" in the kernel's document.
pub(crate) fn freezer(leader: i32) -> Result<PathBuf> {
    let its = codchi_fs::read_to_string(format!("/proc/{leader}/cgroup"))?;
    let lost = || Error::Told("the control group of the machine is not to be seen from here".into());
    let its = own_path(&its).ok_or_else(lost)?;
    let machine = &its[..its.find("/machine").map(|i| i + "/machine".len()).ok_or_else(lost)?];
    let table = codchi_fs::read_to_string("/proc/self/mountinfo")?;
    let all = mounts(&table);
    let files = all.iter().rev().filter_map(|m| m.path_of(machine)).map(|d| d.join("cgroup.freeze"));
    files.into_iter().find(|f| f.exists()).ok_or_else(lost)
}

/// Holds a cgroup still, and waits until it is.
pub(crate) fn freeze(freezer: &Path) -> Result<()> {
    codchi_fs::write(freezer, "1")?;
    let told = freezer.with_file_name("cgroup.events");
    let until = Instant::now() + Duration::from_secs(10);
    let events = codchi_fs::open(&told)?;
    while !codchi_fs::read_to_string(&told)?.lines().any(|l| l == "frozen 1") {
        if Instant::now() > until {
            return Err(Error::Told(
                "the machine cannot be held still: one of its processes does not stop".into(),
            ));
        }
        let step = rustix::time::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&step));
    }
    Ok(())
}

/// Has it go on.
pub(crate) fn thaw(freezer: &Path) -> Result<()> {
    Ok(codchi_fs::write(freezer, "0")?)
}

/// What to do when no cgroup is ours.
pub(crate) fn missing() -> Error {
    let host = Host::look();
    let uid = rustix::process::getuid().as_raw();
    let hints = if host.systemd {
        let linger = match host.linger() {
            Some(Err(mend)) => format!(", or {mend}"),
            _ => String::new(),
        };
        vec![
            format!("a systemd user session makes one: log in with one{linger}"),
            "then XDG_RUNTIME_DIR has to be set: `export XDG_RUNTIME_DIR=/run/user/$(id -u)`".into(),
        ]
    } else {
        let d = format!("/sys/fs/cgroup/codchi-{uid}");
        vec![format!(
            "`sudo sh -c 'mkdir -p {d}/session && chown -R {uid} {d} && echo '$$' > {d}/session/cgroup.procs'`"
        )]
    };
    Error::Host {
        what: "no control group (cgroup2) is delegated to you, which a machine without root needs".into(),
        hints,
    }
}

impl Tree {
    /// Makes the subtree for a machine and moves this process into its supervisor's part. Call it in the outer namespace.
    ///
    /// It is named by the machine and by which folder `root` is: with another home a person may have another machine of the name.
    pub fn prepare(name: &str, root: &Path, privileged: bool) -> Result<Tree> {
        let from = if privileged {
            let at = Path::new(OWN_DIR).join("cgroup");
            codchi_fs::create_dir_all(&at)?;
            rustix::mount::mount("cgroup2", &at, "cgroup2", MountFlags::empty(), None)
                .doing("mount cgroup2")?;
            let own = codchi_fs::read_to_string("/proc/self/cgroup")?;
            at.join(own_path(&own).unwrap_or_default())
        } else {
            own_delegated()?.ok_or_else(missing)?
        };
        let unit = from.file_name().is_some_and(|n| n.to_string_lossy().starts_with("codchi-machine@"))
            && std::env::var_os("INVOCATION_ID").is_some();
        let root = std::fs::metadata(root).at("examine", root)?;
        let own = format!("codchi-{name}-{:x}-{:x}", root.dev(), root.ino());
        let dir = if unit { from.clone() } else { from.join(own) };
        if !unit && dir.exists() {
            // What a killed supervisor left.
            kill_all(&dir);
            remove(&dir);
        }
        let tree = Tree { from, dir, unit };
        let supervisor = tree.dir.join("supervisor");
        codchi_fs::create_dir_all(&supervisor)?;
        codchi_fs::write(supervisor.join("cgroup.procs"), "0")?;
        for c in ["cpu", "memory", "pids", "io", "cpuset", "hugetlb"] {
            // Each alone: one that the host does not have must not keep the others away.
            let _ = codchi_fs::write(tree.dir.join("cgroup.subtree_control"), format!("+{c}"));
        }
        Ok(tree)
    }

    fn machine(&self) -> PathBuf {
        self.dir.join("machine")
    }

    /// The path of the machine's cgroup, for others to find it.
    pub fn shown(&self) -> PathBuf {
        self.machine()
    }

    /// Where the file system is mounted in which the machine's cgroup lies, and its path below that.
    pub fn mounted(&self) -> Result<(PathBuf, PathBuf)> {
        let machine = self.machine();
        let table = codchi_fs::read_to_string("/proc/self/mountinfo")?;
        let below = |m: &Mounted| {
            machine.strip_prefix(&m.at).ok().map(|rest| (m.at.clone(), Path::new("/").join(rest)))
        };
        mounts(&table)
            .iter()
            .rev()
            .find_map(below)
            .ok_or_else(|| Error::Told("the control group of the machine is not to be seen from here".into()))
    }

    /// What can be limited in the machine's cgroup.
    pub fn controllers(&self) -> Vec<String> {
        let all = codchi_fs::read_to_string(self.dir.join("cgroup.subtree_control")).unwrap_or_default();
        all.split_whitespace().map(String::from).collect()
    }

    /// Makes the machine's cgroup, owned by its root, and opens it. What limits could not be set is said.
    pub fn fresh(
        &self,
        uid: u32,
        gid: u32,
        limits: &Resources,
        warn: &mut dyn FnMut(String),
    ) -> Result<Fresh> {
        let dir = self.machine();
        if dir.exists() {
            kill_all(&dir);
            remove(&dir);
        }
        codchi_fs::create_dir_all(&dir)?;
        let cpu = limits.cpus.map(|c| format!("{} 100000", (c * 100_000.0).round().max(1000.0)));
        let wanted = [("memory.max", limits.memory.map(|m| m.to_string())), ("cpu.max", cpu)];
        let unheld = limits.tasks.filter(|t| codchi_fs::write(dir.join("pids.max"), t.to_string()).is_err());
        for (file, value) in wanted {
            if let Some(v) = value
                && codchi_fs::write(dir.join(file), v).is_err()
            {
                warn(format!("this host does not let `{file}` be set: the machine runs without that limit"));
            }
        }
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chown(&dir, owner.0, owner.1).at("change the owner of", &dir)?;
        for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            let f = dir.join(file);
            rustix::fs::chown(&f, owner.0, owner.1).at("change the owner of", &f)?;
        }
        let dir = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .at("open", &dir)?;
        Ok(Fresh { dir, unheld })
    }

    /// Kills everything in the machine's cgroup and removes it.
    pub fn clear(&self) {
        let dir = self.machine();
        kill_all(&dir);
        remove(&dir);
    }

    /// Removes all of it; this process goes back to where it was.
    pub fn leave(self) {
        self.clear();
        if !self.unit {
            let _ = codchi_fs::write(self.from.join("cgroup.procs"), "0");
            remove(&self.dir);
        }
    }
}

/// Makes a machine's user namespace with this limit in force, so that its processes together are held to so many, where its maker
/// is not the host's root; and each of its users in any case, once PID 1 has taken on the limit by [`take_on`]. See "ucounts" in
/// user_namespaces(7) and RLIMIT_NPROC in getrlimit(2).
pub(crate) fn while_limited<T>(tasks: Option<u64>, make: impl FnOnce() -> T) -> Result<T> {
    let Some(tasks) = tasks else { return Ok(make()) };
    let own = getrlimit(Resource::Nproc);
    let current = own.maximum.map_or(tasks, |most| most.min(tasks));
    setrlimit(Resource::Nproc, Rlimit { current: Some(current), ..own })
        .doing("limit the number of tasks")?;
    let made = make();
    setrlimit(Resource::Nproc, own).doing("limit the number of tasks")?;
    Ok(made)
}

/// Holds this process and all that come of it to so many tasks, each of their users. None may take that back.
pub(crate) fn take_on(tasks: Option<u64>) -> Result<()> {
    let Some(tasks) = tasks else { return Ok(()) };
    let most = getrlimit(Resource::Nproc).maximum.map_or(tasks, |most| most.min(tasks));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Nproc, limit).doing("limit the number of tasks")
}

/// Kills every process below a cgroup and waits until none is left.
fn kill_all(dir: &Path) {
    if codchi_fs::write(dir.join("cgroup.kill"), "1").is_err() {
        // Before Linux 5.14, or not ours: one by one.
        each_below(dir, &mut |d| {
            for pid in codchi_fs::read_to_string(d.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Some(p) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(p, rustix::process::Signal::KILL);
                }
            }
        });
    }
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let Ok(events) = codchi_fs::open(dir.join("cgroup.events")) else { return };
        let text = codchi_fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
        if !text.contains("populated 1") {
            return;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        // The kernel wakes us when the file changes; read again in any case, the change may have come before.
        let step = rustix::time::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let _ = poll(&mut fds, Some(&step));
    }
}

fn each_below(dir: &Path, f: &mut dyn FnMut(&Path)) {
    for e in codchi_fs::read_dir(dir).unwrap_or_default() {
        if e.file_type().is_ok_and(|t| t.is_dir()) {
            each_below(&e.path(), f);
        }
    }
    f(dir);
}

fn remove(dir: &Path) {
    each_below(dir, &mut |d| {
        let _: io::Result<()> = std::fs::remove_dir(d);
    });
}

/// Whether others are kept out of a directory or one above it.
pub(crate) fn is_private(path: &Path) -> Result<bool> {
    for d in path.ancestors().filter(|d| *d != Path::new("/")) {
        let mode = std::fs::metadata(d).at("examine", d)?.permissions().mode();
        if mode & 0o011 == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_under_each_mount() {
        let table = "38 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                     39 31 0:29 /user.slice /a\\040b rw shared:1 - cgroup2 cgroup2 rw\n\
                     40 31 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let m = mounts(table);
        assert_eq!(m.len(), 2);
        let own = own_path("4:memory:/x\n0::/user.slice/s1\n").unwrap();
        assert_eq!(m[0].path_of(own).unwrap(), Path::new("/sys/fs/cgroup/unified/user.slice/s1"));
        assert_eq!(m[1].path_of(own).unwrap(), Path::new("/a b/s1"));
        assert_eq!(m[1].path_of("system.slice"), None);
    }
}
