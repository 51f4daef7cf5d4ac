//! The Incus driver: machines as unprivileged system containers of an Incus daemon, through its REST API.
//!
//! The engine starts PID 1 and keeps the root file system; `codchi supervise` stands beside the machine and gives it network,
//! endpoint and resolver as everywhere else ([`codchi_runtime::attend`]). Commands go through the agent's socket, in a folder
//! of this host that the engine mounts: the engine's own `exec` is never used.

mod api;
mod attendant;
mod mark;
mod probe;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use codchi_core::dirs::Dirs;
use codchi_core::machine::IdRange;
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::status::{Finding, State};
use codchi_files::Report;
use codchi_runtime::outer::OuterConfig;
use codchi_runtime::spec::Launch;
use codchi_runtime::{start, state};
use codchi_store::Store;
use serde_json::{Value, json};

use crate::agent::{self, AgentError};
use crate::container::{self, agent_dir, failed, given, prepare, request, revision, switch, wait_for_agent};
use crate::{Driver, DriverError, Exec, Flavour, Given, Host, Info, Machine, Result, Running, Switched};

use api::{Api, ApiError};

/// The driver.
pub struct Incus;

static INFO: Info = Info { name: "incus", kind: Flavour::Container, runs: true };

/// How long a machine may take to go down before it is killed, beyond what its attendant allows.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(100);

impl Driver for Incus {
    fn info(&self) -> &'static Info {
        &INFO
    }

    fn probe(&self, host: &Host) -> Vec<Finding> {
        probe::probe(host.dirs)
    }

    fn ids(&self, _: &[IdRange]) -> Result<Option<IdRange>> {
        // The engine gives each instance a range of its own.
        Ok(None)
    }

    fn create(&self, host: &Host, machine: &Machine) -> Result<()> {
        let api = connect()?;
        if let Some(instance) = find(&api, machine.name)? {
            return if mark::is_ours(&instance, host.dirs, machine.name) {
                Ok(())
            } else {
                Err(foreign(machine.name))
            };
        }
        let pool = pool(&api)?;
        let instance = json!({
            "name": machine.name,
            "type": "container",
            "description": "a code machine; `codchi` looks after it",
            // An empty root file system: the machine's init fills it.
            "source": { "type": "none" },
            // A person's default profile may lack anything, and change.
            "profiles": [],
            "config": {
                mark::MACHINE: machine.name,
                mark::OWNER: mark::owner(host.dirs),
                "security.idmap.isolated": "true",
                "security.idmap.size": "65536",
            },
            "devices": { "root": { "type": "disk", "path": "/", "pool": pool } },
        });
        let name = machine.name.as_str();
        api.change("POST", "/1.0/instances", &instance)
            .map_err(|e| did_not(e, format!("make the instance `{name}`")))?;
        // Where a mount with mapped owners goes has to be there.
        for folder in ["/nix", "/nix/store"] {
            if let Err(e) = api.make_folder(name, folder) {
                let _ = api.delete(&format!("/1.0/instances/{name}"));
                return Err(did_not(e, format!("prepare the root file system of `{name}`")));
            }
        }
        Ok(())
    }

    fn update(&self, host: &Host, machine: &Machine) -> Result<Switched> {
        let Some(system) = &machine.system else {
            return Err(DriverError::Settings("there is no system".into()));
        };
        // One that was started by hand has nobody who takes its new settings.
        self.look_after(host, machine.name)?;
        let launch = launch(host, machine)?;
        let switched = switch::switch(&agent_dir(host, machine.name), machine.name, &system.toplevel)?;
        if matches!(switched.status, 0 | 4) {
            // What the machine starts when it reboots itself, and the ports it has from now on.
            let dir = host.dirs.machine_runtime(machine.name);
            attendant::configure(&connect()?, &launch, &dir)?;
            for warning in given(machine.name, start::reload(&dir, &launch)?).refusals {
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
        if state::status(&dir)?.state == state::State::Running {
            return Ok(());
        }
        // Found out here, where it can be said better than by the attendant.
        let api = connect()?;
        match find(&api, machine.name)? {
            Some(instance) if mark::is_ours(&instance, host.dirs, machine.name) => {}
            Some(_) => return Err(foreign(machine.name)),
            None => return Err(gone(&api, host.dirs, machine.name)),
        }
        prepare(host, machine.name)?;
        attend(host, machine.name, &launch(host, machine)?)?;
        wait_for_agent(host, machine.name)
    }

    fn stop(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let dir = host.dirs.machine_runtime(machine);
        if state::status(&dir)?.supervisor.is_some() {
            let stopped = start::stop(&dir, false, PATIENCE);
            if stopped.is_ok() || state::status(&dir)?.supervisor.is_none() {
                return Ok(());
            }
            host.progress.report(Told::Warning("the machine does not go down by itself; it is killed"));
            return start::stop(&dir, true, std::time::Duration::from_secs(20))
                .map_err(|e| DriverError::Stop { machine: machine.clone(), reason: e.to_string() });
        }
        codchi_fs::remove_if_exists(dir.join("supervisor.json"))?;
        // Started by hand, or its attendant was killed.
        let api = connect()?;
        match find(&api, machine)? {
            Some(i) if mark::is_ours(&i, host.dirs, machine) && i["status"] != "Stopped" => {
                attendant::stop(&api, machine.as_str(), true)
                    .map_err(|e| DriverError::Stop { machine: machine.clone(), reason: e.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn state(&self, host: &Host, machine: &MachineName) -> Result<Running> {
        match attended(host, machine)? {
            Some(running) => Ok(running),
            None => self.states(host, std::slice::from_ref(machine)).remove(0),
        }
    }

    fn states(&self, host: &Host, machines: &[MachineName]) -> Vec<Result<Running>> {
        // Those that are attended are known without asking; for all others together the engine is asked once.
        let mut list: Option<Result<Vec<Value>, ApiError>> = None;
        machines
            .iter()
            .map(|machine| {
                if let Some(running) = attended(host, machine)? {
                    return Ok(running);
                }
                let list = list.get_or_insert_with(|| {
                    let found = Api::at(&probe::socket()).get("/1.0/instances?recursion=1")?;
                    Ok(found.as_array().cloned().unwrap_or_default())
                });
                Ok(match list {
                    Ok(instances) => unattended(instances, host.dirs, machine),
                    Err(e) => failed_state(probe::unreachable(e).0),
                })
            })
            .collect()
    }

    fn addresses(&self, running: &Running) -> Vec<String> {
        running.leader.map(container::network::addresses).unwrap_or_default()
    }

    fn attach(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8> {
        self.look_after(host, machine)?;
        let progress = host.progress;
        let mut warn = |message: &str| progress.report(Told::Warning(message));
        agent::exec_warning(&agent_dir(host, machine), request(exec), &mut warn).map_err(|e| match e {
            AgentError::NoSocket { .. } | AgentError::Connect { .. } => DriverError::Host {
                what: format!("the agent in `{machine}` does not answer"),
                hints: vec![
                    format!("`incus exec {machine} -- /run/current-system/sw/bin/systemctl start codchi-agent` starts it"),
                    format!("`codchi restart {machine}` starts the machine anew"),
                ],
            },
            other => failed(machine, &other),
        })
    }

    fn capture(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<(u8, String)> {
        container::capture(host, machine, exec)
    }

    fn remove(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let dir = host.dirs.machine_runtime(machine);
        let api = Api::at(&probe::socket());
        let instance = match api.get(&path(machine)) {
            Ok(instance) => Some(instance),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(unreachable(e)),
        };
        // One of another owner is never touched: ours is gone then.
        if instance.is_some_and(|i| mark::is_ours(&i, host.dirs, machine)) {
            self.stop(host, machine)?;
            self.on_boot(host, machine, false)?;
            match api.delete(&path(machine)) {
                Ok(()) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(did_not(e, format!("remove the instance `{machine}`"))),
            }
        }
        container::remove_tree(host.program, &dir)
    }

    fn on_boot(&self, host: &Host, machine: &MachineName, on: bool) -> Result<()> {
        container::on_boot(host, machine, on)
    }

    fn supervise(&self, dirs: &Dirs, machine: &MachineName, store: &Store) -> Result<()> {
        let dir = dirs.machine_runtime(machine);
        let mut engine = attendant::Attendant::new(&dir, machine)?;
        Ok(codchi_runtime::attend::attend(&dir, &mut engine, vec![Box::new(store.endpoint(machine))])?)
    }

    fn duplicate(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<Report> {
        let api = connect()?;
        if let Some(instance) = find(&api, to)? {
            if !mark::is_ours(&instance, host.dirs, to) {
                return Err(foreign(to));
            }
            // What an earlier attempt left.
            api.delete(&path(to)).map_err(|e| did_not(e, format!("remove the instance `{to}`")))?;
        }
        let source = match find(&api, from)? {
            Some(instance) if mark::is_ours(&instance, host.dirs, from) => instance,
            _ => return Err(gone(&api, host.dirs, from)),
        };
        let runs = source["status"] == "Running";
        let freeze = |action: &str| {
            let body = json!({ "action": action, "timeout": 30 });
            api.change("PUT", &format!("{}/state", path(from)), &body)
                .map_err(|e| did_not(e, format!("{action} the instance `{from}`")))
        };
        if runs {
            freeze("freeze")?;
        }
        let copied = api.change("POST", "/1.0/instances", &json!({
            "name": to,
            "source": { "type": "copy", "source": from, "instance_only": true, "allow_inconsistent": true },
            "config": { mark::MACHINE: to, mark::OWNER: mark::owner(host.dirs) },
            "devices": source["devices"],
            "profiles": [],
        }));
        if runs {
            freeze("unfreeze")?;
        }
        copied.map_err(|e| did_not(e, format!("copy the instance `{from}`")))?;
        // What makes a machine itself is made anew.
        for file in api.folder(to.as_str(), "/etc/ssh").iter().filter(|f| f.starts_with("ssh_host_")) {
            api.remove_file(to.as_str(), &format!("/etc/ssh/{file}"))
                .map_err(|e| did_not(e, format!("prepare `{to}`")))?;
        }
        match api.remove_file(to.as_str(), "/etc/machine-id") {
            Err(e) if !e.is_not_found() => Err(did_not(e, format!("prepare `{to}`"))),
            _ => Ok(Report::default()),
        }
    }

    fn rename(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<()> {
        let api = connect()?;
        if let Some(instance) = find(&api, from)? {
            if !mark::is_ours(&instance, host.dirs, from) {
                return Err(foreign(from));
            }
            self.stop(host, from)?;
            let renamed = api.change("POST", &path(from), &json!({ "name": to }));
            renamed.map_err(|e| did_not(e, format!("rename the instance `{from}`")))?;
        }
        // One that was renamed before this was cut short still has the mark of its old name.
        match find(&api, to)? {
            Some(instance) if instance["config"][mark::OWNER] == mark::owner(host.dirs).as_str() => {
                let mark = json!({ "config": { mark::MACHINE: to } });
                api.change("PATCH", &path(to), &mark)
                    .map_err(|e| did_not(e, format!("mark the instance `{to}`")))?;
            }
            Some(_) => return Err(foreign(to)),
            None => return Err(gone(&api, host.dirs, from)),
        }
        if container::starts_on_boot(host, from) {
            container::on_boot(host, to, true)?;
            container::on_boot(host, from, false)?;
        }
        container::remove_tree(host.program, &host.dirs.machine_runtime(from))?;
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

impl Incus {
    /// A machine that was started by hand, or whose attendant was killed, gets one.
    fn look_after(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let dir = host.dirs.machine_runtime(machine);
        if state::status(&dir)?.supervisor.is_some() {
            return Ok(());
        }
        let Some(text) = codchi_fs::read_if_exists(dir.join("spec.json"))? else { return Ok(()) };
        let launch: Launch = serde_json::from_str(&text).map_err(|e| DriverError::Settings(e.to_string()))?;
        host.progress.report(Told::Warning(
            "nobody looked after the machine: its network and store are connected again",
        ));
        attend(host, machine, &launch)?;
        wait_for_agent(host, machine)
    }
}

/// Starts the process beside a machine, and with it the machine when it is off.
fn attend(host: &Host, machine: &MachineName, launch: &Launch) -> Result<()> {
    let dir = host.dirs.machine_runtime(machine);
    let program: Vec<OsString> = vec![host.program.into(), "supervise".into(), machine.as_str().into()];
    start::start(&dir, launch, &program, &mut |event| container::events::tell(host.progress, event))
        .map_err(|e| container::start_failure(host, machine, e))
}

/// What an attendant is told of a machine.
fn launch(host: &Host, machine: &Machine) -> Result<Launch> {
    let Some(system) = &machine.system else {
        return Err(DriverError::Settings("there is no system".into()));
    };
    Ok(Launch {
        version: 1,
        name: machine.name.to_string(),
        // The engine is found where it is now, also by a service manager that knows nothing of this environment.
        engine: json!({ "socket": probe::socket(), "settings": system.manifest.engine }),
        root: PathBuf::new(),
        uid_base: None,
        caller_is: None,
        outer: OuterConfig { nix: host.nix.map(Into::into) },
        store: host.store_dir.into(),
        toplevel: PathBuf::from(&system.toplevel),
        bin: host.bin.into(),
        mounts: Vec::new(),
        ports: machine.ports(),
        revision: revision(),
        console_log: host.dirs.console_log(machine.name),
    })
}

/// What is known of a machine that somebody looks after.
fn attended(host: &Host, machine: &MachineName) -> Result<Option<Running>> {
    let status = state::status(&host.dirs.machine_runtime(machine))?;
    if status.supervisor.is_none() {
        return Ok(None);
    }
    Ok(Some(Running {
        state: match status.state {
            state::State::Starting => State::Starting,
            state::State::Failed => State::Failed,
            _ => State::Running,
        },
        leader: status.leader.and_then(|l| u32::try_from(l).ok()),
        toplevel: None,
        reason: Some(status.text).filter(|t| !t.is_empty()),
    }))
}

/// What the engine says of a machine that nobody looks after.
fn unattended(instances: &[Value], dirs: &Dirs, machine: &MachineName) -> Running {
    let named = instances.iter().find(|i| i["name"] == machine.as_str());
    match named {
        Some(i) if mark::is_ours(i, dirs, machine) => Running {
            state: match i["status"].as_str() {
                Some("Running" | "Ready" | "Frozen") => State::Running,
                Some("Error") => State::Failed,
                _ => State::Stopped,
            },
            ..Running::stopped()
        },
        Some(_) => failed_state(foreign(machine).to_string()),
        None => failed_state(match renamed(instances, dirs, machine) {
            Some(name) => format!("the instance is called `{name}` in Incus now"),
            None => "its instance is gone from Incus".into(),
        }),
    }
}

fn failed_state(reason: String) -> Running {
    Running { state: State::Failed, leader: None, toplevel: None, reason: Some(reason) }
}

/// The name that somebody gave to the instance of a machine.
fn renamed<'a>(instances: &'a [Value], dirs: &Dirs, machine: &MachineName) -> Option<&'a str> {
    instances.iter().find(|i| mark::is_ours(i, dirs, machine)).and_then(|i| i["name"].as_str())
}

fn path(machine: &MachineName) -> String {
    format!("/1.0/instances/{machine}")
}

/// The engine, which has to answer.
fn connect() -> Result<Api> {
    let api = Api::at(&probe::socket());
    match probe::usable(&api) {
        Ok(()) => Ok(api),
        Err((what, hints)) => Err(DriverError::Host { what, hints }),
    }
}

fn find(api: &Api, machine: &MachineName) -> Result<Option<Value>> {
    match api.get(&path(machine)) {
        Ok(instance) => Ok(Some(instance)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(unreachable(e)),
    }
}

/// Where new root file systems go: the default profile's pool, or the first there is.
fn pool(api: &Api) -> Result<String> {
    if let Ok(profile) = api.get("/1.0/profiles/default")
        && let Some(devices) = profile["devices"].as_object()
        && let Some(root) = devices.values().find(|d| d["type"] == "disk" && d["path"] == "/")
        && let Some(pool) = root["pool"].as_str()
    {
        return Ok(pool.into());
    }
    let pools = api.get("/1.0/storage-pools?recursion=1").map_err(unreachable)?;
    let mut usable = pools.as_array().into_iter().flatten().filter(|p| p["status"] == "Created");
    match usable.next().and_then(|p| p["name"].as_str()) {
        Some(name) => Ok(name.into()),
        None => Err(DriverError::Host {
            what: "Incus has no storage pool".into(),
            hints: vec!["`incus storage create default dir` makes one".into()],
        }),
    }
}

fn foreign(machine: &MachineName) -> DriverError {
    DriverError::Host {
        what: format!("Incus has an instance `{machine}` that is not this machine's; it is left alone"),
        hints: vec![format!("choose another name, or rename it: `incus rename {machine} OTHER`")],
    }
}

/// The instance of a machine is not there.
fn gone(api: &Api, dirs: &Dirs, machine: &MachineName) -> DriverError {
    let all = api.get("/1.0/instances?recursion=1").unwrap_or_default();
    match renamed(all.as_array().map(Vec::as_slice).unwrap_or_default(), dirs, machine) {
        Some(name) => DriverError::Host {
            what: format!("the instance of `{machine}` is called `{name}` in Incus now"),
            hints: vec![format!("`incus rename {name} {machine}` gives it its name back")],
        },
        None => DriverError::Host {
            what: format!("the instance of `{machine}` is gone from Incus, and its files with it"),
            hints: vec![format!("`codchi delete {machine}` removes what is left of the machine")],
        },
    }
}

fn unreachable(e: ApiError) -> DriverError {
    let (what, hints) = probe::unreachable(&e);
    DriverError::Host { what, hints }
}

/// The engine was asked and did not do it.
fn did_not(e: ApiError, what: String) -> DriverError {
    if e.is_unreachable() {
        return unreachable(e);
    }
    let reason = e.to_string();
    if ["no space left", "disk quota exceeded"].iter().any(|w| reason.to_lowercase().contains(w)) {
        return DriverError::Host {
            what: format!("cannot {what}: the storage pool is full"),
            hints: vec!["`incus storage info POOL` shows how full it is".into()],
        };
    }
    DriverError::Helper { what, reason }
}
