//! `codchi clone`: a machine, and in it a clone of the repository that its module comes from.

use codchi_core::machine::HostEdit;
use codchi_core::name::{InputName, MachineName};
use codchi_core::plan::{Plan, Step};
use codchi_core::source::Source;

use crate::app::App;
use crate::auth::Auth;
use crate::checkout::{self, Clone};
use crate::cli;
use crate::cmd::{init, life};
use crate::failure::{Failure, Result};
use crate::modules;

/// Runs the command and gives the exit status.
pub fn run(app: &App, args: &cli::Clone) -> Result<u8> {
    let Some(given) = &args.init.source else {
        return Err(Failure::usage("`codchi clone` needs the URL of a repository")
            .hint(format!("`codchi init {}` makes a machine without one", args.init.name)));
    };
    if args.init.no_start {
        return Err(Failure::usage("`--no-start`: nothing can be cloned into a machine that does not run"));
    }
    let cwd =
        std::env::current_dir().map_err(|e| Failure::failed(format!("the current folder is gone: {e}")))?;
    let mut source = Source::parse(given, &cwd, &app.dirs.home, &modules::Disk)?;
    if let Some(pin) = args.init.pin.chosen() {
        source = source.pinned(&pin)?;
    }
    let Some(repository) = source.repository() else {
        return Err(Failure::usage(format!("`{given}` is no git repository"))
            .hint(format!("`codchi init {} {given}` makes the machine without a clone", args.init.name)));
    };
    let name: MachineName = args.init.name.parse()?;
    init::make(app, &args.init)?;
    if app.globals.dry_run {
        return Ok(0);
    }
    let own = source.input_name();
    let folder = args.dir.as_deref().unwrap_or(own.as_str());
    let clone = Clone {
        url: &repository.url,
        reference: repository.reference.as_deref(),
        commit: repository.commit.as_deref(),
        folder,
        depth: args.depth,
        single_branch: args.single_branch,
        submodules: args.recurse_submodules,
    };
    app.printer.say(&format!("cloning `{}` into `{name}`", repository.url));
    let auth = Auth::find(app, &args.init.nix.auth_from, std::slice::from_ref(&source.url))?;
    let at = checkout::clone(app, &name, &clone, auth.as_ref())
        .map_err(|f| f.hint(format!("the machine is there, without the clone: `codchi shell {name}`")))?;
    app.printer.say(&format!("`{at}` in `{name}` is the clone"));
    // `init` gave the input of the source its name.
    let input = app.settings.defaults.modules.is_empty().then_some(own);
    match input.filter(|_| !args.keep_remote) {
        Some(input) => {
            record(app, &name, &input, Some(&at))?;
            app.printer.hint(&format!("`codchi rebuild {name}` builds what the clone holds then"));
        }
        None => {
            app.printer
                .hint(&format!("`codchi module set {name} INPUT --checkout {at}` builds what it holds"));
        }
    }
    init::run_in(app, &args.init)
}

/// Records where in the machine an input is taken from; none: from its address.
pub fn record(app: &App, name: &MachineName, input: &InputName, folder: Option<&str>) -> Result<()> {
    let path = app.dirs.host_toml(name);
    let change = match folder {
        Some(folder) => format!("`{input}` is taken from `{folder}` in the machine"),
        None => format!("`{input}` is taken from its address"),
    };
    life::carry_out_with(app, name, "module", || {
        let mut edit = HostEdit::new(&path, &codchi_fs::read_to_string(&path)?)?;
        edit.checkout(input, folder);
        let write = Step::WriteHost { path: path.clone(), text: edit.text(), change: change.clone() };
        Ok(Plan::new("module", name, vec![write]))
    })?;
    if !app.globals.dry_run {
        app.printer.say(&change);
    }
    Ok(())
}
