//! The engine settings that `drivers/native/host.nix` renders are ones this runtime starts a machine with.
//! `tests/nix/run` renders the same file with `nix eval` and fails when it is stale.

#![allow(clippy::expect_used, reason = "a helper of tests")]

use std::collections::BTreeSet;
use std::path::Path;

use codchi_core::manifest::Manifest;
use codchi_runtime::spec::{Launch, MountKind, Spec};

const MANIFEST: &str = include_str!("../../../../tests/nix/cases/manifest.json");

fn spec() -> Spec {
    let manifest: Manifest = serde_json::from_str(MANIFEST).expect("a manifest");
    let launch: Launch = serde_json::from_value(serde_json::json!({
        "version": 1,
        "name": "demo",
        "engine": manifest.engine,
        "root": "/data/machines/demo/root",
        "store": "/data/store/nix/store",
        "toplevel": "/nix/store/00000000000000000000000000000000-nixos-system",
        "bin": "/data/bin",
        "consoleLog": "/state/console.log",
    }))
    .expect("a launch");
    launch.spec(Path::new("/run/codchi/machines/demo")).expect("settings the runtime takes")
}

#[test]
fn every_variable_is_replaced() {
    let text = serde_json::to_string(&spec()).expect("serialises");
    assert!(!text.contains('@'), "{text}");
}

#[test]
fn the_store_is_read_only_and_idmapped_and_what_systemd_needs_is_mounted_once() {
    let spec = spec();
    let store = spec.mounts.iter().find(|m| m.target == Path::new("/nix/store")).expect("a store");
    assert_eq!(store.kind, MountKind::Bind);
    assert!(store.idmap);
    assert!(["ro", "nosuid", "nodev"].iter().all(|flag| store.options.iter().any(|o| o == flag)));

    let targets: BTreeSet<&Path> = spec.mounts.iter().map(|m| m.target.as_path()).collect();
    assert_eq!(targets.len(), spec.mounts.len(), "two mounts at one place");
    for needed in ["/proc", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/dev/shm", "/run"] {
        assert!(targets.contains(Path::new(needed)), "{needed}");
    }
}

#[test]
fn a_mount_comes_after_the_one_it_lies_in() {
    let spec = spec();
    for (i, mount) in spec.mounts.iter().enumerate() {
        for later in &spec.mounts[i + 1..] {
            assert!(
                !mount.target.starts_with(&later.target),
                "{} would be covered by {}",
                mount.target.display(),
                later.target.display()
            );
        }
    }
}

#[test]
fn limits_of_the_module_reach_the_engine() {
    let resources = spec().resources;
    assert_eq!((resources.memory, resources.cpus, resources.tasks), (Some(8 << 30), Some(1.5), Some(4096)));
}
