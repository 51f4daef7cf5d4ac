//! A host that systemd started: a machine that is itself the host, in which an ordinary user and root run machines.
//!
//! The system manager and a lingering user manager are real, and so are log-in environment, control groups and a restart of
//! the host. The first case makes it and brings the program under test into it, the last deletes it.

use std::process::{Command, Stdio};

use libtest_mimic::Failed;

use crate::cases::{Case, eventually, same};
use crate::host::{Done, Host};

/// Every case, in order.
pub const ALL: &[Case] = &[
    ("a_machine_is_the_host", make_host),
    ("the_hosts_daemon_is_the_store", host_store),
    ("machines_are_units_of_the_service_manager", units),
    ("a_killed_supervisor_is_started_again", killed),
    ("machines_come_back_with_the_host", on_boot),
    ("what_keeps_a_machine_from_starting_is_told", failing),
    ("not_on_boot_any_more", not_on_boot),
    ("delete_leaves_no_unit", delete),
    ("a_store_of_its_own_beside_the_hosts_daemon", own_store),
    ("the_host_goes_without_a_trace", remove_host),
];

/// Who runs machines there.
const PEOPLE: [&str; 2] = ["codchi", "root"];

/// What is put before a person's script.
const PRELUDE: &str = r#"
    set -eu
    export CODCHI_BASE=debian CODCHI_BASE_ACCEPT_STALE=1
    if [ "$(id -u)" = 0 ]; then ctl() { systemctl "$@"; }; units=/etc/systemd/system.attached passing=/run/systemd/system
    else ctl() { systemctl --user "$@"; }; units=$HOME/.config/systemd/user passing=$XDG_RUNTIME_DIR/systemd/user; fi
    unit=codchi-machine@inner.service
    state() { codchi status --json | sed -n 's/.*"state": *"\([a-z-]*\)".*/\1/p'; }
"#;

/// Runs a script on the host as one of its people.
fn try_as(h: &Host, person: &str, script: &str) -> Result<Done, Failed> {
    let mut words = vec!["exec".to_string(), "-u".into(), person.into()];
    for (name, value) in std::env::vars() {
        if name.to_lowercase().ends_with("_proxy") || name.starts_with("CODCHI_BASE_") {
            words.extend(["-e".into(), format!("{name}={value}")]);
        }
    }
    words.extend(["-e".into(), format!("CODCHI_BASE_SUITE={}", h.suite)]);
    words.extend(["host", "--", "bash", "-c"].map(String::from));
    words.push(format!("{PRELUDE}{script}"));
    h.codchi(&words)
}

/// The same; it must succeed, and its output is given.
fn by(h: &Host, person: &str, script: &str) -> Result<String, Failed> {
    let done = try_as(h, person, script)?;
    if done.status == 0 {
        return Ok(done.text());
    }
    let (out, err) = (done.text(), done.err);
    Err(format!("as {person}: status {}\n{out}\n{err}", done.status).into())
}

/// Brings a file or folder of this computer into the host.
fn bring(h: &Host, from: &str, to: &str) -> Result<(), Failed> {
    let mut tar = Command::new("tar")
        .args(["-chf", "-", "-C", "/", from])
        .stdout(Stdio::piped())
        .spawn()?;
    let out = tar.stdout.take().ok_or("no output of tar")?;
    let done = h
        .codchi_command(&[
            "exec", "-u", "root", "host", "--", "tar", "-xf", "-", "-C", to,
        ])
        .stdin(out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?
        .wait_with_output()?;
    if tar.wait()?.success() && done.status.success() {
        return Ok(());
    }
    Err(format!(
        "cannot bring `/{from}`: {}",
        String::from_utf8_lossy(&done.stderr)
    )
    .into())
}

fn make_host(h: &Host) -> Result<(), Failed> {
    let repo = h.checkout("tests/fixtures/systemd-host", "systemd-host")?;
    h.codchi(&["init", "host", &repo.to_string_lossy()])?.ok()?;
    // The mirror that packages come from, as this computer is configured.
    bring(h, "etc/apt", "/")?;
    let program = h.codchi_command(&[] as &[&str]);
    let program = match program.get_args().last() {
        Some(wrapped) => wrapped.to_owned(),
        None => program.get_program().to_owned(),
    };
    let bytes = codchi_fs::read(std::path::Path::new(&program))?;
    let script =
        "mkdir -p /usr/local/bin && cat >/usr/local/bin/codchi && chmod 755 /usr/local/bin/codchi";
    h.codchi_with(
        &["exec", "-u", "root", "host", "--", "sh", "-c", script],
        &bytes,
    )?
    .ok()?;
    for person in PEOPLE {
        let doctor = by(h, person, "codchi doctor")?;
        if doctor.contains("MISSING") || !doctor.contains("control groups: by systemd") {
            return Err(format!("as {person}:\n{doctor}").into());
        }
    }
    let lingers = by(h, "codchi", "codchi doctor")?;
    same(
        "lingering",
        lingers.contains("machines outlive the login: lingering is on"),
        true,
    )
}

fn host_store(h: &Host) -> Result<(), Failed> {
    for person in PEOPLE {
        let said = by(
            h,
            person,
            "codchi init inner -- uname -n; codchi store status; codchi exec -u root inner -- systemctl is-system-running",
        )?;
        let lines: Vec<&str> = said.lines().collect();
        same(
            "host name and state",
            (lines[0], lines[lines.len() - 1]),
            ("inner", "running"),
        )?;
        let kind = said
            .lines()
            .find_map(|l| l.strip_prefix("kind"))
            .map(str::trim);
        same("store", kind, Some("host"))?;
        // A build that the machine in the machine asks for is done by the daemon of this computer's store.
        let built = by(
            h,
            person,
            r#"codchi exec inner -- sh -c '
                cat >t.nix <<END
derivation { name = "t"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo built >\$out" ]; }
END
                cat $(nix-build --no-out-link t.nix 2>log) || { cat log >&2; exit 1; }'"#,
        )?;
        same("a build inside", built, "built".to_string())?;
    }
    Ok(())
}

fn units(h: &Host) -> Result<(), Failed> {
    for person in PEOPLE {
        let said = by(
            h,
            person,
            r#"
            ctl is-active $unit
            # The supervisor and the machine are in the unit's own group.
            supervisor=$(ctl show -p MainPID --value $unit)
            leader=$(codchi status --json | sed -n 's/.*"leader": *\([0-9]*\).*/\1/p')
            group=$(ctl show -p ControlGroup --value $unit)
            for pid in $supervisor $leader; do
                case $(sed -n 's/^0:://p' /proc/$pid/cgroup) in "$group"/*) echo within ;; *) cat /proc/$pid/cgroup ;; esac
            done
            # Nothing is installed for a machine that does not start with the host.
            test -e $passing/codchi-machine@.service
            test ! -e $units/codchi-machine@.service
            codchi stop inner
            ctl is-active $unit || true
            test ! -e /sys/fs/cgroup$group || find /sys/fs/cgroup$group -name cgroup.procs -size +0
            codchi start inner
            codchi exec inner -- sh -c 'exit 7' || echo $?
            ctl stop $unit
            state
            codchi restart inner
            state
            "#,
        )?;
        same(
            "units",
            said,
            "active\nwithin\nwithin\ninactive\n7\nstopped\nrunning".to_string(),
        )?;
    }
    Ok(())
}

fn killed(h: &Host) -> Result<(), Failed> {
    for person in PEOPLE {
        let before = by(
            h,
            person,
            "p=$(ctl show -p MainPID --value $unit); echo $p; kill -KILL $p",
        )?;
        eventually("the supervisor is there again", || {
            let now = by(h, person, "ctl show -p MainPID --value $unit; state")?;
            Ok(now.ends_with("running")
                && !now.starts_with(&format!("{before}\n"))
                && !now.starts_with("0\n"))
        })?;
        same(
            "it works",
            by(h, person, "codchi exec inner -- uname -n")?,
            "inner".to_string(),
        )?;
    }
    Ok(())
}

fn on_boot(h: &Host) -> Result<(), Failed> {
    for person in PEOPLE {
        by(
            h,
            person,
            "codchi exec inner -- sh -c 'echo precious >~/keep'; codchi start --on-boot inner; test -e $units/codchi-machine@.service",
        )?;
    }
    h.codchi(&["restart", "host"])?.ok()?;
    for person in PEOPLE {
        // `status` starts nothing: the service managers do.
        eventually("the machine is back with its host", || {
            Ok(by(h, person, "state")? == "running")
        })?;
        same(
            "files",
            by(h, person, "codchi exec inner -- cat keep")?,
            "precious".to_string(),
        )?;
        same(
            "the host",
            by(h, person, "ctl is-system-running")?,
            "running".to_string(),
        )?;
    }
    // A person who is quicker than the host waits for it, and disturbs nothing.
    h.codchi(&["restart", "host"])?.ok()?;
    for person in PEOPLE {
        let done = try_as(h, person, "codchi exec inner -- cat keep")?.ok()?;
        same("quicker than the host", done.text(), "precious".to_string())?;
        same("stopped nothing", done.err.contains("stopping"), false)?;
    }
    Ok(())
}

fn failing(h: &Host) -> Result<(), Failed> {
    for person in PEOPLE {
        let said = by(
            h,
            person,
            r#"
            codchi stop inner
            current=$HOME/.local/state/codchi/generations/inner/current
            mv $current $current.aside
            ctl start $unit || true
            for i in $(seq 100); do ! ctl is-active --quiet $unit || sleep 0.1; done
            ctl is-failed $unit
            ctl show -p NRestarts --value $unit
            state
            codchi status inner 2>&1 | grep -o 'has no generation' | head -n 1
            mv $current.aside $current
            codchi start inner
            state
            "#,
        )?;
        same(
            "failed",
            said,
            "failed\n0\nfailed\nhas no generation\nrunning".to_string(),
        )?;
    }
    Ok(())
}

fn not_on_boot(h: &Host) -> Result<(), Failed> {
    for person in PEOPLE {
        by(
            h,
            person,
            r#"
            codchi start --no-on-boot inner
            test ! -e $units/codchi-machine@.service
            test -z "$(find $units -name 'codchi-machine@*')"
            ctl is-active --quiet $unit
            "#,
        )?;
    }
    h.codchi(&["restart", "host"])?.ok()?;
    for person in PEOPLE {
        same(
            "settled",
            by(h, person, "ctl is-system-running --wait")?,
            "running".to_string(),
        )?;
        same(
            "not started",
            by(h, person, "state")?,
            "stopped".to_string(),
        )?;
        by(h, person, "codchi start --on-boot inner")?;
    }
    Ok(())
}

fn delete(h: &Host) -> Result<(), Failed> {
    for person in PEOPLE {
        let left = by(
            h,
            person,
            r#"
            codchi delete --yes inner
            codchi store remove --yes
            find $units $passing -name 'codchi-machine@*' 2>/dev/null || true
            find /sys/fs/cgroup -path '*codchi-machine@inner*' -user "$(id -un)" | head
            ctl list-units --all --plain --no-legend 'codchi-machine@*'
            pgrep -u "$(id -u)" -fa 'codchi supervis[e]' || true
            find "$HOME" -path "$HOME/*/codchi*" -not -path '*/.config/codchi*' | head
            "#,
        )?;
        same("left", left, String::new())?;
    }
    Ok(())
}

fn own_store(h: &Host) -> Result<(), Failed> {
    let said = by(
        h,
        "codchi",
        r#"
        mkdir -p ~/.config/codchi
        printf '[store]\nkind = "own"\n' >~/.config/codchi/config.toml
        codchi init inner -- uname -n
        codchi store status | sed -n 's/^kind *//p'
        codchi exec -u root inner -- systemctl is-system-running
        codchi delete --yes inner
        codchi store remove --yes
        find $HOME/.local $HOME/.cache -path "$HOME/*/codchi*" | head
        "#,
    )?;
    same("own store", said, "inner\nown\nrunning".to_string())
}

fn remove_host(h: &Host) -> Result<(), Failed> {
    h.codchi(&["delete", "--yes", "host"])?.ok()?;
    let gone = eventually("every process of the host is gone", || {
        Ok(h.processes().is_empty())
    });
    gone.map_err(|e| {
        let left = h.processes().join("\n");
        format!("{}\n{left}", e.message().unwrap_or_default())
    })?;
    h.codchi(&["store", "remove", "--yes"])?.ok()?;
    Ok(())
}
