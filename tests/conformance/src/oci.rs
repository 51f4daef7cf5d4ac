//! What is the driver's own where an OCI runtime makes the containers.

use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::Value;

use crate::cases::Case;
use crate::copies;
use crate::host::{Done, Host, run};

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[
    (
        "oci_the_runtime_knows_the_machine_and_forgets_it",
        known_by_the_runtime,
    ),
    (
        "oci_a_machine_ended_behind_codchi_is_told_and_mended",
        ended_by_hand,
    ),
    (
        "oci_a_machine_ends_with_who_looks_after_it",
        supervisor_killed,
    ),
    (
        "oci_a_runtime_that_is_missing_or_too_old_is_told",
        wrong_runtimes,
    ),
    ("oci_another_runtime_runs_the_same_machine", another_runtime),
    (
        "oci_a_machine_moves_to_native_and_back_with_every_file",
        moves,
    ),
];

/// Names the runtime.
const VARIABLE: &str = "CODCHI_OCI_RUNTIME";

fn wants(what: &str, text: &str, words: &[&str]) -> Result<(), Failed> {
    match words.iter().find(|w| !text.contains(**w)) {
        Some(word) => Err(format!("{what}: `{word}` is not in {text}").into()),
        None => Ok(()),
    }
}

fn runtime_dir(h: &Host) -> PathBuf {
    h.home.join("run/codchi/machines/conf")
}

/// A runtime, used by hand on the machine's state, as the host's root.
fn by_hand(h: &Host, program: &str, args: &[&str]) -> Result<Done, Failed> {
    let state = runtime_dir(h).join("runtime");
    run(
        Command::new(program).arg("--root").arg(state).args(args),
        b"",
    )
}

/// The process that the runtime has as the machine's first.
fn known(h: &Host, program: &str) -> Result<Option<u64>, Failed> {
    let text = by_hand(h, program, &["list", "-f", "json"])?.ok()?.text();
    let all: Value = serde_json::from_str(&text)?;
    let conf = all
        .as_array()
        .and_then(|a| a.iter().find(|c| c["id"] == "conf"));
    Ok(conf.and_then(|c| c["pid"].as_u64()))
}

/// `codchi ARGS conf` with another runtime.
fn with(h: &Host, runtime: &str, args: &[&str]) -> Result<Done, Failed> {
    let mut c = h.codchi_command(args);
    run(c.env(VARIABLE, runtime), b"")
}

fn is_same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), Failed> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: {got:?} where {wanted:?} was expected").into())
}

fn known_by_the_runtime(h: &Host) -> Result<(), Failed> {
    let process = h.status("conf")?["leader"].as_u64();
    is_same("the runtime's process", known(h, "crun")?, process)?;
    let config = codchi_fs::read_to_string(runtime_dir(h).join("bundle/config.json"))?;
    let config: Value = serde_json::from_str(&config)?;
    is_same("host name", config["hostname"].as_str(), Some("conf"))?;
    h.codchi(&["stop", "conf"])?.ok()?;
    let left = ["bundle", "runtime"].map(|d| runtime_dir(h).join(d).exists());
    is_same("what is left of it", left, [false, false])?;
    h.codchi(&["start", "conf"])?.ok()?;
    Ok(())
}

fn ended_by_hand(h: &Host) -> Result<(), Failed> {
    // A command mends it, too: it starts a machine that does not run.
    let mended = [
        (&["kill", "conf", "KILL"][..], &["start", "conf"][..]),
        (
            &["delete", "--force", "conf"],
            &["exec", "conf", "--", "true"],
        ),
    ];
    for (args, mend) in mended {
        // What it would take away besides may be gone before it comes to that: the supervisor sees the end at once.
        by_hand(h, "crun", args)?;
        crate::cases::eventually("the end of the machine is told", || {
            let status = h.status("conf")?;
            let why = status["reason"].as_str().unwrap_or_default();
            Ok(status["state"] == "failed" && why.contains("signal 9"))
        })?;
        h.codchi(mend)?.ok()?;
        let process = h.status("conf")?["leader"].as_u64();
        is_same("the runtime's process", known(h, "crun")?, process)?;
    }
    is_same("a command", h.sh("conf", "echo here")?, "here".into())
}

/// No runtime does that: PID 1 asks for it.
fn supervisor_killed(h: &Host) -> Result<(), Failed> {
    let file = runtime_dir(h).join("supervisor.json");
    let told: Value = serde_json::from_str(&codchi_fs::read_to_string(file)?)?;
    let (supervisor, leader) = (told["pid"].to_string(), told["leader"].to_string());
    run(Command::new("kill").args(["-KILL", &supervisor]), b"")?.ok()?;
    let stat = PathBuf::from("/proc").join(leader).join("stat");
    crate::cases::eventually("the machine has ended", || {
        let stat = codchi_fs::read_if_exists(&stat)?;
        // Whoever inherits it collects it in its own time.
        Ok(stat.is_none_or(|s| {
            s.rsplit(") ")
                .next()
                .is_some_and(|s| s.starts_with(['Z', 'X']))
        }))
    })?;
    h.codchi(&["start", "conf"])?.ok()?;
    is_same("a command", h.sh("conf", "echo here")?, "here".into())
}

fn wrong_runtimes(h: &Host) -> Result<(), Failed> {
    let install = "apt install crun";
    h.codchi(&["stop", "conf"])?.ok()?;
    let done = with(h, "/nowhere/crun", &["start", "conf"])?.exits(3)?;
    wants("missing", &done.err, &["`/nowhere/crun`", install])?;
    // No distribution has one that old any more: its word of itself is all that is asked for.
    let old = h.home.join("crun-old");
    codchi_fs::write_atomic(&old, "#!/bin/sh\necho crun version 0.19\n", 0o755)?;
    let old = old.to_string_lossy();
    let done = with(h, &old, &["start", "conf"])?.exits(3)?;
    wants(
        "too old",
        &done.err,
        &["too old", "0.19", "1.0 or later", install],
    )?;
    let done = with(h, &old, &["doctor"])?;
    wants("doctor", &done.text(), &["an OCI runtime", "0.19", install])?;
    // One that fails is quoted.
    let broken = h.home.join("crun-broken");
    let script =
        "#!/bin/sh\n[ \"$1\" = --version ] && exec crun --version\necho it is broken >&2\nexit 1\n";
    codchi_fs::write_atomic(&broken, script, 0o755)?;
    let done = with(h, &broken.to_string_lossy(), &["start", "conf"])?;
    wants("broken", &done.err, &["create` failed: it is broken"])?;
    for name in ["crun-old", "crun-broken"] {
        codchi_fs::remove_file(h.home.join(name))?;
    }
    h.codchi(&["start", "conf"])?.ok()?;
    is_same("a command", h.sh("conf", "echo here")?, "here".into())
}

fn another_runtime(h: &Host) -> Result<(), Failed> {
    let before = h.sh("conf", "echo kept >~/kept; cat /etc/machine-id")?;
    with(h, "runc", &["restart", "conf"])?.ok()?;
    let process = h.status("conf")?["leader"].as_u64();
    is_same("the runtime's process", known(h, "runc")?, process)?;
    let state = h.root_sh("conf", "systemctl is-system-running --wait")?;
    is_same("systemd", state, "running".into())?;
    is_same(
        "a file",
        h.sh("conf", "cat ~/kept; rm ~/kept")?,
        "kept".into(),
    )?;
    is_same("the id", h.sh("conf", "cat /etc/machine-id")?, before)?;
    h.codchi(&["restart", "conf"])?.ok()?;
    Ok(())
}

fn moves(h: &Host) -> Result<(), Failed> {
    let before = copies::make(h, "conf")?;
    h.codchi(&["stop", "conf"])?.ok()?;
    h.codchi(&["move", "conf", "--driver", "native"])?.ok()?;
    // One that is changed while it is looked at whether it can be moved stays as it was changed: here by what is asked for its version.
    let host = ".config/codchi/machines/conf/host.toml";
    let text = codchi_fs::read_to_string(h.home.join(host))?;
    let meddler = h.home.join("crun-meddler");
    let file = h.home.join(host);
    let edit = format!("sed -i 's/^created = .*/created = 7/' {}", file.display());
    codchi_fs::write_atomic(
        &meddler,
        format!("#!/bin/sh\n{edit}\nexec crun \"$@\"\n"),
        0o755,
    )?;
    let done = with(
        h,
        &meddler.to_string_lossy(),
        &["move", "conf", "--driver", h.driver],
    )?
    .exits(6)?;
    wants(
        "meddled",
        &done.err,
        &["`conf` was changed meanwhile", "try again"],
    )?;
    wants(
        "host.toml",
        &codchi_fs::read_to_string(&file)?,
        &["created = 7"],
    )?;
    is_same(
        "driver",
        h.status("conf")?["driver"].as_str(),
        Some("native"),
    )?;
    h.file(host, &text)?;
    codchi_fs::remove_file(meddler)?;
    for driver in ["native", h.driver] {
        h.codchi(&["move", "conf", "--driver", driver])?.ok()?;
        h.codchi(&["start", "conf"])?.ok()?;
        is_same("driver", h.status("conf")?["driver"].as_str(), Some(driver))?;
        let files = copies::look(h, "conf")?;
        is_same(&format!("files on {driver}"), files, before.clone())?;
    }
    Ok(())
}
