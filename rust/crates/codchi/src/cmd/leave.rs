//! `codchi tar`, `import`: leaving, and coming back.

use std::cell::RefCell;
use std::io::{BufReader, IsTerminal};
use std::path::{Path, PathBuf};

use codchi_core::export::{EXPORT_VERSION, Export, Exported, FILE, FOLDERS, input_folder};
use codchi_core::machine::Host as Attachment;
use codchi_core::name::MachineName;
use codchi_core::plan::{Activation, Plan, Step};
use codchi_core::progress::{Event, Progress};
use codchi_core::report::Kind;
use codchi_core::status::State;
use codchi_core::text;
use codchi_drivers::{Driver, Host, Machine, System};
use codchi_files::{Compression, Most, Pick, Wish};
use codchi_secrets::Bundle;

use crate::app::{App, VERSION, now};
use crate::cli::{self, NixFlags};
use crate::cmd::init::{choose_driver, choose_ids, finish_earlier, record, refuse_taken, show_plan};
use crate::cmd::{life, rebuild};
use crate::failure::{Failure, Result};
use crate::journal;
use crate::make::{self, Scratch, Tools, copy_tree};
use crate::needs::{self, Known};
use crate::worker::{self, HostParts, MachineWorker, Unpack};

/// `tar`.
pub fn tar(app: &App, args: &cli::Tar) -> Result<()> {
    finish_earlier(app, &args.name.parse()?, "tar")?;
    let name = app.machine(&args.name)?;
    let stdout = args.file.as_os_str() == "-";
    let compression = compression(&args.file)?;
    if stdout && app.globals.json {
        return Err(Failure::usage("with `-` the tar itself is on stdout; `--json` needs a file"));
    }
    if stdout && std::io::stdout().is_terminal() {
        return Err(Failure::usage("a tar does not go to a terminal").hint("redirect it, or name a file"));
    }
    let attachment = app.attachment(&name)?;
    // Nobody could make a machine of it again.
    if !app.dirs.machine(&name).join("flake.nix").exists() {
        return Err(rebuild::no_flake(app, &name));
    }
    let driver = codchi_drivers::find(&attachment.driver)?;
    driver.can_pack(&HostParts::none().host(app, None), &name)?;
    let current = app.generations(&name).current()?.ok_or_else(|| worker::no_generation(&name))?;
    if !stdout && args.file.exists() {
        app.confirm_yes(&format!("replace `{}`?", app.shown(&args.file)))?;
    }
    if app.globals.dry_run {
        app.printer.say(&format!("`codchi tar {name}` would write `{}`", args.file.display()));
        return Ok(());
    }
    let tools = Tools::needed(app, &NixFlags::default())?;
    let staging = Scratch::below(&app.dirs.staging(), name.as_str())?;
    let head = staging.path().join("head");
    copy_tree(&app.dirs.machine(&name), &head)?;
    // Where it is attached on this host is nobody else's.
    codchi_fs::remove_if_exists(head.join("host.toml"))?;
    let at = free_folder(driver, &HostParts::none().host(app, None), &name)?;
    let lock_text = codchi_fs::read_if_exists(head.join("flake.lock"))?.unwrap_or_default();
    let mut inputs = Vec::new();
    let mut named = Vec::new();
    for path in make::lock_roots(&lock_text) {
        if let Some(folder) = input_folder(path.as_str()) {
            inputs.push((tools.store_dir().join(path.base_name()), format!("{at}/{folder}")));
            named.push(path.to_string());
        }
    }
    let toplevel = current.record.toplevel.to_string();
    let export = Export {
        version: EXPORT_VERSION,
        codchi: VERSION.into(),
        name: name.clone(),
        driver: attachment.driver.clone(),
        base: attachment.base.clone(),
        suite: attachment.suite.clone(),
        exported: now(),
        toplevel: toplevel.clone(),
        init_script_pending: worker::pending_script(app, &name).exists(),
        inputs: named,
    };
    let text = serde_json::to_string_pretty(&export).unwrap_or_default() + "\n";
    codchi_fs::write_atomic(head.join(FILE), text, 0o644)?;

    let _lock = worker::hold(app, &name, "tar")?;
    if life::state(app, &name)? != State::Stopped {
        app.printer.say(&format!("`{name}` is held still while its files are exported"));
    }
    let parts = HostParts::of(app, Some(&tools.store))?;
    let host = parts.host(app, Some(&tools.store));
    let manifest = make::manifest(host.store_dir, &toplevel)?;
    let none = Bundle::new();
    let machine = Machine {
        name: &name,
        attachment: &attachment,
        system: Some(System { toplevel, manifest }),
        secrets: &none,
    };
    let export = codchi_drivers::Export { head: &head, at, inputs: &inputs, compression };
    app.printer.report(Event::Phase("exporting files"));
    if stdout {
        let out = rustix::io::dup(std::io::stdout()).map_err(|e| Failure::os("write to stdout", e))?;
        let report = driver.pack(&host, &machine, &export, out.into())?;
        app.printer.done();
        worker::tell_lost(app, &report);
        return Ok(());
    }
    // What is not whole never has the name that was asked for.
    let part = PathBuf::from({
        let mut part = args.file.clone().into_os_string();
        part.push(format!(".{}.part", std::process::id()));
        part
    });
    let written = codchi_fs::create(&part).map_err(Failure::from).and_then(|file| {
        codchi_fs::set_mode(&part, 0o600)?;
        let report = driver.pack(&host, &machine, &export, file)?;
        codchi_fs::open(&part)?
            .sync_all()
            .map_err(|e| Failure::failed(format!("cannot write the tar: {e}")))?;
        codchi_fs::rename(&part, &args.file)?;
        Ok(report)
    });
    app.printer.done();
    if written.is_err() {
        codchi_fs::remove_if_exists(&part)?;
    }
    let report = written?;
    worker::tell_lost(app, &report);
    let size = args.file.metadata().map_or(0, |m| m.len());
    if app.globals.json {
        app.printer.json(&Exported {
            version: 1,
            machine: name,
            file: args.file.display().to_string(),
            size,
            entries: report.tally.entries,
            bytes: report.tally.bytes,
            lost: report.named,
        });
        return Ok(());
    }
    let what = text::count(report.tally.entries, "file", "files");
    app.printer.say(&format!("`{name}` is in `{}`: {what}, {}", app.shown(&args.file), text::bytes(size)));
    app.printer.hint(&format!("`codchi import {}` makes a machine of it again", app.shown(&args.file)));
    app.printer
        .hint(&format!("on any NixOS its system is `nixosConfigurations.nixos` of the flake in /{at}"));
    Ok(())
}

fn compression(file: &Path) -> Result<Compression> {
    let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match Compression::of_name(&name) {
        Some(c) => Ok(c),
        None if !name.contains('.') || file.as_os_str() == "-" => Ok(Compression::None),
        None => Err(Failure::usage(format!(
            "`{}` has no suffix that says how to compress it",
            text::printable_line(&name)
        ))
        .hint(format!(
            "known are {}",
            Vec::from_iter(Compression::suffixes().map(|s| format!("`{s}`"))).join(", ")
        ))),
    }
}

/// Where in the tar the flake goes: where the machine has nothing.
fn free_folder(driver: &dyn Driver, host: &Host, name: &MachineName) -> Result<&'static str> {
    for at in FOLDERS {
        if !driver.holds(host, name, &format!("/{at}"))? {
            return Ok(at);
        }
    }
    Err(Failure::failed(format!("the machine has files of its own in /{}", FOLDERS.join(" and /")))
        .hint("the export puts its flake there; move one of them inside the machine"))
}

/// Reads what comes first in an export: record, flake and inputs, into a folder. Gives the record and where it lay.
fn read_head(file: &Path, to: &Path) -> Result<(Export, String)> {
    let foreign = |why: &str| {
        Failure::failed(format!("`{}` is no export of Codchi: {why}", file.display()))
            .hint("`codchi tar NAME FILE` makes one")
    };
    let at: RefCell<Option<&str>> = RefCell::new(None);
    let pick = |path: &[u8]| {
        let mut at = at.borrow_mut();
        if at.is_none() {
            *at = FOLDERS.iter().find(|f| f.as_bytes() == path).copied();
        }
        match at.and_then(|at| path.strip_prefix(at.as_bytes())) {
            Some([]) => Pick::Skip,
            Some([b'/', rest @ ..]) => Pick::As(rest.to_vec()),
            _ => Pick::Stop,
        }
    };
    let input = BufReader::with_capacity(1 << 20, codchi_fs::open(file)?);
    // What it begins with is text, and sources.
    let most = Most { bytes: 4 << 30, entries: 1 << 20 };
    let wish = Wish { pick: &pick, faithful: false, most };
    let mut go_on = |_: &codchi_files::Tally| !crate::interrupt::happened();
    codchi_files::decompress(input)
        .and_then(|mut tar| codchi_files::unpack(&mut *tar, to, &wish, &mut go_on))
        .map_err(|e| match e {
            codchi_files::FilesError::Interrupted => Failure::new(Kind::Interrupted, "interrupted"),
            e => foreign(&e.to_string()),
        })?;
    let Some(at) = at.into_inner() else { return Err(foreign("it does not begin with one")) };
    let text = codchi_fs::read_beneath(to, FILE, 1 << 20)?.ok_or_else(|| foreign("it has no record"))?;
    Ok((Export::parse(&file.join(at).join(FILE), &text)?, at.into()))
}

/// A path below a folder, where no part of it is a link: what it leads to would be read, and be in the store for everybody.
fn without_links(folder: &Path, below: &str) -> Option<PathBuf> {
    let path = folder.canonicalize().ok()?.join(below);
    (path.canonicalize().ok()? == path).then_some(path)
}

/// Refuses a record with words that this host has no meaning for: they go into its own settings.
fn known_words(export: &Export) -> Result<()> {
    let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let suite = export.suite.as_deref().unwrap_or("none");
    if matches!(export.base.as_str(), "nixpkgs" | "debian") && plain(suite) {
        return Ok(());
    }
    let words = text::printable_line(&format!("{} {suite}", export.base));
    Err(Failure::failed(format!("the export was made with a base that is not known: `{words}`")))
}

/// `import`.
pub fn import(app: &App, args: &cli::Import) -> Result<()> {
    let given = crate::secrets::given(&args.secrets)?;
    let staging = Scratch::below(&app.dirs.staging(), "import")?;
    let head = staging.path().join("head");
    codchi_fs::create_dir_all(&head)?;
    let (export, at) = read_head(&args.file, &head)?;
    known_words(&export)?;
    let name: MachineName = match &args.name {
        Some(given) => given.parse()?,
        None => export.name.clone(),
    };
    finish_earlier(app, &name, "import")?;
    refuse_taken(app, &name)?;
    let driver = choose_driver(app, Some(args.driver.as_deref().unwrap_or(export.driver.as_str())))?;
    let ids = choose_ids(app, driver)?;
    let file = args.file.canonicalize().unwrap_or_else(|_| args.file.clone());
    let folder = staging.path().join("machine");
    let steps = |toplevel: &str, script: Option<&str>| {
        let mut steps = vec![
            Step::UnpackRoot {
                file: file.clone(),
                path: app.dirs.machine_root(&name),
                uid_base: ids.map(|r| r.base),
            },
            Step::AddGeneration { number: 1, toplevel: toplevel.into() },
            Step::Activate { number: 1, toplevel: toplevel.into(), how: Activation::Boot, previous: None },
            Step::InstallConfig { from: folder.clone(), to: app.dirs.machine(&name) },
        ];
        if args.start {
            steps.push(Step::Start);
            steps.extend(script.map(|s| Step::InitScript { script: s.into() }));
        }
        Plan::new("import", &name, steps)
    };
    if app.globals.dry_run {
        show_plan(app, &steps(&export.toplevel, None));
        return Ok(());
    }
    let claim = app.claim(&name, "import")?;
    let mut tools = Tools::make(app, &args.nix)?;
    for path in &export.inputs {
        let wrong = || {
            Failure::failed(format!(
                "the input `{}` of the export is not what its name says",
                text::printable_line(path)
            ))
        };
        let from = input_folder(path).and_then(|f| without_links(&head, &f)).ok_or_else(wrong)?;
        let wanted: codchi_nix::StorePath = path.parse().map_err(|_| wrong())?;
        if !tools.has(&wanted) && tools.nix.add_path(wanted.name(), &from)? != wanted {
            return Err(wrong());
        }
    }
    codchi_fs::remove_dir_all(head.join("inputs"))?;
    codchi_fs::remove_if_exists(head.join(FILE))?;
    codchi_fs::rename(&head, &folder)?;
    // Another's, as its modules are.
    tools.nix.examine_machine(&folder)?;
    let text = |file: &str| codchi_fs::read_beneath(&folder, file, 16 << 20).map(Option::unwrap_or_default);
    let (flake_text, lock_text) = (text("flake.nix")?, text("flake.lock")?);
    let mut attachment =
        Attachment::new(driver.info().name.parse()?, &export.base, export.suite.clone(), now());
    let nix = tools.nix.version().to_string();
    let fingerprint = worker::fingerprint_of(app, &name, &folder, &attachment, &nix);
    tools.only_local(&export.base);
    let flake = codchi_core::flake::Flake::parse(&flake_text)?;
    let on = driver.info().name;
    // Its machine flake is as much another's as its modules.
    let known = Known::of(app, &tools, &folder, &flake, &lock_text, on, None)?.of_another();
    let (evaluation, mut granted) = needs::evaluate(app, &mut tools, &folder, on, &known)?;
    granted.extend(needs::check(app, &evaluation.needs, &known)?);
    tools.use_settings(&granted);
    crate::secrets::known(&evaluation.needs, given.keys())?;
    app.printer.done();
    let secrets = crate::secrets::gather(app, None, &evaluation.needs, &given, &[], true)?;
    let missing = tools.missing(&evaluation)?;
    tools.fetch(app, &missing)?;
    let toplevel = tools.build(app, &evaluation, &staging.path().join("result"))?;
    let script = tools.manifest(&toplevel)?.init_script.filter(|_| export.init_script_pending);
    app.printer.done();
    attachment.ids = ids;
    attachment.granted = granted;
    codchi_fs::write_atomic(folder.join("host.toml"), attachment.render(), 0o644)?;
    let lock = app.lock(&name, "import")?;
    refuse_taken(app, &name)?;
    let mut worker = MachineWorker::new(app, &name, Some(&tools.store), Some(&tools.nix));
    worker.attachment = Some(attachment);
    worker.record = Some(record(&tools, &evaluation, &toplevel, &folder, &lock_text)?);
    worker.unpack = Some(Unpack { toplevel: toplevel.to_string(), without: at });
    worker.script = script.clone();
    let mut plan = steps(toplevel.as_str(), script.as_deref());
    if !secrets.is_empty() {
        let step = Step::KeepSecrets { names: secrets.names().map(String::from).collect() };
        plan.insert_after(|s| matches!(s, Step::UnpackRoot { .. }), step);
    }
    worker.secrets = std::cell::RefCell::new(secrets);
    let done = journal::execute(app, &lock, &plan, &worker);
    if done.is_err() && !app.exists(&name) && !journal::is_open(app, &name) {
        codchi_fs::remove_if_exists(app.dirs.lock(&name))?;
    }
    done?;
    drop((lock, staging, claim));
    worker::remember_fingerprint(app, &name, &tools, fingerprint)?;
    app.printer.say(&format!("`{name}` is made of `{}`", app.shown(&args.file)));
    if !args.start && !app.globals.json {
        app.printer.hint(&format!("`codchi start {name}` starts it"));
    }
    Ok(())
}
