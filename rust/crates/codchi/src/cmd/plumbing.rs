//! Parts that other programs, and this one in a process of its own, call.

use clap::CommandFactory;
use codchi_core::plan::Plan;
use codchi_core::status::{Doctor, Generations, Mounts, Ports, Secrets, Status};

use crate::app::App;
use crate::cli::{Cli, PlumbingCommand};
use crate::failure::{Failure, Result};

/// Runs a plumbing verb. This process has one thread: some verbs enter namespaces.
pub fn run(command: &PlumbingCommand) -> Result<()> {
    match command {
        PlumbingCommand::Probe => Ok(codchi_drivers::probe_here()?),
        PlumbingCommand::RemoveTree { path } => Ok(codchi_drivers::remove_tree_here(path)?),
        PlumbingCommand::MeasureTree { path } => Ok(codchi_drivers::measure_tree_here(path)?),
        PlumbingCommand::CopyTree { from, to } => Ok(codchi_drivers::copy_tree_here(from, to)?),
        PlumbingCommand::PackTree { root, head, at, input, compression, caller, inside } => {
            let compression = codchi_files::Compression::of_word(compression)
                .ok_or_else(|| Failure::usage(format!("there is no compression `{compression}`")))?;
            let inputs: Vec<(std::path::PathBuf, String)> = input
                .chunks(2)
                .filter_map(|pair| Some((pair.first()?.into(), pair.get(1)?.to_string_lossy().into_owned())))
                .collect();
            Ok(codchi_drivers::pack_tree_here(root, head, at, &inputs, compression, *caller, *inside)?)
        }
        PlumbingCommand::UnpackTree { root, without, inside } => {
            Ok(codchi_drivers::unpack_tree_here(root, without, *inside)?)
        }
        PlumbingCommand::Emulator { program, args } => {
            match codchi_drivers::become_emulator(program, args)? {}
        }
        PlumbingCommand::Hold { dir } => {
            // Whoever asked says when; it ends with them.
            crate::interrupt::ignore();
            Ok(codchi_drivers::hold_here(dir)?)
        }
        PlumbingCommand::Man { dir } => crate::man::write(dir),
        PlumbingCommand::Schemas { dir } => schemas(dir),
        PlumbingCommand::Reference { file } => Ok(codchi_fs::write(file, reference())?),
        PlumbingCommand::CheckUpdates { .. } | PlumbingCommand::Secrets { .. } => Ok(()),
    }
}

/// Runs a plumbing verb that is about machines.
pub fn run_in(app: &App, command: &PlumbingCommand) -> Result<()> {
    match command {
        PlumbingCommand::CheckUpdates { names } => crate::updates::ask(app, names),
        PlumbingCommand::Secrets { name } => crate::secrets::print_stored(app, &app.machine(name)?),
        other => run(other),
    }
}

fn visible() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn schemas(dir: &std::path::Path) -> Result<()> {
    codchi_fs::create_dir_all(dir)?;
    let all = [
        ("plan", schemars::schema_for!(Plan)),
        ("status", schemars::schema_for!(Status)),
        ("generations", schemars::schema_for!(Generations)),
        ("du", schemars::schema_for!(codchi_core::status::Usage)),
        ("gc", schemars::schema_for!(codchi_core::status::Collection)),
        ("mounts", schemars::schema_for!(Mounts)),
        ("ports", schemars::schema_for!(Ports)),
        ("modules", schemars::schema_for!(codchi_core::status::Modules)),
        ("export", schemars::schema_for!(codchi_core::export::Exported)),
        ("export-record", schemars::schema_for!(codchi_core::export::Export)),
        ("secrets", schemars::schema_for!(Secrets)),
        ("doctor", schemars::schema_for!(Doctor)),
        ("agent", schemars::schema_for!(codchi_core::protocol::Control)),
    ];
    for (name, schema) in all {
        let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
        text.push('\n');
        codchi_fs::write(dir.join(format!("{name}.schema.json")), text)?;
    }
    Ok(())
}

/// The command reference of the book, in Markdown.
pub fn reference() -> String {
    let mut out = String::from("# Commands\n\nGenerated from the program; see `codchi COMMAND --help`.\n");
    let mut command = visible();
    section(&mut out, &mut command, "codchi");
    out
}

fn section(out: &mut String, command: &mut clap::Command, path: &str) {
    out.push_str(&format!(
        "\n## `{path}`\n\n```text\n{}```\n",
        command.render_long_help().to_string().trim_start()
    ));
    let subs: Vec<clap::Command> = command.get_subcommands().filter(|s| !s.is_hide_set()).cloned().collect();
    for mut sub in subs {
        let path = format!("{path} {}", sub.get_name());
        section(out, &mut sub, &path);
    }
}
