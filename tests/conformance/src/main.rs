//! The conformance suite: the same cases for every driver, against real machines.
//!
//! `CODCHI_SUITE` chooses the cases: `conformance` (the default), `templates` (every template is booted and used), `faults`
//! (killed at every step, on full and failing disks), `power` (the power fails, the clock jumps, another version wrote the
//! state), `model` (two commands at once, and random sequences of commands),
//! `sources` (repositories on servers of its own) or `systemd` (on a host that systemd started).
//! `CODCHI_CONFORMANCE=KIND-SUITE` chooses how Codchi is run (`root`, `rootless`, `incus` or `lxd`: as root, with machines on a
//! daemon of the suite's own, `oci`, `qemu` or `libvirt`: as root, with an OCI runtime or virtual machines, `rootlessoci`,
//! `rootlessqemu` or `rootlesslibvirt`) and which release the built-in base takes; `CODCHI_PROGRAM` is the program under test. With `--table`
//! nothing is run: the table of what each driver does is
//! printed. The cases share one home, one store and one machine and run in
//! order. What a case changes, it puts back, or a later case says that it builds on it.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod cases;
mod clock;
mod consent;
mod copies;
mod driverless;
mod earlier;
mod engine;
mod faults;
mod full;
mod host;
mod incus;
mod libvirt;
mod model;
mod oci;
mod pairs;
mod power;
mod qemu;
mod remote;
mod secrets;
mod session;
mod sources;
mod systemd;
mod table;
mod templates;
mod terminal;
mod whole;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().any(|a| a == "--table") {
        let names: Vec<&str> = all().iter().map(|(name, _)| *name).collect();
        print!("{}", table::render(&names));
        return ExitCode::SUCCESS;
    }
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let which = std::env::var("CODCHI_CONFORMANCE").unwrap_or_else(|_| "root-bookworm".into());
    let repo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let repo = repo.canonicalize().unwrap_or(repo);
    let program = std::env::var_os("CODCHI_PROGRAM")
        .map_or_else(|| repo.join("rust/target/debug/codchi"), PathBuf::from);
    let home = std::env::var_os("CODCHI_TEST_HOME").map_or_else(
        || std::env::temp_dir().join(format!("codchi-conformance-{}-{which}", std::process::id())),
        PathBuf::from,
    );
    let suite = std::env::var("CODCHI_SUITE").unwrap_or_else(|_| "conformance".into());
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
    let trials: Vec<Trial> = match suite.as_str() {
        "conformance" => trials(&which, &host, &cases(&host)),
        "faults" => trials(&which, &host, faults::ALL),
        "power" => trials(&which, &host, power::ALL),
        "model" => trials(&which, &host, &[pairs::ALL, model::ALL].concat()),
        "sources" => trials(&which, &host, sources::ALL),
        "systemd" => trials(&which, &host, systemd::ALL),
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

/// The cases of every driver.
fn all() -> Vec<cases::Case> {
    let mut all = cases::ALL.to_vec();
    let last = all.pop();
    all.extend(secrets::ALL);
    all.extend(terminal::ALL);
    all.extend(consent::ALL);
    all.extend(session::ALL);
    all.extend(last);
    all
}

/// The same, and before the last, which deletes the machine, those of the driver under test.
fn cases(host: &host::Host) -> Vec<cases::Case> {
    let mut all = all();
    let last = all.pop();
    if host.has_engine() {
        all.extend(incus::ALL);
    }
    if host.driver == "incus" {
        all.extend(incus::CLUSTERS);
        all.extend(remote::ALL);
    }
    match host.driver {
        "qemu" => {
            all.extend(qemu::ALL);
            // Whose owners are kept on its disk.
            if host.kind == host::Kind::Root {
                all.extend(driverless::ALL);
            }
        }
        "libvirt" => {
            all.extend(qemu::ALL);
            if host.kind == host::Kind::Root {
                all.extend(libvirt::OF_THE_SYSTEM);
            }
            all.extend(libvirt::ALL);
        }
        "oci" => all.extend(oci::ALL),
        _ => {}
    }
    all.extend(last);
    all
}

fn trials(which: &str, host: &Arc<host::Host>, cases: &[cases::Case]) -> Vec<Trial> {
    let kind = which.split('-').next().unwrap_or_default();
    cases
        .iter()
        .map(|&(name, case)| {
            let host = host.clone();
            let trial = Trial::test(format!("{which}::{name}"), move || case(&host));
            match table::left_out(kind, name) {
                Some(why) => trial.with_kind(why.text()).with_ignored_flag(true),
                None if is_sampled(kind, name) => trial
                    .with_kind("left out without CODCHI_TEST_WHOLE=1")
                    .with_ignored_flag(true),
                None => trial,
            }
        })
        .collect()
}

/// Cases of virtual machines that take minutes on an emulated processor, and that show what others do, too.
const SLOW: [&str; 3] = [
    "session_certificates_of_the_host_are_trusted",
    "session_outlives_the_agent_of_the_machine",
    "session_sound_reaches_the_caller",
];

/// Whether a case is run where everything is asked for only. libvirt's virtual machines are QEMU's but for who starts them.
fn is_sampled(kind: &str, case: &str) -> bool {
    let whole = std::env::var_os("CODCHI_TEST_WHOLE").is_some_and(|v| !v.is_empty());
    let libvirt = kind.ends_with("libvirt");
    let of_libvirt = case.starts_with("session_") || case.starts_with("qemu_copies_");
    !whole && (libvirt && of_libvirt || kind.ends_with("qemu") && SLOW.contains(&case))
}
