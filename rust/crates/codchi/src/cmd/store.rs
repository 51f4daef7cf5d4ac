//! `codchi store`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;

use codchi_nix::{Launch, Role};
use codchi_store::Kind as StoreKind;

use crate::app::App;
use crate::cli::{NixFlags, StoreCommand};
use crate::cmd::life;
use crate::failure::{Failure, Result};
use crate::make::Tools;

/// Runs a `store` command.
pub fn run(app: &App, command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Status => status(app),
        StoreCommand::Shell { as_root, cmd } => Err(shell(app, *as_root, cmd)),
        StoreCommand::Repair => {
            let tools = open(app)?;
            let mut nix = tools.store.command("nix-store", Role::Maintainer);
            let status = nix.args(["--verify", "--check-contents", "--repair"]).status();
            match status {
                Ok(s) if s.success() => {
                    app.printer.say("the store is whole");
                    Ok(())
                }
                Ok(_) => Err(Failure::failed("the store could not be mended whole").hint(
                    "above is what Nix says of it; `codchi store remove --all` removes it with all machines",
                )),
                Err(e) => Err(Failure::cannot_run("nix-store", e)),
            }
        }
        StoreCommand::Remove { all } => remove(app, *all),
    }
}

fn open(app: &App) -> Result<Tools> {
    Tools::open(app, &NixFlags::default())?
        .ok_or_else(|| Failure::failed("there is no store yet").hint("the first `codchi init` makes one"))
}

fn status(app: &App) -> Result<()> {
    let tools = open(app)?;
    let store = &tools.store;
    let kind = match store.kind() {
        StoreKind::Own { .. } => "own",
        _ => "host",
    };
    let paths = codchi_fs::read_dir(store.root_dir()).map_or(0, |d| d.len());
    let roots = app.names()?.len();
    if app.globals.json {
        app.printer.json(&serde_json::json!({
            "version": 1,
            "kind": kind,
            "directory": store.root_dir(),
            "nix": store.nix_version().to_string(),
            "paths": paths,
            "machines": roots,
        }));
        return Ok(());
    }
    app.printer.data(&format!("kind       {kind}"));
    app.printer.data(&format!("directory  {}", app.shown(&store.root_dir())));
    app.printer.data(&format!("nix        {}", store.nix_version()));
    app.printer.data(&format!("entries    {paths}"));
    app.printer.data(&format!("machines   {roots}"));
    Ok(())
}

/// Replaces this process by a program where /nix is the store's; answers only when that failed.
fn shell(app: &App, as_root: bool, cmd: &[OsString]) -> Failure {
    let (program, args) = match cmd.split_first() {
        Some((program, args)) => (program.clone(), args.to_vec()),
        None => (std::env::var_os("SHELL").unwrap_or("/bin/sh".into()), Vec::new()),
    };
    let shown = program.to_string_lossy();
    let tools = match open(app) {
        Ok(tools) => tools,
        Err(failure) => return failure,
    };
    let role = if as_root { Role::Maintainer } else { Role::Caller };
    let mut command = if shown.starts_with("nix") && !Path::new(&program).is_absolute() {
        tools.store.command(&shown, role)
    } else {
        tools.store.shell(Path::new(&program), role)
    };
    Failure::cannot_run(&shown, command.args(args).exec())
}

/// Uninstalls: what Codchi made goes, the settings stay.
fn remove(app: &App, all: bool) -> Result<()> {
    let names = app.names()?;
    if !names.is_empty() && !all {
        let list: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
        return Err(Failure::failed(format!("there are machines: {}", list.join(", ")))
            .hint("delete them first, or with the store by `codchi store remove --all`"));
    }
    if app.globals.dry_run {
        for name in &names {
            app.printer.data(&format!("delete `{name}` with all its files"));
        }
        for dir in [&app.dirs.data, &app.dirs.state, &app.dirs.cache, &app.dirs.runtime] {
            app.printer.data(&format!("remove `{}`", app.shown(dir)));
        }
        return Ok(());
    }
    let question = match names.len() {
        0 => "remove the store?".to_string(),
        n => format!("delete {n} machines with all their files, and the store?"),
    };
    app.confirm_yes(&question)?;
    // Before anything goes.
    let _lock = app.store_lock()?;
    for name in &names {
        life::delete_one(app, name)?;
    }
    match Tools::open(app, &NixFlags::default()) {
        Ok(Some(tools)) => {
            drop(tools.nix);
            match std::sync::Arc::try_unwrap(tools.store) {
                Ok(store) => store.remove()?,
                Err(_) => return Err(Failure::internal("the store is in use")),
            }
        }
        Ok(None) => {}
        // A broken store is removed all the same.
        Err(failure) => app.printer.warn(&failure.message),
    }
    codchi_drivers::remove_tree(&crate::app::program(), &app.dirs.data)?;
    for dir in [&app.dirs.cache, &app.dirs.runtime, &app.dirs.state] {
        codchi_drivers::remove_tree(&crate::app::program(), dir)?;
    }
    codchi_fs::remove_dir_all(app.dirs.staging())?;
    codchi_fs::remove_if_exists(app.dirs.config.join(".store.lock"))?;
    app.printer.say("the store and everything Codchi made is removed; the settings are kept");
    Ok(())
}
