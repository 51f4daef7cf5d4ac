//! The kernel of a machine's own system, and those of its modules that a machine needs before it sees any file of its own.

use std::path::{Path, PathBuf};

use codchi_runtime::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// Where all of it is.
const STORE: &str = "/nix/store";

/// What `host.nix` renders. None of it gives a machine anything of its host but memory and time of processors.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// 1.
    pub version: u32,
    /// Store path with the kernel's image.
    pub kernel: PathBuf,
    /// Store path with its modules.
    pub modules: PathBuf,
    /// Modules to load, in this order, where the kernel has them.
    pub load: Vec<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// Processors.
    pub cpus: u32,
}

impl Settings {
    /// The settings of a system that was built.
    pub fn read(engine: &Value) -> Result<Settings> {
        let wrong = |why: String| Error::Settings(why);
        let settings: Settings = serde_json::from_value(engine.clone()).map_err(|e| wrong(e.to_string()))?;
        if settings.version != 1 {
            return Err(wrong(format!("version {} is not supported, only 1", settings.version)));
        }
        for path in [&settings.kernel, &settings.modules] {
            let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
            if !path.starts_with(STORE) || !plain {
                return Err(wrong(format!("`{}` is not in the store", path.display())));
            }
        }
        if settings.load.iter().any(|m| m.contains('/')) || settings.cpus == 0 || settings.memory < 64 << 20 {
            return Err(wrong("the kernel, memory and processors of a virtual machine make no sense".into()));
        }
        Ok(settings)
    }

    /// The kernel's image.
    pub fn image(&self) -> Result<PathBuf> {
        let boot = named(&self.kernel.join("boot"), |n| n.starts_with("vmlinuz-"));
        let found = boot.into_iter().chain([self.kernel.join("bzImage"), self.kernel.join("Image")]);
        let found = found.into_iter().find(|p| p.is_file()).ok_or_else(|| none("a kernel", &self.kernel))?;
        resolved(&found)
    }

    /// The files of the modules to load.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let dirs = ["usr/lib/modules", "lib/modules"].map(|d| self.modules.join(d));
        let versions = dirs.iter().flat_map(|d| named(d, |_| true));
        let tree = versions.into_iter().map(|v| v.join("kernel")).find(|t| t.is_dir());
        let tree = resolved(&tree.ok_or_else(|| none("kernel modules", &self.modules))?)?;
        Ok(self.found_in(&tree))
    }

    /// The files of the modules to load, in a folder of modules.
    fn found_in(&self, tree: &Path) -> Vec<PathBuf> {
        let mut all = Vec::new();
        collect(tree, 0, &mut all);
        let is = |file: &Path, name: &str| {
            let file = file.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
            file.strip_prefix(name).is_some_and(|rest| rest.starts_with(".ko"))
        };
        self.load.iter().filter_map(|name| all.iter().find(|f| is(f, name)).cloned()).collect()
    }
}

/// A path without links: what was built may link to what it was not built from, a file of the host.
fn resolved(path: &Path) -> Result<PathBuf> {
    resolved_below(Path::new(STORE), path)
}

fn resolved_below(store: &Path, path: &Path) -> Result<PathBuf> {
    let outside = || Error::Settings(format!("`{}` leads out of the store", path.display()));
    let real = path.canonicalize().map_err(|_| outside())?;
    if real.starts_with(store) { Ok(real) } else { Err(outside()) }
}

fn none(what: &str, path: &Path) -> Error {
    Error::Settings(format!("there is no {what} in `{}`", path.display()))
}

fn named(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = codchi_fs::read_dir(dir).unwrap_or_default();
    entries.iter().filter(|e| wanted(&e.file_name().to_string_lossy())).map(std::fs::DirEntry::path).collect()
}

/// Modules below a folder, which is as deep as kernels make it.
fn collect(dir: &Path, depth: usize, all: &mut Vec<PathBuf>) {
    for entry in codchi_fs::read_dir(dir).unwrap_or_default() {
        match entry.file_type() {
            Ok(t) if t.is_dir() && depth < 8 => collect(&entry.path(), depth + 1, all),
            Ok(t) if t.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn modules_are_found_by_name_in_the_order_they_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("usr/lib/modules/6.12/kernel/drivers/net");
        codchi_fs::create_dir_all(&at).unwrap();
        for name in ["net_failover.ko.xz", "failover.ko.xz", "virtio-rng.ko", "virtio_net.ko.zst"] {
            codchi_fs::write(at.join(name), "").unwrap();
        }
        let load = ["failover", "net_failover", "virtio_net", "virtio_rng", "absent"];
        let settings = Settings {
            version: 1,
            kernel: dir.path().into(),
            modules: dir.path().into(),
            load: load.map(String::from).to_vec(),
            memory: 1 << 30,
            cpus: 2,
        };
        // This one's store is elsewhere.
        assert!(settings.files().is_err());
        let tree = dir.path().join("usr/lib/modules/6.12/kernel");
        assert!(resolved_below(dir.path(), &tree).is_ok());
        let found = settings.found_in(&tree);
        let names: Vec<_> = found.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["failover.ko.xz", "net_failover.ko.xz", "virtio_net.ko.zst", "virtio-rng.ko"]);
    }

    #[test]
    fn links_that_leave_the_store_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, secret) = (dir.path().join("store"), dir.path().join("secret"));
        codchi_fs::create_dir_all(store.join("a")).unwrap();
        codchi_fs::write(&secret, "").unwrap();
        codchi_fs::write(store.join("b"), "").unwrap();
        std::os::unix::fs::symlink("../b", store.join("a/within")).unwrap();
        std::os::unix::fs::symlink(&secret, store.join("a/out")).unwrap();
        assert_eq!(resolved_below(&store, &store.join("a/within")).unwrap(), store.join("b"));
        assert!(resolved_below(&store, &store.join("a/out")).is_err());
    }

    #[test]
    fn settings_that_leave_the_store_are_refused() {
        let with = |kernel: &str| {
            Settings::read(&json!({
                "version": 1, "kernel": kernel, "modules": "/nix/store/m", "load": [], "memory": 1u64 << 30, "cpus": 1
            }))
        };
        assert!(with("/nix/store/k").is_ok());
        assert!(with("/etc").is_err());
        assert!(with("/nix/store/../../etc").is_err());
    }
}
