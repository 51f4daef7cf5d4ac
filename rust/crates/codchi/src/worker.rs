//! Carries out the steps of plans on a machine.

use std::path::{Path, PathBuf};

use codchi_core::machine::Host as Attachment;
use codchi_core::manifest::Needs;
use codchi_core::name::{DriverName, MachineName};
use codchi_core::plan::{Activation, Part, Step};
use codchi_core::progress::{Event, Progress, Silent};
use codchi_core::report::{Diagnose, Kind};
use codchi_core::status::State;
use codchi_core::text;
use codchi_drivers::{Driver, Export, Given, Host, Machine, Switched, System, capability};
use codchi_nix::fingerprint::Looks;
use codchi_nix::generations::{Generations, Record};
use codchi_nix::{Nix, StorePath};
use codchi_secrets::Bundle;
use codchi_store::Store;

use crate::app::App;
use crate::failure::{Failure, Result};
use crate::health;
use crate::journal::Worker;
use crate::make;
use crate::secrets;

/// Steps on one machine.
pub struct MachineWorker<'a> {
    pub app: &'a App,
    pub name: MachineName,
    pub store: Option<&'a Store>,
    pub nix: Option<&'a Nix>,
    /// How the machine is attached, while its folder is not in place.
    pub attachment: Option<Attachment>,
    /// What a new generation records.
    pub record: Option<Record>,
    /// What is unpacked from a tar.
    pub unpack: Option<Unpack>,
    /// Where the machine moves to.
    pub moving: Option<Moving>,
    /// The init script that the first start runs.
    pub script: Option<String>,
    /// Values of secrets that a plan keeps.
    pub secrets: std::cell::RefCell<Bundle>,
    /// What the last switch did.
    pub switched: std::cell::RefCell<Switched>,
    /// What the machine has of the host, where a step changed that.
    pub given: std::cell::RefCell<Given>,
}

/// How a tar becomes a machine's files.
pub struct Unpack {
    /// The system that they are for.
    pub toplevel: String,
    /// The folder in the tar that is not of them.
    pub without: String,
}

/// A machine on its new driver.
pub struct Moving {
    /// The system that it runs there.
    pub toplevel: String,
    /// How it is attached there.
    pub attachment: Attachment,
    /// An empty folder.
    pub nothing: PathBuf,
}

/// The host as drivers see it, kept as owned parts.
pub struct HostParts {
    bin: PathBuf,
    nix: Option<PathBuf>,
    store_dir: PathBuf,
}

impl HostParts {
    /// Of a store; the static programs are put in place.
    pub fn of(app: &App, store: Option<&Store>) -> Result<HostParts> {
        Ok(HostParts {
            bin: make::programs(app)?,
            nix: store.and_then(|s| s.outer_config().nix),
            store_dir: store.map_or_else(|| "/nix/store".into(), Store::root_dir),
        })
    }

    /// For verbs that need neither store nor programs.
    pub fn none() -> HostParts {
        HostParts { bin: PathBuf::new(), nix: None, store_dir: "/nix/store".into() }
    }

    /// Borrowed.
    pub fn host<'a>(&'a self, app: &'a App, store: Option<&'a Store>) -> Host<'a> {
        Host {
            dirs: &app.dirs,
            settings: &app.settings,
            program: &app.program,
            bin: &self.bin,
            nix: self.nix.as_deref(),
            store_dir: &self.store_dir,
            store,
            progress: &app.printer,
        }
    }
}

impl<'a> MachineWorker<'a> {
    /// For a machine that is there.
    pub fn new(
        app: &'a App,
        name: &MachineName,
        store: Option<&'a Store>,
        nix: Option<&'a Nix>,
    ) -> MachineWorker<'a> {
        MachineWorker {
            app,
            name: name.clone(),
            store,
            nix,
            attachment: None,
            record: None,
            unpack: None,
            moving: None,
            script: None,
            secrets: Default::default(),
            switched: Default::default(),
            given: Default::default(),
        }
    }

    fn attachment(&self) -> Result<Attachment> {
        match &self.attachment {
            Some(a) if !self.app.exists(&self.name) => Ok(a.clone()),
            _ => self.app.attachment(&self.name),
        }
    }

    fn driver(&self) -> Result<&'static dyn Driver> {
        Ok(codchi_drivers::find(&self.attachment()?.driver)?)
    }

    /// Removes what the machine's driver has of it. Of a machine of which little is left nobody knows the driver any more:
    /// each that works removes what it has.
    fn remove(&self, host: &Host) -> Result<()> {
        if self.attachment().is_ok() {
            return Ok(self.driver()?.remove(host, &self.name)?);
        }
        let mut failed = None;
        for driver in codchi_drivers::all() {
            match driver.remove(host, &self.name) {
                Err(e) if e.kind() != Kind::Host => failed = Some(e),
                _ => {}
            }
        }
        failed.map_or(Ok(()), |e| Err(e.into()))
    }

    fn system(&self, toplevel: &str, parts: &HostParts) -> Result<System> {
        let host = parts.host(self.app, self.store);
        Ok(System { toplevel: toplevel.into(), manifest: make::manifest(host.store_dir, toplevel)? })
    }

    fn activate(&self, number: u64, how: Activation, previous: Option<u64>) -> Result<()> {
        let generations = self.app.generations(&self.name);
        let generation = generations.get(number)?;
        let driver = self.driver()?;
        let parts = HostParts::of(self.app, self.store)?;
        let host = parts.host(self.app, self.store);
        if how == Activation::Boot || !self.is_up(driver, &host)? {
            return Ok(generations.set_current(number)?);
        }
        // One that cannot be talked to beforehand is left alone; one with which that is lost meanwhile is not.
        health::look(driver, &host, &self.name)?;
        self.app.printer.report(Event::Phase("switching"));
        let attachment = self.attachment()?;
        let system = self.system(generation.record.toplevel.as_str(), &parts)?;
        let needs = system.manifest.needs.clone();
        // Before the switch, for the services that it starts; what only the former system used stays until after it.
        self.deliver(&needs, true)?;
        let none = Bundle::new();
        let machine =
            Machine { name: &self.name, attachment: &attachment, system: Some(system), secrets: &none };
        let switched = driver.update(&host, &machine);
        self.app.printer.done();
        let mut failure = match switched {
            Ok(switched) if matches!(switched.status, 0 | 4) => match self.deliver(&needs, false) {
                Ok(()) => {
                    generations.set_current(number)?;
                    *self.switched.borrow_mut() = switched;
                    return Ok(());
                }
                Err(mut failure) => {
                    failure.message =
                        format!("generation {number} did not get its secrets: {}", failure.message);
                    failure
                }
            },
            Ok(switched) => {
                let mut failure = Failure::failed(format!(
                    "the switch to generation {number} failed with status {}",
                    switched.status
                ));
                let lines: Vec<&str> = switched.output.lines().collect();
                let last = &lines[lines.len().saturating_sub(10)..];
                failure.hints.extend(last.iter().map(|l| text::printable_line(l)));
                failure
            }
            Err(e) => {
                let mut failure: Failure = e.into();
                failure.message = format!("the switch to generation {number} was lost: {}", failure.message);
                failure
            }
        };
        // Back to what ran: the switch may have stopped half way.
        failure.message += &match previous.map(|p| self.back_to(p)) {
            Some(Err(again)) => format!("; going back failed, too: {}", again.message),
            _ => "; the machine runs the system it had".into(),
        };
        Err(failure)
    }

    /// Puts an earlier generation in force again, in the running machine too: by a switch, or where that cannot be had any more, by a
    /// new start.
    fn back_to(&self, number: u64) -> Result<()> {
        let generations = self.app.generations(&self.name);
        generations.set_current(number)?;
        let (driver, attachment) = (self.driver()?, self.attachment()?);
        let parts = HostParts::of(self.app, self.store)?;
        let host = parts.host(self.app, self.store);
        self.app.printer.report(Event::Phase("going back"));
        if driver.state(&host, &self.name)?.state == State::Running {
            let toplevel = generations.get(number)?.record.toplevel;
            let system = self.system(toplevel.as_str(), &parts)?;
            let (needs, none) = (system.manifest.needs.clone(), Bundle::new());
            let machine =
                Machine { name: &self.name, attachment: &attachment, system: Some(system), secrets: &none };
            let switched = driver.update(&host, &machine);
            self.app.printer.done();
            if switched.is_ok_and(|s| matches!(s.status, 0 | 4)) {
                return self.deliver(&needs, false);
            }
            self.app.printer.warn(&format!("`{}` cannot be switched back; it is started anew", self.name));
            driver.stop(&host, &self.name)?;
        }
        self.start()
    }

    /// Sees that the machine came up with a generation, else puts the one before in force again.
    fn confirm(&self, number: u64, previous: u64, failed: &[String]) -> Result<()> {
        // Cut short while it went back.
        let taken_back = self.app.generations(&self.name).current_number()? == Some(previous);
        let driver = self.driver()?;
        let parts = HostParts::none();
        let host = parts.host(self.app, None);
        let ill = match taken_back {
            true => Some(health::Ill::default()),
            false => {
                let touched = !self.switched.borrow().units.is_empty();
                health::confirm(driver, &host, &self.name, failed, touched)
            }
        };
        self.app.printer.done();
        let Some(ill) = ill else { return Ok(()) };
        let name = &self.name;
        if !ill.why.is_empty() {
            self.app.printer.warn(&format!("generation {number} of `{name}` does not come up: {}", ill.why));
        }
        self.back_to(previous)?;
        let mut failure = Failure::failed(format!(
            "`{name}` is back on generation {previous}: the new one did not come up"
        ));
        if let Some(unit) = ill.units.first() {
            failure =
                failure.hint(format!("`codchi logs {name} --unit {}` shows why", text::printable_line(unit)));
        }
        Err(failure.hint(format!("`codchi rebuild --no-rollback {name}` stays on it, to look into it there")))
    }

    /// Hands the secrets to the machine, when it runs; those that are not among its needs stay if `keep_others`.
    pub fn deliver(&self, needs: &Needs, keep_others: bool) -> Result<()> {
        let driver = self.driver()?;
        let parts = HostParts::none();
        let host = parts.host(self.app, None);
        let had_some = || secrets::names(self.app, &self.name).is_ok_and(|n| !n.is_empty());
        let none = needs.secrets.is_empty() && !needs.host_secrets.values().any(|on| *on) && !had_some();
        if none || !driver.state(&host, &self.name)?.is_up() {
            return Ok(());
        }
        let all = secrets::of(self.app, &self.name, needs, &self.attachment()?.granted)?;
        for warning in driver.deliver(&host, &self.name, &all, keep_others)?.warnings {
            self.app.printer.warn(&warning);
        }
        Ok(())
    }

    /// The units of the machine that have failed; none where it does not run. An error: it does not answer.
    pub fn failed_units(&self) -> Result<Vec<String>> {
        let (driver, parts) = (self.driver()?, HostParts::none());
        let host = parts.host(self.app, None);
        if driver.state(&host, &self.name)?.state != State::Running {
            return Ok(Vec::new());
        }
        Ok(health::look(driver, &host, &self.name)?.failed.into_iter().collect())
    }

    /// Whether the machine runs. One that nobody looks after is looked after again.
    fn is_up(&self, driver: &dyn Driver, host: &Host) -> Result<bool> {
        let running = driver.state(host, &self.name)?;
        if running.state != State::Running {
            return Ok(false);
        }
        if !running.is_up() {
            self.start()?;
        }
        Ok(true)
    }

    /// Starts the machine on its current generation.
    pub fn start(&self) -> Result<()> {
        self.start_as(&self.name, self.attachment()?)
    }

    /// The system of the current generation.
    fn current(&self, name: &MachineName, parts: &HostParts) -> Result<System> {
        let current = self.app.generations(name).current()?.ok_or_else(|| no_generation(name))?;
        self.system(current.record.toplevel.as_str(), parts)
    }

    /// Writes down what a service manager is to start: the current generation.
    pub fn prepare(&self) -> Result<()> {
        let parts = HostParts::of(self.app, self.store)?;
        let attachment = self.attachment()?;
        let system = Some(self.current(&self.name, &parts)?);
        let none = Bundle::new();
        let machine = Machine { name: &self.name, attachment: &attachment, system, secrets: &none };
        Ok(self.driver()?.prepare(&parts.host(self.app, self.store), &machine)?)
    }

    /// What the system in force needs of secrets.
    pub fn current_secrets(&self) -> Result<Bundle> {
        let parts = HostParts::of(self.app, self.store)?;
        let system = self.current(&self.name, &parts)?;
        secrets::of(self.app, &self.name, &system.manifest.needs, &self.attachment()?.granted)
    }

    fn start_as(&self, name: &MachineName, attachment: Attachment) -> Result<()> {
        let parts = HostParts::of(self.app, self.store)?;
        let host = parts.host(self.app, self.store);
        let system = self.current(name, &parts)?;
        let secrets = secrets::of(self.app, name, &system.manifest.needs, &attachment.granted)?;
        self.app.printer.report(Event::Phase("starting"));
        let machine = Machine { name, attachment: &attachment, system: Some(system), secrets: &secrets };
        let driver = codchi_drivers::find(&attachment.driver)?;
        let started = driver.start(&host, &machine);
        if started.is_ok() {
            driver.follow(&host, name, capability::session())?;
        }
        self.app.printer.done();
        Ok(started?)
    }

    /// Brings what the machine has of the host to what is recorded, if it runs.
    pub fn give(&self) -> Result<()> {
        let parts = HostParts::of(self.app, self.store)?;
        let host = parts.host(self.app, self.store);
        let attachment = self.attachment()?;
        let driver = codchi_drivers::find(&attachment.driver)?;
        if !self.is_up(driver, &host)? {
            return Ok(());
        }
        // What runs, which need not be what the folder says.
        let Some(current) = self.app.generations(&self.name).current()? else { return Ok(()) };
        let system = self.system(current.record.toplevel.as_str(), &parts)?;
        let none = Bundle::new();
        let machine =
            Machine { name: &self.name, attachment: &attachment, system: Some(system), secrets: &none };
        let given = driver.give(&host, &machine);
        self.app.printer.done();
        *self.given.borrow_mut() = given?;
        Ok(())
    }

    fn unpack_root(&self, file: &Path) -> Result<()> {
        let app = self.app;
        let Some(unpack) = &self.unpack else {
            return Err(Failure::internal("the tar is not known any more"));
        };
        let parts = HostParts::of(app, self.store)?;
        let attachment = self.attachment()?;
        let system = self.system(&unpack.toplevel, &parts)?;
        let none = Bundle::new();
        let machine =
            Machine { name: &self.name, attachment: &attachment, system: Some(system), secrets: &none };
        app.printer.report(Event::Phase("unpacking files"));
        let from = codchi_fs::open(file)?;
        let report = self.driver()?.unpack(&parts.host(app, self.store), &machine, from, &unpack.without)?;
        app.printer.done();
        tell_lost(app, &report);
        match &self.script {
            Some(script) => Ok(codchi_fs::write_atomic(pending_script(app, &self.name), script, 0o600)?),
            None => Ok(()),
        }
    }

    /// The files go as a tar from one driver to the other, which is never written down.
    fn move_root(&self, from: &DriverName, to: &DriverName) -> Result<()> {
        let app = self.app;
        let Some(moving) = &self.moving else {
            return Err(Failure::internal("where the machine moves is not known any more"));
        };
        let (from, to) = (codchi_drivers::find(from)?, codchi_drivers::find(to)?);
        let parts = HostParts::of(app, self.store)?;
        if have_in_common(from, to) {
            // It stays where it is; that the new driver can be used is found out.
            let none = Bundle::new();
            let system = Some(self.system(&moving.toplevel, &parts)?);
            let machine =
                Machine { name: &self.name, attachment: &moving.attachment, system, secrets: &none };
            return Ok(to.create(&parts.host(app, self.store), &machine)?);
        }
        let before = self.attachment()?;
        let none = Bundle::new();
        let machine = |attachment, toplevel: &str| -> Result<Machine<'_>> {
            let system = Some(self.system(toplevel, &parts)?);
            Ok(Machine { name: &self.name, attachment, system, secrets: &none })
        };
        let old = machine(&before, self.current(&self.name, &parts)?.toplevel.as_str())?;
        let new = machine(&moving.attachment, &moving.toplevel)?;
        let export = Export {
            head: &moving.nothing,
            at: NOTHING_OF_IT,
            inputs: &[],
            compression: codchi_files::Compression::None,
        };
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Failure::os("make a pipe", e))?;
        app.printer.report(Event::Phase("moving files"));
        let quiet = Host { store: None, progress: &Silent, ..parts.host(app, None) };
        let (packed, unpacked) = std::thread::scope(|scope| {
            let packing = scope.spawn(|| from.pack(&quiet, &old, &export, writer.into()));
            let unpacked = to.unpack(&parts.host(app, self.store), &new, reader.into(), NOTHING_OF_IT);
            (packing.join(), unpacked)
        });
        app.printer.done();
        let packed = packed.map_err(|_| Failure::internal("the files could not be read"))??;
        let mut lost = unpacked?;
        lost.lost += packed.lost;
        lost.named.splice(0..0, packed.named);
        if lost.lost == 0 {
            return Ok(());
        }
        // They would be gone with what the old driver has.
        tell_lost(app, &lost);
        Err(Failure::failed(format!("not all files of `{}` can be on `{}`", self.name, to.info().name))
            .hint("remove them inside, or give them another owner, and move it again"))
    }

    fn copy_root(&self, from: &MachineName) -> Result<()> {
        let app = self.app;
        let parts = HostParts::none();
        app.printer.report(Event::Phase("copying files"));
        let report = self.driver()?.duplicate(&parts.host(app, self.store), from, &self.name)?;
        app.printer.done();
        tell_lost(app, &report);
        if let Some(script) = codchi_fs::read_if_exists(pending_script(app, from))? {
            codchi_fs::write_atomic(pending_script(app, &self.name), script, 0o600)?;
        }
        // Result links were copied, too: what they point to stays, whatever becomes of the other machine.
        match self.store {
            Some(store) => Ok(store.hand_over_roots(from, &self.name, true)?),
            None => Ok(()),
        }
    }

    /// Gives a part of the machine to another name; what has it already is left alone.
    fn rename(&self, part: Part, from: &MachineName, to: &MachineName) -> Result<()> {
        let app = self.app;
        match part {
            Part::Files => {
                let parts = HostParts::none();
                let driver = match app.attachment(from).or_else(|_| app.attachment(to)) {
                    Ok(a) => codchi_drivers::find(&a.driver)?,
                    Err(_) => self.driver()?,
                };
                Ok(driver.rename(&parts.host(app, self.store), from, to)?)
            }
            Part::Generations => self.rename_generations(from, to),
            Part::Roots => match self.store {
                Some(store) => Ok(store.hand_over_roots(from, to, false)?),
                None => Ok(()),
            },
            Part::Secrets => secrets::with_vault(app, |vault| vault.hand_over(from, to)),
            Part::Logs => {
                move_all(&app.dirs.logs(from), &app.dirs.logs(to))?;
                codchi_fs::remove_if_exists(fingerprint_file(app, from))?;
                let noted = crate::checkout::notes(app, from);
                if noted.exists() {
                    codchi_fs::rename(noted, crate::checkout::notes(app, to))?;
                }
                Ok(codchi_nix::fingerprint::forget(&fingerprint_cache(app, from))?)
            }
            Part::Folder => {
                let (old, new) = (app.dirs.machine(from), app.dirs.machine(to));
                if old.exists() {
                    codchi_fs::rename(old, new)?;
                }
                Ok(())
            }
        }
    }

    /// A root is known to the store by its path: those of the new name are there before those of the old one go.
    fn rename_generations(&self, from: &MachineName, to: &MachineName) -> Result<()> {
        let (old, new) = (self.app.dirs.generations(from), self.app.dirs.generations(to));
        if !old.exists() {
            return Ok(());
        }
        let Some(nix) = self.nix else {
            return Err(make::no_store());
        };
        copy_roots(nix, &old, &new)?;
        Ok(codchi_fs::remove_dir_all(old)?)
    }

    /// Runs the init script, if it has not run yet.
    pub fn init_script(&self) -> Result<()> {
        let pending = pending_script(self.app, &self.name);
        let Some(script) = codchi_fs::read_if_exists(&pending)? else { return Ok(()) };
        self.app.printer.done();
        self.app.printer.say("running the init script");
        // In a process of its own: signals are for the script there.
        let status = std::process::Command::new(&self.app.program)
            .args(["exec", "-T", self.name.as_str(), "--", script.trim()])
            // What a script says is no data of this program's.
            .stdout(std::io::stderr())
            .status()
            .map_err(|e| Failure::cannot_run("codchi exec", e))?;
        if crate::interrupt::happened() {
            return Err(Failure::new(Kind::Interrupted, "interrupted"));
        }
        let status = status.code().unwrap_or(1);
        // It runs once, whatever comes of it: a person repeats it with `codchi-init` when they have looked.
        codchi_fs::remove_if_exists(&pending)?;
        if status == 0 {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "the init script of `{}` failed with status {status}; the machine is kept",
            self.name
        ))
        .hint(format!(
            "look into it with `codchi shell {}`, and run it again inside with `codchi-init`",
            self.name
        )))
    }
}

/// Whether two drivers keep the files of a machine in the same folder, so that they stay there when it moves from one to the other.
fn have_in_common(one: &dyn Driver, other: &dyn Driver) -> bool {
    one.keeps_folder() && other.keeps_folder()
}

/// The file that says which init script has still to run.
pub fn pending_script(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.machine_data(name).join("init-script")
}

/// Where those are rooted that a lock refers to which no generation was built from yet.
pub fn next_roots(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.generations(name).join("next.inputs")
}

impl Worker for MachineWorker<'_> {
    fn run(&self, step: &Step) -> Result<()> {
        let app = self.app;
        match step {
            Step::Fetch { .. } | Step::Build { .. } => Ok(()),
            Step::CreateRoot { .. } => {
                let parts = HostParts::of(app, self.store)?;
                let attachment = self.attachment()?;
                let none = Bundle::new();
                let machine =
                    Machine { name: &self.name, attachment: &attachment, system: None, secrets: &none };
                self.driver()?.create(&parts.host(app, self.store), &machine)?;
                if let Some(script) = &self.script {
                    codchi_fs::create_private_dir(&app.dirs.data)?;
                    codchi_fs::create_private_dir(app.dirs.machine_data(&self.name))?;
                    codchi_fs::write_atomic(pending_script(app, &self.name), script, 0o600)?;
                }
                Ok(())
            }
            Step::AddGeneration { number, toplevel } => {
                let number = u64::from(*number);
                let generations = app.generations(&self.name);
                if generations
                    .list()?
                    .iter()
                    .any(|g| g.number == number && g.record.toplevel.as_str() == toplevel)
                {
                    return Ok(());
                }
                let (Some(nix), Some(record)) = (self.nix, &self.record) else {
                    return Err(Failure::internal("the new generation is not known any more"));
                };
                codchi_fs::create_private_dir(app.dirs.generations(&self.name))?;
                let paths: Vec<StorePath> = make::lock_roots(&record.flake_lock).into_iter().collect();
                let got = generations.add(nix, record, &paths)?;
                if got != number {
                    generations.remove(got)?;
                    return Err(Failure::internal(format!(
                        "the new generation is {got} instead of {number}"
                    )));
                }
                // What was kept for it has its roots now.
                let next = next_roots(app, &self.name);
                for path in &paths {
                    codchi_fs::remove_if_exists(next.join(path.base_name()))?;
                }
                Ok(())
            }
            Step::InstallConfig { from, to } => {
                // Repeated after this program was killed.
                if to.exists() && !from.exists() {
                    return Ok(());
                }
                if let Some(dir) = to.parent() {
                    codchi_fs::create_dir_all(dir)?;
                }
                Ok(codchi_fs::rename(from, to)?)
            }
            Step::Activate { number, how, previous, .. } => {
                self.activate(u64::from(*number), *how, previous.map(u64::from))
            }
            Step::Confirm { number, previous, failed } => {
                self.confirm(u64::from(*number), u64::from(*previous), failed)
            }
            Step::Start => self.start(),
            Step::InitScript { .. } => self.init_script(),
            // A person's own command is never repeated by a recovery.
            Step::Run { .. } => Ok(()),
            Step::Stop => {
                let parts = HostParts::none();
                app.printer.report(Event::Phase("stopping"));
                let stopped = self.driver()?.stop(&parts.host(app, self.store), &self.name);
                app.printer.done();
                Ok(stopped?)
            }
            Step::RemoveRoot { .. } => {
                let parts = HostParts::none();
                self.remove(&parts.host(app, self.store))?;
                codchi_fs::remove_if_exists(pending_script(app, &self.name))?;
                remove_empty(&app.dirs.machine_data(&self.name))?;
                // Of a machine that is taken back nobody can ask for the log.
                if !app.exists(&self.name) {
                    codchi_fs::remove_dir_all(app.dirs.logs(&self.name))?;
                    if let Some(store) = self.store {
                        store.forget_machine(&self.name)?;
                    }
                }
                Ok(())
            }
            Step::CopyRoot { from, .. } => self.copy_root(from),
            Step::UnpackRoot { file, .. } => self.unpack_root(file),
            Step::MoveRoot { from, to, .. } => self.move_root(from, to),
            Step::RemoveRootOn { driver, on_boot } => {
                let driver = codchi_drivers::find(driver)?;
                let parts = HostParts::none();
                let host = parts.host(app, self.store);
                // Where it was killed in this before, the driver does not know any more.
                let boots = *on_boot || driver.is_on_boot(&host, &self.name)?;
                let now = self.driver()?;
                if now.info().name == driver.info().name {
                    // Somebody wrote so while it was cut short; its files may be the only ones.
                    let driver = now.info().name;
                    return Err(Failure::failed(format!(
                        "`{}` runs on `{driver}`, which it left",
                        self.name
                    ))
                    .hint("name the driver that it was moved to in its host.toml, and try again"));
                }
                match have_in_common(driver, now) {
                    true => driver.leave(&host, &self.name)?,
                    false => driver.remove(&host, &self.name)?,
                }
                if boots {
                    self.driver()?.on_boot(&host, &self.name, true)?;
                }
                Ok(())
            }
            Step::Rename { part, from, to } => self.rename(*part, from, to),
            Step::StartAs { machine } => self.start_as(machine, app.attachment(machine)?),
            Step::RemoveGenerations { path } => {
                Generations::at(path).remove_all()?;
                if let Some(store) = self.store {
                    store.forget_machine(&self.name)?;
                }
                Ok(())
            }
            Step::ForgetGeneration { number } => self.forget_generation(u64::from(*number)),
            Step::KeepSecrets { .. } => {
                // Never repeated: a machine that was cut short in the making is taken back.
                secrets::with_vault(app, |vault| vault.store(&self.name, self.secrets.take()))
            }
            Step::CopySecrets { from } => secrets::with_vault(app, |vault| vault.copy(from, &self.name)),
            Step::RemoveSecrets => {
                // A keyring that cannot be opened now must not keep a machine from being deleted.
                if let Err(failure) = secrets::with_vault(app, |vault| vault.remove(&self.name)) {
                    app.printer.warn(&format!(
                        "the secrets of `{}` are left in the keyring: {}",
                        self.name, failure.message
                    ));
                }
                Ok(())
            }
            Step::RemoveConfig { path } => Ok(codchi_fs::remove_dir_all(path)?),
            Step::RemoveLogs { path } => {
                codchi_fs::remove_dir_all(path)?;
                codchi_fs::remove_if_exists(fingerprint_file(app, &self.name))?;
                codchi_fs::remove_if_exists(crate::checkout::notes(app, &self.name))?;
                codchi_nix::fingerprint::forget(&fingerprint_cache(app, &self.name))?;
                crate::updates::forget(app, &self.name)
            }
            Step::RestoreConfig { number, path } => {
                let record = app.generations(&self.name).get(u64::from(*number))?.record;
                codchi_fs::write_atomic(path.join("flake.nix"), record.flake_nix, 0o644)?;
                Ok(codchi_fs::write_atomic(path.join("flake.lock"), record.flake_lock, 0o644)?)
            }
            Step::WriteHost { path, text, .. } => match codchi_fs::write_atomic(path, text, 0o644) {
                // In its place, and not known to be on the disk: what it says is in force all the same.
                Err(e) if codchi_fs::read_to_string(path).is_ok_and(|there| there == *text) => {
                    app.printer.warn(&e.to_string());
                    Ok(())
                }
                written => Ok(written?),
            },
            Step::Give => self.give(),
            Step::UpdateLock { number, path } => {
                let record = app.generations(&self.name).get(u64::from(*number))?.record;
                Ok(codchi_fs::write_atomic(path, record.flake_lock, 0o644)?)
            }
        }
    }

    fn forget_generation(&self, number: u64) -> Result<()> {
        let generations = self.app.generations(&self.name);
        // One that is in force is never forgotten.
        if generations.current_number()? == Some(number) && self.app.exists(&self.name) {
            return Ok(());
        }
        generations.remove(number)?;
        let dir = self.app.dirs.generations(&self.name);
        if generations.current_number()? == Some(number) {
            codchi_fs::remove_if_exists(dir.join("current"))?;
        }
        remove_empty(&dir)?;
        Ok(())
    }
}

/// Where in the tar of a move that lies which is not of the machine: nothing.
const NOTHING_OF_IT: &str = ".codchi-move";

/// Names what could not be copied.
pub fn tell_lost(app: &App, report: &codchi_files::Report) {
    if report.lost == 0 {
        return;
    }
    let what = text::count(report.lost, "thing", "things");
    app.printer.warn(&format!("{what} could not be copied:"));
    report.named.iter().for_each(|line| app.printer.say(&format!("  {line}")));
}

/// Moves what is in a folder to another one and removes it. May be repeated.
fn move_all(from: &Path, to: &Path) -> Result<()> {
    let entries = match codchi_fs::read_dir(from) {
        Ok(entries) => entries,
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    codchi_fs::create_private_dir(to)?;
    for entry in entries {
        codchi_fs::rename(entry.path(), to.join(entry.file_name()))?;
    }
    remove_empty(from)?;
    Ok(())
}

/// Makes a folder of roots again in another place. May be repeated.
fn copy_roots(nix: &Nix, from: &Path, to: &Path) -> Result<()> {
    let (mut roots, mut rest) = (Vec::new(), Vec::new());
    copy_folder(from, to, &mut roots, &mut rest)?;
    nix.add_roots(&roots)?;
    // What says which is in force comes last.
    for (target, link) in rest {
        codchi_fs::symlink_atomic(target, link)?;
    }
    Ok(())
}

/// Copies the files of a folder, and finds its links: those that are roots, and the others.
fn copy_folder(
    from: &Path,
    to: &Path,
    roots: &mut Vec<(PathBuf, StorePath)>,
    rest: &mut Vec<(PathBuf, PathBuf)>,
) -> Result<()> {
    codchi_fs::create_private_dir(to)?;
    for entry in codchi_fs::read_dir(from)? {
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        match codchi_fs::read_link_if_exists(&old) {
            Ok(Some(target)) => match target.to_str().and_then(|t| t.parse::<StorePath>().ok()) {
                Some(path) => roots.push((new, path)),
                None => rest.push((target, new)),
            },
            _ if old.is_dir() => copy_folder(&old, &new, roots, rest)?,
            _ => codchi_fs::write_atomic(new, codchi_fs::read(&old)?, 0o600)?,
        }
    }
    Ok(())
}

/// A machine was never built.
pub fn no_generation(name: &MachineName) -> Failure {
    Failure::failed(format!("`{name}` has no generation")).hint(format!("`codchi rebuild {name}` makes one"))
}

/// Where a machine's last fingerprint is.
pub fn fingerprint_file(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.state.join("fingerprints").join(format!("{name}.json"))
}

/// Takes the lock of a machine that is still there: whoever had it before may have deleted it, or given it another name. What
/// was cut short on it is brought to an end, and what was half written goes.
pub fn hold(app: &App, name: &MachineName, command: &str) -> Result<codchi_fs::Lock> {
    let lock = app.lock(name, command)?;
    recover(app, &lock, name)?;
    if !app.exists(name) {
        lock.remove()?;
    }
    app.machine(name.as_str())?;
    for folder in [app.dirs.machine(name), app.dirs.generations(name), app.dirs.machine_data(name)] {
        codchi_fs::sweep(folder)?;
    }
    Ok(lock)
}

/// Brings a command that was cut short to an end. The caller holds the lock.
pub fn recover(app: &App, lock: &codchi_fs::Lock, name: &MachineName) -> Result<()> {
    if !crate::journal::is_open(app, name) {
        return Ok(());
    }
    let tools = make::Tools::open(app, &crate::cli::NixFlags::default())?;
    // The plan may be that of another name.
    let whose = crate::journal::read(app, name)?.map_or_else(|| name.clone(), |j| j.plan.machine);
    let worker =
        MachineWorker::new(app, &whose, tools.as_ref().map(|t| &*t.store), tools.as_ref().map(|t| &t.nix));
    crate::journal::recover(app, lock, name, &worker)?;
    make::Scratch::sweep(&app.dirs.staging())
}

/// What a rebuild of a machine would read, in a word, beside what was looked at for others; none where that cannot be told.
pub fn fingerprint(app: &App, name: &MachineName, nix: &str, looks: &Looks) -> Option<String> {
    fingerprint_beside(app, name, &app.dirs.machine(name), &app.attachment(name).ok()?, nix, looks)
}

/// The same of a machine that has that folder and attachment.
pub fn fingerprint_of(
    app: &App,
    name: &MachineName,
    folder: &Path,
    attachment: &Attachment,
    nix: &str,
) -> Option<String> {
    fingerprint_beside(app, name, folder, attachment, nix, &Looks::default())
}

fn fingerprint_beside(
    app: &App,
    name: &MachineName,
    folder: &Path,
    attachment: &Attachment,
    nix: &str,
    looks: &Looks,
) -> Option<String> {
    let cache = fingerprint_cache(app, name);
    // One whose making may still fail leaves nothing.
    let cache = app.exists(name).then_some(cache.as_path());
    if let Some(folder) = cache.and_then(Path::parent) {
        codchi_fs::create_private_dir(folder).ok()?;
    }
    let inputs = codchi_nix::fingerprint::Inputs {
        machine: folder,
        // What of its attachment decides an evaluation is among the facts.
        unread: &make::UNREAD,
        facts: make::facts(app, name, nix, attachment),
        cache,
        looks,
    };
    codchi_nix::fingerprint::compute(&inputs).ok()
}

/// What was read when the machine was last built.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Built {
    /// 1.
    pub version: u32,
    /// [`fingerprint_of`] it.
    pub fingerprint: String,
    /// The generation that came of it.
    pub generation: u64,
    /// The version of Nix.
    pub nix: String,
}

/// The last build's fingerprint.
pub fn built(app: &App, name: &MachineName) -> Option<Built> {
    let text = codchi_fs::read_if_exists(fingerprint_file(app, name)).ok()??;
    serde_json::from_str(&text).ok()
}

/// Remembers what the machine was built from: its fingerprint when that was read, since a person may have changed it meanwhile. Without
/// one, the next rebuild has something to do.
pub fn remember_fingerprint(
    app: &App,
    name: &MachineName,
    tools: &make::Tools,
    fingerprint: Option<String>,
) -> Result<()> {
    let file = fingerprint_file(app, name);
    // An input replaced for one call is not in the folder: a rebuild without it has something to do, too.
    let replaced = tools.nix.options().extra.iter().any(|flag| flag == "--override-input");
    let Some(fingerprint) = fingerprint.filter(|_| !replaced) else {
        return Ok(codchi_fs::remove_if_exists(file)?);
    };
    let nix = tools.nix.version().to_string();
    let generation = app.generations(name).current_number()?.unwrap_or(0);
    if let Some(dir) = file.parent() {
        codchi_fs::create_private_dir(dir)?;
    }
    let built = Built { version: 1, fingerprint, generation, nix };
    Ok(codchi_fs::write_atomic(file, serde_json::to_string(&built).unwrap_or_default(), 0o600)?)
}

fn fingerprint_cache(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.cache.join("fingerprints").join(format!("{name}.json"))
}

fn remove_empty(dir: &Path) -> codchi_fs::Result<()> {
    use codchi_fs::Context;
    use rustix::io::Errno;
    // A person may have led it to another disk, or mounted one there.
    if dir.is_symlink() {
        return codchi_fs::remove_if_exists(dir);
    }
    match rustix::fs::unlinkat(rustix::fs::CWD, dir, rustix::fs::AtFlags::REMOVEDIR) {
        // Not empty is fine: something else is kept there.
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::BUSY) => Ok(()),
        Err(e) => Err(std::io::Error::from(e)).at("remove", dir),
    }
}
