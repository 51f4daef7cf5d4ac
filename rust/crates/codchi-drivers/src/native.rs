//! The native driver: Codchi's own small runtime, no daemon, no engine.

mod events;
mod ids;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use codchi_core::machine::{IDS, IdRange};
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::report::{Diagnose, Kind};
use codchi_core::status::{Finding, Level, State};
use codchi_runtime::manager::Manager;
use codchi_runtime::spec::{CALLER_FILE, Launch, User};
use codchi_runtime::{enter, guard, outer, probe, start, state};
use codchi_secrets::Bundle;

use crate::agent::{self, AgentError};
use crate::container::files::{self, Held};
use crate::container::{self, agent_dir, failed, prepare, request, switch, wait_for_agent};
use crate::{
    Begun, Delivered, Driver, DriverError, Exec, Export, Flavour, Given, Host, Info, Machine, Result,
    Running, Switched,
};
use codchi_files::Report;

/// The driver.
pub struct Native;

static INFO: Info = Info { name: "native", kind: Flavour::Container, runs: true };

/// How long a machine may take to go down before it is killed, beyond what its own settings allow.
const PATIENCE: Duration = Duration::from_secs(100);

impl Driver for Native {
    fn info(&self) -> &'static Info {
        &INFO
    }

    fn probe(&self, _: &Host) -> Vec<Finding> {
        probe::probe()
            .into_iter()
            .map(|f| Finding {
                what: f.what,
                level: match (f.ok, f.optional) {
                    (true, _) => Level::Good,
                    (false, true) => Level::Degraded,
                    (false, false) => Level::Missing,
                },
                detail: f.detail,
                fix: f.mend,
            })
            .collect()
    }

    fn ids(&self, taken: &[IdRange]) -> Result<Option<IdRange>> {
        ids::choose(taken)
    }

    fn create(&self, host: &Host, machine: &Machine) -> Result<()> {
        codchi_fs::create_private_dir(&host.dirs.data)?;
        let root = host.dirs.machine_root(machine.name);
        if let Some(parent) = root.parent() {
            codchi_fs::create_private_dir(parent)?;
        }
        // Its owner is the supervisor's to set: only it has the machine's ids.
        Ok(codchi_fs::create_dir_all(root)?)
    }

    fn update(&self, host: &Host, machine: &Machine) -> Result<Switched> {
        let Some(system) = &machine.system else {
            return Err(DriverError::Settings("there is no system".into()));
        };
        let launch = launch(host, machine)?;
        let switched = switch::switch(&agent_dir(host, machine.name), machine.name, &system.toplevel)?;
        if matches!(switched.status, 0 | 4) {
            // What the machine starts when it reboots itself, and the ports it has from now on.
            let status = start::reload(&host.dirs.machine_runtime(machine.name), &launch)?;
            for warning in given(machine.name, status).refusals {
                host.progress.report(Told::Warning(&warning));
            }
        }
        Ok(switched)
    }

    fn give(&self, host: &Host, machine: &Machine) -> Result<Given> {
        let launch = launch(host, machine)?;
        Ok(given(machine.name, start::reload(&host.dirs.machine_runtime(machine.name), &launch)?))
    }

    fn given(&self, host: &Host, machine: &MachineName) -> Result<Given> {
        Ok(given(machine, state::status(&host.dirs.machine_runtime(machine))?))
    }

    fn start(&self, host: &Host, machine: &Machine) -> Result<()> {
        let dir = host.dirs.machine_runtime(machine.name);
        // One that starts with the computer, or goes down, is not disturbed.
        if start::join(&dir)? {
            return Ok(());
        }
        prepare(host, machine.name)?;
        let launch = launch(host, machine)?;
        let program: Vec<OsString> =
            vec![host.program.into(), "supervise".into(), machine.name.as_str().into()];
        let started = start::start(&dir, &launch, &program, machine.secrets, &mut |event| {
            events::tell(host.progress, event)
        });
        started.map_err(|e| start_failure(host, machine.name, e))?;
        wait_for_agent(host, machine.name)
    }

    fn stop(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let dir = host.dirs.machine_runtime(machine);
        if state::status(&dir)?.supervisor.is_none() {
            // What is left of one that went down by itself: a person who says stop has seen that.
            return Ok(codchi_fs::remove_if_exists(dir.join("supervisor.json"))?);
        }
        match start::stop(&dir, false, PATIENCE) {
            Ok(()) => Ok(()),
            Err(_) if state::status(&dir)?.supervisor.is_none() => Ok(()),
            Err(_) => {
                host.progress.report(Told::Warning("the machine does not go down by itself; it is killed"));
                start::stop(&dir, true, Duration::from_secs(20))
                    .map_err(|e| DriverError::Stop { machine: machine.clone(), reason: e.to_string() })
            }
        }
    }

    fn state(&self, host: &Host, machine: &MachineName) -> Result<Running> {
        let status = state::status(&host.dirs.machine_runtime(machine))?;
        let leader = status.leader.and_then(|l| u32::try_from(l).ok());
        Ok(Running {
            state: match status.state {
                state::State::Stopped => State::Stopped,
                state::State::Starting => State::Starting,
                state::State::Running | state::State::Stopping => State::Running,
                state::State::Failed => State::Failed,
                state::State::NeedsSecrets => State::NeedsSecrets,
            },
            leader,
            toplevel: None,
            reason: Some(status.text).filter(|t| !t.is_empty()),
        })
    }

    fn addresses(&self, running: &Running) -> Vec<String> {
        running.leader.map(container::network::addresses).unwrap_or_default()
    }

    fn attach(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8> {
        let progress = host.progress;
        let mut warn = |message: &str| progress.report(Told::Warning(message));
        match agent::exec_warning(&agent_dir(host, machine), request(exec), &mut warn) {
            Ok(status) => Ok(status),
            // Nothing was run: the agent is gone, but the machine's namespaces are there.
            Err(AgentError::NoSocket { .. } | AgentError::Connect { .. }) => {
                warn("the agent in the machine does not answer; entering its namespaces instead");
                enter_namespaces(host, machine, exec)
            }
            Err(e) => Err(failed(machine, &e)),
        }
    }

    fn capture(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<(u8, String)> {
        container::capture(host, machine, exec)
    }

    fn deliver(
        &self,
        host: &Host,
        machine: &MachineName,
        secrets: &Bundle,
        keep_others: bool,
    ) -> Result<Delivered> {
        container::deliver(host, machine, secrets, keep_others)
    }

    fn remove(&self, host: &Host, machine: &MachineName) -> Result<()> {
        self.stop(host, machine)?;
        let runtime = host.dirs.machine_runtime(machine);
        for dir in [&host.dirs.machine_root(machine), &runtime] {
            container::remove_tree(host.program, dir)?;
        }
        codchi_fs::remove_if_exists(host.dirs.machine_data(machine).join(CALLER_FILE))?;
        let others = runtime.parent().map(codchi_fs::read_dir).transpose();
        let last = !others.is_ok_and(|o| o.is_some_and(|o| !o.is_empty()));
        Ok(Manager::of_caller().forget(machine.as_str(), last)?)
    }

    fn on_boot(&self, host: &Host, machine: &MachineName, on: bool) -> Result<()> {
        container::on_boot(host, machine, on)
    }

    fn prepare(&self, host: &Host, machine: &Machine) -> Result<()> {
        prepare(host, machine.name)?;
        Ok(start::write_launch(&host.dirs.machine_runtime(machine.name), &launch(host, machine)?)?)
    }

    fn supervise(
        &self,
        host: &Host,
        machine: &MachineName,
        begin: &mut dyn FnMut(bool) -> Result<Begun>,
    ) -> Result<()> {
        prepare(host, machine)?;
        let begin = |awaited| {
            let begun = begin(awaited).map_err(|e| match e.kind() {
                Kind::Host => codchi_runtime::Error::Host { what: e.to_string(), hints: e.hints() },
                _ => codchi_runtime::Error::Told(e.to_string()),
            })?;
            let endpoint: Box<dyn codchi_runtime::supervise::Service> =
                Box::new(begun.store.endpoint(machine));
            Ok(codchi_runtime::supervise::Begun { services: vec![endpoint], secrets: begun.secrets })
        };
        Ok(codchi_runtime::supervise::supervise(&host.dirs.machine_runtime(machine), begin)?)
    }

    fn duplicate(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<Report> {
        let root = host.dirs.machine_root(to);
        // What an earlier attempt left.
        container::remove_tree(host.program, &root)?;
        codchi_fs::create_private_dir(&host.dirs.data)?;
        codchi_fs::create_private_dir(host.dirs.machine_data(to))?;
        codchi_fs::create_dir_all(&root)?;
        let source = host.dirs.machine_root(from);
        if source.symlink_metadata().is_err() {
            // It never started.
            return Ok(Report::default());
        }
        // Which of the owners on disk is the caller.
        let file = |m| host.dirs.machine_data(m).join(CALLER_FILE);
        if let Some(account) = codchi_fs::read_if_exists(file(from))? {
            codchi_fs::write_atomic(file(to), account, 0o600)?;
        }
        let dir = host.dirs.machine_runtime(from);
        let held = state::status(&dir)?.leader.map(|_| Held::new(host.program, &dir)).transpose()?;
        let report = files::copy(host, &source, &root)?;
        drop(held);
        Ok(report)
    }

    fn pack(&self, host: &Host, machine: &Machine, export: &Export, to: std::fs::File) -> Result<Report> {
        let dir = host.dirs.machine_runtime(machine.name);
        let held = state::status(&dir)?.leader.map(|_| Held::new(host.program, &dir)).transpose()?;
        let caller = caller(host, machine.name)?;
        let report = files::pack(host, &host.dirs.machine_root(machine.name), caller, export, to)?;
        drop(held);
        Ok(report)
    }

    fn unpack(&self, host: &Host, machine: &Machine, from: std::fs::File, without: &str) -> Result<Report> {
        let root = host.dirs.machine_root(machine.name);
        // What an earlier attempt left.
        container::remove_tree(host.program, &root)?;
        codchi_fs::remove_if_exists(host.dirs.machine_data(machine.name).join(CALLER_FILE))?;
        codchi_fs::create_private_dir(&host.dirs.data)?;
        codchi_fs::create_private_dir(host.dirs.machine_data(machine.name))?;
        codchi_fs::create_dir_all(&root)?;
        files::unpack(host, &root, without, from)
    }

    fn rename(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<()> {
        self.stop(host, from)?;
        if Manager::of_caller().is_enabled(from.as_str()) {
            container::on_boot(host, to, true)?;
            container::on_boot(host, from, false)?;
        }
        container::remove_tree(host.program, &host.dirs.machine_runtime(from))?;
        // The root file system belongs to others and cannot be moved to another folder; the folder that holds it is ours.
        let (old, new) = (host.dirs.machine_data(from), host.dirs.machine_data(to));
        if old.exists() {
            codchi_fs::rename(old, new)?;
        }
        Ok(())
    }
}

fn given(machine: &MachineName, status: state::Status) -> Given {
    Given { refusals: status.refusals(machine.as_str()), ports: status.ports, folders: status.folders }
}

/// Runs a command in the machine's namespaces, without its agent: no login environment, but a way in.
fn enter_namespaces(host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8> {
    use std::io::IsTerminal;
    let dir = host.dirs.machine_runtime(machine);
    let request = enter::Request {
        argv: exec.argv.clone(),
        env: exec.env.clone(),
        cwd: exec.cwd.clone(),
        user: exec.user.clone().or_else(|| user_of(&dir)).unwrap_or_else(|| "root".into()),
        tty: exec.tty.unwrap_or_else(|| std::io::stdin().is_terminal() && std::io::stdout().is_terminal()),
    };
    Ok(enter::enter(&dir, &request)?)
}

/// The machine's user, as the running system's manifest names it.
fn user_of(dir: &Path) -> Option<String> {
    let text = codchi_fs::read_to_string(dir.join("spec.json")).ok()?;
    let launch: Launch = serde_json::from_str(&text).ok()?;
    let store = launch.outer.nix.map_or_else(|| launch.store.clone(), |nix| nix.join("store"));
    let file = store.join(launch.toplevel.file_name()?).join("codchi/manifest.json");
    let manifest: codchi_core::manifest::Manifest =
        serde_json::from_str(&codchi_fs::read_to_string(file).ok()?).ok()?;
    Some(manifest.user.name)
}

/// What a supervisor is told of a machine.
fn launch(host: &Host, machine: &Machine) -> Result<Launch> {
    let Some(system) = &machine.system else {
        return Err(DriverError::Settings("there is no system".into()));
    };
    // A module of a stranger may have put it there.
    let engine = guard::settled(&system.manifest.engine)?;
    let user = &system.manifest.user;
    let folders =
        machine.folders(&host.dirs.home.canonicalize().unwrap_or_else(|_| host.dirs.home.clone()))?;
    Ok(Launch {
        version: 1,
        name: machine.name.to_string(),
        engine,
        root: host.dirs.machine_root(machine.name),
        uid_base: machine.attachment.ids.map(|r| r.base),
        uid_count: machine.attachment.ids.map_or(IDS, |r| r.count),
        user: User { uid: user.uid, gid: user.gid.unwrap_or(User::default().gid) },
        user_is_caller: !outer::is_privileged() && !folders.is_empty(),
        outer: outer::OuterConfig { nix: host.nix.map(Into::into) },
        store: "/nix/store".into(),
        toplevel: PathBuf::from(&system.toplevel),
        bin: host.bin.into(),
        folders,
        ports: machine.ports(),
        revision: revision(),
        console_log: host.dirs.console_log(machine.name),
    })
}

/// Whose files of the machine are the caller's on disk, as [`CALLER_FILE`] says: a user and a group.
fn caller(host: &Host, machine: &MachineName) -> Result<Option<(u32, u32)>> {
    let text =
        codchi_fs::read_if_exists(host.dirs.machine_data(machine).join(CALLER_FILE))?.unwrap_or_default();
    let mut ids = text.split_whitespace().map_while(|word| word.parse().ok());
    Ok(ids.next().zip(ids.next()))
}

/// A number that no earlier launch of this machine has.
fn revision() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

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
