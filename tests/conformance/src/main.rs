//! The conformance suite: the same cases for every driver, against real machines.
//!
//! `CODCHI_SUITE` chooses the cases: `conformance` (the default), `templates` (every template is booted and used), `faults`
//! (killed at every step) or `sources` (repositories on servers of its own). `CODCHI_CONFORMANCE=KIND-SUITE` chooses how Codchi is run (`root` or `rootless`) and which release the built-in
//! base takes; `CODCHI_PROGRAM` is the program under test. The cases share one home, one store and one machine and run in
//! order. What a case changes, it puts back, or a later case says that it builds on it.
#![allow(clippy::print_stderr)]

mod cases;
mod copies;
mod faults;
mod host;
mod sources;
mod templates;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let which = std::env::var("CODCHI_CONFORMANCE").unwrap_or_else(|_| "root-bookworm".into());
    let repo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let repo = repo.canonicalize().unwrap_or(repo);
    let program = std::env::var_os("CODCHI_PROGRAM")
        .map_or_else(|| repo.join("rust/target/release/codchi"), PathBuf::from);
    let home = std::env::var_os("CODCHI_TEST_HOME").map_or_else(
        || std::env::temp_dir().join(format!("codchi-conformance-{}-{which}", std::process::id())),
        PathBuf::from,
    );
    let host = match host::Host::new(&which, home.clone(), repo, program) {
        Ok(h) => Arc::new(h),
        Err(e) => {
            eprintln!(
                "cannot prepare `{}`: {}",
                home.display(),
                e.message().unwrap_or("no reason given")
            );
            return ExitCode::FAILURE;
        }
    };
    let suite = std::env::var("CODCHI_SUITE").unwrap_or_else(|_| "conformance".into());
    let trials: Vec<Trial> = match suite.as_str() {
        "conformance" => trials(&which, &host, cases::ALL),
        "faults" => trials(&which, &host, faults::ALL),
        "sources" => trials(&which, &host, sources::ALL),
        "templates" => templates::all(&which, &host),
        other => {
            eprintln!("no suite is called `{other}`");
            return ExitCode::FAILURE;
        }
    };
    if trials.is_empty() {
        eprintln!("the suite `{suite}` has no cases");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&args, trials);
    if !conclusion.has_failed() && args.filter.is_none() {
        // What is left would be a finding of the last case; after a failure it is evidence and stays.
        let _ = codchi_fs::remove_dir_all(&home);
    }
    conclusion.exit_code()
}

fn trials(which: &str, host: &Arc<host::Host>, cases: &'static [cases::Case]) -> Vec<Trial> {
    cases
        .iter()
        .map(|(name, case)| {
            let host = host.clone();
            Trial::test(format!("{which}::{name}"), move || case(&host))
        })
        .collect()
}
