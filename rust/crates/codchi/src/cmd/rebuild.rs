//! `codchi rebuild`, `update`, `rollback`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use codchi_core::flake::{Flake, FlakeError};
use codchi_core::machine::{Host as Attachment, HostEdit};
use codchi_core::name::MachineName;
use codchi_core::plan::{Activation, Plan, Step};
use codchi_core::progress::{Event, Progress};
use codchi_core::report::Kind;
use codchi_core::status::State;
use codchi_core::text;
use codchi_debian::mirror::Freshness;
use codchi_drivers::Switched;
use codchi_fs::Lock;
use codchi_nix::StorePath;
use codchi_nix::closure::Difference;
use codchi_nix::drv::Source;
use codchi_nix::fingerprint::Looks;
use codchi_nix::generations::Generation;
use codchi_nix::lock::{Locked, Update};
use codchi_secrets::Bundle;

use crate::app::App;
use crate::checkout;
use crate::cli::{self, NixFlags};
use crate::cmd::init::{record, show_plan};
use crate::cmd::{life, port};
use crate::failure::{Failure, Result};
use crate::journal;
use crate::make::{self, Evaluation, Scratch, Tools, copy_folder};
use crate::needs::{self, Known};
use crate::secrets::{self, Given};
use crate::worker::{self, MachineWorker};

/// What to do with what is built.
struct How {
    update: Update,
    activation: Option<Activation>,
    restore: bool,
    ask: bool,
    roll_back: bool,
    secrets: Given,
}

/// What became of a machine.
enum Outcome {
    /// Nothing is to be done.
    UpToDate,
    /// What would be done, or what was built, is printed.
    Shown,
    /// It is on this generation, or will be.
    On(u64),
}

/// `rebuild`. Several machines are locked one by one, evaluated by one process, built by one that builds as much at once as Nix is set to,
/// and switched one by one. One that fails keeps none of the others from it.
pub fn rebuild(app: &App, args: &cli::Rebuild) -> Result<()> {
    let mut names = Vec::new();
    for given in &args.names {
        let name = app.machine(given)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if args.all {
        for name in app.names()? {
            if app.attachment(&name).is_ok_and(|a| a.declared) {
                app.printer
                    .say(&format!("`{name}` is left out: the configuration of this computer declares it"));
            } else {
                names.push(name);
            }
        }
    }
    let how = How {
        update: if args.update { Update::All } else { Update::Missing },
        activation: match (args.boot, args.build_only) {
            (_, true) => None,
            (true, _) => Some(Activation::Boot),
            _ => Some(Activation::Switch),
        },
        restore: args.restore_lock,
        ask: args.ask,
        roll_back: !args.no_rollback,
        secrets: secrets::given(&args.secrets)?,
    };
    let mut all = Several { app, several: names.len() > 1, done: Vec::new() };
    let mut jobs = Vec::new();
    for name in &names {
        match begin(app, name, &args.nix, &how) {
            Ok(Some(job)) => jobs.push(job),
            Ok(None) => match port::is_pending(app, name) {
                Ok(pending) => {
                    all.tell(name, Ok(Outcome::UpToDate))?;
                    tell_pending(app, name, pending);
                }
                Err(failure) => all.tell(name, Err(failure))?,
            },
            Err(failure) => all.tell(name, Err(failure))?,
        }
    }
    evaluate_together(app, &mut jobs);
    let mut ready = Vec::new();
    for mut job in jobs {
        let name = job.name.clone();
        let settled = job.settle(app, &how);
        if !app.globals.dry_run && settled.is_ok() {
            ready.push(job);
            continue;
        }
        let shown = settled.and_then(|()| job.plan(app, &how)).map(|plan| show_plan(app, &plan));
        all.tell(&name, shown.map(|()| Outcome::Shown))?;
    }
    build_together(app, &ready);
    for job in ready {
        let name = job.name.clone();
        all.tell(&name, job.apply(app, &how))?;
    }
    all.end()
}

/// What became of several machines.
struct Several<'a> {
    app: &'a App,
    several: bool,
    done: Vec<(MachineName, Result<Outcome, Failure>)>,
}

impl Several<'_> {
    /// Takes down what became of a machine. An interruption ends it all.
    fn tell(&mut self, name: &MachineName, outcome: Result<Outcome>) -> Result<()> {
        self.app.printer.done();
        match outcome {
            Err(failure) if failure.kind == Kind::Interrupted => return Err(failure),
            Ok(Outcome::UpToDate) if !self.several => {
                self.app.printer.say(&format!("`{name}` is up to date"));
            }
            Err(failure) if self.several => {
                self.app.printer.failure(&failure);
                self.done.push((name.clone(), Err(failure)));
                return Ok(());
            }
            _ => {}
        }
        self.done.push((name.clone(), outcome));
        Ok(())
    }

    /// Prints what became of each, where there are several, and gives the first failure.
    fn end(self) -> Result<()> {
        if !self.several {
            return self.done.into_iter().try_for_each(|(_, outcome)| outcome.map(drop));
        }
        for (name, outcome) in &self.done {
            let became = match outcome {
                Ok(Outcome::UpToDate) => "up to date".to_string(),
                Ok(Outcome::Shown) => continue,
                Ok(Outcome::On(number)) => format!("generation {number}"),
                Err(_) => "failed".to_string(),
            };
            self.app.printer.say(&format!("{name}: {became}"));
        }
        let failed: Vec<_> = self.done.iter().filter_map(|(n, o)| Some((n, o.as_ref().err()?))).collect();
        let Some((_, first)) = failed.first() else { return Ok(()) };
        let names: Vec<String> = failed.iter().map(|(n, _)| format!("`{n}`")).collect();
        Err(Failure::new(
            first.kind,
            format!("{} of {} failed: {}", failed.len(), self.done.len(), names.join(", ")),
        ))
    }
}

/// Whether a rebuild would read exactly what the generation in force was built from.
pub fn is_up_to_date(app: &App, name: &MachineName) -> bool {
    is_up_to_date_beside(app, name, &Looks::default())
}

/// The same beside what was looked at for other machines.
pub fn is_up_to_date_beside(app: &App, name: &MachineName, looks: &Looks) -> bool {
    if app.attachment(name).is_ok_and(|a| a.declared) {
        return true;
    }
    // A copy of a declared machine has no machine flake until a person writes one.
    if !app.dirs.machine(name).join("flake.nix").exists() {
        return false;
    }
    let Some(built) = worker::built(app, name) else { return false };
    let current = app.generations(name).current_number().ok().flatten();
    current == Some(built.generation)
        && worker::fingerprint(app, name, &built.nix, looks).is_some_and(|f| f == built.fingerprint)
}

/// The fingerprint that an up-to-date machine will have under a name and with an attachment, for
/// [`worker::remember_fingerprint`]; none where it is not up to date.
pub fn handed_on(
    app: &App,
    name: &MachineName,
    to: &MachineName,
    attachment: &Attachment,
    tools: &Tools,
) -> Option<String> {
    let nix = tools.nix.version().to_string();
    // Taken first, so that what is changed meanwhile is left to the next rebuild.
    let fingerprint = worker::fingerprint_of(app, to, &app.dirs.machine(name), attachment, &nix);
    fingerprint.filter(|_| is_up_to_date(app, name))
}

/// Refuses to change what a machine is made of where this computer's own configuration says it.
pub fn refuse_declared(app: &App, name: &MachineName) -> Result<()> {
    if !app.attachment(name)?.declared {
        return Ok(());
    }
    Err(Failure::failed(format!("`{name}` is declared by the configuration of this computer"))
        .hint(format!("change `codchi.machines.{name}` there")))
}

/// Whether an earlier generation than the newest is in force.
pub fn is_rolled_back(app: &App, name: &MachineName) -> bool {
    let all = app.generations(name).list().unwrap_or_default();
    let current = all.iter().position(|g| g.current);
    current.is_some_and(|i| i + 1 < all.len())
}

/// A machine that is being rebuilt.
struct Job {
    name: MachineName,
    attachment: Attachment,
    current: Option<Generation>,
    rolled_back: bool,
    tools: Tools,
    staging: Scratch,
    folder: PathBuf,
    flake: Flake,
    locked: Locked,
    /// Of the folder and the inputs as they were read.
    fingerprint: Option<String>,
    evaluation: Option<Evaluation>,
    /// What [`Job::settle`] finds out.
    granted: Vec<String>,
    secrets: Bundle,
    missing: Vec<Source>,
}

/// Locks what a machine is to be built from; none where it is up to date.
fn begin(app: &App, name: &MachineName, flags: &NixFlags, how: &How) -> Result<Option<Job>> {
    refuse_declared(app, name)?;
    if journal::is_open(app, name) && !app.globals.dry_run {
        let lock = app.lock(name, "rebuild")?;
        worker::recover(app, &lock, name)?;
    }
    let generations = app.generations(name);
    let current = generations.current()?;
    let rolled_back = is_rolled_back(app, name);
    let attachment = app.attachment(name)?;
    let plain = !rolled_back
        && how.update == Update::Missing
        && flags.override_input.is_empty()
        && how.secrets.is_empty()
        && app.globals.accept.is_empty()
        && app.globals.refuse.is_empty()
        && is_up_to_date(app, name);
    if plain && attachment.checkouts.is_empty() {
        return Ok(None);
    }
    if rolled_back && !how.restore && !app.globals.dry_run {
        let n = current.as_ref().map_or(0, |g| g.number);
        app.printer
            .say(&format!("`{name}` was rolled back to generation {n}; its folder says something newer"));
        app.confirm_yes("build what the folder says?").map_err(|f| {
            f.hint("`--restore-lock` takes flake.nix and flake.lock of that generation instead")
        })?;
    }
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let folder = staging.path().join("machine");
    copy_folder(app, name, &folder)?;
    if how.restore
        && let Some(current) = &current
    {
        codchi_fs::write_atomic(folder.join("flake.nix"), &current.record.flake_nix, 0o644)?;
        codchi_fs::write_atomic(folder.join("flake.lock"), &current.record.flake_lock, 0o644)?;
    }
    let flake = read_flake(app, name, &folder)?;
    let mut tools = Tools::needed(app, flags)?;
    tools.authenticate(app, flags, &needs::addresses(&flake))?;
    let old_lock = codchi_fs::read_if_exists(folder.join("flake.lock"))?.unwrap_or_default();
    let checkouts = checkouts(app, &tools, name, &attachment, how)?;
    if !app.globals.dry_run {
        let paths: Vec<StorePath> = checkouts.values().cloned().collect();
        keep_roots(app, &tools, name, &paths)?;
    }
    let is_locked = |(input, path): (&String, &StorePath)| {
        make::locked_path(&old_lock, &[input.as_str()]).as_ref() == Some(path)
    };
    if plain && checkouts.iter().all(is_locked) {
        return Ok(None);
    }
    let updating = |input: &str| match &how.update {
        Update::All => true,
        Update::Inputs(names) => names.iter().any(|n| n == input),
        Update::Missing => false,
    };
    let codchi = if updating("codchi") { Some(tools.codchi(app)?) } else { None };
    let base = match (&attachment.suite, updating("nixpkgs")) {
        (Some(suite), true) => Some(tools.debian(app, suite, make::freshness(flags, Freshness::Check))?),
        _ => None,
    };
    let mut request = make::keep_base(&old_lock, how.update.clone(), base, codchi);
    if attachment.base != "debian" {
        request.base = None;
    } else if request.base.as_ref().is_none_or(|b| !tools.has(b)) {
        let suite = attachment.suite.clone().unwrap_or_else(|| app.settings.base.suite.clone());
        request.base = Some(tools.debian(app, &suite, make::freshness(flags, Freshness::Check))?);
    }
    if request.codchi.as_ref().is_none_or(|c| !tools.has(c)) {
        request.codchi = Some(tools.codchi(app)?);
    }
    // What a generation was built from is its lock, to the letter.
    request.refresh_local = !how.restore;
    request.checkouts = checkouts;
    let locked = tools.lock(app, &folder, &request)?;
    let nix = tools.nix.version().to_string();
    let fingerprint = worker::fingerprint_of(app, name, &folder, &attachment, &nix);
    tools.only_local(&attachment.base);
    Ok(Some(Job {
        name: name.clone(),
        attachment,
        current,
        rolled_back,
        tools,
        staging,
        folder,
        flake,
        locked,
        fingerprint,
        evaluation: None,
        granted: Vec::new(),
        secrets: Bundle::new(),
        missing: Vec::new(),
    }))
}

/// What checkouts in the machine hold now. To show what would be done, no machine is started.
fn checkouts(
    app: &App,
    tools: &Tools,
    name: &MachineName,
    attachment: &Attachment,
    how: &How,
) -> Result<BTreeMap<String, StorePath>> {
    if how.restore || attachment.checkouts.is_empty() {
        return Ok(BTreeMap::new());
    }
    if app.globals.dry_run && life::state(app, name)? != State::Running {
        app.printer.warn(&format!("`{name}` does not run: what its checkouts hold now is not seen"));
        return Ok(BTreeMap::new());
    }
    checkout::fetch_all(app, tools, name, &attachment.checkouts)
}

/// The jobs that one process can do the Nix side of: those with the same base and the same flags for it. With an input replaced, an
/// evaluation is of that call alone.
fn groups(jobs: &[Job], fits: impl Fn(&Job) -> bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let extra = &job.tools.nix.options().extra;
        if extra.iter().any(|flag| flag == "--override-input") || !fits(job) {
            continue;
        }
        match groups.iter_mut().find(|g| jobs[g[0]].tools.nix.options().extra == *extra) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups.retain(|g| g.len() > 1);
    groups
}

/// Evaluates several machines by one process: what they share of sources is read once. Where that fails, each is evaluated by itself, so
/// that the failure is told with the machine it belongs to. Nothing is built for it: what may is evaluated by itself, too.
fn evaluate_together(app: &App, jobs: &mut [Job]) {
    for group in groups(jobs, |job| !job.may_import(app)) {
        jobs[group[0]].tools.import_from_derivation(false);
        let folders: Vec<(PathBuf, String)> =
            group.iter().map(|i| (jobs[*i].folder.clone(), jobs[*i].attachment.driver.to_string())).collect();
        let Ok(evaluations) = jobs[group[0]].tools.evaluate_all(app, &folders) else { continue };
        for (i, evaluation) in group.into_iter().zip(evaluations) {
            jobs[i].evaluation = Some(evaluation);
        }
    }
    app.printer.done();
}

/// Builds several machines by one process, which builds as many things at once as Nix is set to. What fails is left to the build of
/// that machine, to be told there.
fn build_together(app: &App, jobs: &[Job]) {
    for group in groups(jobs, |_| true) {
        let of = |i: &usize| -> &Job { &jobs[*i] };
        let missing: Vec<Source> = group.iter().flat_map(|i| of(i).missing.clone()).collect();
        let drvs: Vec<StorePath> =
            group.iter().filter_map(|i| Some(of(i).evaluation.as_ref()?.drv_path.clone())).collect();
        let tools = &of(&group[0]).tools;
        if tools.fetch(app, &missing).is_ok() {
            let _ = tools.nix.build_all(&drvs, &app.printer);
        }
    }
    app.printer.done();
}

impl Job {
    /// Whether its evaluation may build what modules want for that.
    fn may_import(&self, app: &App) -> bool {
        needs::may_import(app, &self.flake, &self.attachment)
    }

    /// Evaluates the machine, unless that was done together with others, and finds out all that a person has to answer.
    fn settle(&mut self, app: &App, how: &How) -> Result<()> {
        let driver = self.attachment.driver.as_str();
        let there = Some((&self.name, &self.attachment));
        let known = Known::of(app, &self.tools, &self.folder, &self.flake, &self.locked.text, driver, there)?;
        let (evaluation, mut granted) = match self.evaluation.take() {
            // Together with others nothing is built for an evaluation, so nothing has to be granted for it.
            Some(evaluation) => (evaluation, Vec::new()),
            None => needs::evaluate(app, &mut self.tools, &self.folder, driver, &known)?,
        };
        granted.extend(needs::check(app, &evaluation.needs, &known)?);
        self.tools.use_settings(&granted);
        self.granted = granted;
        secrets::known(&evaluation.needs, how.secrets.keys())?;
        if !app.globals.dry_run && how.activation.is_some() {
            app.printer.done();
            let have = secrets::names(app, &self.name)?;
            self.secrets =
                secrets::gather(app, Some(&self.name), &evaluation.needs, &how.secrets, &have, false)?;
        }
        self.missing = self.tools.missing(&evaluation)?;
        self.evaluation = Some(evaluation);
        app.printer.done();
        Ok(())
    }

    fn evaluation(&self) -> Result<&Evaluation> {
        self.evaluation.as_ref().ok_or_else(|| Failure::internal("the machine was not evaluated"))
    }

    /// The steps, as far as they are known before the build.
    fn plan(&self, app: &App, how: &How) -> Result<Plan> {
        let mut steps = Vec::new();
        if !self.missing.is_empty() {
            steps.push(Step::Fetch { files: self.missing.len() as u64, bytes: 0 });
        }
        steps.push(Step::Build { drv_path: self.evaluation()?.drv_path.to_string() });
        let number = next(app, &self.name)?;
        steps.extend(self.change(how).steps(app, number, "", Vec::new())?);
        steps.extend(self.last_steps(app, how, number));
        Ok(Plan::new("rebuild", &self.name, steps))
    }

    fn change(&self, how: &How) -> Change<'_> {
        Change {
            name: &self.name,
            current: self.current.as_ref().map(|g| g.number),
            activation: how.activation.unwrap_or(Activation::Boot),
            roll_back: how.roll_back,
        }
    }

    /// What the machine folder is changed to, once the machine is on the new generation.
    fn last_steps(&self, app: &App, how: &How, number: u64) -> Option<Step> {
        let folder = app.dirs.machine(&self.name);
        let number = number as u32;
        if how.restore {
            return Some(Step::RestoreConfig { number, path: folder });
        }
        self.locked.changed.then(|| Step::UpdateLock { number, path: folder.join("flake.lock") })
    }

    /// Builds it and puts it in force.
    fn apply(mut self, app: &App, how: &How) -> Result<Outcome> {
        let name = &self.name.clone();
        self.tools.fetch(app, &self.missing)?;
        let evaluation = &self.evaluation()?.clone();
        let toplevel = self.tools.build(app, evaluation, &self.staging.path().join("result"))?;
        app.printer.done();
        if how.activation.is_none() {
            app.printer.data(toplevel.as_str());
            return Ok(Outcome::Shown);
        }
        let same =
            self.current.as_ref().filter(|g| g.record.toplevel == toplevel && !self.rolled_back).cloned();
        if same.is_none() {
            let before = self.current.as_ref().map(|g| g.record.toplevel.clone());
            let difference = self.tools.nix.diff(before.as_ref(), &toplevel)?;
            app.printer.done();
            show_difference(app, &difference, false);
            if difference.changes.is_empty() {
                app.printer.say("  no package differs");
            }
            if how.ask {
                app.confirm_yes(&format!("put `{name}` on the new system?"))?;
            }
        }
        let lock = worker::hold(app, name, "rebuild")?;
        if app.generations(name).current_number()? != self.current.as_ref().map(|g| g.number) {
            return Err(Failure::new(Kind::Busy, format!("`{name}` was changed meanwhile")).hint("try again"));
        }
        let mut worker = MachineWorker::new(app, name, Some(&self.tools.store), Some(&self.tools.nix));
        worker.record = Some(record(&self.tools, evaluation, &toplevel, &self.folder, &self.locked.text)?);
        if self.granted != self.attachment.granted {
            remember_granted(app, name, &self.granted)?;
        }
        let fresh = !self.secrets.is_empty();
        if fresh {
            let new = std::mem::take(&mut self.secrets);
            secrets::with_vault(app, |vault| vault.store(name, new))?;
        }
        if let Some(same) = same {
            let granted_anew = self.granted != self.attachment.granted;
            if granted_anew {
                worker.give()?;
                tell_devices(app, name, evaluation, &self.attachment.granted, &self.granted)?;
            }
            if fresh || granted_anew {
                worker.deliver(&evaluation.needs, false)?;
            }
            if self.locked.changed {
                keep_only(app, &self.tools, name, &self.locked.roots)?;
                let file = app.dirs.machine(name).join("flake.lock");
                codchi_fs::write_atomic(file, &self.locked.text, 0o644)?;
            }
            worker::remember_fingerprint(app, name, &self.tools, self.fingerprint)?;
            app.printer.say(&format!("`{name}` is up to date: generation {}", same.number));
            tell_pending(app, name, port::is_pending(app, name)?);
            return Ok(Outcome::On(same.number));
        }
        let last = |number| self.last_steps(app, how, number).into_iter().collect();
        let number = self.change(how).carry_out(app, lock, &worker, &toplevel, last)?;
        worker::remember_fingerprint(app, name, &self.tools, self.fingerprint)?;
        Ok(Outcome::On(number))
    }
}

/// The number of a machine's next generation.
fn next(app: &App, name: &MachineName) -> Result<u64> {
    Ok(app.generations(name).list()?.last().map_or(0, |g| g.number) + 1)
}

/// How a machine takes a new system.
pub struct Change<'a> {
    pub name: &'a MachineName,
    /// The generation in force.
    pub current: Option<u64>,
    pub activation: Activation,
    /// Whether the machine goes back where it does not come up.
    pub roll_back: bool,
}

impl Change<'_> {
    /// The steps; `failed` are the units of the running machine that failed before.
    fn steps(&self, app: &App, number: u64, toplevel: &str, failed: Vec<String>) -> Result<Vec<Step>> {
        let number = number as u32;
        let previous = self.current.map(|n| n as u32);
        let mut steps = vec![
            Step::AddGeneration { number, toplevel: toplevel.into() },
            Step::Activate { number, toplevel: toplevel.into(), how: self.activation, previous },
        ];
        if let (Activation::Switch, Some(previous), true) = (self.activation, previous, self.roll_back)
            && life::state(app, self.name)? == State::Running
        {
            steps.push(Step::Confirm { number, previous, failed });
        }
        Ok(steps)
    }

    /// All of it, as far as that is known before it is carried out.
    pub fn plan(&self, app: &App, toplevel: &str) -> Result<Plan> {
        Ok(Plan::new("rebuild", self.name, self.steps(app, next(app, self.name)?, toplevel, Vec::new())?))
    }

    /// Records a system as a generation, of which the worker knows the record, puts it in force, tells what that did, and gives its
    /// number. `last` are further steps.
    pub fn carry_out(
        &self,
        app: &App,
        lock: Lock,
        worker: &MachineWorker,
        toplevel: &StorePath,
        last: impl FnOnce(u64) -> Vec<Step>,
    ) -> Result<u64> {
        let name = self.name;
        let number = next(app, name)?;
        let failed = match self.activation {
            Activation::Switch => worker.failed_units()?,
            Activation::Boot => Vec::new(),
        };
        let mut steps = self.steps(app, number, toplevel.as_str(), failed)?;
        steps.extend(last(number));
        let plan = Plan::new("rebuild", name, steps);
        journal::execute(app, &lock, &plan, worker)?;
        drop(lock);
        let switched = worker.switched.borrow();
        tell_units(app, &switched);
        let when = if self.activation == Activation::Boot { "will run" } else { "is on" };
        app.printer.say(&format!("`{name}` {when} generation {number}"));
        units_failed(name, number, &switched)?;
        Ok(number)
    }
}

/// Writes down what a machine may have of this host.
pub fn remember_granted(app: &App, name: &MachineName, granted: &[String]) -> Result<()> {
    let file = app.dirs.host_toml(name);
    let mut edit = HostEdit::new(&file, &codchi_fs::read_to_string(&file)?)?;
    edit.granted(granted);
    Ok(codchi_fs::write_atomic(file, edit.text(), 0o644)?)
}

/// Prints the units that a switch touched.
fn tell_units(app: &App, switched: &Switched) {
    for change in &switched.units {
        app.printer.say(&format!("  {} {}", change.action, text::printable_line(&change.unit)));
    }
}

/// The failure of a switch that left units failed.
fn units_failed(name: &MachineName, number: u64, switched: &Switched) -> Result<()> {
    if switched.status != 4 {
        return Ok(());
    }
    Err(Failure::failed(format!("`{name}` is on generation {number}, but some of its units failed"))
        .hint(format!("`codchi logs {name}` shows why")))
}

/// Says so where a person wrote ports or folders into host.toml, which no rebuild reads.
fn tell_pending(app: &App, name: &MachineName, is_pending: bool) {
    if is_pending {
        app.printer.say(&format!(
            "the ports and folders in `{}` are applied at the next start",
            app.shown(&app.dirs.host_toml(name))
        ));
        app.printer.hint(&format!("`codchi restart {name}` starts it anew"));
    }
}

/// Tells that devices which are granted now are there from the next start on.
fn tell_devices(
    app: &App,
    name: &MachineName,
    evaluation: &Evaluation,
    before: &[String],
    now: &[String],
) -> Result<()> {
    let devices = |lines| codchi_drivers::capability::devices(&evaluation.needs, lines);
    if devices(before) != devices(now) && life::state(app, name)? == State::Running {
        app.printer.hint(&format!("`codchi restart {name}` gives it the devices that it may use now"));
    }
    Ok(())
}

/// Reads the flake.nix in a folder. One that a person edited into nonsense is an error of ours, with its line, before Nix sees
/// it; `machine` is whose it is.
pub fn read_flake(app: &App, machine: &MachineName, folder: &std::path::Path) -> Result<Flake> {
    let Some(text) = codchi_fs::read_if_exists(folder.join("flake.nix"))? else {
        return Err(no_flake(app, machine));
    };
    Flake::parse(&text).map_err(|e| in_machine(app, machine, e))
}

/// A machine that the configuration of this computer declares, or declared, has no flake of its own.
pub fn no_flake(app: &App, name: &MachineName) -> Failure {
    match refuse_declared(app, name) {
        Err(failure) => failure,
        Ok(()) => Failure::failed(format!("`{name}` has no machine flake"))
            .hint(format!("write one: `{}`", app.shown(&app.dirs.machine(name).join("flake.nix")))),
    }
}

/// An error about a machine's flake.nix, with the path of the file.
pub fn in_machine(app: &App, machine: &MachineName, error: FlakeError) -> Failure {
    error.in_file(app.shown(&app.dirs.machine(machine).join("flake.nix"))).into()
}

/// Keeps what a new lock names from collection, until the next rebuild roots it with its generation.
pub fn keep_roots(app: &App, tools: &Tools, name: &MachineName, paths: &[StorePath]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let folder = worker::next_roots(app, name);
    codchi_fs::create_private_dir(&folder)?;
    let roots: Vec<_> = paths.iter().map(|path| (folder.join(path.base_name()), path.clone())).collect();
    Ok(tools.nix.add_roots(&roots)?)
}

/// The same, and nothing else any more.
pub fn keep_only(app: &App, tools: &Tools, name: &MachineName, paths: &[StorePath]) -> Result<()> {
    keep_roots(app, tools, name, paths)?;
    for root in codchi_fs::read_dir(worker::next_roots(app, name)).unwrap_or_default() {
        if !paths.iter().any(|p| root.file_name() == p.base_name()) {
            codchi_fs::remove_if_exists(root.path())?;
        }
    }
    Ok(())
}

/// Prints what differs between two systems.
pub fn show_difference(app: &App, difference: &Difference, as_data: bool) {
    let print = |line: &str| if as_data { app.printer.data(line) } else { app.printer.say(line) };
    for change in &difference.changes {
        let versions = |v: &[String]| match v {
            [] => "none".to_string(),
            all => {
                all.iter().map(|v| if v.is_empty() { "ε" } else { v.as_str() }).collect::<Vec<_>>().join(", ")
            }
        };
        let size = text::signed_bytes(change.bytes);
        let name = &change.name;
        print(&match (change.before.as_slice(), change.after.as_slice()) {
            ([], after) => format!("  + {name} {} ({size})", versions(after)),
            (before, []) => format!("  - {name} {} ({size})", versions(before)),
            (before, after) if before == after => format!("    {name} {} ({size})", versions(after)),
            (before, after) => format!("    {name} {} -> {} ({size})", versions(before), versions(after)),
        });
    }
    if !difference.changes.is_empty() {
        let delta = difference.after as i64 - difference.before as i64;
        print(&format!("  {} in all, {}", text::bytes(difference.after), text::signed_bytes(delta)));
    }
}

/// `update`.
pub fn update(app: &App, args: &cli::Update) -> Result<()> {
    let name = app.machine(&args.name)?;
    refuse_declared(app, &name)?;
    let folder = app.dirs.machine(&name);
    let flake = read_flake(app, &name, &folder)?;
    let known: Vec<String> = flake.inputs().into_iter().map(|(n, _)| n).collect();
    for input in &args.inputs {
        if !known.contains(input) {
            let failure = Failure::new(
                Kind::NotFound,
                format!("`{name}` has no input `{}`", text::printable_line(input)),
            );
            return Err(match text::nearest(input, known.iter().map(String::as_str), 1).first() {
                Some(near) => failure.hint(format!("did you mean `{near}`?")),
                None => failure.hint(format!("it has `{}`", known.join("`, `"))),
            });
        }
    }
    let update = if args.inputs.is_empty() { Update::All } else { Update::Inputs(args.inputs.clone()) };
    let mut tools = Tools::needed(app, &args.nix)?;
    tools.authenticate(app, &args.nix, &needs::addresses(&flake))?;
    let attachment = app.attachment(&name)?;
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let work = staging.path().join("machine");
    copy_folder(app, &name, &work)?;
    let old = codchi_fs::read_if_exists(work.join("flake.lock"))?.unwrap_or_default();
    let all = args.inputs.is_empty();
    let codchi =
        if all || args.inputs.iter().any(|i| i == "codchi") { Some(tools.codchi(app)?) } else { None };
    let base = match &attachment.suite {
        Some(suite) if all || args.inputs.iter().any(|i| i == "nixpkgs") => {
            Some(tools.debian(app, suite, make::freshness(&args.nix, Freshness::Check))?)
        }
        _ => None,
    };
    let mut request = make::keep_base(&old, update, base, codchi);
    // What is taken from a checkout moves with it.
    request.checkouts = attachment
        .checkouts
        .keys()
        .filter_map(|input| Some((input.to_string(), make::locked_path(&old, &[input.as_str()])?)))
        .filter(|(_, path)| tools.has(path))
        .collect();
    let locked = tools.lock(app, &work, &request)?;
    app.printer.done();
    crate::updates::learned(app, &name, &locked.text, &args.inputs)?;
    if !locked.changed {
        app.printer.say(&format!("`{name}` has the newest versions"));
        return Ok(());
    }
    for line in moved(&old, &locked.text) {
        app.printer.say(&line);
    }
    let settings = needs::settings_of_sources(app, &tools, &flake, &locked.text)?;
    needs::tell_settings(app, &attachment.granted, settings);
    if args.check || app.globals.dry_run {
        app.printer.say(&format!("`codchi rebuild --update {name}` applies them"));
        return Ok(());
    }
    let _lock = worker::hold(app, &name, "update")?;
    if codchi_fs::read_if_exists(folder.join("flake.lock"))?.unwrap_or_default() != old {
        return Err(Failure::new(Kind::Busy, format!("the flake.lock of `{name}` was changed meanwhile"))
            .hint("try again"));
    }
    keep_only(app, &tools, &name, &locked.roots)?;
    codchi_fs::write_atomic(folder.join("flake.lock"), &locked.text, 0o644)?;
    app.printer.say(&format!("`codchi rebuild {name}` applies it"));
    Ok(())
}

/// The inputs of the machine flake whose lock moved.
fn moved(old: &str, new: &str) -> Vec<String> {
    let parse = |t: &str| -> serde_json::Value { serde_json::from_str(t).unwrap_or_default() };
    let (old, new) = (parse(old), parse(new));
    let root = |v: &serde_json::Value| v["nodes"][v["root"].as_str().unwrap_or("root")]["inputs"].clone();
    let mut lines = Vec::new();
    for (name, node) in root(&new).as_object().into_iter().flatten() {
        let Some(node) = node.as_str() else { continue };
        let after = &new["nodes"][node]["locked"];
        let before = root(&old)[name].as_str().map(|n| old["nodes"][n]["locked"].clone()).unwrap_or_default();
        if *after == before {
            continue;
        }
        let show = |v: &serde_json::Value| match v["rev"].as_str().or(v["narHash"].as_str()) {
            Some(s) => s.chars().take(19).collect(),
            None => "none".to_string(),
        };
        lines.push(text::printable_line(&format!("  {name}: {} -> {}", show(&before), show(after))));
    }
    lines
}

/// `rollback`.
pub fn rollback(app: &App, args: &cli::Rollback) -> Result<()> {
    let name = app.machine(&args.name)?;
    let generations = app.generations(&name);
    let current = generations.current()?.ok_or_else(|| worker::no_generation(&name))?;
    let target = match args.to {
        Some(n) => generations.get(n)?,
        None => generations.previous()?.ok_or_else(|| {
            Failure::new(Kind::NotFound, format!("`{name}` has no generation before {}", current.number))
                .hint(format!("`codchi generations {name}` shows those that there are"))
        })?,
    };
    if target.number == current.number {
        app.printer.say(&format!("`{name}` is on generation {}", current.number));
        return Ok(());
    }
    let attachment = app.attachment(&name)?;
    if target.record.driver != attachment.driver.as_str() {
        return Err(Failure::failed(format!(
            "generation {} was made for the driver `{}`, and `{name}` runs on `{}`",
            target.number, target.record.driver, attachment.driver
        ))
        .hint(format!("`codchi move {name} --driver {}` moves it first", target.record.driver)));
    }
    let step = Step::Activate {
        number: target.number as u32,
        toplevel: target.record.toplevel.to_string(),
        how: Activation::Switch,
        previous: Some(current.number as u32),
    };
    let plan = Plan::new("rollback", &name, vec![step]);
    if app.globals.dry_run {
        show_plan(app, &plan);
        return Ok(());
    }
    let tools = Tools::needed(app, &NixFlags::default())?;
    app.printer.report(Event::Phase("comparing"));
    let difference = tools.nix.diff(Some(&current.record.toplevel), &target.record.toplevel)?;
    app.printer.done();
    show_difference(app, &difference, false);
    let lock = worker::hold(app, &name, "rollback")?;
    if generations.current_number()? != Some(current.number) {
        return Err(Failure::new(Kind::Busy, format!("`{name}` was changed meanwhile")).hint("try again"));
    }
    let worker = MachineWorker::new(app, &name, Some(&tools.store), Some(&tools.nix));
    journal::execute(app, &lock, &plan, &worker)?;
    let switched = worker.switched.borrow();
    tell_units(app, &switched);
    app.printer.say(&format!("`{name}` is on generation {}", target.number));
    units_failed(&name, target.number, &switched)
}

/// `diff`.
pub fn diff(app: &App, args: &cli::Diff) -> Result<()> {
    let name = app.machine(&args.name)?;
    let generations = app.generations(&name);
    let get = |n: u64| generations.get(n);
    let (from, to) = match (args.from, args.to) {
        (Some(a), Some(b)) => (Some(get(a)?), get(b)?),
        (Some(a), None) => {
            (Some(get(a)?), generations.current()?.ok_or_else(|| worker::no_generation(&name))?)
        }
        _ => (generations.previous()?, generations.current()?.ok_or_else(|| worker::no_generation(&name))?),
    };
    let tools = Tools::needed(app, &NixFlags::default())?;
    let old: Option<StorePath> = from.as_ref().map(|g| g.record.toplevel.clone());
    let difference = tools.nix.diff(old.as_ref(), &to.record.toplevel)?;
    if app.globals.json {
        app.printer.json(&difference);
        return Ok(());
    }
    let first = from.map_or("nothing".into(), |g| format!("generation {}", g.number));
    app.printer.say(&format!("{first} -> generation {}", to.number));
    show_difference(app, &difference, true);
    if difference.changes.is_empty() {
        app.printer.say("no package differs");
    }
    Ok(())
}
