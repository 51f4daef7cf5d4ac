//! `codchi rebuild`, `update`, `rollback`.

use std::collections::BTreeSet;

use codchi_core::flake::{Flake, FlakeError};
use codchi_core::machine::HostEdit;
use codchi_core::name::MachineName;
use codchi_core::plan::{Activation, Plan, Step};
use codchi_core::progress::{Event, Progress};
use codchi_core::report::Kind;
use codchi_core::text;
use codchi_debian::mirror::Freshness;
use codchi_nix::StorePath;
use codchi_nix::closure::Difference;
use codchi_nix::generations::Generation;
use codchi_nix::lock::Update;

use crate::app::App;
use crate::cli::{self, NixFlags};
use crate::cmd::init::{record, show_plan};
use crate::cmd::life::each;
use crate::failure::{Failure, Result};
use crate::journal;
use crate::make::{self, Scratch, Tools, copy_tree};
use crate::worker::{self, MachineWorker};

/// What to do with what is built.
struct How {
    update: Update,
    activation: Option<Activation>,
    restore: bool,
    ask: bool,
    roll_back: bool,
}

/// `rebuild`.
pub fn rebuild(app: &App, args: &cli::Rebuild) -> Result<()> {
    let names =
        if args.all { app.names()?.iter().map(ToString::to_string).collect() } else { args.names.clone() };
    each(app, &names, |name| {
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
        };
        one(app, name, &args.nix, &how)
    })
}

/// Whether a rebuild would read exactly what the generation in force was built from.
pub fn is_up_to_date(app: &App, name: &MachineName) -> bool {
    let Some(built) = worker::built(app, name) else { return false };
    let current = app.generations(name).current_number().ok().flatten();
    current == Some(built.generation)
        && worker::fingerprint(app, name, &built.nix).is_some_and(|f| f == built.fingerprint)
}

/// Whether an earlier generation than the newest is in force.
pub fn is_rolled_back(app: &App, name: &MachineName) -> bool {
    let all = app.generations(name).list().unwrap_or_default();
    let current = all.iter().position(|g| g.current);
    current.is_some_and(|i| i + 1 < all.len())
}

fn one(app: &App, name: &MachineName, flags: &NixFlags, how: &How) -> Result<()> {
    if journal::is_open(app, name) && !app.globals.dry_run {
        let lock = app.lock(name, "rebuild")?;
        worker::recover(app, &lock, name)?;
    }
    let generations = app.generations(name);
    let current = generations.current()?;
    let rolled_back = is_rolled_back(app, name);
    if !rolled_back
        && how.update == Update::Missing
        && flags.override_input.is_empty()
        && is_up_to_date(app, name)
    {
        app.printer.say(&format!("`{name}` is up to date"));
        return Ok(());
    }
    if rolled_back && !how.restore && !app.globals.dry_run {
        let n = current.as_ref().map_or(0, |g| g.number);
        app.printer
            .say(&format!("`{name}` was rolled back to generation {n}; its folder says something newer"));
        app.confirm_yes("build what the folder says?").map_err(|f| {
            f.hint("`--restore-lock` takes flake.nix and flake.lock of that generation instead")
        })?;
    }
    let attachment = app.attachment(name)?;
    let mut tools = Tools::open(app, flags)?
        .ok_or_else(|| Failure::new(Kind::Host, "the store is gone").hint("`codchi doctor` says more"))?;

    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let folder = staging.path().join("machine");
    copy_tree(&app.dirs.machine(name), &folder)?;
    if how.restore
        && let Some(current) = &current
    {
        codchi_fs::write_atomic(folder.join("flake.nix"), &current.record.flake_nix, 0o644)?;
        codchi_fs::write_atomic(folder.join("flake.lock"), &current.record.flake_lock, 0o644)?;
    }
    let flake = read_flake(app, name, &folder)?;
    tools.authenticate(app, flags, &addresses(&flake))?;
    let old_lock = codchi_fs::read_if_exists(folder.join("flake.lock"))?.unwrap_or_default();
    let updating = |input: &str| match &how.update {
        Update::All => true,
        Update::Inputs(names) => names.iter().any(|n| n == input),
        Update::Missing => false,
    };
    let codchi = if updating("codchi") { Some(tools.codchi(app)?) } else { None };
    let base = match (&attachment.suite, updating("nixpkgs")) {
        (Some(suite), true) => Some(tools.debian(app, suite, Freshness::Check)?),
        _ => None,
    };
    let mut request = make::keep_base(&old_lock, how.update.clone(), base, codchi);
    if attachment.base != "debian" {
        request.base = None;
    } else if request.base.as_ref().is_none_or(|b| !tools.has(b)) {
        let suite = attachment.suite.clone().unwrap_or_else(|| app.settings.base.suite.clone());
        request.base = Some(tools.debian(app, &suite, Freshness::Check)?);
    }
    if request.codchi.as_ref().is_none_or(|c| !tools.has(c)) {
        request.codchi = Some(tools.codchi(app)?);
    }
    // What a generation was built from is its lock, to the letter.
    request.refresh_local = !how.restore;
    let locked = tools.lock(app, &folder, &request)?;
    tools.only_local(&attachment.base);
    let evaluation = tools.evaluate(app, &folder, attachment.driver.as_str())?;
    let foreign = flake.inputs().iter().any(|(n, _)| n != "codchi" && n != "nixpkgs");
    let granted = crate::needs::check_again(
        app,
        &evaluation.needs,
        foreign,
        false,
        &Default::default(),
        &attachment.granted,
    )?;
    let missing = tools.missing(&evaluation)?;

    let number = generations.list()?.last().map_or(0, |g| g.number) + 1;
    if app.globals.dry_run {
        app.printer.done();
        let mut steps = Vec::new();
        if !missing.is_empty() {
            steps.push(Step::Fetch { files: missing.len() as u64, bytes: 0 });
        }
        steps.push(Step::Build { drv_path: evaluation.drv_path.to_string() });
        steps.extend(change_steps(app, name, number, "", how, current.as_ref(), locked.changed));
        show_plan(app, &Plan::new("rebuild", name, steps));
        return Ok(());
    }
    tools.fetch(app, &missing)?;
    let toplevel = tools.build(app, &evaluation, &staging.path().join("result"))?;
    app.printer.done();
    if how.activation.is_none() {
        app.printer.data(toplevel.as_str());
        return Ok(());
    }

    let same = current.as_ref().filter(|g| g.record.toplevel == toplevel && !rolled_back);
    if same.is_none() {
        let before = current.as_ref().map(|g| g.record.toplevel.clone());
        let difference = tools.nix.diff(before.as_ref(), &toplevel)?;
        app.printer.done();
        show_difference(app, &difference, false);
        if how.ask {
            app.confirm_yes(&format!("put `{name}` on the new system?"))?;
        }
    }
    let lock = app.lock(name, "rebuild")?;
    if app.generations(name).current_number()? != current.as_ref().map(|g| g.number) {
        return Err(Failure::new(Kind::Busy, format!("`{name}` was changed meanwhile")).hint("try again"));
    }
    let mut worker = MachineWorker::new(app, name, Some(&tools.store), Some(&tools.nix));
    worker.record = Some(record(&tools, &evaluation, &toplevel, &folder, &locked.text)?);
    if granted != attachment.granted {
        let file = app.dirs.host_toml(name);
        let mut edit = HostEdit::new(&file, &codchi_fs::read_to_string(&file)?)?;
        edit.granted(&granted);
        codchi_fs::write_atomic(file, edit.text(), 0o644)?;
    }
    if let Some(same) = same {
        if locked.changed {
            codchi_fs::write_atomic(app.dirs.machine(name).join("flake.lock"), &locked.text, 0o644)?;
        }
        worker::remember_fingerprint(app, name, &tools)?;
        app.printer.say(&format!("`{name}` is up to date: generation {}", same.number));
        return Ok(());
    }
    let before = worker.failed_units().unwrap_or_default();
    let steps = change_steps(
        app,
        name,
        number,
        toplevel.as_str(),
        how,
        current.as_ref(),
        locked.changed || how.restore,
    );
    let plan = Plan::new("rebuild", name, steps);
    journal::execute(app, &lock, &plan, &worker)?;
    worker::remember_fingerprint(app, name, &tools)?;
    if let (true, Some(before), Some(current)) = (how.roll_back, before, &current)
        && how.activation == Some(Activation::Switch)
    {
        roll_back_if_ill(app, &lock, &worker, &before, number, current)?;
    }
    drop(lock);
    let switched = worker.switched.borrow();
    for change in &switched.units {
        app.printer.say(&format!("  {} {}", change.action, change.unit));
    }
    let when = if how.activation == Some(Activation::Boot) { "will run" } else { "is on" };
    app.printer.say(&format!("`{name}` {when} generation {number}"));
    if switched.status == 4 {
        return Err(Failure::failed(format!(
            "`{name}` is on generation {number}, but some of its units failed"
        ))
        .hint(format!("`codchi logs {name}` shows why")));
    }
    Ok(())
}

/// Puts the generation before in force again where the machine does not answer on the new one, or units failed that did not before.
fn roll_back_if_ill(
    app: &App,
    lock: &codchi_fs::Lock,
    worker: &MachineWorker,
    before: &BTreeSet<String>,
    number: u64,
    previous: &Generation,
) -> Result<()> {
    let name = &worker.name;
    let (why, units): (String, Vec<String>) = match worker.failed_units() {
        Ok(Some(failed)) => match failed.difference(before).cloned().collect::<Vec<_>>() {
            units if units.is_empty() => return Ok(()),
            units => (format!("`{}` failed", units.join("`, `")), units),
        },
        Ok(None) => ("it went down".into(), Vec::new()),
        Err(failure) => (failure.message, Vec::new()),
    };
    app.printer.warn(&format!("generation {number} of `{name}` does not come up: {}", text::printable(&why)));
    let step = Step::Activate {
        number: previous.number as u32,
        toplevel: previous.record.toplevel.to_string(),
        how: Activation::Switch,
        previous: None,
    };
    journal::execute(app, lock, &Plan::new("rollback", name, vec![step]), worker)?;
    if !units.is_empty() {
        // A unit that only the new generation has is gone; one of both runs again, or failed again.
        let _ = worker.forget_failed(&units);
    }
    let mut failure = Failure::failed(format!(
        "`{name}` is back on generation {}: generation {number} did not come up",
        previous.number
    ));
    if let Some(unit) = units.first() {
        failure = failure.hint(format!("`codchi logs {name} --unit {}` shows why", text::printable_line(unit)));
    }
    Err(failure.hint("`--no-rollback` stays on it, to look into it there").hint(format!(
        "when its module is mended: `codchi rebuild --yes {name}`"
    )))
}

/// Reads the flake.nix in a folder. One that a person edited into nonsense is an error of ours, with its line, before Nix sees
/// it; `machine` is whose it is.
pub fn read_flake(app: &App, machine: &MachineName, folder: &std::path::Path) -> Result<Flake> {
    let text = codchi_fs::read_to_string(folder.join("flake.nix"))?;
    Flake::parse(&text).map_err(|e| in_machine(app, machine, e))
}

/// An error about a machine's flake.nix, with the path of the file.
pub fn in_machine(app: &App, machine: &MachineName, error: FlakeError) -> Failure {
    let mut failure: Failure = error.into();
    let shown = app.shown(&app.dirs.machine(machine).join("flake.nix"));
    failure.message = failure.message.replacen("`flake.nix`", &format!("`{shown}`"), 1);
    failure
}

/// Keeps what a new lock names from collection, until the next rebuild roots it with its generation.
pub fn keep_roots(app: &App, tools: &Tools, name: &MachineName, paths: &[StorePath]) -> Result<()> {
    let roots = app.dirs.generations(name).join("next.inputs");
    for path in paths {
        codchi_fs::create_private_dir(&roots)?;
        tools.nix.add_root(&roots.join(path.base_name()), path)?;
    }
    Ok(())
}

/// Where the sources of a machine come from.
pub fn addresses(flake: &Flake) -> Vec<String> {
    let own = |name: &str| name == "codchi" || name == "nixpkgs";
    flake.inputs().into_iter().filter(|(n, _)| !own(n)).filter_map(|(_, url)| url).collect()
}

fn change_steps(
    app: &App,
    name: &MachineName,
    number: u64,
    toplevel: &str,
    how: &How,
    current: Option<&Generation>,
    lock_changed: bool,
) -> Vec<Step> {
    let number = number as u32;
    let mut steps = vec![Step::AddGeneration { number, toplevel: toplevel.into() }];
    if let Some(activation) = how.activation {
        steps.push(Step::Activate {
            number,
            toplevel: toplevel.into(),
            how: activation,
            previous: current.map(|g| g.number as u32),
        });
    }
    let folder = app.dirs.machine(name);
    if how.restore {
        steps.push(Step::RestoreConfig { number, path: folder });
    } else if lock_changed {
        steps.push(Step::UpdateLock { number, path: folder.join("flake.lock") });
    }
    steps
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
    let mut tools =
        Tools::open(app, &args.nix)?.ok_or_else(|| Failure::new(Kind::Host, "the store is gone"))?;
    tools.authenticate(app, &args.nix, &addresses(&flake))?;
    let attachment = app.attachment(&name)?;
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let work = staging.path().join("machine");
    copy_tree(&folder, &work)?;
    let old = codchi_fs::read_if_exists(work.join("flake.lock"))?.unwrap_or_default();
    let all = args.inputs.is_empty();
    let codchi =
        if all || args.inputs.iter().any(|i| i == "codchi") { Some(tools.codchi(app)?) } else { None };
    let base = match &attachment.suite {
        Some(suite) if all || args.inputs.iter().any(|i| i == "nixpkgs") => {
            Some(tools.debian(app, suite, Freshness::Check)?)
        }
        _ => None,
    };
    let request = make::keep_base(&old, update, base, codchi);
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
    if args.check || app.globals.dry_run {
        app.printer.say(&format!("`codchi rebuild --update {name}` applies them"));
        return Ok(());
    }
    let lock = app.lock(&name, "update")?;
    worker::recover(app, &lock, &name)?;
    keep_roots(app, &tools, &name, &locked.roots)?;
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
    let current =
        generations.current()?.ok_or_else(|| Failure::failed(format!("`{name}` has no generation")))?;
    let target = match args.to {
        Some(n) => generations.get(n).map_err(|_| {
            let all: Vec<String> =
                generations.list().unwrap_or_default().iter().map(|g| g.number.to_string()).collect();
            Failure::new(Kind::NotFound, format!("`{name}` has no generation {n}"))
                .hint(format!("it has {}", all.join(", ")))
        })?,
        None => generations.previous()?.ok_or_else(|| {
            Failure::new(Kind::NotFound, format!("`{name}` has no generation before {}", current.number))
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
    let tools = Tools::open(app, &NixFlags::default())?
        .ok_or_else(|| Failure::new(Kind::Host, "the store is gone"))?;
    app.printer.report(Event::Phase("comparing"));
    let difference = tools.nix.diff(Some(&current.record.toplevel), &target.record.toplevel)?;
    app.printer.done();
    show_difference(app, &difference, false);
    let lock = app.lock(&name, "rollback")?;
    worker::recover(app, &lock, &name)?;
    let worker = MachineWorker::new(app, &name, Some(&tools.store), Some(&tools.nix));
    journal::execute(app, &lock, &plan, &worker)?;
    for change in &worker.switched.borrow().units {
        app.printer.say(&format!("  {} {}", change.action, change.unit));
    }
    app.printer.say(&format!("`{name}` is on generation {}", target.number));
    Ok(())
}

/// `diff`.
pub fn diff(app: &App, args: &cli::Diff) -> Result<()> {
    let name = app.machine(&args.name)?;
    let generations = app.generations(&name);
    let get = |n: u64| {
        generations
            .get(n)
            .map_err(|_| Failure::new(Kind::NotFound, format!("`{name}` has no generation {n}")))
    };
    let (from, to) = match (args.from, args.to) {
        (Some(a), Some(b)) => (Some(get(a)?), get(b)?),
        (Some(a), None) => (
            Some(get(a)?),
            generations.current()?.ok_or_else(|| Failure::failed(format!("`{name}` has no generation")))?,
        ),
        _ => (
            generations.previous()?,
            generations.current()?.ok_or_else(|| Failure::failed(format!("`{name}` has no generation")))?,
        ),
    };
    let tools = Tools::open(app, &NixFlags::default())?
        .ok_or_else(|| Failure::new(Kind::Host, "the store is gone"))?;
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
