//! What a machine is never without, whatever its engine settings say.
//!
//! The settings come out of the built system, where a module of a stranger can put any file. They are rendered by a driver's
//! `host.nix`, and what that renders passes; settings that take more of the host do not. What a person grants beyond (host
//! folders, devices) is never in the settings, but in the launch.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::spec::{Mount, MountKind, Spec};

/// Memory, made before a machine begins.
const RUN: &str = "/run";
/// Codchi's own programs.
const BIN: &str = "/run/codchi/bin";

/// What may be bound from the host, where, and the options without which it may not.
const BINDS: [(&str, &str, &[&str]); 6] = [
    ("@store@", "/nix/store", &["ro", "nosuid", "nodev"]),
    ("@endpoint@", "/nix/var/nix/daemon-socket", &["ro", "nosuid", "nodev"]),
    ("@bin@", BIN, &["ro", "nosuid", "nodev"]),
    ("@host@", "/run/codchi/host", &["ro", "nosuid", "nodev"]),
    ("@agent@", "/run/codchi/agent", &["nosuid", "nodev"]),
    ("@notify@", "/run/codchi/notify", &["nosuid", "nodev"]),
];

/// Devices that a machine may have without a person's leave.
const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"];

/// Capabilities that root of a machine never has.
const DROPPED: [&str; 11] = [
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_TIME",
    "CAP_WAKE_ALARM",
];

/// System calls that are always refused.
const REFUSED: [&str; 14] = [
    "acct",
    "bpf",
    "create_module",
    "delete_module",
    "finit_module",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "open_by_handle_at",
    "perf_event_open",
    "quotactl",
    "quotactl_fd",
    "swapon",
    "userfaultfd",
];

/// System calls that the kernel always seems to lack.
const ABSENT: [&str; 6] =
    ["add_key", "io_uring_enter", "io_uring_register", "io_uring_setup", "keyctl", "request_key"];

/// Families of sockets that the kernel always seems to lack.
const FAMILIES: [&str; 1] = ["AF_VSOCK"];

/// Refuses engine settings (variables not yet replaced) that take more of the host than this driver gives, and puts in what
/// a machine never goes without: a system that an earlier Codchi built knows nothing of what was added since.
///
/// # Errors
/// [`Error::Settings`] that names what they ask for.
pub fn settled(engine: &Value) -> Result<Value> {
    let mut spec: Spec =
        serde_json::from_value(engine.clone()).map_err(|e| Error::Settings(e.to_string()))?;
    check(&spec)?;
    if let Some(config) = &mut spec.config {
        config.settle(&REFUSED, &ABSENT, &DROPPED)?;
    }
    let filter = &mut spec.seccomp;
    if filter.errno == 0 {
        return Err(Error::Settings("refused system calls would answer that they were done".into()));
    }
    let known: Vec<String> = filter.deny.iter().chain(&filter.absent).cloned().collect();
    add(&mut filter.deny, REFUSED.iter().filter(|c| !known.iter().any(|k| k == *c)));
    add(&mut filter.absent, ABSENT.iter().filter(|c| !known.iter().any(|k| k == *c)));
    add(&mut filter.families, FAMILIES.iter());
    add(&mut spec.capabilities.drop, DROPPED.iter());
    serde_json::to_value(&spec).map_err(|e| Error::Settings(e.to_string()))
}

fn add<'a>(list: &mut Vec<String>, names: impl Iterator<Item = &'a &'a str>) {
    for n in names {
        if !list.iter().any(|l| l == n) {
            list.push((*n).into());
        }
    }
}

fn check(spec: &Spec) -> Result<()> {
    let refuse = |what: String| Err(Error::Settings(format!("{what}, which no machine of this driver may")));
    if spec.root.as_os_str() != "@root@" {
        return refuse(format!("the root file system is `{}`", spec.root.display()));
    }
    for m in spec.mounts.iter().filter(|m| m.kind == MountKind::Bind) {
        let source = m.source.clone().unwrap_or_default();
        let known = BINDS.iter().find(|(s, at, _)| source.as_os_str() == *s && m.target == Path::new(at));
        let Some((_, _, needed)) = known else {
            return refuse(format!(
                "`{}` of the host is mounted at `{}`",
                source.display(),
                m.target.display()
            ));
        };
        let has = |o: &str| m.options.iter().any(|x| x == o);
        if let Some(o) = needed.iter().find(|o| !has(o)) {
            return refuse(format!("`{}` is mounted without `{o}`", source.display()));
        }
        if has("rw") && needed.contains(&"ro") {
            return refuse(format!("`{}` is mounted with `rw`", source.display()));
        }
    }
    // The program that a runtime is told to start is found where the machine cannot put another.
    if spec.config.is_some() {
        let known = [RUN, "/run/codchi/credentials"];
        let stray =
            |m: &&Mount| m.kind != MountKind::Bind && !known.iter().any(|at| m.target == Path::new(at));
        if let Some(m) = spec.mounts.iter().find(stray) {
            return refuse(format!("something is mounted at `{}`", m.target.display()));
        }
        let at = |target: &str| spec.mounts.iter().position(|m| m.target == Path::new(target));
        if !matches!((at(RUN), at(BIN)), (Some(run), Some(bin)) if run < bin) {
            return refuse(format!("`{BIN}` is not mounted in `{RUN}`"));
        }
    }
    let mut devices = spec.devices.iter().map(|d| d.trim_end_matches('?'));
    if let Some(d) = devices.find(|d| !DEVICES.contains(d)) {
        return refuse(format!("the device `/dev/{d}` is taken"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        let bind =
            |s: &str, t: &str, o: &[&str]| json!({"kind": "bind", "source": s, "target": t, "options": o});
        let ro = &["ro", "nosuid", "nodev"];
        json!({
            "version": 1, "hostName": "@name@", "root": "@root@", "init": ["@toplevel@/init"],
            "mounts": [bind("@store@", "/nix/store", ro), bind("@agent@", "/run/codchi/agent", &["nosuid", "nodev"]),
                {"kind": "tmpfs", "target": "/run", "outer": true}],
            "devices": ["null", "fuse?"],
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut v = good();
        change(&mut v);
        settled(&v).unwrap_err().to_string()
    }

    #[test]
    fn what_the_driver_renders_passes() {
        settled(&good()).unwrap();
    }

    #[test]
    fn what_a_machine_never_goes_without_is_put_in_once() {
        let v = settled(&good()).unwrap();
        assert_eq!(settled(&v).unwrap(), v);
        let spec: Spec = serde_json::from_value(v).unwrap();
        assert_eq!(spec.capabilities.drop, DROPPED);
        assert_eq!(spec.seccomp.deny, REFUSED);
        assert_eq!(spec.seccomp.absent, ABSENT);
        assert_eq!(spec.seccomp.families, FAMILIES);
        let mut other = good();
        other["seccomp"] = json!({"deny": ["keyctl", "mount"], "absent": ["bpf"]});
        let spec: Spec = serde_json::from_value(settled(&other).unwrap()).unwrap();
        assert!(spec.seccomp.deny.contains(&"mount".into()) && !spec.seccomp.deny.contains(&"bpf".into()));
        assert!(!spec.seccomp.absent.contains(&"keyctl".into()));
    }

    #[test]
    fn settings_that_take_more_of_the_host_are_refused() {
        let evil =
            json!({"kind": "bind", "source": "/", "target": "/host", "options": ["ro", "nosuid", "nodev"]});
        let said = refused(|v| v["mounts"].as_array_mut().unwrap().push(evil));
        assert!(said.contains("`/` of the host is mounted at `/host`"), "{said}");
        assert!(refused(|v| v["root"] = json!("/")).contains("root file system"));
        assert!(refused(|v| v["root"] = json!("@root@/../..")).contains("root file system"));
        assert!(refused(|v| v["mounts"][0]["source"] = json!("@store@/..")).contains("@store@/.."));
        assert!(refused(|v| v["mounts"][0]["options"] = json!(["nosuid", "nodev"])).contains("without `ro`"));
        let both = json!(["ro", "rw", "nosuid", "nodev"]);
        assert!(refused(|v| v["mounts"][0]["options"] = both).contains("with `rw`"));
        assert!(refused(|v| v["mounts"][1]["target"] = json!("/run/codchi/bin")).contains("@agent@"));
        for device in ["mem", "kvm?", "nvidia0?"] {
            assert!(refused(|v| v["devices"] = json!([device])).contains("/dev/"), "{device}");
        }
        assert!(refused(|v| v["devices"] = json!(["dri/../sda"])).contains("/dev/dri/../sda"));
        assert!(refused(|v| v["seccomp"] = json!({"errno": 0})).contains("answer"));
        let unknown = refused(|v| v["privileged"] = json!(true));
        assert!(unknown.contains("privileged"), "{unknown}");
    }
}
