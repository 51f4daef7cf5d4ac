//! From a start to an end: what is the same whatever a supervisor runs the machine on.

use std::ffi::OsString;
use std::time::Duration;

use codchi_core::machine::IDS;
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_runtime::outer::OuterConfig;
use codchi_runtime::spec::{Launch, User};
use codchi_runtime::{start as runtime, state};
use serde_json::Value;

use super::{agent_dir, events, given, home, prepare, revision, switch, wait_for_agent};
use crate::{DriverError, Given, Host, Machine, Result, Switched, System};

/// How long a machine may take to go down before it is killed, beyond what its supervisor allows.
pub const PATIENCE: Duration = Duration::from_secs(100);
/// How long a supervisor may take to see that its machine was killed.
pub const FAREWELL: Duration = Duration::from_secs(20);

/// The system that a machine shall run.
pub fn system<'a>(machine: &'a Machine) -> Result<&'a System> {
    machine.system.as_ref().ok_or_else(|| DriverError::Settings("there is no system".into()))
}

/// What a supervisor is told of a machine that is as most are: `engine` are the settings, as its driver reads them.
pub fn launch(host: &Host, machine: &Machine, engine: Value) -> Result<Launch> {
    let system = system(machine)?;
    let user = &system.manifest.user;
    Ok(Launch {
        version: 1,
        name: machine.name.to_string(),
        engine,
        root: host.dirs.machine_root(machine.name),
        uid_base: machine.attachment.ids.map(|r| r.base),
        uid_count: machine.attachment.ids.map_or(IDS, |r| r.count),
        user: User { uid: user.uid, gid: user.gid.unwrap_or(User::default().gid) },
        user_is_caller: false,
        outer: OuterConfig { nix: host.nix.map(Into::into) },
        store: "/nix/store".into(),
        toplevel: system.toplevel.clone().into(),
        closure: Vec::new(),
        bin: host.bin.into(),
        folders: machine.folders(&home(host))?,
        ports: machine.ports(),
        channels: Vec::new(),
        git_hosts: Vec::new(),
        devices: Vec::new(),
        revision: revision(),
        runtime: None,
        patience: None,
        console_log: host.dirs.console_log(machine.name),
    })
}

/// Starts a machine and waits until it is up; `launch` is asked when nobody looks after it.
pub fn start(host: &Host, machine: &Machine, launch: impl FnOnce() -> Result<Launch>) -> Result<()> {
    let name = machine.name;
    let dir = host.dirs.machine_runtime(name);
    // One that starts with the computer, or goes down, is not disturbed.
    if runtime::join(&dir)? {
        return Ok(());
    }
    let launch = launch()?;
    prepare(host, name)?;
    let program: Vec<OsString> = vec![host.program.into(), "supervise".into(), name.as_str().into()];
    let started = runtime::start(&dir, &launch, &program, machine.secrets, &mut |event| {
        events::tell(host.progress, event)
    });
    started.map_err(|e| start_failure(host, name, e))?;
    wait_for_agent(host, name)
}

/// Why a machine did not come up, with where its console is.
fn start_failure(host: &Host, machine: &MachineName, error: codchi_runtime::Error) -> DriverError {
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

/// Stops a machine that ends with its supervisor.
pub fn stop(host: &Host, machine: &MachineName) -> Result<()> {
    let dir = host.dirs.machine_runtime(machine);
    if state::status(&dir)?.supervisor.is_none() {
        // What is left of one that went down by itself: a person who says stop has seen that.
        return Ok(codchi_fs::remove_if_exists(dir.join("supervisor.json"))?);
    }
    match runtime::stop(&dir, false, PATIENCE) {
        Ok(()) => Ok(()),
        Err(_) if state::status(&dir)?.supervisor.is_none() => Ok(()),
        Err(_) => {
            host.progress.report(Told::Warning("the machine does not go down by itself; it is killed"));
            Ok(runtime::stop(&dir, true, FAREWELL)?)
        }
    }
}

/// Switches a running machine to its system. Then `launch` is what the machine starts when it reboots itself, and what it has
/// of its host from now on; `before` makes ready for that.
pub fn update(
    host: &Host,
    machine: &Machine,
    launch: &Launch,
    before: impl FnOnce() -> Result<()>,
) -> Result<Switched> {
    let switched = switch::switch(&agent_dir(host, machine.name), machine.name, &system(machine)?.toplevel)?;
    if matches!(switched.status, 0 | 4) {
        before()?;
        for warning in give(host, machine, launch)?.refusals {
            host.progress.report(Told::Warning(&warning));
        }
    }
    Ok(switched)
}

/// Brings what a running machine has of its host to what `launch` says.
pub fn give(host: &Host, machine: &Machine, launch: &Launch) -> Result<Given> {
    Ok(given(machine.name, runtime::reload(&host.dirs.machine_runtime(machine.name), launch)?))
}

/// Writes down what a supervisor runs that nobody waits for.
pub fn write(host: &Host, machine: &Machine, launch: &Launch) -> Result<()> {
    prepare(host, machine.name)?;
    Ok(runtime::write_launch(&host.dirs.machine_runtime(machine.name), launch)?)
}
