//! Whether anything a rebuild reads has changed, told in milliseconds.
//!
//! Pure evaluation reads nothing but the machine's folder, what its lock names by hash, and, of inputs that are folders
//! of this host, their files: so a hash over those, the versions and the settings stands for the result.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use codchi_fs::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{NixError, Result, lock};

/// What goes into a fingerprint besides files.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// The machine's folder.
    pub machine: &'a Path,
    /// A file in it that no evaluation reads.
    pub unread: &'a Path,
    /// Versions and settings, each with its name.
    pub facts: Vec<(&'a str, String)>,
    /// Where hashes are remembered; may be lost at any time.
    pub cache: &'a Path,
}

/// What a file was like when it was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    inode: u64,
    hash: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Cache {
    /// When it was written, in seconds since 1970.
    written: i64,
    files: BTreeMap<PathBuf, Known>,
}

/// The fingerprint, in hexadecimal.
pub fn compute(inputs: &Inputs<'_>) -> Result<String> {
    let old: Cache = codchi_fs::read_if_exists(inputs.cache)
        .ok()
        .flatten()
        .and_then(|t| serde_json::from_str(&t).ok())
        .unwrap_or_default();
    let unread = inputs.unread.to_path_buf();
    let mut work = Work { old, new: BTreeMap::new(), sum: Sha256::new(), hashed: false, unread };
    for (name, value) in &inputs.facts {
        work.field(name.as_bytes());
        work.field(value.as_bytes());
    }
    work.tree(inputs.machine)?;
    for (dir, git) in local_inputs(inputs.machine)? {
        work.field(dir.as_os_str().as_bytes());
        if git {
            for file in tracked(&dir)? {
                work.field(file.as_os_str().as_bytes());
                work.file(&dir.join(&file))?;
            }
        } else {
            work.tree(&dir)?;
        }
    }
    if work.hashed || work.new.len() != work.old.files.len() {
        let written = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        let cache = Cache { written, files: work.new };
        if let (Ok(text), Some(parent)) = (serde_json::to_string(&cache), inputs.cache.parent()) {
            codchi_fs::create_private_dir(parent)?;
            codchi_fs::write_atomic(inputs.cache, text, 0o600)?;
        }
    }
    Ok(hex(&work.sum.finalize()))
}

/// The folders of this host that a machine's lock names, and whether each is a git work tree.
pub fn local_inputs(machine: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let file = machine.join("flake.lock");
    let Some(text) = codchi_fs::read_if_exists(&file)? else { return Ok(Vec::new()) };
    let v: Value = serde_json::from_str(&text).map_err(|e| NixError::Parse {
        path: file,
        line: e.line(),
        reason: e.to_string(),
    })?;
    let nodes = v["nodes"].as_object();
    let mut all: Vec<(PathBuf, bool)> = nodes
        .into_iter()
        .flatten()
        .filter_map(|(_, n)| {
            // A commit that is pinned does not change with the files.
            if n["original"].get("rev").is_some() {
                return None;
            }
            let (path, git) = lock::local_original(&n["original"])?;
            path.starts_with('/').then(|| (path.into(), git))
        })
        .collect();
    all.sort();
    all.dedup();
    Ok(all)
}

/// The files git tracks, as Nix sees a work tree.
fn tracked(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut c = Command::new("git");
    // A hook or monitor of the repository has no business here.
    c.args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C"]).arg(dir);
    c.args(["ls-files", "-z", "--cached"]).stdin(Stdio::null());
    let out = c.output().map_err(|source| NixError::Spawn { program: "git".into(), source })?;
    if !out.status.success() {
        let message = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        return Err(NixError::Command { what: format!("listing the files of `{}`", dir.display()), message });
    }
    let files = out.stdout.split(|b| *b == 0).filter(|f| !f.is_empty());
    let mut all: Vec<PathBuf> = files.map(|f| PathBuf::from(std::ffi::OsStr::from_bytes(f))).collect();
    all.sort();
    Ok(all)
}

struct Work {
    old: Cache,
    new: BTreeMap<PathBuf, Known>,
    sum: Sha256,
    hashed: bool,
    unread: PathBuf,
}

impl Work {
    /// Adds bytes so that no two lists of fields give the same stream.
    fn field(&mut self, bytes: &[u8]) {
        self.sum.update((bytes.len() as u64).to_le_bytes());
        self.sum.update(bytes);
    }

    fn tree(&mut self, dir: &Path) -> Result<()> {
        let entries = match codchi_fs::read_dir(dir) {
            Ok(e) => e,
            Err(e) if e.is_not_found() => {
                self.field(b"missing");
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        for entry in entries {
            let path = entry.path();
            if path == self.unread {
                continue;
            }
            self.field(entry.file_name().as_bytes());
            if entry.file_type().at("stat", &path)?.is_dir() {
                self.field(b"{");
                self.tree(&path)?;
                self.field(b"}");
            } else {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let meta = match path.symlink_metadata() {
            Ok(m) => m,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.field(b"missing");
                return Ok(());
            }
            Err(e) => return Err(e).at("stat", path).map_err(Into::into),
        };
        if meta.is_symlink() {
            let to = codchi_fs::read_link_if_exists(path)?.unwrap_or_default();
            self.field(b"link");
            self.field(to.as_os_str().as_bytes());
            return Ok(());
        }
        if !meta.is_file() {
            // A submodule is a directory here; sockets and the like are nothing Nix would read.
            self.field(b"other");
            return Ok(());
        }
        let mut known = Known {
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            inode: meta.ino(),
            hash: String::new(),
        };
        // A file that changed in the second the cache was written may change again without a new time.
        let old = self.old.files.get(path).filter(|o| {
            (o.size, o.mtime, o.ctime, o.inode) == (known.size, known.mtime, known.ctime, known.inode)
                && o.ctime.0 < self.old.written - 1
        });
        known.hash = match old {
            Some(o) => o.hash.clone(),
            None => {
                self.hashed = true;
                hex(&Sha256::digest(codchi_fs::read(path)?))
            }
        };
        self.field(if meta.mode() & 0o100 == 0 { b"file" } else { b"program" });
        self.field(known.hash.as_bytes());
        self.new.insert(path.to_owned(), known);
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            for d in ["machine", "repo/sub"] {
                codchi_fs::create_dir_all(dir.path().join(d)).unwrap();
            }
            let p = Place { dir };
            p.put("machine/flake.nix", "{ }");
            p.put("repo/a", "one");
            p.put("repo/sub/b", "two");
            p
        }
        fn put(&self, path: &str, text: &str) {
            codchi_fs::write(self.dir.path().join(path), text).unwrap();
        }
        fn lock(&self, original: Value) {
            let v = serde_json::json!({ "version": 7, "root": "root", "nodes": { "root": {}, "x": { "original": original } } });
            self.put("machine/flake.lock", &v.to_string());
        }
        fn path(&self, p: &str) -> String {
            self.dir.path().join(p).to_str().unwrap().to_owned()
        }
        fn sum(&self, fact: &str) -> String {
            let machine = self.dir.path().join("machine");
            let cache = self.dir.path().join("cache/f.json");
            compute(&Inputs {
                machine: &machine,
                unread: &machine.join("host.toml"),
                facts: vec![("codchi", fact.into())],
                cache: &cache,
            })
            .unwrap()
        }
        fn git(&self, args: &[&str]) {
            let mut c = Command::new("git");
            c.args(["-C", &self.path("repo")]).args(args).stdout(Stdio::null());
            assert!(c.status().unwrap().success());
        }
    }

    #[test]
    fn it_changes_with_everything_a_rebuild_reads_and_with_nothing_else() {
        let p = Place::new();
        p.lock(serde_json::json!({ "type": "path", "path": p.path("repo") }));
        let first = p.sum("1");
        assert_eq!(p.sum("1"), first);
        p.put("machine/host.toml", "[ports]\n");
        assert_eq!(p.sum("1"), first);
        assert_ne!(p.sum("2"), first);
        p.put("elsewhere", "x");
        assert_eq!(p.sum("1"), first);
        p.put("repo/sub/b", "TWO");
        let second = p.sum("1");
        assert_ne!(second, first);
        p.put("repo/new", "");
        assert_ne!(p.sum("1"), second);
        codchi_fs::remove_file(p.path("repo/new")).unwrap();
        p.put("repo/sub/b", "two");
        assert_eq!(p.sum("1"), first);
        p.put("machine/flake.nix", "{  }");
        assert_ne!(p.sum("1"), first);
    }

    #[test]
    fn of_a_work_tree_only_tracked_files_count() {
        let p = Place::new();
        p.git(&["init", "-q"]);
        p.git(&["add", "a"]);
        p.lock(serde_json::json!({ "type": "git", "url": format!("file://{}", p.path("repo")) }));
        let first = p.sum("1");
        p.put("repo/sub/b", "not tracked");
        p.git(&["commit", "-q", "--allow-empty", "-m", "x", "--author", "a <a@b>"].map(|s| s));
        assert_eq!(p.sum("1"), first);
        p.put("repo/a", "ONE");
        assert_ne!(p.sum("1"), first);
        p.put("repo/a", "one");
        p.git(&["add", "sub/b"]);
        assert_ne!(p.sum("1"), first);
    }

    #[test]
    fn a_lost_or_broken_cache_does_not_matter() {
        let p = Place::new();
        let first = p.sum("1");
        p.put("cache/f.json", "{");
        assert_eq!(p.sum("1"), first);
        codchi_fs::remove_file(p.path("cache/f.json")).unwrap();
        assert_eq!(p.sum("1"), first);
    }

    #[test]
    fn a_file_of_the_same_size_and_second_is_seen() {
        let p = Place::new();
        let first = p.sum("1");
        p.put("machine/flake.nix", "{}\n");
        assert_ne!(p.sum("1"), first);
    }
}
