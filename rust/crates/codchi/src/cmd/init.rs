//! `codchi init`: a machine from nothing, a path, or a repository.

use std::path::Path;

use codchi_core::flake::{Flake, NewFlake};
use codchi_core::machine::{Host as Attachment, IdRange};
use codchi_core::name::{DriverName, InputName, MachineName};
use codchi_core::plan::{Activation, Plan, Step};
use codchi_core::remote::Remote;
use codchi_core::source::Source;
use codchi_core::status::Level;
use codchi_debian::mirror::Freshness;
use codchi_drivers::Driver;
use codchi_nix::StorePath;
use codchi_nix::generations::{RECORD_VERSION, Record};
use codchi_nix::lock::{LockRequest, Update};

use crate::app::{App, VERSION, now};
use crate::auth::Auth;
use crate::cli;
use crate::cmd::exec;
use crate::failure::{Failure, Result};
use crate::journal;
use crate::make::{self, Evaluation, RELEASE, Scratch, Tools};
use crate::modules::{self, Found};
use crate::needs::{self, Known};
use crate::worker::{HostParts, MachineWorker};

/// Reference of the Codchi that machine flakes name; it is locked to the copy in this program.
fn codchi_reference() -> String {
    format!("github:codchi/codchi/v{VERSION}")
}

/// A source with the modules that were asked for.
struct Wanted {
    source: Source,
    modules: Vec<String>,
}

/// Runs the command and gives the exit status.
pub fn run(app: &App, args: &cli::Init) -> Result<u8> {
    make(app, args)?;
    if app.globals.dry_run { Ok(0) } else { run_in(app, args) }
}

/// Runs what a person wanted inside, once the machine is made.
pub fn run_in(app: &App, args: &cli::Init) -> Result<u8> {
    let name: MachineName = args.name.parse()?;
    if args.cmd.is_empty() {
        if !app.globals.json {
            app.printer.hint(&format!("`codchi shell {name}` opens a shell in it"));
        }
        return Ok(0);
    }
    exec::become_exec(app, &name, &[], &args.cmd)
}

/// Makes the machine, or shows how.
pub fn make(app: &App, args: &cli::Init) -> Result<()> {
    let name: MachineName = args.name.parse()?;
    let wanted = wanted(app, args)?;
    let remote = args.remote.as_deref().map(str::parse::<Remote>).transpose();
    let remote = remote.map_err(|e| Failure::usage(e.to_string()))?;
    let driver = match &remote {
        None => choose_driver(app, args.driver.as_deref())?,
        Some(remote) => choose_remote_driver(app, args.driver.as_deref(), remote)?,
    };
    let given = crate::secrets::given(&args.secrets)?;
    finish_earlier(app, &name, "init")?;
    refuse_taken(app, &name)?;
    let claim = if app.globals.dry_run { None } else { Some(app.claim(&name, "init")?) };

    let urls: Vec<String> = wanted.iter().map(|w| w.source.url.clone()).collect();
    let auth = Auth::find(app, &args.nix.auth_from, &urls)?;
    let base = make::choose_base(app, args.base)?;
    let suite = (base == "debian").then(|| app.settings.base.suite.clone());
    if let Some(suite) = &suite {
        codchi_debian::suite::label(suite)?;
    }
    let mut tools = match Tools::open(app, &args.nix)? {
        Some(tools) => tools,
        None if app.globals.dry_run => {
            app.printer.say("there is no store yet: `init` would first make one, then evaluate the machine");
            let steps = vec![Step::InstallConfig { from: app.dirs.staging(), to: app.dirs.machine(&name) }];
            show_plan(app, &Plan::new("init", &name, steps));
            return Ok(());
        }
        None => Tools::make(app, &args.nix)?,
    };

    tools.give(auth);
    let codchi = tools.codchi(app)?;
    let base_path = match &suite {
        Some(suite) => {
            let fresh = Freshness::Within(std::time::Duration::from_secs(3600));
            Some(tools.debian(app, suite, make::freshness(&args.nix, fresh))?)
        }
        None => None,
    };

    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let folder = staging.path().join("machine");
    codchi_fs::create_dir_all(&folder)?;
    let mut flake = NewFlake {
        codchi: codchi_reference(),
        inputs: Vec::new(),
        nixpkgs_from: None,
        system: make::system(),
        state_version: RELEASE.into(),
        modules: Vec::new(),
    };
    let mut with_nixpkgs = Vec::new();
    for wanted in &wanted {
        let found = add_source(app, &tools, &mut flake, wanted, base_path.as_ref())?;
        if let Some((name, _)) = flake.inputs.last().filter(|_| found.has_nixpkgs) {
            with_nixpkgs.push(name.clone());
        }
    }
    if let Some(from) = &args.nixpkgs_from {
        let input: InputName = from.parse()?;
        if !flake.inputs.iter().any(|(n, _)| *n == input) {
            let names: Vec<&str> = flake.inputs.iter().map(|(n, _)| n.as_str()).collect();
            return Err(Failure::usage(format!("`--nixpkgs-from {input}`: there is no such input"))
                .hint(format!("there is `{}`", names.join("`, `"))));
        }
        if !with_nixpkgs.contains(&input) {
            return Err(modules::no_nixpkgs(&input));
        }
        flake.nixpkgs_from = Some(input);
    }
    let text = flake.render();
    codchi_fs::write_atomic(folder.join("flake.nix"), &text, 0o644)?;
    let flake = Flake::parse(&text)?;
    let request = LockRequest {
        base: base_path.clone(),
        codchi: Some(codchi),
        checkouts: Default::default(),
        update: Update::Missing,
        refresh_local: true,
    };
    let locked = tools.lock(app, &folder, &request)?;
    let mut attachment = Attachment::new(driver.info().name.parse()?, &base, suite, now());
    attachment.remote = remote;
    let nix = tools.nix.version().to_string();
    let fingerprint = crate::worker::fingerprint_of(app, &name, &folder, &attachment, &nix);
    tools.only_local(&base);
    let on = driver.info().name;
    let known = Known::of(app, &tools, &folder, &flake, &locked.text, on, None)?;
    let (evaluation, mut granted) = needs::evaluate(app, &mut tools, &folder, on, &known)?;
    granted.extend(needs::check(app, &evaluation.needs, &known)?);
    tools.use_settings(&granted);
    crate::secrets::known(&evaluation.needs, given.keys())?;
    let secrets = match app.globals.dry_run {
        true => Default::default(),
        false => {
            app.printer.done();
            crate::secrets::gather(app, None, &evaluation.needs, &given, &[], true)?
        }
    };
    let missing = tools.missing(&evaluation)?;
    let ids = choose_ids(app, driver)?;
    let mut plan = plan(app, &name, args, &evaluation, &folder, ids, missing.len() as u64);
    if !secrets.is_empty() {
        let step = Step::KeepSecrets { names: secrets.names().map(String::from).collect() };
        plan.insert_after(|s| matches!(s, Step::CreateRoot { .. }), step);
    }
    if app.globals.dry_run {
        app.printer.done();
        show_plan(app, &plan);
        return Ok(());
    }

    tools.fetch(app, &missing)?;
    let result = staging.path().join("result");
    let toplevel = tools.build(app, &evaluation, &result)?;
    let manifest = tools.manifest(&toplevel)?;
    app.printer.done();
    let script = manifest.init_script.clone().filter(|_| !args.no_init_script);
    complete(&mut plan, &toplevel, script.as_deref());

    attachment.ids = ids;
    attachment.granted = granted;
    codchi_fs::write_atomic(folder.join("host.toml"), attachment.render(), 0o644)?;
    let record = record(&tools, &evaluation, &toplevel, &folder, &locked.text)?;
    let lock = app.lock(&name, "init")?;
    refuse_taken(app, &name)?;
    let mut worker = MachineWorker::new(app, &name, Some(&tools.store), Some(&tools.nix));
    worker.attachment = Some(attachment);
    worker.record = Some(record);
    worker.script = script;
    worker.secrets = std::cell::RefCell::new(secrets);
    plan.steps.retain(|s| !s.step.prepares() && !matches!(s.step, Step::Run { .. }));
    let done = journal::execute(app, &lock, &plan, &worker);
    if done.is_err() && !app.exists(&name) && !journal::is_open(app, &name) {
        codchi_fs::remove_if_exists(app.dirs.lock(&name))?;
    }
    done?;
    drop(lock);
    drop((staging, claim));
    crate::worker::remember_fingerprint(app, &name, &tools, fingerprint)?;
    let what = if args.no_start { "is made" } else { "is running" };
    app.printer.say(&format!("`{name}` {what}: {}", evaluation.base.label));
    Ok(())
}

/// Chooses what a new machine runs on at another host: what a person says, else the first that can, and that it is
/// reached is found out before anything is built.
fn choose_remote_driver(app: &App, given: Option<&str>, remote: &Remote) -> Result<&'static dyn Driver> {
    let parts = HostParts::none();
    let host = parts.host(app, None);
    let mut first = None;
    // What is the default for machines here binds nobody elsewhere.
    let named = given.map(str::parse::<DriverName>).transpose()?;
    let all: Vec<&dyn Driver> = match &named {
        Some(name) => vec![codchi_drivers::find(name)?],
        None => codchi_drivers::all().collect(),
    };
    for driver in all {
        match driver.reach(&host, remote) {
            Some(Ok(())) => return Ok(driver),
            Some(Err(e)) => drop(first.get_or_insert(e)),
            None if named.is_some() => {
                let name = driver.info().name;
                return Err(Failure::usage(format!("the driver `{name}` has no machines on other hosts"))
                    .hint("leave out `--driver`, or `--remote`"));
            }
            None => {}
        }
    }
    Err(first.map_or_else(|| Failure::internal("no driver reaches other hosts"), Failure::from))
}

/// Chooses what a new machine runs on, as a person or the settings say; else the first driver that works here.
pub fn choose_driver(app: &App, given: Option<&str>) -> Result<&'static dyn Driver> {
    if let Some(name) = given.or(app.settings.defaults.driver.as_deref()) {
        let name: DriverName = name.parse()?;
        let driver = codchi_drivers::find(&name)?;
        let parts = HostParts::none();
        let probed = driver.probe(&parts.host(app, None));
        // Found out before anything is made, which could not be unmade either.
        return match probed.into_iter().find(|f| f.level == Level::Missing) {
            None => Ok(driver),
            Some(missing) => {
                let why = format!("no machine can run on `{name}`: {}: {}", missing.what, missing.detail);
                let failure = Failure::new(codchi_core::report::Kind::Host, why);
                Err(missing.fix.into_iter().fold(failure, Failure::hint))
            }
        };
    }
    let parts = HostParts::none();
    let host = parts.host(app, None);
    let mut passed_over: Vec<String> = Vec::new();
    let mut first = None;
    for driver in codchi_drivers::all() {
        let missing = driver.probe(&host).into_iter().find(|f| f.level == Level::Missing);
        let Some(missing) = missing else {
            if !passed_over.is_empty() {
                app.printer.say(&format!(
                    "it will run on {}, since {}",
                    driver.info().name,
                    passed_over.join(", ")
                ));
            }
            return Ok(driver);
        };
        passed_over.push(format!("{} lacks {} ({})", driver.info().name, missing.what, missing.detail));
        first.get_or_insert(driver);
    }
    // The first says best what it lacks, when it is asked to make something.
    first.ok_or_else(|| Failure::internal("there is no driver"))
}

/// What is there of that name already, half made, is brought to an end first.
pub fn finish_earlier(app: &App, name: &MachineName, command: &str) -> Result<()> {
    if !journal::is_open(app, name) || app.globals.dry_run {
        return Ok(());
    }
    let lock = app.lock(name, command)?;
    crate::worker::recover(app, &lock, name)
}

/// Refuses a name that a machine has.
pub fn refuse_taken(app: &App, name: &MachineName) -> Result<()> {
    if !app.exists(name) && !app.dirs.machine(name).exists() {
        return Ok(());
    }
    Err(Failure::failed(format!("there is a machine `{name}` already; it was left as it is"))
        .hint("choose another name")
        .hint(format!("apply changes to it with `codchi rebuild {name}`"))
        .hint(format!("remove it with all its files with `codchi delete {name}`")))
}

fn wanted(app: &App, args: &cli::Init) -> Result<Vec<Wanted>> {
    let cwd =
        std::env::current_dir().map_err(|e| Failure::failed(format!("the current folder is gone: {e}")))?;
    let parse = |s: &str| Source::parse(s, &cwd, &app.dirs.home, &modules::Disk);
    let mut all = Vec::new();
    for module in &app.settings.defaults.modules {
        all.push(Wanted { source: parse(module)?, modules: Vec::new() });
    }
    let pin = args.pin.chosen();
    match &args.source {
        Some(given) => {
            let mut source = parse(given)?;
            if source.attr.is_some() && !args.modules.is_empty() {
                return Err(Failure::usage(format!(
                    "`{given}` names a module already; leave out `{}`",
                    args.modules.join(" ")
                )));
            }
            if let Some(pin) = &pin {
                source = source.pinned(pin)?;
            }
            modules::refuse_plain_folder(app, &source)?;
            all.push(Wanted { source, modules: args.modules.clone() });
        }
        None if pin.is_some() => {
            return Err(Failure::usage(
                "`--branch`, `--tag` and `--commit` choose a version of SOURCE, which is missing",
            ));
        }
        None => {}
    }
    Ok(all)
}

/// Adds a source as input, with the modules that are wanted of it.
fn add_source(
    app: &App,
    tools: &Tools,
    flake: &mut NewFlake,
    wanted: &Wanted,
    base: Option<&StorePath>,
) -> Result<Found> {
    let found = modules::look(app, tools, &wanted.source, &wanted.modules, base)?;
    let taken: Vec<String> = flake.inputs.iter().map(|(n, _)| n.to_string()).collect();
    let name = modules::free_name(&wanted.source, &taken)?;
    flake.inputs.push((name.clone(), wanted.source.url.clone()));
    flake.modules.extend(found.modules.iter().map(|attr| (name.clone(), attr.clone())));
    Ok(found)
}

/// The steps, as far as they are known before the build.
fn plan(
    app: &App,
    name: &MachineName,
    args: &cli::Init,
    evaluation: &Evaluation,
    folder: &Path,
    ids: Option<IdRange>,
    missing: u64,
) -> Plan {
    let mut steps = Vec::new();
    if missing > 0 {
        steps.push(Step::Fetch { files: missing, bytes: 0 });
    }
    steps.push(Step::Build { drv_path: evaluation.drv_path.to_string() });
    steps.push(Step::CreateRoot { path: app.dirs.machine_root(name), uid_base: ids.map(|r| r.base) });
    steps.push(Step::AddGeneration { number: 1, toplevel: String::new() });
    steps.push(Step::Activate { number: 1, toplevel: String::new(), how: Activation::Boot, previous: None });
    steps.push(Step::InstallConfig { from: folder.into(), to: app.dirs.machine(name) });
    if !args.no_start || !args.cmd.is_empty() {
        steps.push(Step::Start);
        if !args.no_init_script {
            steps.push(Step::InitScript { script: String::new() });
        }
    }
    if !args.cmd.is_empty() {
        let argv = args.cmd.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        steps.push(Step::Run { argv });
    }
    Plan::new("init", name, steps)
}

/// Puts in what only the build tells.
fn complete(plan: &mut Plan, built: &StorePath, init_script: Option<&str>) {
    plan.steps.retain(|s| init_script.is_some() || !matches!(s.step, Step::InitScript { .. }));
    for step in &mut plan.steps {
        match &mut step.step {
            Step::AddGeneration { toplevel, .. } | Step::Activate { toplevel, .. } => {
                *toplevel = built.to_string()
            }
            Step::InitScript { script } => *script = init_script.unwrap_or_default().into(),
            _ => {}
        }
    }
}

/// What the generation of a build records.
pub fn record(
    tools: &Tools,
    evaluation: &Evaluation,
    toplevel: &StorePath,
    folder: &Path,
    lock: &str,
) -> Result<Record> {
    Ok(Record {
        version: RECORD_VERSION,
        toplevel: toplevel.clone(),
        drv: Some(evaluation.drv_path.clone()),
        driver: evaluation.driver.clone(),
        base: evaluation.base.name.clone(),
        base_label: evaluation.base.label.clone(),
        codchi: VERSION.into(),
        nix: tools.nix.version().to_string(),
        created: now(),
        flake_nix: codchi_fs::read_to_string(folder.join("flake.nix"))?,
        flake_lock: lock.into(),
    })
}

/// Prints a plan that is not carried out.
pub fn show_plan(app: &App, plan: &Plan) {
    if app.globals.json {
        app.printer.json(plan);
        return;
    }
    app.printer.data(&format!("`codchi {} {}` would", plan.command, plan.machine));
    for step in &plan.steps {
        app.printer.data(&format!("  {}", step.summary));
    }
}

/// A range of ids for a new machine, where its driver chooses one beforehand.
pub fn choose_ids(app: &App, driver: &dyn Driver) -> Result<Option<IdRange>> {
    let taken = loop {
        let all = app.names()?;
        let found: Vec<_> = all.iter().map(|other| app.attachment(other)).collect();
        // One that is gone may have another name by now, which was not among these.
        if all.iter().zip(&found).all(|(other, a)| a.is_ok() || app.exists(other)) {
            break found.into_iter().collect::<Result<Vec<_>>>()?;
        }
    };
    let taken: Vec<IdRange> = taken.into_iter().filter_map(|a| a.ids).collect();
    Ok(driver.ids(&taken)?)
}
