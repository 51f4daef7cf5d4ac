//! What only an engine can do to a machine: each is found out and said.

use libtest_mimic::Failed;

use crate::cases::Case;
use crate::engine::Engine;
use crate::host::Host;

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[
    ("incus_a_killed_attendant_is_replaced", killed_attendant),
    (
        "incus_a_machine_started_by_hand_is_connected",
        started_by_hand,
    ),
    (
        "incus_a_stopped_daemon_is_named_and_machines_go_on",
        daemon_stopped,
    ),
    ("incus_a_renamed_instance_is_found", renamed),
    ("incus_an_instance_of_another_is_left_alone", foreign),
    ("incus_a_missing_pool_is_named", no_pool),
    ("incus_what_a_person_configured_stays", configured),
    ("incus_a_deleted_instance_is_said", deleted),
];

fn wants(what: &str, text: &str, wanted: &[&str]) -> Result<(), Failed> {
    for w in wanted {
        if !text.contains(w) {
            return Err(format!("{what}: `{w}` is not in\n{text}").into());
        }
    }
    Ok(())
}

fn killed_attendant(h: &Host) -> Result<(), Failed> {
    let file = h.home.join("run/codchi/machines/conf/supervisor.json");
    let told: serde_json::Value = serde_json::from_str(&codchi_fs::read_to_string(file)?)?;
    let pid = told["pid"]
        .as_i64()
        .and_then(|p| i32::try_from(p).ok())
        .ok_or("no attendant")?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or("no attendant")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let leader = h.sh("conf", "cat /proc/sys/kernel/random/boot_id")?;
    if h.status("conf")?["state"] != "running" {
        return Err("the machine went down with its attendant".into());
    }
    // Network and store are there again, in the same life of the machine.
    h.sh(
        "conf",
        "nix-store -q --references /run/current-system >/dev/null && getent hosts localhost",
    )?;
    if h.sh("conf", "cat /proc/sys/kernel/random/boot_id")? != leader {
        return Err("the machine was started anew".into());
    }
    h.codchi(&["restart", "conf"])?.ok()?;
    Ok(())
}

fn started_by_hand(h: &Host) -> Result<(), Failed> {
    h.codchi(&["stop", "conf"])?.ok()?;
    h.engine()?.command(&["start", "conf"])?;
    if h.status("conf")?["state"] != "running" {
        return Err("a machine that runs is not said to".into());
    }
    let done = h
        .codchi(&[
            "exec",
            "conf",
            "--",
            "nix-store",
            "-q",
            "--references",
            "/run/current-system",
        ])?
        .ok()?;
    wants("warning", &done.err, &["connected again"])?;
    h.codchi(&["restart", "conf"])?.ok()?;
    Ok(())
}

fn daemon_stopped(h: &Host) -> Result<(), Failed> {
    let dir = Engine::place(&h.home, "incus");
    h.engine()?.pause(&h.repo, || {
        // Not through `h`, which asks the engine where it is.
        let codchi = |args: &[&str]| {
            let mut c = h.plain_command(args);
            c.env("INCUS_DIR", &dir);
            crate::host::run(&mut c, b"")
        };
        let done = codchi(&["exec", "conf", "--", "echo", "still here"])?.ok()?;
        wants("exec", &done.text(), &["still here"])?;
        wants(
            "status",
            &codchi(&["status"])?.ok()?.text(),
            &["conf", "running"],
        )?;
        let done = codchi(&["init", "late", "--driver", "incus"])?.exits(3)?;
        wants(
            "init",
            &done.err,
            &["does not run", "systemctl start incus"],
        )?;
        let done = codchi(&["doctor"])?;
        wants(
            "doctor",
            &done.text(),
            &["Incus", "does not run", "systemctl start incus"],
        )
    })
}

fn renamed(h: &Host) -> Result<(), Failed> {
    h.codchi(&["stop", "conf"])?.ok()?;
    h.engine()?.command(&["rename", "conf", "elsewhere"])?;
    let done = h.codchi(&["start", "conf"])?.exits(3)?;
    wants(
        "start",
        &done.err,
        &["elsewhere", "incus rename elsewhere conf"],
    )?;
    if h.status("conf")?["state"] != "failed" {
        return Err("the state is not `failed`".into());
    }
    h.engine()?.command(&["rename", "elsewhere", "conf"])?;
    h.codchi(&["start", "conf"])?.ok()?;
    Ok(())
}

fn foreign(h: &Host) -> Result<(), Failed> {
    h.engine()?
        .command(&["create", "--empty", "theirs", "-s", "default"])?;
    let done = h.codchi(&["init", "theirs"])?.exits(3)?;
    wants("init", &done.err, &["theirs", "left alone"])?;
    wants(
        "list",
        &h.engine()?
            .command(&["list", "--format", "csv", "-c", "n"])?,
        &["theirs"],
    )?;
    h.codchi(&["status", "theirs"])?.exits(5)?;
    h.engine()?.command(&["delete", "theirs"])?;
    Ok(())
}

fn no_pool(h: &Host) -> Result<(), Failed> {
    // A second engine, with nothing in it at all.
    let dir = Engine::place(&h.home, "empty");
    let second = Engine::incus(&h.repo, dir.clone())?;
    second.command(&["storage", "delete", "default"])?;
    let mut c = h.plain_command(&["init", "nowhere"]);
    let done = crate::host::run(c.env("INCUS_DIR", &dir), b"")?.exits(3)?;
    wants(
        "init",
        &done.err,
        &["storage pool", "incus storage create default dir"],
    )?;
    Ok(())
}

fn configured(h: &Host) -> Result<(), Failed> {
    h.engine()?
        .command(&["config", "set", "conf", "user.note=mine"])?;
    h.codchi(&["restart", "conf"])?.ok()?;
    let note = h
        .engine()?
        .command(&["config", "get", "conf", "user.note"])?;
    if note != "mine" {
        return Err(format!("the person's own key became `{note}`").into());
    }
    Ok(())
}

fn deleted(h: &Host) -> Result<(), Failed> {
    h.codchi(&["init", "doomed"])?.ok()?;
    h.engine()?.command(&["delete", "--force", "doomed"])?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while h.status("doomed")?["state"] != "failed" {
        if std::time::Instant::now() > end {
            return Err("a machine without an instance is not said to have failed".into());
        }
    }
    let done = h.codchi(&["start", "doomed"])?.exits(3)?;
    wants(
        "start",
        &done.err,
        &["gone from Incus", "codchi delete doomed"],
    )?;
    h.codchi(&["delete", "--yes", "doomed"])?.ok()?;
    Ok(())
}
