//! Starting and stopping the supervisor of a machine, from outside.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use codchi_fs::Context;
use codchi_sys::{process, signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::network::find_program;
use crate::outer;
use crate::spec::Launch;
use crate::state;

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

/// The template unit of supervisors.
pub const UNIT: &str = "codchi-machine@.service";

/// How long a machine may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a supervisor may take to do what it is told anew, and how often it is looked at meanwhile.
const RELOAD_PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(10);

/// The template unit; `user` for a user's service manager.
pub fn unit_text(program: &Path, user: bool) -> String {
    let wanted = if user { "default.target" } else { "multi-user.target" };
    let after = if user { "" } else { "After=network-online.target\nWants=network-online.target\n" };
    format!(
        "[Unit]\nDescription=Code machine %i\n{after}\n[Service]\nType=exec\nExecStart=\"{}\" supervise %i\nDelegate=yes\n\
         KillMode=mixed\nTimeoutStopSec=100\nOOMPolicy=continue\n\n[Install]\nWantedBy={wanted}\n",
        program.display().to_string().replace('%', "%%")
    )
}

/// Replaces a file of the runtime directory, which is memory: no power cut to guard against.
pub(crate) fn write_quick(path: &Path, data: &[u8]) -> codchi_fs::Result<()> {
    let mut new = path.as_os_str().to_os_string();
    new.push(".new");
    codchi_fs::write(&new, data)?;
    codchi_fs::rename(&new, path)
}

fn through_descriptor<T>(dir: &Path, name: &str, f: impl FnOnce(String) -> io::Result<T>) -> Result<T> {
    let fd = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", dir)?;
    // A socket's path has room for 107 bytes only.
    f(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd()))
        .doing(format!("use the socket `{name}` in `{}`", dir.display()))
}

pub(crate) fn connect_events(dir: &Path) -> Result<UnixStream> {
    through_descriptor(dir, "events", UnixStream::connect)
}

/// One datagram of the notification socket, and the process that sent it.
pub(crate) fn receive_notification(socket: &OwnedFd) -> Option<(String, i32)> {
    let mut text = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let n = {
        let mut into = [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
            .ok()?
            .bytes
    };
    let mut pid = 0;
    for m in control.drain() {
        if let RecvAncillaryMessage::ScmCredentials(c) = m {
            pid = c.pid.as_raw_nonzero().get();
        }
        // Descriptors that came with it are closed here.
    }
    Some((String::from_utf8_lossy(text.get(..n)?).into_owned(), pid))
}

/// Starts the supervisor of a machine and waits until the machine is ready. `program` runs
/// [`supervise`](crate::supervise::supervise) for it.
///
/// # Errors
/// [`Error::Start`] with the last lines of the console when it ended before; nothing is left of it then.
pub fn start(
    dir: &Path,
    launch: &Launch,
    program: &[OsString],
    on_event: &mut dyn FnMut(&Event),
) -> Result<()> {
    if state::living(dir)?.is_some() {
        return Err(Error::Running(launch.name.clone()));
    }
    write_launch(dir, launch)?;
    codchi_fs::remove_if_exists(dir.join(state::FILE))?;
    codchi_fs::remove_if_exists(dir.join("events"))?;
    let listener = through_descriptor(dir, "events", UnixListener::bind)?;
    let done = launch_and_wait(dir, launch, program, &listener, on_event);
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

fn launch_and_wait(
    dir: &Path,
    launch: &Launch,
    program: &[OsString],
    listener: &UnixListener,
    on_event: &mut dyn FnMut(&Event),
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let failed = |why: String| Error::Start { name: launch.name.clone(), why, console: vec![] };
    let slow =
        || Error::Timeout { name: launch.name.clone(), what: "become ready", seconds: PATIENCE.as_secs() };
    let mut child = spawn(dir, &launch.name, program)?;
    let ended = |c: &mut std::process::Child| {
        let log = codchi_fs::read_to_string(dir.join("supervisor.log")).unwrap_or_default();
        let last =
            log.lines().rev().find(|l| !l.trim().is_empty()).map(|l| format!(": {l}")).unwrap_or_default();
        failed(format!(
            "its supervisor ended{}{last}",
            c.wait().map(|s| format!(" ({s})")).unwrap_or_default()
        ))
    };
    let stream = {
        let pid = child
            .as_ref()
            .map(|c| process::pidfd_open(c.id().cast_signed()))
            .transpose()
            .doing("watch a process")?;
        loop {
            let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
            fds.extend(pid.as_ref().map(|p| PollFd::new(p, PollFlags::IN)));
            if wait(&mut fds, until)? == 0 {
                return Err(slow());
            }
            if !fds[0].revents().is_empty() {
                break listener.accept().doing("hear from the supervisor")?.0;
            }
            if let Some(c) = &mut child {
                return Err(ended(c));
            }
        }
    };
    let mut lines = BufReader::new(stream);
    loop {
        if lines.buffer().is_empty() && wait(&mut [PollFd::new(lines.get_ref(), PollFlags::IN)], until)? == 0
        {
            return Err(slow());
        }
        let mut line = String::new();
        if lines.read_line(&mut line).doing("hear from the supervisor")? == 0 {
            return Err(match &mut child {
                Some(c) => ended(c),
                None => failed("its supervisor ended".into()),
            });
        }
        let event: Event =
            serde_json::from_str(&line).map_err(io::Error::other).doing("understand the supervisor")?;
        on_event(&event);
        match event {
            Event::Ready => return Ok(()),
            Event::Failed { message, console, host, hints } => {
                // It cleans up before it tells; when it is gone, nothing of it is left.
                if let Some(c) = &mut child {
                    c.wait().doing("wait for the supervisor")?;
                }
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

fn wait(fds: &mut [PollFd<'_>], until: Instant) -> Result<usize> {
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

/// Whether a service manager can take the supervisor: the system's for root, the user's own for others.
pub(crate) fn service_manager() -> bool {
    if find_program("systemd-run").is_none() {
        return false;
    }
    if outer::is_root() {
        return Path::new("/run/systemd/system").is_dir();
    }
    std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|d| Path::new(&d).join("systemd/private").exists())
}

/// Starts the supervisor, out of reach of what ends this program. As a child, unless a service manager has it.
fn spawn(dir: &Path, name: &str, program: &[OsString]) -> Result<Option<std::process::Child>> {
    let Some((exe, args)) = program.split_first() else {
        return Err(Error::Settings("no program to supervise with".into()));
    };
    if service_manager() {
        return by_service_manager(dir, name, program).map(|()| None);
    }
    if !outer::is_root() && crate::cgroup::own_delegated()?.is_none() {
        return Err(crate::cgroup::missing());
    }
    let log = codchi_fs::create(dir.join("supervisor.log"))?;
    let second = log.try_clone().doing("open the log")?;
    // It begins a session of its own; when this program ends, the next reaper inherits it.
    Command::new(exe)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second)
        .current_dir("/")
        .spawn()
        .map(Some)
        .doing(format!("run `{}`", exe.display()))
}

fn by_service_manager(dir: &Path, name: &str, program: &[OsString]) -> Result<()> {
    let user = !outer::is_root();
    let scope: &[&str] = if user { &["--user"] } else { &[] };
    let unit = format!("codchi-machine@{name}.service");
    let run = |c: &mut Command, what: &str| -> Result<()> {
        let o = c.stdin(Stdio::null()).output().doing(format!("run `{what}`"))?;
        if o.status.success() {
            return Ok(());
        }
        Err(Error::Told(format!("`{what}` failed: {}", String::from_utf8_lossy(&o.stderr).trim())))
    };
    let known =
        Command::new("systemctl").args(scope).args(["cat", &unit]).output().is_ok_and(|o| o.status.success());
    if known {
        return run(Command::new("systemctl").args(scope).args(["start", &unit]), "systemctl start");
    }
    let log = dir.join("supervisor.log");
    codchi_fs::create(&log)?;
    let mut c = Command::new("systemd-run");
    c.args(scope).args(["--quiet", "--collect", "--no-ask-password", "--service-type=exec"]);
    c.arg(format!("--unit={unit}")).arg(format!("--description=Code machine {name}"));
    for p in ["Delegate=yes", "KillMode=mixed", "TimeoutStopSec=100", "OOMPolicy=continue"] {
        c.arg("-p").arg(p);
    }
    c.arg("-p").arg(format!("StandardError=append:{}", log.display()));
    for v in [
        "PATH",
        "HOME",
        "USER",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "XDG_STATE_HOME",
        "XDG_DATA_HOME",
        "XDG_CACHE_HOME",
    ] {
        if let Some(value) = std::env::var_os(v) {
            let mut setting = OsString::from(format!("--setenv={v}="));
            setting.push(value);
            c.arg(setting);
        }
    }
    run(c.arg("--").args(program), "systemd-run")
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
    let leader = state::living(dir)?.and_then(|s| s.leader).ok_or_else(|| Error::NotRunning(name()))?;
    let held = crate::cgroup::hold(leader)?;
    let done = f();
    drop(held);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_delegates_and_runs_the_machine_it_is_named_for() {
        let t = unit_text(Path::new("/opt/100%/codchi"), true);
        assert!(t.contains("ExecStart=\"/opt/100%%/codchi\" supervise %i\nDelegate=yes\n"), "{t}");
        assert!(t.contains("WantedBy=default.target"));
    }

    #[test]
    fn events_are_one_line_of_json() {
        let e = Event::Started { leader: 7 };
        assert_eq!(serde_json::to_string(&e).unwrap(), r#"{"event":"started","leader":7}"#);
        let f: Event = serde_json::from_str(r#"{"event":"failed","message":"no"}"#).unwrap();
        assert!(matches!(f, Event::Failed { host: false, .. }));
    }
}
