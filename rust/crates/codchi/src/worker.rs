//! Carries out the steps of plans on a machine.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use codchi_core::machine::Host as Attachment;
use codchi_core::name::MachineName;
use codchi_core::plan::{Activation, Part, Step};
use codchi_core::progress::{Event, Progress};
use codchi_core::report::Kind;
use codchi_core::status::State;
use codchi_drivers::{Exec, Driver, Given, Host, Machine, Switched, System};
use codchi_nix::generations::Record;
use codchi_nix::{Nix, StorePath};
use codchi_store::Store;

use crate::app::App;
use crate::failure::{Failure, Result};
use crate::journal::Worker;
use crate::make;

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
    /// The init script that the first start runs.
    pub script: Option<String>,
    /// What the last switch did.
    pub switched: std::cell::RefCell<Switched>,
    /// What the machine has of the host, where a step changed that.
    pub given: std::cell::RefCell<Given>,
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
            script: None,
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

    /// The driver, also of a machine of which little is left.
    fn driver(&self) -> Result<&'static dyn Driver> {
        match self.attachment() {
            Ok(a) => Ok(codchi_drivers::find(&a.driver)?),
            Err(_) => codchi_drivers::all().next().ok_or_else(|| Failure::failed("there is no driver")),
        }
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
        let running = driver.state(&host, &self.name)?.state == State::Running;
        if how == Activation::Boot || !running {
            return Ok(generations.set_current(number)?);
        }
        self.app.printer.report(Event::Phase("switching"));
        let attachment = self.attachment()?;
        let system = self.system(generation.record.toplevel.as_str(), &parts)?;
        let machine = Machine { name: &self.name, attachment: &attachment, system: Some(system) };
        let switched = driver.update(&host, &machine)?;
        self.app.printer.done();
        let status = switched.status;
        let output = switched.output.clone();
        *self.switched.borrow_mut() = switched;
        match status {
            0 => Ok(generations.set_current(number)?),
            // The system is in place; some of its units do not run.
            4 => {
                generations.set_current(number)?;
                self.app.printer.warn("some units failed:");
                for line in output.lines().filter(|l| l.contains("failed") || l.contains("warning")) {
                    self.app.printer.say(&format!("  {line}"));
                }
                Ok(())
            }
            _ => {
                // Back to what ran: the switch may have stopped half way.
                if let Some(previous) = previous.map(|p| generations.get(p)).transpose()? {
                    let system = self.system(previous.record.toplevel.as_str(), &parts)?;
                    let machine = Machine { name: &self.name, attachment: &attachment, system: Some(system) };
                    let _ = driver.update(&host, &machine);
                }
                let mut failure = Failure::failed(format!(
                    "the switch to generation {number} failed with status {status}; the machine runs the system it had"
                ));
                let lines: Vec<&str> = output.lines().collect();
                failure.hints.extend(lines[lines.len().saturating_sub(10)..].iter().map(|l| l.to_string()));
                Err(failure)
            }
        }
    }

    /// The units of the running machine that failed; none where it does not run. An error is a machine that does not answer.
    pub fn failed_units(&self) -> Result<Option<BTreeSet<String>>> {
        let said = self.systemctl(&["list-units", "--failed", "--plain", "--no-legend", "--no-pager"])?;
        Ok(said.map(|s| s.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()))
    }

    /// Lets the running machine forget that units failed, of which it has no more than the failure.
    pub fn forget_failed(&self, units: &[String]) -> Result<()> {
        let words: Vec<&str> = ["reset-failed", "--"].into_iter().chain(units.iter().map(String::as_str)).collect();
        self.systemctl(&words).map(drop)
    }

    /// What the machine's systemctl says; none where the machine does not run.
    fn systemctl(&self, words: &[&str]) -> Result<Option<String>> {
        let driver = self.driver()?;
        let parts = HostParts::of(self.app, self.store)?;
        let host = parts.host(self.app, self.store);
        if driver.state(&host, &self.name)?.state != State::Running {
            return Ok(None);
        }
        let exec = Exec {
            argv: std::iter::once(&"systemctl").chain(words).map(OsString::from).collect(),
            user: Some("root".into()),
            cwd: Some("/".into()),
            tty: Some(false),
            ..Exec::default()
        };
        let (status, output) = driver.capture(&host, &self.name, &exec)?;
        if status != 0 {
            return Err(Failure::failed(format!("`{}` does not tell how its units are: {output}", self.name)));
        }
        Ok(Some(output))
    }

    /// Starts the machine on its current generation.
    pub fn start(&self) -> Result<()> {
        self.start_as(&self.name, self.attachment()?)
    }

    fn start_as(&self, name: &MachineName, attachment: Attachment) -> Result<()> {
        let current = self.app.generations(name).current()?.ok_or_else(|| {
            Failure::failed(format!("`{name}` has no generation"))
                .hint(format!("`codchi rebuild {name}` makes one"))
        })?;
        let parts = HostParts::of(self.app, self.store)?;
        let host = parts.host(self.app, self.store);
        let system = self.system(current.record.toplevel.as_str(), &parts)?;
        self.app.printer.report(Event::Phase("starting"));
        let machine = Machine { name, attachment: &attachment, system: Some(system) };
        let started = codchi_drivers::find(&attachment.driver)?.start(&host, &machine);
        self.app.printer.done();
        Ok(started?)
    }

    /// Brings what the machine has of the host to what is recorded, if it runs.
    fn give(&self) -> Result<()> {
        let parts = HostParts::of(self.app, self.store)?;
        let host = parts.host(self.app, self.store);
        let attachment = self.attachment()?;
        let driver = codchi_drivers::find(&attachment.driver)?;
        if driver.state(&host, &self.name)?.state != State::Running {
            return Ok(());
        }
        // What runs, which need not be what the folder says.
        let Some(current) = self.app.generations(&self.name).current()? else { return Ok(()) };
        let system = self.system(current.record.toplevel.as_str(), &parts)?;
        let machine = Machine { name: &self.name, attachment: &attachment, system: Some(system) };
        let given = driver.give(&host, &machine);
        self.app.printer.done();
        *self.given.borrow_mut() = given?;
        Ok(())
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
            Part::Logs => {
                move_all(&app.dirs.logs(from), &app.dirs.logs(to))?;
                codchi_fs::remove_if_exists(fingerprint_file(app, from))?;
                Ok(codchi_fs::remove_if_exists(fingerprint_cache(app, from))?)
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
            return Err(Failure::new(Kind::Host, "the store is gone").hint("`codchi doctor` says more"));
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
            .map_err(|e| Failure::failed(format!("cannot run the init script: {e}")))?;
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

/// The file that says which init script has still to run.
pub fn pending_script(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.machine_data(name).join("init-script")
}

/// Where the store paths are rooted that a generation's flake.lock refers to.
fn input_roots(app: &App, name: &MachineName, number: u64) -> PathBuf {
    app.dirs.generations(name).join(format!("{number}.inputs"))
}

impl Worker for MachineWorker<'_> {
    fn run(&self, step: &Step) -> Result<()> {
        let app = self.app;
        match step {
            Step::Fetch { .. } | Step::Build { .. } => Ok(()),
            Step::CreateRoot { .. } => {
                let parts = HostParts::of(app, self.store)?;
                let attachment = self.attachment()?;
                let machine = Machine { name: &self.name, attachment: &attachment, system: None };
                self.driver()?.create(&parts.host(app, self.store), &machine)?;
                if let Some(script) = &self.script {
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
                    return Err(Failure::failed("the new generation is not known any more"));
                };
                codchi_fs::create_private_dir(app.dirs.generations(&self.name))?;
                let got = generations.add(nix, record)?;
                if got != number {
                    generations.remove(got)?;
                    return Err(Failure::failed(format!("`{}` was changed meanwhile; try again", self.name)));
                }
                let roots = input_roots(app, &self.name, number);
                codchi_fs::create_private_dir(&roots)?;
                let paths: Vec<StorePath> = make::lock_roots(&record.flake_lock).into_iter().collect();
                for path in &paths {
                    nix.add_root(&roots.join(path.base_name()), path)?;
                }
                Ok(())
            }
            Step::InstallConfig { from, to } => {
                if to.exists() {
                    if from.exists() {
                        return Err(Failure::failed(format!("there is a machine `{}` already", self.name)));
                    }
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
                self.driver()?.remove(&parts.host(app, self.store), &self.name)?;
                codchi_fs::remove_if_exists(pending_script(app, &self.name))?;
                remove_empty(&app.dirs.machine_data(&self.name));
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
            Step::Rename { part, from, to } => self.rename(*part, from, to),
            Step::StartAs { machine } => self.start_as(machine, app.attachment(machine)?),
            Step::RemoveGenerations { path } => {
                codchi_fs::remove_dir_all(path)?;
                if let Some(store) = self.store {
                    store.forget_machine(&self.name)?;
                }
                Ok(())
            }
            Step::RemoveConfig { path } => Ok(codchi_fs::remove_dir_all(path)?),
            Step::RemoveLogs { path } => {
                codchi_fs::remove_dir_all(path)?;
                codchi_fs::remove_if_exists(fingerprint_file(app, &self.name))?;
                codchi_fs::remove_if_exists(fingerprint_cache(app, &self.name))?;
                crate::updates::forget(app, &self.name)
            }
            Step::RestoreConfig { number, path } => {
                let record = app.generations(&self.name).get(u64::from(*number))?.record;
                codchi_fs::write_atomic(path.join("flake.nix"), record.flake_nix, 0o644)?;
                Ok(codchi_fs::write_atomic(path.join("flake.lock"), record.flake_lock, 0o644)?)
            }
            Step::WriteHost { path, text, .. } => Ok(codchi_fs::write_atomic(path, text, 0o644)?),
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
        codchi_fs::remove_dir_all(input_roots(self.app, &self.name, number))?;
        generations.remove(number)?;
        let dir = self.app.dirs.generations(&self.name);
        if generations.current_number()? == Some(number) {
            codchi_fs::remove_if_exists(dir.join("current"))?;
        }
        remove_empty(&dir);
        Ok(())
    }
}

/// Names what could not be copied.
pub fn tell_lost(app: &App, report: &codchi_files::Report) {
    if report.lost == 0 {
        return;
    }
    let what = codchi_core::text::count(report.lost, "thing", "things");
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
    remove_empty(from);
    Ok(())
}

/// Makes a folder of roots again in another place. May be repeated.
fn copy_roots(nix: &Nix, from: &Path, to: &Path) -> Result<()> {
    codchi_fs::create_private_dir(to)?;
    for entry in codchi_fs::read_dir(from)? {
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        match codchi_fs::read_link_if_exists(&old) {
            Ok(Some(target)) => match target.to_str().and_then(|t| t.parse::<StorePath>().ok()) {
                Some(path) => nix.add_root(&new, &path)?,
                None => codchi_fs::symlink_atomic(target, new)?,
            },
            _ if old.is_dir() => copy_roots(nix, &old, &new)?,
            _ => codchi_fs::write_atomic(new, codchi_fs::read(&old)?, 0o600)?,
        }
    }
    Ok(())
}

/// Where a machine's last fingerprint is.
pub fn fingerprint_file(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.state.join("fingerprints").join(format!("{name}.json"))
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

/// What a rebuild of a machine would read, in a word; none where that cannot be told.
pub fn fingerprint(app: &App, name: &MachineName, nix: &str) -> Option<String> {
    let cache = fingerprint_cache(app, name);
    codchi_fs::create_private_dir(cache.parent()?).ok()?;
    let inputs = codchi_nix::fingerprint::Inputs {
        machine: &app.dirs.machine(name),
        facts: make::facts(app, name, nix),
        cache: &cache,
    };
    codchi_nix::fingerprint::compute(&inputs).ok()
}

/// What was read when the machine was last built.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Built {
    /// 1.
    pub version: u32,
    /// [`fingerprint`] then.
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

/// Remembers what the machine was built from.
pub fn remember_fingerprint(app: &App, name: &MachineName, tools: &make::Tools) -> Result<()> {
    // An input replaced for one call is not in the folder: a rebuild without it has something to do.
    if tools.nix.options().extra.iter().any(|flag| flag == "--override-input") {
        codchi_fs::remove_if_exists(fingerprint_file(app, name))?;
        return Ok(());
    }
    let nix = tools.nix.version().to_string();
    let generation = app.generations(name).current_number()?.unwrap_or(0);
    if let Some(fingerprint) = fingerprint(app, name, &nix) {
        let file = fingerprint_file(app, name);
        if let Some(dir) = file.parent() {
            codchi_fs::create_private_dir(dir)?;
        }
        let built = Built { version: 1, fingerprint, generation, nix };
        codchi_fs::write_atomic(file, serde_json::to_string(&built).unwrap_or_default(), 0o600)?;
    }
    Ok(())
}

fn fingerprint_cache(app: &App, name: &MachineName) -> PathBuf {
    app.dirs.cache.join("fingerprints").join(format!("{name}.json"))
}

fn remove_empty(dir: &Path) {
    // Not empty is fine: something else is kept there.
    let _ = rustix::fs::unlinkat(rustix::fs::CWD, dir, rustix::fs::AtFlags::REMOVEDIR);
}
