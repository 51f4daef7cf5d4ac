//! What is shown of libvirt alone: what its own tools do to a machine.

use libtest_mimic::Failed;
use serde_json::Value;

use crate::cases::{Case, eventually, same};
use crate::host::{Done, Host, run};
use crate::require;

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[
    ("libvirt_shows_a_machine_whose_qemu_is_nobody", shown),
    ("libvirt_a_machine_that_its_tools_end_is_off", ended_by_hand),
    ("libvirt_a_domain_of_another_is_left_alone", of_another),
    (
        "libvirt_a_machine_ends_with_whoever_looks_after_it",
        supervisor_killed,
    ),
];

/// Those for which the daemon is the suite's own to end.
pub const OF_THE_SYSTEM: &[Case] = &[
    ("libvirt_has_a_console_for_root", console),
    (
        "libvirt_that_does_not_answer_is_named_and_machines_go_on",
        unreachable,
    ),
];

fn virsh(h: &Host, args: &[&str]) -> Result<Done, Failed> {
    let mut c = h.command("virsh");
    // Without root, the person's own is what it takes by itself.
    run(c.arg("--quiet").args(args), b"")
}

fn domains(h: &Host) -> Result<String, Failed> {
    Ok(virsh(h, &["list", "--all", "--name"])?.ok()?.text())
}

fn shown(h: &Host) -> Result<(), Failed> {
    same("domains", domains(h)?, "conf".into())?;
    let xml = virsh(h, &["dumpxml", "conf"])?.ok()?.text();
    let folder = h.home.join(".local/share/codchi/machines/conf");
    require!(
        xml.contains(&folder.display().to_string()),
        "whose it is is not in {xml}"
    );
    let process = h.status("conf")?["leader"].as_u64().ok_or("no process")?;
    let line = codchi_fs::read(format!("/proc/{process}/cmdline"))?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    require!(
        line.contains("qemu-system") && line.contains("guest=conf"),
        "not QEMU: {line}"
    );
    let status = codchi_fs::read_to_string(format!("/proc/{process}/status"))?;
    let uid = status
        .lines()
        .find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().next());
    // A subordinate id, or one of the machine's own range.
    require!(
        uid.and_then(|u| u.parse::<u32>().ok()) > Some(65535),
        "QEMU is {uid:?}"
    );
    virsh(h, &["suspend", "conf"])?.ok()?;
    virsh(h, &["resume", "conf"])?.ok()?;
    same("a command", h.sh("conf", "echo here")?, "here".into())
}

fn ended_by_hand(h: &Host) -> Result<(), Failed> {
    virsh(h, &["destroy", "conf"])?.ok()?;
    eventually("the machine is off", || {
        Ok(h.status("conf")?["state"] == "stopped")
    })?;
    same("domains", domains(h)?, String::new())
}

fn of_another(h: &Host) -> Result<(), Failed> {
    let text = "<domain type='qemu'><name>conf</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><os>\
                <type arch='x86_64' machine='q35'>hvm</type></os></domain>";
    h.file("other.xml", text)?;
    let file = h.home.join("other.xml");
    virsh(h, &["define", &file.to_string_lossy()])?.ok()?;
    let done = h.codchi(&["start", "conf"])?.exits(3)?;
    require!(
        done.err
            .contains("libvirt has a domain `conf` that is none of this machine"),
        "it is not named: {}",
        done.err
    );
    same("domains", domains(h)?, "conf".into())?;
    virsh(h, &["undefine", "conf"])?.ok().map(drop)
}

fn console(h: &Host) -> Result<(), Failed> {
    // It needs a terminal, and shows what comes from then on.
    let show = r#"
        mkfifo typed; exec 9<>typed; rm typed
        script -qec 'virsh --quiet console conf' console.txt <&9 >/dev/null 2>&1 & shown=$!
        trap 'kill $shown' EXIT
        until grep -q heard-by-hand console.txt 2>/dev/null; do
          kill -0 $shown; "$0" exec -u root conf -- sh -c 'echo heard-by-hand >/dev/ttyS0'
        done"#;
    let program = h.program().to_owned();
    run(
        h.command("timeout")
            .args(["60", "sh", "-euc", show])
            .arg(program),
        b"",
    )?
    .ok()
    .map(drop)
}

fn unreachable(h: &Host) -> Result<(), Failed> {
    let boot = || h.sh("conf", "cat /proc/sys/kernel/random/boot_id");
    let before = boot()?;
    h.without_libvirt(|uri| {
        same("a command meanwhile", boot()?, before.clone())?;
        let mut doctor = h.codchi_command(&["doctor"]);
        let told = run(doctor.env("LIBVIRT_DEFAULT_URI", uri), b"")?
            .exits(3)?
            .text();
        require!(
            told.contains("does not answer"),
            "doctor says nothing: {told}"
        );
        Ok(())
    })?;
    same("the machine", boot()?, before)?;
    same("domains", domains(h)?, "conf".into())?;
    h.codchi(&["stop", "conf"])?.ok()?;
    h.without_libvirt(|uri| {
        let mut start = h.codchi_command(&["start", "conf"]);
        let done = run(start.env("LIBVIRT_DEFAULT_URI", uri), b"")?.exits(3)?;
        require!(
            done.err.contains("libvirt does not answer at") && done.err.contains("codchi doctor"),
            "it is not told: {}",
            done.err
        );
        Ok(())
    })?;
    h.codchi(&["start", "conf"])?.ok().map(drop)
}

fn supervisor_killed(h: &Host) -> Result<(), Failed> {
    h.codchi(&["start", "conf"])?.ok()?;
    let told = h.home.join("run/codchi/machines/conf/supervisor.json");
    let told: Value = serde_json::from_str(&codchi_fs::read_to_string(told)?)?;
    let pid = told["pid"]
        .as_i64()
        .and_then(|p| rustix::process::Pid::from_raw(p as i32));
    rustix::process::kill_process(pid.ok_or("no process")?, rustix::process::Signal::KILL)?;
    eventually("libvirt has no such machine", || Ok(domains(h)?.is_empty()))?;
    let status = h.status("conf")?;
    same("state", status["state"].as_str(), Some("failed"))?;
    let why = status["reason"].as_str().unwrap_or_default();
    require!(why.contains("ended from outside"), "reason: {why}");
    same("a command", h.sh("conf", "echo here")?, "here".into())
}
