//! Runs a command through an agent: `agent DIR [-t|-T] [-u USER] [-C DIR] [-e NAME=VALUE] [--stream] -- COMMAND...`.
//! What tests and measurements use where no whole machine is needed.
#![allow(clippy::print_stderr)]

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;

use codchi_drivers::agent::{self, ExecRequest, Tty};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let dir = PathBuf::from(args.next().unwrap_or_default());
    let mut request = ExecRequest::default();
    let mut stream = false;
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_default();
        match arg.as_bytes() {
            b"-t" => request.tty = Tty::Always,
            b"-T" => request.tty = Tty::Never,
            b"-u" => request.user = Some(value().to_string_lossy().into_owned()),
            b"-C" => request.cwd = Some(value()),
            b"-e" => {
                let pair = value().into_vec();
                let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
                let after = pair.get(at + 1..).unwrap_or_default().to_vec();
                request.env.push((OsString::from_vec(pair[..at].to_vec()), OsString::from_vec(after)));
            }
            b"--stream" => stream = true,
            _ => {
                request.argv = args.collect();
                break;
            }
        }
    }
    let mut warn = |text: &str| eprintln!("warning: {text}");
    let result = if stream {
        match std::os::unix::net::UnixStream::connect(dir.join("socket")) {
            Ok(socket) => agent::exec_stream(socket.into(), request, &mut warn),
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::from(125);
            }
        }
    } else {
        agent::exec_warning(&dir, request, &mut warn)
    };
    ExitCode::from(result.unwrap_or_else(|e| {
        eprintln!("error: {e}");
        e.exit_status()
    }))
}
