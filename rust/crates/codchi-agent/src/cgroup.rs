//! A control group for each command, below the agent's own (which the unit has delegated).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// The agent's own control group; nothing where there is none it may divide.
pub struct Cgroups(Option<PathBuf>);

/// The control group of one command.
pub struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
}

impl Cgroups {
    /// Finds the group of this process in the cgroup2 file system, see cgroups(7).
    pub fn of_this_process() -> Self {
        let find = || {
            let own = codchi_fs::read_to_string("/proc/self/cgroup").ok()?;
            let own = own.lines().find_map(|l| l.strip_prefix("0::/"))?.to_owned();
            ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                .iter()
                .find(|m| rustix::fs::statfs(**m).is_ok_and(|s| s.f_type as u64 == 0x6367_7270))
                .map(|mount| Path::new(mount).join(own))
        };
        Cgroups(find())
    }

    /// A new group. None is no reason not to run a command.
    pub fn create(&self) -> Option<Cgroup> {
        let own = self.0.as_ref()?;
        let pid = std::process::id();
        // A former session with this process id may have left children behind in its group.
        for n in 0..16 {
            let path = own.join(if n == 0 { format!("exec-{pid}") } else { format!("exec-{pid}-{n}") });
            match rustix::fs::mkdir(&path, Mode::from(0o755)) {
                Ok(()) => {
                    let dir = rustix::fs::open(
                        &path,
                        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                        Mode::empty(),
                    );
                    return dir.ok().map(|dir| Cgroup { path, dir });
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Removes groups whose last process has ended after its command.
    pub fn sweep(&self) {
        let Some(own) = &self.0 else { return };
        for entry in codchi_fs::read_dir(own).unwrap_or_default() {
            if entry.file_name().to_string_lossy().starts_with("exec-") {
                let _ = rustix::fs::unlinkat(CWD, entry.path(), AtFlags::REMOVEDIR);
            }
        }
    }
}

impl Cgroup {
    /// Process ids in it.
    pub fn processes(&self) -> Vec<i32> {
        let text = codchi_fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Removes it when it is empty; processes left in it keep it until the agent sweeps.
    pub fn remove(self) {
        let _ = rustix::fs::unlinkat(CWD, &self.path, AtFlags::REMOVEDIR);
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
