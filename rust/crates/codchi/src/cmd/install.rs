//! `codchi install`: a machine whose system was built elsewhere, as a NixOS host's configuration declares it.

use codchi_core::machine::Host as Attachment;
use codchi_core::manifest::Manifest;
use codchi_core::name::MachineName;
use codchi_core::plan::{Activation, Plan, Step};
use codchi_core::report::Kind;
use codchi_core::text;
use codchi_drivers::Driver;
use codchi_nix::StorePath;
use codchi_nix::generations::{RECORD_VERSION, Record};
use codchi_secrets::Bundle;

use crate::app::{App, VERSION, now};
use crate::cli::{self, NixFlags};
use crate::cmd::init::{choose_ids, finish_earlier, refuse_taken, show_plan};
use crate::cmd::life;
use crate::cmd::rebuild::{self, Change};
use crate::failure::{Failure, Result};
use crate::journal;
use crate::make::{self, Scratch, Tools};
use crate::worker::{self, MachineWorker};
use crate::{needs, secrets};

/// Puts a built system in force: in the machine of that name, or in a new one. Who calls it grants what the system asks of the host.
pub fn install(app: &App, args: &cli::Install) -> Result<()> {
    let name: MachineName = args.name.parse()?;
    let given = secrets::given(&args.secrets)?;
    finish_earlier(app, &name, "install")?;
    let tools = Tools::needed(app, &NixFlags::default())?;
    let shown = text::printable_line(&args.toplevel.to_string_lossy());
    let toplevel: StorePath = match args.toplevel.to_str().map(str::parse) {
        Some(Ok(path)) if tools.nix.is_valid(&path) => path,
        _ => {
            return Err(Failure::new(
                Kind::NotFound,
                format!("`{shown}` is no path of the store that is there"),
            ));
        }
    };
    let manifest = tools
        .manifest(&toplevel)
        .map_err(|f| Failure::failed(format!("`{shown}` is no system of a machine: {}", f.message)))?;
    if manifest.system != make::system() {
        return Err(Failure::failed(format!(
            "the system is for `{}`, and this host is `{}`",
            text::printable_line(&manifest.system),
            make::system()
        )));
    }
    let driver = codchi_drivers::find(&manifest.driver.parse()?)?;
    let there = if app.exists(&name) { Some(app.attachment(&name)?) } else { None };
    if there.as_ref().is_some_and(|a| !a.declared) {
        return Err(Failure::failed(format!(
            "the machine `{name}` has a flake of its own; it was left as it is"
        ))
        .hint("choose another name for the one that is declared")
        .hint(format!("remove it with all its files with `codchi delete {name}`")));
    }
    if let Some(there) = there.as_ref().filter(|a| a.driver.as_str() != manifest.driver) {
        return Err(Failure::failed(format!(
            "the system is for the driver `{}`, and `{name}` runs on `{}`",
            manifest.driver, there.driver
        ))
        .hint(format!("give `codchi.machines.{name}` the driver that it has, or another name"))
        .hint(format!("remove it with all its files with `codchi delete {name}`")));
    }
    let granted = needs::of_declared(app, &tools, &manifest.needs, there.as_ref().map(|a| (&name, a)))?;
    let have = if there.is_none() { Vec::new() } else { secrets::names(app, &name)? };
    let values = match app.globals.dry_run {
        true => Bundle::new(),
        false => {
            let machine = there.is_some().then_some(&name);
            secrets::gather(app, machine, &manifest.needs, &given, &have, false)?
        }
    };
    let record = Record {
        version: RECORD_VERSION,
        toplevel: toplevel.clone(),
        drv: None,
        driver: manifest.driver.clone(),
        base: manifest.base.name.clone(),
        base_label: manifest.base.label.clone(),
        codchi: VERSION.into(),
        nix: tools.nix.version().to_string(),
        created: now(),
        flake_nix: String::new(),
        flake_lock: String::new(),
    };
    let system = Built { tools, toplevel, manifest, granted, record };
    match there {
        None => make(app, &name, driver, system, values, args.start),
        Some(_) => change(app, &name, system, values, args.start),
    }
}

/// A built system, and what of it is recorded.
struct Built {
    tools: Tools,
    toplevel: StorePath,
    manifest: Manifest,
    /// What it may have of the host.
    granted: Vec<String>,
    record: Record,
}

fn make(
    app: &App,
    name: &MachineName,
    driver: &dyn Driver,
    system: Built,
    values: Bundle,
    start: bool,
) -> Result<()> {
    refuse_taken(app, name)?;
    let ids = choose_ids(app, driver)?;
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let folder = staging.path().join("machine");
    let toplevel = system.toplevel.to_string();
    let mut steps = vec![
        Step::CreateRoot { path: app.dirs.machine_root(name), uid_base: ids.map(|r| r.base) },
        Step::AddGeneration { number: 1, toplevel: toplevel.clone() },
        Step::Activate { number: 1, toplevel, how: Activation::Boot, previous: None },
        Step::InstallConfig { from: folder.clone(), to: app.dirs.machine(name) },
    ];
    if !values.is_empty() {
        steps.insert(1, Step::KeepSecrets { names: values.names().map(String::from).collect() });
    }
    let script = system.manifest.init_script.clone();
    if start {
        steps.push(Step::Start);
        steps.extend(script.clone().map(|script| Step::InitScript { script }));
    }
    let plan = Plan::new("install", name, steps);
    if app.globals.dry_run {
        show_plan(app, &plan);
        return Ok(());
    }
    let name_of_base = &system.manifest.base.name;
    let attachment = Attachment {
        declared: true,
        ids,
        granted: system.granted,
        ..Attachment::new(driver.info().name.parse()?, name_of_base, None, now())
    };
    codchi_fs::create_dir_all(&folder)?;
    codchi_fs::write_atomic(folder.join("host.toml"), attachment.render(), 0o644)?;
    let lock = app.lock(name, "install")?;
    refuse_taken(app, name)?;
    let tools = &system.tools;
    let mut worker = MachineWorker::new(app, name, Some(&tools.store), Some(&tools.nix));
    worker.attachment = Some(attachment);
    worker.record = Some(system.record);
    worker.script = script;
    worker.secrets = std::cell::RefCell::new(values);
    let done = journal::execute(app, &lock, &plan, &worker);
    if done.is_err() && !app.exists(name) && !journal::is_open(app, name) {
        codchi_fs::remove_if_exists(app.dirs.lock(name))?;
    }
    done?;
    let what = if start { "is running" } else { "is made" };
    app.printer.say(&format!("`{name}` {what}: {}", system.manifest.base.label));
    Ok(())
}

fn change(app: &App, name: &MachineName, system: Built, values: Bundle, start: bool) -> Result<()> {
    let current = app.generations(name).current()?;
    if current.as_ref().is_some_and(|g| g.record.toplevel == system.toplevel) {
        let granted_anew = system.granted != app.attachment(name)?.granted;
        if (!values.is_empty() || granted_anew) && !app.globals.dry_run {
            let _lock = worker::hold(app, name, "install")?;
            rebuild::remember_granted(app, name, &system.granted)?;
            if !values.is_empty() {
                secrets::with_vault(app, |vault| vault.store(name, values))?;
            }
            let tools = &system.tools;
            let worker = MachineWorker::new(app, name, Some(&tools.store), Some(&tools.nix));
            if granted_anew {
                worker.give()?;
            }
            worker.deliver(&system.manifest.needs, false)?;
        }
        app.printer.say(&format!("`{name}` is up to date"));
        return if start { life::start_one(app, name) } else { Ok(()) };
    }
    let change = Change {
        name,
        current: current.as_ref().map(|g| g.number),
        activation: Activation::Switch,
        roll_back: true,
    };
    if app.globals.dry_run {
        show_plan(app, &change.plan(app, system.toplevel.as_str())?);
        return Ok(());
    }
    let tools = &system.tools;
    let before = current.as_ref().map(|g| &g.record.toplevel);
    rebuild::show_difference(app, &tools.nix.diff(before, &system.toplevel)?, false);
    let lock = worker::hold(app, name, "install")?;
    rebuild::remember_granted(app, name, &system.granted)?;
    if !values.is_empty() {
        secrets::with_vault(app, |vault| vault.store(name, values))?;
    }
    let mut worker = MachineWorker::new(app, name, Some(&tools.store), Some(&tools.nix));
    worker.record = Some(system.record);
    change.carry_out(app, lock, &worker, &system.toplevel, |_| Vec::new())?;
    if start { life::start_one(app, name) } else { Ok(()) }
}
