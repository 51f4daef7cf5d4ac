//! Bringing things into the store: flakes, folders, files by hash; and keeping them there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use codchi_core::progress::{Event, Progress};
use serde_json::Value;

use crate::{Nix, NixError, Result, Role, StorePath};

/// A source that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefetched {
    /// What was asked for, as Nix writes it in the `original` of a lock.
    pub original: Value,
    /// Exactly what was got, as Nix writes it in the `locked` of a lock.
    pub locked: Value,
    /// The hash of its content.
    pub nar_hash: String,
    /// Where it is in the store. A flake in a subfolder is under `dir` of `original`.
    pub path: StorePath,
}

impl Prefetched {
    /// The folder of the flake within the source; empty for the top.
    pub fn dir(&self) -> &str {
        self.original["dir"].as_str().unwrap_or_default()
    }
}

/// A file that is added under the hash of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedFile {
    /// Where it is now.
    pub file: PathBuf,
    /// The name it gets in the store.
    pub name: String,
}

impl Nix {
    /// Fetches a source (any flake reference) into the store.
    pub fn prefetch(&self, source: &str, progress: &dyn Progress) -> Result<Prefetched> {
        progress.report(Event::Phase("fetching the source"));
        let mut c = self.command(&["flake", "prefetch", "--json"]);
        self.look_anew(&mut c);
        c.arg(source);
        let what = format!("fetching `{source}`");
        let out = self.run_logged(c, &what, progress)?;
        let odd = |reason: String| NixError::Answer { what: "nix flake prefetch".into(), reason };
        let v: Value = serde_json::from_str(&out).map_err(|e| odd(e.to_string()))?;
        let nar_hash = v["hash"].as_str().ok_or_else(|| odd("no hash".into()))?.to_owned();
        let path = v["storePath"].as_str().ok_or_else(|| odd("no storePath".into()))?.parse()?;
        let mut locked = v["locked"].clone();
        if let Some(l) = locked.as_object_mut() {
            // 2.26 shows a mark of its own, and 2.34 leaves the hash out of paths.
            l.retain(|k, _| !k.starts_with("__"));
            l.insert("narHash".into(), nar_hash.clone().into());
        }
        Ok(Prefetched { original: v["original"].clone(), locked, nar_hash, path })
    }

    /// Adds a folder or file under `name`. Give large trees to flakes by the path that comes back.
    pub fn add_path(&self, name: &str, path: &Path) -> Result<StorePath> {
        let mut c = self.command(&["store", "add-path", "--name", name]);
        c.arg(path);
        self.run(c, "adding to the store")?.trim().parse()
    }

    /// Adds files by the sha256 of their content, in the order given: what `builtin:fetchurl` with that hash and
    /// name would make.
    pub fn add_fixed(&self, files: &[FixedFile], progress: &dyn Progress) -> Result<Vec<StorePath>> {
        let Some(first) = files.first() else { return Ok(Vec::new()) };
        progress.report(Event::Phase("adding packages to the store"));
        // Nix takes the name from the file, so each gets a link of the right name in a folder next to the files.
        let parent = first.file.parent().unwrap_or(Path::new("."));
        let staging = parent.join(format!(".add.{}", std::process::id()));
        codchi_fs::remove_dir_all(&staging)?;
        let added = self.add_linked(files, &staging);
        codchi_fs::remove_dir_all(&staging)?;
        added
    }

    fn add_linked(&self, files: &[FixedFile], staging: &Path) -> Result<Vec<StorePath>> {
        codchi_fs::create_private_dir(staging)?;
        let mut links = Vec::with_capacity(files.len());
        for (i, f) in files.iter().enumerate() {
            let link = if f.file.file_name().is_some_and(|n| n == f.name.as_str()) {
                f.file.clone()
            } else {
                // Two files of one name are possible.
                let dir = staging.join(i.to_string());
                codchi_fs::create_private_dir(&dir)?;
                let link = dir.join(&f.name);
                codchi_fs::link_or_copy(&f.file, &link)?;
                link
            };
            links.push(link);
        }
        let mut paths = Vec::with_capacity(files.len());
        // An argument list has a limit; 500 paths are far below it.
        for chunk in links.chunks(500) {
            let args =
                ["--add-fixed", "sha256"].iter().map(OsStr::new).chain(chunk.iter().map(|p| p.as_os_str()));
            let out = self.tool("nix-store", Role::Maintainer, args, "adding packages to the store")?;
            for line in out.lines() {
                paths.push(line.parse()?);
            }
        }
        if paths.len() != files.len() {
            let reason = format!("{} paths for {} files", paths.len(), files.len());
            return Err(NixError::Answer { what: "nix-store --add-fixed".into(), reason });
        }
        Ok(paths)
    }

    /// Those of these paths that the store does not hold, though there may be files of theirs.
    pub fn invalid(&self, paths: &[StorePath]) -> Result<Vec<StorePath>> {
        let mut found = Vec::new();
        for some in paths.chunks(1000) {
            let args =
                ["--check-validity", "--print-invalid"].into_iter().chain(some.iter().map(StorePath::as_str));
            let said = self.tool("nix-store", Role::Caller, args, "checking paths")?;
            for line in said.lines() {
                found.push(line.parse()?);
            }
        }
        Ok(found)
    }

    /// Whether a path is in the store and whole.
    pub fn is_valid(&self, path: &StorePath) -> bool {
        self.tool("nix-store", Role::Caller, ["--check-validity", path.as_str()], "checking a path").is_ok()
    }
}
