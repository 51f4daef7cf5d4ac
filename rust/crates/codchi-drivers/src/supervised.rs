//! What every driver shares whose machines have a supervisor of Codchi's beside them (`codchi supervise`): how they start and end, the
//! agent's folder, how commands reach it, how systems are switched, their files.

pub(crate) mod container;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod ids;
pub(crate) mod life;
mod measure;
pub(crate) mod root;
pub(crate) mod switch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::report::{Diagnose, Kind};
use codchi_core::status::State;
use codchi_runtime::manager::Manager;
use codchi_runtime::services::Service;
use codchi_runtime::spec::Launch;
use codchi_runtime::{probe, state, supervise};
use codchi_secrets::Bundle;
use codchi_sys::process::{self, Child};

pub use container::probe_here;
pub use files::{copy_tree_here, hold_here, pack_tree_here, unpack_tree_here};
pub use measure::{measure_tree, measure_tree_here};
pub use root::{remove_tree, remove_tree_here};

use crate::agent::{self, AgentError, CaptureLimits, ExecRequest, Tty};
use crate::{Begun, Delivered, DriverError, Exec, Given, Host, Result, Running};

/// What asks and tells a machine's systemd.
const SYSTEMCTL: &str = "/run/current-system/sw/bin/systemctl";

/// The folder with the agent's socket, as this host sees it.
pub(crate) fn agent_dir(host: &Host, machine: &MachineName) -> PathBuf {
    codchi_runtime::state::agent_dir(&host.dirs.machine_runtime(machine))
}

/// A command as the agent takes it.
fn request(exec: &Exec) -> ExecRequest {
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
    DriverError::Attach {
        machine: machine.clone(),
        reason: error.to_string(),
        status: error.exit_status(),
        hints: error.hints(),
    }
}

/// Runs a command through the agent with this process's streams. `otherwise` is for an agent that does not answer: nothing was
/// run then.
pub(crate) fn attach(
    host: &Host,
    machine: &MachineName,
    exec: &Exec,
    otherwise: impl FnOnce() -> Result<u8>,
) -> Result<u8> {
    let mut warn = |message: &str| host.progress.report(Told::Warning(message));
    match agent::exec_warning(&agent_dir(host, machine), request(exec), &mut warn) {
        Err(AgentError::NoSocket { .. } | AgentError::Connect { .. }) => otherwise(),
        done => done.map_err(|e| failed(machine, &e)),
    }
}

/// No agent answers, and there is no other way in.
pub(crate) fn silent(machine: &MachineName, ways: Vec<String>) -> DriverError {
    let mut hints = ways;
    hints.push(format!("`codchi restart {machine}` starts the machine anew"));
    DriverError::Host { what: format!("the agent in `{machine}` does not answer"), hints }
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
    let done = agent::deliver(&agent_dir(host, machine), &secrets.delivery(keep_others))
        .map_err(|e| failed(machine, &e))?;
    codchi_runtime::keep::tell(&host.dirs.machine_runtime(machine), secrets, keep_others)?;
    Ok(done)
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

/// A process that asks a machine's systemd something as soon as somebody answers, and ends when it has an answer. It is asked by the
/// agent, which listens in `agent`: there is nobody else.
pub(crate) fn ask(agent: &Path, words: &'static [&'static str]) -> codchi_runtime::Result<Child> {
    let agent = agent.to_path_buf();
    let child = process::fork(move || {
        let kill = Some(rustix::process::Signal::KILL);
        if rustix::process::set_parent_process_death_signal(kill).is_err() {
            return 1;
        }
        loop {
            let command = [SYSTEMCTL].into_iter().chain(words.iter().copied());
            let request = ExecRequest { user: Some("root".into()), ..ExecRequest::command(command) };
            match agent::capture(&agent, request, b"", CaptureLimits::default()) {
                Ok(_) => return 0,
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    });
    child.map_err(|e| codchi_runtime::Error::Told(format!("cannot start a process: {e}")))
}

/// READY may come before the agent listens; the first command must not fail for that.
fn wait_for_agent(host: &Host, machine: &MachineName) -> Result<()> {
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

/// Whether the host's service manager starts the machine by itself.
pub(crate) fn is_on_boot(_: &Host, machine: &MachineName) -> bool {
    Manager::of_caller().is_enabled(machine.as_str())
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

/// What a machine has of its host, as its supervisor tells it.
pub(crate) fn given(machine: &MachineName, status: state::Status) -> Given {
    Given { refusals: status.refusals(machine.as_str()), ports: status.ports, folders: status.folders }
}

/// What a machine does, as its supervisor tells it.
pub(crate) fn running(status: state::Status) -> Running {
    Running {
        state: match status.state {
            state::State::Stopped => State::Stopped,
            state::State::Starting => State::Starting,
            state::State::Running | state::State::Stopping => State::Running,
            state::State::Failed => State::Failed,
            state::State::NeedsSecrets => State::NeedsSecrets,
        },
        attended: true,
        leader: status.leader.and_then(|l| u32::try_from(l).ok()),
        acceleration: status.acceleration,
        reason: Some(status.text).filter(|t| !t.is_empty()),
    }
}

/// What the supervisor of a machine was told last: the system that runs, and that a reboot starts.
pub(crate) fn launched(host: &Host, machine: &MachineName) -> Option<Launch> {
    Launch::read(&host.dirs.machine_runtime(machine)).ok()
}

/// What a machine that is off does, which may be that it failed.
pub(crate) fn at_rest(host: &Host, machine: &MachineName) -> Result<Running> {
    Ok(running(state::status(&host.dirs.machine_runtime(machine))?))
}

/// What a supervisor begins with, as the runtime takes it.
pub(crate) fn begun(
    machine: &MachineName,
    begin: &mut dyn FnMut(bool) -> Result<Begun>,
    with_endpoint: impl FnOnce() -> codchi_runtime::Result<bool>,
) -> impl FnOnce(bool) -> codchi_runtime::Result<supervise::Begun> {
    move |awaited| {
        let begun = begin(awaited).map_err(|e| match e.kind() {
            Kind::Host => codchi_runtime::Error::Host { what: e.to_string(), hints: e.hints() },
            _ => codchi_runtime::Error::Told(e.to_string()),
        })?;
        let mut services: Vec<Box<dyn Service>> = Vec::new();
        if with_endpoint()? {
            services.push(Box::new(begun.store.endpoint(machine)));
        }
        Ok(supervise::Begun { services, secrets: begun.secrets })
    }
}

/// The person's home, without links: none of them counts on the way to a host folder.
pub(crate) fn home(host: &Host) -> PathBuf {
    host.dirs.home.canonicalize().unwrap_or_else(|_| host.dirs.home.clone())
}

/// Has the host's service manager forget a machine.
pub(crate) fn forget(host: &Host, machine: &MachineName) -> Result<()> {
    let others = host.dirs.machine_runtime(machine).parent().map(codchi_fs::read_dir).transpose();
    let last = !others.is_ok_and(|o| o.is_some_and(|o| !o.is_empty()));
    Ok(Manager::of_caller().forget(machine.as_str(), last)?)
}

/// Gives what a stopped machine has on this host beside its engine to another name.
pub(crate) fn rename(host: &Host, from: &MachineName, to: &MachineName) -> Result<()> {
    if Manager::of_caller().is_enabled(from.as_str()) {
        on_boot(host, to, true)?;
        on_boot(host, from, false)?;
    }
    remove_tree(host.program, &host.dirs.machine_runtime(from))?;
    // The root file system belongs to others and cannot be moved to another folder; the folder that holds it is ours.
    let (old, new) = (host.dirs.machine_data(from), host.dirs.machine_data(to));
    if old.exists() {
        codchi_fs::rename(old, new)?;
    }
    Ok(())
}

/// A number that no earlier launch of this machine has.
pub(crate) fn revision() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}
