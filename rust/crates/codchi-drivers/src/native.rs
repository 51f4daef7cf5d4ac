//! The native driver: Codchi's own small runtime, no daemon, no engine.

mod ids;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use codchi_core::dirs::Dirs;
use codchi_core::machine::IdRange;
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::status::{Finding, Level, State};
use codchi_runtime::spec::{Launch, Mount, MountKind};
use codchi_runtime::{enter, outer, probe, start, state};

use codchi_store::Store;

use crate::agent::{self, AgentError};
use crate::container::files::{self, Held};
use crate::container::{self, agent_dir, failed, given, prepare, request, revision, switch, wait_for_agent};
use crate::{Driver, DriverError, Exec, Flavour, Given, Host, Info, Machine, Result, Running, Switched};

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
        let state = state::status(&dir)?.state;
        if matches!(state, state::State::Running) {
            return Ok(());
        }
        prepare(host, machine.name)?;
        let launch = launch(host, machine)?;
        let program: Vec<OsString> =
            vec![host.program.into(), "supervise".into(), machine.name.as_str().into()];
        let started =
            start::start(&dir, &launch, &program, &mut |event| container::events::tell(host.progress, event));
        started.map_err(|e| container::start_failure(host, machine.name, e))?;
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

    fn remove(&self, host: &Host, machine: &MachineName) -> Result<()> {
        self.stop(host, machine)?;
        self.on_boot(host, machine, false)?;
        for dir in [host.dirs.machine_root(machine), host.dirs.machine_runtime(machine)] {
            container::remove_tree(host.program, &dir)?;
        }
        Ok(())
    }

    fn on_boot(&self, host: &Host, machine: &MachineName, on: bool) -> Result<()> {
        container::on_boot(host, machine, on)
    }

    fn supervise(&self, dirs: &Dirs, machine: &MachineName, store: &Store) -> Result<()> {
        let endpoint = store.endpoint(machine);
        let dir = dirs.machine_runtime(machine);
        Ok(codchi_runtime::supervise::supervise(&dir, vec![Box::new(endpoint)])?)
    }

    fn duplicate(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<codchi_files::Report> {
        let root = host.dirs.machine_root(to);
        // What an earlier attempt left.
        container::remove_tree(host.program, &root)?;
        codchi_fs::create_private_dir(&host.dirs.data)?;
        codchi_fs::create_private_dir(host.dirs.machine_data(to))?;
        codchi_fs::create_dir_all(&root)?;
        let source = host.dirs.machine_root(from);
        if source.symlink_metadata().is_err() {
            // It never started.
            return Ok(codchi_files::Report::default());
        }
        let dir = host.dirs.machine_runtime(from);
        let held = state::status(&dir)?.leader.map(|_| Held::new(host.program, &dir)).transpose()?;
        let report = files::copy(host, &source, &root)?;
        drop(held);
        Ok(report)
    }

    fn rename(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<()> {
        self.stop(host, from)?;
        if container::starts_on_boot(host, from) {
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

    fn export(&self, _: &Host, _: &Machine, _: &Path) -> Result<()> {
        Err(DriverError::Unsupported { driver: INFO.name, what: "export machines yet" })
    }
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
    let needs = &system.manifest.needs;
    let mounts: Vec<Mount> = needs
        .mounts
        .iter()
        .map(|(guest, m)| {
            let source = match m.source.strip_prefix('~') {
                Some(rest) => host.dirs.home.join(rest.trim_start_matches('/')),
                None => PathBuf::from(&m.source),
            };
            let mut options: Vec<String> = vec!["nosuid".into(), "nodev".into()];
            if m.read_only {
                options.push("ro".into());
            }
            Mount {
                kind: MountKind::Bind,
                source: Some(source),
                target: guest.into(),
                options,
                idmap: host.dirs.is_root(),
                outer: false,
                optional: m.optional,
            }
        })
        .collect();
    Ok(Launch {
        version: 1,
        name: machine.name.to_string(),
        engine: system.manifest.engine.clone(),
        root: host.dirs.machine_root(machine.name),
        uid_base: machine.attachment.ids.map(|r| r.base),
        caller_is: (!host.dirs.is_root() && !mounts.is_empty()).then_some(system.manifest.user.uid),
        outer: outer::OuterConfig { nix: host.nix.map(Into::into) },
        store: "/nix/store".into(),
        toplevel: PathBuf::from(&system.toplevel),
        bin: host.bin.into(),
        mounts,
        ports: machine.ports(),
        revision: revision(),
        console_log: host.dirs.console_log(machine.name),
    })
}
