//! `codchi mount`: folders of this computer in a machine.

use std::path::{Path, PathBuf};

use codchi_core::folder::{self, Folder, FolderError, Given as Own, OwnFolder, wanted};
use codchi_core::machine::HostEdit;
use codchi_core::name::MachineName;
use codchi_core::plan::{Plan, Step};
use codchi_core::port::Origin;
use codchi_core::report::Kind;
use codchi_core::status::{MountStatus, Mounts, Standing};
use codchi_core::text;
use codchi_drivers::Given;

use crate::app::App;
use crate::cli::MountCommand;
use crate::cmd::life::carry_out_with;
use crate::cmd::port::{given, needs};
use crate::failure::{Failure, Result};
use crate::worker::HostParts;

/// Runs a verb.
pub fn run(app: &App, command: &MountCommand) -> Result<()> {
    match command {
        MountCommand::List { name } => list(app, &app.machine(name)?),
        MountCommand::Add { name, folder, optional } => add(app, &app.machine(name)?, folder, *optional),
        MountCommand::Remove { name, path } => remove(app, &app.machine(name)?, path),
    }
}

fn usage(e: FolderError) -> Failure {
    Failure::usage(e.to_string())
}

fn list(app: &App, name: &MachineName) -> Result<()> {
    let own = app.attachment(name)?.mounts;
    let asked = needs(app, name)?.mounts;
    let (running, given) = given(app, name)?;
    let mut mounts = Vec::new();
    let home = app.home();
    for (folder, by) in wanted(&asked, &own, &home).map_err(usage)? {
        let now = given.folders.iter().find(|f| f.folder == folder);
        let problem = now.and_then(|f| f.problem.clone());
        let state = match (running, now) {
            (false, _) => Standing::Stopped,
            (true, Some(f)) if f.problem.is_some() => Standing::Refused,
            (true, Some(_)) => Standing::Given,
            (true, None) => Standing::Pending,
        };
        mounts.push(MountStatus { folder, by, state, problem });
    }
    for (guest, m) in asked.iter().filter(|(guest, _)| own.get(*guest) == Some(&OwnFolder::Withheld)) {
        let folder = Folder {
            source: folder::source(&m.source, &home),
            target: guest.into(),
            read_only: m.read_only,
            optional: m.optional,
        };
        mounts.push(MountStatus { folder, by: Origin::Module, state: Standing::Withheld, problem: None });
    }
    if app.globals.json {
        app.printer.json(&Mounts { version: 1, machine: name.clone(), mounts });
        return Ok(());
    }
    if mounts.is_empty() {
        app.printer.say(&format!("`{name}` has no folder of this computer"));
        app.printer.hint(&format!("`codchi mount add {name} HOST:GUEST` gives it one"));
        return Ok(());
    }
    let mut rows = vec![["HOST", "MACHINE", "MODE", "ASKED BY", "STATE"].map(String::from).to_vec()];
    for m in mounts {
        rows.push(vec![
            text::printable_line(&app.shown(&m.folder.source)),
            text::printable_line(&m.folder.target.to_string_lossy()),
            if m.folder.read_only { "read-only" } else { "read-write" }.into(),
            m.by.as_str().into(),
            match &m.problem {
                Some(problem) => format!("{}: {problem}", m.state.as_str()),
                None => m.state.as_str().into(),
            },
        ]);
    }
    app.printer.table(&rows);
    Ok(())
}

/// The path of a folder on this computer as it is recorded: without links, so that none can lead elsewhere later.
fn on_host(app: &App, given: &str, optional: bool) -> Result<PathBuf> {
    let path = folder::source(given, &app.dirs.home);
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && optional => {
            std::path::absolute(&path).map_err(|e| Failure::usage(format!("`{given}`: {e}")))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Failure::new(
            Kind::NotFound,
            format!("there is no `{}` on this computer", text::printable_line(given)),
        )
        .hint(format!("`mkdir -p {}` makes it", text::printable_line(given)))
        .hint("`--optional` lets the machine do without")),
        Err(e) => Err(Failure::failed(format!("`{}`: {e}", text::printable_line(given)))),
    }
}

/// Records a folder, and gives it to the machine when that runs.
fn record(app: &App, name: &MachineName, target: &Path, own: Option<&OwnFolder>) -> Result<Given> {
    let path = app.dirs.host_toml(name);
    let shown = target.display();
    let change = match own {
        Some(OwnFolder::Given(g)) => format!("`{}` is at `{shown}` of the machine", g.source),
        _ => format!("nothing of this computer is at `{shown}` of the machine"),
    };
    carry_out_with(app, name, "mount", || {
        let mut edit = HostEdit::new(&path, &codchi_fs::read_to_string(&path)?)?;
        edit.mount(target, own);
        let write = Step::WriteHost { path: path.clone(), text: edit.text(), change };
        Ok(Plan::new("mount", name, vec![write, Step::Give]))
    })
}

fn add(app: &App, name: &MachineName, given: &str, optional: bool) -> Result<()> {
    let (source, target, read_only) = folder::parse(given).map_err(usage)?;
    let source = on_host(app, &source, optional)?;
    let Some(text) = source.to_str() else {
        return Err(Failure::usage(format!("`{}` is not UTF-8", source.display())));
    };
    let driver = codchi_drivers::find(&app.attachment(name)?.driver)?;
    let folder = Folder { source: source.clone(), target: target.clone(), read_only, optional };
    if let Some(problem) = driver.refusal(&HostParts::none().host(app, None), name, &folder) {
        return Err(Failure::failed(format!("`{}` is not given to `{name}`: {problem}", app.shown(&source))));
    }
    let own = OwnFolder::Given(Own { source: text.into(), read_only, optional });
    let given = record(app, name, &target, Some(&own))?;
    if app.globals.dry_run {
        return Ok(());
    }
    let at = format!("`{}` of `{name}`", target.display());
    match given.folders.iter().find(|f| f.folder.target == target) {
        Some(state) => match &state.problem {
            None => app.printer.say(&format!("`{}` is at {at}", app.shown(&source))),
            Some(problem) if optional => app.printer.say(&format!("not yet at {at}: {problem}")),
            Some(problem) => {
                return Err(Failure::failed(format!("the folder is recorded, but not at {at}: {problem}"))
                    .hint(format!("`codchi restart {name}` gives it what is recorded"))
                    .hint(format!("`codchi mount remove {name} {}` takes it back", target.display())));
            }
        },
        None => app.printer.say(&format!("`{}` will be at {at}", app.shown(&source))),
    }
    Ok(())
}

fn remove(app: &App, name: &MachineName, path: &str) -> Result<()> {
    let own = app.attachment(name)?.mounts;
    let asked = needs(app, name)?.mounts;
    let target = folder::target(path).map_err(usage)?;
    let all = wanted(&asked, &own, &app.home()).map_err(usage)?;
    if !all.iter().any(|(f, _)| f.target == target) {
        let failure = Failure::new(
            Kind::NotFound,
            format!("nothing of this computer is at `{}` of `{name}`", target.display()),
        );
        let list: Vec<String> = all.iter().map(|(f, _)| format!("`{}`", f.target.display())).collect();
        return Err(match list.as_slice() {
            [] => failure,
            all => failure.hint(format!("it has folders at {}", all.join(", "))),
        });
    }
    let by_module = asked.keys().any(|guest| folder::target(guest).is_ok_and(|t| t == target));
    record(app, name, &target, by_module.then_some(&OwnFolder::Withheld))?;
    if app.globals.dry_run {
        return Ok(());
    }
    app.printer.say(&format!("nothing of this computer is at `{}` of `{name}` any more", target.display()));
    Ok(())
}
