//! What the Nix modules emit is what the program reads. `tests/nix/run` renders the same files with `nix eval` and
//! fails when they are stale.

use codchi_core::manifest::{MANIFEST_VERSION, Manifest, Needs};
use serde_json::Value;

const MANIFEST: &str = include_str!("../../../../tests/nix/cases/manifest.json");
const NEEDS: &str = include_str!("../../../../tests/nix/cases/needs.json");

#[test]
fn a_manifest_from_nix_is_read_and_nothing_of_it_is_lost() {
    let manifest: Manifest = serde_json::from_str(MANIFEST).expect("the shape of manifest.rs");
    assert_eq!(manifest.version, MANIFEST_VERSION);
    assert_eq!(manifest.driver, "native");
    assert_eq!(manifest.resources.memory, Some(8 << 30));
    assert_eq!(manifest.needs.ports["80"].host, 8080);

    let emitted: Value = serde_json::from_str(MANIFEST).expect("JSON");
    assert_eq!(serde_json::to_value(&manifest).expect("serialises"), emitted);
}

#[test]
fn needs_from_nix_are_read_and_nothing_of_them_is_lost() {
    let needs: Needs = serde_json::from_str(NEEDS).expect("the shape of manifest.rs");
    assert_eq!(needs.required_capabilities, ["gpu", "kvm"]);

    let emitted: Value = serde_json::from_str(NEEDS).expect("JSON");
    assert_eq!(serde_json::to_value(&needs).expect("serialises"), emitted);
}
