//! The folder of systemd units that a machine's modules define (systemd.unit(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::package::link;
use super::tree::{Entry, put};
use crate::{Error, Result};

/// One unit.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unit {
    text: String,
    enable: bool,
    /// A drop-in always, not only where a package has a unit of that name.
    drop_in: bool,
    #[serde(default)]
    wanted_by: Vec<String>,
    #[serde(default)]
    required_by: Vec<String>,
    #[serde(default)]
    upheld_by: Vec<String>,
    #[serde(default)]
    aliases: Vec<String>,
}

/// Request of `units`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    units: BTreeMap<String, Unit>,
    /// Packages whose units are taken.
    packages: Vec<PathBuf>,
    /// `system` or `user`.
    kind: String,
    /// Further links, by name.
    links: BTreeMap<String, PathBuf>,
}

/// Writes the folder.
pub fn run(out: &Path, request: &Request) -> Result<()> {
    codchi_fs::create_dir_all(out)?;
    let known = packaged(out, request)?;
    for (name, unit) in &request.units {
        if name.contains('/') || name.is_empty() {
            return Err(Error::Usage(format!("`{name}` is not the name of a unit")));
        }
        if !unit.enable {
            replace(out, name, Path::new("/dev/null"))?;
            continue;
        }
        let text = Entry::Text { text: unit.text.clone(), executable: false };
        if unit.drop_in || known.contains(name) {
            put(out, &format!("{name}.d/overrides.conf"), &text)?;
        } else {
            codchi_fs::remove_if_exists(out.join(name))?;
            put(out, name, &text)?;
        }
        for (suffix, by) in
            [("wants", &unit.wanted_by), ("requires", &unit.required_by), ("upholds", &unit.upheld_by)]
        {
            for other in by {
                codchi_fs::create_dir_all(out.join(format!("{other}.{suffix}")))?;
                replace(out, &format!("{other}.{suffix}/{name}"), &Path::new("..").join(name))?;
            }
        }
        for alias in &unit.aliases {
            replace(out, alias, Path::new(name))?;
        }
    }
    for (name, target) in &request.links {
        replace(out, name, target)?;
    }
    Ok(())
}

fn replace(out: &Path, name: &str, target: &Path) -> Result<()> {
    codchi_fs::remove_if_exists(out.join(name))?;
    link(target, &out.join(name))
}

/// Links the units of packages that are not Debian's (those are below `/usr`), and returns the names of all.
fn packaged(out: &Path, request: &Request) -> Result<BTreeSet<String>> {
    let mut known = BTreeSet::new();
    for package in &request.packages {
        let in_usr = package.join(super::CLOSURE).exists();
        for folder in ["lib/systemd", "etc/systemd"] {
            let dir = package.join(folder).join(&request.kind);
            if !dir.is_dir() {
                continue;
            }
            for e in codchi_fs::read_dir(&dir)? {
                let name = e.file_name().to_string_lossy().into_owned();
                known.insert(name.clone());
                if in_usr {
                    continue;
                }
                if e.path().is_dir() {
                    codchi_fs::create_dir_all(out.join(&name))?;
                    for f in codchi_fs::read_dir(e.path())? {
                        replace(out, &format!("{name}/{}", f.file_name().to_string_lossy()), &f.path())?;
                    }
                } else {
                    replace(out, &name, &e.path())?;
                }
            }
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_a_package_has_becomes_a_drop_in_and_a_disabled_one_is_masked() {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("p");
        codchi_fs::create_dir_all(package.join("lib/systemd/system")).unwrap();
        codchi_fs::write(package.join("lib/systemd/system/known.service"), "[Service]\n").unwrap();
        let unit = |enable| serde_json::json!({ "text": "[Unit]\n", "enable": enable, "dropIn": false, "wantedBy": ["multi-user.target"], "aliases": ["other.service"] });
        let request: Request = serde_json::from_value(serde_json::json!({
            "kind": "system", "packages": [package], "links": { "default.target": "/x" },
            "units": { "known.service": unit(true), "own.service": unit(true), "off.service": unit(false) }
        }))
        .unwrap();
        let out = dir.path().join("out");
        run(&out, &request).unwrap();
        assert_eq!(
            std::fs::read_link(out.join("known.service")).unwrap(),
            package.join("lib/systemd/system/known.service")
        );
        assert!(out.join("known.service.d/overrides.conf").exists());
        assert!(out.join("own.service").is_file() && !out.join("own.service.d").exists());
        assert_eq!(std::fs::read_link(out.join("off.service")).unwrap(), Path::new("/dev/null"));
        assert_eq!(
            std::fs::read_link(out.join("multi-user.target.wants/own.service")).unwrap(),
            Path::new("../own.service")
        );
        assert!(!out.join("multi-user.target.wants/off.service").exists());
        assert_eq!(std::fs::read_link(out.join("default.target")).unwrap(), Path::new("/x"));
    }
}
