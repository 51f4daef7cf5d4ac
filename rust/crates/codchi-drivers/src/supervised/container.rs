//! Containers that a supervisor of Codchi's is the parent of: all that drivers of such have in common.

use std::path::Path;
use std::process::{Command, Stdio};

use codchi_core::folder::Folder;
use codchi_core::machine::IdRange;
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::session::{self, Session};
use codchi_core::status::{Finding, Level};
use codchi_runtime::spec::{Launch, shows_closure};
use codchi_runtime::{enter, folders, guard, outer, probe, relay, start, state, still};

use super::files::Held;
use super::{ids, life, prepare, revision, root};
use crate::capability;
use crate::supervised;
use crate::{
    Begun, Driver, DriverError, Exec, Export, Given, Host, Info, Machine, Result, Running, Switched,
};
use codchi_files::Report;

/// What is a driver's own.
pub(crate) trait Own: Sync {
    /// What it is.
    fn info(&self) -> &'static Info;
    /// What this host has and lacks for it.
    fn probe(&self, host: &Host) -> Vec<Finding>;
    /// Adds what only this driver tells a supervisor.
    ///
    /// # Errors
    /// What the host lacks for that.
    fn complete(&self, host: &Host, launch: Launch) -> Result<Launch>;
}

/// A driver of such containers.
pub(crate) struct Container<T>(pub T);

impl<T: Own> Container<T> {
    /// What a supervisor is told of a machine.
    fn launch(&self, host: &Host, machine: &Machine) -> Result<Launch> {
        let system = life::system(machine)?;
        // A module of a stranger may have put it there.
        let engine = guard::settled(&system.manifest.engine)?;
        let closure = match shows_closure(&engine) {
            true => closure(host, &system.toplevel)?,
            false => Vec::new(),
        };
        let (needs, granted) = (&system.manifest.needs, &machine.attachment.granted);
        let devices = capability::devices(needs, granted);
        let launch = life::launch(host, machine, engine)?;
        let has_own = !launch.folders.is_empty() || !devices.is_empty();
        let launch = Launch {
            // What is the caller's alone, a folder or a device, is the machine's user's only so.
            user_is_caller: !outer::is_privileged() && has_own,
            closure,
            channels: session::channels(needs, granted),
            git_hosts: codchi_core::consent::git_hosts(granted),
            devices,
            ..launch
        };
        self.0.complete(host, launch)
    }
}

impl<T: Own> Driver for Container<T> {
    fn info(&self) -> &'static Info {
        self.0.info()
    }

    fn probe(&self, host: &Host) -> Vec<Finding> {
        self.0.probe(host)
    }

    fn ids(&self, taken: &[IdRange]) -> Result<Option<IdRange>> {
        ids::choose(taken)
    }

    fn create(&self, host: &Host, machine: &Machine) -> Result<()> {
        root::create(host, machine.name)
    }

    fn update(&self, host: &Host, machine: &Machine) -> Result<Switched> {
        let mut launch = self.launch(host, machine)?;
        let dir = host.dirs.machine_runtime(machine.name);
        if !Launch::read(&dir)?.closure.is_empty() {
            // It sees only what it was started with: what it is switched to comes in sight before.
            if launch.closure.is_empty() {
                launch.closure = closure(host, &life::system(machine)?.toplevel)?;
            }
            start::show(&dir, &launch.closure, revision())?;
        }
        life::update(host, machine, &launch, || Ok(()))
    }

    fn give(&self, host: &Host, machine: &Machine) -> Result<Given> {
        life::give(host, machine, &self.launch(host, machine)?)
    }

    fn refusal(&self, _: &Host, _: &MachineName, folder: &Folder) -> Option<String> {
        folders::refusal(folder)
    }

    fn follow(&self, host: &Host, machine: &MachineName, session: Session) -> Result<()> {
        Ok(relay::follow(&host.dirs.machine_runtime(machine), session)?)
    }

    fn start(&self, host: &Host, machine: &Machine) -> Result<()> {
        life::start(host, machine, || self.launch(host, machine))
    }

    fn stop(&self, host: &Host, machine: &MachineName) -> Result<()> {
        life::stop(host, machine)
    }

    fn state(&self, host: &Host, machine: &MachineName) -> Result<Running> {
        // Whoever comes next finds it at work, though a copy of it was killed.
        still::go_on(&host.dirs.machine_runtime(machine))?;
        supervised::at_rest(host, machine)
    }

    fn attach(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8> {
        supervised::attach(host, machine, exec, || {
            let but = "the agent in the machine does not answer; entering its namespaces instead";
            host.progress.report(Told::Warning(but));
            enter_namespaces(host, machine, exec)
        })
    }

    fn keeps_folder(&self) -> bool {
        true
    }

    fn remove(&self, host: &Host, machine: &MachineName) -> Result<()> {
        self.stop(host, machine)?;
        root::remove(host, machine)
    }

    fn prepare(&self, host: &Host, machine: &Machine) -> Result<()> {
        life::write(host, machine, &self.launch(host, machine)?)
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
        Ok(codchi_runtime::supervise::supervise(&dir, supervised::begun(machine, begin, with_endpoint))?)
    }

    fn duplicate(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<Report> {
        root::duplicate(host, from, to, || still(host, from))
    }

    fn pack(&self, host: &Host, machine: &Machine, export: &Export, to: std::fs::File) -> Result<Report> {
        let _still = still(host, machine.name)?;
        root::pack(host, machine, export, to)
    }

    fn unpack(&self, host: &Host, machine: &Machine, from: std::fs::File, without: &str) -> Result<Report> {
        root::unpack(host, machine, from, without)
    }

    fn rename(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<()> {
        self.stop(host, from)?;
        supervised::rename(host, from, to)
    }
}

/// Holds a machine still that runs.
fn still(host: &Host, machine: &MachineName) -> Result<Option<Held>> {
    let dir = host.dirs.machine_runtime(machine);
    state::status(&dir)?.leader.map(|_| Held::new(host.program, &dir)).transpose()
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

/// What this host has and lacks for such containers.
pub(crate) fn probe(host: &Host) -> Vec<Finding> {
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
    let told = |f: probe::Finding| Finding { level: level(&f), what: f.what, detail: f.detail, fix: f.mend };
    found.into_iter().map(told).collect()
}

/// What this host has, found out by a process of its own: namespaces are tried, for which a process must have one thread.
fn probe_apart(program: &Path) -> std::result::Result<Vec<probe::Finding>, String> {
    let mut asked = Command::new(program);
    let out = asked.args(["plumbing", "probe"]).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    serde_json::from_slice(&out.stdout).map_err(|_| String::from_utf8_lossy(&out.stderr).trim().to_owned())
}

/// What [`probe`] runs; this process must have one thread.
pub fn probe_here() -> Result<()> {
    let failed =
        |e: std::io::Error| DriverError::Helper { what: "tell what was found".into(), reason: e.to_string() };
    serde_json::to_writer(std::io::stdout(), &probe::probe()).map_err(|e| failed(e.into()))
}

/// The machine's user, as the running system's manifest names it.
fn user_of(host: &Host, machine: &MachineName) -> Option<String> {
    let launch = supervised::launched(host, machine)?;
    let store = launch.outer.nix.map_or_else(|| launch.store.clone(), |nix| nix.join("store"));
    let file = store.join(launch.toplevel.file_name()?).join("codchi/manifest.json");
    let manifest: codchi_core::manifest::Manifest =
        serde_json::from_str(&codchi_fs::read_to_string(file).ok()?).ok()?;
    Some(manifest.user.name)
}

/// Names of what a system needs to run, in the store.
fn closure(host: &Host, toplevel: &str) -> Result<Vec<String>> {
    let failed =
        |reason: String| DriverError::Helper { what: format!("find what `{toplevel}` needs"), reason };
    let store = host.store.ok_or_else(|| failed("the store is gone".into()))?;
    store.closure(toplevel).map_err(|e| failed(e.to_string()))
}
