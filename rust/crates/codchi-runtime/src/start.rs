//! Starting and stopping the supervisor of a machine, from outside.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use codchi_fs::Context;
use codchi_secrets::Bundle;
use codchi_sys::{process, signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::manager::Manager;
use crate::spec::Launch;
use crate::{outer, state, still};

/// What a supervisor tells whoever started it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// PID 1 runs.
    Started {
        /// Its process id on the host.
        leader: i32,
    },
    /// PID 1 says that it is ready.
    Ready,
    /// What PID 1 says it does.
    Status {
        /// Its words.
        text: String,
    },
    /// Something a person should know.
    Warning {
        /// What.
        message: String,
    },
    /// It did not start.
    Failed {
        /// Why.
        message: String,
        /// The last lines of its console.
        #[serde(default)]
        console: Vec<String>,
        /// Whether the host lacks something.
        #[serde(default)]
        host: bool,
        /// What mends it.
        #[serde(default)]
        hints: Vec<String>,
    },
}

/// How long a machine may take to be ready, where its settings say nothing else.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a supervisor may take to do what it is told anew, and how often it is looked at meanwhile.
const RELOAD_PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(10);

/// How often a supervisor that somebody else started is looked at: it tells in its file only.
const JOIN_STEP: Duration = Duration::from_millis(20);

/// Replaces a file of the runtime directory, which is memory: no power cut to guard against.
pub(crate) fn write_quick(path: &Path, data: &[u8]) -> codchi_fs::Result<()> {
    let mut new = path.as_os_str().to_os_string();
    new.push(".new");
    codchi_fs::write(&new, data)?;
    codchi_fs::rename(&new, path)
}

/// Uses a socket in a folder whose path may be too long for one.
pub(crate) fn through_descriptor<T>(
    dir: &Path,
    name: &str,
    f: impl FnOnce(String) -> io::Result<T>,
) -> Result<T> {
    let fd = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", dir)?;
    // A socket's path has room for 107 bytes only.
    f(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()))
        .doing(format!("use the socket `{name}` in `{}`", dir.display()))
}

pub(crate) fn connect_events(dir: &Path) -> Result<UnixStream> {
    through_descriptor(dir, "events", UnixStream::connect)
}

/// Starts the supervisor of a machine, hands it the machine's secrets, and waits until the machine is ready. `program` runs
/// [`supervise`](crate::supervise::supervise) for it.
///
/// # Errors
/// [`Error::Start`] with the last lines of the console when it ended before; nothing is left of it then.
pub fn start(
    dir: &Path,
    launch: &Launch,
    program: &[OsString],
    secrets: &Bundle,
    on_event: &mut dyn FnMut(&Event),
) -> Result<()> {
    if state::living(dir)?.is_some() {
        return Err(Error::Running(launch.name.clone()));
    }
    write_launch(dir, launch)?;
    codchi_fs::remove_if_exists(dir.join(state::FILE))?;
    codchi_fs::remove_if_exists(dir.join("events"))?;
    let listener = through_descriptor(dir, "events", UnixListener::bind)?;
    let done = launch_and_wait(dir, launch, program, &listener, secrets, on_event);
    codchi_fs::remove_if_exists(dir.join("events"))?;
    if matches!(done, Err(Error::Timeout { .. })) {
        stop(dir, true, Duration::from_secs(10))?;
    }
    done
}

/// Writes what the supervisor of a machine is to know, from its next start on.
pub fn write_launch(dir: &Path, launch: &Launch) -> Result<()> {
    let text = serde_json::to_vec_pretty(launch).map_err(io::Error::other).doing("write the settings")?;
    Ok(write_quick(&dir.join(crate::spec::FILE), &text)?)
}

/// Brings what a running machine has of its host to what `launch` says, without touching the machine, and answers what
/// became of it.
///
/// # Errors
/// [`Error::NotRunning`], and [`Error::Timeout`] when the supervisor does not answer.
pub fn reload(dir: &Path, launch: &Launch) -> Result<state::Status> {
    let not_running = || Error::NotRunning(launch.name.clone());
    write_launch(dir, launch)?;
    let s = state::living(dir)?.ok_or_else(not_running)?;
    let fd = process::pidfd_open(s.pid).doing("find the supervisor")?;
    if state::living(dir)?.is_none_or(|now| now.pid != s.pid) {
        return Err(not_running());
    }
    process::pidfd_signal(fd.as_fd(), signal::SIGHUP).doing("signal the supervisor")?;
    let until = Instant::now() + RELOAD_PATIENCE;
    loop {
        match state::living(dir)? {
            None => return Err(not_running()),
            Some(now) if now.revision == launch.revision => return state::status(dir),
            Some(_) if Instant::now() > until => {
                return Err(Error::Timeout {
                    name: launch.name.clone(),
                    what: "take its new settings",
                    seconds: RELOAD_PATIENCE.as_secs(),
                });
            }
            Some(_) => drop(wait(&mut [PollFd::new(&fd, PollFlags::IN)], Instant::now() + STEP)?),
        }
    }
}

/// Shows a running machine that sees only a part of the store these names of it, too, before it is switched to what needs them.
///
/// # Errors
/// As of [`reload`].
pub fn show(dir: &Path, closure: &[String], revision: u64) -> Result<()> {
    let told = Launch::read(dir)?;
    reload(dir, &Launch { closure: closure.to_vec(), revision, ..told }).map(drop)
}

fn launch_and_wait(
    dir: &Path,
    launch: &Launch,
    program: &[OsString],
    listener: &UnixListener,
    secrets: &Bundle,
    on_event: &mut dyn FnMut(&Event),
) -> Result<()> {
    let patience = launch.patience.map_or(PATIENCE, |s| Duration::from_secs(s.into()));
    let until = Instant::now() + patience;
    let failed = |why: String| Error::Start { name: launch.name.clone(), why, console: vec![] };
    let slow =
        || Error::Timeout { name: launch.name.clone(), what: "become ready", seconds: patience.as_secs() };
    let mut spawned = spawn(dir, &launch.name, program)?;
    let mut stream = loop {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(spawned.process.as_ref().map(|p| PollFd::new(p, PollFlags::IN)));
        // It calls before it says in its file that it is there.
        let already = state::living(dir)?.is_some();
        if wait(&mut fds, if already { Instant::now() } else { until.min(Instant::now() + JOIN_STEP) })? > 0 {
            if fds[0].revents().is_empty() {
                return Err(failed(spawned.ended(dir)));
            }
            break listener.accept().doing("hear from the supervisor")?.0;
        }
        // The service manager had started it by itself, a moment ago: nobody listened yet, and it will not call.
        if already {
            return if join(dir)? { Ok(()) } else { Err(failed(spawned.ended(dir))) };
        }
        if Instant::now() > until {
            return Err(slow());
        }
    };
    secrets.send(&mut stream).map_err(|e| failed(e.to_string()))?;
    let mut lines = BufReader::new(stream);
    loop {
        if lines.buffer().is_empty() && wait(&mut [PollFd::new(lines.get_ref(), PollFlags::IN)], until)? == 0
        {
            return Err(slow());
        }
        let mut line = String::new();
        if lines.read_line(&mut line).doing("hear from the supervisor")? == 0 {
            return Err(failed(spawned.ended(dir)));
        }
        let event: Event =
            serde_json::from_str(&line).map_err(io::Error::other).doing("understand the supervisor")?;
        on_event(&event);
        match event {
            Event::Ready => return Ok(()),
            Event::Failed { message, console, host, hints } => {
                // It cleans up before it tells; when it is gone, nothing of it is left.
                spawned.wait(until)?;
                return Err(if host {
                    Error::Host { what: message, hints }
                } else {
                    Error::Start { name: launch.name.clone(), why: message, console }
                });
            }
            _ => {}
        }
    }
}

/// Waits for one of them, at most until then.
pub(crate) fn wait(fds: &mut [PollFd<'_>], until: Instant) -> Result<usize> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let t = rustix::time::Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        match poll(fds, Some(&t)) {
            Ok(n) => return Ok(n),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).doing("wait"),
        }
    }
}

/// A supervisor that was started.
struct Spawned {
    /// As a child of this process, unless a service manager has it.
    child: Option<std::process::Child>,
    /// The process; none when it is gone already.
    process: Option<OwnedFd>,
    /// Where it says why it ended.
    journal: Option<String>,
}

impl Spawned {
    /// Waits for its end.
    fn wait(&mut self, until: Instant) -> Result<()> {
        if let Some(p) = &self.process {
            wait(&mut [PollFd::new(p, PollFlags::IN)], until)?;
        }
        if let Some(c) = &mut self.child {
            c.wait().doing("wait for the supervisor")?;
        }
        Ok(())
    }

    /// Why it ended, in words.
    fn ended(&mut self, dir: &Path) -> String {
        let status = self.child.as_mut().and_then(|c| c.wait().ok()).map(|s| format!(" ({s})"));
        let log = codchi_fs::read_to_string(dir.join("supervisor.log")).unwrap_or_default();
        let last = log.lines().rev().find(|l| !l.trim().is_empty()).map(|l| format!(": {l}"));
        let look = || self.journal.as_ref().map(|j| format!("; see `{j}`"));
        format!(
            "its supervisor ended{}{}",
            status.unwrap_or_default(),
            last.or_else(look).unwrap_or_default()
        )
    }
}

/// Starts the supervisor, out of reach of what ends this program. As a child, unless a service manager has it.
fn spawn(dir: &Path, name: &str, program: &[OsString]) -> Result<Spawned> {
    let Some((exe, args)) = program.split_first() else {
        return Err(Error::Settings("no program to supervise with".into()));
    };
    if Manager::is_present() {
        return by_service_manager(dir, name, program);
    }
    if !outer::is_privileged() && crate::cgroup::own_delegated()?.is_none() {
        return Err(crate::cgroup::missing());
    }
    let log = codchi_fs::create(dir.join("supervisor.log"))?;
    let second = log.try_clone().doing("open the log")?;
    // It begins a session of its own; when this program ends, the next reaper inherits it.
    let child = Command::new(exe)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second)
        .current_dir("/")
        .spawn()
        .doing(format!("run `{}`", exe.display()))?;
    let process = Some(process::pidfd_open(child.id().cast_signed()).doing("watch a process")?);
    Ok(Spawned { child: Some(child), process, journal: None })
}

fn by_service_manager(dir: &Path, name: &str, program: &[OsString]) -> Result<Spawned> {
    // What an earlier supervisor without a service manager said.
    codchi_fs::remove_if_exists(dir.join("supervisor.log"))?;
    let Some(exe) = program.first() else {
        return Err(Error::Settings("no program to supervise with".into()));
    };
    let manager = Manager::of_caller();
    let process = manager.start(name, Path::new(exe))?;
    Ok(Spawned { child: None, process, journal: Some(manager.journal(name)) })
}

/// Waits for a supervisor that is at work until its machine is ready; `false` when it ends before, or none is there.
pub fn join(dir: &Path) -> Result<bool> {
    let Some(s) = state::living(dir)? else { return Ok(false) };
    let Ok(process) = process::pidfd_open(s.pid) else { return Ok(false) };
    let patience = Launch::read(dir).ok().and_then(|l| l.patience);
    let patience = patience.map_or(PATIENCE, |s| Duration::from_secs(s.into()));
    let until = Instant::now() + patience;
    loop {
        match state::living(dir)? {
            None => return Ok(false),
            Some(now) if now.state == state::State::Running => return Ok(true),
            Some(now) if Instant::now() > until => {
                let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let what = if now.state == state::State::Stopping { "stop" } else { "become ready" };
                return Err(Error::Timeout { name, what, seconds: patience.as_secs() });
            }
            // It tells in its file, and ends; only the end wakes us.
            Some(_) => wait(&mut [PollFd::new(&process, PollFlags::IN)], Instant::now() + JOIN_STEP)?,
        };
    }
}

/// Stops a machine and waits until nothing of it is left. `force`: it is not asked, but killed.
///
/// # Errors
/// [`Error::NotRunning`], or [`Error::Timeout`] when it still runs after `patience`.
pub fn stop(dir: &Path, force: bool, patience: Duration) -> Result<()> {
    let name = || dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(s) = state::living(dir)? else { return Err(Error::NotRunning(name())) };
    let fd = process::pidfd_open(s.pid).doing("find the supervisor")?;
    // The id may have gone to another process between the two looks; now the descriptor holds it.
    if state::living(dir)?.is_none_or(|now| now.pid != s.pid) {
        return Err(Error::NotRunning(name()));
    }
    let number = if force { signal::SIGQUIT } else { signal::SIGTERM };
    // A machine that powers itself off is asked, too: from then on it has a deadline.
    process::pidfd_signal(fd.as_fd(), number).doing("signal the supervisor")?;
    if wait(&mut [PollFd::new(&fd, PollFlags::IN)], Instant::now() + patience)? == 0 {
        return Err(Error::Timeout { name: name(), what: "stop", seconds: patience.as_secs() });
    }
    Ok(())
}

/// Holds a running machine still while `f` runs: its processes are there, but none of them does anything.
///
/// # Errors
/// [`Error::NotRunning`], or that it could not be held.
pub fn while_held<T>(dir: &Path, f: impl FnOnce() -> T) -> Result<T> {
    let name = || dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let held = still::hold(dir)?.ok_or_else(|| Error::NotRunning(name()))?;
    let done = f();
    drop(held);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_one_line_of_json() {
        let e = Event::Started { leader: 7 };
        assert_eq!(serde_json::to_string(&e).unwrap(), r#"{"event":"started","leader":7}"#);
        let f: Event = serde_json::from_str(r#"{"event":"failed","message":"no"}"#).unwrap();
        assert!(matches!(f, Event::Failed { host: false, .. }));
    }
}
