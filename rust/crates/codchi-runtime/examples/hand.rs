//! Tries the runtime by hand: `hand outer [--nix DIR] [--as-root] -- PROGRAM ARGS...`.
#![allow(clippy::print_stderr, clippy::unwrap_used)]

use std::ffi::OsString;

use codchi_core::report::Diagnose;
use codchi_runtime::outer::{self, OuterConfig, Role};

fn main() {
    let mut args = std::env::args_os().skip(1);
    match args.next().and_then(|a| a.into_string().ok()).as_deref() {
        Some("outer") => {
            let (mut config, mut role) = (OuterConfig::default(), Role::Caller);
            while let Some(a) = args.next() {
                match a.to_str() {
                    Some("--nix") => config.nix = args.next().map(Into::into),
                    Some("--as-root") => role = Role::Maintainer,
                    _ => break,
                }
            }
            let rest: Vec<OsString> = args.collect();
            let e = outer::exec(&config, role, &rest[0], &rest[1..]);
            eprintln!("error: {e}");
            for h in e.hints() {
                eprintln!("hint: {h}");
            }
            std::process::exit(e.kind().exit_status().into());
        }
        _ => std::process::exit(2),
    }
}
