//! What is shown of libvirt alone: what its own tools do to a machine.

use libtest_mimic::Failed;
use serde_json::Value;

use crate::cases::{Case, eventually, same};
use crate::host::{Done, Host, run};
use crate::require;

/// The cases. They use the machine `conf` and leave it running.
pub const ALL: &[Case] = &[
    ("libvirt_shows_a_machine_and_no_secret", shown),
    ("libvirt_a_machine_that_its_tools_end_is_off", ended_by_hand),
    ("libvirt_a_domain_of_another_is_left_alone", of_another),
    ("libvirt_that_does_not_answer_is_named", unreachable),
    (
        "libvirt_a_machine_ends_with_whoever_looks_after_it",
        supervisor_killed,
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
    let person = codchi_fs::read_to_string("/proc/self/status")?;
    require!(
        uid.is_some_and(|u| u != "0") && uid.is_some(),
        "QEMU is root: {status}, {person}"
    );
    // All of them are subordinate ids.
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

fn unreachable(h: &Host) -> Result<(), Failed> {
    h.without_libvirt(|uri| {
        let codchi =
            |args: &[&str]| run(h.codchi_command(args).env("LIBVIRT_DEFAULT_URI", uri), b"");
        let done = codchi(&["start", "conf"])?.exits(3)?;
        require!(
            done.err.contains("libvirt does not answer at"),
            "it is not told: {}",
            done.err
        );
        let told = codchi(&["doctor"])?.exits(3)?.text();
        require!(
            told.contains("does not answer"),
            "doctor says nothing: {told}"
        );
        Ok(())
    })
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
