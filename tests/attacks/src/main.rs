//! The attack suite: what root and the user of a real machine try against the host, the store and another machine.
//!
//! `CODCHI_ATTACKS=KIND-SUITE` chooses how Codchi is run (`root`, `rootless`, `incus` or `lxd`: as root, with machines on a daemon of the
//! suite's own, `oci` or `qemu`: as root, with an OCI runtime or virtual machines) and which release the built-in base takes;
//! `CODCHI_PROGRAM` is the
//! program under test. A home that is named by `CODCHI_TEST_HOME` stays with its machines, for the next run. Every attempt must fail and must
//! leave what is guarded as it was; its control is the same attempt where the guard is taken away, and must succeed, else the
//! attempt would show nothing. `--table` prints the list of attempts for the documentation.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod attempts;
mod daemon;
mod drivers;
mod exports;
mod guest;
// The conformance suite's host serves both suites.
#[allow(dead_code)]
#[path = "../../conformance/src/engine.rs"]
mod engine;
#[allow(dead_code)]
#[path = "../../conformance/src/host.rs"]
mod host;
mod hostile;
mod misc;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::stage::Stage;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["--table"] => {
            print!("{}", attempts::table());
            return ExitCode::SUCCESS;
        }
        ["--launch", dir, launch, program, name] => {
            return stage::launch(dir, launch, program, name);
        }
        ["--remove", path] => {
            // What the removal of deep folders is compared with.
            #[allow(clippy::disallowed_methods)]
            let done = std::fs::remove_dir_all(path);
            return if done.is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        _ => {}
    }
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let which = std::env::var("CODCHI_ATTACKS").unwrap_or_else(|_| "root-bookworm".into());
    let repo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let repo = repo.canonicalize().unwrap_or(repo);
    let program = std::env::var_os("CODCHI_PROGRAM")
        .map_or_else(|| repo.join("rust/target/release/codchi"), PathBuf::from);
    let home = std::env::temp_dir().join(format!("codchi-attacks-{}-{which}", std::process::id()));
    let home = std::env::var_os("CODCHI_TEST_HOME").map_or(home, PathBuf::from);
    let stage = match Stage::new(&which, home.clone(), repo, program) {
        Ok(s) => Arc::new(s),
        Err(e) => {
            eprintln!(
                "cannot prepare `{}`: {}",
                home.display(),
                e.message().unwrap_or("no reason given")
            );
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    let kind = which.split('-').next().unwrap_or_default();
    let mut add = |trial: Trial, left_out: Option<&str>| {
        // What is left out is listed with the reason.
        trials.push(match left_out {
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
            None => trial,
        });
    };
    for attempt in attempts::ALL {
        for who in attempt.who {
            let stage = stage.clone();
            let trial = Trial::test(
                format!("{which}::{}::{}", attempt.name, who.as_str()),
                move || {
                    stage.ready()?;
                    attempts::attempt(&stage, attempt, *who)
                },
            );
            let why = drivers::left_out(kind, attempt.group, attempt.name, Some(*who));
            add(trial, why.or_else(|| drivers::lacks(kind, attempt.name)));
        }
        let stage = stage.clone();
        let trial = Trial::test(format!("{which}::{}::control", attempt.name), move || {
            stage.ready()?;
            attempts::control(&stage, attempt)
        });
        add(
            trial,
            drivers::left_out(kind, attempt.group, attempt.name, None),
        );
    }
    let conclusion = libtest_mimic::run(&args, trials);
    let ended = stage.end();
    if let Err(e) = &ended {
        eprintln!(
            "the machines did not go: {}",
            e.message().unwrap_or("no reason given")
        );
    } else if !conclusion.has_failed() && std::env::var_os("CODCHI_TEST_HOME").is_none() {
        // After a failure it is evidence and stays.
        let _ = codchi_fs::remove_dir_all(&home);
    }
    if ended.is_err() {
        ExitCode::FAILURE
    } else {
        conclusion.exit_code()
    }
}

/// Fails the case unless a condition holds.
pub fn require(condition: bool, otherwise: impl Into<String>) -> Result<(), Failed> {
    if condition {
        Ok(())
    } else {
        Err(otherwise.into().into())
    }
}
