//! `codchi move`: the same machine, on another driver.

use codchi_core::machine::{Host as Attachment, HostEdit};
use codchi_core::name::MachineName;
use codchi_core::plan::{Activation, Plan, Step};
use codchi_core::report::Kind;
use codchi_core::status::State;
use codchi_nix::generations::Generations;

use crate::app::App;
use crate::cli;
use crate::cmd::init::{choose_driver, choose_ids, finish_earlier, record, show_plan};
use crate::cmd::{life, rebuild};
use crate::failure::{Failure, Result};
use crate::journal;
use crate::make::{Scratch, Tools, copy_folder};
use crate::needs::{self, Known};
use crate::worker::{self, HostParts, MachineWorker, Moving};

/// Runs the command.
pub fn run(app: &App, args: &cli::Move) -> Result<()> {
    finish_earlier(app, &args.name.parse()?, "move")?;
    let name = app.machine(&args.name)?;
    rebuild::refuse_declared(app, &name)?;
    let before = app.attachment(&name)?;
    let driver = choose_driver(app, Some(&args.driver))?;
    let to = driver.info().name;
    if before.driver.as_str() == to {
        app.printer.say(&format!("`{name}` runs on `{to}` already"));
        return Ok(());
    }
    refuse_losses(app, &name, args.leave_extras)?;
    let current = app.generations(&name).current()?;
    let mut tools = Tools::needed(app, &args.nix)?;

    // The machine folder as it is: what a rebuild would change besides is the next rebuild's.
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let folder = staging.path().join("machine");
    copy_folder(app, &name, &folder)?;
    if let Some(current) = &current {
        codchi_fs::write_atomic(folder.join("flake.nix"), &current.record.flake_nix, 0o644)?;
        codchi_fs::write_atomic(folder.join("flake.lock"), &current.record.flake_lock, 0o644)?;
    }
    let flake = rebuild::read_flake(app, &name, &folder)?;
    tools.only_local(&before.base);
    let text = codchi_fs::read_if_exists(folder.join("flake.lock"))?.unwrap_or_default();
    let known = Known::of(app, &tools, &folder, &flake, &text, to, Some((&name, &before)))?;
    let (evaluation, mut granted) = needs::evaluate(app, &mut tools, &folder, to, &known)?;
    granted.extend(needs::check(app, &evaluation.needs, &known)?);
    tools.use_settings(&granted);
    let missing = tools.missing(&evaluation)?;
    let ids = choose_ids(app, driver)?;
    let number = next(&app.generations(&name))?;
    let file = app.dirs.host_toml(&name);
    let text = {
        let mut edit = HostEdit::new(&file, &codchi_fs::read_to_string(&file)?)?;
        edit.driver(&driver.info().name.parse()?, ids);
        edit.granted(&granted);
        edit.text()
    };
    let on_boot =
        codchi_drivers::find(&before.driver)?.is_on_boot(&HostParts::none().host(app, None), &name)?;
    let steps = |toplevel: &str, running: bool| {
        let (from, to) = (before.driver.clone(), to.parse().unwrap_or_else(|_| before.driver.clone()));
        let mut steps = Vec::from_iter(running.then_some(Step::Stop));
        steps.extend([
            Step::MoveRoot { from: from.clone(), to, uid_base: ids.map(|r| r.base), on_boot },
            Step::AddGeneration { number, toplevel: toplevel.into() },
            Step::WriteHost {
                path: file.clone(),
                text: text.clone(),
                change: format!("it runs on `{}`", args.driver),
            },
            Step::Activate {
                number,
                toplevel: toplevel.into(),
                how: Activation::Boot,
                previous: current.as_ref().and_then(|g| u32::try_from(g.number).ok()),
            },
            Step::RemoveRootOn { driver: from, on_boot },
        ]);
        steps.extend(running.then_some(Step::Start));
        steps
    };
    if app.globals.dry_run {
        app.printer.done();
        let mut all = Vec::new();
        if !missing.is_empty() {
            all.push(Step::Fetch { files: missing.len() as u64, bytes: 0 });
        }
        all.push(Step::Build { drv_path: evaluation.drv_path.to_string() });
        all.extend(steps("", life::state(app, &name)? != State::Stopped));
        show_plan(app, &Plan::new("move", &name, all));
        return Ok(());
    }
    tools.fetch(app, &missing)?;
    let toplevel = tools.build(app, &evaluation, &staging.path().join("result"))?;
    app.printer.done();

    let there = Attachment { driver: to.parse()?, ..before.clone() };
    let fingerprint = rebuild::handed_on(app, &name, &name, &there, &tools);
    let lock = worker::hold(app, &name, "move")?;
    if app.attachment(&name)? != before
        || app.generations(&name).current_number()? != current.as_ref().map(|g| g.number)
        || next(&app.generations(&name))? != number
    {
        return Err(Failure::new(Kind::Busy, format!("`{name}` was changed meanwhile")).hint("try again"));
    }
    let running = matches!(life::state(app, &name)?, State::Running | State::Starting);
    if running {
        app.printer.say(&format!("`{name}` is stopped for the move and started again"));
    }
    let lock_text = codchi_fs::read_to_string(folder.join("flake.lock"))?;
    let mut worker = MachineWorker::new(app, &name, Some(&tools.store), Some(&tools.nix));
    worker.record = Some(record(&tools, &evaluation, &toplevel, &folder, &lock_text)?);
    let mut after = before.clone();
    after.ids = ids;
    let nothing = staging.path().join("nothing");
    codchi_fs::create_dir_all(&nothing)?;
    worker.moving = Some(Moving { toplevel: toplevel.to_string(), attachment: after, nothing });
    let plan = Plan::new("move", &name, steps(toplevel.as_str(), running));
    journal::execute(app, &lock, &plan, &worker)?;
    drop(lock);
    worker::remember_fingerprint(app, &name, &tools, fingerprint)?;
    app.printer.say(&format!("`{name}` runs on `{to}` now: generation {number}"));
    Ok(())
}

/// The number of the next generation.
fn next(generations: &Generations) -> Result<u32> {
    let last = generations.list()?.last().map_or(0, |g| g.number);
    u32::try_from(last + 1).map_err(|_| Failure::internal("there are too many generations"))
}

/// Refuses to leave behind what a person added to the machine on its driver, unless they say so.
fn refuse_losses(app: &App, name: &MachineName, leave: bool) -> Result<()> {
    let driver = codchi_drivers::find(&app.attachment(name)?.driver)?;
    let parts = HostParts::none();
    driver.can_pack(&parts.host(app, None), name)?;
    let extras = driver.extras(&parts.host(app, None), name)?;
    if extras.is_empty() || leave {
        return Ok(());
    }
    let mut failure = Failure::new(
        Kind::Declined,
        format!("`{name}` has things on `{}` that do not move: {}", driver.info().name, extras.join(", ")),
    );
    failure.hints.push("`--leave-extras` moves it without them".into());
    Err(failure)
}
