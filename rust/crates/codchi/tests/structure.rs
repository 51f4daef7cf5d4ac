//! The structure of the workspace is what its README says.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Layers from top to bottom; a crate may depend on those in lower layers only.
const LAYERS: &[&[&str]] = &[
    &["codchi", "codchi-conformance", "codchi-attacks", "codchi-failures", "codchi-fuzz", "codchi-bench"],
    &["codchi-drivers", "codchi-embed"],
    &["codchi-store"],
    &["codchi-nix", "codchi-runtime", "codchi-base"],
    &["codchi-debian", "codchi-boot", "codchi-agent", "codchi-files", "codchi-secrets", "codchi-attempt"],
    &["codchi-core"],
    &["codchi-fs", "codchi-sys"],
];

fn metadata() -> serde_json::Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline", "--manifest-path"])
        .arg(workspace().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn dependencies_point_downwards() {
    let layer: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(i, names)| names.iter().map(move |n| (*n, i))).collect();
    let meta = metadata();
    let packages = meta["packages"].as_array().unwrap();
    assert!(packages.len() >= 12);
    for p in packages {
        let name = p["name"].as_str().unwrap();
        let own = layer
            .get(name)
            .unwrap_or_else(|| panic!("`{name}` has no layer: add it to this test and to rust/README.md"));
        for d in p["dependencies"].as_array().unwrap() {
            let dep = d["name"].as_str().unwrap();
            if let (Some(other), false) = (layer.get(dep), d["kind"] == "dev") {
                assert!(other > own, "`{name}` depends on `{dep}`, which is not below it");
            }
        }
    }
}

#[test]
fn every_crate_has_a_line_in_the_readme() {
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    for p in metadata()["packages"].as_array().unwrap() {
        let name = p["name"].as_str().unwrap();
        assert!(
            name == "codchi-conformance" || readme.contains(&format!("| `{name}` |")),
            "`{name}` is not in rust/README.md"
        );
    }
}

#[test]
fn licences_are_ours() {
    for p in metadata()["packages"].as_array().unwrap() {
        assert_eq!(p["license"], "MIT OR Apache-2.0", "{}", p["name"]);
    }
}
