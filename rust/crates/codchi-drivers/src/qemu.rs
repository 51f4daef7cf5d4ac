//! The QEMU driver: machines as virtual machines of a QEMU that a process of Codchi's own starts and looks after. No daemon, no
//! disk image: files come by shared folders, the kernel from the machine's own system.

mod attendant;
mod control;
mod kernel;
mod probe;

use std::ffi::OsString;
use std::time::Duration;

use codchi_core::folder::Folder;
use codchi_core::machine::{IDS, IdRange};
use codchi_core::name::MachineName;
use codchi_core::progress::Event as Told;
use codchi_core::status::Finding;
use codchi_files::Report;
use codchi_runtime::outer::{self, OuterConfig};
use codchi_runtime::spec::{Launch, User};
use codchi_runtime::{start, state};
use codchi_secrets::Bundle;

use crate::agent::{self, AgentError};
use crate::container::{
    self, agent_dir, failed, files, given, ids, prepare, request, revision, switch, wait_for_agent,
};
use crate::{
    Begun, Delivered, Driver, DriverError, Exec, Export, Flavour, Given, Host, Info, Machine, Result,
    Running, Switched,
};

/// The driver.
pub struct Qemu;

static INFO: Info = Info { name: "qemu", kind: Flavour::Vm, runs: true };

/// How long a machine may take to go down before it is killed, beyond what its attendant allows.
const PATIENCE: Duration = Duration::from_secs(100);
/// Seconds a machine may take to be ready: without a processor that helps, a boot takes minutes on a busy host.
const START: u32 = 600;

impl Driver for Qemu {
    fn info(&self) -> &'static Info {
        &INFO
    }

    fn probe(&self, _: &Host) -> Vec<Finding> {
        probe::probe()
    }

    fn ids(&self, taken: &[IdRange]) -> Result<Option<IdRange>> {
        ids::choose(taken)
    }

    fn refusal(&self, _: &Folder) -> Option<String> {
        Some("this driver does not show folders of the host yet".into())
    }

    fn create(&self, host: &Host, machine: &Machine) -> Result<()> {
        // Found out before anything is made or built for it.
        probe::usable()?;
        codchi_fs::create_private_dir(&host.dirs.data)?;
        let root = host.dirs.machine_root(machine.name);
        if let Some(parent) = root.parent() {
            codchi_fs::create_private_dir(parent)?;
        }
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
        probe::usable()?;
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

    fn addresses(&self, _: &Running) -> Vec<String> {
        // The one it has leads to it only from itself.
        Vec::new()
    }

    fn attach(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8> {
        let progress = host.progress;
        let mut warn = |message: &str| progress.report(Told::Warning(message));
        agent::exec_warning(&agent_dir(host, machine), request(exec), &mut warn).map_err(|e| match e {
            AgentError::NoSocket { .. } | AgentError::Connect { .. } => DriverError::Host {
                what: format!("the agent in `{machine}` does not answer"),
                hints: vec![format!("`codchi restart {machine}` starts the machine anew")],
            },
            other => failed(machine, &other),
        })
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
        for dir in [&host.dirs.machine_root(machine), &host.dirs.machine_runtime(machine)] {
            container::remove_tree(host.program, dir)?;
        }
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
        let engine = |launch: &Launch, dir: &std::path::Path| {
            let attendant = attendant::Attendant::new(launch, dir)?;
            Ok(Box::new(attendant) as Box<dyn codchi_runtime::attend::Engine>)
        };
        let dir = host.dirs.machine_runtime(machine);
        Ok(codchi_runtime::attend::attend(&dir, container::begun(machine, begin, || Ok(true)), engine)?)
    }

    fn duplicate(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<Report> {
        off(host, from, "duplicate a virtual machine that runs")?;
        self.afresh(host, to)?;
        let source = host.dirs.machine_root(from);
        match source.symlink_metadata() {
            Ok(_) => files::copy(host, &source, &host.dirs.machine_root(to)),
            // It never started.
            Err(_) => Ok(Report::default()),
        }
    }

    fn pack(&self, host: &Host, machine: &Machine, export: &Export, to: std::fs::File) -> Result<Report> {
        off(host, machine.name, "export the files of a virtual machine that runs")?;
        files::pack(host, &host.dirs.machine_root(machine.name), None, export, to)
    }

    fn unpack(&self, host: &Host, machine: &Machine, from: std::fs::File, without: &str) -> Result<Report> {
        self.afresh(host, machine.name)?;
        files::unpack(host, &host.dirs.machine_root(machine.name), without, from)
    }

    fn rename(&self, host: &Host, from: &MachineName, to: &MachineName) -> Result<()> {
        self.stop(host, from)?;
        container::rename(host, from, to)
    }
}

impl Qemu {
    /// An empty root file system, whatever an earlier attempt left.
    fn afresh(&self, host: &Host, machine: &MachineName) -> Result<()> {
        let root = host.dirs.machine_root(machine);
        container::remove_tree(host.program, &root)?;
        codchi_fs::create_private_dir(&host.dirs.data)?;
        codchi_fs::create_private_dir(host.dirs.machine_data(machine))?;
        Ok(codchi_fs::create_dir_all(&root)?)
    }
}

/// Refuses what is only done with a machine that is off: what it has not written yet is in its own memory. One that somebody looks
/// after is about to start.
fn off(host: &Host, machine: &MachineName, what: &'static str) -> Result<()> {
    match state::status(&host.dirs.machine_runtime(machine))?.supervisor {
        Some(_) => Err(DriverError::Host {
            what: format!("cannot {what}"),
            hints: vec![format!("`codchi stop {machine}` first")],
        }),
        None => Ok(()),
    }
}

/// What an attendant is told of a machine.
fn launch(host: &Host, machine: &Machine) -> Result<Launch> {
    let Some(system) = &machine.system else {
        return Err(DriverError::Settings("there is no system".into()));
    };
    let user = &system.manifest.user;
    Ok(Launch {
        version: 1,
        name: machine.name.to_string(),
        engine: system.manifest.engine.clone(),
        root: host.dirs.machine_root(machine.name),
        uid_base: machine.attachment.ids.map(|r| r.base),
        uid_count: machine.attachment.ids.map_or(IDS, |r| r.count),
        user: User { uid: user.uid, gid: user.gid.unwrap_or(User::default().gid) },
        user_is_caller: false,
        outer: OuterConfig { nix: host.nix.map(Into::into) },
        store: "/nix/store".into(),
        toplevel: system.toplevel.clone().into(),
        bin: host.bin.into(),
        closure: Vec::new(),
        folders: machine.folders(&container::home(host))?,
        ports: machine.ports(),
        channels: Vec::new(),
        git_hosts: Vec::new(),
        devices: if outer::is_privileged() { vec!["kvm".into()] } else { Vec::new() },
        revision: revision(),
        patience: Some(START),
        console_log: host.dirs.console_log(machine.name),
    })
}
