//! `codchi exec` and `codchi shell`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use codchi_core::name::MachineName;
use codchi_core::report::Diagnose;
use codchi_drivers::{DriverError, Exec};

use crate::app::App;
use crate::cli;
use crate::cmd::life;
use crate::failure::{Failure, Result};
use crate::worker::HostParts;

/// What `exec` exits with for any failure of Codchi's own.
pub const OWN_FAILURE: u8 = 125;

/// Runs `exec` and gives the command's status.
pub fn exec(app: &App, args: &cli::Exec) -> Result<u8> {
    let name = app.machine(&args.name)?;
    let env = args.env.iter().map(|e| variable(e)).collect::<Result<Vec<_>>>()?;
    let tty = if args.tty {
        Some(true)
    } else if args.no_tty {
        Some(false)
    } else {
        None
    };
    let exec = Exec { argv: args.cmd.clone(), env, cwd: args.cwd.clone(), user: args.user.clone(), tty };
    if args.only_running { within(app, &name, &exec) } else { attach(app, &name, &exec) }
}

/// Runs `shell` and gives the shell's status.
pub fn shell(app: &App, args: &cli::Shell) -> Result<u8> {
    let name = app.machine(&args.name)?;
    attach(app, &name, &Exec { user: args.user.clone(), ..Exec::default() })
}

/// Runs a command in a machine, which is started when it is stopped.
pub fn attach(app: &App, name: &MachineName, exec: &Exec) -> Result<u8> {
    let attachment = app.attachment(name)?;
    let driver = codchi_drivers::find(&attachment.driver)?;
    let parts = HostParts::none();
    let host = parts.host(app, None);
    if !driver.state(&host, name)?.is_up() {
        life::start_one(app, name)?;
    } else {
        driver.follow(&host, name, codchi_drivers::capability::session())?;
    }
    within(app, name, exec)
}

/// Runs a command in a machine as it is.
fn within(app: &App, name: &MachineName, exec: &Exec) -> Result<u8> {
    let driver = codchi_drivers::find(&app.attachment(name)?.driver)?;
    let parts = HostParts::none();
    let host = parts.host(app, None);
    if !driver.state(&host, name)?.is_up() {
        return Err(DriverError::NotRunning(name.clone()).into());
    }
    match driver.attach(&host, name, exec) {
        Ok(status) => Ok(status),
        Err(DriverError::Attach { reason, status, .. }) if status != OWN_FAILURE => {
            app.printer.failure(&Failure::failed(reason));
            Ok(status)
        }
        Err(e) => Err(Failure::of(&e as &dyn Diagnose)),
    }
}

fn variable(given: &OsStr) -> Result<(OsString, OsString)> {
    let bytes = given.as_bytes();
    match bytes.iter().position(|b| *b == b'=') {
        Some(at) if at > 0 => {
            Ok((OsStr::from_bytes(&bytes[..at]).into(), OsStr::from_bytes(&bytes[at + 1..]).into()))
        }
        _ => Err(Failure::usage("`--env` takes `NAME=VALUE`")),
    }
}

/// Replaces this process by `codchi exec`: a process with one thread, in which signals are for the command.
pub fn become_exec(app: &App, name: &MachineName, flags: &[&str], argv: &[OsString]) -> Result<u8> {
    use std::os::unix::process::CommandExt;
    app.printer.done();
    let error = std::process::Command::new(&app.program)
        .arg("exec")
        .args(flags)
        .arg(name.as_str())
        .arg("--")
        .args(argv)
        .exec();
    Err(Failure::cannot_run("codchi exec", error))
}
