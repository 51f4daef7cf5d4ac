//! Runs commands in a machine for its host.
//!
//! One process listens on `/run/codchi/agent/socket` and forks one more for each connection, which lives as long as its
//! command: a restart of the unit (KillMode=process) replaces the listener and leaves running commands alone.

mod cgroup;
mod channels;
mod command;
mod connection;
mod environment;
mod error;
mod secrets;
mod server;
mod session;
mod stream;
mod user;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let result = match (args.next(), args.next()) {
        (None, _) => server::serve().map(|never| match never {}),
        (Some(flag), Some(mark)) if flag == environment::FLAG => environment::dump(&mark),
        (Some(flag), Some(name)) if flag == server::PORT => {
            server::serve_port(&name).map(|never| match never {})
        }
        (Some(flag), Some(user)) if flag == server::BRIDGE => server::bridge(user),
        (Some(flag), Some(port)) if flag == server::CONNECT => server::connect(&port),
        (Some(flag), None) if flag == secrets::FLAG => secrets::settle(),
        (Some(flag), Some(operation)) if flag == channels::GIT => {
            channels::git_credential(operation.as_bytes())
        }
        (Some(dir), None) if dir.as_bytes().starts_with(b"/") => {
            server::serve_in(dir.as_ref(), OsStr::new("/run/codchi-agent").as_ref())
                .map(|never| match never {})
        }
        _ => Err(error::Error::Usage),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "codchi-agent: {e}");
            ExitCode::FAILURE
        }
    }
}
