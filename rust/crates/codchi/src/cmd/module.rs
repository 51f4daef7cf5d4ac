//! `codchi module`: edits of a machine's flake.nix that keep what a person wrote.

use codchi_core::attr::AttrPath;
use codchi_core::flake::Flake;
use codchi_core::name::{InputName, MachineName};
use codchi_core::report::Kind;
use codchi_core::source::Source;
use codchi_core::status::{ModuleStatus, Modules};
use codchi_core::text;
use codchi_nix::lock::{self, Update};

use crate::app::App;
use crate::checkout;
use crate::cli::{ModuleAdd, ModuleCommand, ModuleSet, NixFlags};
use crate::cmd::clone::record;
use crate::cmd::rebuild::{self, read_flake};
use crate::failure::{Failure, Result};
use crate::make::{self, Scratch, Tools, copy_folder};
use crate::{modules, needs, worker};

/// Runs the command.
pub fn run(app: &App, command: &ModuleCommand) -> Result<()> {
    match command {
        ModuleCommand::List(args) => list(app, &args.name),
        ModuleCommand::Add(args) => add(app, args),
        ModuleCommand::Set(args) => set(app, args),
        ModuleCommand::Rename { name, old, new } => rename(app, name, old, new),
        ModuleCommand::Remove { name, module } => remove(app, name, module),
    }
}

/// A machine with its flake as it is now.
struct Edited {
    name: MachineName,
    flake: Flake,
    lock: String,
}

impl Edited {
    fn open(app: &App, given: &str) -> Result<Edited> {
        let name = app.machine(given)?;
        rebuild::refuse_declared(app, &name)?;
        let folder = app.dirs.machine(&name);
        let flake = read_flake(app, &name, &folder)?;
        let lock = codchi_fs::read_if_exists(folder.join("flake.lock"))?.unwrap_or_default();
        Ok(Edited { name, flake, lock })
    }

    /// An edit that was refused, with the file that a person has to edit.
    fn edited(
        &self,
        app: &App,
        edit: impl FnOnce(&Flake) -> Result<Flake, codchi_core::flake::FlakeError>,
    ) -> Result<Flake> {
        edit(&self.flake).map_err(|e| rebuild::in_machine(app, &self.name, e))
    }

    /// The inputs that modules come from.
    fn inputs(&self) -> Vec<String> {
        self.flake.sources().into_iter().map(|(name, _)| name).collect()
    }

    fn input(&self, given: &str) -> Result<InputName> {
        let all = self.inputs();
        if all.iter().any(|n| n == given) {
            return Ok(given.parse()?);
        }
        let failure = Failure::new(
            Kind::NotFound,
            format!("`{}` has no input `{}`", self.name, text::printable_line(given)),
        );
        Err(match text::nearest(given, all.iter().map(String::as_str), 1).first() {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if all.is_empty() => {
                failure.hint(format!("`codchi module add {} SOURCE` adds one", self.name))
            }
            None => failure.hint(format!("it has `{}`", all.join("`, `"))),
        })
    }
}

fn list(app: &App, given: &str) -> Result<()> {
    let edited = Edited::open(app, given)?;
    let inputs = edited.flake.inputs();
    let listed = edited.flake.modules().map_err(|e| rebuild::in_machine(app, &edited.name, e))?;
    let checkouts = app.attachment(&edited.name)?.checkouts;
    let checkout = |input: &str| checkouts.iter().find(|(i, _)| i.as_str() == input).map(|(_, f)| f.clone());
    let modules: Vec<ModuleStatus> = listed
        .into_iter()
        .map(|m| {
            let input = m.of_input.as_ref().map(|(input, _)| input.clone());
            let url = input.as_ref().and_then(|i| inputs.iter().find(|(n, _)| n == i)?.1.clone());
            ModuleStatus {
                revision: input.as_ref().and_then(|i| lock::revision(&edited.lock, i)),
                checkout: input.as_deref().and_then(checkout),
                module: m.of_input.map(|(_, attr)| attr.to_string()),
                text: m.text,
                input,
                url,
            }
        })
        .collect();
    if app.globals.json {
        let nixpkgs = edited.flake.nixpkgs_from();
        app.printer.json(&Modules { version: 1, machine: edited.name, nixpkgs, modules });
        return Ok(());
    }
    if modules.is_empty() {
        app.printer.say(&format!("`{}` has no modules", edited.name));
        app.printer.hint(&format!("`codchi module add {} SOURCE` adds one", edited.name));
        return Ok(());
    }
    let mut rows = vec![["INPUT", "MODULE", "LOCKED", "SOURCE"].map(String::from).to_vec()];
    for m in modules {
        let line = m.text.lines().next().unwrap_or_default();
        let more = if m.text.lines().nth(1).is_some() { " ..." } else { "" };
        rows.push(vec![
            m.input.unwrap_or("-".into()),
            m.module.unwrap_or_else(|| format!("{line}{more}")),
            m.revision.map_or("-".into(), |r| r.chars().take(10).collect()),
            match m.checkout {
                Some(folder) => format!("`{folder}` in the machine"),
                None => m.url.unwrap_or("-".into()),
            },
        ]);
    }
    app.printer.table(&rows);
    Ok(())
}

fn add(app: &App, args: &ModuleAdd) -> Result<()> {
    let edited = Edited::open(app, &args.name)?;
    let cwd =
        std::env::current_dir().map_err(|e| Failure::failed(format!("the current folder is gone: {e}")))?;
    let mut source = Source::parse(&args.source, &cwd, &app.dirs.home, &modules::Disk)?;
    if source.attr.is_some() && !args.modules.is_empty() {
        return Err(Failure::usage(format!(
            "`{}` names a module already; leave out `{}`",
            args.source,
            args.modules.join(" ")
        )));
    }
    if let Some(pin) = args.pin.chosen() {
        source = source.pinned(&pin)?;
    }
    modules::refuse_plain_folder(app, &source)?;
    let name: Option<InputName> = args.input.as_deref().map(str::parse).transpose()?;
    // The same source is the same input.
    let known = edited.flake.inputs().into_iter().find(|(_, url)| url.as_deref() == Some(&source.url));
    let known = known.map(|(n, _)| n).filter(|n| name.as_ref().is_none_or(|wanted| wanted.as_str() == n));
    let mut tools = open_tools(app, &args.nix)?;
    tools.authenticate(app, &args.nix, std::slice::from_ref(&source.url))?;
    let base = make::locked_path(&edited.lock, &["codchi", "nixpkgs"]);
    let found = modules::look(app, &tools, &source, &args.modules, base.as_ref())?;
    let settings = needs::settings(app, &source.url, &found.nix_config);
    needs::tell_settings(app, &app.attachment(&edited.name)?.granted, settings);
    let input: InputName = match (&known, name) {
        (Some(known), _) => known.parse()?,
        (None, Some(name)) => name,
        (None, None) => modules::free_name(
            &source,
            &edited.flake.inputs().into_iter().map(|(n, _)| n).collect::<Vec<_>>(),
        )?,
    };
    let new = edited.edited(app, |flake| {
        let mut flake = if known.is_some() { flake.clone() } else { flake.add_input(&input, &source.url)? };
        for module in &found.modules {
            flake = flake.add_module(&input, module)?;
        }
        Ok(flake)
    })?;
    app.printer.done();
    apply(app, &edited, &new, edited.lock.clone(), &args.nix)
}

fn set(app: &App, args: &ModuleSet) -> Result<()> {
    let edited = Edited::open(app, &args.name)?;
    let mut new = edited.flake.clone();
    if args.no_checkout || args.checkout.is_some() {
        return set_checkout(app, args, &edited);
    }
    if let Some(given) = &args.input {
        let input = edited.input(given)?;
        refuse_hidden(app, &edited, &input)?;
        let now = edited.flake.inputs().into_iter().find(|(n, _)| n == given).and_then(|(_, url)| url);
        let cwd = std::env::current_dir()
            .map_err(|e| Failure::failed(format!("the current folder is gone: {e}")))?;
        let mut source = match (&args.source, now) {
            (Some(source), _) => Source::parse(source, &cwd, &app.dirs.home, &modules::Disk)?,
            (None, Some(url)) if args.unpin || args.pin.chosen().is_some() => {
                Source::parse(&Source::unpinned(&url), &cwd, &app.dirs.home, &modules::Disk)?
            }
            (None, Some(_)) if args.nixpkgs_from.is_some() => {
                return Err(Failure::usage("`--nixpkgs-from` stands alone: leave out the input"));
            }
            (None, Some(_)) => {
                return Err(Failure::usage("nothing says what to change")
                    .hint("give a source, or one of `--branch`, `--tag`, `--commit`, `--unpin`"));
            }
            (None, None) => return edited.edited(app, |f| f.set_input(&input, "")).map(drop),
        };
        if source.attr.is_some() {
            return Err(Failure::usage("the modules stay as they are: leave out what follows `#`")
                .hint(format!("`codchi module add {} SOURCE#MODULE` adds one", edited.name)));
        }
        if let Some(pin) = args.pin.chosen() {
            source = source.pinned(&pin)?;
        }
        modules::refuse_plain_folder(app, &source)?;
        let mut tools = open_tools(app, &args.nix)?;
        tools.authenticate(app, &args.nix, std::slice::from_ref(&source.url))?;
        let listed = edited.flake.modules().map_err(|e| rebuild::in_machine(app, &edited.name, e))?;
        let of_input = listed.into_iter().filter_map(|m| m.of_input).filter(|(i, _)| i == given);
        let names: Vec<String> = of_input.map(|(_, attr)| attr.to_string()).collect();
        if !names.is_empty() {
            let base = make::locked_path(&edited.lock, &["codchi", "nixpkgs"]);
            modules::look(app, &tools, &source, &names, base.as_ref())?;
            app.printer.done();
        }
        new = edited.edited(app, |f| f.set_input(&input, &source.url))?;
    }
    if let Some(from) = &args.nixpkgs_from {
        let input = if from == "codchi" { None } else { Some(edited.input(from)?) };
        if let Some(input) = &input
            && !lock::has_input(&edited.lock, &[input.as_str(), "nixpkgs"])
        {
            return Err(modules::no_nixpkgs(input));
        }
        new = new.set_nixpkgs(input.as_ref()).map_err(|e| rebuild::in_machine(app, &edited.name, e))?;
    }
    apply(app, &edited, &new, edited.lock.clone(), &args.nix)
}

/// Takes an input from a folder in the machine, or from its address again.
fn set_checkout(app: &App, args: &ModuleSet, edited: &Edited) -> Result<()> {
    let name = &edited.name;
    let input = edited.input(args.input.as_deref().unwrap_or_default())?;
    let Some(given) = &args.checkout else {
        if !app.attachment(name)?.checkouts.contains_key(&input) {
            app.printer.say(&format!("`{name}` is as you want it"));
            return Ok(());
        }
        // What it is locked to is not what its address says.
        if !app.globals.dry_run {
            let update = Update::Inputs(vec![input.to_string()]);
            put(app, edited, &edited.flake, edited.lock.clone(), update, &args.nix)?;
        }
        record(app, name, &input, None)?;
        if !app.globals.dry_run {
            app.printer.say(&format!("`codchi rebuild {name}` applies it"));
        }
        return Ok(());
    };
    if app.globals.dry_run {
        return record(app, name, &input, Some(given));
    }
    let folder = checkout::resolve(app, name, given)?;
    let tools = open_tools(app, &args.nix)?;
    let path = checkout::fetch(app, &tools, name, &folder)?;
    // It must have what the machine takes of it.
    let url = edited.flake.inputs().into_iter().find(|(n, _)| n == input.as_str()).and_then(|(_, url)| url);
    let dir = url.as_deref().and_then(|u| u.split(['?', '&']).find_map(|p| p.strip_prefix("dir=")));
    let dir = dir.map(|d| format!("?dir={d}")).unwrap_or_default();
    let source = Source { url: format!("path:{path}{dir}"), attr: None, folder: Some(folder.clone().into()) };
    let listed = edited.flake.modules().map_err(|e| rebuild::in_machine(app, name, e))?;
    let of_input = listed.into_iter().filter_map(|m| m.of_input).filter(|(i, _)| i == input.as_str());
    let names: Vec<String> = of_input.map(|(_, attr)| attr.to_string()).collect();
    if !names.is_empty() {
        let base = make::locked_path(&edited.lock, &["codchi", "nixpkgs"]);
        modules::look(app, &tools, &source, &names, base.as_ref())?;
    }
    app.printer.done();
    record(app, name, &input, Some(&folder))?;
    app.printer.say(&format!("`codchi rebuild {name}` applies it"));
    Ok(())
}

/// What an address would be changed for is not seen while a checkout stands in for it.
fn refuse_hidden(app: &App, edited: &Edited, input: &InputName) -> Result<()> {
    match app.attachment(&edited.name)?.checkouts.get(input) {
        None => Ok(()),
        Some(folder) => Err(Failure::failed(format!("`{input}` is taken from `{folder}` in the machine"))
            .hint(format!(
                "`codchi module set {} {input} --no-checkout` takes it from its address",
                edited.name
            ))),
    }
}

fn rename(app: &App, given: &str, old: &str, new: &str) -> Result<()> {
    let edited = Edited::open(app, given)?;
    let (old, new) = (edited.input(old)?, new.parse::<InputName>()?);
    let flake = edited.edited(app, |f| f.rename_input(&old, &new))?;
    // What is in use stays in use.
    let lock = lock::renamed(&edited.lock, old.as_str(), new.as_str());
    let folder = app.attachment(&edited.name)?.checkouts.remove(&old);
    apply(app, &edited, &flake, lock, &NixFlags::default())?;
    if let Some(folder) = folder {
        record(app, &edited.name, &old, None)?;
        record(app, &edited.name, &new, Some(&folder))?;
    }
    Ok(())
}

fn remove(app: &App, given: &str, module: &str) -> Result<()> {
    let edited = Edited::open(app, given)?;
    let (input, attr) = match module.split_once('.') {
        Some((input, attr)) => {
            let attr: AttrPath = attr.parse().map_err(|e| Failure::usage(format!("{e}")))?;
            (edited.input(input)?, Some(attr))
        }
        None => (edited.input(module)?, None),
    };
    let listed = edited.flake.modules().map_err(|e| rebuild::in_machine(app, &edited.name, e))?;
    let of_input: Vec<AttrPath> = listed
        .into_iter()
        .filter_map(|m| m.of_input)
        .filter(|(i, _)| *i == input.as_str())
        .map(|(_, a)| a)
        .collect();
    // The last module takes its input along.
    let all = attr.as_ref().is_none_or(|a| of_input == [a.clone()]);
    let other = edited.flake.other_use(&input).map_err(|e| rebuild::in_machine(app, &edited.name, e))?;
    if let (Some(line), None) = (other, &attr) {
        let shown = app.shown(&app.dirs.machine(&edited.name).join("flake.nix"));
        let failure = Failure::failed(format!("`{shown}` line {line}: `{input}` is used here, too"));
        return Err(match edited.flake.nixpkgs_from() {
            Some(from) if from == input.as_str() => failure.hint(format!(
                "`codchi module set {} --nixpkgs-from codchi` uses Codchi's nixpkgs instead",
                edited.name
            )),
            _ => failure.hint("nothing was changed; edit that line by hand first"),
        });
    }
    let new = edited.edited(app, |flake| {
        let mut flake = flake.clone();
        if !of_input.is_empty() {
            flake = flake.remove_module(&input, attr.as_ref())?;
        }
        if all && other.is_none() { flake.remove_input(&input) } else { Ok(flake) }
    })?;
    apply(app, &edited, &new, edited.lock.clone(), &NixFlags::default())?;
    if all && app.attachment(&edited.name)?.checkouts.contains_key(&input) {
        record(app, &edited.name, &input, None)?;
    }
    Ok(())
}

fn open_tools(app: &App, flags: &NixFlags) -> Result<Tools> {
    Tools::needed(app, flags)
}

/// Locks what is new and puts both files in place, or only shows what would change.
fn apply(app: &App, edited: &Edited, new: &Flake, lock: String, flags: &NixFlags) -> Result<()> {
    let name = &edited.name;
    let difference = text::difference(edited.flake.text(), new.text());
    if difference.is_empty() {
        app.printer.say(&format!("`{name}` is as you want it"));
        return Ok(());
    }
    if app.globals.dry_run {
        difference.iter().for_each(|line| app.printer.data(line));
        return Ok(());
    }
    put(app, edited, new, lock, Update::Missing, flags)?;
    difference.iter().filter(|l| !l.starts_with(' ')).for_each(|line| app.printer.say(line));
    app.printer.say(&format!("`codchi rebuild {name}` applies it"));
    Ok(())
}

/// Locks what is new and puts both files in place.
fn put(
    app: &App,
    edited: &Edited,
    new: &Flake,
    lock: String,
    update: Update,
    flags: &NixFlags,
) -> Result<()> {
    let name = &edited.name;
    let mut tools = open_tools(app, flags)?;
    tools.authenticate(app, flags, &needs::addresses(new))?;
    let folder = app.dirs.machine(name);
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let work = staging.path().join("machine");
    copy_folder(app, name, &work)?;
    codchi_fs::write_atomic(work.join("flake.nix"), new.text(), 0o644)?;
    if !lock.is_empty() {
        codchi_fs::write_atomic(work.join("flake.lock"), &lock, 0o644)?;
    }
    let mut request = make::keep_base(&lock, update, None, None);
    if app.attachment(name)?.base != "debian" {
        request.base = None;
    }
    // What local folders hold now is for the rebuild.
    request.refresh_local = false;
    let locked = tools.lock(app, &work, &request)?;
    app.printer.done();
    let _lock = worker::hold(app, name, "module")?;
    let now = codchi_fs::read_to_string(folder.join("flake.nix"))?;
    if now != edited.flake.text() {
        return Err(Failure::new(Kind::Busy, format!("the flake.nix of `{name}` was changed meanwhile"))
            .hint("try again"));
    }
    rebuild::keep_only(app, &tools, name, &locked.roots)?;
    // A lock that knows more than the flake is pruned by Nix; one that knows less is completed.
    codchi_fs::write_atomic(folder.join("flake.lock"), &locked.text, 0o644)?;
    codchi_fs::write_atomic(folder.join("flake.nix"), new.text(), 0o644)?;
    Ok(())
}
