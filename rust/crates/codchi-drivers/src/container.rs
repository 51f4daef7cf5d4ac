//! What every driver that runs containers shares: the agent's folder, how commands reach it, how systems are switched.

pub(crate) mod files;
pub(crate) mod network;
mod root;
pub(crate) mod switch;

use std::path::PathBuf;
use std::time::Duration;

use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_runtime::manager::Manager;
use codchi_runtime::probe;
use codchi_secrets::Bundle;

pub use files::{copy_tree_here, hold_here, pack_tree_here, unpack_tree_here};
pub use root::{remove_tree, remove_tree_here};

use crate::agent::{self, AgentError, CaptureLimits, ExecRequest, Tty};
use crate::{Delivered, DriverError, Exec, Host, Result};

/// The folder with the agent's socket, as this host sees it.
pub(crate) fn agent_dir(host: &Host, machine: &MachineName) -> PathBuf {
    codchi_runtime::state::agent_dir(&host.dirs.machine_runtime(machine))
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

/// Hands over secrets through the agent.
pub(crate) fn deliver(
    host: &Host,
    machine: &MachineName,
    secrets: &Bundle,
    keep_others: bool,
) -> Result<Delivered> {
    agent::deliver(&agent_dir(host, machine), &secrets.delivery(keep_others)).map_err(|e| failed(machine, &e))
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

/// Has the host's service manager start the machine by itself, or no longer.
pub(crate) fn on_boot(host: &Host, machine: &MachineName, on: bool) -> Result<()> {
    let manager = Manager::of_caller();
    if !on {
        return Ok(manager.disable(machine.as_str())?);
    }
    if !Manager::is_present() {
        return Err(DriverError::Host {
            what: "no systemd of yours runs on this computer".into(),
            hints: vec![format!("let what starts your services run `codchi start {machine}`")],
        });
    }
    manager.enable(machine.as_str(), host.program)?;
    if let Some(mend) = probe::lingering().filter(|f| !f.ok).and_then(|f| f.mend) {
        host.progress.report(Told::Warning(&format!(
            "`{machine}` starts when you log in, and ends when you log out; with the computer after {mend}"
        )));
    }
    Ok(())
}
