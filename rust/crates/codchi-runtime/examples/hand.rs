//! Tries the runtime by hand:
//! `hand outer [--nix DIR] [--as-root] -- PROGRAM ARGS...`, `hand start DIR LAUNCH.json`, `hand stop DIR [--force]`, `hand status DIR`.
#![allow(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use codchi_core::report::Diagnose;
use codchi_runtime::outer::{self, OuterConfig, Role};
use codchi_runtime::{Error, start, state, supervise};
use codchi_secrets::Bundle;

fn finish(r: Result<(), Error>) {
    if let Err(e) = r {
        eprintln!("error: {e}");
        for h in e.hints() {
            eprintln!("hint: {h}");
        }
        std::process::exit(e.kind().exit_status().into());
    }
}

fn main() {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().and_then(|a| a.into_string().ok()).unwrap_or_default();
    let mut path = || PathBuf::from(args.next().unwrap());
    match verb.as_str() {
        "outer" => {
            let (mut config, mut role) = (OuterConfig::default(), Role::Caller);
            while let Some(a) = args.next() {
                match a.to_str() {
                    Some("--nix") => config.nix = args.next().map(Into::into),
                    Some("--as-root") => role = Role::Maintainer,
                    _ => break,
                }
            }
            let rest: Vec<OsString> = args.collect();
            finish(Err(outer::exec(&config, role, &rest[0], &rest[1..])));
        }
        "start" => {
            let dir = path();
            let launch = serde_json::from_str(&codchi_fs::read_to_string(path()).unwrap()).unwrap();
            let program = [std::env::current_exe().unwrap().into(), "supervise".into(), dir.clone().into()];
            finish(start::start(&dir, &launch, &program, &Bundle::new(), &mut |e| eprintln!("{e:?}")));
        }
        "supervise" => finish(supervise::supervise(&path(), |_| Ok(Default::default()))),
        "stop" => {
            let dir = path();
            finish(start::stop(&dir, args.next().is_some(), Duration::from_secs(120)));
        }
        "enter" => {
            let dir = path();
            let (mut user, mut tty) = ("root".to_string(), false);
            let mut argv: Vec<OsString> = args.collect();
            while let Some(f) = argv.first().and_then(|a| a.to_str()) {
                match f {
                    "-t" => tty = true,
                    u if u.starts_with("-u") => user = u[2..].into(),
                    _ => break,
                }
                argv.remove(0);
            }
            let request = codchi_runtime::enter::Request { argv, user, tty, ..Default::default() };
            match codchi_runtime::enter::enter(&dir, &request) {
                Ok(code) => std::process::exit(code.into()),
                Err(e) => finish(Err(e)),
            }
        }
        "probe" => {
            for f in codchi_runtime::probe::probe() {
                println!(
                    "{} {}: {} {}",
                    if f.ok { "ok  " } else { "FAIL" },
                    f.what,
                    f.detail,
                    f.mend.unwrap_or_default()
                );
            }
        }
        "status" => println!("{:?}", state::status(&path()).unwrap()),
        _ => std::process::exit(2),
    }
}
