//! What every driver that runs containers shares: the agent's folder, how commands reach it, how systems are switched.

pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod network;
mod root;
pub(crate) mod switch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_runtime::{start, state};

pub use files::{copy_tree_here, hold_here};
pub use root::{remove_tree, remove_tree_here};

use crate::agent::{self, AgentError, CaptureLimits, ExecRequest, Tty};
use crate::{DriverError, Exec, Given, Host, Result};

/// The folder with the agent's socket, as this host sees it.
pub(crate) fn agent_dir(host: &Host, machine: &MachineName) -> PathBuf {
    host.dirs.machine_runtime(machine).join("agent")
}

/// A command as the agent takes it.
pub(crate) fn request(exec: &Exec) -> ExecRequest {
    ExecRequest {
        argv: exec.argv.clone(),
        env: exec.env.clone(),
        cwd: exec.cwd.clone().map(Into::into),
        user: exec.user.clone(),
        tty: match exec.tty {
            None => Tty::Auto,
            Some(true) => Tty::Always,
            Some(false) => Tty::Never,
        },
    }
}

/// A command that could not be run.
pub(crate) fn failed(machine: &MachineName, error: &AgentError) -> DriverError {
    DriverError::Attach { machine: machine.clone(), reason: error.to_string(), status: error.exit_status() }
}

/// Runs a command through the agent and gives its exit status and what it printed.
pub(crate) fn capture(host: &Host, machine: &MachineName, exec: &Exec) -> Result<(u8, String)> {
    let done = agent::capture(&agent_dir(host, machine), request(exec), b"", CaptureLimits::default())
        .map_err(|e| failed(machine, &e))?;
    let text = [done.stdout, done.stderr].concat();
    Ok((done.status, String::from_utf8_lossy(&text).into_owned()))
}

/// The folders a supervisor finds.
pub(crate) fn prepare(host: &Host, machine: &MachineName) -> Result<()> {
    private_runtime(host)?;
    codchi_fs::create_private_dir(host.dirs.machine_runtime(machine))?;
    codchi_fs::create_private_dir(host.dirs.logs(machine))?;
    Ok(())
}

/// A runtime folder in a place that all may write to must be the caller's own.
fn private_runtime(host: &Host) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let dir = &host.dirs.runtime;
    codchi_fs::create_private_dir(dir)?;
    let meta = std::fs::symlink_metadata(dir).map_err(|source| codchi_fs::FsError {
        op: "examine",
        path: dir.clone(),
        source,
    })?;
    if meta.is_dir() && meta.uid() == host.dirs.uid && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(DriverError::Host {
        what: format!("`{}` is not a folder of yours alone", dir.display()),
        hints: vec!["set `XDG_RUNTIME_DIR` to one, as a desktop session does".into()],
    })
}

/// READY may come before the agent listens; the first command must not fail for that.
pub(crate) fn wait_for_agent(host: &Host, machine: &MachineName) -> Result<()> {
    let dir = agent_dir(host, machine);
    let until = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        match agent::ping(&dir) {
            Ok(()) => return Ok(()),
            Err(e) if std::time::Instant::now() > until => {
                let message = format!("the agent in `{machine}` does not answer: {e}");
                host.progress.report(Told::Warning(&message));
                return Ok(());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Whether the host's systemd starts the machine by itself.
pub(crate) fn starts_on_boot(host: &Host, machine: &MachineName) -> bool {
    let mut c = std::process::Command::new("systemctl");
    if !host.dirs.is_root() {
        c.arg("--user");
    }
    let unit = format!("codchi-machine@{machine}.service");
    let answer = c.args(["is-enabled", "--quiet", &unit]).stdin(std::process::Stdio::null()).output();
    Path::new("/run/systemd/system").exists() && answer.is_ok_and(|o| o.status.success())
}

/// Has the host's systemd start the machine by itself, or no longer.
pub(crate) fn on_boot(host: &Host, machine: &MachineName, on: bool) -> Result<()> {
    let user = !host.dirs.is_root();
    let place = if user { host.dirs.home.join(".config/systemd/user") } else { "/etc/systemd/system".into() };
    let file = place.join(start::UNIT);
    let unit = format!("codchi-machine@{machine}.service");
    let systemctl = |words: &[&str]| {
        let mut c = std::process::Command::new("systemctl");
        if user {
            c.arg("--user");
        }
        c.args(words).stdin(std::process::Stdio::null()).output()
    };
    if !on {
        if file.exists() && Path::new("/run/systemd/system").exists() {
            let _ = systemctl(&["disable", "--quiet", &unit]);
        }
        return Ok(());
    }
    if !Path::new("/run/systemd/system").exists() {
        return Err(DriverError::Host {
            what: "this computer is not started by systemd".into(),
            hints: vec![format!("let what starts your services run `codchi start {machine}`")],
        });
    }
    codchi_fs::create_dir_all(&place)?;
    codchi_fs::write_atomic(&file, start::unit_text(host.program, user), 0o644)?;
    for words in [&["daemon-reload"][..], &["enable", "--quiet", &unit]] {
        let out = systemctl(words)
            .map_err(|e| DriverError::Helper { what: "run `systemctl`".into(), reason: e.to_string() })?;
        if !out.status.success() {
            return Err(DriverError::Helper {
                what: format!("`systemctl {}`", words.join(" ")),
                reason: String::from_utf8_lossy(&out.stderr).trim().into(),
            });
        }
    }
    Ok(())
}

/// Why a machine did not come up, with where its console is.
pub(crate) fn start_failure(host: &Host, machine: &MachineName, error: codchi_runtime::Error) -> DriverError {
    match error {
        codchi_runtime::Error::Start { why, console, .. } => DriverError::Start {
            machine: machine.clone(),
            reason: why,
            console,
            log: host.dirs.console_log(machine),
        },
        other => other.into(),
    }
}

/// What a machine has of its host, as its supervisor tells it.
pub(crate) fn given(machine: &MachineName, status: state::Status) -> Given {
    Given { refusals: status.refusals(machine.as_str()), ports: status.ports }
}

/// A number that no earlier launch of this machine has.
pub(crate) fn revision() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}
