//! Holding a machine still: the processes of a container by their control group; a virtual machine, which is one process of the
//! host, by a signal.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use codchi_fs::{Lock, LockError};
use codchi_sys::{process, signal};

use crate::error::{Doing, Error, Result};
use crate::{cgroup, state};

/// Locked by whoever holds the machine still, in its runtime directory; where it is there and not locked, nobody let the machine go
/// on.
const FILE: &str = "still.lock";
/// How long its threads may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nothing tells when a process that is not a child has stopped.
const STEP: Duration = Duration::from_millis(2);

/// A machine that is held still until this is dropped.
pub(crate) struct Still {
    how: How,
    lock: Lock,
}

enum How {
    Process(OwnedFd),
    Group(PathBuf),
}

impl Drop for Still {
    fn drop(&mut self) {
        let gone_on = match &self.how {
            How::Process(process) => process::pidfd_signal(process.as_fd(), signal::SIGCONT).is_ok(),
            How::Group(freezer) => cgroup::thaw(freezer).is_ok(),
        };
        // Else the next command tries it again.
        if gone_on {
            let _ = self.lock.remove();
        }
    }
}

/// The folder in /proc of a virtual machine, and a descriptor of the process; none where none runs.
fn find(dir: &Path) -> Result<Option<(PathBuf, OwnedFd)>> {
    let look = || -> Result<Option<(i32, i32, Option<u64>)>> {
        let told = state::living(dir)?.filter(|s| s.root.is_some());
        Ok(told.and_then(|s| Some((s.pid, s.leader?, s.leader_start_time))))
    };
    let Some((supervisor, leader, began)) = look()? else { return Ok(None) };
    let Ok(process) = process::pidfd_open(leader) else { return Ok(None) };
    // The id may have gone to another process before the descriptor held it.
    let folder = Path::new("/proc").join(leader.to_string());
    let same = look()? == Some((supervisor, leader, began));
    // What an earlier Codchi looks after is its child.
    let known = |s: &state::Stat| s.parent == supervisor || began == Some(s.start_time);
    let its = state::stat(&folder).is_some_and(|s| known(&s) && !matches!(s.state, 'Z' | 'X'));
    Ok((same && its).then_some((folder, process)))
}

/// Whether no thread of a process does anything any more.
fn is_stopped(folder: &Path) -> Result<bool> {
    for task in codchi_fs::read_dir(folder.join("task"))? {
        if let Some(stat) = state::stat(&task.path())
            && !matches!(stat.state, 'T' | 't' | 'Z' | 'X')
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Holds a machine still, and waits until it is; none where none runs.
pub(crate) fn hold(dir: &Path) -> Result<Option<Still>> {
    let lock = take(Lock::take(dir.join(FILE), &who()))?;
    if let Some(leader) = state::living(dir)?.filter(|s| s.root.is_none()).and_then(|s| s.leader) {
        let freezer = cgroup::freezer(leader)?;
        let still = Still { how: How::Group(freezer.clone()), lock };
        cgroup::freeze(&freezer)?;
        return Ok(Some(still));
    }
    let Some((folder, process)) = find(dir)? else {
        lock.remove()?;
        return Ok(None);
    };
    process::pidfd_signal(process.as_fd(), signal::SIGSTOP).doing("hold the machine still")?;
    let still = Still { how: How::Process(process), lock };
    let until = Instant::now() + PATIENCE;
    while !is_stopped(&folder)? {
        if Instant::now() > until {
            return Err(Error::Told("the machine cannot be held still: it does not stop".into()));
        }
        std::thread::sleep(STEP);
    }
    Ok(Some(still))
}

/// Has a machine go on that somebody held still who is no more. Costs no more than a look where there is none.
///
/// # Errors
/// That cannot be found out.
pub fn go_on(dir: &Path) -> Result<()> {
    let file = dir.join(FILE);
    if file.symlink_metadata().is_err() {
        return Ok(());
    }
    let lock = match Lock::try_take(&file, &who()) {
        Err(LockError::Held { .. }) => return Ok(()),
        lock => take(lock)?,
    };
    if let Some(leader) = state::living(dir)?.filter(|s| s.root.is_none()).and_then(|s| s.leader) {
        cgroup::thaw(&cgroup::freezer(leader)?)?;
    } else if let Some((_, process)) = find(dir)? {
        process::pidfd_signal(process.as_fd(), signal::SIGCONT).doing("have the machine go on")?;
    }
    Ok(lock.remove()?)
}

fn who() -> String {
    format!("process {}", std::process::id())
}

fn take(lock: Result<Lock, LockError>) -> Result<Lock> {
    lock.map_err(|e| match e {
        LockError::File(e) => e.into(),
        held => Error::Told(held.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::state::Supervisor;

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn tell(dir: &Path, leader: i32) {
        let told =
            Supervisor { root: Some("/".into()), leader: Some(leader), ..Supervisor::of_this_process() };
        told.write(dir).unwrap();
    }

    fn is_held(pid: i32) -> bool {
        is_stopped(&Path::new("/proc").join(pid.to_string())).unwrap()
    }

    #[test]
    fn it_goes_on_when_its_holder_lets_go_or_is_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Killed(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = machine.0.id().cast_signed();
        tell(dir.path(), pid);
        let still = hold(dir.path()).unwrap().unwrap();
        assert!(is_held(pid));
        go_on(dir.path()).unwrap();
        assert!(is_held(pid), "its holder lives");
        drop(still);
        assert!(!is_held(pid));

        assert!(!dir.path().join(FILE).exists());

        // One that was killed leaves the file, and no lock.
        let process = process::pidfd_open(pid).unwrap();
        process::pidfd_signal(process.as_fd(), signal::SIGSTOP).unwrap();
        codchi_fs::write(dir.path().join(FILE), "").unwrap();
        go_on(dir.path()).unwrap();
        assert!(!is_held(pid) && !dir.path().join(FILE).exists());
    }

    #[test]
    fn a_process_that_is_not_the_supervisors_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        let mut shell = Killed(shell.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(shell.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid: i32 = line.trim().parse().unwrap();
        tell(dir.path(), pid);
        assert!(hold(dir.path()).unwrap().is_none());
        assert!(!is_held(pid));
        let other = process::pidfd_open(pid).unwrap();
        process::pidfd_signal(other.as_fd(), signal::SIGKILL).unwrap();
    }
}
