//! What the drivers with virtual machines share, which differ in who starts QEMU: a process of Codchi's own looks after each machine.
//! No disk image: files come by shared folders, the kernel from the machine's own system.

mod acceleration;
pub(crate) mod attendant;
pub(crate) mod control;
pub(crate) mod kernel;
pub(crate) mod probe;

use codchi_core::folder::Folder;
use codchi_core::machine::IdRange;
use codchi_core::name::MachineName;
use codchi_core::session::{self, Session};
use codchi_core::status::Finding;
use codchi_files::Report;
use codchi_runtime::spec::Launch;
use codchi_runtime::{folders, outer, relay, state, still};

use crate::supervised::files::Held;
use crate::supervised::{self, ids, life, prepare, root};
use crate::{
    Begun, Driver, DriverError, Exec, Export, Given, Host, Info, Machine, Result, Running, Switched,
};

use attendant::Runner;

/// A driver with virtual machines.
pub(crate) struct Vm {
    /// What it is.
    pub info: &'static Info,
    /// What the host has and lacks for it beside QEMU and what shares files.
    pub probe: fn(&Host) -> Vec<Finding>,
    /// That it can be used, found out before anything is made or built.
    pub usable: fn(&Host) -> Result<()>,
    /// Who starts QEMU, made before whoever looks after the machine leaves the host's namespaces.
    pub runner: fn(&Host, &MachineName) -> Result<Box<dyn Runner>>,
}

/// Seconds a machine may take to be ready: without a processor that helps, a boot takes minutes on a busy host.
const START: u32 = 600;

impl Driver for Vm {
    fn info(&self) -> &'static Info {
        self.info
    }

    fn probe(&self, host: &Host) -> Vec<Finding> {
        let mut all = probe::probe();
        all.push(acceleration::finding(&host.dirs.runtime));
        all.extend((self.probe)(host));
        all
    }

    fn ids(&self, taken: &[IdRange]) -> Result<Option<IdRange>> {
        ids::choose(taken)
    }

    fn refusal(&self, _: &Host, _: &MachineName, folder: &Folder) -> Option<String> {
        folders::refusal(folder)
    }

    fn create(&self, host: &Host, machine: &Machine) -> Result<()> {
        self.usable(host)?;
        root::create(host, machine.name)
    }

    fn update(&self, host: &Host, machine: &Machine) -> Result<Switched> {
        life::update(host, machine, &launch(host, machine)?, || Ok(()))
    }

    fn give(&self, host: &Host, machine: &Machine) -> Result<Given> {
        life::give(host, machine, &launch(host, machine)?)
    }

    fn follow(&self, host: &Host, machine: &MachineName, session: Session) -> Result<()> {
        Ok(relay::follow(&host.dirs.machine_runtime(machine), session)?)
    }

    fn start(&self, host: &Host, machine: &Machine) -> Result<()> {
        life::start(host, machine, || {
            self.usable(host)?;
            launch(host, machine)
        })
    }

    fn stop(&self, host: &Host, machine: &MachineName) -> Result<()> {
        life::stop(host, machine)
    }

    fn state(&self, host: &Host, machine: &MachineName) -> Result<Running> {
        // Whoever comes next finds it at work, though a copy of it was killed.
        still::go_on(&host.dirs.machine_runtime(machine))?;
        supervised::at_rest(host, machine)
    }

    fn addresses(&self, _: &Running) -> Vec<String> {
        // The one it has leads to it only from itself.
        Vec::new()
    }

    fn attach(&self, host: &Host, machine: &MachineName, exec: &Exec) -> Result<u8> {
        supervised::attach(host, machine, exec, || Err(supervised::silent(machine, Vec::new())))
    }

    fn keeps_folder(&self) -> bool {
        true
    }

    fn remove(&self, host: &Host, machine: &MachineName) -> Result<()> {
        self.stop(host, machine)?;
        root::remove(host, machine)
    }

    fn prepare(&self, host: &Host, machine: &Machine) -> Result<()> {
        life::write(host, machine, &launch(host, machine)?)
    }

    fn supervise(
        &self,
        host: &Host,
        machine: &MachineName,
        begin: &mut dyn FnMut(bool) -> Result<Begun>,
    ) -> Result<()> {
        prepare(host, machine)?;
        let runner = (self.runner)(host, machine)?;
        let engine = |launch: &Launch, dir: &std::path::Path| {
            let attendant = attendant::Attendant::new(launch, dir, &host.dirs.runtime, runner)?;
            Ok(Box::new(attendant) as Box<dyn codchi_runtime::attend::Engine>)
        };
        let dir = host.dirs.machine_runtime(machine);
        Ok(codchi_runtime::attend::attend(&dir, supervised::begun(machine, begin, || Ok(true)), engine)?)
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

impl Vm {
    fn usable(&self, host: &Host) -> Result<()> {
        probe::usable()?;
        (self.usable)(host)
    }
}

/// Holds a machine still that runs, after it has written what it has in its own memory. One that is on its way up or down cannot
/// say that it has.
fn still(host: &Host, machine: &MachineName) -> Result<Option<Held>> {
    let dir = host.dirs.machine_runtime(machine);
    let told = state::status(&dir)?;
    if told.supervisor.is_none() {
        return Ok(None);
    }
    let not = |why: String| DriverError::Host {
        what: format!("`{machine}` cannot be held still: {why}"),
        hints: vec![format!("`codchi stop {machine}` first")],
    };
    if told.state != state::State::Running {
        return Err(not("it is on its way up or down".into()));
    }
    let sync =
        Exec { argv: vec!["sync".into()], user: Some("root".into()), tty: Some(false), ..Exec::default() };
    match supervised::capture(host, machine, &sync)? {
        (0, _) => Ok(Some(Held::new(host.program, &dir)?)),
        (_, said) => Err(not(said.trim().into())),
    }
}

/// What an attendant is told of a machine.
fn launch(host: &Host, machine: &Machine) -> Result<Launch> {
    let manifest = &life::system(machine)?.manifest;
    let (engine, granted) = (manifest.engine.clone(), &machine.attachment.granted);
    Ok(Launch {
        // What is passed on is bytes.
        channels: session::streams(&manifest.needs, granted),
        git_hosts: codchi_core::consent::git_hosts(granted),
        devices: if outer::is_privileged() { vec!["kvm".into()] } else { Vec::new() },
        patience: Some(START),
        ..life::launch(host, machine, engine)?
    })
}
