//! What `drivers/oci/host.nix` renders is what a supervisor makes a bundle of, and settings that take more of the host are refused.
//! `tests/nix/run` renders the same file with `nix eval` and fails when it is stale.

#![allow(clippy::expect_used, reason = "a helper of tests")]

use std::path::Path;

use codchi_runtime::guard;
use codchi_runtime::spec::Launch;
use serde_json::{Value, json};

const ENGINE: &str = include_str!("../../../../tests/nix/cases/engine-oci.json");

fn engine() -> Value {
    serde_json::from_str(ENGINE).expect("settings")
}

fn settled(change: impl FnOnce(&mut Value)) -> Result<Value, String> {
    let mut engine = engine();
    change(&mut engine["config"]);
    guard::settled(&engine).map_err(|e| e.to_string())
}

fn refused(change: impl FnOnce(&mut Value)) -> String {
    settled(change).expect_err("it was taken")
}

fn push(list: &mut Value, value: Value) {
    list.as_array_mut().expect("a list").push(value);
}

#[test]
fn what_the_driver_renders_passes_and_every_variable_is_replaced() {
    let settled = settled(|_| {}).expect("settings that pass");
    assert_eq!(guard::settled(&settled).expect("settings that pass"), settled);
    let launch: Launch = serde_json::from_value(json!({
        "version": 1,
        "name": "demo",
        "engine": settled,
        "root": "/data/machines/demo/root",
        "store": "/data/store/nix/store",
        "toplevel": "/nix/store/00000000000000000000000000000000-nixos-system",
        "bin": "/data/bin",
        "consoleLog": "/state/console.log",
    }))
    .expect("a launch");
    let spec = launch.spec(Path::new("/run/codchi/machines/demo")).expect("settings the supervisor takes");
    let text = serde_json::to_string(&spec).expect("serialises");
    assert!(!text.contains('@'), "{text}");
    let limits = spec.config.expect("a configuration").linux.resources;
    assert_eq!(limits.memory.limit, Some(2 << 30));
    assert_eq!((limits.cpu.quota, limits.cpu.period), (Some(150_000), Some(100_000)));
    assert_eq!(limits.pids.limit, Some(4096));
}

#[test]
fn settings_that_take_more_of_the_host_are_refused() {
    let mount = |kind: &str, options: Value| json!({"destination": "/host", "type": kind, "source": "/", "options": options});
    let said = refused(|c| push(&mut c["mounts"], mount("bind", json!([]))));
    assert!(said.contains("`/` (bind) is mounted at `/host`"), "{said}");
    for option in ["bind", "rbind"] {
        assert!(refused(|c| push(&mut c["mounts"], mount("tmpfs", json!([option])))).contains("/host"));
    }
    assert!(refused(|c| c["mounts"][0]["uidMappings"] = json!([])).contains("uidMappings"));
    assert!(refused(|c| c["root"]["path"] = json!("/")).contains("root file system"));
    assert!(refused(|c| c["hooks"] = json!({"prestart": [{"path": "/bin/sh"}]})).contains("hooks"));
    assert!(refused(|c| c["annotations"] = json!({})).contains("annotations"));
    assert!(refused(|c| c["process"]["apparmorProfile"] = json!("")).contains("apparmorProfile"));
    let said = refused(|c| c["process"]["args"][0] = json!("/proc/self/exe"));
    assert!(said.contains("`/proc/self/exe --supervised @toplevel@/init`"), "{said}");
    let alone = json!(["/run/codchi/bin/codchi-boot", "@toplevel@/init"]);
    assert!(refused(|c| c["process"]["args"] = alone).contains("first process"));
    let hides = json!({"destination": "/run/codchi", "type": "tmpfs", "source": "tmpfs", "options": []});
    assert!(refused(|c| push(&mut c["mounts"], hides)).contains("/run/codchi"));
    assert!(refused(|c| c["mounts"][0]["destination"] = json!("/dev/../run")).contains("/dev/../run"));
    assert!(refused(|c| c["process"]["cwd"] = json!("/proc/self/fd/7")).contains("in `/proc/self/fd/7`"));
    let spaces = |c: &mut Value, f: &dyn Fn(&mut Vec<Value>)| {
        f(c["linux"]["namespaces"].as_array_mut().expect("a list"));
    };
    for kind in ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"] {
        let said = refused(|c| spaces(c, &|all| all.retain(|n| n["type"] != kind)));
        assert!(said.contains(&format!("no {kind} namespace")), "{said}");
    }
    assert!(refused(|c| spaces(c, &|all| all[0]["path"] = json!("/proc/1/ns/user"))).contains("path"));
    let everyone = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    assert!(refused(|c| c["linux"]["uidMappings"] = everyone.clone()).contains("chosen"));
    assert!(refused(|c| c["linux"]["gidMappings"] = everyone.clone()).contains("chosen"));
    assert!(refused(|c| c["linux"]["cgroupsPath"] = json!("/")).contains("chosen"));
    assert!(refused(|c| c["linux"]["devices"] = json!([])).contains("devices"));
    assert!(refused(|c| c["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_LOG")).contains("answers"));
    let calls = |c: &mut Value, action: &str, errno: u32| {
        let rule = json!({"names": ["bpf"], "action": action, "errnoRet": errno});
        push(&mut c["linux"]["seccomp"]["syscalls"], rule);
    };
    assert!(refused(|c| calls(c, "SCMP_ACT_ALLOW", 1)).contains("answers"));
    assert!(refused(|c| calls(c, "SCMP_ACT_ERRNO", 0)).contains("answers"));
}

/// The program that is started is looked up where only Codchi mounts.
#[test]
fn what_is_started_cannot_be_put_elsewhere() {
    let refused = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut engine = engine();
        change(engine["mounts"].as_array_mut().expect("a list"));
        guard::settled(&engine).expect_err("it was taken").to_string()
    };
    let of = |all: &[Value], target: &str| all.iter().position(|m| m["target"] == target).expect("a mount");
    for gone in ["/run", "/run/codchi/bin"] {
        assert!(refused(&|all| drop(all.remove(of(all, gone)))).contains("/run/codchi/bin"), "{gone}");
    }
    assert!(
        refused(&|all| all.push(json!({"kind": "tmpfs", "target": "/run/codchi/bin", "outer": true})))
            .contains("at `/run/codchi/bin`")
    );
    let said = refused(&|all| {
        let at = of(all, "/run/codchi/agent");
        all[at]["target"] = json!("/run/codchi/bin");
    });
    assert!(said.contains("`@agent@` of the host"), "{said}");
}

#[test]
fn what_a_machine_never_goes_without_is_put_in() {
    let rendered = settled(|_| {}).expect("settings that pass");
    let without = settled(|c| c["linux"]["seccomp"]["syscalls"] = json!([])).expect("settings that pass");
    let answers = |engine: &Value| {
        let rules = engine["config"]["linux"]["seccomp"]["syscalls"].as_array().expect("rules").clone();
        let mut all: Vec<(String, u64, Value)> = Vec::new();
        for rule in &rules {
            for name in rule["names"].as_array().expect("names") {
                let name = name.as_str().expect("a name").to_owned();
                all.push((name, rule["errnoRet"].as_u64().expect("an error"), rule["args"].clone()));
            }
        }
        all.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        all
    };
    let (rendered_answers, put_in) = (answers(&rendered), answers(&without));
    assert!(put_in.len() > 20);
    let lacks: Vec<_> = put_in.iter().filter(|a| !rendered_answers.contains(a)).collect();
    assert!(lacks.is_empty(), "{lacks:?}");
    let more = settled(|c| {
        for set in ["bounding", "effective", "permitted"] {
            push(&mut c["process"]["capabilities"][set], json!("CAP_SYS_MODULE"));
        }
    });
    assert_eq!(more.expect("settings that pass"), rendered);
}
