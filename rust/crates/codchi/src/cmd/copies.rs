//! `codchi rename`, `duplicate`.

use codchi_core::machine::Host as Attachment;
use codchi_core::name::MachineName;
use codchi_core::plan::{Activation, Part, Plan, Step};
use codchi_core::status::State;

use crate::app::{App, now};
use crate::cli::{self, NixFlags};
use crate::cmd::init::{choose_ids, finish_earlier, refuse_taken, show_plan};
use crate::cmd::{life, rebuild};
use crate::failure::{Failure, Result};
use crate::journal;
use crate::make::{Scratch, Tools, copy_tree};
use crate::worker::{self, MachineWorker};

/// Two names of which the first is a machine's and the second is free. What was cut short on either is brought to an end.
fn two(app: &App, from: &str, to: &str, command: &str) -> Result<(MachineName, MachineName)> {
    let (from, to): (MachineName, MachineName) = (from.parse()?, to.parse()?);
    if from == to {
        return Err(Failure::usage(format!("`{from}` has that name")));
    }
    finish_earlier(app, &from, command)?;
    finish_earlier(app, &to, command)?;
    let from = app.machine(from.as_str())?;
    refuse_taken(app, &to)?;
    Ok((from, to))
}

fn tools(app: &App) -> Result<Tools> {
    Tools::needed(app, &NixFlags::default())
}

/// `rename`.
pub fn rename(app: &App, args: &cli::Rename) -> Result<()> {
    let (from, to) = two(app, &args.name, &args.to, "rename")?;
    rebuild::refuse_declared(app, &from)?;
    let steps = |running: bool| {
        let part = |part| Step::Rename { part, from: from.clone(), to: to.clone() };
        // The folder comes last: with it the machine has the new name.
        let parts =
            [Part::Files, Part::Generations, Part::Roots, Part::Secrets, Part::Logs, Part::Folder].map(part);
        let mut steps = Vec::from_iter(running.then_some(Step::Stop));
        steps.extend(parts);
        steps.extend(running.then(|| Step::StartAs { machine: to.clone() }));
        let mut plan = Plan::new("rename", &from, steps);
        plan.renamed = Some(to.clone());
        plan
    };
    if app.globals.dry_run {
        show_plan(app, &steps(life::state(app, &from)? != State::Stopped));
        return Ok(());
    }
    let tools = tools(app)?;
    let fingerprint = rebuild::handed_on(app, &from, &to, &app.attachment(&from)?, &tools);
    let lock = app.lock(&from, "rename")?;
    let _claim = app.claim(&to, "rename")?;
    let second = app.lock(&to, "rename")?;
    let from = app.machine(from.as_str())?;
    refuse_taken(app, &to)?;
    let running = matches!(life::state(app, &from)?, State::Running | State::Starting);
    if running {
        app.printer.say(&format!("`{from}` is stopped for its new name and started again"));
    }
    let worker = MachineWorker::new(app, &from, Some(&tools.store), Some(&tools.nix));
    let done = journal::execute(app, &lock, &steps(running), &worker);
    let gone = if app.exists(&from) { &to } else { &from };
    if !journal::is_open(app, gone) {
        codchi_fs::remove_if_exists(app.dirs.lock(gone))?;
    }
    drop((lock, second));
    if app.exists(&to) {
        worker::remember_fingerprint(app, &to, &tools, fingerprint)?;
    }
    done.map_err(|failure| match app.exists(&to) {
        true => failure.hint(format!("the machine is called `{to}` now: `codchi start {to}`")),
        false => failure,
    })?;
    app.printer.say(&format!("`{from}` is `{to}` now"));
    Ok(())
}

/// `duplicate`.
pub fn duplicate(app: &App, args: &cli::Duplicate) -> Result<()> {
    let (from, to) = two(app, &args.name, &args.to, "duplicate")?;
    let attachment = app.attachment(&from)?;
    let current = app.generations(&from).current()?.ok_or_else(|| worker::no_generation(&from))?;
    let ids = choose_ids(app, codchi_drivers::find(&attachment.driver)?)?;
    let staging =
        if app.globals.dry_run { None } else { Some(Scratch::below(&app.dirs.staging(), to.as_str())?) };
    let folder = staging.as_ref().map_or_else(|| app.dirs.staging(), |s| s.path().to_owned()).join("machine");
    let toplevel = current.record.toplevel.to_string();
    let mut steps = vec![
        Step::CopyRoot {
            from: from.clone(),
            path: app.dirs.machine_root(&to),
            uid_base: ids.map(|r| r.base),
        },
        Step::CopySecrets { from: from.clone() },
        Step::AddGeneration { number: 1, toplevel: toplevel.clone() },
        Step::Activate { number: 1, toplevel, how: Activation::Boot, previous: None },
        Step::InstallConfig { from: folder.clone(), to: app.dirs.machine(&to) },
    ];
    steps.extend(args.start.then_some(Step::Start));
    let plan = Plan::new("duplicate", &to, steps);
    if app.globals.dry_run {
        show_plan(app, &plan);
        return Ok(());
    }
    let tools = tools(app)?;
    // Nobody changes the one while it is copied.
    let first = app.lock(&from, "duplicate")?;
    app.machine(from.as_str())?;
    let _claim = app.claim(&to, "duplicate")?;
    let lock = app.lock(&to, "duplicate")?;
    refuse_taken(app, &to)?;
    let fingerprint = rebuild::handed_on(app, &from, &to, &attachment, &tools);
    copy_tree(&app.dirs.machine(&from), &folder)?;
    // What the configuration of this computer says is of the other one only.
    let attachment = Attachment { created: now(), ids, declared: false, ..attachment };
    codchi_fs::write_atomic(folder.join("host.toml"), attachment.render(), 0o644)?;
    if life::state(app, &from)? != State::Stopped {
        app.printer.say(&format!("`{from}` is held still while its files are copied"));
    }
    let mut worker = MachineWorker::new(app, &to, Some(&tools.store), Some(&tools.nix));
    worker.attachment = Some(attachment);
    worker.record = Some(current.record);
    let done = journal::execute(app, &lock, &plan, &worker);
    if done.is_err() && !app.exists(&to) && !journal::is_open(app, &to) {
        codchi_fs::remove_if_exists(app.dirs.lock(&to))?;
    }
    done?;
    drop((first, lock, staging));
    worker::remember_fingerprint(app, &to, &tools, fingerprint)?;
    app.printer.say(&format!("`{to}` is a copy of `{from}`, with a machine id of its own"));
    if !args.start && !app.globals.json {
        app.printer.hint(&format!("`codchi start {to}` starts it"));
    }
    Ok(())
}
