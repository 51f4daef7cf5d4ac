//! The codchi command.

mod app;
mod auth;
mod checkout;
mod cli;
mod cmd;
mod failure;
mod fault;
mod health;
mod hostsecrets;
mod interrupt;
mod journal;
mod make;
mod man;
mod modules;
mod needs;
mod printer;
mod prompt;
mod secrets;
mod updates;
mod watch;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use codchi_core::report::Kind;
use codchi_core::text;

use app::App;
use cli::{Cli, Command};
use failure::{Failure, Result};
use printer::{Level, Printer, Ticker};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(early(&args).unwrap_or_else(|| run(args)))
}

/// What must run before anything else: verbs that enter namespaces and may have one thread only, and the version.
fn early(args: &[OsString]) -> Option<u8> {
    let word = |i: usize| args.get(i).and_then(|a| a.to_str());
    match (word(1)?, word(2)) {
        ("--version" | "-V", None) => {
            Printer::new(Level::Normal, true)
                .raw(concat!("codchi ", env!("CARGO_PKG_VERSION"), "\n").as_bytes());
            Some(0)
        }
        // The store calls these with flags of its own; what a person types goes on to the command line's parser.
        ("store", Some("shell"))
            if args.iter().skip(3).take_while(|a| *a != "--").any(|a| a == "--nix" || a == "--daemon") =>
        {
            Some(codchi_store::shell::main(args[3..].to_vec()))
        }
        ("store", Some("serve")) if args.get(3).is_some_and(|a| a.to_string_lossy().starts_with("--")) => {
            Some(codchi_store::endpoint::main(args[3..].to_vec()))
        }
        _ => None,
    }
}

fn run(args: Vec<OsString>) -> u8 {
    codchi_sys::memory::keep_little();
    let is_exec = args.get(1).is_some_and(|a| a == "exec" || a == "run" || a == "shell");
    let parsed = match plain_exec(&args).map_or_else(|| Cli::try_parse_from(&args), Ok) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, is_exec),
    };
    let mut globals = parsed.globals.clone();
    // Nobody is there who could be asked.
    globals.no_input |= matches!(parsed.command, Some(Command::Supervise { .. }));
    let level = match (globals.quiet, globals.verbose) {
        (true, _) => Level::Quiet,
        (_, 0) => Level::Normal,
        (_, 1) => Level::Verbose,
        _ => Level::Debug,
    };
    let printer = Printer::new(level, globals.no_color);
    let own = |kind: Kind| if is_exec { cmd::exec::OWN_FAILURE } else { kind.exit_status() };
    let plain = match &parsed.command {
        Some(Command::Plumbing(p)) if !p.command.needs_app() => Some(cmd::plumbing::run(&p.command)),
        Some(Command::Completion { shell }) => {
            completion(&printer, *shell);
            Some(Ok(()))
        }
        _ => None,
    };
    if let Some(done) = plain {
        return match done {
            Ok(()) => 0,
            Err(failure) => {
                printer.failure(&failure);
                failure.kind.exit_status()
            }
        };
    }
    let app = match App::new(globals, printer) {
        Ok(app) => app,
        Err(failure) => {
            Printer::new(level, parsed.globals.no_color).failure(&failure);
            return own(failure.kind);
        }
    };
    let done = match &parsed.command {
        // Signals go to the command inside, and the status is its own.
        Some(Command::Exec(args)) => cmd::exec::exec(&app, args),
        Some(Command::Shell(args)) => cmd::exec::shell(&app, args),
        // These enter namespaces, which needs a process with one thread.
        Some(Command::Store(args)) => cmd::store::run(&app, &args.command).map(|()| 0),
        Some(Command::Doctor(args)) => cmd::doctor::run(&app, args).map(|()| 0),
        Some(Command::Supervise { name }) => cmd::supervise(&app, name).map(|()| 0),
        command => with_ticker(&app, command.as_ref()),
    };
    app.printer.done();
    match done {
        Ok(status) => status,
        Err(_) if interrupt::happened() => {
            app.printer.failure(
                &Failure::new(Kind::Interrupted, "interrupted").hint("run the same command again to go on"),
            );
            own(Kind::Interrupted)
        }
        Err(failure) => {
            app.printer.failure(&failure);
            own(failure.kind)
        }
    }
}

/// `exec NAME [--] CMD...` without flags, which is what scripts and editors call again and again: building the whole command
/// line's description for it would take longer than the command.
fn plain_exec(args: &[OsString]) -> Option<Cli> {
    use std::os::unix::ffi::OsStrExt;
    let is_flag = |a: &OsString| a.as_bytes().starts_with(b"-");
    let [_, verb, name, rest @ ..] = args else { return None };
    if verb != "exec" && verb != "run" || is_flag(name) {
        return None;
    }
    let cmd = match rest {
        [dashes, cmd @ ..] if dashes == "--" => cmd,
        cmd => cmd,
    };
    if cmd.is_empty() || std::ptr::eq(cmd, rest) && cmd.first().is_some_and(is_flag) {
        return None;
    }
    let exec = cli::Exec {
        name: name.to_str()?.into(),
        user: None,
        cwd: None,
        env: Vec::new(),
        tty: false,
        no_tty: false,
        only_running: false,
        cmd: cmd.to_vec(),
    };
    Some(Cli { globals: cli::Globals::default(), command: Some(Command::Exec(exec)) })
}

fn with_ticker(app: &App, command: Option<&Command>) -> Result<u8> {
    interrupt::watch();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ticker = Ticker::start(scope, &app.printer, &stop);
        let done = dispatch(app, command);
        drop(ticker);
        done
    })
}

fn dispatch(app: &App, command: Option<&Command>) -> Result<u8> {
    let done = |r: Result<()>| r.map(|()| 0);
    match command {
        None => done(cmd::show::status(app, &cli::Status { name: None, watch: false })),
        Some(Command::Init(args)) => cmd::init::run(app, args),
        Some(Command::Clone(args)) => cmd::clone::run(app, args),
        Some(Command::Install(args)) => done(cmd::install::install(app, args)),
        Some(Command::Status(args)) => done(cmd::show::status(app, args)),
        Some(Command::List) => done(cmd::show::list(app)),
        Some(Command::Start(args)) => done(cmd::life::start(app, args)),
        Some(Command::Stop(args)) => done(cmd::life::stop(app, &args.names)),
        Some(Command::Restart(args)) => done(cmd::life::restart(app, &args.names)),
        Some(Command::Logs(args)) => cmd::show::logs(app, args),
        Some(Command::Rebuild(args)) => done(cmd::rebuild::rebuild(app, args)),
        Some(Command::Update(args)) => done(cmd::rebuild::update(app, args)),
        Some(Command::Module(args)) => done(cmd::module::run(app, &args.command)),
        Some(Command::Plumbing(args)) => done(cmd::plumbing::run_in(app, &args.command)),
        Some(Command::Generations(args)) => done(cmd::show::generations(app, args)),
        Some(Command::Rollback(args)) => done(cmd::rebuild::rollback(app, args)),
        Some(Command::Diff(args)) => done(cmd::rebuild::diff(app, args)),
        Some(Command::Rename(args)) => done(cmd::copies::rename(app, args)),
        Some(Command::Duplicate(args)) => done(cmd::copies::duplicate(app, args)),
        Some(Command::Move(args)) => done(cmd::moving::run(app, args)),
        Some(Command::Tar(args)) => done(cmd::leave::tar(app, args)),
        Some(Command::Import(args)) => done(cmd::leave::import(app, args)),
        Some(Command::Delete(args)) => done(cmd::life::delete(app, &args.names)),
        Some(Command::Mount(args)) => done(cmd::mount::run(app, &args.command)),
        Some(Command::Port(args)) => done(cmd::port::run(app, &args.command)),
        Some(Command::Gc(args)) => done(cmd::gc::gc(app, args)),
        Some(Command::Du(args)) => done(cmd::gc::du(app, args)),
        Some(Command::Option(args)) => done(cmd::show::option(app, args)),
        Some(Command::Secrets(args)) => done(cmd::secrets::run(app, &args.command)),
        // Handled before there is an App.
        Some(
            Command::Exec(_)
            | Command::Shell(_)
            | Command::Store(_)
            | Command::Doctor(_)
            | Command::Completion { .. }
            | Command::Supervise { .. },
        ) => Ok(0),
    }
}

fn completion(printer: &Printer, shell: clap_complete::Shell) {
    use clap::CommandFactory;
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "codchi", &mut out);
    printer.raw(&out);
}

/// Help goes to stdout; a wrong command line is shown in the style of every other error.
fn usage(error: &clap::Error, is_exec: bool) -> u8 {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let printer = Printer::new(Level::Normal, false);
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        printer.raw(error.render().to_string().as_bytes());
        return 0;
    }
    let given = |kind| match error.get(kind) {
        Some(ContextValue::String(s)) => Some(s.clone()),
        Some(ContextValue::Strings(s)) => Some(s.join(" ")),
        _ => None,
    };
    let failure = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let given = given(ContextKind::InvalidSubcommand).unwrap_or_default();
            let names: Vec<String> = {
                use clap::CommandFactory;
                let command = Cli::command();
                command
                    .get_subcommands()
                    .filter(|s| !s.is_hide_set())
                    .map(|s| s.get_name().to_string())
                    .collect()
            };
            let failure = Failure::usage(format!("there is no command `{}`", text::printable_line(&given)));
            match text::nearest(&given, names.iter().map(String::as_str), 2).as_slice() {
                [] => failure.hint("`codchi --help` lists the commands"),
                near => failure.hint(format!("did you mean `codchi {}`?", near.join("` or `codchi "))),
            }
        }
        _ => {
            let rendered = error.render().to_string();
            let mut lines = rendered.lines().filter(|l| !l.trim().is_empty());
            let first = lines.next().unwrap_or("wrong usage");
            let mut failure =
                Failure::usage(first.strip_prefix("error: ").unwrap_or(first).replace('\'', "`"));
            for line in lines {
                let line = line.trim();
                if let Some(tip) = line.strip_prefix("tip: ") {
                    failure.hints.push(tip.replace('\'', "`"));
                } else if let Some(usage) = line.strip_prefix("Usage: ") {
                    failure.hints.push(format!("`{usage}`"));
                } else if !line.starts_with("For more information") {
                    failure.message.push_str(&format!(" {}", line.replace('\'', "`")));
                }
            }
            failure
        }
    };
    printer.failure(&failure);
    if is_exec { cmd::exec::OWN_FAILURE } else { failure.kind.exit_status() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(Into::into).collect()
    }

    #[test]
    fn the_short_way_to_exec_reads_what_the_parser_reads() {
        for line in [
            &["codchi", "exec", "m", "--", "ls", "-la"][..],
            &["codchi", "exec", "m", "ls", "-la", "--", "x"],
            &["codchi", "run", "m", "--", "--", "x"],
            &["codchi", "run", "m", "--", "-x", "--json"],
            &["codchi", "exec", "m", "a", "-u", "root"],
        ] {
            let short = plain_exec(&words(line)).unwrap_or_else(|| panic!("{line:?}"));
            let long = Cli::try_parse_from(words(line)).unwrap_or_else(|e| panic!("{line:?}: {e}"));
            assert_eq!(format!("{short:?}"), format!("{long:?}"), "{line:?}");
        }
    }

    #[test]
    fn anything_with_flags_is_for_the_parser() {
        for line in [
            &["codchi", "exec", "m"][..],
            &["codchi", "exec", "m", "--"],
            &["codchi", "exec", "-u", "root", "m", "id"],
            &["codchi", "exec", "m", "-u", "root", "id"],
            &["codchi", "shell", "m"],
            &["codchi", "--json", "exec", "m", "x"],
        ] {
            assert!(plain_exec(&words(line)).is_none(), "{line:?}");
        }
    }
}
