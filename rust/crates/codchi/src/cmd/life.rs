//! `codchi start`, `stop`, `restart`, `delete`.

use codchi_core::name::MachineName;
use codchi_core::plan::{Plan, Step};
use codchi_core::report::Kind;
use codchi_core::status::State;
use codchi_drivers::{Given, Running};

use crate::app::App;
use crate::cli::NixFlags;
use crate::cmd::init::show_plan;
use crate::failure::Result;
use crate::journal;
use crate::make::Tools;
use crate::secrets;
use crate::worker::{self, HostParts, MachineWorker};

/// Runs a command on several machines; all are tried, and the first failure is given.
pub fn each(app: &App, names: &[String], mut run: impl FnMut(&MachineName) -> Result<()>) -> Result<()> {
    let names = names.iter().map(|n| app.machine(n)).collect::<Result<Vec<_>>>()?;
    let mut first = None;
    for name in &names {
        if let Err(failure) = run(name) {
            if failure.kind == Kind::Interrupted {
                return Err(failure);
            }
            match first {
                None => first = Some(failure),
                Some(_) => app.printer.failure(&failure),
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// Takes the lock, brings what was cut short to an end, and carries out a plan.
fn carry_out(app: &App, name: &MachineName, plan: Plan) -> Result<()> {
    let command = plan.command.clone();
    carry_out_with(app, name, &command, || Ok(plan)).map(drop)
}

/// The same with a plan that is made under the lock. Gives what the machine has of the host, where the plan changed that.
pub fn carry_out_with(
    app: &App,
    name: &MachineName,
    command: &str,
    plan: impl FnOnce() -> Result<Plan>,
) -> Result<Given> {
    if app.globals.dry_run {
        show_plan(app, &plan()?);
        return Ok(Given::default());
    }
    let lock = worker::hold(app, name, command)?;
    let plan = plan()?;
    let tools = Tools::open(app, &NixFlags::default())?;
    let worker =
        MachineWorker::new(app, name, tools.as_ref().map(|t| &*t.store), tools.as_ref().map(|t| &t.nix));
    journal::execute(app, &lock, &plan, &worker)?;
    Ok(worker.given.take())
}

/// What a machine does now.
pub fn state(app: &App, name: &MachineName) -> Result<State> {
    Ok(running(app, name)?.state)
}

fn running(app: &App, name: &MachineName) -> Result<Running> {
    let driver = codchi_drivers::find(&app.attachment(name)?.driver)?;
    Ok(driver.state(&HostParts::none().host(app, None), name)?)
}

/// Whether a machine runs, with all it needs.
fn is_up(app: &App, name: &MachineName) -> Result<bool> {
    Ok(running(app, name)?.is_up())
}

/// Starts a machine and waits until it is up.
pub fn start_one(app: &App, name: &MachineName) -> Result<()> {
    if is_up(app, name)? && !journal::is_open(app, name) {
        return Ok(());
    }
    if !journal::is_open(app, name) && app.generations(name).current_number()?.is_none() {
        return Err(worker::no_generation(name));
    }
    let mut steps = vec![Step::Start];
    if let Some(script) = codchi_fs::read_if_exists(worker::pending_script(app, name))? {
        steps.push(Step::InitScript { script });
    }
    let plan = Plan::new("start", name, steps);
    // Two that start the same machine both want it up: the second waits for the first.
    let mut waited = false;
    loop {
        match carry_out(app, name, plan.clone()) {
            Err(failure) if failure.kind == Kind::Busy => {
                if !waited {
                    app.printer.say(&format!("{}; waiting", failure.message));
                    waited = true;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
                if is_up(app, name)? {
                    return Ok(());
                }
            }
            done => return done,
        }
    }
}

/// Asks for secrets that the machine lacks, and keeps those that are given.
fn provide(app: &App, name: &MachineName, given: &secrets::Given) -> Result<()> {
    let Some(current) = app.generations(name).current()? else { return Ok(()) };
    let store = codchi_store::Store::open(&app.dirs, &app.settings)?;
    let dir = store.map_or_else(|| "/nix/store".into(), |s| s.root_dir());
    let needs = crate::make::manifest(&dir, current.record.toplevel.as_str())?.needs;
    if needs.secrets.is_empty() && given.is_empty() || app.globals.dry_run {
        return Ok(());
    }
    let new = secrets::gather(app, Some(name), &needs, given, &secrets::names(app, name)?, false)?;
    if new.is_empty() {
        return Ok(());
    }
    let _lock = worker::hold(app, name, "start")?;
    secrets::with_vault(app, |vault| vault.store(name, new))?;
    MachineWorker::new(app, name, None, None).deliver(&needs, false)
}

/// `start`.
pub fn start(app: &App, args: &crate::cli::Start) -> Result<()> {
    let given = secrets::given(&args.secrets)?;
    each(app, &args.names, |name| {
        provide(app, name, &given)?;
        start_one(app, name)?;
        if (args.on_boot || args.no_on_boot) && !app.globals.dry_run {
            let driver = codchi_drivers::find(&app.attachment(name)?.driver)?;
            driver.on_boot(&HostParts::none().host(app, None), name, args.on_boot)?;
        }
        if !app.globals.dry_run {
            app.printer.say(&format!("`{name}` is running"));
        }
        Ok(())
    })
}

/// `stop`.
pub fn stop(app: &App, names: &[String]) -> Result<()> {
    each(app, names, |name| {
        if state(app, name)? == State::Stopped && !journal::is_open(app, name) {
            app.printer.say(&format!("`{name}` is stopped"));
            return Ok(());
        }
        carry_out(app, name, Plan::new("stop", name, vec![Step::Stop]))?;
        if !app.globals.dry_run {
            app.printer.say(&format!("`{name}` is stopped"));
        }
        Ok(())
    })
}

/// `restart`.
pub fn restart(app: &App, names: &[String]) -> Result<()> {
    each(app, names, |name| {
        carry_out(app, name, Plan::new("restart", name, vec![Step::Stop, Step::Start]))?;
        if !app.globals.dry_run {
            app.printer.say(&format!("`{name}` is running"));
        }
        Ok(())
    })
}

/// `delete`.
pub fn delete(app: &App, names: &[String]) -> Result<()> {
    // A deletion that was cut short has perhaps left no folder; its journal says that the machine was there.
    let mut there = Vec::new();
    for given in names {
        let name: MachineName = given.parse()?;
        if !journal::is_open(app, &name) {
            // How it is attached decides what goes with it: where that cannot be read, nothing goes.
            app.attachment(&app.machine(given)?)?;
        }
        there.push(name);
    }
    if !app.globals.dry_run {
        for name in there.iter().filter(|_| app.globals.yes || app.can_ask()) {
            app.printer.say(&format!("`{name}` goes with all its files: {}", place(app, name)));
        }
        let list: Vec<String> = there.iter().map(|n| format!("`{n}`")).collect();
        app.confirm_yes(&format!("delete {} with all files?", list.join(", ")))?;
    }
    for name in &there {
        delete_one(app, name)?;
    }
    Ok(())
}

/// Where the files of a machine are, for people.
fn place(app: &App, name: &MachineName) -> String {
    let root = app.dirs.machine_root(name);
    match app.attachment(name) {
        // Its engine has them.
        Ok(a) if !root.exists() => {
            a.remote.iter().fold(format!("on {}", a.driver), |on, remote| format!("{on} at `{remote}`"))
        }
        _ => app.shown(&root),
    }
}

/// Deletes a machine without asking.
pub fn delete_one(app: &App, name: &MachineName) -> Result<()> {
    let steps = vec![
        Step::Stop,
        Step::RemoveRoot { path: app.dirs.machine_root(name) },
        Step::RemoveGenerations { path: app.dirs.generations(name) },
        Step::RemoveSecrets,
        Step::RemoveLogs { path: app.dirs.logs(name) },
        Step::RemoveConfig { path: app.dirs.machine(name) },
    ];
    let plan = Plan::new("delete", name, steps);
    if app.globals.dry_run {
        show_plan(app, &plan);
        return Ok(());
    }
    let lock = app.lock(name, "delete")?;
    if journal::is_open(app, name) {
        // Half of anything may be deleted, but what it does first has to be put right.
        if let Err(failure) = worker::recover(app, &lock, name) {
            app.printer.warn(&failure.message);
        }
        if !app.exists(name) {
            codchi_fs::remove_if_exists(app.dirs.lock(name))?;
            app.sweep_locks()?;
            app.printer.say(&format!("`{name}` is deleted"));
            return Ok(());
        }
    }
    let tools = Tools::open(app, &NixFlags::default())?;
    let worker =
        MachineWorker::new(app, name, tools.as_ref().map(|t| &*t.store), tools.as_ref().map(|t| &t.nix));
    journal::execute(app, &lock, &plan, &worker)?;
    codchi_fs::remove_if_exists(app.dirs.lock(name))?;
    // A killed command may have left its claim on the name.
    app.sweep_locks()?;
    app.printer.done();
    app.printer.say(&format!("`{name}` is deleted"));
    Ok(())
}
