//! What an instance is never without, whatever the settings of the built system say.
//!
//! The settings come out of the built system, where a module of a stranger can put any file. What `lib/instance.nix`
//! renders passes, and what a person granted (`driver.settings`); anything else could open the whole host to a machine.

use std::collections::BTreeMap;
use std::path::Path;

use codchi_runtime::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::dialect::Dialect;

/// Engine settings of a machine, as `host.nix` renders them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    version: u32,
    /// The instance's configuration.
    pub config: BTreeMap<String, String>,
    /// Its devices.
    pub devices: Map<String, Value>,
    /// Most bytes of its root file system.
    #[serde(default)]
    pub disk: Option<u64>,
}

/// How PID 1 is started, and how systemd is asked to power off a container.
const RAW: &str = "lxc.init.cmd = /dev/.codchi/bin/codchi-boot --from /dev/.codchi @toplevel@/init\nlxc.signal.halt = SIGRTMIN+4";
/// What is mounted from the host, and whether its mounts are read-only.
const MOUNTS: [(&str, &str, &str); 5] = [
    ("store", "@store@", "/nix/store"),
    ("endpoint", "@endpoint@", "/nix/var/nix/daemon-socket"),
    ("bin", "@bin@", "/dev/.codchi/bin"),
    ("host", "@host@", "/dev/.codchi/host"),
    ("notify", "@notify@", "/dev/.codchi/notify"),
];
/// System calls that are refused, and the error they answer with: that of a refusal, or that of a kernel which lacks them.
const CALLS: [(&str, u32); 19] = [
    ("acct", 1),
    ("bpf", 1),
    ("delete_module", 1),
    ("finit_module", 1),
    ("init_module", 1),
    ("kexec_file_load", 1),
    ("kexec_load", 1),
    ("open_by_handle_at", 1),
    ("perf_event_open", 1),
    ("quotactl", 1),
    ("swapoff", 1),
    ("swapon", 1),
    ("userfaultfd", 1),
    ("add_key", 38),
    ("io_uring_enter", 38),
    ("io_uring_register", 38),
    ("io_uring_setup", 38),
    ("keyctl", 38),
    ("request_key", 38),
];

/// Lines that take AF_VSOCK away, which no network namespace bounds, as if the kernel lacked it; and the old call whose arguments lie
/// where no filter looks.
const FAMILIES: [&str; 2] = ["socket errno 97 [0,40,SCMP_CMP_MASKED_EQ,4294967295]", "socketcall errno 38"];
/// What an earlier Codchi rendered, which looked at more of the register than the kernel does.
const EARLIER: &str = "socket errno 97 [0,40,SCMP_CMP_EQ]";

/// Reads engine settings (variables not yet replaced), refuses those that take more of the host than this driver gives and a
/// person granted, and puts in what an instance never goes without.
pub fn settled(dialect: &Dialect, engine: &Value, granted: &Value) -> Result<Settings> {
    let mut settings: Settings =
        serde_json::from_value(engine.clone()).map_err(|e| Error::Settings(e.to_string()))?;
    if settings.version != 1 {
        return Err(Error::Settings(format!("version {} is not supported, only 1", settings.version)));
    }
    let refuse = |what: String| Err(Error::Settings(format!("{what}, which no machine of this driver may")));
    for (key, value) in &settings.config {
        if granted["config"][key] != value.as_str() && !is_known(dialect, key, value) {
            return refuse(format!("the instance's configuration sets `{key}`"));
        }
    }
    for (name, device) in &settings.devices {
        if granted["devices"].get(name) != Some(device) && !known_device(dialect, name, device) {
            return refuse(format!("the instance has a device `{name}` of the host"));
        }
    }
    let never = [("security.privileged", "false"), (dialect.guest_api, "false")];
    for (key, value) in never {
        if granted["config"].get(key).is_none() {
            settings.config.insert(key.into(), value.into());
        }
    }
    let calls = settings.config.entry("security.syscalls.deny".into()).or_default();
    let given = calls.clone();
    let mut add = |line: &str| {
        if !calls.is_empty() {
            calls.push('\n');
        }
        calls.push_str(line);
    };
    let has = |call: &str| given.lines().any(|l| l.split_whitespace().next() == Some(call));
    for (call, errno) in CALLS.into_iter().filter(|(call, _)| !has(call)) {
        add(&format!("{call} errno {errno}"));
    }
    for line in FAMILIES.into_iter().filter(|line| !given.lines().any(|l| l == *line)) {
        add(line);
    }
    Ok(settings)
}

/// Whether a device is one by which an instance has something of this host.
pub fn is_mount(name: &str) -> bool {
    MOUNTS.iter().any(|(n, _, _)| *n == name)
}

/// How PID 1 is started where nothing of this host is mounted, in place of how it is elsewhere.
pub fn apart(lines: &str, toplevel: &Path, boot: &Path) -> Option<String> {
    let toplevel = toplevel.display();
    if lines != RAW.replace("@toplevel@", &toplevel.to_string()) {
        return None;
    }
    let (_, rest) = RAW.split_once('\n')?;
    Some(format!("lxc.init.cmd = {} --apart {toplevel}/init\n{rest}", boot.display()))
}

fn is_known(dialect: &Dialect, key: &str, value: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let boolean = matches!(value, "true" | "false");
    match key {
        "raw.lxc" => value == RAW,
        "environment.NOTIFY_SOCKET" => value == "/run/codchi/notify/socket",
        "limits.memory" | "limits.processes" | "limits.kernel.nproc" => digits(value),
        "limits.cpu.allowance" => value.strip_suffix("ms/100ms").is_some_and(digits),
        "security.nesting" => boolean,
        "security.privileged" | "boot.autostart" => value == "false",
        // The engine's own list answers that calls are missing, so ours stands in its place.
        "security.syscalls.deny_default" => boolean,
        "security.syscalls.deny" => refuses_only(value),
        _ => key == dialect.guest_api && value == "false",
    }
}

/// Whether every line takes a call away: one that `allow`s or answers that it was done would give something.
fn refuses_only(list: &str) -> bool {
    list.lines().filter(|line| !FAMILIES.contains(line) && *line != EARLIER).all(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["reject_force_umount"] => true,
            [_, "errno", n] => n.parse::<u32>().is_ok_and(|n| n > 0),
            _ => false,
        }
    })
}

fn known_device(dialect: &Dialect, name: &str, device: &Value) -> bool {
    let Some((_, source, path)) = MOUNTS.iter().find(|(n, _, _)| *n == name) else { return false };
    let mut known = json!({ "type": "disk", "source": source, "path": path, "readonly": "true" });
    if name == "store" && dialect.shifts {
        known["shift"] = json!("true");
    }
    *device == known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incus::DIALECT as INCUS;

    /// What `host.nix` renders; `tests/nix/suite` fails when it is stale.
    const RENDERED: &str = include_str!("../../../../../tests/nix/cases/engine-incus.json");

    fn rendered() -> Value {
        serde_json::from_str(RENDERED).unwrap()
    }

    /// What that fixture's module asks for.
    fn granted() -> Value {
        json!({ "config": { "limits.cpu.priority": "5" } })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut engine = rendered();
        change(&mut engine);
        settled(&INCUS, &engine, &granted()).unwrap_err().to_string()
    }

    #[test]
    fn what_the_driver_renders_passes_and_what_was_not_granted_does_not() {
        let engine = rendered();
        settled(&INCUS, &engine, &granted()).unwrap();
        let said = settled(&INCUS, &engine, &Value::Null).unwrap_err().to_string();
        assert!(said.contains("limits.cpu.priority"), "{said}");
    }

    #[test]
    fn settings_that_take_more_of_the_host_are_refused() {
        let root = json!({ "type": "disk", "source": "/", "path": "/host" });
        assert!(refused(|v| v["devices"]["host-root"] = root.clone()).contains("`host-root`"));
        let kvm = json!({ "type": "unix-char", "source": "/dev/kvm", "path": "/dev/kvm" });
        assert!(refused(|v| v["devices"]["kvm"] = kvm).contains("`kvm`"));
        assert!(refused(|v| v["devices"]["store"]["source"] = json!("/")).contains("`store`"));
        assert!(refused(|v| v["devices"]["store"]["readonly"] = json!("false")).contains("`store`"));
        assert!(
            refused(|v| v["config"]["security.privileged"] = json!("true")).contains("security.privileged")
        );
        assert!(refused(|v| v["config"]["raw.idmap"] = json!("both 0 0")).contains("raw.idmap"));
        let raw = json!(format!("{RAW}\nlxc.mount.entry = / host none bind"));
        assert!(refused(|v| v["config"]["raw.lxc"] = raw).contains("raw.lxc"));
        assert!(
            refused(|v| v["config"]["security.syscalls.deny"] = json!("bpf allow")).contains("syscalls.deny")
        );
        // One that takes another family away stands for none that is to go.
        let other = json!("socket errno 97 [0,41,SCMP_CMP_EQ]");
        assert!(refused(|v| v["config"]["security.syscalls.deny"] = other).contains("syscalls.deny"));
    }

    #[test]
    fn what_an_instance_never_goes_without_is_put_in() {
        let mut engine = rendered();
        engine["config"] = json!({ "security.syscalls.deny": "bpf errno 38" });
        let settings = settled(&INCUS, &engine, &granted()).unwrap();
        assert_eq!(settings.config["security.privileged"], "false");
        let calls = &settings.config["security.syscalls.deny"];
        assert!(calls.starts_with("bpf errno 38\n") && !calls.contains("bpf errno 1"), "{calls}");
        assert!(calls.contains("io_uring_setup errno 38"), "{calls}");
        for line in FAMILIES {
            assert!(calls.lines().any(|l| l == line), "{line} is not in {calls}");
        }
    }
}
