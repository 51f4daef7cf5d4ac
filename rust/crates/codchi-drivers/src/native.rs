//! The native driver: Codchi's own small runtime, no daemon, no engine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use codchi_core::folder::Folder;
use codchi_core::machine::{IDS, IdRange};
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::session::{self, Session};
use codchi_core::status::{Finding, Level};
use codchi_runtime::spec::{CALLER_FILE, Launch, User, shows_closure};
use codchi_runtime::{enter, folders, guard, outer, probe, relay, start, state};
use codchi_secrets::Bundle;

use crate::agent::{self, AgentError};
use crate::capability;
use crate::container::files::{self, Held};
use crate::container::{
    self, agent_dir, failed, given, ids, prepare, request, revision, switch, wait_for_agent,
};
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

    fn probe(&self, host: &Host) -> Vec<Finding> {
        let found = probe_apart(host.program).unwrap_or_else(|why| {
            vec![probe::Finding {
                what: "this computer".into(),
                ok: false,
                detail: format!("could not be looked at: {why}"),
                mend: None,
                optional: false,
            }]
        });
        let level = |f: &probe::Finding| match (f.ok, f.optional) {
            (true, _) => Level::Good,
            (false, true) => Level::Degraded,
            (false, false) => Level::Missing,
        };
        let told =
            |f: probe::Finding| Finding { level: level(&f), what: f.what, detail: f.detail, fix: f.mend };
        found.into_iter().map(told).collect()
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
        let mut launch = launch(host, machine)?;
        let dir = host.dirs.machine_runtime(machine.name);
        if !Launch::read(&dir)?.closure.is_empty() {
            // It sees only what it was started with: what it is switched to comes in sight before.
            if launch.closure.is_empty() {
                launch.closure = closure(host, &system.toplevel)?;
            }
            start::show(&dir, &launch.closure, revision())?;
        }
        let switched = switch::switch(&agent_dir(host, machine.name), machine.name, &system.toplevel)?;
        if matches!(switched.status, 0 | 4) {
            // What the machine starts when it reboots itself, and the ports it has from now on.
            let status = start::reload(&dir, &launch)?;
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

    fn refusal(&self, folder: &Folder) -> Option<String> {
        folders::refusal(folder)
    }

    fn follow(&self, host: &Host, machine: &MachineName, session: Session) -> Result<()> {
        Ok(relay::follow(&host.dirs.machine_runtime(machine), session)?)
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
            container::events::tell(host.progress, event)
        });
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
        container::at_rest(host, machine)
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
        container::forget(host, machine)
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
        let dir = host.dirs.machine_runtime(machine);
        let with_endpoint = || Ok(Launch::read(&dir)?.mounts("@endpoint@"));
        Ok(codchi_runtime::supervise::supervise(&dir, container::begun(machine, begin, with_endpoint))?)
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
        container::rename(host, from, to)
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
        user: exec.user.clone().or_else(|| user_of(host, machine)).unwrap_or_else(|| "root".into()),
        tty: exec.tty.unwrap_or_else(|| std::io::stdin().is_terminal() && std::io::stdout().is_terminal()),
    };
    Ok(enter::enter(&dir, &request)?)
}

/// What this host has, found out by a process of its own: namespaces are tried, for which a process must have one thread.
fn probe_apart(program: &Path) -> std::result::Result<Vec<probe::Finding>, String> {
    let mut asked = Command::new(program);
    let out = asked.args(["plumbing", "probe"]).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    serde_json::from_slice(&out.stdout).map_err(|_| String::from_utf8_lossy(&out.stderr).trim().to_owned())
}

/// What [`Native::probe`] runs; this process must have one thread.
pub fn probe_here() -> Result<()> {
    let failed =
        |e: std::io::Error| DriverError::Helper { what: "tell what was found".into(), reason: e.to_string() };
    serde_json::to_writer(std::io::stdout(), &probe::probe()).map_err(|e| failed(e.into()))
}

/// The machine's user, as the running system's manifest names it.
fn user_of(host: &Host, machine: &MachineName) -> Option<String> {
    let launch = container::launched(host, machine)?;
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
    let closure = match shows_closure(&engine) {
        true => closure(host, &system.toplevel)?,
        false => Vec::new(),
    };
    let user = &system.manifest.user;
    let given = machine.folders(&container::home(host))?;
    let (needs, granted) = (&system.manifest.needs, &machine.attachment.granted);
    let devices = capability::devices(needs, granted);
    let has_own = !given.is_empty() || !devices.is_empty();
    Ok(Launch {
        version: 1,
        name: machine.name.to_string(),
        engine,
        root: host.dirs.machine_root(machine.name),
        uid_base: machine.attachment.ids.map(|r| r.base),
        uid_count: machine.attachment.ids.map_or(IDS, |r| r.count),
        user: User { uid: user.uid, gid: user.gid.unwrap_or(User::default().gid) },
        // What is the caller's alone, a folder or a device, is the machine's user's only so.
        user_is_caller: !outer::is_privileged() && has_own,
        outer: outer::OuterConfig { nix: host.nix.map(Into::into) },
        store: "/nix/store".into(),
        toplevel: PathBuf::from(&system.toplevel),
        closure,
        bin: host.bin.into(),
        folders: given,
        ports: machine.ports(),
        channels: session::channels(needs, granted),
        git_hosts: codchi_core::consent::git_hosts(granted),
        devices,
        revision: revision(),
        patience: None,
        console_log: host.dirs.console_log(machine.name),
    })
}

/// Names of what a system needs to run, in the store.
fn closure(host: &Host, toplevel: &str) -> Result<Vec<String>> {
    let failed =
        |reason: String| DriverError::Helper { what: format!("find what `{toplevel}` needs"), reason };
    let store = host.store.ok_or_else(|| failed("the store is gone".into()))?;
    store.closure(toplevel).map_err(|e| failed(e.to_string()))
}

/// Whose files of the machine are the caller's on disk, as [`CALLER_FILE`] says: a user and a group.
fn caller(host: &Host, machine: &MachineName) -> Result<Option<(u32, u32)>> {
    let text =
        codchi_fs::read_if_exists(host.dirs.machine_data(machine).join(CALLER_FILE))?.unwrap_or_default();
    let mut ids = text.split_whitespace().map_while(|word| word.parse().ok());
    Ok(ids.next().zip(ids.next()))
}
